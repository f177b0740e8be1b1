"""The frontier of WiSE-FT: ID accuracy against another accuracy, along the line between the zero-shot and the fine-tuned weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from surefoot.errors import DataError
from surefoot.records import Evaluation, Record
from surefoot.report import marks
from surefoot.report.curves import Curve, Dot, curves_of, dot_title, summary, zero_shot_of
from surefoot.report.frontier_lines import NAMES, Beside, beside
from surefoot.report.runs import Runs, collect
from surefoot.report.squeezed import Box, Place, floor_of, inside, joined
from surefoot.report.table import Cell, columns, header, rows_of
from surefoot.report.templates import render
from surefoot.robustness import Baseline

FEW = 3  # up to so many curves show whiskers and chords at once; more of them would be a thicket
LETTER = 6.7  # the width of an average letter of the legend
LONGEST_NAME = 16  # letters of a method's name beside its curve
LINE = 15.0  # the distance of two names


@dataclass(frozen=True)
class Layout:
    """Where things are in a picture, in units of its coordinates; `size` is that of its marks.

    The page's pictures have room for a readout above the plot, in which one of them has a `hint`.
    """

    width: float
    height: float
    top: float = 14.0
    left: float = 58.0
    size: float = 1.0
    hint: str = ""

    def plot(self, names: Iterable[str]) -> Box:
        """Left, top, right and bottom of the plotting area, beside a column for these texts."""
        widest = max(map(len, names), default=0)
        return self.left, self.top, self.width - (LETTER * widest + 38 if widest else 14), self.height - 50


ALONE, ALONE_MANY = Layout(470, 322), Layout(640, 430)
WIDE = Layout(1120, 540, top=46, hint="Point at a dot or a name.")
NARROW, SMALL = Layout(420, 400, top=46, size=0.8, hint="Tap a dot or a name."), Layout(420, 352, top=46, size=0.8)


@dataclass(frozen=True)
class Frame:
    """The two axes of a picture."""

    across: marks.Axis
    up: marks.Axis

    @property
    def box(self) -> Box:
        """Left, top, right and bottom of what they span."""
        return self.across.first, self.up.last, self.across.last, self.up.first

    def at(self, across: Cell, up: Cell) -> tuple[float, float]:
        """The pixel of a pair of means."""
        return self.across.at(100 * across.mean), self.up.at(100 * up.mean)


@dataclass(frozen=True)
class Expected:
    """The accuracy that reference models let expect at each ID accuracy: the line, and {name: (ID, other)} of the models it is fit to."""

    line: Baseline
    references: Mapping[str, tuple[Cell, Cell]]


def frontier_column(found: Sequence[Record]) -> str | None:
    """What ID accuracy is drawn against: shifts, or corruptions, unseen classes, contexts, agreement, whichever the data have first."""
    measured = {column for record in found if isinstance(record, Evaluation) for column in record.accuracy}
    if "test" not in measured:
        return None
    unseen = sorted(column for column in measured if column.startswith("unseen/"))
    return next((c for c in ("avg_shifts", "avg_corruptions", *unseen, "context", "agreement") if c in measured), None)


def frontier_svg(records: Iterable[Record], on: str = "avg_shifts") -> str:
    """The frontier as a picture that stands alone: own legend, own white background, fixed colours.

    Each method is a curve of its means over seeds, named at its end, one dot for each alpha, with a title that shows its numbers. With
    up to three methods whiskers are the standard deviation over seeds, and the dashed chord joins the zero-shot and the fine-tuned
    model: without reference models it is no baseline of effective robustness. Where an ensemble of the outputs, the epochs of the run, the
    Fisher-weighted merge or the image tower alone were judged too, each is a thin broken line in the method's colour.

    Args:
        records: what `surefoot.records.read` yields.
        on: the accuracy to draw upwards, such as "avg_shifts", "unseen/icons" or "context".

    Raises:
        DataError: no evaluation among the records, or none that holds both "test" and `on`.
    """
    return frontier_of(collect(records), on)


def drawn_of(shown: Iterable[str]) -> list[str]:
    """Those of a table's columns that get a picture."""
    alone = ("avg_shifts", "avg_corruptions", "context", "agreement")
    return [column for column in shown if column in alone or column.startswith("unseen/")]


def frontier_of(runs: Runs, on: str, *, inline: Layout | None = None, expected: Expected | None = None) -> str:
    """The frontier of runs that are already collected.

    Args:
        runs: what `collect` gives.
        on: the accuracy to draw upwards.
        inline: the layout on a page, which has legend and colours of its own.
        expected: the line of the reference models; it takes the place of the chords.
    """
    curves = list(curves_of(runs, on))
    zero = zero_shot_of(runs, on)
    if not curves and zero is None:
        known = ", ".join(column for column in columns(rows_of(runs)) if column != "test") or "none"
        raise DataError(
            f"No record holds an accuracy on 'test' and one on '{on}'. Known: {known}. Name one of these, or evaluate it first."
        )
    layout = inline or (ALONE if len(curves) <= FEW else ALONE_MANY)
    others = [] if expected else beside(runs, on)
    floor = None if expected else _floor(curves, others, zero)
    names = [_called(curve, floor) for curve in curves]
    plot = layout.plot(names)
    means = expected.references.values() if expected else [mean for one in others for mean in one.means]
    frame = _frame(curves, zero, plot, means, floor)
    views = [_view(curve, others, frame, header(on), layout.size) for curve in curves]
    legend = [] if inline else keys(curves, others, still=True)
    letters = max((len(text) for text in (runs.dataset, *(key["text"] for key in legend))), default=0)
    return render(
        "frontier.svg.j2",
        inline=inline is not None,
        hint=layout.hint,
        size=(layout.width, layout.height) if inline else _size_alone(layout, letters, len(legend)),
        legend_at=layout.width + 12,
        dataset=runs.dataset,
        plot=plot,
        frame=frame,
        labels=("ID accuracy (%)", f"{header(on)} (%)" if on == "agreement" else f"{header(on)} accuracy (%)"),
        summary=summary(curves, zero, header(on)),
        curves=[view | {"chord": None} for view in views] if expected else views,
        expected=_expected(expected, frame, header(on), layout.size) if expected else None,
        names=_names(curves, names, frame, plot),
        few=len(curves) <= FEW,
        zero=None if zero is None else _star(zero, frame, header(on)),
        legend=legend,
        style=css(marks.palette("light")),
    )


def css(colours: object) -> Markup:
    """The rules that all pictures share, with colours from `palette` or `variables`."""
    return Markup(render("frontier.css.j2", colours=colours))


def keys(curves: Sequence[Curve], others: Sequence[Beside] = (), *, still: bool = False) -> list[dict[str, str]]:
    """The legend of what these curves, and `others` beside them, show: a picture of 28 by 16 pixels and a text for each entry.

    A `still` picture shows nothing when pointed at, so what appears only then has no entry.
    """
    dots = [dot for curve in curves for dot in curve.dots]
    alphas = {dot.alpha for dot in dots}
    many = len({curve.label for curve in curves}) > FEW
    pointed = " (of the curve you point at)" if many else ""
    disc, small = marks.marker(0, 14, 8, 5), marks.marker(0, 14, 8, 3.6)
    rest = [
        ("star", marks.star(14, 8, 8), "zero-shot (α = 0)", True),
        ("small", small, "other α in between", bool(alphas - {0.0, 0.5, 1.0})),
        ("half", disc, "WiSE-FT, α = 0.5", 0.5 in alphas),
        ("full", disc, "fine-tuned (α = 1)", 1.0 in alphas),
        ("ring", marks.marker(0, 14, 8, 7), "α chosen on ID validation", any(dot.num_chose for dot in dots)),
        ("whisker", "M14 1V15M5 8H23", f"± 1 std. over seeds{pointed}", any(dot.across.spread or dot.up.spread for dot in dots)),
        ("chord", "M1 12L27 4", f"chord, zero-shot to fine-tuned{pointed}", {0.0, 1.0} <= alphas),
    ]
    lines = dict.fromkeys(one.along for one in others)
    rest += [(f"beside {along}", "M1 8H27", NAMES.get(along, along) + ("" if still else pointed), True) for along in lines]
    hidden = ("whisker", "chord") if many and still else ()
    found = {curve.label: {"kind": "method", **key_of(curve.index)} for curve in curves}
    found |= {text: {"kind": kind, "css": "plain", "path": path} for kind, path, text, drawn in rest if drawn and kind not in hidden}
    return [{**picture, "text": text} for text, picture in found.items()]


def key_of(index: int) -> dict[str, str]:
    """Colour and shape of the method at `index`, for a legend's picture of 28 by 16 pixels."""
    return {"css": marks.css_class(index), "path": marks.marker(index, 14, 8, 5)}


def page_keys(runs: Runs, drawn: Iterable[str]) -> list[dict[str, str]]:
    """The legend that the pictures of a page share."""
    shown = list(drawn)
    return keys([curve for on in shown for curve in curves_of(runs, on)], [one for on in shown for one in beside(runs, on)])


def _size_alone(layout: Layout, letters: int, num_keys: int) -> tuple[int, int]:
    """Width and height of a picture with its legend at the right."""
    return round(layout.width + 60 + LETTER * letters), round(max(layout.height, 22 * num_keys + 54))


def _frame(
    curves: Iterable[Curve],
    zero: tuple[Cell, Cell] | None,
    plot: Box,
    others: Iterable[tuple[Cell, Cell]] = (),
    floor: float | None = None,
) -> Frame:
    """Axes that hold every dot and every whisker, as far as they do not lie below `floor` in percent."""
    pairs = [*((dot.across, dot.up) for curve in curves for dot in curve.dots), *([zero] if zero else []), *others]
    least = -math.inf if floor is None else floor
    pairs = [pair for pair in pairs if 100 * pair[1].mean >= least]
    left, top, right, bottom = plot
    return Frame(
        marks.Axis.around([end for across, _ in pairs for end in _ends(across)], left, right),
        marks.Axis.around([max(end, least) for _, up in pairs for end in _ends(up)], bottom, top),
    )


def _ends(value: Cell) -> tuple[float, float]:
    """Mean minus and plus the spread, in percent."""
    spread = value.spread or 0.0
    return 100 * (value.mean - spread), 100 * (value.mean + spread)


def _names(curves: Sequence[Curve], texts: Sequence[str], frame: Frame, plot: Box) -> list[dict[str, object]]:
    """The name of each curve in the column beside the plot, as near to the curve's end as the others allow, and a line that leads there."""
    ends = [frame.at(curve.dots[-1].across, curve.dots[-1].up) for curve in curves]
    _, top, right, bottom = plot
    found = []
    places = marks.spread_out([min(y, bottom) for _, y in ends], LINE, top, bottom)
    for curve, text, (x, y), place in zip(curves, texts, ends, places, strict=True):
        there = bool(inside([(x, y)], plot))
        leader = f"M{x + 8:.1f} {y:.1f}L{max(right, x + 8) + 6:.1f} {place:.1f}h6" if there else ""
        mark = marks.marker(curve.index, right + 17, place, 4)
        found.append({"text": _short(curve.label) if there else text, "x": right + 25, "y": place + 4, "leader": leader, "mark": mark})
    return found


def _floor(curves: Sequence[Curve], others: Sequence[Beside], zero: tuple[Cell, Cell] | None) -> float | None:
    """Where the axis upwards begins, in percent, if the lowest method would squeeze the others; None where the axes hold every dot."""
    each = {curve.index: [end for dot in curve.dots if dot.alpha > 0 for end in _ends(dot.up)] for curve in curves}
    for one in others:
        each.setdefault(one.index, []).extend(100 * up.mean for _, up in one.means)
    return floor_of(each, _ends(zero[1]) if zero else ())


def _called(curve: Curve, floor: float | None) -> str:
    """What stands beside a curve; where its end lies below the picture, the accuracy there too."""
    end = 100 * curve.dots[-1].up.mean
    return _short(curve.label) if floor is None or end >= floor else f"{_short(curve.label, LONGEST_NAME - 7)} ↓ {end:.1f}"


def _star(zero: tuple[Cell, Cell], frame: Frame, name: str) -> dict[str, str]:
    return {
        "path": marks.star(*frame.at(*zero), 10),
        "title": dot_title("zero-shot", 0.0, *zero, name),
        "tip": f"ID {zero[0]} · {name} {zero[1]}",
    }


def _view(curve: Curve, others: Iterable[Beside], frame: Frame, name: str, size: float) -> dict[str, object]:
    """The shapes of a curve: the line, the chord, for each dot its marker, whiskers and ring, and the lines beside it."""
    at = [frame.at(dot.across, dot.up) for dot in curve.dots]
    ends = [dot.alpha for dot in curve.dots]
    there = [bool(inside([place], frame.box)) for place in at]
    chord = (at[0], at[-1]) if len(at) > 1 and (ends[0], ends[-1]) == (0.0, 1.0) else None
    main = max(curve.dots, key=lambda dot: dot.num_chose)
    shown = [dot for dot in curve.dots if dot.alpha in (0.5, 1.0)]
    return {
        "css": marks.css_class(curve.index),
        "label": curve.label,
        "line": joined(inside(at, frame.box)) if len(at) > 2 else "",
        "chord": _chord(chord, curve.index, frame.box) if chord else None,
        "beside": [_beside(other, frame, name, size) for other in others if other.index == curve.index],
        "dots": [
            _dot(curve, dot, frame, name, size, main=dot is main and dot.num_chose > 0)
            for dot, drawn in zip(curve.dots, there, strict=True)
            if drawn
        ],
        "tip": " · ".join(
            f"{'fine-tuned' if dot.alpha == 1 else 'α = 0.5'}: {100 * dot.across.mean:.1f} / {100 * dot.up.mean:.1f}" for dot in shown
        ),
        "rises": curve.dots[-1].up.mean > curve.dots[len(curve.dots) // 2].up.mean,
        "summary": summary([curve], None, name),
    }


def _beside(other: Beside, frame: Frame, name: str, size: float) -> dict[str, object]:
    """A line beside a curve, with a speck for each of its points."""
    at = [frame.at(*mean) for mean in other.means]
    return {
        "along": other.along,
        "line": joined(inside(at, frame.box)) if len(at) > 1 else "",
        "dots": [
            {
                "x": x,
                "y": y,
                "path": marks.marker(0, x, y, 2.4 * size),
                "title": other.title(point, name),
                "tip": (other.heading(point), f"ID {point.across} · {name} {point.up}"),
            }
            for point, (x, y) in zip(other.points, at, strict=True)
            if inside([(x, y)], frame.box)
        ],
    }


def _dot(curve: Curve, dot: Dot, frame: Frame, name: str, size: float, *, main: bool) -> dict[str, object]:
    """One dot; `main` says that most seeds chose this alpha."""
    x, y = frame.at(dot.across, dot.up)
    kind = {1.0: "full", 0.5: "half"}.get(dot.alpha, "small")
    near = f"α = {dot.alpha:g}" + (", chosen" if main else "")
    return {
        "x": x,
        "y": y,
        "kind": kind,
        "path": marks.marker(curve.index, x, y, size * (3.6 if kind == "small" else 5.5)),
        "whiskers": _whiskers(dot, frame),
        "ring": marks.marker(0, x, y, size * 8.5) if dot.num_chose else "",
        "near": near if (kind == "half" or main) and dot.alpha < 1 else "",
        "title": "; ".join(filter(None, (dot_title(curve.label, dot.alpha, dot.across, dot.up, name), dot.chosen))),
        "tip": (
            ", ".join(filter(None, (f"{curve.label}, α = {dot.alpha:g}", dot.chosen.replace("on ID validation ", "")))),
            f"ID {dot.across} · {name} {dot.up}",
        ),
    }


def _expected(expected: Expected, frame: Frame, name: str, size: float) -> dict[str, object]:
    """The line, drawn through between the references and dotted where it goes on without them, and a cross for each reference."""
    low, high = (100 * end for end in (expected.line.low, expected.line.high))
    parts = {"beyond": [(frame.across.low, low), (high, frame.across.high)], "baseline": [(low, high)]}
    dots = []
    for label, (across, up) in expected.references.items():
        x, y = frame.at(across, up)
        text, path = f"ID {across} · {name} {up}", cross(x, y, 6 * size)
        dots.append({"x": x, "y": y, "path": path, "title": f"{label}: {text}", "tip": (label, text)})
    paths = [(kind, "".join(_line(expected.line, frame, *part) for part in found)) for kind, found in parts.items()]
    return {"paths": paths, "dots": dots}


def _line(line: Baseline, frame: Frame, first: float, last: float) -> str:
    """Path data of the part of the line between two ID accuracies in percent that lies inside the axes."""
    first, last = max(first, frame.across.low, 0.0), min(last, frame.across.high, 100.0)
    steps = [first + (last - first) * step / 60 for step in range(61)] if first < last else []
    pairs = [(value, 100 * line.at(min(max(value / 100, 0.0), 1.0))) for value in steps]
    inside = [(frame.across.at(x), frame.up.at(y)) for x, y in pairs if frame.up.low <= y <= frame.up.high]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in inside) if len(inside) > 1 else ""


def cross(x: float, y: float, radius: float) -> str:
    """Path data of the cross that marks a reference model."""
    return f"M{x - radius:.1f} {y - radius:.1f}l{2 * radius:g} {2 * radius:g}m{-2 * radius:g} 0l{2 * radius:g} {-2 * radius:g}"


def _chord(ends: tuple[Place, Place], index: int, box: Box) -> dict[str, object]:
    """The chord, and the place of its name: turned to read from left to right, further along for each method so that none collide."""
    (x0, y0), (x1, y1) = ends
    angle = math.degrees(math.atan2(y1 - y0, x1 - x0))
    along = 0.4 + 0.15 * (index % 4)
    return {
        "path": joined(inside(ends, box)),
        "x": x0 + (x1 - x0) * along,
        "y": y0 + (y1 - y0) * along,
        "angle": angle if abs(angle) <= 90 else angle - math.copysign(180, angle),
        "named": math.hypot(x1 - x0, y1 - y0) > 120 and bool(inside([ends[1]], box)),
    }


def _whiskers(dot: Dot, frame: Frame) -> str:
    """Path data of both whiskers, empty without a spread."""
    x, y = frame.at(dot.across, dot.up)
    path = ""
    if dot.across.spread:
        left, right = (min(max(frame.across.at(end), frame.box[0]), frame.box[2]) for end in _ends(dot.across))
        path += f"M{left:.1f} {y:.1f}H{right:.1f}"
    if dot.up.spread:
        low, high = (min(max(frame.up.at(end), frame.box[1]), frame.box[3]) for end in _ends(dot.up))
        path += f"M{x:.1f} {low:.1f}V{high:.1f}"
    return path


def _short(name: str, letters: int = LONGEST_NAME) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"
