"""TensorBoard and Weights & Biases: the curves of a run as it goes on, one run of theirs for each method and seed.

Both get `train/loss` along the steps, `epoch/validation` and `epoch/loss` along the epochs, and `frontier/<column>` along alpha in
percent; what is finished is told once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from surefoot import records
from surefoot.compare import Watcher
from surefoot.errors import SettingError, unknown_name
from surefoot.train import Step
from surefoot.watching.log import Epochs, key_of, known

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}
BOARDS = tuple(PACKAGES)


class Writer(Protocol):
    """One run of a board."""

    def scalar(self, tag: str, value: float, at: int) -> None:
        """One point of a curve."""

    def close(self) -> None:
        """Nothing follows."""


class Board(Watcher):
    """Tells a board what happens, one writer at a time.

    Args:
        folder: of the comparison; what was evaluated there before is not told again.
        open_writer: begins or goes on with a method and a seed, at a step.
    """

    def __init__(self, folder: Path, open_writer: Callable[[str, int, int], Writer]) -> None:
        self.open_writer, self.known = open_writer, known(folder)
        self.of: tuple[str, int] | None = None
        self.writer: Writer | None = None
        self.epochs = Epochs()

    def __enter__(self) -> Board:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def run(self, method: str, seed: int, number: int, total: int, *, training: bool, images: int) -> None:
        """A run begins."""
        del number, total, training, images
        self._close()
        self.of, self.epochs = (method, seed), Epochs()

    def reference(self, share: float, number: int, total: int, *, trained: int, judged: int) -> None:
        """A reference model begins, which is told under its share."""
        del number, total, trained, judged
        self._close()
        self.of, self.epochs = (f"reference-{share:g}", 0), Epochs()

    def curve(self, method: str, seed: int, along: str, *, training: bool, images: int) -> None:
        """A curve beside a frontier trains again what was told before: nothing of it is told."""
        del method, seed, along, training, images
        self._close()
        self.of = None

    def step(self, step: Step) -> None:
        """A training step is done."""
        if (writer := self._writer(step.number)) is None:
            return
        writer.scalar("train/loss", step.loss, step.number)
        self._tell(writer, self.epochs.new(step.history))

    def trained(self, record: records.Trained) -> None:
        """A run was trained to its end; the last epoch is known now."""
        if self.writer is not None:  # otherwise it was trained before, and told before
            self._tell(self.writer, self.epochs.new(record.history))

    def evaluated(self, record: records.Evaluation) -> None:
        """A new evaluation; those from before are passed over."""
        if (key := key_of(record)) in self.known or self.of != (record.method, record.seed):
            return
        self.known.add(key)
        if (writer := self._writer(0)) is not None:
            for column, value in record.accuracy.items():
                writer.scalar(f"frontier/{column}", value, round(100 * record.alpha))

    def _writer(self, step: int) -> Writer | None:
        if self.writer is None and self.of is not None:
            self.writer = self.open_writer(*self.of, step)
        return self.writer

    def _tell(self, writer: Writer, rows: Sequence[Mapping[str, float]]) -> None:
        for row in rows:
            stage = f", stage {row['stage']:g}" if row["stage"] > 1 else ""
            writer.scalar(f"epoch/validation{stage}", row["val"], int(row["epoch"]))
            writer.scalar(f"epoch/loss{stage}", row["loss"], int(row["epoch"]))

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class _TensorBoard:
    """A folder of event files; points at or after the step that a run goes on from are taken back by the board."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step if step > 1 else None)

    def scalar(self, tag: str, value: float, at: int) -> None:
        self.writer.add_scalar(tag, value, at)

    def close(self) -> None:
        self.writer.close()


class _WandB:
    """A run of Weights & Biases, in the mode that WANDB_MODE names; the same run again when a command goes on."""

    def __init__(self, folder: Path, method: str, seed: int) -> None:
        import wandb

        identity = hashlib.sha256(f"{folder.absolute()} {method} {seed}".encode()).hexdigest()[:16]
        given: dict[str, Any] = {"project": os.environ.get("WANDB_PROJECT", "surefoot"), "group": folder.name}
        try:
            self.run = wandb.init(
                dir=str(folder), id=identity, resume="allow", reinit="finish_previous", name=f"{method} seed {seed}",
                config={"method": method, "seed": seed}, **given,
            )  # fmt: skip
        except wandb.Error as error:
            raise SettingError(
                f"--watch wandb: no run can be begun there ({error}). Run 'wandb login' once, set WANDB_MODE=offline, or leave it out."
            ) from error
        for axis, tags in {"step": "train/loss", "epoch": "epoch/*", "alpha": "frontier/*"}.items():
            self.run.define_metric(axis)
            self.run.define_metric(tags, step_metric=axis)

    def scalar(self, tag: str, value: float, at: int) -> None:
        axis = "alpha" if tag.startswith("frontier/") else "step" if tag == "train/loss" else "epoch"
        self.run.log({tag: value, axis: at})

    def close(self) -> None:
        self.run.finish()


def require(names: Sequence[str]) -> None:
    """Whether the boards are known and installed, asked before any work.

    Raises:
        UnknownNameError: another name.
        SettingError: a package that is not installed.
    """
    for name in names:
        if name not in PACKAGES:
            raise unknown_name("board", name, PACKAGES)
        if (found := find_spec(PACKAGES[name])) is None or found.origin is None:  # a folder of that name, such as wandb makes, is none
            raise SettingError(
                f"--watch {name} needs a package that is not installed. Run: pip install {PACKAGES[name]} (or 'surefoot[watch]' for both)"
            )


def boards(names: Sequence[str], folder: Path) -> list[Board]:
    """The boards of those names, for the runs of one folder.

    Args:
        names: of `BOARDS`.
        folder: of the comparison; TensorBoard's files go into tensorboard/ there, those of Weights & Biases into wandb/.
    """
    openers: dict[str, Callable[[str, int, int], Writer]] = {
        "tensorboard": lambda method, seed, step: _TensorBoard(folder / "tensorboard" / records.file_name(f"{method}-seed{seed}"), step),
        "wandb": lambda method, seed, step: _WandB(folder, method, seed),
    }
    return [Board(folder, openers[name]) for name in names]
