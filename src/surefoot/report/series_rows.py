"""A protocol's table from its records: the last one that was written, its rows and columns, and the differences between them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from surefoot.errors import DataError
from surefoot.records import Difference, Record, Series, Summary
from surefoot.report.contrasts import contrast, signed
from surefoot.report.runs import CHOSEN, HALF, ZERO_SHOT, display_name
from surefoot.report.table import Cell, Row, cell_of

OVER = {
    "ID": "on ID",
    "Avg. shifts": "on the average of the shifts",
    "Avg.": "on average",
    "HM": "in the harmonic mean",
    "Avg./HM": "in the harmonic mean of both averages",
    "Avg./Base": "on base classes on average",
    "Avg./New": "on new classes on average",
    "Transferred to/Avg.": "on average of what it was transferred to",
    "Image tower/Avg.": "in context recognition by the image tower",
    "Both towers/Avg.": "by both towers",
}


@dataclass(frozen=True)
class Standing:
    """The table of a protocol. Columns are called what differences call them: "group/name", or "name" without a group.

    Attributes:
        series: what was run.
        columns: {column: (group, name)}, in the order of the table.
        rows: of the table; `method` is that of the row without WiSE-FT.
        differences: by what is compared, and on which column.
        num_images: {column: the images behind it}.
        seeds: {row: all its seeds}.
    """

    series: Series
    columns: Mapping[str, tuple[str, str]]
    rows: list[Row]
    differences: Mapping[tuple[str, str, str], Difference]
    num_images: Mapping[str, int]
    seeds: Mapping[str, list[int]]

    @property
    def methods(self) -> list[str]:
        """The methods that fine-tune, in the order of the table."""
        return list(dict.fromkeys(row.method for row in self.rows if row.method != ZERO_SHOT))

    @property
    def headings(self) -> dict[str, str]:
        """{column: heading} for a table with one row of headings."""
        return {column: f"{group}: {name}" if group else name for column, (group, name) in self.columns.items()}

    @property
    def names(self) -> dict[str, str]:
        """{column: heading} for a table with the groups in a row above."""
        return {column: name for column, (_, name) in self.columns.items()}

    @property
    def spans(self) -> list[tuple[str, int]]:
        """The heading of each group with the number of its columns, "" for columns without one; nothing where no column has a group."""
        along = f": {self.series.along}" if self.series.along else ""
        each = itertools.groupby(group for group, _ in self.columns.values())
        found = [(group + along if group else "", len(list(columns))) for group, columns in each]
        return found if any(group for group, _ in found) else []

    @property
    def groups(self) -> dict[str, list[str]]:
        """{group: its columns}."""
        found: dict[str, list[str]] = {}
        for column, (group, _) in self.columns.items():
            found.setdefault(group, []).append(column)
        return found

    @property
    def merge(self) -> str:
        """How the names of the rows end that stand for WiSE-FT: chosen on ID validation, or alpha 0.5 where nothing was chosen."""
        return CHOSEN if any(row.name.endswith(CHOSEN) for row in self.rows) else HALF

    def cell(self, row: str, column: str) -> Cell | None:
        """One cell, if it is there."""
        return next((one.cells.get(column) for one in self.rows if one.name == row), None)


def standing_of(records: Iterable[Record]) -> Standing:
    """The last table among the records: the last series, and what shares its `runs`.

    Raises:
        DataError: no series, or one whose table has not been written.
    """
    found = list(records)
    series = next((record for record in reversed(found) if isinstance(record, Series)), None)
    cells = [record for record in found if isinstance(record, Summary) and series and record.runs == series.runs]
    if series is None or not cells:
        raise DataError(
            "There is no finished protocol among the records; its table is written when all parts are done. "
            "Run its command again with the same --out: what is done is kept."
        )
    columns = {on(group, name): (group, name) for group, name in series.columns}
    by_row: dict[str, dict[str, Summary]] = {}
    for one in cells:
        by_row.setdefault(one.row, {})[on(one.group, one.column)] = one
    drawn = [record for record in found if isinstance(record, Difference) and record.runs == series.runs]
    return Standing(
        series=series,
        columns=columns,
        rows=[_row(name, row, columns) for name, row in by_row.items()],
        differences={(one.a, one.b, one.on): one for one in drawn if one.on in columns},
        num_images={on(one.group, one.column): one.num_images for one in cells},
        seeds={name: sorted({seed for one in row.values() for seed in one.seeds}) for name, row in by_row.items()},
    )


def on(group: str, name: str) -> str:
    """How differences call a column.

    Examples:
        >>> on("pets", "New"), on("", "Avg.")
        ('pets/New', 'Avg.')
    """
    return f"{group}/{name}" if group else name


def telling(table: Standing) -> list[str]:
    """The columns that sum a table up: the last one, which is a mean mostly; of curves and of contexts the last one of each group.

    For "shift" they are ID and the mean of the shifts, for "cross" base and new classes of the last group, which is the mean if there is
    one.
    """
    groups, last = table.groups, list(table.columns)[-1]
    if table.series.along or table.series.protocol == "context":
        return [columns[-1] for columns in groups.values()]
    if table.series.protocol == "cross":
        return groups[table.columns[last][0]]
    if table.series.protocol == "shift":
        return [column for column in table.columns if column in ("ID", "Avg. shifts")] or [last]
    return [last]


def sentences(table: Standing) -> list[str]:
    """One sentence for each method: what it gains or loses against zero-shot where the table is summed up, and so with WiSE-FT.

    The method with the highest accuracy in the last of these columns comes first; a change whose interval holds 0 is marked undecided.
    """
    shown = telling(table)
    told = [(method, text) for method in table.methods if (text := _claims(table, method, shown, "zero-shot"))]
    last = table.columns[shown[-1]][1]
    lead = f"At {last} {table.series.along}, " if table.series.along else ""
    found = []
    for method, text in sorted(told, key=lambda one: -_mean(table, one[0], shown)):
        merged = _claims(table, method + table.merge, shown)
        more = f"; with {table.merge.removeprefix(' + ')} it {merged}" if merged else ""
        found.append(f"{lead}{display_name(method)} {text}{more}.")
    return found or ["There is no pair of models yet that could be compared."]


def _mean(table: Standing, row: str, shown: Sequence[str]) -> float:
    return next((cell.mean for column in reversed(shown) if (cell := table.cell(row, column))), 0.0)


def _claims(table: Standing, row: str, shown: Sequence[str], against: str = "") -> str:
    """Such as "gains 3.1 points over zero-shot on average (+2.0 to +4.1)"; nothing where the row stands against no zero-shot model."""
    said: list[str] = []
    for column in shown:
        found = table.differences.get((row, ZERO_SHOT, column))
        if found is None:
            continue
        gains = round(100 * found.mean, 1) >= 0
        text = f"{'gains' if gains else 'loses'} {signed(abs(found.mean)).lstrip('+')}" + (" points" if not said else "")
        text += f" {'over' if gains else 'to'} {against}" if against and not said else ""
        text += f" {_where(table, column)}" if against or len(shown) > 1 else ""
        said.append(f"{text} ({contrast(found).interval}{', undecided' if found.undecided else ''})")
    return " and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)


def _where(table: Standing, column: str) -> str:
    """A column in a sentence; of a curve the group alone."""
    group, name = table.columns[column]
    if table.series.along and group:
        return OVER.get(group, f"on {group.replace('Unseen', 'unseen classes')}")
    return OVER.get(column, f"on {group} {name}" if group else f"on {name}")


def _row(name: str, cells: Mapping[str, Summary], columns: Iterable[str]) -> Row:
    found = {column: cell_of(cells[column].values) for column in columns if column in cells}
    method = name.removesuffix(HALF).removesuffix(CHOSEN)
    return Row(name, display_name(name), method, {column: cell for column, cell in found.items() if cell is not None})
