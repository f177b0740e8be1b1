"""Damaged and hostile checkpoints: each is a sentence, in little time and memory; none is a traceback, a hang or a crash."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import typed
from torch import Tensor, nn

from surefoot.errors import DataError, SurefootError
from surefoot.foreign import archive, convert
from surefoot.foreign.convert import shape_of
from surefoot.foreign.modules import Found
from surefoot.foreign.pickles import Global, Inert, Machine

PATH = b"cpathlib\nPath\n"


def read(data: bytes) -> Any:  # noqa: ANN401
    return Machine({}, lambda _: None).load(data)


def grown(first: bytes, step: Callable[[int], bytes], times: int) -> bytes:
    """A value in memo 1, and what it becomes: each step takes it from there and puts the next one there."""
    return first + b"q\x010" + b"".join(step(number) + b"q\x010" for number in range(times)) + b"h\x01"


HOSTILE = {
    "a mark that is missing": b"l.",
    "a key that is hashed for ever": b"}" + grown(b")", lambda _: b"h\x01h\x01\x86", 100) + b"K\x01s.",
    "a key as deep as Python's stack": b"}N" + b"\x85" * 5000 + b"K\x01s.",
    "a set's item that is hashed for ever": b"\x8f(" + grown(b")", lambda _: b"h\x01h\x01\x86", 100) + b"\x90.",
    "pairs whose keys are": b"ccollections\nOrderedDict\n](" + grown(b")", lambda _: b"h\x01h\x01\x86", 100) + b"K\x01\x86e\x85R.",
    "a list that is written out for ever": PATH + grown(b"]", lambda _: b"](h\x01h\x01e", 100) + b"\x85R.",
    "a text that doubles": PATH + b"q\x000" + grown(b"X\x02\x00\x00\x00ab", lambda _: b"h\x00h\x01h\x01\x86R", 60) + b".",
    "copies of a copy": b"cbuiltins\nlist\nq\x000](" + b"N" * 1000 + b"eq\x01" + b"h\x00h\x01\x85R" * 400 + b"\x85.",
    "states that are copied": b"](K\x01K\x02t0}(" + b"".join(b"K" + bytes([k]) + b"N" for k in range(200)) + b"uq\x010"
    + b"csrc.a\nB\n)\x81h\x01}\x86b" * 100 + b"\x85.",
    "a name without end": b"csrc.a\n" + b"A" * 10**6 + b"\n.",
    "a name with a colour": b"csrc.a\n\x1b[31mA\n.",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_small_pickles_that_ask_for_much_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"checkpoint|short text|cannot be a name|mark is missing"):
        read(HOSTILE[name])


def test_what_checkpoints_hold_is_still_read() -> None:
    value = {(1, "a"): {frozenset({2}): OrderedDict({"x": 1})}, "long": b"\xff" * 5000, "set": set(range(300))}
    for protocol in range(2, 6):
        assert read(pickle.dumps(value, protocol)) == value


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_every_damaged_byte_is_a_sentence(tmp_path: Path) -> None:
    whole, file, draw = (
        saved({"m": nn.Linear(3, 2), "b": torch.zeros(2).half(), "x": [1, (2, 3), {4}]}),
        tmp_path / "a.pt",
        random.Random(0),
    )
    directory, refused = whole.find(b"PK\x01\x02"), 0
    for number in range(200):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 1, 3))):
            damaged[draw.randrange(directory if number % 2 else 0, len(whole))] = draw.randrange(256)
        if number % 10 == 0:
            del damaged[slice(*sorted((draw.randrange(len(whole)), draw.randrange(len(whole)))))]
        file.write_bytes(damaged)
        try:
            archive.load(file)
        except SurefootError as error:
            assert str(error).startswith(str(file))
            refused += 1
    assert refused > 60


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file := tmp_path / "a.pt").write_bytes(saved({"a": torch.zeros(1)}))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(DataError, match=r"a\.pt cannot be read \(Permission denied\)"):
        archive.load(file)


def test_one_storage_that_a_thousand_tensors_copy_is_refused(tmp_path: Path) -> None:
    numbers = torch.zeros(10**5)
    (file := tmp_path / "a.pt").write_bytes(saved({str(k): numbers[k:] for k in range(1000)}))
    with pytest.raises(DataError, match="share their numbers so often"):
        archive.load(file)
    file.write_bytes(saved({str(k): numbers.view(-1) for k in range(4)}))  # tied weights
    assert all(torch.equal(tensor, numbers) for tensor in archive.load(file).values())


def test_parts_that_overlap_are_refused(tmp_path: Path) -> None:
    """Two entries of the archive's directory for the same bytes, as one that unpacks to far more than it is has many."""
    whole = bytearray(saved({"a": torch.zeros(4000)}))
    start = whole.find(b"PK\x01\x02")
    end = whole.rfind(b"PK\x05\x06")
    entry = next(whole[k:] for k in range(start, end) if whole[k : k + 4] == b"PK\x01\x02" and b"data/0" in whole[k : k + 60])
    length = 46 + sum(struct.unpack("<HHH", entry[28:34]))
    more = bytes(entry[:length]) * 3
    (size,) = struct.unpack("<I", whole[end + 12 : end + 16])
    tail = whole[end:]
    tail[8:12] = struct.pack("<HH", *(number + 3 for number in struct.unpack("<HH", tail[8:12])))
    tail[12:16] = struct.pack("<I", size + len(more))
    tail[16:20] = struct.pack("<I", start)
    directory = whole[start : start + size]
    (file := tmp_path / "a.pt").write_bytes(whole[:start] + directory + more + tail)
    with pytest.raises(DataError, match="overlap"):
        archive.load(file)


def test_a_storage_without_numbers_gives_none(tmp_path: Path) -> None:
    (file := tmp_path / "a.pt").write_bytes(saved({"a": torch.zeros(2)}))
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"" if "/data/" in name else old.read(name))
    with pytest.raises(DataError, match="fewer numbers"):
        archive.load(tmp_path / "b.pt")


@pytest.mark.parametrize("state", [
    {"_parameters": None, "_modules": {}}, {"_parameters": {}, "_modules": [1]}, {"_parameters": 3, "_modules": None},
    {"_parameters": {}, "_modules": {}, "_non_persistent_buffers_set": 3, "_buffers": {"a": torch.zeros(1)}},
    {"_parameters": {}, "_modules": {}, "val_preprocess": Inert(Global("t", "Compose"), state={"transforms": 3})},
    {"_parameters": {}, "_modules": {}, "val_preprocess": Inert(Global("t", "Compose"), state={"transforms": [
        Inert(Global("t", "Resize"), state={"size": []}), Inert(Global("t", "Normalize"), state={})]})},
])  # fmt: skip
def test_objects_that_are_not_what_their_class_has_are_a_sentence(
    state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "load", lambda _: Inert(Global("src.a", "B"), state=state))
    with pytest.raises(DataError, match=r"a\.pt.* (holds a model whose parts are not|holds no)"):
        convert(tmp_path / "a.pt", tmp_path / "out")


def clip_of(**changes: Tensor | None) -> dict[str, Tensor]:
    """The weights that tell the sizes of a CLIP, of width 8 and 4, with one block in each tower; some of them changed."""
    state: dict[str, Tensor | None] = {
        "visual.conv1.weight": torch.zeros(8, 3, 4, 4), "visual.positional_embedding": torch.zeros(5, 8), "visual.proj": torch.zeros(8, 6),
        "positional_embedding": torch.zeros(7, 4), "token_embedding.weight": torch.zeros(9, 4),
        **{f"{tower}resblocks.0.{name}": torch.zeros(rows * size, size) for tower, size in (("visual.transformer.", 8), ("transformer.", 4))
           for name, rows in (("attn.in_proj_weight", 3), ("mlp.c_fc.weight", 4))},
    } | {name.replace("__", "."): value for name, value in changes.items()}  # fmt: skip
    return {name: tensor for name, tensor in state.items() if tensor is not None}


HEADS = {"visual.transformer.resblocks.0.attn.": 2, "transformer.resblocks.0.attn.": 2}


def test_a_clips_sizes_are_read_off_its_weights() -> None:
    config = shape_of(Path("a.pt"), Found({}, heads=HEADS), clip_of())
    assert config["vision_cfg"] == {"image_size": 8, "patch_size": 4, "head_width": 4, "width": 8, "layers": 1, "mlp_ratio": 4.0}


@pytest.mark.parametrize("changes", [
    {"token_embedding__weight": torch.zeros(10**9, 0)},  # nothing in the file; four gigabytes in the model
    {"token_embedding__weight": torch.zeros(9, 3)},
    {"visual__conv1__weight": torch.zeros(10**5, 3, 1, 1)},
    {"visual__conv1__weight": torch.zeros(8, 4, 4, 4)},
    {"visual__conv1__weight": torch.zeros(8, 3, 4, 2)},
    {"visual__proj": torch.zeros(9, 6)},
    {"visual__proj": torch.zeros(8, 0)},
    {"visual__transformer__resblocks__7__mlp__c_fc__weight": torch.zeros(1)},
    {"transformer__resblocks__0__attn__in_proj_weight": torch.zeros(12, 5)},
    {"visual__positional_embedding": torch.zeros(1, 8)},
])  # fmt: skip
def test_weights_that_do_not_fit_each_other_make_no_model(changes: dict[str, Tensor]) -> None:
    with pytest.raises(DataError, match=r"a\.pt holds no CLIP with a ViT.*--base"):
        shape_of(Path("a.pt"), Found({}, heads=HEADS), clip_of(**changes))


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = clip_of(visual__proj=torch.full((8, 6), float("nan")))
    (file := tmp_path / "a.pt").write_bytes(saved(state))
    with pytest.raises(DataError, match=r"a\.pt holds numbers that are not finite, in visual\.proj.*earlier checkpoint"):
        convert(file, tmp_path / "out", base="iconclip")


def test_what_a_file_says_does_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (file := tmp_path / "a.pt").write_bytes(saved({"visual.a\x1b]0;owned\x07": torch.zeros(1), "\x1b[2Jb": torch.zeros(1)}))
    code, said = typed(monkeypatch, capsys, "import", file, "--base", "iconclip", "--out", tmp_path / "out")
    assert code == 2 and "\x1b" not in said and "\ufffd[2Jb" in said
