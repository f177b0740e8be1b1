"""A run that is watched: its log, its boards, `surefoot status`, one process for each folder, SIGTERM."""

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
from conftest import typed
from safetensors import safe_open

from surefoot import records, stopping
from surefoot.cli.status import sparkline
from surefoot.errors import UnknownNameError
from surefoot.train import Step
from surefoot.watching import FILE, Log, require, status
from surefoot.watching.board import Board
from surefoot.watching.log import events

Run = Callable[..., tuple[int, str]]
ALPHAS = ["--set", "steps=4", "--set", "batch_size=8", "--precision", "fp32"]


@pytest.fixture
def run(tiny_root: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type a command; for one that trains, on the tiny data."""

    def typing(command: str, *arguments: object) -> tuple[int, str]:
        given = [str(tiny_root), "--model", f"local-dir:{tiny_folder}", *ALPHAS] if command == "compare" else []
        return typed(monkeypatch, capsys, command, *given, *arguments)

    return typing


def compared(run: Run, out: Path, *more: str) -> list[dict[str, object]]:
    """The log of a comparison of two methods, one seed each."""
    code, text = run("compare", "--methods", "tp_ft,flyp", "--seeds", "0", "--out", out, *more)
    assert code == 0, text
    return events(out)


def test_a_comparison_judges_the_alphas_that_it_is_given(run: Run, tmp_path: Path) -> None:
    compared(run, tmp_path / "run", "--alphas", "0.25")
    judged = {(e.method, e.alpha) for e in records.read(tmp_path / "run") if isinstance(e, records.Evaluation)}
    assert judged == {("zero_shot", 0.0), *((method, alpha) for method in ("tp_ft", "flyp") for alpha in (0.0, 0.25, 1.0))}


def test_the_log_says_what_the_records_say(run: Run, tmp_path: Path) -> None:
    log = compared(run, tmp_path / "run")
    assert (log[0]["event"], log[-1]["event"], log[0]["pid"]) == ("begin", "end", os.getpid())
    assert str(log[0]["command"]).startswith("surefoot compare")
    found = list(records.read(tmp_path / "run"))
    trained = [(r.method, r.seed, row["epoch"], row["val"]) for r in found if isinstance(r, records.Trained) for row in r.history]
    assert [(e["method"], e["seed"], e["epoch"], e["val"]) for e in log if e["event"] == "epoch"] == trained
    judged = [(r.method, r.seed, r.alpha, r.accuracy) for r in found if isinstance(r, records.Evaluation)]
    assert [(e["method"], e["seed"], e["alpha"], e["accuracy"]) for e in log if e["event"] == "evaluated"] == judged
    last = {e["method"]: e for e in log if e["event"] == "step"}
    assert {name: (e["step"], e["total"]) for name, e in last.items()} == {"tp_ft": (4, 4), "flyp": (4, 4)}


def test_what_was_evaluated_before_is_not_told_again(run: Run, tmp_path: Path) -> None:
    before = compared(run, tmp_path / "run")
    again = compared(run, tmp_path / "run")[len(before) :]
    assert [e["event"] for e in again if e["event"] not in ("run",)] == ["begin", "end"]


def test_steps_are_written_once_a_second_but_for_the_ends(tmp_path: Path) -> None:
    now = [0.0]
    log = Log(tmp_path, now=lambda: now[0])
    log.run("flyp", 0, 1, 1, training=True, images=0)
    for number in range(1, 11):
        log.step(Step(number, 10, 1.0, now[0], 8))
        now[0] += 0.3
    assert [e["step"] for e in events(tmp_path) if e["event"] == "step"] == [1, 5, 9, 10]


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"time": "2026-01-01T00:00:00+00:00", "event": "run", "meth')
    with Log(tmp_path).session("surefoot fit"):
        pass
    assert [e["event"] for e in events(tmp_path)] == ["begin", "end"]


def test_an_error_stands_in_the_log(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Log(tmp_path).session("surefoot fit"):
        raise ZeroDivisionError("by nothing")
    assert events(tmp_path)[-1]["why"] == "ZeroDivisionError: by nothing"


class Noted:
    """A board's run that notes its points."""

    def __init__(self) -> None:
        self.points: list[tuple[str, float, int]] = []
        self.closed = False

    def scalar(self, tag: str, value: float, at: int) -> None:
        self.points.append((tag, value, at))

    def close(self) -> None:
        self.closed = True


def test_a_board_gets_steps_epochs_and_the_frontier_of_each_run(tmp_path: Path) -> None:
    made: dict[tuple[str, int], Noted] = {}
    history = [{"stage": 1, "epoch": 1, "loss": 0.5, "val": 0.7}, {"stage": 1, "epoch": 2, "loss": 0.4, "val": 0.8}]
    one = records.Evaluation(
        method="flyp", seed=3, alpha=0.5, dataset="d", accuracy={"test": 0.9}, num_images={}, answers="", settings={}, settings_hash="h"
    )
    with Board(tmp_path, lambda method, seed, step: made.setdefault((method, seed), Noted())) as board:
        board.run("flyp", 3, 1, 2, training=True, images=0)
        board.step(Step(1, 2, 0.5, 0.1))
        board.step(Step(2, 2, 0.4, 0.2, history=history[:1]))
        board.trained(records.Trained(**RUN, history=history))
        board.evaluated(one)
        board.evaluated(one)
        board.run("tp_ft", 0, 2, 2, training=True, images=0)
        assert made["flyp", 3].closed
        board.step(Step(1, 2, 0.9, 0.1))
    assert made["flyp", 3].points == [
        ("train/loss", 0.5, 1), ("train/loss", 0.4, 2), ("epoch/validation", 0.7, 1), ("epoch/loss", 0.5, 1),
        ("epoch/validation", 0.8, 2), ("epoch/loss", 0.4, 2), ("frontier/test", 0.9, 50),
    ]  # fmt: skip
    assert made["tp_ft", 0].points == [("train/loss", 0.9, 1)] and made["tp_ft", 0].closed


RUN = {"method": "flyp", "seed": 3, "settings_hash": "h", "kept_epoch": 2, "select_by": "accuracy", "num_steps": 2, "seconds": 1.0}

READ = """
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
read = EventAccumulator(sys.argv[1]); read.Reload()
for tag in sorted(read.Tags()["scalars"]):
    print(tag, [(e.step, round(e.value, 6)) for e in read.Scalars(tag)], sep="\\t")
"""


@pytest.mark.slow
@pytest.mark.parametrize("board", ["tensorboard", "wandb"])
def test_boards_of_a_real_run(board: str, tiny_root: Path, tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip(board)
    out = tmp_path / "run"
    options = ["--model", f"local-dir:{tiny_folder}", "--methods", "tp_ft", "--seeds", "0", *ALPHAS, "--watch", board, "--out", str(out)]
    own = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run([sys.executable, "-m", "surefoot", "compare", str(tiny_root), *options], env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if board == "wandb":
        assert len(list(out.glob("wandb/offline-run-*/*.wandb"))) == 1
        return
    shown = subprocess.run([sys.executable, "-c", READ, str(out / "tensorboard" / "tp_ft-seed0")], capture_output=True, text=True)
    curves = dict(line.split("\t") for line in shown.stdout.splitlines())
    assert [step for step, _ in eval(curves["train/loss"])] == [1, 2, 3, 4]
    test = {
        round(100 * r.alpha): r.accuracy["test"] for r in records.read(out) if isinstance(r, records.Evaluation) and r.method == "tp_ft"
    }
    assert dict(eval(curves["frontier/test"])) == pytest.approx(test, abs=1e-6)


def test_a_board_that_is_not_there_is_told_before_any_work(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = run("compare", "--watch", "tensorbord", "--out", tmp_path / "run")
    assert (code, "Did you mean 'tensorboard'?" in text) == (2, True)
    monkeypatch.setattr("surefoot.watching.board.find_spec", lambda name: None)
    code, text = run("compare", "--watch", "wandb", "--out", tmp_path / "run")
    assert (code, "pip install wandb" in text) == (2, True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UnknownNameError):
        require(["visdom"])


def test_status_of_a_finished_folder(run: Run, tmp_path: Path) -> None:
    compared(run, tmp_path / "run")
    code, text = run("status", tmp_path / "run")
    assert code == 0
    assert "finished at" in text and "FLYP 0 finished 11 of 11 alphas" in text
    assert "Go on" not in text


def test_status_of_a_folder_that_was_stopped(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    compared(run, out)
    job = json.loads((out / "job.json").read_text())
    job["plan"]["seeds"] = [0, 1]
    (out / "job.json").write_text(json.dumps(job))
    log = Log(out)
    with pytest.raises(stopping.Stopped), log.session("surefoot compare"):
        log.run("flyp", 1, 4, 4, training=True, images=0)
        log.step(Step(1, 40, 2.5, 1.0))
        raise stopping.Stopped(signal.SIGTERM)
    text = run("status", out)[1]
    assert "stopped at" in text and "SIGTERM" in text
    assert "TP-FT 1 – 0 of 11 alphas" in text and "FLYP 1 begun 0 of 11 alphas" in text
    assert "FLYP, seed 1: step 1 of 40, loss 2.500" in text
    assert "2 of 4 runs left" in text and "Go on: surefoot compare" in text


def test_status_tells_who_is_at_work_and_how_long_it_takes_still(tmp_path: Path) -> None:
    log = Log(tmp_path)
    (tmp_path / ".run.lock").write_text(json.dumps({"pid": os.getppid(), "host": os.uname().nodename}))
    log.write("begin", command="surefoot fit", pid=os.getppid())
    log.run("flyp", 0, 1, 1, training=True, images=0)
    for step, seconds in ((1, 10.0), (5, 18.0)):
        log.write("step", method="flyp", seed=0, step=step, total=20, loss=1.0, seconds=seconds)
    found = status(tmp_path, [("flyp", 0)], [0.0, 1.0])
    assert (found.state, found.left, found.seconds_left) == ("running", 1, 30.0)  # 15 steps of 2 seconds
    (tmp_path / ".run.lock").write_text(json.dumps({"pid": os.getppid(), "host": "elsewhere"}))
    assert status(tmp_path, [], []).state == "elsewhere"
    (tmp_path / ".run.lock").write_text(json.dumps({"pid": 2**22 + 1, "host": os.uname().nodename}))
    assert status(tmp_path, [], []).state == "killed"


def test_a_run_under_new_settings_is_not_finished_because_an_older_one_is(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    compared(run, out)
    log = Log(out)
    record = next(r for r in records.read(out) if isinstance(r, records.Trained) and r.method == "flyp")

    def seen() -> tuple[bool, int]:
        (found,) = status(out, [("flyp", 0)], [0.0, 0.5, 1.0]).runs
        return found.trained, found.judged

    log.write("begin", command="surefoot compare", pid=os.getpid())
    assert seen() == (True, 3)
    log.run("flyp", 0, 2, 2, training=True, images=0)
    log.step(Step(1, 40, 2.5, 1.0))
    assert seen() == (False, 0)
    log.trained(record)
    assert seen() == (True, 0)
    log.write("evaluated", method="flyp", seed=0, alpha=0.0, accuracy={})
    assert seen() == (True, 3), "from now on its own records stand last"
    log.run("tp_ft", 0, 1, 2, training=True, images=0)
    assert seen() == (True, 3), "another run's training is no matter"
    log.run("flyp", 0, 2, 2, training=False, images=0)
    log.trained(record)
    assert seen() == (True, 3), "one that was trained before is not trained anew"


def test_status_of_something_else_says_what_to_give(run: Run, tmp_path: Path) -> None:
    code, text = run("status", tmp_path)
    assert (code, "Give the --out of" in text) == (2, True)


def test_status_of_a_search(run: Run, tmp_path: Path) -> None:
    for folder, number in (("searched", 2), ("compared/tune/flyp", 3)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "trials.jsonl").write_text("{}\n" * number)
    assert run("status", tmp_path / "searched") == (0, "searched: 2 runs of trials are finished")
    assert run("status", tmp_path / "compared") == (0, "tune/flyp: 3 runs of trials are finished")


def test_losses_as_a_line() -> None:
    assert sparkline([]) == ""
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert len(sparkline([float(k) for k in range(1000)])) == 40


def test_two_commands_in_one_folder_are_told_of_each_other(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".run.lock").write_text(json.dumps({"pid": os.getppid(), "host": os.uname().nodename, "doing": "fit"}))
    code, text = run("compare", "--methods", "tp_ft", "--seeds", "0", "--out", out)
    assert code == 2
    assert f"is being written by another 'surefoot fit': process {os.getppid()}" in text
    assert sorted(path.name for path in out.iterdir()) == [".run.lock"]


def test_a_lock_that_a_killed_command_left_is_taken_over(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".run.lock").write_text(json.dumps({"pid": 2**22 + 1, "host": os.uname().nodename, "doing": "fit"}))
    compared(run, out)
    assert "left behind by process" in caplog.text
    assert not (out / ".run.lock").exists()


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals are heard, even where whoever started the tests told the process to ignore them."""
    before = {number: signal.signal(number, handler) for number, handler in HEARD.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


HEARD = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@pytest.mark.usefixtures("heard")
def test_a_signal_waits_for_whoever_defers_it_and_a_second_one_does_not() -> None:
    with stopping.listening():
        with pytest.raises(stopping.Stopped, match="SIGTERM"), stopping.deferred() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked() == signal.SIGTERM
            with pytest.raises(stopping.Stopped, match="SIGINT"):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
        with pytest.raises(stopping.Stopped, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) != signal.getsignal(signal.SIGINT)


def test_a_signal_that_was_to_be_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.listening(), stopping.deferred() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            assert asked() is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


SIGNALLED = """
import os, signal, sys
from surefoot import stopping
from surefoot.train import loop

told = loop._Run.tell
def tell(self, loss, batch, cached):
    told(self, loss, batch, cached)
    if self.progress.step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
loop._Run.tell = tell
sys.argv[0] = "surefoot"
from surefoot.cli import main
main()
"""


def test_sigterm_saves_the_step_it_came_in_and_says_how_to_go_on(tiny_root: Path, tiny_folder: Path, tmp_path: Path) -> None:
    own = ["compare", str(tiny_root), "--model", f"local-dir:{tiny_folder}", "--methods", "flyp", "--seeds", "0", *ALPHAS]
    command = [sys.executable, "-c", SIGNALLED, *own, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "Ended by SIGTERM. What is finished is kept: the same command goes on from there." in done.stderr
    assert done.stderr.strip().endswith(f"--out {tmp_path / 'run'}")
    (checkpoint,) = (tmp_path / "run" / "weights").glob("*.resume")
    with safe_open(checkpoint, framework="pt") as stored:
        assert json.loads(stored.metadata()["progress"])["step"] == 3
    assert events(tmp_path / "run")[-1]["why"] == "Stopped: SIGTERM"
    assert not (tmp_path / "run" / ".run.lock").exists()
