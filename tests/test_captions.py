"""Captions of training images: none is made twice, none is lost, and every captioner says what it would say alone."""

from __future__ import annotations

import errno
import hashlib
import logging
import shutil
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from surefoot import cli
from surefoot.anchors.captions import FILE, cache_path, caption_images, read_captions, rewrite_captions, write_captions
from surefoot.anchors.given import captions_of_csv, captions_of_data
from surefoot.data import Dataset, read_image
from surefoot.data.digest import digests
from surefoot.errors import DataError, MissingDataError, SettingError, UnknownNameError

COMMAND = sys.modules["surefoot.cli.caption"]  # the package gives the function under that name
NUM, NUM_DISTINCT = 24, 21  # training images of the tiny data, of which each class holds one twice


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Fake:
    """Says another thing of every image; is interrupted at call number `stop`."""

    def __init__(self, identity: str = "fake", stop: int | None = None) -> None:
        self.identity, self.stop, self.calls = identity, stop, list[int]()

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        if len(self.calls) == self.stop:
            raise KeyboardInterrupt
        self.calls.append(len(images))
        return [f"{self.identity} sees {hashlib.sha256(image.tobytes()).hexdigest()[:8]}" for image in images]


def paths_of(data: Dataset) -> tuple[Path, ...]:
    return data.split("train").paths


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "300"})


# ---- cache


def test_an_interrupted_run_captions_only_the_rest(tiny_data: Dataset, tmp_path: Path) -> None:
    paths, told = paths_of(tiny_data), list[tuple[int, int]]()
    with pytest.raises(KeyboardInterrupt):
        caption_images(paths, Fake(stop=2), tmp_path / "c.jsonl", batch_size=4)
    rest = Fake()
    found = caption_images(paths, rest, tmp_path / "c.jsonl", batch_size=4, on_done=lambda *done: told.append(done))
    assert rest.calls == [4, 4, 4, 1]
    assert told == [(done, NUM_DISTINCT) for done in (8, 12, 16, 20, 21)]
    assert found == [Fake()([read_image(path)])[0] for path in paths]
    again = Fake()
    assert caption_images(paths, again, tmp_path / "c.jsonl") == found
    assert again.calls == []


def test_a_stop_after_a_batch_loses_none_of_it(tiny_data: Dataset, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        caption_images(paths_of(tiny_data), Fake(), tmp_path / "c.jsonl", batch_size=4, on_done=stop)
    rest = Fake()
    caption_images(paths_of(tiny_data), rest, tmp_path / "c.jsonl", batch_size=100)
    assert rest.calls == [NUM_DISTINCT - 8]


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:-1], lambda b: b + b"\0" * 40, lambda b: b[:-9] + b"\xff\xff\n"])
def test_a_damaged_last_line_is_dropped_and_made_again(damage: Callable[[bytes], bytes], tiny_data: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    found = caption_images(paths_of(tiny_data), Fake(), file)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert caption_images(paths_of(tiny_data), Fake(), file) == found
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_damaged_line_in_the_middle_of_a_cache_is_named(tiny_data: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    caption_images(paths_of(tiny_data), Fake(), file)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:5], b'{"image": 3}\n', *lines[6:]]))
    with pytest.raises(DataError, match=r"c\.jsonl, line 6 does not hold an image"):
        caption_images(paths_of(tiny_data), Fake(), file)


def test_content_known_under_another_name_is_not_captioned_again(tiny_data: Dataset, tmp_path: Path) -> None:
    found = caption_images(paths_of(tiny_data), first := Fake(), tmp_path / "c.jsonl")
    assert sum(first.calls) == NUM_DISTINCT
    moved = [Path(shutil.copy(path, tmp_path / f"moved-{row}.png")) for row, path in enumerate(paths_of(tiny_data))]
    assert caption_images(moved, second := Fake(), tmp_path / "c.jsonl") == found
    assert second.calls == []


def test_another_captioner_has_another_cache_and_replaces_the_captions(tiny_data: Dataset, tmp_path: Path, cache: Path) -> None:
    paths = paths_of(tiny_data)[:3]
    for fake in (Fake("a"), Fake("b")):
        write_captions(tmp_path, fake.identity, digests(paths), caption_images(paths, fake, cache_path(fake.identity)))
    assert len(list((cache / "captions").iterdir())) == 2
    assert read_captions(tmp_path).captioner == "b"
    assert all(text.startswith("b sees") for text in read_captions(tmp_path).by_digest.values())
    with pytest.raises(DataError, match="is not the cache of b"):
        caption_images(paths, Fake("b"), cache_path("a"))


def test_a_full_disk_says_where_else(tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    write_captions(tmp_path, "a", ["x"], ["text"])
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"No space left on device.*--anchors"):
        write_captions(tmp_path, "b", ["x"], ["other"])
    assert read_captions(tmp_path).captioner == "a"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [FILE]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="SUREFOOT_CACHE"):
        caption_images(paths_of(tiny_data), Fake(), tmp_path / "file" / "c.jsonl")


# ---- captions.jsonl


def test_captions_come_back_without_empty_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys, texts = ["k1", "k2", "k3", "k1", "k4"], [' a "black"\ndisc ', "  ", "", "another for the same", "größer"]
    with caplog.at_level(logging.WARNING):
        write_captions(tmp_path / "new", "me", keys, texts)
    assert "2 of 4 images have an empty caption" in caplog.text
    found = read_captions(tmp_path / "new")
    assert (found.captioner, found.by_digest) == ("me", {"k1": 'a "black"\ndisc', "k4": "größer"})
    with pytest.raises(DataError, match=r"All 2 captions of me are empty.*another --prompt"):
        write_captions(tmp_path, "me", ["k1", "k2"], ["", " "])


def test_missing_and_damaged_captions_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="surefoot caption"):
        read_captions(tmp_path)
    write_captions(tmp_path, "me", ["k1", "k2"], ["one", "two"])
    lines = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    for wrong, said in {
        (lines[0], b"not json\n", lines[2]): "line 2 is damaged",
        (lines[0], lines[1], b'["k2"]\n'): "line 3 is damaged",
        (lines[0], b'{"image": "k1", "caption": null}\n'): "line 2 does not hold an image",
        (lines[0], lines[1], lines[2][:-3]): "line 3 is cut off",
        (lines[1], lines[2]): "line 1 does not name the captioner",
        (): "line 1 does not name the captioner",
    }.items():
        (tmp_path / FILE).write_bytes(b"".join(wrong))
        with pytest.raises(DataError, match=rf"captions\.jsonl, {said}.*surefoot caption"):
            read_captions(tmp_path)


# ---- captions that are there already


def csv_of(file: Path, rows: Sequence[tuple[object, str]], header: str = "path,caption") -> Path:
    file.write_text("\n".join([header, *(f'{path},"{text}"' for path, text in rows)]) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("named", ["absolute", "from the root", "from the file", "only a name"])
def test_a_csv_may_name_images_in_every_sensible_way(named: str, copy_of: Callable[[], Path], tmp_path: Path) -> None:
    from surefoot.data import open_dataset

    root = copy_of()
    for path in root.rglob("train/*/*.png"):
        path.rename(path.with_name(f"{path.parent.name}-{path.name}"))
    data = open_dataset(root)
    short = {
        "absolute": lambda path: path, "from the root": lambda path: path.relative_to(root),
        "from the file": lambda path: path.relative_to(tmp_path), "only a name": lambda path: path.name,
    }[named]  # fmt: skip
    file = csv_of(tmp_path / "c.csv", [(short(path), f"a, {row}") for row, path in reversed(list(enumerate(paths_of(data))))])
    assert captions_of_csv(file, data) == [f"a, {row}" for row in range(NUM)]


def test_a_csv_for_half_of_the_images_names_three_that_are_missing(tiny_data: Dataset, tmp_path: Path) -> None:
    file = csv_of(tmp_path / "c.csv", [(path, "text" if row else " ") for row, path in enumerate(paths_of(tiny_data)[:12])])
    with pytest.raises(DataError, match=r"13 of 24 training images have no caption in .*c\.csv, such as ") as told:
        captions_of_csv(file, tiny_data)
    assert str(told.value).count(".png") == 3
    assert str(paths_of(tiny_data)[0]) in str(told.value)


def test_rows_of_a_csv_for_no_image_are_reported(tiny_data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [(path, "text") for path in (*paths_of(tiny_data), *tiny_data.split("val").paths)]
    csv_of(file := tmp_path / "c.csv", [*rows, ("gone/1.png", "x"), ("gone/2.png", "x")])
    with caplog.at_level(logging.WARNING):
        captions_of_csv(file, tiny_data)
    assert "2 rows of c.csv belong to no image of shapes: gone/1.png (line 38), gone/2.png (line 39)" in caplog.text


def test_a_csv_that_cannot_be_used_says_why(tiny_data: Dataset, tmp_path: Path) -> None:
    first = paths_of(tiny_data)[0]
    for file, said in {
        csv_of(tmp_path / "1.csv", [("0.png", "text")]): r"line 2: \d+ images are called 0.png",
        csv_of(tmp_path / "2.csv", [(first, "text"), (first, "other")]): "two captions, in lines 2 and 3",
        csv_of(tmp_path / "3.csv", [], "path;caption"): "no column 'path'. Found: path;caption",
        csv_of(tmp_path / "4.csv", [("a,b", "c")]): "line 2 has more cells",
    }.items():
        with pytest.raises(DataError, match=said):
            captions_of_csv(file, tiny_data)
    with pytest.raises(MissingDataError, match="columns path and caption"):
        captions_of_csv(tmp_path / "none.csv", tiny_data)


def test_the_data_s_own_captions(tiny_data: Dataset) -> None:
    def captioned(*texts: str) -> Dataset:
        return replace(tiny_data, splits={**tiny_data.splits, "train": replace(tiny_data.split("train"), captions=texts)})

    assert captions_of_data(captioned(*["text"] * NUM)) == ["text"] * NUM
    with pytest.raises(DataError, match=r"shapes has no captions. Fill the column 'caption'"):
        captions_of_data(captioned())
    with pytest.raises(DataError, match="1 of 24 training images have no caption"):
        captions_of_data(captioned("", *["text"] * (NUM - 1)))


# ---- rewriting


class Fakespeare:
    """Rewrites by a table, and counts what it was asked."""

    identity = "fakespeare"

    def __init__(self, **table: str) -> None:
        self.table, self.asked = table, list[str]()

    def __call__(self, texts: Sequence[str]) -> list[str]:
        self.asked += texts
        return [self.table.get(text, "") for text in texts]


def test_each_distinct_caption_is_rewritten_once_and_kept_where_there_is_no_answer(tmp_path: Path) -> None:
    captions = ["disc", "box", "", "disc", "bar"]
    for asked in (["disc", "box", "bar"], []):
        rewriter = Fakespeare(disc="a round thing", box="a crate")
        found = rewrite_captions(captions, rewriter, tmp_path / "r.jsonl", batch_size=2)
        assert found == (["a round thing", "a crate", "", "a round thing", "bar"], 1)
        assert rewriter.asked == asked


# ---- the command


def test_the_command_with_a_csv_and_then_with_the_data_s_own(tiny_data: Dataset, tiny_root: Path, tmp_path: Path) -> None:
    file = csv_of(tmp_path / "c.csv", [(path, f"text [{row}]") for row, path in enumerate(paths_of(tiny_data))])
    result = invoke("caption", str(tiny_root), "--captioner", f"csv:{file}", "--anchors", str(tmp_path / "an chors"))
    assert result.exit_code == 0, result.output
    assert "24 captions were read from csv:" in result.output
    assert sum(f"text [{row}]" in result.output for row in range(NUM)) == 5
    assert f"surefoot compare {tiny_root} --methods flyp,arf --anchors '{tmp_path / 'an chors'}'" in result.output
    found = read_captions(tmp_path / "an chors")
    assert found.captioner.startswith("csv:c.csv, content ")
    assert {found.by_digest[key] for key in digests(paths_of(tiny_data)[1:2])} == {"text [1]"}
    refused = invoke("caption", str(tiny_root), "--captioner", "data")
    assert isinstance(refused.exception, DataError)


def test_rewritten_captions_name_both_models(tiny_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(COMMAND, "load_captioner", lambda *_, **__: Fake())
    monkeypatch.setattr(COMMAND, "TransformersRewriter", lambda *_, **__: Fakespeare())
    result = invoke(
        "caption",
        str(tiny_root),
        "--captioner",
        "hf:x",
        "--rewrite",
        "hf:y",
        "--anchors",
        str(tmp_path),
        "--base-to-new",
    )
    assert isinstance(result.exception, DataError)  # three classes cannot be halved
    result = invoke("caption", str(tiny_root), "--captioner", "hf:x", "--rewrite", "hf:y", "--anchors", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert f"{NUM_DISTINCT} captions stayed as they were" in result.output
    assert read_captions(tmp_path).captioner == "fake; rewritten by fakespeare"


def test_iconcap_is_the_default_for_embedded_data(tiny_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = types.ModuleType("surefoot.anchors.iconcap")
    module.load_iconcap = lambda device="cpu", num_beams=1: Fake(f"iconcap on {device}, {num_beams}")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "surefoot.anchors.iconcap", module)
    monkeypatch.setattr(COMMAND, "names", lambda: [str(tiny_root)])
    result = invoke("caption", str(tiny_root), "--device", "cpu", "--num-beams", "2", "--anchors", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert read_captions(tmp_path).captioner == "iconcap on cpu, 2"


@pytest.mark.parametrize(
    ("given", "meant"),
    [("iconcab", "iconcap"), ("texts.csv", "csv:texts.csv"), ("some/blip", "hf:some/blip"), ("hf:", "hf:NAME"), ("dada", "data")],
)
def test_an_unknown_captioner_gets_the_nearest_name(given: str, meant: str, tiny_root: Path) -> None:
    result = invoke("caption", str(tiny_root), "--captioner", given)
    assert isinstance(result.exception, UnknownNameError)
    assert f"Did you mean '{meant}'?" in str(result.exception)
    assert "csv:FILE" in str(result.exception)


def test_nothing_is_read_before_the_settings_are_right(tiny_root: Path, tmp_path: Path) -> None:
    for option, said in (
        (["--captioner", "csv:gone.csv"], "There is no file gone.csv"),
        (["--captioner", "data", "--prompt", "a"], "takes no --prompt"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--captioner", "data", "--rewrite", "vicuna"], "cannot rewrite"),
    ):
        result = invoke("caption", str(tmp_path / "no data"), *option)
        assert isinstance(result.exception, DataError | SettingError)
        assert said in str(result.exception)
    (tmp_path / "file").write_text("")
    captioned = invoke("caption", str(tiny_root), "--captioner", "data", "--anchors", str(tmp_path / "file"))
    assert "--anchors" in str(captioned.exception)
