"""From a folder of photographs to a classifier, as a user goes; the advice; the bar of a run that goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from surefoot import cli, records
from surefoot.advise import fit_length, with_method
from surefoot.cli import display
from surefoot.compare import Comparison, Plan
from surefoot.data import Dataset, load, open_dataset, read_image
from surefoot.data.survey import survey
from surefoot.job import DataOptions, Job
from surefoot.model import ImageTextModel
from surefoot.train import Step, Training

MAKE = Path(__file__).parents[1] / "benchmarks" / "own_data" / "make.py"


def invoke(*arguments: str) -> Result:
    sys.argv = ["surefoot", *arguments]
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def maker() -> Iterator[ModuleType]:
    spec = spec_from_file_location("own_data_make", MAKE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def photos(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = Path(tmp_path_factory.mktemp("own") / "photos")
    maker.make(maker.Wanted(out, classes=3, images=10, size=120, shifts=True, unseen=True, odd=True))
    return out


@pytest.fixture(scope="module")
def fitted(photos: Path, tiny_folder: Path) -> tuple[Path, list[str], str]:
    """The folder of a run, the command that made it, and what that said."""
    out = photos.parent / "run"
    command = ["fit", str(photos), "--out", str(out), "--model", f"local-dir:{tiny_folder}", "--precision", "fp32", "--set", "epochs=2"]
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    return out, command, result.output


# --- the data ---


def test_every_odd_format_is_made_and_read_upright(photos: Path) -> None:
    found = survey(load(photos))
    assert set(found.formats) == {"JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "MPO"}
    assert {"RGB", "CMYK", "L", "I;16", "P", "RGBA"} <= set(found.modes)
    assert not found.unreadable
    assert set(found.counts) == {"train", "val", "test", "shifts/night", "shifts/emoji", "unseen/others"}


def test_turned_and_deep_images_show_what_was_written(maker: ModuleType, tmp_path: Path) -> None:
    image = Image.new("RGB", (90, 60), (200, 200, 200))
    image.paste((10, 10, 10), (0, 0, 45, 30))
    for form in (maker.turned_jpeg, maker.grey_16_bit_png, maker.cmyk_jpeg, maker.mpo):
        folder = tmp_path / form.__name__
        folder.mkdir()
        form(image, folder / "x")
        found = read_image(next(folder.iterdir()))
        assert found.size == (90, 60), form
        for place in ((10, 10), (80, 10), (10, 50), (80, 50)):
            assert found.getpixel(place)[0] == pytest.approx(image.getpixel(place)[0], abs=12), form


def test_more_classes_than_icons_have_names_get_colours(maker: ModuleType, tmp_path: Path) -> None:
    names, others = maker.class_names(load("iconshift"), maker.Wanted(tmp_path, classes=200, images=1))
    assert len(set(names)) == 200
    assert not set(names) & set(others)
    assert {name.partition(" ")[0] for name in names[178:]} == {"red"}


# --- the commands ---


def test_fit_keeps_the_length_that_the_user_set_and_says_so(fitted: tuple[Path, list[str], str]) -> None:
    out, _, said = fitted
    assert "50 epochs" not in said
    trained = next(r for r in records.read(out) if isinstance(r, records.Trained))
    assert len(trained.history) == 2


def test_the_same_command_again_does_nothing_twice(fitted: tuple[Path, list[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    from surefoot.compare import comparison

    out, command, _ = fitted
    before = (out / "records.jsonl").read_bytes()
    monkeypatch.setattr(comparison, "fit", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(Comparison, "_judge", lambda *_: pytest.fail("judged again"))
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert (out / "records.jsonl").read_bytes() == before
    assert "Measuring" not in result.output


def test_a_model_that_is_zero_shot_after_all_is_called_so(fitted: tuple[Path, list[str], str]) -> None:
    out, command, said = fitted
    alpha = json.loads((out / "model" / "surefoot.json").read_text())["alpha"]
    assert ("alpha 0 is the zero-shot model" in said) == (alpha == 0)
    asked = invoke(*command, "--alpha", "0")
    assert "is the zero-shot model" not in asked.output  # it was asked for
    assert "as asked" in asked.output


def test_predict_and_evaluate_take_the_same_photographs(fitted: tuple[Path, list[str], str], photos: Path, tmp_path: Path) -> None:
    out, *_ = fitted
    result = invoke("predict", str(out), str(photos / "shifts"), "--out", str(tmp_path / "a.csv"), "--device", "cpu")
    assert result.exit_code == 0, result.output
    number = sum(path.is_file() for path in (photos / "shifts").rglob("*"))
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 1 + number
    result = invoke("evaluate", str(out), str(photos), "--out", str(tmp_path / "judged"), "--device", "cpu", "--precision", "fp32")
    assert result.exit_code == 0, result.output
    there = {r.method: r.accuracy for r in records.read(tmp_path / "judged") if isinstance(r, records.Evaluation)}
    here = next(r for r in records.read(out) if isinstance(r, records.Evaluation) and r.method == "zero_shot")
    assert there["zero_shot"]["shifts/night"] == pytest.approx(here.accuracy["shifts/night"])


def test_a_run_opens_from_any_folder(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(data=DataOptions(data=photos.name), model="iconclip", precision="fp32", plan=Plan())
    monkeypatch.chdir(photos.parent)
    job.save(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert Job.of(tmp_path).data.open().name == photos.name
    assert replace(job.data, data="iconshift").anywhere().data == "iconshift"


# --- the advice ---


def test_advice_changes_nothing_that_was_given(tiny_data: Dataset) -> None:
    split = tiny_data.split("train")
    rows = [*(row for row, label in enumerate(split.labels) if label), split.labels.index(0)]
    few = replace(split, paths=tuple(split.paths[r] for r in rows), labels=tuple(split.labels[r] for r in rows))
    data = replace(tiny_data, splits={**tiny_data.splits, "train": few})
    training = Training(epochs=3, batch_size=64)
    free, reasons = fit_length(data, training)
    assert (free.batch_size, free.epochs, free.sampling, free.select_by) == (len(rows) // 4, 50, "balanced", "mean_per_class")
    assert len(reasons) == 3
    for key in ("batch_size", "epochs", "sampling", "select_by"):
        held, _ = fit_length(data, training, {key})
        assert getattr(held, key) == getattr(training, key)
    assert fit_length(data, training, {"batch_size", "epochs", "sampling", "select_by"}) == (training, [])


def test_advised_settings_give_way_to_the_users() -> None:
    plan = Plan(overrides={"tp_ft": {"layers": "visual[-1:]"}})
    assert with_method(plan, "tp_ft", {"layers": "visual[-3:]", "lora_rank": 4}).overrides["tp_ft"] == {
        "layers": "visual[-1:]", "lora_rank": 4,
    }  # fmt: skip


# --- the bar ---


def test_the_bar_leaves_out_what_a_checkpoint_holds(tiny_model: ImageTextModel, tiny_root: Path, tmp_path: Path) -> None:
    plan = Plan(methods=("tp_ft",), seeds=(0,), alphas=(0.0, 1.0), training=Training(epochs=5, batch_size=8))
    comparison = Comparison(tiny_model, open_dataset(tiny_root), plan, tmp_path)
    images, steps = comparison.judge.num_images, 5 * 3
    for number, left in ((1, steps), (11, 5)):
        shown = display.Display()
        shown.begin(comparison)
        assert shown.total == 2 * images + display.TRAINING_COST * steps * 8
        shown.run("tp_ft", 0, 1, 1, training=True, images=images)
        for step in range(number, steps + 1):
            shown.step(Step(step, steps, 0.1, 1.0, num_images=8))
        shown.judged(2 * images)
        assert shown.total == 2 * images + display.TRAINING_COST * left * 8
        assert shown.progress.finished


def test_the_bar_of_a_finished_comparison_is_empty(tiny_model: ImageTextModel, tiny_root: Path, tmp_path: Path) -> None:
    plan = Plan(methods=("lp",), seeds=(0,), alphas=(0.0, 1.0), training=Training(epochs=1, batch_size=8))
    Comparison(tiny_model, open_dataset(tiny_root), plan, tmp_path).run()
    shown = display.Display()
    shown.begin(Comparison(tiny_model, open_dataset(tiny_root), plan, tmp_path))
    assert shown.total == 0
