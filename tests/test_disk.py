"""A disk that is full, fills up or may not be written, and Ctrl-C: a sentence instead of a traceback, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from conftest import typed

from surefoot import records
from surefoot.protocols import Judge

TRAINING = ("compare", "fit", "tune")
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tiny_root: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Train by a command on the tiny data into a folder; what it ends with, and everything that it prints."""
    own = {"compare": ["--methods", "tp_ft", "--seeds", "0"], "fit": ["--method", "tp_ft"], "tune": ["--method", "tp_ft", "--trials", "1"]}
    options = ["--model", f"local-dir:{tiny_folder}", "--precision", "fp32", "--set", "steps=2", "--set", "batch_size=8"]

    def trained(command: str, *arguments: object) -> tuple[int, str]:
        given = [str(tiny_root), *own[command], *options, "--out"] if command in TRAINING else []
        return typed(monkeypatch, capsys, command, *given, *arguments)

    return trained


@pytest.mark.parametrize("command", TRAINING)
def test_no_room_is_said_before_anything_is_written(command: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lie_about_room(monkeypatch, 1000)
    code, text = run(command, tmp_path / "run")
    assert code == 2
    assert "are free. Make room, or give another folder by --out" in text
    assert list(tmp_path.iterdir()) == []


def lie_about_room(monkeypatch: pytest.MonkeyPatch, free: int = 10**15) -> None:
    """As if so much were free; by default, as if another program took the room in the meantime."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("command", TRAINING)
def test_a_small_disk_is_left_as_it_was(command: str, small_disk: Path, run: Run) -> None:
    code, text = run(command, small_disk / "run")
    assert code == 2
    assert "Make room" in text
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("command", ["compare", "fit"])
def test_a_disk_that_fills_up_leaves_nothing_half_written(
    command: str, small_disk: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie_about_room(monkeypatch)
    code, text = run(command, small_disk / "run")
    assert code == 2, text
    assert "No space left" in text
    assert "Make room or give another folder" in text
    assert [path.name for path in small_disk.rglob("*") if path.suffix in (".part", ".safetensors", ".resume")] == []
    assert all(json.loads(line) for line in (small_disk / "run/records.jsonl").read_text().splitlines())


def fill(folder: Path) -> None:
    with (folder / "else").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("command", ["compare", "fit"])
def test_a_full_disk_gets_no_file(command: str, small_disk: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lie_about_room(monkeypatch)
    fill(small_disk)
    code, text = run(command, small_disk / "run")
    assert code == 2, text
    assert "No space left on device" in text and "Make room" in text and "by --out, and run the same command again" in text
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["else"]


def test_answers_that_do_not_fit_are_not_written(small_disk: Path, tmp_path: Path, tiny_root: Path, run: Run) -> None:
    assert run("fit", tmp_path / "run")[0] == 0
    (small_disk / "all.csv").write_text("of another day")
    fill(small_disk)
    code, text = run("predict", tmp_path / "run", tiny_root / "test/box", "--out", small_disk / "all.csv")
    assert code == 2
    assert "No space left" in text
    assert {path.name for path in small_disk.iterdir()} == {"all.csv", "else"}
    assert (small_disk / "all.csv").read_text() == "of another day"


@pytest.mark.parametrize("command", TRAINING)
def test_a_disk_that_may_only_be_read(command: str, small_disk: Path, run: Run) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    code, text = run(command, small_disk / "run")
    assert code == 2
    assert "disk may not be written. Allow it, or give another one by --out" in text


@pytest.fixture
def stopping(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], tuple[int, str]]:
    """A comparison in whose evaluation something is raised."""

    def raising(error: BaseException) -> tuple[int, str]:
        def stop(*_: object, **__: object) -> NoReturn:
            raise error

        monkeypatch.setattr(Judge, "judge_all", stop)
        return run("compare", tmp_path / "run")

    return raising


def test_ctrl_c_ends_with_a_sentence(stopping: Callable[[BaseException], tuple[int, str]], tmp_path: Path) -> None:
    code, text = stopping(KeyboardInterrupt())
    assert code == 130
    assert "Interrupted. What is finished is kept: the same command goes on from there. surefoot compare " in text
    assert text.endswith(f"--out {tmp_path / 'run'}")
    assert "Traceback" not in text


@pytest.mark.slow
def test_ctrl_c_on_a_real_process(tiny_root: Path, tiny_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from surefoot.cli import main; main()", "compare", str(tiny_root), "--out", str(tmp_path / "run")]
    options = ["--model", f"local-dir:{tiny_folder}", "--set", "epochs=1000", "--precision", "fp32"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while process.poll() is None and not (tmp_path / "run" / records.FILE).is_file():
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, text
    assert "the same command goes on from there" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "Make room"), (errno.EDQUOT, "Make room"), (errno.EACCES, "Give another place"), (errno.EROFS, "Give another place")],
)
def test_a_disk_that_refuses_is_told(number: int, advice: str, stopping: Callable[[BaseException], tuple[int, str]]) -> None:
    code, text = stopping(OSError(number, os.strerror(number), "run/records.jsonl"))
    assert code == 2
    assert f"error run/records.jsonl: {os.strerror(number)}. {advice}" in text


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.EBADF, "Bad file descriptor"), FileNotFoundError(errno.ENOENT, "x")])
def test_a_mistake_of_ours_keeps_its_traceback(error: Exception, stopping: Callable[[BaseException], tuple[int, str]]) -> None:
    with pytest.raises(type(error)):
        stopping(error)
