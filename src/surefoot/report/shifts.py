"""Accuracy under each shift and each corruption: a row for each set, a lane in it for each method, the zero-shot model as a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from surefoot.report import marks
from surefoot.report.frontier import key_of
from surefoot.report.runs import CHOSEN, HALF, ZERO_SHOT, Runs, display_name
from surefoot.report.table import MISSING, Cell, Row, header
from surefoot.report.templates import render

SETS = {"shifts/": "Shifts", "restricted/": "Shifts, only their own classes competing", "corruptions/": "Corruptions of the test images"}
MOST_SETS = 5  # in one picture
WIDTH, LEFT, RIGHT, TOP = 440.0, 14.0, 426.0, 44.0
HEADING, LANE, GAP = 19.0, 9.0, 11.0


@dataclass(frozen=True)
class Lane:
    """One method on one set: as fine-tuned, and with WiSE-FT; either may be missing."""

    index: int
    label: str
    tuned: Cell | None
    merged: Cell | None


@dataclass(frozen=True)
class Band:
    """One set: its name, the zero-shot accuracy, and a lane for each method."""

    name: str
    zero: Cell | None
    lanes: list[Lane]

    @property
    def cells(self) -> list[Cell]:
        """All accuracies of the set."""
        return [cell for cell in (self.zero, *(end for lane in self.lanes for end in (lane.tuned, lane.merged))) if cell]

    @property
    def order(self) -> float:
        """What the sets are sorted by: zero-shot accuracy, or else the mean of what is there."""
        return self.zero.mean if self.zero else sum(cell.mean for cell in self.cells) / len(self.cells)


def section(runs: Runs, table: Sequence[Row]) -> dict[str, object] | None:
    """What the section shows, or None without any shift or corruption: pictures, legend, and the numbers as a table."""
    merge = merge_of(table)
    groups = {title: _bands(runs, table, prefix, merge) for prefix, title in SETS.items()}
    values = [100 * cell.mean for bands in groups.values() for band in bands for cell in band.cells]
    if not values:
        return None
    axis = marks.Axis.around(values, LEFT, RIGHT)
    return {
        "pictures": [picture for title, bands in groups.items() for picture in _pictures(title, bands, axis, merge)],
        "methods": [{**key_of(index), "text": display_name(method)} for index, method in enumerate(runs.methods)],
        "merge": merge.removeprefix(" + "),
        "headers": ["zero-shot", *(display_name(method) for method in runs.methods)],
        "groups": {title: [(band.name, _texts(band)) for band in bands] for title, bands in groups.items() if bands},
    }


def merge_of(table: Sequence[Row]) -> str:
    """Which of a method's other rows stands for WiSE-FT: the one chosen on ID validation, or alpha 0.5 while nothing was chosen."""
    return CHOSEN if any(row.name.endswith(CHOSEN) for row in table) else HALF


def _bands(runs: Runs, table: Sequence[Row], prefix: str, merge: str) -> list[Band]:
    """The sets whose name begins with `prefix`, the easiest for zero-shot first."""
    cells = {row.name: row.cells for row in table}
    bands = []
    for column in dict.fromkeys(name for row in table for name in row.cells if name.startswith(prefix)):
        lanes = [
            Lane(index, display_name(method), cells.get(method, {}).get(column), cells.get(method + merge, {}).get(column))
            for index, method in enumerate(runs.methods)
        ]
        bands.append(Band(header(column), cells.get(ZERO_SHOT, {}).get(column), lanes))
    return sorted(bands, key=lambda band: -band.order)


def _pictures(title: str, bands: Sequence[Band], axis: marks.Axis, merge: str) -> list[tuple[str, Markup]]:
    """A heading and a picture for every few sets."""
    num_pictures = -(-len(bands) // MOST_SETS)
    size = -(-len(bands) // max(num_pictures, 1))
    parts = [bands[start : start + size] for start in range(0, len(bands), max(size, 1))]
    return [(title + (" (continued)" if number else ""), Markup(_picture(part, axis, merge))) for number, part in enumerate(parts)]


def _picture(bands: Sequence[Band], axis: marks.Axis, merge: str) -> str:
    views, y = [], TOP
    for band in bands:
        views.append(_view(band, axis, y, merge))
        y += HEADING + LANE * len(band.lanes) + LANE + GAP
    return render(
        "shifts.svg.j2",
        size=(WIDTH, y + 26),
        bounds=(LEFT, TOP, RIGHT, y - GAP / 2),
        ticks=axis.ticks(),
        bands=views,
        summary="Accuracy in percent. "
        + "; ".join(f"{band.name}: zero-shot {band.zero or MISSING}, {_spoken(band)}" for band in bands)
        + ".",
    )


def _view(band: Band, axis: marks.Axis, top: float, merge: str) -> dict[str, object]:
    """The shapes of one set, from its heading down."""
    first = top + HEADING + LANE / 2
    zero = axis.at(100 * band.zero.mean) if band.zero else None
    return {
        "name": band.name,
        "y": top + 12,
        "zero": None
        if zero is None
        else {"x": zero, "path": marks.star(zero, first, 6.5), "title": f"{band.name}, zero-shot: {band.zero}"},
        "span": (first, first + LANE * len(band.lanes) + LANE / 2),
        "lanes": [_lane(band, lane, axis, first + LANE * (number + 1), merge) for number, lane in enumerate(band.lanes)],
    }


def _lane(band: Band, lane: Lane, axis: marks.Axis, y: float, merge: str) -> dict[str, object]:
    tuned, merged = (None if end is None else axis.at(100 * end.mean) for end in (lane.tuned, lane.merged))
    said = [f"fine-tuned {lane.tuned}"] * (lane.tuned is not None) + [f"{merge.removeprefix(' + ')} {lane.merged}"] * (
        lane.merged is not None
    )
    return {
        "css": marks.css_class(lane.index),
        "y": y,
        "line": "" if tuned is None or merged is None else f"M{tuned:.1f} {y:.1f}H{merged:.1f}",
        "tuned": "" if tuned is None else marks.marker(lane.index, tuned, y, 3.8),
        "merged": "" if merged is None else marks.marker(lane.index, merged, y, 3.8),
        "tip": (f"{band.name}, {lane.label}", ", ".join(said) + (f" (zero-shot {band.zero})" if band.zero else "")),
    }


def _texts(band: Band) -> list[str]:
    """The numbers of a set: zero-shot, then for each method "fine-tuned → WiSE-FT", without spreads."""
    return [_percent(band.zero), *(f"{_percent(lane.tuned)} → {_percent(lane.merged)}" for lane in band.lanes)]


def _spoken(band: Band) -> str:
    return ", ".join(f"{lane.label} {_percent(lane.tuned)}, with WiSE-FT {_percent(lane.merged)}" for lane in band.lanes)


def _percent(cell: Cell | None) -> str:
    return MISSING if cell is None else f"{100 * cell.mean:.1f}"
