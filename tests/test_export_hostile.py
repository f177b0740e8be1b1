"""Exports in bad hands: names full of markup, a model that is its own target, kills and signals in the middle, folders with secrets."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from conftest import typed
from safetensors.torch import save_file

from surefoot import records, stopping
from surefoot.errors import DataError, ModelError, SettingError
from surefoot.export import export, push
from surefoot.export.card import code
from surefoot.export.transformers_files import alike
from surefoot.folders import check_apart, whole_folder
from surefoot.foreign import convert
from surefoot.records import Evaluation

yaml = pytest.importorskip("yaml")
NAMES = ["AT&amp;T", "a|b", "<script>x</script>", "`tick`", "[a](b)", "日本", "twice", "twice"]
BASE = "hf-hub:me/clip`<b>\nlicense: mit"
SETTINGS = {"learning_rate": 1e-3, "model": "local-dir:/home/somebody/clip"}


@pytest.fixture
def made(tiny_folder: Path, tmp_path: Path) -> Path:
    """A classifier whose names are markup."""
    return classifier(tiny_folder, tmp_path / "run" / "model")


def classifier(tiny_folder: Path, to: Path, **changes: object) -> Path:
    shutil.copytree(tiny_folder, to)
    card: dict[str, Any] = {
        "class_names": NAMES, "templates": ["a `{}`"], "predict": "head", "method": "tp_ft", "alpha": 1.0, "base": BASE,
        "origin": {"seed": 0, "data": "d", "weights": "w", "settings": SETTINGS},
    } | changes  # fmt: skip
    (to / "surefoot.json").write_text(json.dumps(card))
    save_file({"weight": torch.zeros(len(card["class_names"]), 16), "bias": torch.zeros(len(card["class_names"]))}, to / "head.safetensors")
    return to


def measure(run: Path, accuracy: float, **changes: object) -> None:
    given: dict[str, Any] = {
        "method": "tp_ft", "seed": 0, "alpha": 1.0, "dataset": "d", "accuracy": {"test": accuracy, "unseen/<i>x</i>": 0.3},
        "num_images": {}, "answers": "", "settings": SETTINGS, "settings_hash": "h", "provenance": {"data": "d", "weights": "w"},
    } | changes  # fmt: skip
    records.append(run, Evaluation(**given))


def test_names_full_of_markup_stay_names(made: Path, tmp_path: Path) -> None:
    measure(made.parent, 0.5, method="zero_shot", alpha=0.0)
    measure(made.parent, 0.75)
    card = (export(made, "open_clip", tmp_path / "out", licence="a: b\nbase_model: evil") / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "open_clip", "pipeline_tag": "zero-shot-image-classification", "license": "a: b\nbase_model: evil",
        "base_model": BASE.removeprefix("hf-hub:"), "tags": ["clip", "robust-fine-tuning", "surefoot"],
    }  # fmt: skip
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", re.sub(r"```python.*?```", "", body, flags=re.S))
    assert not re.search(r"<(script|b|i)>", outside)
    assert "AT&amp;amp;T" in body and r"a\|b" in body and r"\`tick\`" in body and r"\[a\](b)" in body
    assert "75.0 %" in body and "/home/somebody" not in card


@pytest.mark.parametrize("text", ["a", "a`b", "``", "`a``b`"])
def test_spans_of_code_end_where_they_should(text: str) -> None:
    fence = re.match("`+", code(text)).group()  # type: ignore[union-attr]
    inside = code(text)[len(fence) : -len(fence)]
    assert fence not in re.findall("`+", inside) and inside.strip() == text


def test_figures_of_a_run_that_followed_under_other_settings_are_left_out(made: Path, tmp_path: Path) -> None:
    measure(made.parent, 0.5, method="zero_shot", alpha=0.0)
    measure(made.parent, 0.75)
    measure(made.parent, 0.91, settings={**SETTINGS, "learning_rate": 1e-2}, settings_hash="other")
    card = (export(made, "open_clip", tmp_path / "out") / "README.md").read_text()
    assert "91.0" not in card and "75.0" not in card and "No records of this model" in card
    measure(made.parent, 0.75)
    measure(made.parent, 0.91, seed=1, settings={"learning_rate": 1.0}, settings_hash="other")  # another seed may follow
    assert "75.0 %" in (export(made, "open_clip", tmp_path / "again") / "README.md").read_text()


def test_a_model_does_not_take_its_own_place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(path.name for path in made.iterdir())
    for model in (made, made.parent):
        with pytest.raises(SettingError, match=r"model is what is read.*would take its place.*--out"):
            export(model, "onnx", made, overwrite=True)
    (outer := tmp_path / "outer").mkdir()
    (outer / "surefoot.json").write_text("{}")
    inner = shutil.copytree(made, outer / "inner")
    with pytest.raises(SettingError, match="is what is read"):
        export(inner, "open_clip", outer, overwrite=True)
    (file := made / "a.pt").write_bytes(b"x")
    with pytest.raises(SettingError, match=r"a\.pt is what is read"):
        convert(file, made, overwrite=True)
    file.unlink()
    (file := tmp_path / "a.pt").write_bytes(b"x")
    with pytest.raises(SettingError, match="is what is read"):
        convert(file, made, base=f"local-dir:{made}", overwrite=True)
    assert sorted(path.name for path in made.iterdir()) == before
    monkeypatch.chdir(tmp_path)
    check_apart(Path("openai"), Path("openai"))  # a tag, no folder


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_a_signal_at_any_moment_leaves_the_old_folder_or_the_new_one(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out := tmp_path / "out").mkdir()
    (out / "surefoot.json").write_text("old")
    replace, hit = Path.replace, {"before": ("out", "old"), "between": ("new", "out"), "after": ("new", "out")}[when]

    def signalled(self: Path, target: Path) -> Path:
        at = (self.name, Path(target).name) == hit
        if at and when != "after":
            monkeypatch.setattr(Path, "replace", replace)
            raise stopping.Stopped(signal.SIGTERM)
        moved = replace(self, target)
        if at:
            raise stopping.Stopped(signal.SIGTERM)
        return moved

    monkeypatch.setattr(Path, "replace", signalled)
    with pytest.raises(stopping.Stopped), whole_folder(out, overwrite=True) as folder:
        (folder / "surefoot.json").write_text("new")
    assert (out / "surefoot.json").read_text() == ("new" if when == "after" else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def killed(out: Path, *, moved: bool) -> Path:
    """What a process that was killed while it wrote `out` left, before or after it took away what stood there."""
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    place = out.parent / f".{out.name}.{socket.gethostname()}-{ended.pid}.abc.part"
    (place / "new").mkdir(parents=True)
    (place / "new" / "half").write_text("x")
    if moved:
        out.rename(place / "old")
    return place


@pytest.mark.parametrize("moved", [False, True])
def test_what_a_kill_left_is_cleared_away_and_told(moved: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (out := tmp_path / "out").mkdir()
    (out / "surefoot.json").write_text("old")
    place = killed(out, moved=moved)
    with caplog.at_level(logging.WARNING), pytest.raises(SettingError, match="--overwrite"), whole_folder(out, overwrite=False):
        pytest.fail("what came back is not to be replaced")
    assert f"{out} was being written by process" in caplog.text
    assert ("what stood there before is back" in caplog.text) is moved
    assert (out / "surefoot.json").read_text() == "old" and not place.exists()
    with whole_folder(out, overwrite=True) as folder:
        (folder / "surefoot.json").write_text("new")
    assert (out / "surefoot.json").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_others_are_writing_is_left_alone(tmp_path: Path) -> None:
    own, host = f"-{os.getppid()}.x.part", socket.gethostname()
    others = [
        f".out.{host}{own}",
        f".out.elsewhere{own.replace(str(os.getppid()), '4194305')}",
        f".outer.{host}-4194305.x.part",
        ".out.part",
    ]
    for name in others:
        (tmp_path / name).mkdir()
    with whole_folder(tmp_path / "out", overwrite=False):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "out"])


def test_a_parent_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with (
        pytest.raises(DataError, match=r"out cannot be written .*Permission denied.*--out"),
        whole_folder(tmp_path / "out", overwrite=False),
    ):
        pass


def test_names_that_tokenizers_read_differently_are_told_and_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    ours = {"a dog": [1, 5, 2, 0, 0], "AT&amp;T": [1, 6, 2, 0, 0], "long": [1, 5, 5, 5, 2], "begins alike": [1, 5, 2, 7, 0]}
    theirs = {"a dog": [1, 5, 2], "AT&amp;T": [1, 6, 6, 2], "long": [1, 5, 5, 5, 2], "begins alike": [1, 5, 2]}
    model: Any = SimpleNamespace(tokenize=lambda texts: torch.tensor([ours[text] for text in texts]))
    with caplog.at_level(logging.WARNING):
        found = alike(lambda texts, **_: {"input_ids": [theirs[text] for text in texts]}, model, {name: name for name in ours})
    assert found == ["a dog", "long"]
    assert "reads 2 class names in another way ('AT&amp;T', 'begins alike')" in caplog.text


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """A hub that raises what it is given, or takes everything."""
    raises: list[Exception] = []

    def upload(**_: object) -> str:
        if raises:
            raise raises[0]
        return "address"

    made = SimpleNamespace(create_repo=lambda repo, **_: SimpleNamespace(repo_id=repo), upload_folder=upload)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    return raises


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    for name in ("README.md", "surefoot.json", "samples.png", ".gitattributes", ".git/.hidden"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("x")
    return tmp_path / "out"


@pytest.mark.parametrize("name", [".env", "deep/.netrc", "link", "deep/link", "to a folder"])
def test_what_nobody_means_to_publish_is_not_uploaded(name: str, folder: Path, hub: list[Exception], tmp_path: Path) -> None:
    assert push(folder, "anna/birds") == "address"
    (secret := tmp_path / "id_rsa").write_text("secret")
    (folder / name).parent.mkdir(exist_ok=True)
    if "." in name:
        (folder / name).write_text("secret")
    else:
        (folder / name).symlink_to(tmp_path if "folder" in name else secret)
    with pytest.raises(SettingError, match=rf"holds what no export writes: {re.escape(name)}\. All files"):
        push(folder, "anna/birds")


def test_no_error_shows_the_token(folder: Path, hub: list[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.append(OSError("Illegal header value b'Bearer hf_secret' for https://anna:pass@proxy:1/x"))
    with pytest.raises(ModelError) as told:
        push(folder, "anna/birds")
    assert "hf_secret" not in str(told.value) and "pass" not in str(told.value) and "https://proxy:1/x" in str(told.value)
    for token in ("hf_sécret", "hf_\x01secret", "hf\nsecret"):
        monkeypatch.setattr(huggingface_hub, "get_token", lambda token=token: token)
        with pytest.raises(SettingError, match="signs that no token has") as refused:
            push(folder, "anna/birds")
        assert "secret" not in str(refused.value)


def test_a_card_that_the_hub_does_not_take_is_a_sentence(folder: Path, hub: list[Exception]) -> None:
    hub.append(ValueError("Invalid metadata in README.md."))
    with pytest.raises(ModelError, match=r"was not uploaded: Invalid metadata in README\.md.*Correct .*README\.md"):
        push(folder, "anna/birds")


def test_the_command_tells_of_its_own_place(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code_, said = typed(monkeypatch, capsys, "export", made.parent, "--to", "open_clip", "--out", made, "--overwrite")
    assert code_ == 2 and "would take its place" in said
