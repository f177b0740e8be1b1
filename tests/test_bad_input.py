"""Bad input through the real entry point: a sentence that says what to do, code 2, and not a file is written or changed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from conftest import typed

from surefoot import cli, records

ALL = ("compare", "fit", "tune", "check")
TRAINING = ALL[:3]
Refused = Callable[..., str]
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type a command; what it ends with, and everything that it prints."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)

    return partial(typed, monkeypatch, capsys)


@pytest.fixture
def refused(run: Run, tmp_path: Path, tiny_folder: Path) -> Refused:
    """Type a command that must end with code 2 and leave everything as it was; what it prints."""

    def typed(command: str, *arguments: object, model: object = None) -> str:
        given = list(arguments)
        if command in TRAINING:
            given += ["--out", "run"] if "--out" not in given else []
            given += ["--model", f"local-dir:{tiny_folder}" if model is None else model]
            given += ["--method", "tp_ft"] if command == "tune" and "--method" not in given else []
        before = contents(tmp_path)
        code, text = run(command, *given)
        assert code == 2, text
        assert contents(tmp_path) == before
        return text

    return typed


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes, and every folder in it."""
    return {str(path): b"" if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


# --- data ---
def no_images(root: Path) -> Path:
    for path in (root / "train").rglob("*.png"):
        path.rename(path.with_suffix(".txt"))
    return root


def emptied(root: Path) -> Path:
    shutil.rmtree(root)
    root.mkdir()
    return root


def one_class(root: Path) -> Path:
    for path in [*root.glob("*/bar"), *root.glob("*/disc"), *root.glob("shifts/*/bar"), *root.glob("shifts/*/disc")]:
        shutil.rmtree(path)
    return root


def shift_of_another_class(root: Path) -> Path:
    (root / "shifts/red/box").rename(root / "shifts/red/boxes")
    return root


def corrupt(root: Path) -> Path:
    (root / "train/box/3.png").write_bytes(b"junk")
    (root / "val/bar/1.png").write_bytes((root / "val/bar/1.png").read_bytes()[:60])
    return root


def toml(content: str | bytes) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / "dataset.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return root

    return make


def manifest(*rows: str, name: str = "list.csv", first: str = "path,class") -> Callable[[Path], Path]:
    """A list with six images of disc and five of box, and `rows` in the end."""

    def make(root: Path) -> Path:
        listed = [f"train/disc/{k}.png,disc" for k in range(6)] + [f"train/box/{k}.png,box" for k in range(5)]
        (root / name).write_text("\n".join([first, *listed, *rows]) + "\n", encoding="latin-1")
        return root / name

    return make


DATA: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "missing": (lambda root: root / "no", ("/no' is neither a folder nor a manifest", "Check the path")),
    "near an embedded name": (lambda root: Path("iconshfit"), ("Did you mean 'iconshift'?",)),
    "empty": (emptied, ("There is no folder", "Put the images into train/<class>/")),
    "no images": (no_images, ("holds no images", "Files that are read: ", ".jpg")),
    "one class": (one_class, ("needs at least two", "Put each class in its own")),
    "shift of another class": (shift_of_another_class, ("shifts/red/boxes is a class that train/ does not have", "Rename it, or move it")),
    "corrupt": (corrupt, ("train/box/3.png cannot be read as an image", "val/bar/1.png", "--skip-unreadable")),
    "template": (toml('templates = ["a photo"]'), ("dataset.toml: The template 'a photo' holds 0 places '{}'", 'as in "a photo of a {}."')),
    "context": (toml('[contexts]\nred = "red"'), ("dataset.toml: The template 'red' holds 0 places '{}'",)),
    "class name": (toml('[class_names]\nbocks = "x"'), ("Did you mean 'box'?",)),
    "empty class name": (toml('[class_names]\nbox = " "'), ("the class 'box' has an empty name", "Write what is on its images")),
    "not TOML": (toml("name = shapes"), ("dataset.toml is not valid TOML", "line 1", "quotes")),
    "not UTF-8": (toml(b'name = "caf\xe9"'), ("dataset.toml is not UTF-8 text", "Save it as UTF-8")),
    "listed files missing": (manifest("train/box/77.png,box", "train/a.png,box"), ("lists 2 files that are not there", "77.png (line 13)")),
    "list not UTF-8": (manifest("train/caf\xe9.png,box"), ("list.csv is not UTF-8 text", "Save it as UTF-8")),
    "several labels": (manifest("train/box/6.png,box;disc"), ("line 13", "Multi-label data are not supported", "one class in each row")),
    "two classes an image": (manifest("train/box/0.png,disc"), ("in two classes", "multi-label data are not supported", "Keep one")),
    "unknown split": (manifest("train/box/6.png,box,tset", first="path,class,split"), ("line 13: unknown split 'tset'", "'test'")),
    "no class column": (manifest(first="path,label"), ("no column 'class'", "used are path, class, split, caption")),
    "neither folder nor list": (lambda root: root / "train/box/0.png", ("0.png is a .png file", "or the folder that holds train/<class>/")),
}


EVERYWHERE = (
    "missing",
    "no images",
    "one class",
    "shift of another class",
    "corrupt",
    "template",
    "listed files missing",
    "several labels",
)


@pytest.mark.parametrize(("case", "command"), [(case, command) for case in DATA for command in (ALL if case in EVERYWHERE else ("check",))])
def test_bad_data_are_named_and_nothing_is_written(case: str, command: str, copy_of: Callable[[], Path], refused: Refused) -> None:
    spoil, parts = DATA[case]
    text = refused(command, spoil(copy_of()))
    for part in parts:
        assert part in text


@pytest.mark.parametrize("command", TRAINING)
def test_skip_unreadable_goes_on_and_counts(command: str, copy_of: Callable[[], Path], run: Run, tiny_folder: Path) -> None:
    given = {
        "compare": ["--seeds", "0", "--methods", "tp_ft"],
        "fit": ["--method", "tp_ft"],
        "tune": ["--method", "tp_ft", "--trials", "1"],
    }
    settings = ["--set", "steps=2", "--set", "batch_size=8", "--precision", "fp32", *(["--space", "steps=2"] if command == "tune" else [])]
    data = corrupt(copy_of())
    settings += [*given[command], "--out", "run", "--model", f"local-dir:{tiny_folder}"]
    code, text = run(command, data, "--skip-unreadable", *settings)
    assert code == 0, text
    assert "2 unreadable images were skipped: train/box/3.png, val/bar/1.png." in text
    if command != "tune":
        described = next(r for r in records.read(Path("run")) if isinstance(r, records.Described))
        assert (described.num_images["train"], described.num_images["val"]) == (23, 11)


@pytest.mark.parametrize("command", TRAINING)
def test_skipping_all_images_of_a_class_is_refused(command: str, copy_of: Callable[[], Path], refused: Refused) -> None:
    data = copy_of()
    for path in (data / "train/box").iterdir():
        path.write_bytes(b"junk")
    text = refused(command, data, "--skip-unreadable")
    assert "Without the 8 images that cannot be read, train holds no image of 'square box'. Add some" in text


SHARES = [
    (["--val-share", "0.9", "--test-share", "0.9"], "leave nothing for train. Their sum must be below 1"),
    (["--val-share", "-1"], "val_share is -1.0; it must lie between 0 and 1"),
    (["--test-share", "nan"], "test_share is nan; it must lie between 0 and 1"),
    (["--test-share", "some"], "Invalid value for '--test-share'"),
    (["--split-seed", "text"], "Invalid value for '--split-seed'"),
]


@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize(("shares", "message"), SHARES)
def test_splits_that_cannot_be_cut(command: str, shares: list[str], message: str, tiny_root: Path, refused: Refused) -> None:
    assert message in refused(command, tiny_root / "train", *shares)


# --- settings ---
SETTINGS = [
    (TRAINING, ["--set", "epoch=3"], "Did you mean 'epochs'?"),
    (TRAINING, ["--set", "epochs=0"], "epochs is 0; it must be 1 or more"),
    (TRAINING, ["--set", "epochs"], "Write key=value"),
    (TRAINING, ["--set", "learning_rate=inf"], "learning_rate is inf; it must be a finite number"),
    (TRAINING, ["--set", "flip.epochs=3"], "Did you mean 'flyp'?"),
    (TRAINING, ["--set", "l2_sp.pul=0.1"], "Did you mean 'pull'?"),
    (TRAINING, ["--device", "gpu"], "The device 'gpu' is not available here"),
    (TRAINING, ["--precision", "int8"], "precision is 'int8'; it must be one of auto, fp32, tf32, bf16"),
    (TRAINING, ["--recipe", "imagenot"], "Give a TOML file, or one of: arf/domainnet, "),
    (TRAINING, ["--out", "there/file"], "there/file is a file. Give another one by --out"),
    (TRAINING, ["--out", "there/file/run"], "there/file is a file. Give another one by --out"),
    (("compare",), ["--methods", "flip,tp_ft"], "Did you mean 'flyp'?"),
    (("compare",), ["--methods", ""], "methods is []; it must be a list of methods"),
    (("compare",), ["--methods", "tp_ft,tp_ft"], "each may stand there once"),
    (("fit", "tune"), ["--method", "flip"], "Did you mean 'flyp'?"),
    (("fit", "tune"), ["--method", "zero_shot"], "zero_shot trains nothing"),
    (("compare", "tune"), ["--seeds", "a,b"], "--seeds is 'a,b'; it must be a comma-separated list of whole numbers"),
    (("compare", "tune"), ["--seeds", ""], "--seeds is ''; it must be a comma-separated list of whole numbers"),
    (("compare", "tune"), ["--seeds", "-1"], "whole numbers in 0..4294967295"),
    (("compare", "tune"), ["--shots", "0"], "shots is 0; it must be a whole number of images a class, 1 or more"),
    (("compare",), ["--shots", "1,0"], "shots is 0; it must be a whole number of images a class, 1 or more"),
    (("compare", "tune"), ["--shots", "50"], "50 images of each class of train are asked for, and 'bar' has 8. Ask for fewer shots"),
    (("compare",), ["--shots", "1,50"], "50 images of each class of train are asked for, and 'bar' has 8. Ask for fewer shots"),
    (("compare", "tune"), ["--base-to-new"], "base-to-new needs at least four"),
    (("fit", "tune"), ["--minutes", "0"], "minutes"),
    (("fit", "tune"), ["--minutes", "-1"], "minutes"),
    (("fit", "tune"), ["--minutes", "nan"], "minutes"),
    (("fit",), ["--seed", "99999999999999999999999999"], "whole numbers in 0..4294967295"),
    (("fit",), ["--alpha", "2"], "--alpha is 2.0; it must be 'val' or a number in 0..1"),
    (("fit",), ["--alpha", "half"], "--alpha is 'half'; it must be 'val' or a number in 0..1"),
    (("tune",), ["--trials", "0"], "Trials must be 1 or more"),
    (("tune",), ["--select-on", "test"], "only 'val' is accepted"),
    (("tune",), ["--space", "learning_rat=1..2"], "Did you mean 'learning_rate'?"),
]


@pytest.mark.parametrize(("command", "options", "message"), [(c, o, m) for commands, o, m in SETTINGS for c in commands])
def test_bad_settings(command: str, options: list[str], message: str, tiny_root: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("kept")
    assert message in refused(command, tiny_root, *options)


MODELS = [("ViT-B-33:openai", "Did you mean 'ViT-B-32'?"), ("ViT-B-32:opnai", "Did you mean 'openai'?")]
MODELS += [("", "model is ''; it must be a name, such as"), ("local-dir:none", "none/open_clip_config.json is not there")]


@pytest.mark.parametrize(("model", "message"), MODELS)
@pytest.mark.parametrize("command", TRAINING)
def test_unknown_models(command: str, model: str, message: str, tiny_root: Path, refused: Refused) -> None:
    assert message in refused(command, tiny_root, model=model)


def test_all_problems_of_a_recipe_are_told_at_once(tiny_root: Path, refused: Refused, tmp_path: Path) -> None:
    lines = ["methodes = ['flyp']", "alphas = [2.0]", "seeds = 'all'", "precision = 'int8'", "corruptions = 'yes'", "shots = 0"]
    lines += ["[training]", "lr = 1", "batch_size = 'x'", "[overrides.flip]", "x = 1"]
    (tmp_path / "mine.toml").write_text("\n".join(lines))
    text = refused("compare", tiny_root, "--recipe", "mine.toml", "--set", "epoch=2", "--set", "l2_sp.pull=-1")
    expected = ["'methodes'. Did you mean 'methods'", "alpha 2.0", "seeds is 'all'", "'int8'", "corruptions is 'yes'", "shots is 0"]
    expected += ["'lr'", "batch_size is 'x'", "'flip'. Did you mean 'flyp'", "'epoch'. Did you mean 'epochs'", "pull"]
    assert [part for part in expected if part not in text] == []


ENTRIES = [
    "training = 3",
    "overrides = 3",
    "[overrides]\ntp_ft = 3",
    "methods = 'tp_ft'",
    "methods = [['a']]",
    "seeds = 3",
    "seeds = [0.5]",
]
ENTRIES += ["seeds = [true]", "alphas = ['a']", "alphas = 1", "alphas = [nan]", "corruptions = 'yes'", "shots = 'a'", "precision = 3"]


@pytest.mark.parametrize("entry", [*ENTRIES, "model = 3"])
def test_entries_of_a_recipe_that_have_another_form(entry: str, tiny_root: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(entry)
    code, text = run("compare", tiny_root, "--recipe", "mine.toml", "--out", "run")
    assert (code, (tmp_path / "run").exists()) == (2, False)
    assert entry.split()[0].strip("[]s") in text
    assert "must be" in text or "not in 0..1" in text


@pytest.mark.parametrize(("content", "message"), [(b"model = ", "not valid TOML"), (b'model = "caf\xe9"', "Save it as UTF-8")])
def test_recipes_that_are_no_text(content: bytes, message: str, tiny_root: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    assert message in refused("fit", tiny_root, "--recipe", "mine.toml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["comprae"], "No such command 'comprae'. Did you mean 'compare'?"),
        (["fit"], "Missing argument 'data'"),
        (["tune", "data"], "Missing option '--method'"),
        (["compare", "data", "--method", "flyp"], "--methods"),
        (["methods", "flip"], "Did you mean 'flyp'?"),
        (["--bogus"], "No such option: --bogus"),
    ],
)
def test_usage(arguments: list[str], message: str, run: Run) -> None:
    code, text = run(*arguments)
    assert code == 2
    assert message in text


# --- finished folders ---
@pytest.fixture(scope="session")
def fitted(tiny_root: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        options = ["--method", "tp_ft", "--model", f"local-dir:{tiny_folder}", "--precision", "fp32", "--set", "steps=2", "--out", str(out)]
        patch.setattr(sys, "argv", ["surefoot", "fit", str(tiny_root), *options])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert not stop.value.code
    return out


@pytest.fixture
def finished(fitted: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may damage."""
    return Path(shutil.copytree(fitted, tmp_path / "fit"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict none {image}", "none/surefoot.json is not there. Give the folder of a model"),
        ("predict fit none.png", "There is no file or folder none.png"),
        ("predict fit {empty}", "holds no images"),
        ("predict fit {text}", "cannot be read as an image (no image format that is known)"),
        ("predict fit {text} {image} --out all.csv", "cannot be read as an image"),
        ("predict fit {image} --out all.txt", "must end in .csv or .jsonl"),
        ("predict fit {image} --out {empty}/../folder.csv", "folder.csv, which is a folder"),
        ("predict fit {image} --out {text}/all.csv", "is a file. Give another one by --out"),
        ("predict fit {image} --classes bar", "'bar' is empty, or one of those that were trained on"),
        ("predict fit {image} --classes a,b,a", "--classes holds 'a' twice"),
        ("evaluate none {data} --out run", "none/surefoot.json is not there"),
        ("evaluate fit none --out run", "'none' is neither a folder nor a manifest"),
        ("evaluate fit {data} --out {text}", "is a file. Give another one by --out"),
        ("evaluate fit {data} --out run --precision int8", "Unknown precision 'int8'"),
        ("frontier none", "none/job.json is not there"),
        ("frontier fit --alphas 0,2", "alpha 2.0 is not in 0..1"),
        ("frontier fit --alphas x", "--alphas is 'x'; it must be a comma-separated list of numbers"),
        ("report none", "holds no evaluation"),
        ("diff none:tp_ft fit:tp_ft", "There are no results in none. Give a folder"),
        ("diff fit fit", "Write FOLDER:METHOD@ALPHA"),
        ("diff fit:flip fit:tp_ft", "Unknown method in fit 'flip'"),
        ("diff fit:tp_ft@0.123 fit:tp_ft", "Its alphas: 0, 0.1"),
        ("diff fit:tp_ft@x fit:tp_ft", "The alpha 'x' is no number"),
        ("diff fit:zero_shot@0.5 fit:tp_ft", "gives zero_shot an alpha"),
        ("diff fit:tp_ft fit:zero_shot --on tset", "Unknown column 'tset'. Did you mean 'test'?"),
    ],
)
def test_commands_on_finished_folders(arguments: str, message: str, finished: Path, tiny_root: Path, refused: Refused) -> None:
    places = {"empty": finished.with_name("empty"), "text": finished.with_name("text.png")}
    places["text"].write_text("no image")
    places["empty"].mkdir()
    finished.with_name("folder.csv").mkdir()
    filled = arguments.format(**places, image=tiny_root / "test/box/0.png", data=tiny_root)
    assert message in refused(*filled.split())


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b'{"plan": {}}', b'{"plan": 3}', b"\xff"])
def test_a_damaged_job(content: bytes, finished: Path, refused: Refused) -> None:
    (finished / "job.json").write_bytes(content)
    assert "fit/job.json is damaged" in refused("frontier", "fit")


PLANS = [("methods", 3), ("methods", "tp_ft"), ("methods", [3]), ("training", 3), ("training", {"epochs": 0})]


@pytest.mark.parametrize(("entry", "value"), PLANS)
def test_a_job_with_another_plan(entry: str, value: object, finished: Path, refused: Refused) -> None:
    job = json.loads((finished / "job.json").read_text())
    (finished / "job.json").write_text(json.dumps({**job, "plan": {**job["plan"], entry: value}}))
    assert "fit/job.json is damaged" in refused("frontier", "fit")


@pytest.mark.parametrize("content", [b"[]", b"\xff"])
def test_damaged_advice_is_measured_again(content: bytes, finished: Path, run: Run, tiny_root: Path, tiny_folder: Path) -> None:
    (finished / "advice.json").write_bytes(content)
    options = ["--method", "tp_ft", "--model", f"local-dir:{tiny_folder}", "--precision", "fp32", "--set", "steps=2", "--out", "fit"]
    code, text = run("fit", tiny_root, *options)
    assert code == 0, text
    assert "Measuring a few steps" in text


def test_names_that_are_no_unicode_or_hold_brackets_are_shown(finished: Path, tiny_root: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in (b"\xff.png", b"[red].png"):
        shutil.copy(tiny_root / "test/box/0.png", os.fsencode(folder) + b"/" + name)
    code, text = run("predict", finished, folder, "--out", "all.csv")
    assert code == 0, text
    assert "[red].png" in text
    assert len((tmp_path / "all.csv").read_bytes().splitlines()) == 3
    code, text = run("predict", finished, os.fsdecode(b"odd/\xfe.png"))
    assert code == 2
    assert "There is no file or folder odd/?.png" in text
