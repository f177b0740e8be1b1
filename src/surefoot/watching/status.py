"""How far a folder is: what its plan asks for, what is trained and judged, who is at work there, and what the log said last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from surefoot import records
from surefoot.data.writing import holder
from surefoot.watching.log import events

LOCK = "run"
"""The name of the lock that commands which train hold on their folder."""


@dataclass(frozen=True)
class RunStatus:
    """One method and seed.

    Attributes:
        method: its name.
        seed: its seed.
        trained: whether its training is finished.
        judged: alphas that are evaluated.
        wanted: alphas that the plan asks for.
        val: newest ID validation score in 0..1; None before the first epoch.
        epoch: to which it belongs.
    """

    method: str
    seed: int
    trained: bool
    judged: int
    wanted: int
    val: float | None = None
    epoch: int | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.trained and self.judged >= self.wanted


@dataclass(frozen=True)
class Status:
    """One folder of records.

    Attributes:
        folder: where.
        state: "running", "finished", "stopped" (somebody or an error ended it), "killed" (it ended without a word), "elsewhere" (another
            machine holds the folder) or "unknown" (it has no log).
        says: the state as a sentence.
        runs: every method and seed of the plan, in its order.
        at: the newest event of the run under way; empty if none is.
        losses: the newest losses of it, oldest first.
        seconds_left: of the training under way; None if none is.
        run_seconds: mean wall time of the runs that are finished; None if none is known.
    """

    folder: Path
    state: str
    says: str
    runs: Sequence[RunStatus] = ()
    at: Mapping[str, Any] = field(default_factory=dict)
    losses: Sequence[float] = ()
    seconds_left: float | None = None
    run_seconds: float | None = None

    @property
    def left(self) -> int:
        """Runs that are not finished."""
        return sum(not run.finished for run in self.runs)


def status(folder: Path, runs: Sequence[tuple[str, int]], alphas: Sequence[float]) -> Status:
    """What a folder says of itself.

    Args:
        folder: that a command which trains wrote.
        runs: the methods and seeds of its plan.
        alphas: that each is judged at.

    Raises:
        DataError: its records cannot be read.
    """
    found, log = list(records.read(folder)), events(folder)
    state, says = _state(folder, log)
    epochs = {(e["method"], e["seed"]): e for e in log if e["event"] == "epoch" and "method" in e and "curve" not in e}
    anew = _anew(log)
    each = tuple(_run(method, seed, found, epochs.get((method, seed)), alphas, anew.get((method, seed))) for method, seed in runs)
    steps = _under_way(log)
    return Status(
        folder, state, says, each,
        at=steps[-1] if steps else {},
        losses=[step["loss"] for step in steps],
        seconds_left=_left(steps) if state == "running" else None,
        run_seconds=_mean_seconds(log),
    )  # fmt: skip


def _run(
    method: str,
    seed: int,
    found: Sequence[records.Record],
    epoch: Mapping[str, Any] | None,
    alphas: Sequence[float],
    anew: bool | None,
) -> RunStatus:
    """What the newest records of a run say; those of other settings, written before, do not count.

    `anew` is None but for a run that is being trained (False), or was and is not judged (True).
    """
    if anew is False:
        found = []
    trained = [r for r in found if isinstance(r, records.Trained) and (r.method, r.seed) == (method, seed)]
    judged = [r for r in found if isinstance(r, records.Evaluation) and (r.method, r.seed) == (method, seed)] if anew is None else []
    newest = judged[-1].settings_hash if judged else ""
    known = {r.alpha for r in judged if r.settings_hash == newest}
    last = dict(trained[-1].history[-1]) if trained and trained[-1].history else epoch
    val, at = (None, None) if last is None else (float(last["val"]), int(last["epoch"]))
    return RunStatus(method, seed, bool(trained), len(known & set(alphas)), len(alphas), val, at)


def _anew(log: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], bool]:
    """{method and seed that the log trains, or trained and has not judged yet: whether it is trained}.

    What the records have of it is of other settings, or of weights that are gone.
    """
    found: dict[tuple[str, int], bool] = {}
    for event in log:
        of = str(event.get("method")), int(event.get("seed", -1))
        if event["event"] == "run" and event.get("training"):
            found = {of: False}
        elif event["event"] == "trained" and of in found:
            found = {of: True}
        elif event["event"] in ("run", "reference", "curve", "evaluated", "end"):
            found = {}
    return found


def _state(folder: Path, log: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Who is at work, or how it ended."""
    owner, last = holder(folder, LOCK), log[-1] if log else None
    began = next((e for e in reversed(log) if e["event"] == "begin"), None)
    if owner is not None and owner.runs:
        since = f" since {_local(began['time'])}" if began else ""
        return "running", f"process {owner.pid} is at work{since}"
    if owner is not None and owner.runs is None:
        return "elsewhere", f"process {owner.pid} on {owner.host} holds the folder"
    if last is None:
        return "unknown", "no command that keeps a log was at work here"
    when = _local(last["time"])
    if last["event"] == "end":
        return "finished", f"finished at {when}"
    if last["event"] == "stopped":
        return "stopped", f"stopped at {when}: {last.get('why', '')}"
    return "killed", f"ended without a word; last heard of at {when}"


def _under_way(log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The steps of the run that the log is at; none where it is at something else."""
    steps: list[Mapping[str, Any]] = []
    for event in log:
        if event["event"] in ("run", "reference", "curve", "begin", "end"):
            steps = []
        elif event["event"] == "step":
            steps.append(event)
    return steps


def _left(steps: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of training that are left, at the speed since the command began or went on."""
    if len(steps) < 2 or steps[-1]["step"] <= steps[0]["step"]:
        return None
    first, last = steps[0], steps[-1]
    return float((last["seconds"] - first["seconds"]) / (last["step"] - first["step"]) * (last["total"] - last["step"]))


def _mean_seconds(log: Sequence[Mapping[str, Any]]) -> float | None:
    """Wall time of a run, from its beginning to the next one's, over those that were trained in full within the log."""
    found, since = [], None
    for event in log:
        if event["event"] in ("run", "end") and since is not None:
            found.append((_time(event["time"]) - since).total_seconds())
        if event["event"] in ("run", "begin", "end", "stopped"):
            since = _time(event["time"]) if event["event"] == "run" and event.get("training") else None
    return sum(found) / len(found) if found else None


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _local(text: str) -> str:
    """A time of the log as the reader's clock has it."""
    time = _time(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
