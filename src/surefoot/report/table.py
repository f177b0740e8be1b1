"""The table of results: one row for each set of weights that somebody would ship, means and spreads over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from surefoot.records import Evaluation, Record
from surefoot.report.runs import ZERO_SHOT, Runs, collect, display_name

HEADERS = {"test": "ID", "avg_shifts": "Avg. shifts", "context": "Context", "context_own": "Context, own text"}
MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """Accuracy over seeds, 0..1: the mean and the standard deviation with n - 1 below it, None for a single seed."""

    mean: float
    spread: float | None
    num_seeds: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f}" + ("" if self.spread is None else f" ± {100 * self.spread:.1f}")


@dataclass(frozen=True)
class Row:
    """One line of the table. `name` is what `Difference` records call it; `cells` maps a column such as "avg_shifts" to its cell."""

    name: str
    label: str
    method: str
    cells: Mapping[str, Cell]

    @property
    def num_seeds(self) -> int:
        """The most seeds behind any of its cells."""
        return max((cell.num_seeds for cell in self.cells.values()), default=0)


def rows(records: Iterable[Record]) -> list[Row]:
    """The rows of the table: zero-shot, then for each method fine-tuned, WiSE-FT 0.5 and WiSE-FT at each seed's chosen alpha.

    A row of which nothing has been evaluated yet is left out.

    Raises:
        DataError: no evaluation among the records, or several datasets.
    """
    return rows_of(collect(records))


def rows_of(runs: Runs) -> list[Row]:
    """The rows of runs that are already collected."""
    found = [(ZERO_SHOT, ZERO_SHOT, [runs.zero_shot] if runs.zero_shot else [])]
    for method in runs.methods:
        found.append((method, method, runs.at(method, 1.0)))
        found.append((f"{method} + WiSE-FT 0.5", method, runs.at(method, 0.5)))
        found.append((f"{method} + WiSE-FT (ID val.)", method, runs.chosen(method)))
    return [Row(name, display_name(name), method, _cells(evaluations)) for name, method, evaluations in found if evaluations]


def cell(evaluations: Iterable[Evaluation], column: str) -> Cell | None:
    """Mean and spread of one column, over the seeds that have it; None when no seed does."""
    values = [value for evaluation in evaluations if math.isfinite(value := evaluation.accuracy.get(column, math.nan))]
    if not values:
        return None
    return Cell(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def columns(table: Sequence[Row]) -> list[str]:
    """The columns of a table in reading order."""
    return in_order(column for row in table for column in row.cells)


def in_order(names: Iterable[str]) -> list[str]:
    """The names that are columns of a table, each once, in reading order: ID, mean of the shifts, each shift, unseen classes, contexts."""
    present = list(dict.fromkeys(names))
    order = ("test", "avg_shifts", "shifts/", "unseen/", "context", "context_own")
    return [column for group in order for column in present if (column.startswith(group) if group.endswith("/") else column == group)]


def header(column: str, among: Sequence[str] = ()) -> str:
    """The heading of a column; the name of an unseen set is given only where there are several `among` the columns.

    Examples:
        >>> header("test"), header("shifts/emoji"), header("unseen/icons")
        ('ID', 'emoji', 'Unseen')
        >>> header("unseen/icons", among=["unseen/icons", "unseen/birds"])
        'Unseen: icons'
    """
    group, _, name = column.partition("/")
    if group == "unseen" and name:
        return f"Unseen: {name}" if sum(other.startswith("unseen/") for other in among) > 1 else "Unseen"
    return name or HEADERS.get(column, column)


def row_label(row: Row, table: Sequence[Row]) -> str:
    """The label, with the number of seeds where the row has fewer than others; zero-shot has no seeds."""
    most = max(other.num_seeds for other in table)
    if row.method == ZERO_SHOT or row.num_seeds == most:
        return row.label
    return f"{row.label} ({row.num_seeds} of {most} seeds)"


def best(table: Sequence[Row], column: str) -> str | None:
    """The highest mean of a column as displayed, so that rows which read the same are marked alike; None for a table of one row."""
    means = [row.cells[column].mean for row in table if column in row.cells]
    return f"{100 * max(means):.1f}" if len(table) > 1 and means else None


def is_best(row: Row, table: Sequence[Row], column: str) -> bool:
    """Whether the row reads as high as the column's highest mean."""
    return column in row.cells and f"{100 * row.cells[column].mean:.1f}" == best(table, column)


def markdown(table: Sequence[Row]) -> str:
    """The table in Markdown: percent, mean ± standard deviation over seeds, the highest mean in bold."""
    shown = columns(table)
    lines = [["", *(_plain(header(column, shown)) for column in shown)], ["---", *("---:" for _ in shown)]]
    for row in table:
        texts = [str(row.cells.get(column, MISSING)) for column in shown]
        marked = [f"**{text}**" if is_best(row, table, column) else text for text, column in zip(texts, shown, strict=True)]
        lines.append([_plain(row_label(row, table)), *marked])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def rich_table(table: Sequence[Row], *, each_shift: bool = False) -> Table:
    """The table for the terminal; the single shifts are left out unless `each_shift`, so that it fits 80 letters."""
    shown = [column for column in columns(table) if each_shift or not column.startswith("shifts/")]
    view = Table("", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in shown:
        view.add_column(Text(header(column, shown)), justify="right")
    for row in table:
        styled = ((str(row.cells.get(column, MISSING)), "bold" if is_best(row, table, column) else "") for column in shown)
        view.add_row(Text(row_label(row, table)), *(Text(text, style=style) for text, style in styled))
    return view


def _cells(evaluations: Sequence[Evaluation]) -> dict[str, Cell]:
    named = dict.fromkeys(column for evaluation in evaluations for column in evaluation.accuracy)
    found = {column: cell(evaluations, column) for column in named}
    return {column: value for column, value in found.items() if value is not None}


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, inside a table."""
    for character, shown in {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|", "*": "\\*", "_": "\\_", "`": "\\`", "\n": " "}.items():
        text = text.replace(character, shown)
    return text
