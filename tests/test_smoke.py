"""`--smoke`: a command goes through all of itself on a few images, and nobody can take what it writes for a result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import typed

from surefoot import records
from surefoot.cli.fit import ADVICE, _asked
from surefoot.cli.recipe import resolve
from surefoot.compare import Plan
from surefoot.data import Dataset, Split
from surefoot.data.subsets import SMOKE_CLASSES, SMOKE_IMAGES, SMOKE_NOTE, smoke
from surefoot.job import DataOptions, Job

NAMES = tuple(f"class {number}" for number in range(11))


def split_of(name: str, classes: dict[int, int], names: tuple[str, ...] = NAMES, **more: object) -> Split:
    """A split with so many images of each class, the classes in turn; an image is called by its class and its number."""
    most = max(classes.values())
    rows = [(label, number) for number in range(most) for label, each in classes.items() if number < each]
    paths = tuple(Path(f"{name}/{names[label]}/{number}.png") for label, number in rows)
    return Split(name, paths, tuple(label for label, _ in rows), names, **more)  # type: ignore[arg-type]


@pytest.fixture
def large() -> Dataset:
    """Eleven classes, of which two shifts hold 3 to 10 and `few` none that is kept; `mapped` has class names of its own."""
    everything = dict.fromkeys(range(11), 6)
    splits = {
        "train": split_of("train", everything),
        "val": split_of("val", {**everything, 5: 2}),
        "test": split_of("test", everything),
        "shifts/red": split_of("shifts/red", dict.fromkeys(range(3, 11), 5)),
        "shifts/dusk": split_of("shifts/dusk", dict.fromkeys(range(3, 11), 4)),
        "shifts/few": split_of("shifts/few", {0: 3}),
        "shifts/mapped": split_of("shifts/mapped", {0: 3, 1: 3}, ("one", "two"), mapped=((0, 1), (2,))),
        "unseen/other": split_of("unseen/other", dict.fromkeys(range(9), 5), tuple(f"other {number}" for number in range(9))),
    }
    return Dataset(Path(), "large", NAMES, splits, notes=("Made up.",))


def test_smoke_keeps_a_few_images_of_the_classes_that_most_splits_hold(large: Dataset) -> None:
    found = smoke(large)
    assert found.class_names == NAMES[3:], "two shifts hold these"
    assert (len(found.class_names), SMOKE_IMAGES) == (SMOKE_CLASSES, 4)
    assert set(found.splits) == {"train", "val", "test", "shifts/red", "shifts/dusk", "unseen/other"}
    for split in found.splits.values():
        names = [split.class_names[label] for label in split.labels]
        assert names == [path.parent.name for path in split.paths], "labels are counted anew and mean the same"
        for name in split.class_names:
            own = [path.name for path in split.paths if path.parent.name == name]
            assert own == [f"{number}.png" for number in range(2 if (split.name, name) == ("val", "class 5") else 4)]
    assert found.split("unseen/other").class_names == tuple(f"other {number}" for number in range(8))
    assert (found.name, found.fewer_shots) == ("large-smoke", True)
    assert found.notes == (SMOKE_NOTE, "Left out: shifts/few, shifts/mapped.", "Made up.")


def test_smoke_takes_small_data_whole(large: Dataset) -> None:
    few = {0: 2, 1: 3}
    small = replace(large, class_names=("a", "b"), splits={name: split_of(name, few, ("a", "b")) for name in ("train", "val", "test")})
    found = smoke(small)
    assert {name: (split.paths, split.labels) for name, split in found.splits.items()} == {
        name: (split.paths, split.labels) for name, split in small.splits.items()
    }
    assert found.notes == (SMOKE_NOTE, "Made up.")


def test_no_setting_makes_a_smoke_run_longer() -> None:
    typed_in = ["steps=500", "flyp.epochs=7", "tp_ft.steps=90", "flyp.batch_size=512", "flyp.learning_rate=1e-3"]
    plan = resolve("photos", None, typed_in, methods=["tp_ft", "flyp"], seeds=[4, 5], alphas=[0.1, 0.2], smoke=True).plan
    for name in plan.methods:
        training = plan.training_of(name, 4)
        assert (training.num_steps(10_000), training.batch_size) == (2, 8)
    assert plan.training_of("flyp", 4).learning_rate == 1e-3, "what does not lengthen a run stays"
    assert (plan.seeds, plan.alphas, plan.corruptions) == ((4,), (0.5,), False)


def evaluations(folder: Path) -> list[records.Evaluation]:
    return [record for record in records.read(folder) if isinstance(record, records.Evaluation)]


def test_a_smoke_run_is_marked_and_never_mixed_with_a_real_one(
    tiny_root: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, model = tmp_path / "run", f"local-dir:{tiny_folder}"
    command = ("compare", tiny_root, "--model", model, "--methods", "tp_ft", "--out", out)
    code, said = typed(monkeypatch, capsys, *command, "--smoke")
    assert code == 0, said
    assert SMOKE_NOTE in said
    found = evaluations(out)
    assert {(one.dataset, one.seed, one.alpha) for one in found} == {("shapes-smoke", 0, alpha) for alpha in (0.0, 0.5, 1.0)}
    assert {one.settings["steps"] for one in found if one.method == "tp_ft"} == {2}
    page = (out / "report" / "index.html").read_text()
    assert SMOKE_NOTE in page and "Fine-tuning on shapes-smoke" in page
    code, said = typed(monkeypatch, capsys, *command)
    assert code == 2
    assert "holds the records of shapes-smoke, not of shapes" in said
    code, said = typed(monkeypatch, capsys, "frontier", out, "--alphas", "0.25")
    assert code == 0, said
    assert {one.dataset for one in evaluations(out)} == {"shapes-smoke"}, "the folder is opened again as what it is"


def test_fit_takes_two_steps_whatever_is_advised(
    tiny_root: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("fit", tiny_root, "--model", f"local-dir:{tiny_folder}", "--method", "tp_ft", "--out", tmp_path / "run")
    code, said = typed(monkeypatch, capsys, *own, "--smoke")
    assert code == 0, said
    settings = [one.settings for one in evaluations(tmp_path / "run") if one.method == "tp_ft"]
    assert {(own["steps"], own["batch_size"]) for own in settings} == {(2, 8)}
    assert json.loads((tmp_path / "run" / ADVICE).read_text())["asked"]["job"]["data"]["smoke"] is True


def test_the_advice_of_older_folders_still_counts() -> None:
    job = Job(data=DataOptions(data="photos"), model="iconclip", precision="fp32", plan=Plan())
    assert "smoke" not in _asked(job)["data"], "theirs says nothing of it"
    assert _asked(replace(job, data=replace(job.data, smoke=True)))["data"]["smoke"] is True


def test_protocols_and_the_search_say_so_too(
    tiny_root: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--model", f"local-dir:{tiny_folder}", "--smoke")
    code, said = typed(monkeypatch, capsys, "shift", tiny_root, *model, "--methods", "tp_ft", "--out", tmp_path / "shift")
    assert code == 0, said
    (series,) = [record for record in records.read(tmp_path / "shift") if isinstance(record, records.Series)]
    assert series.notes[0] == SMOKE_NOTE
    assert SMOKE_NOTE in (tmp_path / "shift" / "report" / "index.html").read_text()
    over = ("--method", "tp_ft", "--trials", "1", "--space", "learning_rate=1e-4,1e-3", "--out", tmp_path / "tune")
    code, said = typed(monkeypatch, capsys, "tune", tiny_root, *model, *over)
    assert code == 0, said
    assert SMOKE_NOTE in said
