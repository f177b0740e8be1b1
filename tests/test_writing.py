"""One command at a time writes into an anchors folder; what was killed keeps nobody out."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import typed

from surefoot.data import writing
from surefoot.data.writing import alone
from surefoot.errors import DataError
from surefoot.folders import runs, whole_file

LOCK = ".caption.lock"
HOST = socket.gethostname()


def gone() -> int:
    """The number of a process that ran and ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def left_behind(folder: Path, **changes: object) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"pid": gone(), "host": HOST, **changes})
    (folder / LOCK).write_text(text)
    return text


def caption(folder: Path) -> Any:  # noqa: ANN401
    return alone(folder, "caption", "--anchors", "what was captioned is kept")


@pytest.mark.parametrize("ending", [None, DataError, KeyboardInterrupt])
def test_the_lock_names_the_process_and_goes_with_it(ending: type[BaseException] | None, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "now"
    try:
        with caption(folder):
            assert json.loads((folder / LOCK).read_text()) == {"pid": os.getpid(), "host": HOST}
            if ending is not None:
                raise ending
    except (DataError, KeyboardInterrupt) as error:
        assert type(error) is ending
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("owner", "who"),
    [
        (lambda: {"pid": os.getppid(), "host": HOST}, f"process {os.getppid()} on {HOST}"),
        (lambda: {"pid": 1, "host": HOST}, f"process 1 on {HOST}"),  # of another user, perhaps
        (lambda: {"pid": gone(), "host": "elsewhere"}, "on elsewhere"),
        (lambda: {"pid": 10**30, "host": HOST}, "process 1000"),
        (lambda: {"pid": -1, "host": HOST}, "a process that does not say its name"),
        (lambda: {"host": HOST}, "a process that does not say its name"),
        (lambda: [1], "a process that does not say its name"),
    ],
)
def test_who_may_still_be_at_it_is_named_and_left_alone(owner: Callable[[], object], who: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(text := json.dumps(owner()))
    with pytest.raises(DataError) as error, caption(tmp_path):
        pytest.fail("the folder was taken")
    told = str(error.value)
    assert told.startswith(f"{tmp_path} is being written by another 'surefoot caption': ")
    assert who in told
    assert "another place by --anchors" in told
    assert f"delete {tmp_path / LOCK}" in told
    assert (tmp_path / LOCK).read_text() == text


def test_an_empty_lock_is_one_that_is_being_made(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    with pytest.raises(DataError, match="does not say its name"), caption(tmp_path):
        pytest.fail("the folder was taken")


@pytest.mark.parametrize("pid", [gone, os.getpid])
def test_the_lock_of_a_process_that_is_gone_is_taken_over(pid: Callable[[], int], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    left_behind(tmp_path, pid=pid())  # its own number: that of a killed one before it, as in a container
    with caplog.at_level(logging.WARNING), caption(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    (told,) = caplog.messages
    assert told.startswith(f"{tmp_path / LOCK} was left behind by process ")
    assert list(tmp_path.iterdir()) == []


def test_another_command_writes_other_files(tmp_path: Path) -> None:
    with caption(tmp_path), alone(tmp_path, "retrieve", "--anchors", "pairs are kept"):
        assert {path.name for path in tmp_path.iterdir()} == {LOCK, ".retrieve.lock"}


def test_a_lock_that_is_not_ours_any_more_is_left(tmp_path: Path) -> None:
    with caption(tmp_path):
        text = left_behind(tmp_path)
    assert (tmp_path / LOCK).read_text() == text


def test_a_lock_that_took_the_place_of_the_old_one_is_put_back(tmp_path: Path) -> None:
    text = left_behind(tmp_path)
    assert not writing._moved_aside(tmp_path / LOCK, "what was read before")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(LOCK, text)]
    (tmp_path / LOCK).unlink()
    assert not writing._moved_aside(tmp_path / LOCK, text), "another one was faster"


def test_a_full_disk_leaves_no_lock_that_keeps_everybody_out(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # a file may be made, and not be written
    try:
        with pytest.raises(DataError, match=r"cannot be written .* by --anchors"), caption(tmp_path):
            pytest.fail("the folder was taken")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["caption", "retrieve"])
def test_two_commands_of_a_kind_do_not_write_into_one_folder(
    command: str, tiny_root: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    table = tmp_path / "given.csv"
    rows = [str(path.relative_to(tiny_root)) for path in sorted((tiny_root / "train").rglob("*.png"))]
    table.write_text("path,caption\n" + "".join(f"{row},a shape\n" for row in rows))
    pool = tmp_path / "pool"
    pool.mkdir()
    shutil.copy(tiny_root / rows[0], pool / "0.png")
    (pool / "manifest.csv").write_text("path,caption\n0.png,a shape\n")
    own = {"caption": ["--captioner", f"csv:{table}"], "retrieve": ["--candidates", pool, "--model", f"local-dir:{tiny_folder}"]}
    folder, result = tmp_path / "anchors", {"caption": "captions.jsonl", "retrieve": "pairs.jsonl"}[command]
    arguments = [command, tiny_root, "--anchors", folder, *own[command]]
    other = subprocess.Popen(["sleep", "60"])
    try:
        folder.mkdir()
        (folder / f".{command}.lock").write_text(json.dumps({"pid": other.pid, "host": HOST}))
        code, text = typed(monkeypatch, capsys, *arguments)
        assert (code, (folder / result).exists()) == (2, False)
        assert f"is being written by another 'surefoot {command}': process {other.pid} on {HOST}." in text
    finally:
        other.kill()
        other.wait()
    code, text = typed(monkeypatch, capsys, *arguments)
    assert (code, (folder / result).is_file()) == (0, True), text
    assert not list(folder.glob(".*"))


def test_a_file_that_is_not_finished_leaves_nothing_and_the_one_before(tmp_path: Path) -> None:
    (path := tmp_path / "page.html").write_text("before")
    with pytest.raises(KeyError), whole_file(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"] and path.read_text() == "before"


def test_the_number_of_this_process_is_that_of_one_before_it() -> None:
    assert runs(os.getppid()) and not runs(os.getpid()) and not runs(2**22 + 1)
