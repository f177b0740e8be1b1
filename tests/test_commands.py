"""fit, predict, evaluate, frontier, diff and methods as a user types them, on the tiny data."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from surefoot import cli, records
from surefoot.bundle import NONE_OF_THESE, load_bundle
from surefoot.cli.predict import _write_csv, _write_jsonl
from surefoot.data import Images, open_dataset, read_image
from surefoot.model import ImageTextModel, load_model
from surefoot.predict import Answer
from surefoot.protocols import Judge
from surefoot.train import start_state

FAST = ["--precision", "fp32", "--set", "epochs=1", "--set", "batch_size=8", "--set", "learning_rate=1e-2"]


def invoke(*arguments: str) -> Result:
    sys.argv = ["surefoot", *arguments]
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def fitted(tiny_root: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fitted") / "run"
    result = invoke("fit", str(tiny_root), "--out", str(out), "--model", f"local-dir:{tiny_folder}", "--method", "tp_ft", *FAST)
    assert result.exit_code == 0, result.output
    assert "Training takes about" in result.output
    return out


def test_fit_leaves_a_classifier_at_the_alpha_that_validation_chose(fitted: Path) -> None:
    card = json.loads((fitted / "model" / "surefoot.json").read_text())
    choice = [r for r in records.read(fitted) if isinstance(r, records.Choice)][-1]
    assert (card["method"], card["alpha"], card["predict"]) == ("tp_ft", choice.alpha, "head")
    assert card["class_names"] == ["bar", "square box", "disc"]
    assert (fitted / "report" / "index.html").is_file()


def test_the_classifier_answers_as_its_evaluation_said(fitted: Path, tiny_root: Path) -> None:
    bundle, dataset = load_bundle(fitted, device="cpu"), open_dataset(tiny_root)
    classifier = bundle.classifier()
    split = dataset.split("test")
    images = torch.stack([bundle.model.preprocess(read_image(path)) for path in split.paths])
    probability = classifier(images)
    torch.testing.assert_close(probability.sum(1), torch.ones(len(split)))
    own = next(r for r in records.read(fitted) if isinstance(r, records.Evaluation) and (r.method, r.alpha) == ("tp_ft", bundle.card.alpha))
    said = records.load_answers(fitted, own.answers)["test"]
    assert probability.argmax(1).tolist() == said.prediction.tolist()
    torch.testing.assert_close(probability.max(1).values, torch.from_numpy(said.confidence), atol=1e-5, rtol=0)


def test_added_names_and_none_of_these_compete_through_the_text_tower(fitted: Path, tiny_root: Path) -> None:
    bundle = load_bundle(fitted, device="cpu")
    image = bundle.model.preprocess(read_image(open_dataset(tiny_root).split("test").paths[0]))[None]
    names = ["bar", "square box", "disc", "ring thing"]
    with torch.no_grad():
        feature = bundle.model.encode_image(image)[0]
        logits = []
        for name in names:
            texts = bundle.model.encode_text(bundle.model.tokenize([t.replace("{}", name) for t in bundle.card.templates]))
            logits.append(bundle.model.scale * feature @ torch.nn.functional.normalize(texts.mean(0), dim=0))
    classifier = bundle.classifier(["ring thing"])
    assert classifier.names == tuple(names)
    torch.testing.assert_close(classifier(image)[0], torch.stack(logits).softmax(0), atol=1e-5, rtol=1e-4)
    open_ended = bundle.classifier(["ring thing"], none_of_these=True)
    assert open_ended.names == (*names, NONE_OF_THESE)
    given = open_ended(image)[0]
    torch.testing.assert_close(given.sum(), torch.tensor(1.0))
    torch.testing.assert_close(given[:4] / given[:4].sum(), torch.stack(logits).softmax(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("write", [_write_csv, _write_jsonl])
def test_probabilities_of_classes_of_one_name_are_all_written(write: Callable[..., None]) -> None:
    file = io.StringIO()
    write(file, [Answer(Path("a.png"), (0.5, 0.2, 0.3))], ["paca", "tapir", "paca"])
    lines = file.getvalue().splitlines()
    if write is _write_jsonl:
        assert json.loads(lines[0])["probability"] == {"paca": 0.5, "tapir": 0.2, "paca (2)": 0.3}
    else:
        assert lines == ["path,answer,paca,tapir,paca (2),error", "a.png,paca,0.500000,0.200000,0.300000,"]


def test_predict_writes_probabilities_for_files_and_folders(fitted: Path, tiny_root: Path, tmp_path: Path) -> None:
    result = invoke("predict", str(fitted), str(tiny_root / "test"), "--out", str(tmp_path / "a.csv"), "--device", "cpu")
    assert result.exit_code == 0, result.output
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    for row in rows:
        values = {name: float(row[name]) for name in ("bar", "square box", "disc")}
        assert sum(values.values()) == pytest.approx(1, abs=1e-5)
        assert row["answer"] == max(values, key=values.__getitem__)
    (tmp_path / "broken.png").write_bytes(b"no image")
    result = invoke("predict", str(fitted), str(tmp_path / "broken.png"), "--device", "cpu")
    assert isinstance(result.exception, ValueError)
    assert "broken.png" in str(result.exception)
    result = invoke(
        "predict", str(fitted), str(tmp_path / "broken.png"), str(tiny_root / "test" / "disc"), "--skip-unreadable", "--classes", "cross",
        "--out", str(tmp_path / "a.jsonl"), "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [bool(line["error"]) for line in lines] == [True] + [False] * 5
    assert list(lines[1]["probability"]) == ["bar", "square box", "disc", "cross"]


def test_evaluate_judges_model_and_zero_shot_on_other_data(fitted: Path, tiny_root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name in ("disc", "bar", "square box"):  # another order of folders, one named as its class
        shutil.copytree(tiny_root / "shifts" / "red" / {"square box": "box"}.get(name, name), other / name)
    result = invoke(
        "evaluate", str(fitted), str(other), "--all-images", "--out", str(tmp_path / "judged"), "--device", "cpu", "--precision", "fp32"
    )
    assert result.exit_code == 0, result.output
    found = {r.method: r for r in records.read(tmp_path / "judged") if isinstance(r, records.Evaluation)}
    assert found["tp_ft"].num_images["test"] == 12
    bundle = load_bundle(fitted, device="cpu")
    right = []
    for path in sorted(other.rglob("*.png")):
        answer = bundle.classifier()(bundle.model.preprocess(read_image(path))[None]).argmax()
        right.append(bundle.card.class_names[int(answer)] == path.parent.name)
    assert found["tp_ft"].accuracy["test"] == pytest.approx(sum(right) / 12)
    shutil.rmtree(other / "disc")
    fewer = ["evaluate", str(fitted), str(other), "--all-images", "--device", "cpu", "--precision", "fp32", "--out"]
    assert invoke(*fewer, str(tmp_path / "fewer")).exit_code == 0
    judged = next(r for r in records.read(tmp_path / "fewer") if isinstance(r, records.Evaluation) and r.method == "tp_ft")
    logits = [
        bundle.model.encode_image(bundle.model.preprocess(read_image(path))[None]) @ bundle.head["weight"].T + bundle.head["bias"]
        for path in open_dataset(other).split("train").paths
    ]  # the trained head answers for the classes that are left: bar and square box
    right = [int(one[0, :2].argmax()) == label for one, label in zip(logits, open_dataset(other).split("train").labels, strict=True)]
    assert judged.accuracy["test"] == pytest.approx(sum(right) / 8)
    (tmp_path / "again").mkdir()
    shutil.copytree(other, tmp_path / "again" / "elsewhere")
    refused = invoke("evaluate", str(fitted), str(tmp_path / "again" / "elsewhere"), "--out", str(tmp_path / "fewer"), "--device", "cpu")
    assert "holds the records of other" in str(refused.exception)


def test_frontier_adds_alphas_without_training_again(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from surefoot.compare import comparison

    folder = shutil.copytree(fitted, tmp_path / "run")
    monkeypatch.setattr(comparison, "fit", lambda *_, **__: pytest.fail("trained again"))
    result = invoke("frontier", str(folder), "--alphas", "0.33")
    assert result.exit_code == 0, result.output
    alphas = {r.alpha for r in records.read(folder) if isinstance(r, records.Evaluation) and r.method == "tp_ft"}
    assert 0.33 in alphas
    assert len(alphas) == 12


def test_diff_pairs_two_rows(fitted: Path, tmp_path: Path) -> None:
    result = invoke("diff", f"{fitted}:tp_ft@0.5", f"{fitted}:zero_shot", "--on", "test,avg_shifts")
    assert result.exit_code == 0, result.output
    ours = next(
        d
        for d in records.read(fitted)
        if isinstance(d, records.Difference) and (d.a, d.b, d.on) == ("tp_ft + WiSE-FT 0.5", "zero_shot", "test")
    )
    assert f"{100 * ours.mean:+.1f}" in result.output
    for row, message in (("flip", "method in"), ("tp_ft@0.123", "alphas"), ("tp_ft@x", "no number")):
        result = invoke("diff", f"{fitted}:{row}", f"{fitted}:zero_shot")
        assert message in str(result.exception)


def test_every_help_has_an_example() -> None:
    for command in cli.app.registered_commands:
        name = command.callback.__name__
        result = invoke(name, "--help")
        assert f"Example: surefoot {name}" in " ".join(result.output.replace("│", " ").split()), result.output


def test_methods_shows_settings() -> None:
    assert "TP-FT" in invoke("methods").output or "tp_ft" in invoke("methods").output
    assert "l2_sp.pull=0.01" in invoke("methods", "l2_sp").output


def test_one_pass_for_all_alphas_reads_every_image_once_and_says_the_same(
    tiny_model: ImageTextModel, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surefoot.data.images import Budget
    from surefoot.methods import get, wise_ft
    from surefoot.protocols import Member
    from surefoot.protocols import judge as module
    from surefoot.train import Training, fit

    data = open_dataset(tiny_root)
    start = start_state(tiny_model, data)
    end = fit(get("flyp"), tiny_model, data, Training(epochs=1, batch_size=8, learning_rate=1e-2), start=start).state
    alphas = [k / 10 for k in range(1, 11)]
    monkeypatch.setattr(module, "CHUNK_BYTES", 10 * 3 * 32 * 32 * 4)  # several chunks
    monkeypatch.setattr(module, "EVALUATION_BATCH", 4)
    reads: list[Path] = []
    batch = Images.batch
    monkeypatch.setattr(Images, "batch", lambda self, rows: (reads.extend(self.paths[row] for row in rows), batch(self, rows))[1])
    judge = Judge(tiny_model, data, start, Budget(0))
    outcomes = judge.judge_all([Member(get("flyp"), lambda a=a: wise_ft(start, end, a)) for a in alphas])
    expected = [path for name, split in data.splits.items() if name != "train" for path in split.paths]
    assert sorted(reads) == sorted(expected), "one read of each image for ten sets of weights and zero-shot"
    for alpha, outcome in zip(alphas, outcomes, strict=True):
        alone = Judge(tiny_model, data, start, Budget(0)).judge(get("flyp"), wise_ft(start, end, alpha))
        assert alone.accuracy == outcome.accuracy


def test_a_shift_with_fewer_classes_is_judged_with_and_without_the_others(tiny_model: ImageTextModel, copy_of: Callable[[], Path]) -> None:
    from surefoot.methods import get

    root = copy_of()
    shutil.rmtree(root / "shifts" / "red" / "disc")
    data = open_dataset(root)
    start = start_state(tiny_model, data)
    outcome = Judge(tiny_model, data, start).judge(get("zero_shot"), start)
    assert set(outcome.answers["restricted/red"].prediction.tolist()) <= {0, 1}
    assert "restricted/green" not in outcome.answers, "nothing to restrict where all classes are there"
    free = Judge(tiny_model, data, {**start, "head.bias": torch.tensor([0.0, 0.0, 1e6])})
    judged = free.judge(get("tp_ft"), {**start, "head.bias": torch.tensor([0.0, 0.0, 1e6])})
    assert set(judged.answers["shifts/red"].prediction.tolist()) == {2}
    assert judged.accuracy["shifts/red"] == 0
    assert judged.accuracy["restricted/red"] > 0


def test_seen_and_unseen_together_and_their_harmonic_mean(tiny_model: ImageTextModel, tiny_root: Path) -> None:
    from surefoot.heads import class_weight, prompt_embeddings
    from surefoot.methods import get
    from surefoot.prompts import PromptTable

    data = open_dataset(tiny_root)
    start = start_state(tiny_model, data)
    outcome = Judge(tiny_model, data, start).judge(get("zero_shot"), start)
    names = [*data.class_names, *data.unseen[0].class_names]
    with torch.no_grad():
        head = class_weight(prompt_embeddings(tiny_model, PromptTable.build(data.templates, names)))
        right = []
        for path, label in zip(data.unseen[0].paths, data.unseen[0].labels, strict=True):
            feature = tiny_model.encode_image(tiny_model.preprocess(read_image(path))[None])[0]
            right.append(int((head @ feature).argmax()) == label + 3)
    assert outcome.correct["joint_unseen/other"].tolist() == right
    a, b = outcome.accuracy["joint_seen/other"], outcome.accuracy["joint_unseen/other"]
    assert outcome.accuracy["joint_hm/other"] == pytest.approx(2 * a * b / (a + b) if a + b else 0)


def test_zero_shot_agrees_with_itself_and_corruptions_hit_the_test_images(
    tiny_model: ImageTextModel, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surefoot.data.corruptions import CORRUPTIONS, corrupt
    from surefoot.methods import get

    data = open_dataset(tiny_root)
    start = start_state(tiny_model, data)
    reads: list[Path] = []
    batch = Images.batch
    monkeypatch.setattr(Images, "batch", lambda self, rows: (reads.extend(self.paths[row] for row in rows), batch(self, rows))[1])
    outcome = Judge(tiny_model, data, start, corruptions=True).judge(get("zero_shot"), start)
    assert len(reads) == len(set(reads)), "one reading of an image serves all of its corruptions"
    mean, std = (torch.tensor(tiny_model.config()["preprocess_cfg"][key]).reshape(3, 1, 1) for key in ("mean", "std"))
    for name in ("gaussian_noise", "gaussian_blur"):
        spoilt = []
        for path in data.split("test").paths:
            plain = (tiny_model.preprocess(read_image(path)) * std + mean).clamp(0, 1)
            spoilt.append((corrupt(plain, name, severity=3, seed=zlib.crc32(plain.numpy().tobytes())) - mean) / std)
        with torch.no_grad():
            expected = (tiny_model.encode_image(torch.stack(spoilt)) @ start["head.weight"].T).softmax(1).max(1).values
        torch.testing.assert_close(torch.from_numpy(outcome.answers[f"corruptions/{name}"].confidence), expected, atol=1e-6, rtol=0)
    assert outcome.accuracy["agreement"] == 1
    assert {f"corruptions/{name}" for name in CORRUPTIONS} <= outcome.answers.keys()
    torch.manual_seed(0)
    noise = {**start, **{k: v + torch.randn_like(v) for k, v in start.items() if k.startswith("model.visual") and v.is_floating_point()}}
    assert Judge(tiny_model, data, start).judge(get("tp_ft"), noise).accuracy["agreement"] < 1


def test_few_shot_runs_choose_by_their_own_validation_images(tiny_model: ImageTextModel, tiny_root: Path, tmp_path: Path) -> None:
    from surefoot.compare import Comparison, Plan
    from surefoot.train import Training

    data = open_dataset(tiny_root)
    plan = Plan(methods=("tp_ft",), seeds=(0, 1), alphas=(0.5,), training=Training(epochs=1, batch_size=8), shots=2)
    comparison = Comparison(tiny_model, data, plan, tmp_path)
    found = comparison.run()
    assert {len(comparison.data_of[seed].split("train")) for seed in (0, 1)} == {6}
    assert comparison.data_of[0].split("train").paths != comparison.data_of[1].split("train").paths
    assert {r.num_images["val"] for r in found if r.method == "tp_ft"} == {6}
    assert {r.num_images["test"] for r in found} == {15}


def test_a_loaded_bundle_is_an_open_clip_folder(fitted: Path) -> None:
    assert load_model(f"local-dir:{fitted / 'model'}").weights().keys() == load_bundle(fitted, device="cpu").model.weights().keys()
