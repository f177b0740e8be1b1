"""Accuracy under each shift and each corruption: a row for each set, a lane in it for each method, the zero-shot model as a line."""

from __future__ import annotations

from collections.abc import Sequence

from surefoot.report.frontier import key_of
from surefoot.report.runs import CHOSEN, HALF, ZERO_SHOT, Runs, display_name
from surefoot.report.strip import Band, Lane, axis_of, strips
from surefoot.report.table import Row, header

SETS = {"shifts/": "Shifts", "restricted/": "Shifts, only their own classes competing", "corruptions/": "Corruptions of the test images"}


def section(runs: Runs, table: Sequence[Row]) -> dict[str, object] | None:
    """What the section shows, or None without any shift or corruption: pictures, legend, and the numbers as a table."""
    merge = merge_of(table)
    groups = {title: _bands(runs, table, prefix, merge) for prefix, title in SETS.items()}
    axis = axis_of([band for bands in groups.values() for band in bands])
    if axis is None:
        return None
    pictures = [picture for title, bands in groups.items() for picture in strips(title, bands, axis, merge)]
    return {
        "pictures": [(picture.title, picture.svg()) for picture in pictures],
        "methods": [{**key_of(index), "text": display_name(method)} for index, method in enumerate(runs.methods)],
        "merge": merge.removeprefix(" + "),
        "headers": ["zero-shot", *(display_name(method) for method in runs.methods)],
        "groups": {title: [(band.name, band.texts) for band in bands] for title, bands in groups.items() if bands},
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
