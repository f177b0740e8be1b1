"""A process of several that is asked to end, or killed: the others end with a sentence, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors import safe_open
from test_distributed import PROCESSES, free_port

from surefoot import distributed
from surefoot.watching.log import events

STEPS = 300


class Started:
    """The processes of a run, started as torchrun starts them, but without it, so that each can be hit alone."""

    def __init__(self, out: Path, command: list[str]) -> None:
        self.out, self.before = out, len(events(out))
        given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(PROCESSES)}
        common = {**os.environ, **given, "LOCAL_WORLD_SIZE": str(PROCESSES), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self.processes = [
            subprocess.Popen(command, env={**common, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
            for rank in map(str, range(PROCESSES))
        ]

    def steps(self) -> list[int]:
        """Those that were logged since it was started."""
        return [event["step"] for event in events(self.out)[self.before :] if event["event"] == "step"]

    def hit(self, rank: int, number: int) -> list[tuple[int, str]]:
        """Send a process a signal once all take steps; code and words of each in the end."""
        began = time.monotonic()
        while not self.steps():
            assert all(process.poll() is None for process in self.processes) and time.monotonic() - began < 300
            time.sleep(0.05)
        self.processes[rank].send_signal(number)
        return self.ended()

    def ended(self) -> list[tuple[int, str]]:
        """Code and words of each process."""
        said = [process.communicate(timeout=300)[1] for process in self.processes]
        return [(process.returncode, words) for process, words in zip(self.processes, said, strict=True)]


@pytest.fixture
def start(tiny_root: Path, tiny_folder: Path, tmp_path: Path) -> Iterator[Callable[[], Started]]:
    """Starts the run, or goes on with it."""
    how = ["--model", f"local-dir:{tiny_folder}", "--methods", "tp_ft", "--seeds", "0", "--device", "cpu", "--precision", "fp32"]
    how += ["--set", f"steps={STEPS}", "--set", "batch_size=9", "--out", str(tmp_path / "run")]
    all_of: list[Started] = []

    def started() -> Started:
        all_of.append(Started(tmp_path / "run", [sys.executable, "-m", "surefoot", "compare", str(tiny_root), *how]))
        return all_of[-1]

    yield started
    for process in (process for one in all_of for process in one.processes):
        process.kill()
        process.wait()


@pytest.mark.slow  # three starts of two processes; `make test` runs it behind the default run
def test_all_end_with_one_that_is_asked_to_and_without_one_that_is_killed(start: Callable[[], Started], tmp_path: Path) -> None:
    for code, words in start().hit(1, signal.SIGTERM):
        assert code == 128 + signal.SIGTERM, words
        assert "Ended by SIGTERM. What is finished is kept: the same command goes on from there." in words
        assert f"torchrun --nproc-per-node {PROCESSES} -m surefoot compare" in words
    (checkpoint,) = (tmp_path / "run/weights").glob("*.resume")  # written by the first process, which heard no signal
    with safe_open(checkpoint, framework="pt") as stored:
        done = json.loads(stored.metadata()["progress"])["done"]
    assert 0 < done < STEPS

    again = start()
    (code, words), (killed, _) = again.hit(1, signal.SIGKILL)
    assert again.steps()[0] == done + 1
    assert (code, killed) == (2, -signal.SIGKILL), words
    assert "Another process of this run ended or cannot be reached (" in words and "pair.cc" not in words, words
    assert "the same command goes on from there.\ntorchrun --nproc-per-node" in words
    assert "Traceback" not in words

    last = start()
    assert [code for code, _ in last.ended()] == [0, 0]
    assert last.steps()[0] == done + 1
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("[/src/gloo/transport/tcp/pair.cc:561] Connection reset by peer [::1]:80", "Connection reset by peer [::1]:80"),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", ""),
    ],
)
def test_an_error_about_another_process_is_told_from_others(said: str, reason: str) -> None:
    assert distributed.lost(RuntimeError(said)) == reason
