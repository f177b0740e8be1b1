"""`surefoot explain`: what it shows is what the records say, its draw picks no nice images, and its pictures are of the right weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fresh, typed, with_resnet
from PIL import Image
from torch.nn import functional as F

from surefoot import records
from surefoot.bundle import save_bundle
from surefoot.compare import Comparison, Plan, conclusions, gallery
from surefoot.data import Dataset, open_dataset
from surefoot.errors import SettingError
from surefoot.explain import Question, Version, chosen, picks, relevance, some, views
from surefoot.explain.pictures import MOST, STRONG, as_seen, overlaid, upsampled
from surefoot.identity import weights_hash
from surefoot.job import DataOptions, Job
from surefoot.methods import get, wise_ft
from surefoot.model import ImageTextModel
from surefoot.predict import find_images
from surefoot.report.before_after import before_after
from surefoot.report.runs import collect
from surefoot.soup import Ingredient
from surefoot.train import Training, part, start_state

PLAN = Plan(
    methods=("tp_ft", "flyp"), seeds=(0,), alphas=(0.5,), training=Training(epochs=3, batch_size=8, learning_rate=1e-2, keep="last")
)


@pytest.fixture(scope="module")
def made(tiny_root: Path, loaded_model: ImageTextModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished comparison, which tests must leave as it is."""
    folder = tmp_path_factory.mktemp("explained") / "run"
    Job(data=DataOptions(data=str(tiny_root)), model=loaded_model.name, precision="fp32", plan=PLAN, device="cpu").save(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("paired_bootstrap", "paired_bootstrap_of"):
            patch.setattr(conclusions, name, partial(getattr(conclusions, name), resamples=10))
        patch.setattr(conclusions, "one_standard_error", lambda alphas, *_: (0.5, 0.5))
        Comparison(fresh(loaded_model), open_dataset(tiny_root), PLAN, folder).run()
    yield folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


Typed = tuple[pytest.MonkeyPatch, pytest.CaptureFixture[str]]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    return monkeypatch, capsys


def explained(folder: Path) -> list[records.Explained]:
    return [record for record in records.read(folder) if isinstance(record, records.Explained)]


@pytest.mark.parametrize("method", ["tp_ft", "flyp"])
def test_answers_and_contexts_are_those_of_the_records(run: Path, tiny_root: Path, terminal: Typed, method: str) -> None:
    code, text = typed(*terminal, "explain", run, "--method", method, "--per-set", "2", "--out", run / "other", "--device", "cpu")
    assert code == 0, text
    data, runs = open_dataset(tiny_root), collect(records.read(run))
    stored = {
        "zero_shot": runs.zero_shot, method: runs.at(method, 1.0)[0], f"{method} + WiSE-FT (ID val.)": runs.at(method, 0.5)[0],
    }  # fmt: skip
    found = explained(run / "other")
    assert {record.on for record in found} == {"test", "shifts/red", "shifts/green"}
    contexts = list(data.contexts)
    for record in found:
        split = data.split(record.on)
        row = [data.written(path) for path in split.paths].index(record.path)
        assert [view["row"] for view in record.views] == list(stored)
        for view in record.views:
            answers = records.load_answers(run, stored[view["row"]].answers)  # type: ignore[union-attr]
            own = answers[record.on]
            assert view["answer"] == data.class_names[own.prediction[row]]
            assert view["confidence"] == pytest.approx(float(own.confidence[row]), abs=1e-4)
            if context := data.context_of(record.on):
                assert view["context"] == contexts[answers[f"context/{context}"].prediction[row]]
        assert record.label == record.of == data.class_names[split.labels[row]]
        assert record.context == (data.context_of(record.on) or "")
        assert all((run / "other" / name).is_file() for name in (record.image, *(view["heat"] for view in record.views)))
    assert found[0].settings_hash == runs.runs[method, 0].settings_hash


def test_images_that_changed_are_shown_as_such_and_no_others(run: Path, tiny_root: Path, terminal: Typed) -> None:
    assert typed(*terminal, "explain", run, "--method", "tp_ft", "--per-set", "3", "--no-maps", "--device", "cpu")[0] == 0
    data, runs = open_dataset(tiny_root), collect(records.read(run))
    before, after = (records.load_answers(run, one.answers) for one in (runs.zero_shot, runs.at("tp_ft", 1.0)[0]) if one)
    found = explained(run / "explain")
    why = [record.why for record in found]
    assert why.count("drawn") == 9
    assert why.count("changed") > 0
    for record in found:
        row = [data.written(path) for path in data.split(record.on).paths].index(record.path)
        differs = before[record.on].prediction[row] != after[record.on].prediction[row]
        assert record.why == "drawn" or differs
        assert all(view["heat"] == "" for view in record.views)


def test_the_draw_does_not_depend_on_answers_and_shows_no_image_twice() -> None:
    size, rng = 50, np.random.default_rng(0)
    without = chosen("test", size, None, 5, seed=1)
    for _ in range(5):
        changed = rng.random(size) < 0.3
        found = chosen("test", size, changed, 5, seed=1)
        assert found[:5] == without
        rows = [row for row, _ in found]
        assert len(set(rows)) == len(rows)
        order = [row for row, _ in chosen("test", size, None, size, seed=1)]
        left = [row for row in order[5:] if changed[row]]
        assert [row for row, why in found if why == "changed"] == left[:5]
    assert chosen("test", size, None, 5, seed=2) != without
    assert chosen("shifts/a", size, None, 5, seed=1) != without
    assert chosen("test", 2, np.array([True, True]), 5, seed=0) == [(0, "drawn"), (1, "drawn")] or len(chosen("test", 2, None, 5, 0)) == 2


def test_picks_leave_out_what_is_no_image_of_its_own_and_take_names_of_mapped_sets(tiny_data: Dataset) -> None:
    red = replace(tiny_data.split("shifts/red"), together=True, groups=("a",) * len(tiny_data.split("shifts/red")))
    green = tiny_data.split("shifts/green")
    mapped = replace(green, class_names=("round", "square"), mapped=((0,), (1, 2)), labels=(1,) * len(green))
    data = replace(tiny_data, splits={**tiny_data.splits, "shifts/red": red, "shifts/green": mapped})
    found = picks(data, {"test": np.ones(3, bool)}, 2, seed=0)  # answers to other images than these say nothing
    assert [one.on for one in found] == ["test", "test", "shifts/green", "shifts/green"]
    assert [one.why for one in found] == ["drawn"] * 4
    assert [(one.label, one.of) for one in found[2:]] == [("square", None)] * 2


def test_each_model_is_looked_at_with_its_own_weights_and_head(made: Path, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    start = start_state(tiny_model, tiny_data)
    record = collect(records.read(made)).at("tp_ft", 1.0)[0]
    states = [wise_ft(start, Ingredient.of(made, record).weights(), alpha) for alpha in (0.0, 0.5, 1.0)]
    versions = [
        Version(str(n), str(n), lambda s=s: part(s, "model"), (s["head.weight"], s["head.bias"]))  # type: ignore[misc]
        for n, s in enumerate(states)
    ]
    question = Question(tiny_data.class_names, tiny_data.templates, tiny_data.contexts)
    before = tiny_model.weights()
    tiny_model.train()
    image = torch.randn(3, 3, 32, 32)
    found, of = views(tiny_model, image, versions, question, [2, None, 0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.weights().items())
    assert tiny_model.training
    assert of == [2, found[1][-1].answer, 0]
    for place, state in enumerate(states):
        tiny_model.load_weights(part(state, "model"))
        with torch.no_grad():
            features = tiny_model.eval().encode_image(image)
        probability = F.softmax(features @ state["head.weight"].T + state["head.bias"], dim=1)
        for row in range(3):
            view = found[row][place]
            assert view.answer == int(probability[row].argmax())
            assert view.confidence == pytest.approx(float(probability[row].max()), abs=1e-5)
            expected = relevance(tiny_model, image[row : row + 1], state["head.weight"][of[row]][None])[0]
            assert view.heat is not None
            torch.testing.assert_close(view.heat, expected, rtol=1e-4, atol=1e-6)


def test_a_class_that_was_never_trained_is_looked_for_by_its_name(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    model = tiny_model
    question = Question(tiny_data.class_names, ("a {}.",), tiny_data.contexts, added="zebra")
    image = torch.randn(1, 3, 32, 32)
    version = Version("zero_shot", "zero-shot", model.weights)
    ((view,),), _ = views(model, image, [version], question, [3])
    assert view.answer < 3
    with torch.no_grad():
        text = float(model.scale) * model.encode_text(model.tokenize(["a zebra."]))
    assert view.heat is not None
    torch.testing.assert_close(view.heat, relevance(model, image, text)[0], rtol=1e-4, atol=1e-6)
    with pytest.raises(SettingError, match="class 4"):
        views(model, image, [version], question, [4])


def test_the_report_shows_what_was_explained_of_a_run_that_stands(run: Path, tiny_root: Path, terminal: Typed) -> None:
    photo = tiny_root / "test" / "bar" / "0.png"
    code, text = typed(*terminal, "explain", run, photo, "--class", "zebra", "--device", "cpu")
    assert code == 0, text
    assert "keep their context" in text and "ECE" in text
    (record,) = explained(run / "explain")
    assert (record.why, record.of, record.label) == ("given", "zebra", "")
    assert set(dict.fromkeys(view["context"] for view in record.views)) <= {"black", "red"}
    report, own = ((run / place / "index.html").read_text() for place in ("report", "explain"))
    for page in (report, own):
        assert page.count('<div class="view ') == 3
        assert "“zebra”" in page
        assert 'id="contexts"' in page
        assert "http" not in page.replace("http-equiv", "")
    lines = (run / "explain" / records.FILE).read_text()
    (run / "explain" / records.FILE).write_text(lines.replace(record.settings_hash, "of another run"))
    assert typed(*terminal, "report", run)[0] == 0
    assert 'id="explained"' not in (run / "report" / "index.html").read_text()


def test_a_model_alone_is_explained_beside_its_start(
    made: Path, tiny_model: ImageTextModel, tiny_data: Dataset, tiny_root: Path, tmp_path: Path, terminal: Typed
) -> None:
    start = start_state(tiny_model, tiny_data)
    end = Ingredient.of(made, collect(records.read(made)).at("tp_ft", 1.0)[0]).weights()
    save_bundle(tmp_path / "model", tiny_model, wise_ft(start, end, 0.5), tiny_data, get("tp_ft"), 0.5)
    code, text = typed(*terminal, "explain", tmp_path / "model", tiny_root / "test" / "disc", "--out", tmp_path / "out", "--device", "cpu")
    assert code == 0, text
    assert "α = 0.5" in (tmp_path / "out" / "index.html").read_text()
    found = explained(tmp_path / "out")
    assert [view["label"] for view in found[0].views] == ["zero-shot", "TP-FT, α = 0.5"]
    assert len(found) == 5
    assert all(len(view["context"]) > 3 and "…" in view["context"] for one in found for view in one.views), "CLIP's own templates"
    code, text = typed(*terminal, "explain", tmp_path / "model", "--out", tmp_path / "more", "--device", "cpu")
    assert code == 2
    assert "does not say which data it was made of. Give images, or --data" in text
    code, text = typed(*terminal, "explain", tmp_path / "model", "--data", tiny_root, "--out", tmp_path / "more", "--device", "cpu")
    assert code == 0, text
    assert {one.on for one in explained(tmp_path / "more")} == {"test", "shifts/red", "shifts/green"}


def test_a_classifier_is_told_from_its_start_by_alpha_and_by_the_weights_it_came_from(
    tiny_model: ImageTextModel, tiny_data: Dataset, tiny_root: Path, tmp_path: Path, terminal: Typed
) -> None:
    start, photo = start_state(tiny_model, tiny_data), tiny_root / "test" / "bar" / "0.png"
    for weights, message in ((weights_hash(tiny_model), "Explained: "), ("another", "is not the model any more that")):
        data = replace(tiny_data, class_names=("Disc", *tiny_data.class_names[1:]))
        save_bundle(tmp_path / "model", tiny_model, start, data, get("tp_ft"), 0.0, weights=weights)
        given = (tmp_path / "model", photo, "--class", "dISC", "--no-maps", "--out", tmp_path / "out", "--device", "cpu")
        code, text = typed(*terminal, "explain", *given)
        assert (code, message in text) == (0 if message == "Explained: " else 2, True), text
    assert [view["label"] for view in explained(tmp_path / "out")[0].views] == ["zero-shot", "TP-FT, α = 0"]
    assert [one.of for one in explained(tmp_path / "out")] == ["Disc"]


def test_a_soup_beside_its_runs_is_explained_by_its_own_weights(run: Path, tiny_root: Path, terminal: Typed) -> None:
    code, text = typed(*terminal, "soup", f"{run}:tp_ft", "--out", run, "--alphas", "0,1", "--device", "cpu")
    assert code == 0, text
    code, text = typed(*terminal, "explain", run, "--method", "soup", "--no-maps", "--device", "cpu")
    assert code == 0, text
    data, soup = open_dataset(tiny_root), collect(records.read(run)).at("soup", 1.0)[0]
    found = explained(run / "explain")
    assert {record.on for record in found} == {"test", "shifts/red", "shifts/green"}
    for record in found:
        row = [data.written(path) for path in data.split(record.on).paths].index(record.path)
        assert record.settings_hash == soup.settings_hash
        own = records.load_answers(run, soup.answers)[record.on]
        assert [view["label"] for view in record.views] == ["zero-shot", "Soup (uniform)"]
        assert record.views[1]["answer"] == data.class_names[own.prediction[row]]


def test_the_draw_and_the_class_are_those_that_were_typed(run: Path, tiny_root: Path, terminal: Typed) -> None:
    data, typed_in = open_dataset(tiny_root), ("--per-set", "2", "--draw-seed", "3", "--class", " SQUARE Box ", "--no-maps")
    assert typed(*terminal, "explain", run, *typed_in, "--device", "cpu")[0] == 0
    found = explained(run / "explain")
    assert {one.of for one in found} == {"square box"}
    for name in ("test", "shifts/red", "shifts/green"):
        paths = [data.written(path) for path in data.split(name).paths]
        rows = [paths.index(one.path) for one in found if (one.on, one.why) == (name, "drawn")]
        assert rows == [row for row, _ in chosen(name, len(paths), None, 2, seed=3)]
    given = find_images([tiny_root / "test"])
    text = typed(*terminal, "explain", run, tiny_root / "test", "--most", "3", "--draw-seed", "2", "--no-maps", "--device", "cpu")[1]
    assert f"3 of {len(given)} images, drawn with --draw-seed 2; --most {len(given)} shows all of them" in text
    assert [one.path for one in explained(run / "explain")] == [given[row].name for row in some(len(given), 3, seed=2)]


def test_other_data_and_another_model_are_told(run: Path, tiny_root: Path, tiny_folder: Path, tmp_path: Path, terminal: Typed) -> None:
    data, model = tmp_path / "data", tmp_path / "model"
    shutil.copytree(tiny_root, data)
    Image.new("RGB", (40, 40), "blue").save(data / "test" / "bar" / "0.png")
    code, text = typed(*terminal, "explain", run, "--data", data, "--per-set", "4", "--no-maps", "--device", "cpu")
    assert code == 0 and "The data are not those of the records any more" in text
    assert {one.why for one in explained(run / "explain")} == {"drawn"}
    for split in ("train", "val", "test"):
        (data / split / "bar").rename(data / split / "pole")
    for shift in ("red", "green"):
        shutil.rmtree(data / "shifts" / shift / "bar")
    code, text = typed(*terminal, "explain", run, "--data", data, "--no-maps", "--device", "cpu")
    assert (code, "has other classes than" in text) == (2, True), text
    shutil.copytree(tiny_folder, model)
    config = model / "open_clip_config.json"
    config.write_text(config.read_text().replace("0.4, 0.5, 0.6", "0.4, 0.5, 0.7"))
    (run / "job.json").write_text((run / "job.json").read_text().replace(str(tiny_folder), str(model)))
    code, text = typed(*terminal, "explain", run, "--no-maps", "--device", "cpu")
    assert (code, "is not the model any more that" in text) == (2, True), text


def test_a_gallery_of_an_older_form_gives_way(
    run: Path, tiny_root: Path, tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("paired_bootstrap", "paired_bootstrap_of"):
        monkeypatch.setattr(conclusions, name, partial(getattr(conclusions, name), resamples=10))
    monkeypatch.setattr(conclusions, "one_standard_error", lambda alphas, *_: (0.5, 0.5))
    before = collect(records.read(run)).examples
    assert before
    monkeypatch.setattr(gallery, "FOLDER", "newer")  # other examples of the same runs
    monkeypatch.setattr(gallery, "FORM", gallery.FORM + 1)
    Comparison(tiny_model, open_dataset(tiny_root), PLAN, run).run()
    after = collect(records.read(run)).examples
    assert len(after) == len(before)
    assert all(example.image.startswith("newer/") for example in after)


def test_errors_say_what_to_do(run: Path, tmp_path: Path, terminal: Typed) -> None:
    (tmp_path / "empty").mkdir()
    (run / "report").mkdir()
    (run / "report" / "index.html").write_text("another page")
    for arguments, message in {
        (tmp_path / "empty",): "holds neither a run (job.json) nor a model (surefoot.json)",
        (run, "--method", "flip"): "Did you mean 'flyp'?",
        (run, "--method", "flyp", "--seed", "4"): "--seed is 4, which",
        (run, "--per-set", "0"): "--per-set is 0; it must be 1 or more",
        (run, "--most", "0"): "--most is 0; it must be 1 or more",
        (run, "--draw-seed", "-1"): "--draw-seed is -1; it must be 0 or more",
        (run, "--seed", "4"): "does not hold of tp_ft. Seeds there: 0. Give one of them.",
        (run, "--out", run / "report"): "is a page of something else, which stays. Give a folder of its own by --out.",
        (run / "job.json",): "job.json is a file. Give the folder of a run or a model first",
        (run, "--class", " "): "--class is empty",
        (run, "--out", run): "holds the records of a comparison, which stay. Give a folder of its own by --out.",
        (run, tmp_path / "none.png"): "There is no file or folder",
        (run, run / "job.json", "--data", "iconshift"): "not both",
    }.items():
        code, text = typed(*terminal, "explain", *arguments, "--device", "cpu")
        assert (code, message in text) == (2, True), text
    assert (run / "report" / "index.html").read_text() == "another page"
    lines = (run / records.FILE).read_text().splitlines(keepends=True)
    (run / records.FILE).write_text("".join(line for line in lines if '"alpha": 1.0' not in line and '"choice"' not in line))
    for arguments, message in {(): "holds no run that is finished yet", ("--method", "flyp"): "holds no finished run of flyp yet"}.items():
        code, text = typed(*terminal, "explain", run, *arguments, "--device", "cpu")
        assert (code, f"{message}. Run the same" in text) == (2, True), text


def test_names_of_any_bytes_and_of_markup_are_shown_as_they_are(run: Path, tiny_root: Path, tmp_path: Path, terminal: Typed) -> None:
    photo = tiny_root / "test" / "bar" / "0.png"
    odd = [tmp_path / os.fsdecode(b"caf\xe9.png"), tmp_path / "<i>[red].png"]
    for path in odd:
        shutil.copy(photo, path)
    code, text = typed(*terminal, "explain", run, *odd, "--class", "<b>&[/red]", "--no-maps", "--device", "cpu")
    assert code == 0, text
    for place in ("report", "explain"):
        page = (run / place / "index.html").read_bytes()
        assert b"caf\xe9.png" in page
        assert b"&lt;i&gt;[red].png" in page and b"&lt;b&gt;&amp;[/red]" in page
        assert b"<i>[red]" not in page and b"<b>&[" not in page


def test_what_was_explained_before_gives_way(run: Path, tiny_root: Path, terminal: Typed) -> None:
    photos, own = tiny_root / "test" / "bar", run / "explain"
    for arguments, count in (([photos], 5 * 4), ([photos / "0.png", "--no-maps"], 1)):
        assert typed(*terminal, "explain", run, *arguments, "--out", own.absolute(), "--device", "cpu")[0] == 0
        found = explained(own)
        named = {name for one in found for name in (one.image, *(view["heat"] for view in one.views)) if name}
        assert len(named) == count
        there = {f"pictures/{path.name}" for path in (own / "pictures").iterdir()}
        assert there == named | ({"pictures/mine.webp"} if count == 1 else set())
        assert (run / "report" / "index.html").read_text().count("<figcaption>0.png") == 1
        (own / "pictures" / "mine.webp").touch()


def test_a_tower_without_maps_is_still_shown_without_them(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    model = with_resnet(fresh(tiny_model)).eval()
    question = Question(tiny_data.class_names, tiny_data.templates, tiny_data.contexts)
    ((view,),), _ = views(model, torch.randn(1, 3, 32, 32), [Version("a", "a", model.weights)], question, [None], maps=False)
    assert view.heat is None


def test_pictures_are_the_images_as_the_model_gets_them(tiny_model: ImageTextModel, tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 32), (200, 40, 90))
    picture = as_seen(tiny_model, tiny_model.preprocess(image))
    assert picture.size == (176, 176)
    assert np.abs(np.asarray(picture, dtype=float) - (200, 40, 90)).max() <= 1.5
    heat = torch.zeros(2, 2)
    heat[1, 0] = 4.0
    smooth = upsampled(heat, (176, 88))
    assert smooth.shape == (88, 176)
    assert smooth.max() == 1.0
    assert (smooth[87, 0], smooth[0, 175]) == (1.0, 0.0)
    over = np.asarray(overlaid(picture, heat), dtype=float)
    assert np.abs(np.asarray(over[0, -1]) - over[0, -1, 0]).max() == 0, "grey where nothing is relevant"
    grey = over[0, -1, 0]
    assert over[-1, 0] == pytest.approx(np.array([grey + MOST * (colour - grey) for colour in STRONG]), abs=1)
    assert np.asarray(overlaid(picture, torch.zeros(2, 2))).std() == 0


def test_what_validation_chose_is_left_out_where_it_is_an_end(made: Path) -> None:
    stored = [record for record in records.read(made) if not isinstance(record, records.Choice)]
    for alpha, said in ((1.0, "the fine-tuned model itself"), (0.0, "the zero-shot model itself")):
        choice = records.Choice(method="tp_ft", seed=0, alpha=alpha, argmax=alpha, runs=stored[-1].runs)  # type: ignore[union-attr]
        shown = before_after(collect([*stored, choice]), "tp_ft")
        assert shown is not None
        assert [one.kind for one in shown.versions] == ["zero", "tuned"]
        assert said in shown.note
    shown = before_after(collect(stored), "flyp", seed=3)
    assert shown is None
