"""What happens in a folder while a command is at work there, as JSON lines in log.jsonl.

One line is one event: `begin` (which command, which process), `run`, `step`, `epoch`, `trained`, `curve`, `reference`, `judged`,
`evaluated`, and `end` or `stopped`. Steps are written once a second at most, the first and the last of a run always. The results stand in
records.jsonl; this file is for whoever wants to see a run at work, and nothing reads it to compute anything.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from surefoot import records
from surefoot.compare import Watcher
from surefoot.errors import DataError
from surefoot.folders import told
from surefoot.guard import parse_json, read_bytes
from surefoot.train import Step

logger = logging.getLogger(__name__)

FILE = "log.jsonl"
_NUMBERS = {"step": ("step", "total", "loss", "seconds"), "epoch": ("epoch", "val")}
"""What an event of a kind must say in numbers."""
EVERY = 1.0  # seconds between two lines of steps, or of judged images


class Together(Watcher):
    """Several watchers as one; each hears of everything, in their order."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self.watchers = tuple(watchers)

    def run(self, method: str, seed: int, number: int, total: int, *, training: bool, images: int) -> None:
        for one in self.watchers:
            one.run(method, seed, number, total, training=training, images=images)

    def reference(self, share: float, number: int, total: int, *, trained: int, judged: int) -> None:
        for one in self.watchers:
            one.reference(share, number, total, trained=trained, judged=judged)

    def curve(self, method: str, seed: int, along: str, *, training: bool, images: int) -> None:
        for one in self.watchers:
            one.curve(method, seed, along, training=training, images=images)

    def step(self, step: Step) -> None:
        for one in self.watchers:
            one.step(step)

    def trained(self, record: records.Trained) -> None:
        for one in self.watchers:
            one.trained(record)

    def judged(self, num_images: int) -> None:
        for one in self.watchers:
            one.judged(num_images)

    def evaluated(self, record: records.Evaluation) -> None:
        for one in self.watchers:
            one.evaluated(record)


class Epochs:
    """The epochs of a run that were not told yet."""

    def __init__(self) -> None:
        self.told = 0

    def new(self, history: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
        """What was validated since the last call; a history that is shorter than before is that of another run, or of another candidate."""
        told = self.told if len(history) >= self.told else 0
        self.told = len(history)
        return history[told:]


class Log(Watcher):
    """Writes log.jsonl.

    Args:
        folder: of the run; it must be there.
        now: a clock that never goes back, in seconds.
    """

    def __init__(self, folder: Path, now: Callable[[], float] = time.monotonic) -> None:
        self.path, self.now = folder / FILE, now
        self.of: dict[str, object] = {}
        self.training = False
        self.epochs, self.last, self.images = Epochs(), float("-inf"), 0
        self.known, self.cut, self.warned = known(folder), False, False

    @contextmanager
    def session(self, command: str) -> Iterator[None]:
        """From `begin` to `end`, or to `stopped` and why."""
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            self.cut = True  # a line that an interruption cut off spoils no other
        self.write("begin", command=command, pid=os.getpid(), host=socket.gethostname())
        try:
            yield
        except BaseException as error:
            self.write("stopped", why=f"{type(error).__name__}: {error}".removesuffix(": "))
            raise
        self.write("end")

    def run(self, method: str, seed: int, number: int, total: int, *, training: bool, images: int) -> None:
        """A run begins."""
        self._begin("run", {"method": method, "seed": seed}, number=number, total=total, training=training, images=images)

    def reference(self, share: float, number: int, total: int, *, trained: int, judged: int) -> None:
        """A reference model begins."""
        self._begin("reference", {"reference": share}, share=share, number=number, total=total, trained=trained, images=judged)

    def curve(self, method: str, seed: int, along: str, *, training: bool, images: int) -> None:
        """A curve beside a frontier begins."""
        self._begin("curve", {"method": method, "seed": seed, "curve": along}, along=along, training=training, images=images)

    def _begin(self, event: str, of: dict[str, object], **said: object) -> None:
        """What follows belongs to `of`."""
        self.of, self.epochs, self.last, self.images = of, Epochs(), float("-inf"), 0
        self.training = bool(said.get("training"))
        self.write(event, **of, **said)

    def step(self, step: Step) -> None:
        """A training step is done."""
        for row in self.epochs.new(step.history):
            self.write("epoch", **self.of, **row)
        if self.now() - self.last >= EVERY or step.number == step.total:
            self.last = self.now()
            said = {"step": step.number, "total": step.total, "loss": step.loss, "seconds": round(step.seconds, 3)}
            self.write("step", **self.of, **said)

    def trained(self, record: records.Trained) -> None:
        """A run was trained to its end, now or before."""
        for row in self.epochs.new(record.history):
            self.write("epoch", **self.of, **row)
        if self.training:
            self.write("trained", **self.of)

    def judged(self, num_images: int) -> None:
        """So many images were encoded for an evaluation."""
        self.images += num_images
        if self.now() - self.last >= EVERY:
            self.last = self.now()
            self.write("judged", **self.of, images=self.images)

    def evaluated(self, record: records.Evaluation) -> None:
        """A new evaluation; those from before are passed over."""
        if (key := key_of(record)) not in self.known:
            self.known.add(key)
            self.write("evaluated", method=record.method, seed=record.seed, alpha=record.alpha, accuracy=record.accuracy)

    def write(self, event: str, **said: object) -> None:
        """Add one line. A disk that fills up later ends no run for it, nor takes the place of the error that does: it is told once.

        Raises:
            DataError: the first line, `begin`, cannot be written.
        """
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **said})
        try:
            with told(self.path), self.path.open("a", encoding="utf-8") as lines:
                lines.write(("\n" if self.cut else "") + line + "\n")
            self.cut = False
        except DataError as error:
            self.cut = True
            if event == "begin":
                raise
            if not self.warned:
                logger.warning("%s The run goes on; what is not written is missing in the log alone.", str(error).partition(". ")[0] + ".")
            self.warned = True


def key_of(record: records.Evaluation) -> tuple[str, int, float, str]:
    """What tells one evaluation of a folder from another."""
    return record.method, record.seed, record.alpha, record.settings_hash


def known(folder: Path) -> set[tuple[str, int, float, str]]:
    """The evaluations that stand in a folder already."""
    return {key_of(one) for one in records.read(folder) if isinstance(one, records.Evaluation)}


def events(folder: Path) -> list[dict[str, Any]]:
    """The events of a folder's log in their order; lines that an interruption cut off are passed over."""
    path, found = folder / FILE, []
    for line in read_bytes(path).decode("utf-8", "replace").splitlines() if path.is_file() else ():
        try:
            row = parse_json(line)
            if _is_event(row):
                found.append(row)
        except ValueError:
            continue
    return found


def _is_event(row: object) -> bool:
    """Whether a line says what an event of its kind says.

    Raises:
        ValueError: its time is none.
    """
    if not isinstance(row, dict) or not isinstance(row.get("event"), str) or not isinstance(row.get("time"), str):
        return False
    datetime.fromisoformat(row["time"])
    numbers = [*_NUMBERS.get(row["event"], ()), *(key for key in ("seed", "reference") if key in row)]
    return isinstance(row.get("method", ""), str) and all(
        isinstance(row.get(key), int | float) and abs(row[key]) < float("inf") for key in numbers
    )
