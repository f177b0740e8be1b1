"""Soups: the greedy rule, that ID validation alone chooses, what a soup of one run is, and runs that must not be mixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import fresh, typed
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from surefoot import records, soup
from surefoot.bundle import Card, load_bundle
from surefoot.cli.soup import ingredients_of
from surefoot.compare import Comparison, Plan, conclusions, difference
from surefoot.data import Dataset, open_dataset, read_image
from surefoot.data.subsets import few_shot
from surefoot.errors import MissingDataError, SettingError, TrainingError, UnknownNameError
from surefoot.job import DataOptions, Job
from surefoot.methods import get
from surefoot.metrics import macro_f1
from surefoot.model import ImageTextModel
from surefoot.report.runs import Runs, collect
from surefoot.soup import Ingredient
from surefoot.train import Training, part
from surefoot.weights import uniform_soup

Command = Callable[..., tuple[int, str]]
TRAINING = Training(epochs=2, batch_size=8, learning_rate=1e-2, keep="last")
VARIANT = "tp_ft+layers=visual[-1:]"


def compared(plan: Plan, folder: Path, root: Path, model: ImageTextModel) -> Path:
    """What `surefoot compare` leaves in a folder, but for the report."""
    Job(data=DataOptions(data=str(root)), model=model.name, precision="fp32", plan=plan, device="cpu").save(folder)
    Comparison(fresh(model), open_dataset(root), plan, folder).run()
    return folder


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """Intervals are tested elsewhere, and take most of the time of a small comparison."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("paired_bootstrap", "paired_bootstrap_of"):
            patch.setattr(conclusions, name, partial(getattr(conclusions, name), resamples=10))
        yield


@pytest.fixture(scope="module")
def made(few_resamples: None, tiny_root: Path, loaded_model: ImageTextModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs that tests must leave as they are."""
    plan = Plan(methods=("tp_ft", "flyp", VARIANT), seeds=(0, 1), alphas=(0.5,), training=TRAINING)
    return compared(plan, tmp_path_factory.mktemp("runs") / "made", tiny_root, loaded_model)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return partial(typed, monkeypatch, capsys)


def stands(folder: Path) -> Runs:
    return collect(records.read(folder))


# ---- the greedy rule


def scalars(folder: Path, values: Sequence[float]) -> list[Ingredient]:
    """Runs of one weight each."""
    found = []
    for number, value in enumerate(values):
        path = folder / f"{number}.safetensors"
        save_file({"w": torch.tensor([value], dtype=torch.float64)}, path)
        found.append(Ingredient(name=f"r{number}", method=get("tp_ft"), seed=number, path=path))
    return found


def names(ingredients: Sequence[Ingredient]) -> list[str]:
    return [one.name for one in ingredients]


def near(target: float) -> Callable[[Mapping[str, Tensor]], float]:
    return lambda state: -abs(float(state["w"]) - target)


def test_greedy_goes_from_the_best_down_and_keeps_what_does_not_make_it_worse(tmp_path: Path) -> None:
    state, kept = soup.greedy(scalars(tmp_path, [0.0, 3.5, -6.0, 2.0]), near(3.0))
    # 3.5 alone is 0.5 off; with 2 the mean 2.75 is 0.25 off; with 0 the mean 1.83 is worse; with -6 too
    assert names(kept) == ["r1", "r3"]
    assert state["w"].item() == 2.75


def test_greedy_compares_with_the_soup_and_not_with_the_run(tmp_path: Path) -> None:
    state, kept = soup.greedy(scalars(tmp_path, [2.0, 2.0, 6.9]), near(3.0))
    assert names(kept) == ["r0", "r1", "r2"], "6.9 is worse than both, and worse with one of them, but not with both"
    assert state["w"].item() == pytest.approx(10.9 / 3)
    _, kept = soup.greedy(scalars(tmp_path, [2.9, 2.8, 10.0]), near(3.0))
    assert names(kept) == ["r0"], "2.85 is farther off than 2.9, and so is all that follows"


def test_a_run_that_is_left_out_is_not_in_the_next_soup(tmp_path: Path) -> None:
    state, kept = soup.greedy(scalars(tmp_path, [3.5, 4.5, 2.0]), near(3.0))
    assert names(kept) == ["r0", "r2"], "2 and 3.5 make 2.75; with 4.5 among them it would be 3.33, and would stay out"
    assert state["w"].item() == 2.75


@pytest.mark.parametrize("count", [1, 2, 5])
def test_greedy_of_identical_runs_keeps_all_and_is_any_of_them(count: int, tmp_path: Path) -> None:
    runs = scalars(tmp_path, [0.1] * count)
    save_file({"w": torch.full((3,), 0.1)}, runs[0].path)
    for one in runs[1:]:
        shutil.copy(runs[0].path, one.path)
    state, kept = soup.greedy(runs, lambda state: 0.5)
    assert names(kept) == names(runs), "of equals the first given comes first"
    assert torch.equal(state["w"], torch.full((3,), 0.1))


def test_every_soup_is_scored_once_and_told(tmp_path: Path) -> None:
    scored: list[float] = []
    told: list[tuple[int, int]] = []

    def score(state: Mapping[str, Tensor]) -> float:
        scored.append(float(state["w"]))
        return scored[-1]

    soup.greedy(scalars(tmp_path, [1.0, 3.0, 2.0]), score, lambda *done: told.append(done))
    assert scored == [1.0, 3.0, 2.0, 2.5, 2.0]
    assert told == [(done, 5) for done in (1, 2, 3, 4, 5)]


# ---- what chooses


@pytest.mark.parametrize("name", ["tp_ft", "flyp"])
def test_the_score_is_what_the_heads_answer_on_validation(name: str, made: Path, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    split, runs = tiny_data.split("val"), ingredients_of(f"{made}:{name}")
    state = uniform_soup([load_file(one.path) for one in runs])
    model = fresh(tiny_model)
    model.load_weights(part(state, "model"))
    answered = []
    with torch.no_grad():
        weight, bias = state["head.weight"], state["head.bias"]
        if name == "flyp":  # the text head of the mean towers, not the mean of the text heads
            rows = [model.encode_text(model.tokenize([t.replace("{}", n) for t in tiny_data.templates])) for n in tiny_data.class_names]
            weight, bias = torch.stack([F.normalize(row.mean(0), dim=0) for row in rows]), torch.zeros(3)
        for path in split.paths:
            feature = model.encode_image(model.preprocess(read_image(path))[None])[0]
            answered.append(int((weight @ feature + bias).argmax()))
    right = sum(answer == label for answer, label in zip(answered, split.labels, strict=True))
    assert soup.scorer(tiny_model, tiny_data, runs)(state) == pytest.approx(right / len(answered))
    told = replace(tiny_data, splits={**tiny_data.splits, "val": replace(split, labels=tuple(answered))})
    score = soup.scorer(tiny_model, told, runs)
    assert score(state) == 1.0
    moved = {**state, "head.weight": state["head.weight"].roll(1, 0), "head.bias": state["head.bias"].roll(1, 0)}
    assert score(moved) == (1.0 if name == "flyp" else 0.0), "where the text tower answers no stored head has a say"


def test_the_measure_is_the_one_that_chose_the_runs(made: Path, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    runs = [replace(one, settings={**one.settings, "select_by": "macro_f1"}) for one in ingredients_of(f"{made}:tp_ft")]
    assert soup.measure(runs) == "macro_f1"
    assert soup.measure([runs[0], replace(runs[1], settings={})]) == "accuracy"
    record = stands(made).runs["tp_ft", 0].points[1.0]
    said = records.load_answers(made, record.answers)["val"]
    found = soup.scorer(tiny_model, tiny_data, runs)(load_file(runs[0].path))
    assert found == pytest.approx(macro_f1(said.prediction, said.label))
    assert found != pytest.approx(record.accuracy["val"])


def test_no_label_but_those_of_validation_changes_what_is_kept(made: Path, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    runs = ingredients_of(f"{made}:tp_ft")

    def kept(dataset: Dataset) -> tuple[list[str], list[float]]:
        values: list[float] = []
        score = soup.scorer(tiny_model, dataset, runs)
        found = soup.greedy(runs, lambda state: values.append(score(state)) or values[-1])[1]  # type: ignore[func-returns-value]
        return names(found), values

    def wrong(*of: str) -> Dataset:
        moved = {name: replace(split, labels=tuple((label + 1) % 2 for label in split.labels)) for name, split in tiny_data.splits.items()}
        return replace(tiny_data, splits={**tiny_data.splits, **{name: moved[name] for name in of}})

    others = [name for name in tiny_data.splits if name != "val"]
    assert {"train", "test", "shifts/red", "unseen/other"} <= set(others)
    assert kept(wrong(*others)) == kept(tiny_data)
    assert kept(wrong("val"))[1] != kept(tiny_data)[1]
    gone = replace(tiny_data, splits={"val": tiny_data.split("val")})
    assert kept(gone) == kept(tiny_data), "no other split is even looked at"


def test_few_shot_runs_are_chosen_by_their_own_draws(made: Path, tiny_data: Dataset) -> None:
    paths = tiny_data.split("val").paths

    def drawn(*seeds: int) -> set[Path]:
        return {path for seed in seeds for path in few_shot(tiny_data, 1, seed=seed).split("val").paths}

    few = [replace(one, settings={**one.settings, "shots": 1}) for one in ingredients_of(f"{made}:tp_ft")]
    assert {paths[row] for row in soup.validation_rows(tiny_data, few[:1])} == drawn(0)
    assert {paths[row] for row in soup.validation_rows(tiny_data, few)} == drawn(0, 1) != drawn(0)
    assert len(drawn(0, 1)) < len(paths)
    assert soup.validation_rows(tiny_data, ingredients_of(f"{made}:tp_ft")) == list(range(len(paths)))
    with_all = [*few, replace(few[0], settings={})]
    assert soup.validation_rows(tiny_data, with_all) == list(range(len(paths)))


# ---- which runs are meant


def facts(ingredients: Sequence[Ingredient]) -> list[object]:
    return [(one.name, one.path, one.settings, one.origin, one.class_names, one.method.name) for one in ingredients]


def test_runs_are_named_by_folder_method_seed_or_file(made: Path, tmp_path: Path) -> None:
    every = ingredients_of(str(made))
    assert {(one.method.name, one.seed) for one in every} == {(m, s) for m in ("tp_ft", "flyp", VARIANT) for s in (0, 1)}
    assert [one.seed for one in ingredients_of(f"{made}:tp_ft")] == [0, 1]
    (one,) = ingredients_of(f"{made}:{VARIANT}@seed1")
    assert (one.method.name, one.seed, one.method.stages[0].trains) == (VARIANT, 1, ("visual[-1:]", "head"))
    assert one.class_names == ("bar", "square box", "disc")
    assert facts(ingredients_of(str(one.path))) == facts([one])
    apart = tmp_path / "with:colon"
    shutil.copytree(made, apart)
    assert [found.path.name for found in ingredients_of(f"{apart}:tp_ft@seed0")] == [ingredients_of(f"{made}:tp_ft")[0].path.name]


def test_every_ingredient_is_what_its_record_says(made: Path) -> None:
    for one in ingredients_of(str(made)):
        record = stands(made).runs[one.method.name, one.seed].points[1.0]
        assert one.settings == record.settings
        assert one.method.settings.items() <= record.settings.items()
        expected = Plan(methods=(one.method.name,)).method_of(one.method.name)
        assert (one.method.trains, one.method.predict) == (expected.trains, expected.predict)
        assert dict(one.weights()).keys() == load_file(one.path).keys()


def test_a_method_has_the_settings_that_its_run_had(made: Path, tmp_path: Path) -> None:
    record = stands(made).runs["tp_ft", 0].points[1.0]
    given = replace(record, settings={**record.settings, "layers": "visual[-1:]", "label_smoothing": 0.1})
    path = soup.weights_of(tmp_path, given)
    path.parent.mkdir()
    path.touch()
    method = Ingredient.of(tmp_path, given).method
    assert (method.stages[0].trains, method.settings["label_smoothing"]) == (("visual[-1:]", "head"), 0.1)


def test_an_earlier_run_is_named_by_its_file(made: Path, tiny_root: Path, loaded_model: ImageTextModel, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "runs")
    before = ingredients_of(f"{folder}:tp_ft@seed0")[0]
    other = Plan(methods=("tp_ft",), seeds=(0,), alphas=(), training=replace(TRAINING, epochs=1))
    compared(other, folder, tiny_root, loaded_model)
    now = ingredients_of(f"{folder}:tp_ft@seed0")[0]
    assert (now.settings["epochs"], before.settings["epochs"]) == (1, 2)
    assert facts(ingredients_of(str(before.path))) == facts([before])
    soup.check([now, before])


def test_what_names_no_run_is_said(made: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="There are no results in"):
        ingredients_of(str(tmp_path))
    with pytest.raises(MissingDataError, match=r"There are no results in nowhere\. Give"):
        ingredients_of("nowhere:tp_ft")
    with pytest.raises(UnknownNameError, match="Did you mean 'tp_ft'"):
        ingredients_of(f"{made}:tpft")
    with pytest.raises(SettingError, match=r"names no run\. Runs in .*: flyp@seed0, flyp@seed1\."):
        ingredients_of(f"{made}:flyp@seed7")
    stray = tmp_path / "weights" / "tp_ft-seed0-0.safetensors"
    stray.parent.mkdir()
    stray.touch()
    with pytest.raises(MissingDataError, match="no record of a run whose weights are"):
        ingredients_of(str(stray))
    folder = shutil.copytree(made, tmp_path / "runs")
    ingredients_of(f"{folder}:flyp@seed1")[0].path.unlink()
    with pytest.raises(MissingDataError, match=r"The weights of .*:flyp, seed 1 are not there any more .* Run its comparison again"):
        ingredients_of(f"{folder}:flyp")
    assert len(ingredients_of(f"{folder}:tp_ft")) == 2


# ---- what must not be mixed


def test_runs_that_cannot_be_averaged_are_named_before_any_weight_is_read(tmp_path: Path) -> None:
    origin, classes = {"data": "d", "weights": "w"}, ("cat", "dog")
    first, second = (replace(one, origin=origin, class_names=classes, settings={"model": "A"}) for one in scalars(tmp_path, [1.0, 2.0]))
    soup.check([first, second])
    first.path.write_bytes(b"x")
    other_model = replace(second, origin={**origin, "weights": "v"}, settings={"model": "B"})
    other_classes = replace(second, origin={**origin, "data": "e"}, class_names=("cat", "cow"))
    for other, text in (
        (other_model, r"r0 and r1 did not start from the same pre-trained weights: A \(w\) and B \(v\)"),
        (other_classes, "r0 and r1 were trained on other classes, such as cow, dog"),
        (replace(other_classes, class_names=("dog", "cat")), "other classes, in another order"),
        (replace(other_classes, class_names=classes), r"r0 and r1 were trained on other data \(d and e\)"),
        (replace(second, method=get("flyp")), "do not answer alike: one by its trained head, the other by its text tower"),
    ):
        for make in (soup.uniform, lambda runs: soup.greedy(runs, near(0.0))):
            with pytest.raises(SettingError, match=text):
                make([first, other])
    with pytest.raises(SettingError, match=r"(?s)r1 did not start.*r2 do not answer alike.*Leave one of them out"):
        soup.check([first, other_model, replace(second, name="r2", method=get("flyp"))])
    with pytest.raises(SettingError, match="none was found"):
        soup.check([])
    with pytest.raises(TrainingError, match=r"cannot be read .* Train r0 again, or leave it out"):
        soup.uniform([first, second])


# ---- the whole command


@pytest.mark.parametrize(("name", "greedy"), [("tp_ft", True), ("flyp", False)])
def test_a_soup_of_one_run_is_that_run(name: str, greedy: bool, made: Path, command: Command, tmp_path: Path) -> None:
    code, text = command("soup", f"{made}:{name}@seed1", "--out", tmp_path, "--alphas", "0.5", *["--greedy"] * greedy)
    assert code == 0, text
    run = stands(made).runs[name, 1]
    own = stands(tmp_path).runs[soup.NAMES[greedy], 0].points
    assert set(own) == {0.0, 0.5, 1.0}
    for alpha, point in own.items():
        said, expected = (records.load_answers(*where) for where in ((tmp_path, point.answers), (made, run.points[alpha].answers)))
        assert point.accuracy == run.points[alpha].accuracy
        for of, given in expected.items():
            assert given.confidence.tolist() == said[of].confidence.tolist(), of
    weights, bundle = load_file(ingredients_of(f"{made}:{name}@seed1")[0].path), load_bundle(tmp_path)
    assert all(torch.equal(tensor, weights[f"model.{key}"]) for key, tensor in bundle.model.weights().items())
    assert all(torch.equal(tensor, weights[f"head.{key}"]) for key, tensor in bundle.head.items())


def test_a_soup_stands_beside_its_runs_and_predicts(made: Path, command: Command, tiny_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "soup"
    code, text = command("soup", f"{made}:flyp", f"{made}:flyp@seed0", "--out", out, "--alphas", "0.5")
    assert code == 0, text
    assert f"In the soup: {made}:flyp, seed 0; {made}:flyp, seed 1." in text, "a run that is given twice counts once"
    assert "Soup (uniform)" in text
    mean = uniform_soup([load_file(one.path) for one in ingredients_of(f"{made}:flyp")])
    bundle, own = load_bundle(out), stands(out)
    assert all(torch.equal(tensor, mean[f"model.{key}"]) for key, tensor in bundle.model.weights().items())
    assert (bundle.card.method, bundle.card.alpha, bundle.card.predict) == ("soup", 1.0, "text")
    settings = own.runs["soup", 0].points[1.0].settings
    hashes = [stands(made).runs["flyp", seed].settings_hash for seed in (0, 1)]
    assert settings["ingredients"] == settings["offered"] == [f"flyp, seed {seed}, {hashes[seed]}" for seed in (0, 1)]
    assert own.zero_shot is not None and own.zero_shot.accuracy == stands(made).zero_shot.accuracy  # type: ignore[union-attr]
    assert ("soup", "zero_shot", "test") in own.differences
    assert ("soup", 0) in own.choices
    with torch.no_grad():
        paths = open_dataset(tiny_root).split("test").paths
        probability = bundle.classifier()(torch.stack([bundle.model.preprocess(read_image(path)) for path in paths]))
    assert probability.argmax(1).tolist() == records.load_answers(out, own.runs["soup", 0].points[1.0].answers)["test"].prediction.tolist()
    assert command("predict", out, paths[0])[0] == 0
    code, text = command("diff", f"{out}:soup", f"{made}:tp_ft", "--on", "test")
    assert code == 0, text
    found = difference("a", [own.runs["soup", 0].points[1.0]], "b", stands(made).at("tp_ft", 1.0), "test", (out, made))
    assert f"{100 * found.mean:+.1f}" in text


def test_greedy_says_what_was_kept_and_is_not_made_again(
    made: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.9, 0.5, 0.6, 0.1, 0.95])  # three runs, then soups: (1, 2) worse, (1, 0) better ... in the order 1, 2, 0
    monkeypatch.setattr(soup, "scorer", lambda *_: lambda state: next(scores))
    given = (f"{made}:tp_ft", f"{made}:{VARIANT}@seed0", "--greedy", "--out", tmp_path, "--alphas", "1")
    code, text = command("soup", *given)
    assert code == 0, text
    assert f"In the soup: {made}:tp_ft, seed 1. Left out, since ID validation got worse:" in text
    assert "Soup (greedy)" in text
    settings = stands(tmp_path).runs["greedy_soup", 0].points[1.0].settings
    assert (len(settings["ingredients"]), len(settings["offered"])) == (1, 3)
    lines = (tmp_path / records.FILE).read_text()
    monkeypatch.setattr(soup, "greedy", None)
    code, text = command("soup", *given)
    assert code == 0, text
    assert (tmp_path / records.FILE).read_text() == lines


def test_a_soup_in_the_folder_of_its_runs_leaves_them_as_they_are(made: Path, command: Command, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "runs")
    shown = records.Example(
        a="tp_ft", b="zero_shot", on="test", change="gained", image="gallery/0.webp", label="bar", answer_a="bar", answer_b="disc",
        confidence_a=0.9, confidence_b=0.4, runs=next(iter(stands(folder).choices.values())).runs,
    )  # fmt: skip
    records.append(folder, shown)
    before = stands(folder)
    code, text = command("soup", f"{folder}:tp_ft", "--out", folder, "--alphas", "1")
    assert code == 0, text
    after = stands(folder)
    assert set(after.runs) == {*before.runs, ("soup", 0)}
    assert all(after.runs[key] == run for key, run in before.runs.items())
    assert before.examples
    assert [replace(one, runs="") for one in after.examples] == [replace(one, runs="") for one in before.examples]
    assert {*before.choices, ("soup", 0)} == set(after.choices)
    assert all(after.differences[key].mean == one.mean for key, one in before.differences.items())
    assert len({one.runs for one in (*after.differences.values(), *after.choices.values(), *after.examples)}) == 1
    assert {one.method.name for one in ingredients_of(str(folder))} == {"tp_ft", "flyp", VARIANT}, "a soup is no ingredient"
    with pytest.raises(SettingError, match=r"is a soup, a mean already\. Name the runs"):
        ingredients_of(f"{folder}:soup")


def test_bad_input_ends_with_a_sentence_and_nothing_is_written(made: Path, command: Command, tiny_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments, wanted in (
        ((tmp_path / "nowhere",), "There are no results in"),
        ((made,), "do not answer alike"),
        ((f"{made}:tp_ft", "--alphas", "2"), "must be in 0..1"),
        ((f"{made}:tp_ft", "--device", "abacus"), "is not available here"),
    ):
        code, text = command("soup", *arguments, "--out", out)
        assert code == 2, text
        assert wanted in text
    moved, data = shutil.copytree(made, tmp_path / "moved"), shutil.copytree(tiny_root, tmp_path / "data")
    next((data / "train" / "bar").iterdir()).unlink()
    job = Job.of(moved)
    replace(job, data=replace(job.data, data=str(data))).save(moved)
    code, text = command("soup", f"{moved}:tp_ft", "--out", out)
    assert (code, "The data of" in text, "changed since it was trained" in text) == (2, True, True)
    assert not out.exists()
    (out / "model").mkdir(parents=True)
    other = Card(class_names=["a"], templates=["{}"], predict="text", method="flyp", alpha=1.0, base="iconclip")
    (out / "model" / "surefoot.json").write_text(json.dumps(asdict(other)))
    code, text = command("soup", f"{made}:tp_ft", "--out", out)
    assert (code, "holds a classifier of flyp, which stays" in text) == (2, True)
    other = tmp_path / "other"
    for record in records.read(made):
        if isinstance(record, records.Evaluation):
            records.append(other, replace(record, provenance={**record.provenance, "data": "else"}))
    code, text = command("soup", f"{made}:tp_ft", "--out", other)
    assert (code, "holds results on other data than" in text) == (2, True)


@pytest.mark.parametrize("method", ["flyp", "tp_ft"])
def test_a_soup_is_evaluated_on_data_as_it_was_judged(method: str, made: Path, command: Command, tiny_root: Path, tmp_path: Path) -> None:
    assert command("soup", f"{made}:{method}", "--out", tmp_path / "soup", "--alphas", "1")[0] == 0
    code, text = command("evaluate", tmp_path / "soup", tiny_root, "--out", tmp_path / "again")
    assert code == 0, text
    assert stands(tmp_path / "again").runs["soup", 0].points[1.0].accuracy == stands(tmp_path / "soup").runs["soup", 0].points[1.0].accuracy
