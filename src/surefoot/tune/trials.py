"""Trials as JSON lines, written as each run ends."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from surefoot.errors import DataError
from surefoot.guard import made, parse_json, read_bytes
from surefoot.records import append_line
from surefoot.tune.space import Settings

FILE = "trials.jsonl"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One line: the run of one seed in one trial.

    Attributes:
        search: hash of all that determines a search (data, weights, method, plan, space, seed), so that no other takes it up.
        number: of the trial, from 0, which has the plan's own settings.
        seed: of the run.
        settings: those that are searched.
        value: score on ID validation in 0..1, by the measure that the plan's `select_by` names; None if the run failed.
        error: standard error of the value.
        kept_epoch: the epoch that was judged.
        seconds: spent on it.
        failure: why it failed; empty if it did not.
        provenance: versions, data and weights.
    """

    search: str
    number: int
    seed: int
    settings: Settings
    value: float | None
    error: float | None
    kept_epoch: int | None
    seconds: float
    failure: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """All runs of one trial.

    Its value is the mean over seeds. So is its standard error: all seeds are judged on the same images, and do not average their noise
    away.
    """

    runs: tuple[Run, ...]

    @property
    def number(self) -> int:
        return self.runs[0].number

    @property
    def settings(self) -> Settings:
        return self.runs[0].settings

    @property
    def failure(self) -> str:
        """Why it failed; empty if it did not."""
        return next((run.failure for run in self.runs if run.failure), "")

    @property
    def value(self) -> float:
        """Mean score; 0, the lowest there is, if a run failed."""
        return 0.0 if self.failure else sum(run.value or 0.0 for run in self.runs) / len(self.runs)

    @property
    def error(self) -> float:
        """Standard error of the value."""
        return sum(run.error or 0.0 for run in self.runs) / len(self.runs)

    @property
    def seconds(self) -> float:
        return sum(run.seconds for run in self.runs)

    def complete(self, num_seeds: int) -> bool:
        """Whether nothing of it is left to run."""
        return bool(self.failure) or len(self.runs) >= num_seeds


def append(folder: Path, run: Run) -> None:
    """Add one line; a last line that an interruption cut off is taken away first."""
    append_line(folder / FILE, json.dumps(asdict(run)))


def read(folder: Path, search: str) -> list[Run]:
    """The runs of one search; those of others in the same folder are passed over, and so is a last line that was cut off.

    Raises:
        DataError: a line that is not a trial, named by its number.
    """
    path = folder / FILE
    lines: Sequence[bytes] = read_bytes(path).split(b"\n")[:-1] if path.is_file() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(made(Run, parse_json(line)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {number} is not a trial ({error}). Remove the line, or start with a new folder.") from error
    return [run for run in found if run.search == search]
