"""The curves beside a frontier: an ensemble of outputs, the epochs of the run, the Fisher-weighted merge."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from surefoot import records
from surefoot.report.runs import Runs, display_name
from surefoot.report.table import Cell

NAMES = {"outputs": "ensemble of outputs", "epochs": "epochs of the run", "fisher": "Fisher-weighted merge"}
"""What a curve is called, by what it goes along."""


@dataclass(frozen=True)
class Point:
    """One alpha or one epoch: means over seeds."""

    at: float
    across: Cell
    up: Cell


@dataclass(frozen=True)
class Beside:
    """A curve beside the frontier of the method at `index`; `along` picks how its line is broken."""

    index: int
    method: str
    along: str
    points: list[Point]

    @property
    def name(self) -> str:
        """What the legend calls it."""
        return NAMES.get(self.along, self.along)

    @property
    def means(self) -> list[tuple[Cell, Cell]]:
        """Both accuracies of each point without their spreads, which are not drawn."""
        return [(replace(point.across, spread=None), replace(point.up, spread=None)) for point in self.points]

    def title(self, point: Point, on: str) -> str:
        """What a point says when pointed at."""
        return f"{self.heading(point)}: ID {point.across}, {on} {point.up}"

    def heading(self, point: Point) -> str:
        """Whose and which point it is."""
        return f"{self.method}, {self.name}, {'epoch' if self.along == 'epochs' else 'α ='} {point.at:g}"


def beside(runs: Runs, on: str) -> list[Beside]:
    """All curves beside the frontiers, of those accuracies that a picture shows."""
    found = []
    for index, method in enumerate(runs.methods):
        for along in dict.fromkeys(kind for name, _, kind in runs.curves if name == method):
            curves = [curve for (name, _, kind), curve in runs.curves.items() if (name, kind) == (method, along)]
            if points := _points(curves, on):
                found.append(Beside(index, display_name(method), along, points))
    return found


def _points(curves: Iterable[Mapping[float, records.Curve]], on: str) -> list[Point]:
    seeds = list(curves)
    found = []
    for at in sorted({at for curve in seeds for at in curve}):
        own = [curve[at].accuracy for curve in seeds if at in curve and {"test", on} <= curve[at].accuracy.keys()]
        if own:
            found.append(Point(at, *(_cell([accuracy[name] for accuracy in own]) for name in ("test", on))))
    return found


def _cell(values: list[float]) -> Cell:
    return Cell(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))
