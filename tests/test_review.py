"""What must hold whatever happens to a folder of records: choices look at validation alone, nothing finished is repeated or mixed up."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from surefoot import advise, cli, compare, records
from surefoot.bundle import load_bundle, save_bundle
from surefoot.compare import Comparison, Plan, comparison, conclusions
from surefoot.data import Dataset, Split, open_dataset
from surefoot.errors import DataError, SettingError, TrainingError
from surefoot.identity import weights_hash
from surefoot.job import DataOptions, Job
from surefoot.methods import get, wise_ft
from surefoot.model import ImageTextModel
from surefoot.protocols import Judge, Member, Outcome
from surefoot.records import Answers
from surefoot.report.confusion import best_on_validation
from surefoot.report.runs import collect
from surefoot.train import Training, fit, start_state, text_head

TRAINING = Training(epochs=2, batch_size=8, learning_rate=1e-2)
ONE = Plan(methods=("tp_ft",), seeds=(0,), alphas=(0.5,), training=TRAINING)


def invoke(*arguments: str) -> Result:
    sys.argv = ["surefoot", *arguments]
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200"})


def rotated(split: Split) -> Split:
    """The same images under other labels."""
    return replace(split, labels=tuple((label + 1) % len(split.class_names) for label in split.labels))


def seen_only(data: Dataset) -> Dataset:
    """Without the unseen classes, whose harmonic means take the time of a test."""
    return replace(data, splits={name: split for name, split in data.splits.items() if not name.startswith("unseen/")})


def standing(folder: Path) -> tuple[object, ...]:
    """All that a reader of a folder sees, but for times."""
    runs = collect(records.read(folder))
    points = {key: {alpha: dict(e.accuracy) for alpha, e in sorted(run.points.items())} for key, run in sorted(runs.runs.items())}
    trained = {key: (t.history, t.kept_epoch) for key, t in sorted(runs.trained.items())}
    return points, runs.choices, runs.differences, runs.examples, trained


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "fit", lambda *_, **__: pytest.fail("a finished run was trained again"))


def test_labels_of_everything_but_train_and_val_choose_nothing(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    plan = Plan(methods=("lp", "tp_ft", "flyp"), seeds=(0,), alphas=(0.25,), training=replace(TRAINING, keep="best"))
    tiny_data = seen_only(tiny_data)
    splits = {name: split if name in ("train", "val") else rotated(split) for name, split in tiny_data.splits.items()}
    made = {}
    for name, data in (("given", tiny_data), ("rotated", replace(tiny_data, splits=splits))):
        found = Comparison(tiny_model, data, plan, tmp_path / name).run()
        runs = collect(records.read(tmp_path / name))
        best = conclusions.best(found, list(runs.choices.values()))
        assert best is not None
        made[name] = (
            {key: (c.alpha, c.argmax) for key, c in runs.choices.items()},
            {key: (t.kept_epoch, t.choices, t.history) for key, t in runs.trained.items()},
            (best.method, best.seed, best.alpha),
            best_on_validation(runs)[0],
        )
        made[f"{name} test"] = [r.accuracy["test"] for r in found]
    assert made["given"] == made["rotated"]
    assert made["given test"] != made["rotated test"], "the rotation changes what is measured"


def test_the_best_run_is_the_best_on_validation_at_its_own_alpha() -> None:
    def record(method: str, alpha: float, val: float, test: float) -> records.Evaluation:
        return records.Evaluation(
            method=method, seed=0, alpha=alpha, dataset="d", accuracy={"val": val, "test": test}, num_images={}, answers="", settings={},
            settings_hash="",
        )  # fmt: skip

    found = [record("tp_ft", 0.5, 0.7, 0.2), record("tp_ft", 1.0, 0.9, 0.9), record("flyp", 0.5, 0.6, 0.8), record("flyp", 1.0, 0.5, 1.0)]
    chosen = [records.Choice(method=method, seed=0, alpha=0.5, argmax=1.0) for method in ("tp_ft", "flyp")]
    assert conclusions.best(found, chosen) == found[0]
    assert conclusions.best(found, []) is None


def test_alpha_0_is_the_zero_shot_model_bit_for_bit_for_every_method(
    tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path
) -> None:
    plan = Plan(methods=("lp", "ft", "flyp"), seeds=(3,), alphas=(), training=TRAINING)
    found = Comparison(tiny_model, seen_only(tiny_data), plan, tmp_path).run()
    zero = records.load_answers(tmp_path, found[0].answers)
    for record in found:
        given = records.load_answers(tmp_path, record.answers)
        same = all(
            np.array_equal(given[name].prediction, zero[name].prediction) and np.array_equal(given[name].confidence, zero[name].confidence)
            for name in zero
        )
        assert same == (record.alpha == 0)


def test_a_linear_probe_at_every_alpha_costs_no_pass_over_the_images(
    tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = start_state(tiny_model, tiny_data)
    end = fit(get("lp"), tiny_model, tiny_data, TRAINING, start=start).state
    judge = Judge(tiny_model, tiny_data, start)
    zero = judge.judge(get("zero_shot"), start)
    monkeypatch.setattr(type(tiny_model), "encode_image", lambda *_: pytest.fail("an image was encoded again"))
    outcomes = judge.judge_all([Member(get("lp"), lambda a=k / 10: wise_ft(start, end, a)) for k in range(1, 11)])  # type: ignore[misc]
    for outcome in outcomes:
        for name in ("unseen/other", "joint_seen/other", "context/red", "context_own/red", "agreement"):
            assert np.array_equal(outcome.answers[name].prediction, zero.answers[name].prediction)


def test_two_unseen_sets_contexts_without_shifts_and_a_shift_in_the_context_of_id(
    tiny_model: ImageTextModel, copy_of: Callable[[], Path]
) -> None:
    root = copy_of()
    shutil.copytree(root / "unseen" / "other", root / "unseen" / "red")  # called as a context, which it is not
    shutil.move(root / "shifts" / "green", root / "shifts" / "black")
    for shifts, sets in ((True, {"context/black": 24, "context/red": 12}), (False, {"context/black": 15})):
        if not shifts:
            shutil.rmtree(root / "shifts")
        data = open_dataset(root)
        start = start_state(tiny_model, data)
        outcome = Judge(tiny_model, data, start).judge(get("zero_shot"), start)
        assert {k: len(v.label) for k, v in outcome.answers.items() if k.startswith("context/")} == sets
        assert outcome.accuracy["context"] == pytest.approx(np.mean([outcome.accuracy[name] for name in sets]))
        for name in ("other", "red"):
            a, b = outcome.accuracy["test"], outcome.accuracy[f"unseen/{name}"]
            assert outcome.accuracy[f"hm/{name}"] == pytest.approx(2 * a * b / (a + b) if a + b else 0)
            assert len(outcome.answers[f"joint_seen/{name}"].label) == 15
        assert ("avg_corruptions" in outcome.accuracy) != shifts


def test_the_restricted_mean_is_over_the_same_shifts_as_the_free_one() -> None:
    def given(right: int, total: int) -> Answers:
        return Answers((np.arange(total) < right).astype(np.int32), np.ones(total, np.int32), np.full(total, 0.5, np.float32))

    answers = {"shifts/all": given(2, 10), "shifts/some": given(4, 10), "restricted/some": given(8, 10)}
    assert Outcome(answers).accuracy["avg_shifts"] == pytest.approx(0.3)
    assert Outcome(answers).accuracy["avg_restricted"] == pytest.approx(0.5)
    assert "avg_restricted" not in Outcome({"shifts/all": given(2, 10)}).accuracy


def test_answers_do_not_depend_on_chunks_or_on_what_is_known_already(
    tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surefoot.protocols import judge as module

    start = start_state(tiny_model, tiny_data)
    end = fit(get("flyp"), tiny_model, tiny_data, TRAINING, start=start).state
    members = [Member.of(get("lp"), end), Member.of(get("flyp"), end), Member.of(get("zero_shot"), start), Member.of(get("tp_ft"), start)]
    at_once = Judge(tiny_model, tiny_data, start).judge_all(members)
    monkeypatch.setattr(module, "EVALUATION_BATCH", 4)
    whole = Judge(tiny_model, tiny_data, start).judge_all(members)
    for outcome, other in zip(whole, at_once, strict=True):
        for name, given in outcome.answers.items():
            assert np.array_equal(given.label, other.answers[name].label)
            np.testing.assert_allclose(given.confidence, other.answers[name].confidence, rtol=1e-4)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    judge = Judge(tiny_model, tiny_data, start)
    for members_now, expected in ((members, whole), (members[:1], whole[:1]), (members[1:2], whole[1:2]), (members[2:], [whole[3]] * 2)):
        for outcome, other in zip(judge.judge_all(members_now), expected, strict=True):
            assert outcome.answers.keys() == other.answers.keys()
            for name, given in outcome.answers.items():
                for part in ("prediction", "label", "confidence"):
                    assert np.array_equal(getattr(given, part), getattr(other.answers[name], part)), name


def test_conclusions_cover_every_run_that_stands_in_the_folder(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    data = seen_only(tiny_data)
    Comparison(tiny_model, data, ONE, tmp_path).run()
    Comparison(tiny_model, data, replace(ONE, methods=("lp",)), tmp_path).run()
    runs = collect(records.read(tmp_path))
    assert set(runs.choices) == {("tp_ft", 0), ("lp", 0)}
    assert {("tp_ft", "zero_shot", "test"), ("lp", "zero_shot", "test")} <= runs.differences.keys()
    Comparison(tiny_model, data, replace(ONE, seeds=(1, 2), alphas=()), tmp_path).run()  # a point of the frontier that other seeds lack
    runs = collect(records.read(tmp_path))
    assert {one.num_seeds for key, one in runs.differences.items() if key[0] == "tp_ft"} == {3}
    assert runs.differences["tp_ft + WiSE-FT 0.5", "tp_ft", "test"].num_seeds == 1


class Killed(BaseException):
    """What an interruption looks like from inside."""


@pytest.mark.parametrize("place", ["append", "save_answers", "write", "unlink"])
def test_interrupted_anywhere_and_restarted_the_folder_reads_the_same(
    place: str, tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_data = seen_only(tiny_data)
    Comparison(tiny_model, tiny_data, ONE, tmp_path / "whole").run()
    expected = standing(tmp_path / "whole")
    number = len((tmp_path / "whole" / records.FILE).read_text().splitlines())
    owner = {"append": records, "save_answers": records, "write": comparison, "unlink": Path}[place]
    original, train = getattr(owner, place), comparison.fit
    stops = {"append": [2, 6, number - 1], "save_answers": [2], "write": [0], "unlink": [0]}[place]
    trained: list[int] = []
    monkeypatch.setattr(comparison, "fit", lambda *a, **k: (trained.append(1), train(*a, **k))[1])
    for stop in stops:
        for after in (False, True)[: 1 if place == "append" else 2]:  # after one line is before the next
            folder, calls = tmp_path / f"{place}-{stop}-{after}", [0]

            def stopped(*a: object, stop: int = stop, after: bool = after, calls: list[int] = calls, **k: object) -> object:
                calls[0] += 1
                if calls[0] != stop + 1:
                    return original(*a, **k)
                if after:
                    original(*a, **k)
                raise Killed

            trained.clear()
            monkeypatch.setattr(owner, place, stopped)
            with pytest.raises(Killed):
                Comparison(tiny_model, tiny_data, ONE, folder).run()
            monkeypatch.setattr(owner, place, original)
            weights = list((folder / "weights").glob("*.safetensors"))
            before = len(trained)
            Comparison(tiny_model, tiny_data, ONE, folder).run()
            assert len(trained) - before == (0 if weights else 1), "finished weights are not trained again"
            assert standing(folder) == expected
            evaluations = [(r.method, r.seed, r.alpha) for r in records.read(folder) if isinstance(r, records.Evaluation)]
            assert len(evaluations) == len(set(evaluations)) == 4
            assert len([r for r in records.read(folder) if isinstance(r, records.Trained)]) == 1
            assert not list(folder.rglob("*.resume"))


def test_an_interrupted_comparison_gives_the_model_its_weights_back(
    tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights_hash(tiny_model)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(comparison, "write", killed)
    with pytest.raises(Killed):
        Comparison(tiny_model, tiny_data, ONE, tmp_path).run()
    assert weights_hash(tiny_model) == before


def test_corruptions_asked_for_later_are_judged_without_training(
    tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_data = seen_only(tiny_data)
    Comparison(tiny_model, tiny_data, ONE, tmp_path).run()
    train = comparison.fit
    monkeypatch.setattr(comparison, "fit", lambda *_, **__: pytest.fail("trained again"))
    found = Comparison(tiny_model, tiny_data, replace(ONE, corruptions=True), tmp_path).run()
    assert all("avg_corruptions" in record.accuracy for record in found)
    runs = collect(records.read(tmp_path))
    assert all("avg_corruptions" in e.accuracy for e in runs.evaluations())
    assert ("tp_ft", "zero_shot", "avg_corruptions") in runs.differences, "answers that were written anew are read anew"
    monkeypatch.setattr(comparison, "fit", train)
    # a second seed without them: columns that not every row has are left out of the differences
    found = Comparison(tiny_model, tiny_data, replace(ONE, seeds=(0, 1), corruptions=False), tmp_path).run()
    assert {"avg_corruptions" in r.accuracy for r in found} == {True, False}
    differences = collect(records.read(tmp_path)).differences
    assert ("tp_ft", "zero_shot", "test") in differences
    assert ("tp_ft", "zero_shot", "avg_corruptions") not in differences


@pytest.mark.usefixtures("no_training")
def test_lost_or_damaged_answers_are_measured_again(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    plan = replace(ONE, methods=("zero_shot",))
    first = Comparison(tiny_model, tiny_data, plan, tmp_path).run()
    stored = tmp_path / first[0].answers
    whole = stored.read_bytes()
    for content in (b"", whole[:200], whole[:60] + bytes(40) + whole[100:]):
        stored.write_bytes(content)
        with pytest.raises(DataError, match="Run the evaluation again"):
            records.load_answers(tmp_path, first[0].answers)
    stored.unlink()
    assert Comparison(tiny_model, tiny_data, plan, tmp_path).run() == first
    assert stored.is_file()


def test_another_data_set_is_refused_before_anything_is_trained_and_a_new_name_of_the_same_is_not(
    tiny_model: ImageTextModel, copy_of: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = copy_of(), tmp_path / "run"
    shutil.rmtree(root / "unseen")
    Comparison(tiny_model, open_dataset(root), ONE, out).run()
    lines = (out / records.FILE).read_bytes()
    renamed = replace(open_dataset(root), name="renamed")
    Comparison(tiny_model, renamed, replace(ONE, methods=("tp_ft", "flyp")), out).run()
    assert set(collect(records.read(out)).methods) == {"tp_ft", "flyp"}
    (out / records.FILE).write_bytes(lines)
    shutil.rmtree(root / "shifts" / "red")
    monkeypatch.setattr(comparison, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(DataError, match="Give another folder"):
        Comparison(tiny_model, replace(open_dataset(root), name="other"), ONE, out)
    assert (out / records.FILE).read_bytes() == lines


def test_the_gallery_shows_the_images_of_the_data_as_they_are(
    tiny_model: ImageTextModel, copy_of: Callable[[], Path], tmp_path: Path
) -> None:
    from surefoot.compare import gallery

    root = copy_of()
    made = []
    for _ in range(2):
        data = open_dataset(root)
        label = np.array(data.split("test").labels, np.int32)
        sure = np.ones(len(label), np.float32)
        rows = []
        for model, prediction in (("a", label), ("b", (label + 1) % 3)):
            right = {split.name: np.array(split.labels, np.int32) for split in data.shifts}
            sets = {name: Answers(given, given, np.ones(len(given), np.float32)) for name, given in right.items()}
            written = records.save_answers(tmp_path / "run", model, {"test": Answers(prediction.astype(np.int32), label, sure), **sets})
            origin = {"data": data.fingerprint()}
            empty: dict[str, float] = {}
            rows.append(
                records.Evaluation(
                    method=model,
                    seed=0,
                    alpha=1.0,
                    dataset="d",
                    accuracy=empty,
                    num_images={},
                    answers=written,
                    settings={},
                    settings_hash="",
                    provenance=origin,
                )
            )
        found = gallery.examples(tmp_path / "run", data, "a", rows[0], rows[1], "")
        made.append({example.path: (tmp_path / "run" / example.image).read_bytes() for example in found})
        (root / "test" / "bar" / "0.png").unlink(missing_ok=True)  # every row moves by one
    common = made[0].keys() & made[1].keys()
    assert common
    assert all(made[0][path] == made[1][path] for path in common)
    assert not list((tmp_path / "run").rglob("*.part"))


def test_a_damaged_weights_file_is_named(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    tiny_data = seen_only(tiny_data)
    Comparison(tiny_model, tiny_data, ONE, tmp_path).run()
    (weights,) = (tmp_path / "weights").iterdir()
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(TrainingError, match="Delete the file"):
        Comparison(tiny_model, tiny_data, replace(ONE, alphas=(0.25,)), tmp_path).run()


def test_zero_shots_are_no_full_run(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="shots is 0"):
        Comparison(tiny_model, tiny_data, replace(ONE, shots=0), tmp_path)


def test_rows_that_cannot_be_paired_are_named(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    few = Comparison(tiny_model, tiny_data, replace(ONE, shots=2), tmp_path).run()
    with pytest.raises(DataError, match="6 and 12 images of val"):
        compare.difference("a", few[-1:], "b", few[:1], "val", (tmp_path, tmp_path))
    assert all(d.on != "val" for d in records.read(tmp_path) if isinstance(d, records.Difference))


@pytest.mark.parametrize("kind", ["shots", "base_to_new"])
def test_frontier_opens_few_shot_and_base_to_new_runs_again(
    kind: str, tiny_folder: Path, copy_of: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = copy_of(), tmp_path / "run"
    for split in ("train", "val", "test"):  # base-to-new needs four classes
        shutil.copytree(root / split / "bar", root / split / "ring_thing")
    shutil.rmtree(root / "unseen")
    methods, *options = {"shots": ["lp,tp_ft", "--shots", "2"], "base_to_new": ["lp", "--base-to-new"]}[kind]
    result = invoke(
        "compare", str(root), "--out", str(out), "--model", f"local-dir:{tiny_folder}", "--methods", methods, "--seeds", "1", *options,
        "--precision", "fp32", "--device", "cpu", "--corruptions", "--set", "epochs=1", "--set", "batch_size=2",
        "--set", "lp.l2=[1e-3, 0.0]", "--set", "clip_norm=none", "--set", "tp_ft.layers=visual[-1:]",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    before = [r for r in records.read(out) if isinstance(r, records.Evaluation)]
    monkeypatch.setattr(comparison, "fit", lambda *_, **__: pytest.fail("trained again"))
    result = invoke("frontier", str(out), "--alphas", "0.33")
    assert result.exit_code == 0, result.output
    after = [r for r in records.read(out) if isinstance(r, records.Evaluation)]
    assert after[: len(before)] == before
    assert [(r.method, r.alpha) for r in after[len(before) :]] == [(method, 0.33) for method in methods.split(",")]
    assert {r.settings_hash for r in after if r.method == "lp"} == {before[1].settings_hash}
    assert after[-1].num_images == before[-1].num_images


def test_a_job_is_read_back_as_it_was(tmp_path: Path) -> None:
    plan = Plan(
        methods=("lp",), seeds=(4,), shots=3, corruptions=False, overrides={"lp": {"l2": [0.1, 0.0], "clip_norm": None}},
        training=Training(steps=7, clip_norm=0.5),
    )  # fmt: skip
    job = Job(data=DataOptions(data="d", base_to_new=True, skip_unreadable=True), model="m", precision="bf16", plan=plan, device="cpu")
    job.save(tmp_path)
    assert Job.of(tmp_path) == job


def test_measuring_leaves_the_model_as_it_was(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    start = start_state(tiny_model, tiny_data)
    for number, parameter in enumerate(tiny_model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    before = [(p.detach().clone(), p.requires_grad) for p in tiny_model.parameters()]
    for name, settings in (("zero_shot", {}), ("lp", {}), ("lp_ft", {"l2": [0.0]}), ("flyp", {"lora_rank": 2})):
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        cost = advise.measure(get(name, settings), tiny_model, tiny_data, TRAINING, start)
        assert torch.equal(torch.rand(1), expected), "the caller's random numbers go on as if nothing had been measured"
        assert (cost.seconds > 0) == (name != "zero_shot")
        assert cost.num_bytes > 0
        after = list(tiny_model.parameters())
        assert all(torch.equal(p, old) and p.requires_grad == flag for p, (old, flag) in zip(after, before, strict=True))


def test_the_estimate_follows_the_batch_the_length_and_the_stages(
    tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(*arguments: object) -> object:
        size = arguments[-1]
        return advise._Probe(size, 4 * size, features=1.0 + 0.4 * size, head_step=0.01, step=2.0 + 0.1 * size, num_bytes=5, num_trained=7)

    monkeypatch.setattr(advise, "_probe", probe)
    start, training = start_state(tiny_model, tiny_data), Training(steps=5, batch_size=24)
    seconds = {name: advise.measure(get(name), tiny_model, tiny_data, training, start).seconds for name in ("flyp", "lp", "lp_ft")}
    assert seconds["flyp"] == pytest.approx(5 * (2.0 + 0.1 * 24))
    assert seconds["lp"] == pytest.approx(1.0 + 0.1 * 24 + 5 * 20 * 0.01), "features of 24 images; 5 candidates of 20 epochs of 1 step"
    assert seconds["lp_ft"] == pytest.approx(seconds["flyp"] + seconds["lp"])


def test_memory_that_caches_of_files_would_give_back_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       100 kB\nMemFree:        10 kB\nMemAvailable:   80 kB\n")
    monkeypatch.setattr(advise, "MEMINFO", tmp_path / "meminfo")
    assert advise.available_bytes(torch.device("cpu")) == 80 * 1024


def test_a_classifier_that_answers_from_text_holds_the_text_head_of_its_own_weights(
    tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path
) -> None:
    start = start_state(tiny_model, tiny_data)
    end = fit(get("flyp"), tiny_model, tiny_data, TRAINING, start=start).state
    save_bundle(tmp_path, tiny_model, wise_ft(start, end, 0.5), tiny_data, get("flyp"), 0.5)
    bundle = load_bundle(tmp_path, device="cpu")
    assert torch.equal(bundle.head["weight"], text_head(bundle.model, tiny_data).weight)
    for added in (["a", "A"], ["bar"], [" "]):
        with pytest.raises(SettingError):
            bundle.classifier(added)


def test_a_classifier_that_was_being_replaced_does_not_open(
    tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surefoot import bundle

    start = start_state(tiny_model, tiny_data)
    save_bundle(tmp_path, tiny_model, start, tiny_data, get("tp_ft"), 0.0)

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(bundle, "write", killed)
    with pytest.raises(Killed):
        save_bundle(tmp_path, tiny_model, start, tiny_data, get("tp_ft"), 1.0)
    with pytest.raises(DataError.__mro__[1], match="not there"):
        load_bundle(tmp_path, device="cpu")
    monkeypatch.undo()
    save_bundle(tmp_path, tiny_model, start, tiny_data, get("tp_ft"), 1.0)
    assert json.loads((tmp_path / "surefoot.json").read_text())["alpha"] == 1.0


def test_judging_is_estimated_from_validation_images_alone_and_grows_with_the_members(
    tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, encoded = [0.0], tiny_model.encode_image
    monkeypatch.setattr(advise.time, "monotonic", lambda: now[0])

    def encode(images: torch.Tensor) -> torch.Tensor:
        now[0] += 0.5 * len(images)
        return encoded(images)

    monkeypatch.setattr(tiny_model, "encode_image", encode)
    hidden = Split("test", tuple(Path("/nowhere") / str(n) for n in range(15)), tiny_data.split("test").labels, tiny_data.class_names)
    data = replace(tiny_data, splits={**tiny_data.splits, "test": hidden})
    plain = 12 + 15 + 12 + 9 + 6  # val, test, both shifts, unseen; half a second each, by ten members and the pre-trained model
    assert advise.judging_seconds(tiny_model, data, 10) == pytest.approx(0.5 * plain * 11)
    without = replace(data, splits={name: split for name, split in data.splits.items() if not name.startswith("shifts/")})
    assert advise.judging_seconds(tiny_model, without, 1) == pytest.approx(0.5 * 2 * (12 + 15 + 6 + 10 * 15)), "ten corruptions"
