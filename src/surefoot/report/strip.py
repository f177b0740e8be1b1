"""A strip chart: a band for each set of images, a lane in it for each method from fine-tuned to WiSE-FT, the zero-shot model as a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surefoot.report import marks
from surefoot.report.pictures import Picture
from surefoot.report.table import MISSING, Cell

MOST_BANDS = 5  # in one picture
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
        """What sets may be sorted by: zero-shot accuracy, or else the mean of what is there."""
        return self.zero.mean if self.zero else sum(cell.mean for cell in self.cells) / len(self.cells)

    @property
    def texts(self) -> list[str]:
        """The numbers of a set: zero-shot, then for each method "fine-tuned → WiSE-FT", without spreads."""
        return [_percent(self.zero), *(f"{_percent(lane.tuned)} → {_percent(lane.merged)}" for lane in self.lanes)]


def axis_of(bands: Sequence[Band]) -> marks.Axis | None:
    """The axis that holds all accuracies of the bands; None where there are none."""
    values = [100 * cell.mean for band in bands for cell in band.cells]
    return marks.Axis.around(values, LEFT, RIGHT) if values else None


def strips(title: str, bands: Sequence[Band], axis: marks.Axis, merge: str) -> list[Picture]:
    """A picture for every few bands, in their order.

    Args:
        title: of the first picture; the others are its continuations.
        bands: what is shown.
        axis: that all of them share.
        merge: what stands for WiSE-FT, as the name of its row ends.
    """
    num_pictures = -(-len(bands) // MOST_BANDS)
    size = -(-len(bands) // max(num_pictures, 1))
    parts = [bands[start : start + size] for start in range(0, len(bands), max(size, 1))]
    return [_picture(title + (" (continued)" if number else ""), part, axis, merge) for number, part in enumerate(parts)]


def _picture(title: str, bands: Sequence[Band], axis: marks.Axis, merge: str) -> Picture:
    views, y = [], TOP
    for band in bands:
        views.append(_view(band, axis, y, merge))
        y += HEADING + LANE * len(band.lanes) + LANE + GAP
    spoken = "; ".join(f"{band.name}: zero-shot {band.zero or MISSING}, {_spoken(band)}" for band in bands)
    values = {
        "bounds": (LEFT, TOP, RIGHT, y - GAP / 2),
        "ticks": axis.ticks(),
        "bands": views,
        "summary": f"Accuracy in percent. {spoken}.",
    }
    return Picture(title, "strip.svg.j2", (WIDTH, y + 26), values)


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


def _spoken(band: Band) -> str:
    return ", ".join(f"{lane.label} {_percent(lane.tuned)}, with WiSE-FT {_percent(lane.merged)}" for lane in band.lanes)


def _percent(cell: Cell | None) -> str:
    return MISSING if cell is None else f"{100 * cell.mean:.1f}"
