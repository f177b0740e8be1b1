"""The frontier of WiSE-FT: ID accuracy against another accuracy, along the line between the zero-shot and the fine-tuned weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from surefoot.errors import DataError
from surefoot.records import Record
from surefoot.report import marks
from surefoot.report.runs import Runs, collect, display_name
from surefoot.report.table import Cell, cell, columns, header, rows_of
from surefoot.report.templates import render

PLOT = (58.0, 14.0, 384.0, 272.0)  # left, top, right and bottom of the plotting area
INLINE_SIZE = (400, 322)
LETTER = 6.7  # the width of an average letter of the legend


@dataclass(frozen=True)
class Dot:
    """One alpha of one method: means over seeds, and how many seeds chose this alpha on ID validation."""

    alpha: float
    across: Cell
    up: Cell
    num_chose: int


@dataclass(frozen=True)
class Curve:
    """The dots of one method in ascending order of alpha; `index` picks its colour and shape."""

    index: int
    label: str
    dots: list[Dot]


@dataclass(frozen=True)
class Frame:
    """The two axes of a picture."""

    across: marks.Axis
    up: marks.Axis

    def at(self, across: Cell, up: Cell) -> tuple[float, float]:
        """The pixel of a pair of means."""
        return self.across.at(100 * across.mean), self.up.at(100 * up.mean)


def frontier_svg(records: Iterable[Record], on: str = "avg_shifts") -> str:
    """The frontier as a picture that stands alone: own legend, own white background, fixed colours.

    Each method is a curve of its means over seeds, one dot for each alpha, with a title that shows its numbers; whiskers are the
    standard deviation over seeds. The dashed chord joins the zero-shot and the fine-tuned model: without reference models it is no
    baseline of effective robustness.

    Args:
        records: what `surefoot.records.read` yields.
        on: the accuracy to draw upwards, such as "avg_shifts", "unseen/icons" or "context".

    Raises:
        DataError: no evaluation among the records, or none that holds both "test" and `on`.
    """
    return frontier_of(collect(records), on)


def frontier_of(runs: Runs, on: str, *, inline: bool = False) -> str:
    """The frontier of runs that are already collected; `inline` leaves legend and colours to the page."""
    curves = list(_curves(runs, on))
    zero = _zero_shot(runs, on)
    if not curves and zero is None:
        known = ", ".join(column for column in columns(rows_of(runs)) if column != "test") or "none"
        raise DataError(
            f"No record holds an accuracy on 'test' and one on '{on}'. Known: {known}. Name one of these, or evaluate it first."
        )
    frame = _frame(curves, zero)
    legend = [] if inline else keys(curves)
    letters = max((len(text) for text in (runs.dataset, *(key["text"] for key in legend))), default=0)
    return render(
        "frontier.svg.j2",
        inline=inline,
        size=INLINE_SIZE if inline else (round(PLOT[2] + 60 + LETTER * letters), max(INLINE_SIZE[1], 22 * len(legend) + 54)),
        dataset=runs.dataset,
        plot=PLOT,
        frame=frame,
        labels=("ID accuracy (%)", f"{header(on)} accuracy (%)"),
        summary=summary(curves, zero, header(on)),
        curves=[_view(curve, frame, header(on)) for curve in curves],
        zero=None if zero is None else {"path": marks.star(*frame.at(*zero), 10), "title": _title("zero-shot", 0.0, *zero, header(on))},
        legend=legend,
        style=css(marks.palette("light")),
    )


def css(colours: object) -> Markup:
    """The rules that all pictures share, with colours from `palette` or `variables`."""
    return Markup(render("frontier.css.j2", colours=colours))


def keys(curves: Sequence[Curve]) -> list[dict[str, str]]:
    """The legend of what these curves show: a picture of 28 by 16 pixels and a text for each entry."""
    dots = [dot for curve in curves for dot in curve.dots]
    alphas = {dot.alpha for dot in dots}
    disc, small = marks.marker(0, 14, 8, 5), marks.marker(0, 14, 8, 3.6)
    rest = [
        ("star", marks.star(14, 8, 8), "zero-shot (α = 0)", True),
        ("small", small, "other α in between", bool(alphas - {0.0, 0.5, 1.0})),
        ("half", disc, "WiSE-FT, α = 0.5", 0.5 in alphas),
        ("full", disc, "fine-tuned (α = 1)", 1.0 in alphas),
        ("ring", marks.marker(0, 14, 8, 7), "α chosen on ID validation", any(dot.num_chose for dot in dots)),
        ("whisker", "M14 1V15M5 8H23", "± 1 std. over seeds", any(dot.across.spread or dot.up.spread for dot in dots)),
        ("chord", "M1 12L27 4", "chord, zero-shot to fine-tuned", {0.0, 1.0} <= alphas),
    ]
    found = {curve.label: {"kind": "method", "css": _css(curve), "path": marks.marker(curve.index, 14, 8, 5)} for curve in curves}
    found |= {text: {"kind": kind, "css": "plain", "path": path} for kind, path, text, drawn in rest if drawn}
    return [{**picture, "text": text} for text, picture in found.items()]


def page_keys(runs: Runs, drawn: Iterable[str]) -> list[dict[str, str]]:
    """The legend that the pictures of a page share."""
    return keys([curve for on in drawn for curve in _curves(runs, on)])


def summary(curves: Iterable[Curve], zero: tuple[Cell, Cell] | None, name: str) -> str:
    """The text alternative: both ends and the middle of each curve."""
    parts = [] if zero is None else [f"zero-shot: ID {zero[0]}, {name} {zero[1]}"]
    for curve in curves:
        shown = [dot for dot in curve.dots if dot.alpha in (0.5, 1.0)]
        parts += [f"{curve.label} at α = {dot.alpha:g}: ID {dot.across}, {name} {dot.up}" for dot in shown]
    return f"ID accuracy against {name} accuracy in percent, along α. " + "; ".join(parts) + "."


def _curves(runs: Runs, on: str) -> Iterator[Curve]:
    """The curve of each method; alpha 0 is the zero-shot record where the method has none of its own."""
    zero = _zero_shot(runs, on)
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


def _zero_shot(runs: Runs, on: str) -> tuple[Cell, Cell] | None:
    evaluations = [runs.zero_shot] if runs.zero_shot else []
    across, up = cell(evaluations, "test"), cell(evaluations, on)
    return (across, up) if across and up else None


def _frame(curves: Iterable[Curve], zero: tuple[Cell, Cell] | None) -> Frame:
    """Axes that hold every dot and every whisker."""
    pairs = [(dot.across, dot.up) for curve in curves for dot in curve.dots] + ([zero] if zero else [])
    left, top, right, bottom = PLOT
    return Frame(
        marks.Axis.around([end for across, _ in pairs for end in _ends(across)], left, right),
        marks.Axis.around([end for _, up in pairs for end in _ends(up)], bottom, top),
    )


def _ends(value: Cell) -> tuple[float, float]:
    """Mean minus and plus the spread, in percent."""
    spread = value.spread or 0.0
    return 100 * (value.mean - spread), 100 * (value.mean + spread)


def _view(curve: Curve, frame: Frame, name: str) -> dict[str, object]:
    """The shapes of a curve: the line, the chord, and for each dot its marker, whiskers and ring."""
    at = [frame.at(dot.across, dot.up) for dot in curve.dots]
    ends = [dot.alpha for dot in curve.dots]
    chord = (at[0], at[-1]) if len(at) > 1 and (ends[0], ends[-1]) == (0.0, 1.0) else None
    dots = []
    for dot, (x, y) in zip(curve.dots, at, strict=True):
        kind = {1.0: "full", 0.5: "half"}.get(dot.alpha, "small")
        path = marks.marker(curve.index, x, y, 3.6 if kind == "small" else 5.5)
        ring = marks.marker(0, x, y, 8.5) if dot.num_chose else ""
        title = _title(curve.label, dot.alpha, dot.across, dot.up, name)
        title += f"; chosen on ID validation by {dot.num_chose} seed{'s'[: dot.num_chose != 1]}" if dot.num_chose else ""
        dots.append({"kind": kind, "path": path, "whiskers": _whiskers(dot, frame), "ring": ring, "x": x, "y": y, "title": title})
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at) if len(at) > 2 else ""
    return {"index": curve.index, "css": _css(curve), "line": line, "chord": _chord(chord, curve.index) if chord else None, "dots": dots}


def _chord(ends: tuple[tuple[float, float], tuple[float, float]], index: int) -> dict[str, object]:
    """The chord, and the place of its name: turned to read from left to right, further along for each method so that none collide."""
    (x0, y0), (x1, y1) = ends
    angle = math.degrees(math.atan2(y1 - y0, x1 - x0))
    along = 0.4 + 0.15 * (index % 4)
    return {
        "path": f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}",
        "x": x0 + (x1 - x0) * along,
        "y": y0 + (y1 - y0) * along,
        "angle": angle if abs(angle) <= 90 else angle - math.copysign(180, angle),
        "named": math.hypot(x1 - x0, y1 - y0) > 120,
    }


def _whiskers(dot: Dot, frame: Frame) -> str:
    """Path data of both whiskers, empty without a spread."""
    x, y = frame.at(dot.across, dot.up)
    path = ""
    if dot.across.spread:
        left, right = (frame.across.at(end) for end in _ends(dot.across))
        path += f"M{left:.1f} {y:.1f}H{right:.1f}"
    if dot.up.spread:
        low, high = (frame.up.at(end) for end in _ends(dot.up))
        path += f"M{x:.1f} {low:.1f}V{high:.1f}"
    return path


def _css(curve: Curve) -> str:
    return f"m{curve.index % len(marks.METHOD_COLOURS['light'])}"


def _title(label: str, alpha: float, across: Cell, up: Cell, name: str) -> str:
    """What a dot says when pointed at."""
    return f"{label}, α = {alpha:g}: ID {across}, {name} {up}"
