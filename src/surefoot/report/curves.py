"""The curves of the frontier: means over seeds of ID accuracy and another accuracy, at every alpha."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from surefoot.report.runs import Runs, display_name
from surefoot.report.table import Cell, cell


@dataclass(frozen=True)
class Dot:
    """One alpha of one method: means over seeds, and how many seeds chose this alpha on ID validation."""

    alpha: float
    across: Cell
    up: Cell
    num_chose: int

    @property
    def chosen(self) -> str:
        """Such as "chosen on ID validation by 2 seeds", empty where no seed did."""
        return f"chosen on ID validation by {self.num_chose} seed{'s'[: self.num_chose != 1]}" if self.num_chose else ""


@dataclass(frozen=True)
class Curve:
    """The dots of one method in ascending order of alpha; `index` picks its colour and shape."""

    index: int
    label: str
    dots: list[Dot]


def curves_of(runs: Runs, on: str) -> Iterator[Curve]:
    """The curve of each method; alpha 0 is the zero-shot record where the method has none of its own."""
    zero = zero_shot_of(runs, on)
    for index, method in enumerate(runs.methods):
        chosen = [round(evaluation.alpha, 6) for evaluation in runs.chosen(method)]
        dots = []
        for alpha in runs.alphas(method):
            evaluations = [point for point in runs.at(method, alpha) if {"test", on} <= point.accuracy.keys()]
            across, up = cell(evaluations, "test"), cell(evaluations, on)
            if across and up:
                dots.append(Dot(alpha, across, up, chosen.count(alpha)))
        if dots and zero is not None and dots[0].alpha > 0:
            dots.insert(0, Dot(0.0, *zero, chosen.count(0.0)))
        if dots:
            yield Curve(index, display_name(method), dots)


def zero_shot_of(runs: Runs, on: str) -> tuple[Cell, Cell] | None:
    """ID accuracy and the other accuracy of the zero-shot model, if it has both."""
    evaluations = [runs.zero_shot] if runs.zero_shot else []
    across, up = cell(evaluations, "test"), cell(evaluations, on)
    return (across, up) if across and up else None


def summary(curves: Iterable[Curve], zero: tuple[Cell, Cell] | None, name: str) -> str:
    """The text alternative: both ends and the middle of each curve."""
    parts = [] if zero is None else [f"zero-shot: ID {zero[0]}, {name} {zero[1]}"]
    for curve in curves:
        shown = [dot for dot in curve.dots if dot.alpha in (0.5, 1.0)]
        parts += [f"{curve.label} at α = {dot.alpha:g}: ID {dot.across}, {name} {dot.up}" for dot in shown]
    return f"ID accuracy against {name} accuracy in percent, along α. " + "; ".join(parts) + "."


def dot_title(label: str, alpha: float, across: Cell, up: Cell, name: str) -> str:
    """What a dot says when pointed at."""
    return f"{label}, α = {alpha:g}: ID {across}, {name} {up}"
