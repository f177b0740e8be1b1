"""Curves beside the frontier: each by direct computation, what their ends are, and that nothing is done twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from conftest import fresh
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from surefoot import cli, records
from surefoot.compare import Comparison, Plan, comparison, curves
from surefoot.compare.curves import image_tower_alone, kinds_of
from surefoot.data import Dataset, read_image
from surefoot.errors import UnknownNameError
from surefoot.heads import LinearHead
from surefoot.methods import get, wise_ft
from surefoot.model import ImageTextModel
from surefoot.objective import Method
from surefoot.prompts import PromptTable
from surefoot.protocols import Judge, Outcome
from surefoot.report import frontier_svg, write_page
from surefoot.report.marks import METHOD_COLOURS
from surefoot.report.runs import collect
from surefoot.train import Fitted, State, Step, Training, fit, part, start_state
from surefoot.train.fisher import diagonal_fisher
from surefoot.weights import fisher_merge

TRAINING = Training(epochs=3, batch_size=8, learning_rate=3e-2, keep="last")
PLAN = Plan(methods=("tp_ft",), seeds=(0,), alphas=(0.25, 0.5), training=TRAINING)
PROBE = {"l2": (1e-3, 0.0), "head_epochs": 2}
ALPHAS = (0.0, 0.25, 0.5, 0.9, 1.0)


@pytest.fixture(autouse=True)
def without_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bootstrap intervals of differences take most of a comparison's time, and no curve has one."""
    monkeypatch.setattr(comparison.conclusions, "differences", lambda *_: [])


@pytest.fixture
def judge(tiny_model: ImageTextModel, tiny_data: Dataset) -> Judge:
    return Judge(tiny_model, tiny_data, start_state(tiny_model, tiny_data))


def ended(judge: Judge, method: Method, **how: object) -> Fitted:
    judge.model.load_weights(part(judge.start, "model"))
    return fit(method, judge.model, judge.dataset, TRAINING, start=judge.start, **how)  # type: ignore[arg-type]


def text_weight(model: ImageTextModel, names: tuple[str, ...], templates: tuple[str, ...]) -> Tensor:
    rows = [
        F.normalize(F.normalize(model.encode_text(model.tokenize([t.replace("{}", n) for t in templates]))).mean(0), dim=0) for n in names
    ]
    return model.scale * torch.stack(rows)


def same(one: Outcome, other: Outcome) -> None:
    assert one.answers.keys() == other.answers.keys()
    for name, given in one.answers.items():
        assert given.prediction.tolist() == other.answers[name].prediction.tolist(), name
        assert given.confidence.tolist() == other.answers[name].confidence.tolist(), name


# ---- ensembles of outputs


@pytest.mark.parametrize("name", ["tp_ft", "flyp"])
def test_outputs_are_averaged_image_by_image(name: str, judge: Judge, tiny_data: Dataset) -> None:
    method, alpha = get(name), 0.25
    end = ended(judge, method).state
    (found,) = judge.ensembles(method, end, [alpha])
    both = [fresh(judge.model), fresh(judge.model)]
    for model, state in zip(both, (judge.start, end), strict=True):
        model.load_weights(part(state, "model"))
        model.eval()
    new = tiny_data.split("unseen/other").class_names
    with torch.no_grad():
        seen, unseen = ([text_weight(model, n, tiny_data.templates) for model in both] for n in (tiny_data.class_names, new))
        if method.predict == "head":
            heads = [(seen[0], torch.zeros(3)), (end["head.weight"], end["head.bias"])]
        else:
            heads = [(one, torch.zeros(3)) for one in seen]
        for of in ("test", "shifts/red", "unseen/other"):
            for row, path in enumerate(tiny_data.split(of).paths):
                first, second = (model.encode_image(model.preprocess(read_image(path))[None])[0] for model in both)
                joint = [torch.cat([a, b]) @ f for a, b, f in zip(seen, unseen, (first, second), strict=True)]
                if of == "unseen/other":
                    logits = [unseen[0] @ first, unseen[1] @ second]
                    expected = {of: logits, "joint_unseen/other": joint}
                else:
                    logits = [weight @ f + bias for (weight, bias), f in zip(heads, (first, second), strict=True)]
                    expected = {of: logits} | ({"joint_seen/other": joint} if of == "test" else {})
                for key, (zero, one) in expected.items():
                    mixed = (1 - alpha) * zero + alpha * one
                    assert found.answers[key].prediction[row] == int(mixed.argmax())
                    assert found.answers[key].confidence[row] == pytest.approx(float(mixed.softmax(0).max()), abs=1e-4)


@pytest.mark.parametrize("name", ["tp_ft", "flyp", "lp", "ft"])
def test_the_ends_of_an_ensemble_are_the_two_models(name: str, judge: Judge) -> None:
    method = get(name, PROBE if name == "lp" else {})
    end = ended(judge, method).state
    zero, one = judge.ensembles(method, end, [0.0, 1.0])
    same(zero, judge.judge(get("zero_shot"), judge.start))
    same(one, judge.judge(method, end))
    assert any(zero.answers[of].prediction.tolist() != one.answers[of].prediction.tolist() for of in ("test", "val", "shifts/red"))


def test_of_a_head_on_a_frozen_tower_outputs_and_weights_are_averaged_alike(judge: Judge) -> None:
    method = get("lp", PROBE)
    end = ended(judge, method).state
    for alpha, outcome in zip(ALPHAS, judge.ensembles(method, end, ALPHAS), strict=True):
        merged = judge.judge(method, wise_ft(judge.start, end, alpha))
        assert {of: given.prediction.tolist() for of, given in outcome.answers.items()} == {
            of: given.prediction.tolist() for of, given in merged.answers.items()
        }


def test_all_ensembles_cost_one_pass(judge: Judge) -> None:
    end, seen = ended(judge, get("flyp")).state, list[int]()
    judge.judge(get("zero_shot"), judge.start)
    judge.on_images = seen.append
    judge.ensembles(get("flyp"), end, [k / 10 for k in range(11)])
    assert sum(seen) == judge.num_images


# ---- the weights of every epoch


def taken(judge: Judge, method: Method, **how: object) -> tuple[dict[int, State], Fitted]:
    found: dict[int, State] = {}

    def take(epoch: int, weights: Callable[[], State]) -> None:
        assert epoch not in found, "each epoch is told once"
        found[epoch] = weights()

    return found, ended(judge, method, on_epoch=take, **how)


@pytest.mark.parametrize(
    ("name", "settings", "epochs"),
    [("tp_ft", {}, 3), ("flyp", {}, 3), ("tp_ft", {"lora_rank": 2}, 3), ("lp", PROBE, 2), ("lp_ft", PROBE, 3)],
)
def test_the_last_epoch_is_what_the_run_ends_with(name: str, settings: dict[str, object], epochs: int, judge: Judge) -> None:
    states, fitted = taken(judge, get(name, settings))
    assert list(states) == list(range(1, epochs + 1))
    assert states[epochs].keys() == fitted.state.keys()
    assert all(torch.equal(tensor, fitted.state[key]) for key, tensor in states[epochs].items())
    moved = {key for key, tensor in states[epochs].items() if not torch.equal(tensor, states[1][key])}
    assert moved  # and each epoch has its own
    plain = ended(judge, get(name, settings))
    assert all(torch.equal(tensor, plain.state[key]) for key, tensor in fitted.state.items()), "looking changes nothing"


def test_a_stage_with_candidates_tells_of_the_chosen_one(judge: Judge) -> None:
    states, fitted = taken(judge, get("lp", {"l2": (1e3, 0.0), "head_epochs": 2, "head_learning_rate": 0.01}))
    assert torch.equal(states[2]["head.weight"], fitted.state["head.weight"])
    history = [row["epoch"] for row in fitted.history]
    assert list(states) == history


class Stopped(Exception):  # noqa: N818
    """Ends a run from outside."""


def test_no_epoch_is_lost_by_an_interruption(judge: Judge, tmp_path: Path) -> None:
    whole, _ = taken(judge, get("tp_ft"))
    parts: dict[int, State] = {}

    def stop(step: Step) -> None:
        if step.number == 5:  # in the middle of the second epoch
            raise Stopped

    how = {"on_epoch": lambda epoch, weights: parts.update({epoch: weights()}), "resume": tmp_path / "run.resume", "checkpoint_seconds": 0}
    with pytest.raises(Stopped):
        ended(judge, get("tp_ft"), on_step=stop, **how)
    assert list(parts) == [1]
    before = parts[1]
    ended(judge, get("tp_ft"), **how)
    assert parts[1] is before
    assert list(parts) == list(whole)
    assert all(torch.equal(tensor, whole[epoch][key]) for epoch, state in parts.items() for key, tensor in state.items())


# ---- in a comparison


def points(folder: Path, along: str) -> dict[float, records.Curve]:
    return {r.at: r for r in records.read(folder) if isinstance(r, records.Curve) and r.along == along}


def test_a_comparison_draws_what_is_asked_for_and_nothing_twice(
    tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {
        r.alpha: r for r in Comparison(tiny_model, tiny_data, PLAN, tmp_path, curves=("outputs", "epochs")).run() if r.method == "tp_ft"
    }
    outputs, epochs = points(tmp_path, "outputs"), points(tmp_path, "epochs")
    assert (list(outputs), list(epochs)) == ([0.0, 0.25, 0.5, 1.0], [1.0, 2.0, 3.0])
    assert [outputs[end].accuracy for end in (0.0, 1.0)] == [found[end].accuracy for end in (0.0, 1.0)]
    assert epochs[3.0].accuracy == found[1.0].accuracy  # keep is "last"
    assert epochs[1.0].accuracy != epochs[3.0].accuracy
    for record in (*outputs.values(), *epochs.values()):
        assert (record.method, record.seed, record.settings_hash) == ("tp_ft", 0, found[1.0].settings_hash)
        assert record.provenance == found[1.0].provenance
    assert [path.suffix for path in (tmp_path / "weights").iterdir()] == [".safetensors"]
    lines = (tmp_path / records.FILE).read_text()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError

    for owner, name in ((comparison, "fit"), (Judge, "judge_all"), (Judge, "ensembles")):
        monkeypatch.setattr(owner, name, forbidden)
    Comparison(tiny_model, tiny_data, PLAN, tmp_path, curves=("outputs", "epochs")).run()
    Comparison(tiny_model, tiny_data, PLAN, tmp_path).run()
    assert (tmp_path / records.FILE).read_text() == lines


def test_without_curves_nothing_is_added(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    Comparison(tiny_model, tiny_data, PLAN, tmp_path).run()
    assert not [r for r in records.read(tmp_path) if isinstance(r, records.Curve)]
    assert [path.suffix for path in (tmp_path / "weights").iterdir()] == [".safetensors"]


def test_epochs_of_a_run_that_did_not_store_them_are_trained_again(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    plan = replace(PLAN, training=replace(TRAINING, keep="best"))
    Comparison(tiny_model, tiny_data, plan, tmp_path / "later").run()
    (weights,) = (tmp_path / "later" / "weights").iterdir()
    before, told = weights.read_bytes(), list[tuple[object, ...]]()

    class Watch(comparison.Watcher):
        def curve(self, method: str, seed: int, along: str, *, training: bool, images: int) -> None:
            told.append((method, seed, along, training, images))

    later = Comparison(tiny_model, tiny_data, plan, tmp_path / "later", Watch(), curves=("epochs",))
    later.run()
    assert told == [("tp_ft", 0, "epochs", True, 3 * later.judge.num_images)]
    Comparison(tiny_model, tiny_data, plan, tmp_path / "first", Watch(), curves=("epochs",)).run()
    assert told[1] == ("tp_ft", 0, "epochs", False, 3 * later.judge.num_images)
    again, first = points(tmp_path / "later", "epochs"), points(tmp_path / "first", "epochs")
    assert {at: r.accuracy for at, r in again.items()} == {at: r.accuracy for at, r in first.items()}
    assert weights.read_bytes() == before
    (trained,) = [r for r in records.read(tmp_path / "later") if isinstance(r, records.Trained)]
    evaluated = next(r for r in records.read(tmp_path / "later") if isinstance(r, records.Evaluation) and r.alpha == 1)
    assert again[float(trained.kept_epoch)].accuracy == evaluated.accuracy
    assert list((tmp_path / "later" / "weights").iterdir()) == [weights]


def test_a_curve_that_was_cut_off_is_completed(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    Comparison(tiny_model, tiny_data, PLAN, tmp_path, curves=("outputs",)).run()
    whole = points(tmp_path, "outputs")
    lines = (tmp_path / records.FILE).read_text().splitlines(keepends=True)
    place = [number for number, line in enumerate(lines) if '"kind": "curve"' in line]
    (tmp_path / records.FILE).write_text("".join([*lines[: place[1]], lines[place[1]][:40]]))
    assert len(points(tmp_path, "outputs")) == 1
    Comparison(tiny_model, tiny_data, PLAN, tmp_path, curves=("outputs",)).run()
    assert points(tmp_path, "outputs") == whole
    more = replace(PLAN, alphas=(0.25, 0.5, 0.75))
    Comparison(tiny_model, tiny_data, more, tmp_path, curves=("outputs",)).run()
    assert list(points(tmp_path, "outputs")) == [0.0, 0.25, 0.5, 1.0, 0.75]


def test_with_few_shots_a_curve_has_the_validation_images_of_its_draw(
    tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(PLAN, shots=1, seeds=(1,), alphas=())
    drawing = Comparison(tiny_model, tiny_data, plan, tmp_path, curves=("outputs", "epochs"))
    own = drawing._with_val_of

    def only_right(seed: int, outcome: Outcome) -> Outcome:
        assert seed == 1
        val = own(seed, outcome).answers["val"]
        assert len(val.label) == 3
        return Outcome({**outcome.answers, "val": replace(val, prediction=val.label)})

    monkeypatch.setattr(drawing, "_with_val_of", only_right)
    drawing.run()
    drawn = [r.accuracy["val"] for r in records.read(tmp_path) if isinstance(r, records.Curve)]
    assert drawn == [1.0] * 5


def test_a_curve_that_does_not_exist_is_named(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown curve 'output'. Did you mean 'outputs'"):
        Comparison(tiny_model, tiny_data, PLAN, tmp_path / "out", curves=("output",))
    assert not (tmp_path / "out").exists()
    assert kinds_of(["all", "epochs"]) == ("outputs", "epochs", "fisher", "visual")


@pytest.mark.parametrize("name", ["tp_ft", "flyp"])
def test_the_fisher_curve_merges_by_what_each_image_says_of_each_weight(
    name: str, tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(PLAN, methods=(name,), alphas=(0.25,), training=replace(TRAINING, epochs=1))
    found = [r.accuracy for r in Comparison(tiny_model, tiny_data, plan, tmp_path).run() if r.method == name]
    judged, judge_all = list[State](), Judge.judge_all
    monkeypatch.setattr(
        Judge, "judge_all", lambda self, members: (judged.extend(dict(m.state()) for m in members), judge_all(self, members))[1]
    )
    (weights,) = (tmp_path / "weights").iterdir()
    last = Comparison(tiny_model, tiny_data, plan, tmp_path, curves=("fisher",))
    last.run()
    drawn = points(tmp_path, "fisher")
    assert [drawn[0.0].accuracy, drawn[1.0].accuracy] == [found[0], found[-1]]
    assert drawn[0.25].made_with == {"num_images": 1000}
    start, end, split = last.start, load_file(weights), tiny_data.split("train")
    prefix = {"tp_ft": ("model.visual.", "head."), "flyp": ("model.",)}[name]
    names = [key for key in end if key.startswith(prefix) and not torch.equal(start[key], end[key])]
    fishers = []
    for state in (start, end):
        model = fresh(tiny_model)
        model.load_weights(part(state, "model"))
        head: LinearHead | PromptTable = PromptTable.build(tiny_data.templates[:1], tiny_data.class_names)
        if name != "flyp":
            head = LinearHead(state["head.weight"], 1.0)
            head.bias.data = state["head.bias"].clone()
        images = torch.stack([model.preprocess(read_image(path)) for path in split.paths])
        fishers.append(diagonal_fisher(model, head, [(images, torch.tensor(split.labels))], names))
    expected = fisher_merge(start, end, *fishers, 0.25)
    assert not any(torch.equal(expected[key], wise_ft(start, end, 0.25)[key]) for key in names[:1])
    (merged,) = judged
    for key, tensor in expected.items():
        torch.testing.assert_close(merged[key], tensor, msg=key)
    before = sorted((tmp_path / "weights").iterdir())
    assert len(before) == 3  # the run's weights, and a diagonal for each end
    assert drawn[0.25].accuracy == Judge(tiny_model, tiny_data, start).judge(last.plan.method_of(name), merged).accuracy


def test_diagonals_are_computed_once_on_no_more_images_than_allowed(
    tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "FISHER_IMAGES", 5)
    calls = list[int]()

    def counted(*arguments: object, on_images: Callable[[int], None], **how: object) -> State:
        seen = list[int]()
        found = diagonal_fisher(*arguments, on_images=seen.append, **how)  # type: ignore[arg-type]
        calls.append(sum(seen))
        return found

    monkeypatch.setattr(curves, "diagonal_fisher", counted)
    short = replace(PLAN, alphas=(), training=replace(TRAINING, epochs=1))
    Comparison(tiny_model, tiny_data, replace(short, alphas=(0.5,)), tmp_path, curves=("fisher",)).run()
    assert calls == [5, 5]
    Comparison(tiny_model, tiny_data, replace(short, alphas=(0.5, 0.75)), tmp_path, curves=("fisher",)).run()
    assert calls == [5, 5]
    Comparison(tiny_model, tiny_data, replace(short, seeds=(0, 1)), tmp_path, curves=("fisher",)).run()
    assert calls == [5, 5, 5]  # the start is shared by both seeds
    assert list(points(tmp_path, "fisher")) == [0.0, 0.5, 1.0, 0.75]
    rows = curves._fisher_rows(tiny_data)
    assert (len(set(rows)), rows == sorted(rows)) == (5, True)


# ---- the image tower alone


VISUAL = replace(PLAN, methods=("flyp", "tp_ft"), alphas=(0.5,), training=replace(TRAINING, epochs=1))


@pytest.mark.parametrize("name", ["flyp", "tp_ft"])
def test_only_the_image_tower_and_a_head_that_answers_are_interpolated(name: str) -> None:
    names = ("model.visual.a", "model.visual.count", "model.text.a", "model.logit_scale", "head.weight", "head.bias")
    start = {key: torch.tensor([float(row), 8.0]) for row, key in enumerate(names)} | {"model.visual.count": torch.tensor(1)}
    end = {key: tensor + 4 for key, tensor in start.items()}
    moved = {"model.visual.a"} | ({"head.weight", "head.bias"} if name == "tp_ft" else set())
    found = image_tower_alone(get(name), start, end, 0.25)
    assert {key: tensor.tolist() for key, tensor in found.items()} == {
        key: (0.75 * start[key] + 0.25 * end[key] if key in moved else end[key]).tolist() for key in names
    }
    ends = [image_tower_alone(get(name), start, end, alpha) for alpha in (0.0, 1.0)]
    assert all(torch.equal(tensor, end[key]) for key, tensor in ends[1].items())
    zero_shot = moved | {"model.visual.count"}
    assert all(torch.equal(tensor, (start if key in zero_shot else end)[key]) for key, tensor in ends[0].items())


def test_the_curve_of_the_image_tower_alone_keeps_its_answers(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    last = Comparison(tiny_model, tiny_data, VISUAL, tmp_path, curves=("visual",))
    found = {r.alpha: r for r in last.run() if r.method == "flyp"}
    drawn = points(tmp_path, "visual")
    assert {r.method for r in drawn.values()} == {"flyp"}, "the text tower of tp_ft does not move"
    assert list(drawn) == [0.0, 0.5, 1.0]
    (weights,) = (tmp_path / "weights").glob("flyp*")
    start, end = last.start, load_file(weights)
    judging = Judge(tiny_model, tiny_data, start)
    for alpha, record in drawn.items():
        towers = {key: (1 - alpha) * start[key] + alpha * end[key] for key in end if key.startswith("model.visual.")}
        expected = judging.judge(get("flyp"), {**end, **towers})
        same(Outcome(records.load_answers(tmp_path, record.answers)), expected)
        assert record.accuracy == expected.accuracy
    assert (drawn[1.0].accuracy, drawn[1.0].answers) == (found[1.0].accuracy, found[1.0].answers)
    different = [judging.judge(get("flyp"), wise_ft(start, end, alpha)) for alpha in (0.0, 0.5)]
    for alpha, other in zip((0.0, 0.5), different, strict=True):
        mine = records.load_answers(tmp_path, drawn[alpha].answers)
        assert any(mine[of].confidence.tolist() != given.confidence.tolist() for of, given in other.answers.items())


def test_a_point_whose_answers_are_gone_is_judged_again_and_nothing_else(
    tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(VISUAL, methods=("flyp",))
    Comparison(tiny_model, tiny_data, plan, tmp_path, curves=("visual",)).run()
    before = points(tmp_path, "visual")
    (tmp_path / before[0.5].answers).unlink()
    judged, judge_all = list[int](), Judge.judge_all
    monkeypatch.setattr(Judge, "judge_all", lambda self, members: (judged.append(len(members)), judge_all(self, members))[1])
    for _ in range(2):
        Comparison(tiny_model, tiny_data, plan, tmp_path, curves=("visual",)).run()
    assert judged == [1]
    assert points(tmp_path, "visual") == before
    assert (tmp_path / before[0.5].answers).is_file()
    assert sum(isinstance(r, records.Curve) for r in records.read(tmp_path)) == 4


# ---- records and report


def curve(method: str, seed: int, along: str, at: float, test: float, shifts: float, **changes: object) -> records.Curve:
    given: dict[str, object] = {
        "settings_hash": method, "dataset": "d", "accuracy": {"test": test, "avg_shifts": shifts},
        "made_with": {"num_images": 1000} if along == "fisher" else {}, "provenance": {"data": "data", "weights": "weights"},
    }  # fmt: skip
    return records.Curve(method=method, seed=seed, along=along, at=at, **{**given, **changes})  # type: ignore[arg-type]


def frontier(*, beside: bool = True) -> Iterator[records.Record]:
    """Two methods, two seeds; of the first method three curves, of the second the ensemble of outputs and the image tower alone."""
    for number, method in enumerate(("tp_ft", "flyp")):
        for seed in (0, 1):
            for alpha in (0.0, 0.5, 1.0):
                accuracy = {"val": 0.5, "test": 0.6 + 0.1 * alpha, "avg_shifts": 0.5 + alpha * (1.2 - alpha) * 0.1 * (1 + number)}
                yield records.Evaluation(
                    method=method, seed=seed, alpha=alpha, dataset="d", accuracy=accuracy, num_images={}, answers="", settings={},
                    settings_hash=method, provenance={"data": "data", "weights": "weights"},
                )  # fmt: skip
            for along in ("outputs", "epochs", "fisher", "visual") if beside else ():
                if along == "outputs" or (method == "tp_ft") == (along != "visual"):
                    at = (1.0, 2.0, 3.0) if along == "epochs" else (0.0, 0.5, 1.0)
                    yield from (curve(method, seed, along, x, 0.60 + 0.02 * seed, 0.50 + 0.01 * x) for x in at)


def test_a_point_is_written_and_read_as_it_is(tmp_path: Path) -> None:
    made = [curve("tp_ft", 0, "fisher", 0.3, 0.7, 0.6), curve("tp_ft", 0, "epochs", 2.0, 0.7, 0.6)]
    for one in made:
        records.append(tmp_path, one)
    assert list(records.read(tmp_path)) == made
    line = json.loads((tmp_path / records.FILE).read_text().splitlines()[0])
    assert line.pop("answers") == ""
    (tmp_path / records.FILE).write_text(json.dumps(line) + "\n")  # as it was before points had answers
    assert list(records.read(tmp_path)) == made[:1]


def test_curves_of_other_settings_data_or_weights_are_left_out() -> None:
    own = curve("tp_ft", 0, "outputs", 0.5, 0.7, 0.6)
    others = [
        replace(own, settings_hash="other"), replace(own, provenance={"data": "other", "weights": "weights"}),
        replace(own, provenance={"data": "data", "weights": "other"}), replace(own, dataset="other"), replace(own, seed=2),
    ]  # fmt: skip
    plain = list(frontier(beside=False))
    assert collect([*others, own, *plain, *others]).curves == {("tp_ft", 0, "outputs"): {0.5: own}}
    assert collect([own, *others, *plain]).curves == {("tp_ft", 0, "outputs"): {0.5: own}}
    assert collect([*plain, *others]).curves == {}


def lines(svg: str) -> list[tuple[str, str]]:
    """(colour class of the method, kind) of every line beside a frontier."""
    root = ElementTree.fromstring(svg)
    groups = [group for group in root.iter() if (group.get("class") or "").startswith("curve ")]
    found = []
    for group in groups:
        kinds = [(path.get("class") or "").split() for path in group.iter() if (path.get("class") or "").startswith("beside ")]
        found += [((group.get("class") or "").split()[1], kind[1]) for kind in kinds]
    return found


def test_curves_are_broken_lines_in_the_colour_of_their_method() -> None:
    svg, plain = frontier_svg(frontier()), frontier_svg(frontier(beside=False))
    assert lines(svg) == [("m0", "outputs"), ("m0", "epochs"), ("m0", "fisher"), ("m1", "outputs"), ("m1", "visual")]
    for kind in curves.KINDS:
        assert f".frontier .{kind}, .key .{kind} {{ stroke-dasharray:" in svg
    assert METHOD_COLOURS["light"][0] in svg
    texts = {text.text for text in ElementTree.fromstring(svg).iter() if text.tag.endswith("text")}
    names = {"ensemble of outputs", "epochs of the run", "Fisher-weighted merge", "image tower alone"}
    assert names <= texts
    titles = {title.text for title in ElementTree.fromstring(svg).iter() if title.tag.endswith("title")}
    assert "TP-FT, epochs of the run, epoch 2: ID 61.0 ± 1.4, Avg. shifts 52.0 ± 0.0" in titles
    assert "FLYP, ensemble of outputs, α = 0.5: ID 61.0 ± 1.4, Avg. shifts 50.5 ± 0.0" in titles
    assert lines(plain) == []
    assert "FLYP, image tower alone, α = 0.5: ID 61.0 ± 1.4, Avg. shifts 50.5 ± 0.0" in titles
    assert not any(name in plain for name in (*names, '"speck'))


def test_every_point_lies_inside_the_axes() -> None:
    far = [curve("tp_ft", 0, "epochs", x, 0.3 + 0.1 * x, 0.9) for x in (1.0, 2.0)]
    root = ElementTree.fromstring(frontier_svg([*frontier(beside=False), *far]))
    box = root.find("./{*}rect")
    assert box is not None
    specks = [dot for dot in root.iter() if dot.get("class") == "hit" and dot.get("r") == "5"]
    assert len(specks) == 2
    for dot in specks:
        assert 58 <= float(dot.get("cx") or 0) <= float(box.get("width") or 0)
        assert 14 <= float(dot.get("cy") or 0) <= 272


def test_the_page_draws_them_and_says_what_they_are(tmp_path: Path) -> None:
    for one in frontier():
        records.append(tmp_path, one)
    text = write_page(tmp_path, tmp_path / "report", command="surefoot compare d").read_text(encoding="utf-8")
    assert text.count('class="beside outputs"') == 2 * 2  # wide and narrow
    assert text.count('class="beside visual"') == 2
    assert text.count("</svg>ensemble of outputs") == 1
    assert "TP-FT, Fisher-weighted merge, α = 0.5" in text


def table_of_points(folder: Path, given: Iterable[records.Record]) -> list[list[str]]:
    """The cells of the table below the frontier, its heading first."""
    for one in given:
        records.append(folder, one)
    text = write_page(folder, folder / "report", command="surefoot compare d").read_text(encoding="utf-8")
    table = text.partition("All points of the curves as a table")[2].partition("</table>")[0]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)]


def test_the_table_below_the_frontier_holds_the_points_of_the_curves(tmp_path: Path) -> None:
    header, *rows = table_of_points(tmp_path / "beside", frontier())
    assert header == ["Method", "Curve", "α", "ID", "Avg. shifts"]
    assert [row[1:3] for row in rows if row[0] == "TP-FT"] == [
        [curve, at]
        for curve, *places in (
            ("WiSE-FT", "0", "0.5", "1"), ("ensemble of outputs", "0", "0.5", "1"),
            ("epochs of the run", "epoch 1", "epoch 2", "epoch 3"), ("Fisher-weighted merge", "0", "0.5", "1"),
        )
        for at in places
    ]  # fmt: skip
    assert ["FLYP", "image tower alone", "0.5", "61.0 ± 1.4", "50.5 ± 0.0"] in rows
    assert ["TP-FT", "epochs of the run", "epoch 2", "61.0 ± 1.4", "52.0 ± 0.0"] in rows
    plain, *rows = table_of_points(tmp_path / "plain", frontier(beside=False))
    assert (plain, len(rows)) == (["Method", "α", "ID", "Avg. shifts"], 6)
    assert {len(row) for row in rows} == {4}


def test_the_command_draws_what_is_asked_for(tiny_root: Path, tiny_folder: Path, tmp_path: Path) -> None:
    common = ["compare", str(tiny_root), "--out", str(tmp_path / "run"), "--model", f"local-dir:{tiny_folder}", "--seeds", "0"]
    settings = ["--methods", "tp_ft", "--precision", "fp32", "--set", "epochs=2", "--set", "batch_size=8"]
    wrong = CliRunner().invoke(cli.app, [*common, *settings, "--curves", "epoch"])
    assert isinstance(wrong.exception, UnknownNameError)
    assert not (tmp_path / "run").exists()
    result = CliRunner().invoke(cli.app, [*common, *settings, "--curves", "epochs,outputs"])
    assert result.exit_code == 0, result.output
    assert (len(points(tmp_path / "run", "outputs")), len(points(tmp_path / "run", "epochs"))) == (11, 2)
    assert lines((tmp_path / "run" / "report" / "frontier.svg").read_text()) == [("m0", "outputs"), ("m0", "epochs")]
