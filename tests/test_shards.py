"""A member of a tar file is an image like any other: its bytes, its stamp, its errors; what a tar from a stranger may hold."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import tarfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surefoot.data import open_manifest, read_image, shards
from surefoot.data.digest import digests
from surefoot.data.pictures import look
from surefoot.errors import DataError, MissingDataError
from surefoot.predict import find_images


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no index in memory."""
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    for known in (shards._places, shards._elsewhere, shards._open, shards._remote):
        known.clear()
    return tmp_path / "cache"


def picture(number: int, suffix: str = "png") -> bytes:
    """Eight by eight pixels that tell the number."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format={"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tif": "TIFF"}[suffix])
    return file.getvalue()


def shard(path: Path, members: Mapping[str, bytes], *more: tarfile.TarInfo) -> Path:
    """A tar of some files, and of members without bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in more:
            tar.addfile(member)
    return path


def test_members_are_read_as_files_are(tmp_path: Path) -> None:
    files = {f"a/{number}.{suffix}": picture(number, suffix) for number, suffix in enumerate(("png", "jpg", "webp", "tif"))}
    tar = shard(tmp_path / "0.tar", {"./" + name: content for name, content in files.items()})
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
        assert shards.content(tar / name) == content
        assert shards.content(tar / name, most=3) == content[:3]
        assert read_image(tar / name).tobytes() == read_image(tmp_path / name).tobytes()
    inside, outside = [tar / name for name in files], [tmp_path / name for name in files]
    assert digests(inside) == digests(outside)
    assert look(inside) == look(outside)
    assert [shards.stamp(path) for path in inside] == [(len(content), tar.stat().st_mtime_ns) for content in files.values()]
    assert all(map(shards.is_there, inside))
    assert not shards.is_there(tar / "b.png")
    assert not shards.is_there(tmp_path / "1.tar" / "b.png")
    assert find_images([tar, tar / "a/1.jpg"]) == [*inside, tar / "a/1.jpg"]


def test_a_folder_called_like_a_tar_is_a_folder_and_may_hold_tars(tmp_path: Path) -> None:
    (tmp_path / "x.tar").mkdir()
    (tmp_path / "x.tar" / "1.png").write_bytes(picture(1))
    tar = shard(tmp_path / "x.tar" / "y.tar", {"z.tar/1.png": picture(2)})
    assert shards.content(tmp_path / "x.tar" / "1.png") == picture(1)
    assert shards.member_of(tar / "z.tar" / "1.png") == (tar, "z.tar/1.png")
    assert shards.content(tar / "z.tar" / "1.png") == picture(2)


def test_threads_read_more_shards_than_may_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_OPEN", 2)
    contents = {(tar, k): bytes([tar, k]) * 999 for tar in range(7) for k in range(3)}
    for tar in range(7):
        shard(tmp_path / f"{tar}.tar", {f"{k}.bin": contents[tar, k] for k in range(3)})
    paths = [tmp_path / f"{tar}.tar" / f"{k}.bin" for tar, k in contents]
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0  # noqa: PTH208
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(shards.content, paths)) == list(contents.values())
    assert len(shards._open) <= 2
    assert not before or len(os.listdir("/proc/self/fd")) <= before + 3  # noqa: PTH208


def test_an_unchanged_shard_is_walked_once_and_a_changed_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = shard(tmp_path / "0.tar", {"1.png": picture(1)})
    os.utime(tar, ns=(1, time.time_ns() - 10**11))
    walked: list[Path] = []
    walk = shards.walk
    monkeypatch.setattr(shards, "walk", lambda path: (walked.append(path), walk(path))[1])
    assert shards.content(tar / "1.png") == shards.content(tar / "1.png") == picture(1)
    shards._places.clear()  # as in a new process
    assert shards.content(tar / "1.png") == picture(1)
    assert walked == [tar]
    before = digests([tar / "1.png"])
    shard(tar, {"0.png": picture(5), "1.png": picture(2)})
    assert shards.is_there(tar / "1.png"), "as a data set is opened"
    assert shards.content(tar / "1.png") == picture(2)
    assert walked == [tar, tar]
    assert digests([tar / "1.png"]) != before


def test_a_shard_that_is_replaced_while_it_is_in_use_is_told(tmp_path: Path) -> None:
    files = {"a.png": picture(1), "a.cls": b"0", "b.png": picture(2), "b.cls": b"1"}
    tar = shard(tmp_path / "0.tar", files)
    shards.index([tar])
    os.utime(tar, ns=(1, 1))  # touched
    assert shards.content(tar / "a.png") == picture(1)
    shard(tmp_path / "new", files | {"a.cls": b"1", "b.cls": b"0"}).replace(tar)
    os.utime(tar, ns=(2, 2))
    for read in (shards.content, shards.stamp, read_image, shards.content):
        with pytest.raises(DataError, match=r"The shard .*0\.tar has changed since the data set was opened.*Run the command again"):
            read(tar / "b.png")
    shards.index([tar])
    assert shards.content(tar / "b.png") == picture(2)
    os.truncate(tar, 2000)
    with pytest.raises(DataError, match=r"0\.tar is broken"):
        shards.content(tar / "b.png")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    tar = shard(tmp_path / "0.tar", {"1.png": b"no picture", "2.heic": b"\0\0\0\x18ftypheic", "3.png": b""})
    wrong = {"1.png": "cannot be read as an image", "2.heic": "is a HEIC image", "3.png": "cannot be read", "4.png": "holds no 4.png"}
    for member, message in wrong.items():
        with pytest.raises(DataError, match=message) as error:
            read_image(tar / member)
        assert str(tar / member) in str(error.value)
    assert look([tar / "1.png"])[0].error.startswith("cannot be read as an image")
    with pytest.raises(MissingDataError, match=r"The shard .*9\.tar cannot be read"):
        shards.content(tmp_path / "9.tar" / "1.png")
    with pytest.raises(MissingDataError, match="There is no shard"):
        shards.index([tmp_path / "9.tar"])


def cut(tar: Path, length: int) -> None:
    os.truncate(tar, length)


def joined(tar: Path) -> None:
    tar.write_bytes(2 * tar.read_bytes())


def zipped(tar: Path) -> None:
    tar.write_bytes(gzip.compress(tar.read_bytes()))


def garbled(tar: Path) -> None:
    content = bytearray(tar.read_bytes())
    content[1024 + 3] ^= 0xFF  # in the second header
    tar.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tar: cut(tar, 512 + 40), "broken"),  # in the first member
        (lambda tar: cut(tar, 1024), "neither a header nor an end mark"),  # between two
        (lambda tar: cut(tar, 1024 + 100), "broken"),  # in the second header
        (lambda tar: cut(tar, 4 * 512), "neither a header nor an end mark at byte 2048 of 2048"),  # behind the last
        (lambda tar: cut(tar, 0), "broken"),
        (garbled, "broken"),
        (joined, "joined archives"),
        (zipped, "compressed; unpack it by gunzip"),
    ],
)
def test_damaged_shards_are_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    tar = shard(tmp_path / "0.tar", {"1.png": picture(1), "2.png": picture(2)})
    assert len(picture(1)) < 512
    damage(tar)
    with pytest.raises(DataError, match=message) as error:
        shards.index([tar])
    assert str(tar) in str(error.value)


def test_hostile_members_are_refused(tmp_path: Path) -> None:
    for name in ("/etc/passwd", "../1.png", "a/../../1.png", "a\\1.png"):
        with pytest.raises(DataError, match="leads out of it"):
            shards.index([shard(tmp_path / "0.tar", {name: picture(1)})])
    link = tarfile.TarInfo("1.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(DataError, match="a link or a device"):
        shards.index([shard(tmp_path / "0.tar", {"0.png": picture(0)}, link)])
    with pytest.raises(DataError, match=r"holds 1\.png twice"):
        shards.index([shard(tmp_path / "0.tar", {"1.png": b"1", "./1.png": b"2"})])
    folder = tarfile.TarInfo("a")
    folder.type = tarfile.DIRTYPE
    found = shards.index([shard(tmp_path / "0.tar", {"a/._1.png": b"", ".git/x.png": b"", "a/1.png": b"1"}, folder)])[0]
    assert [member.name for member in found.members] == ["a/1.png"]


def test_a_header_that_leads_back_to_itself_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("1.bin")
    member.size = -512
    (tmp_path / "0.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    with pytest.raises(tarfile.ReadError, match=r"1\.bin has -512 bytes"):
        list(itertools.islice(shards.walk(tmp_path / "0.tar"), 99))


def test_a_manifest_may_list_members(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", {f"{k}.png": picture(k) for k in range(4)})
    lines = [f"0.tar/{k}.png,{'ab'[k % 2]}" for k in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(["path,class", *lines]))
    split = open_manifest(tmp_path / "list.csv").split("train")
    assert [path.name for path in split.paths] == ["0.png", "2.png", "1.png", "3.png"]
    (tmp_path / "list.csv").write_text("\n".join(["path,class", *lines, "0.tar/9.png,a"]))
    with pytest.raises(MissingDataError, match=r"9\.png"):
        open_manifest(tmp_path / "list.csv")
