"""The pictures of a protocol's table: a curve for each method along a number, such as images a class, or strips, a band a column."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from surefoot.report import marks
from surefoot.report.pictures import Key, Picture, alone, method_key, zero_key
from surefoot.report.runs import ZERO_SHOT, display_name
from surefoot.report.series_rows import Standing
from surefoot.report.squeezed import floor_of, inside, joined
from surefoot.report.strip import Band, Lane, axis_of, strips
from surefoot.report.table import Cell

UNGROUPED = {"domains": "Held-out domains", "transfer": "Data sets", "shift": "ID and means", "base-to-new": "Base and new classes"}
SIZE, LEFT, TOP, RIGHT, BOTTOM = (440.0, 330.0), 52.0, 44.0, 430.0, 284.0
FIRST, LAST = LEFT + 44.0, RIGHT - 18.0  # the outermost points; the star of the zero-shot model stands before them
FEW = 3  # up to so many methods show whiskers
APART = 5.0  # the distance of two rows at one number, so that their whiskers do not cover each other
LETTER, STAR = 6.5, 8.0
BELOW = "M{x:.1f} {y:.1f}l-5 -8h10Z"  # the mark of what lies below the axis, its tip at (x, y)


@dataclass(frozen=True)
class Course:
    """One row of the table along the columns of a group; None where the row lacks a column."""

    index: int
    label: str
    merged: bool
    cells: Sequence[Cell | None]


@dataclass(frozen=True)
class Plot:
    """What the courses of one group are drawn on: the columns and their pixels, the axis upwards, and the zero-shot model."""

    names: Sequence[str]
    along: str
    at: Sequence[float]
    up: marks.Axis
    zero: Sequence[Cell | None]
    whiskers: bool

    def y(self, cell: Cell) -> float:
        """The pixel of a mean."""
        return self.up.at(100 * cell.mean)


def pictures_of(table: Standing) -> list[Picture]:
    """A line chart for each group where columns are points along a number, otherwise strip charts."""
    draw = _lines if table.series.along else _strips
    return [picture for group in table.groups for picture in draw(table, group)]


def legend_of(table: Standing) -> list[Key]:
    """Zero-shot, each method, and what open marks and whiskers are."""
    found = [zero_key(), *(method_key(index, display_name(method)) for index, method in enumerate(table.methods))]
    if any(row.name.endswith(table.merge) for row in table.rows):
        css = "between broken plain" if table.series.along else "between plain"
        shapes = [(css, "M1 8H27"), ("open plain", marks.marker(0, 14, 8, 4.4))]
        found.append(Key(f"with {table.merge.removeprefix(' + ')}", shapes))
    if table.series.along and _whiskers(table):
        found.append(Key("± 1 std. over seeds", [("whisker plain", "M14 1V15")]))
    if table.series.along and any(_floor(table, group) is not None for group in table.groups):
        found.append(Key("below the axis, with its value", [("solid plain", BELOW.format(x=14, y=13))]))
    return found


def picture_svg(table: Standing, title: str) -> str:
    """All pictures with their legend, as a file that stands alone."""
    return alone(title, pictures_of(table), legend_of(table))


def places(names: Sequence[str]) -> list[float]:
    """The pixels of numbers on an axis of their logarithms; what are no positive numbers stand in equal steps.

    Examples:
        >>> places(["1", "2", "4"]), places(["few", "many"])
        ([96.0, 254.0, 412.0], [96.0, 412.0])
    """
    try:
        values = [math.log2(float(name)) for name in names]
    except ValueError:
        values = [float(number) for number in range(len(names))]
    low, high = min(values), max(values)
    return [FIRST + (value - low) / (high - low) * (LAST - FIRST) if high > low else (FIRST + LAST) / 2 for value in values]


def _strips(table: Standing, group: str) -> list[Picture]:
    bands = []
    for column in table.groups[group]:
        lanes = [
            Lane(index, display_name(method), table.cell(method, column), table.cell(method + table.merge, column))
            for index, method in enumerate(table.methods)
        ]
        bands.append(Band(table.columns[column][1], table.cell(ZERO_SHOT, column), lanes))
    axis = axis_of(bands)
    return strips(_title(table, group), bands, axis, table.merge) if axis else []


def _title(table: Standing, group: str) -> str:
    return group or UNGROUPED.get(table.series.protocol, "Accuracy")


def _lines(table: Standing, group: str) -> list[Picture]:
    columns = table.groups[group]
    names = [table.columns[column][1] for column in columns]
    courses, zero, whiskers = _courses(table, columns), [table.cell(ZERO_SHOT, column) for column in columns], _whiskers(table)
    cells = [cell for row in (zero, *(course.cells for course in courses)) for cell in row if cell]
    if not cells:
        return []
    floor = _floor(table, group)
    ends = [end for cell in cells for end in _ends(cell, whiskers)]
    up = marks.Axis.around([end for end in ends if floor is None or end >= floor], BOTTOM, TOP)
    plot = Plot(names, table.series.along, places(names), up, zero, whiskers)
    spoken = [f"{course.label} {_spoken(course.cells)}" for course in courses]
    title = _title(table, group)
    values = {
        "bounds": (LEFT, TOP, RIGHT, BOTTOM),
        "up": up.ticks(),
        "across": _readable(names, plot.at),
        "along": plot.along,
        "zero": _zero(plot),
        "methods": [(marks.css_class(index), found) for index, found in _drawn(plot, courses).items()],
        "summary": f"{title}: accuracy in percent at {', '.join(names)} {plot.along}. "
        + "; ".join([f"zero-shot {_spoken(zero)}"] * any(zero) + spoken)
        + ".",
    }
    return [Picture(title, "lines.svg.j2", SIZE, values)]


def _floor(table: Standing, group: str) -> float | None:
    """Where the axis upwards begins, in percent, if the lowest method would squeeze the others; None where the axis holds all."""
    columns, whiskers = table.groups[group], _whiskers(table)

    def ends(*names: str) -> list[float]:
        cells = [cell for name in names for cell in (table.cell(name, column) for column in columns) if cell]
        return [end for cell in cells for end in _ends(cell, whiskers)]

    return floor_of({method: ends(method, method + table.merge) for method in table.methods}, ends(ZERO_SHOT))


def _courses(table: Standing, columns: Sequence[str]) -> list[Course]:
    """Each method as fine-tuned and with WiSE-FT, as far as it has a cell in any of the columns."""
    found = []
    for index, method in enumerate(table.methods):
        for merged, name in ((False, method), (True, method + table.merge)):
            cells = [table.cell(name, column) for column in columns]
            if any(cells):
                found.append(Course(index, display_name(name), merged, cells))
    return found


def _drawn(plot: Plot, courses: Sequence[Course]) -> dict[int, list[dict[str, object]]]:
    """{method: the shapes of its courses}; with whiskers the courses stand a little apart at each number."""
    step = min((b - a for a, b in itertools.pairwise(sorted(plot.at)) if b > a), default=60.0)
    gap = min(APART, step / 2 / max(len(courses), 1)) if plot.whiskers else 0.0
    found: dict[int, list[dict[str, object]]] = {}
    for number, course in enumerate(courses):
        found.setdefault(course.index, []).append(_course(plot, course, gap * (number - (len(courses) - 1) / 2)))
    return found


def _course(plot: Plot, course: Course, aside: float) -> dict[str, object]:
    at = [(x + aside, plot.y(cell)) if cell else None for x, cell in zip(plot.at, course.cells, strict=True)]
    points = [
        _point(plot, course, number, cell, *place)
        for number, (cell, place) in enumerate(zip(course.cells, at, strict=True))
        if cell and place
    ]
    parts = [
        inside([place for place in part if place], (0.0, 0.0, SIZE[0], BOTTOM)) for there, part in itertools.groupby(at, key=bool) if there
    ]
    line = joined([run for part in parts for run in part])
    return {"line": line, "css": "broken" if course.merged else "", "points": points}


def _point(plot: Plot, course: Course, number: int, cell: Cell, x: float, y: float) -> dict[str, object]:
    low, high = (min(plot.up.at(end), BOTTOM) for end in _ends(cell, plot.whiskers))
    zero, below, y = plot.zero[number], y > BOTTOM, min(y, BOTTOM)
    return {
        "rise": 14 if course.merged else 3,  # of the value, so that two of one method can be read
        "x": x,
        "y": y,
        "css": "open" if course.merged else "solid",
        "path": BELOW.format(x=x, y=y) if below else marks.marker(course.index, x, y, 3.4 if course.merged else 4.6),
        "below": f"{100 * cell.mean:.1f}" if below else "",
        "whisker": f"M{x:.1f} {low:.1f}V{high:.1f}" if low != high else "",
        "tip": (f"{course.label}, {plot.names[number]} {plot.along}", f"{cell}" + (f" (zero-shot {zero})" if zero else "")),
    }


def _zero(plot: Plot) -> dict[str, str] | None:
    """The line of the zero-shot model over the whole width, which bends only where the columns are different images."""
    there = sorted((x, plot.y(cell), str(cell)) for x, cell in zip(plot.at, plot.zero, strict=True) if cell)
    if not there:
        return None
    path = f"M{LEFT:.1f} {there[0][1]:.1f}" + "".join(f"L{x:.1f} {y:.1f}" for x, y, _ in there) + f"H{RIGHT:.1f}"
    texts = list(dict.fromkeys(text for _, _, text in there))
    return {"path": path, "star": marks.star(LEFT + 14, there[0][1], STAR), "tip": ", ".join(texts)}


def _readable(names: Sequence[str], at: Sequence[float]) -> list[tuple[str, float]]:
    """Each name with its pixel, without the text of those that would touch the one before."""
    found, end = [], -math.inf
    for x, name in sorted(zip(at, names, strict=True)):
        half = LETTER * len(name) / 2 + 2
        fits = x - half >= end
        found.append((name if fits else "", x))
        end = x + half if fits else end
    return found


def _whiskers(table: Standing) -> bool:
    """Whether whiskers are drawn: some row has several seeds, and there are few methods."""
    return len(table.methods) <= FEW and any(cell.spread for row in table.rows for cell in row.cells.values())


def _ends(cell: Cell, whiskers: bool) -> tuple[float, float]:
    """Mean minus and plus the spread, in percent."""
    spread = cell.spread or 0.0 if whiskers else 0.0
    return 100 * (cell.mean - spread), 100 * (cell.mean + spread)


def _spoken(cells: Sequence[Cell | None]) -> str:
    return ", ".join(f"{100 * cell.mean:.1f}" if cell else "none" for cell in cells)
