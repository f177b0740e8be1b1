"""The curves beside a frontier: an ensemble of outputs, the epochs of the run, the Fisher-weighted merge, the image tower alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from surefoot import records
from surefoot.report.runs import Runs, display_name
from surefoot.report.table import Cell, cell

NAMES = {
    "outputs": "ensemble of outputs",
    "epochs": "epochs of the run",
    "fisher": "Fisher-weighted merge",
    "visual": "image tower alone",
}
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
        return f"{self.method}, {self.name}, {'' if self.along == 'epochs' else 'α = '}{place(self.along, point.at)}"


def beside(runs: Runs, on: str) -> list[Beside]:
    """All curves beside the frontiers, of those accuracies that a picture shows."""
    found = []
    for index, method in enumerate(runs.methods):
        for along, curve in curves_beside(runs, method):
            drawn = {at: [point for point in seeds if {"test", on} <= point.accuracy.keys()] for at, seeds in curve.items()}
            pairs = {at: (cell(seeds, "test"), cell(seeds, on)) for at, seeds in drawn.items()}
            if points := [Point(at, across, up) for at, (across, up) in pairs.items() if across and up]:
                found.append(Beside(index, display_name(method), along, points))
    return found


def curves_beside(runs: Runs, method: str) -> Iterator[tuple[str, dict[float, list[records.Curve]]]]:
    """(what it goes along, {alpha or epoch in ascending order: a point for each seed}) of each curve beside a method's frontier."""
    for along in dict.fromkeys(kind for name, _, kind in runs.curves if name == method):
        curves = [curve for (name, _, kind), curve in runs.curves.items() if (name, kind) == (method, along)]
        yield along, {at: [curve[at] for curve in curves if at in curve] for at in sorted({at for curve in curves for at in curve})}


def place(along: str, at: float) -> str:
    """Where a point lies on its curve: an alpha, or an epoch.

    Examples:
        >>> place("outputs", 0.5), place("epochs", 2.0)
        ('0.5', 'epoch 2')
    """
    return f"epoch {at:g}" if along == "epochs" else f"{at:g}"
