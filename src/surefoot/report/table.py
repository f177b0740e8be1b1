"""The table of results: one row for each set of weights that somebody would ship, means and spreads over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from surefoot.records import Curve, Evaluation, Record
from surefoot.report.runs import CHOSEN, HALF, ZERO_SHOT, Runs, collect, display_name

MORE = "metrics/"  # how the columns of the second table begin: `Evaluation.metrics` of the test set
HEADERS = {
    "test": "ID",
    "avg_shifts": "Avg. shifts",
    "avg_restricted": "Avg. shifts, own classes",
    "avg_corruptions": "Avg. corruptions",
    "context": "Context",
    "context_own": "Context, own text",
    "agreement": "Agreement with zero-shot",
    f"{MORE}mean_per_class": "Mean per class",
    f"{MORE}macro_f1": "Macro F1",
    f"{MORE}ece": "ECE",
}
GROUPS = {
    "unseen/": "Unseen",
    "hm/": "ID and unseen, harmonic mean",
    "joint_hm/": "Seen + unseen, harmonic mean",
}  # one column for each set of unseen classes
# Single restricted shifts and single corruptions are left to the picture of the shifts.
ORDER = ("test", "avg_shifts", "shifts/", "avg_restricted", "avg_corruptions", *GROUPS, "context", "context_own", "agreement")
TERMINAL = ("test", "avg_shifts", "unseen/", "context", "context_own", "avg_corruptions", "agreement", "joint_hm/", "avg_restricted")
TERMINAL_COLUMNS = 5
LOWER_IS_BETTER = (f"{MORE}ece",)
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
    """One line of the table. `name` is what `Difference` records call it; `cells` maps a column such as "avg_shifts" to its cell.

    The measures of the second table are cells too, such as "metrics/ece".
    """

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
        found.append((method + HALF, method, runs.at(method, 0.5)))
        found.append((method + CHOSEN, method, runs.chosen(method)))
    return [Row(name, display_name(name), method, _cells(evaluations)) for name, method, evaluations in found if evaluations]


def cell(evaluations: Iterable[Evaluation | Curve], column: str) -> Cell | None:
    """Mean and spread of one column, over the seeds that have it; None when no seed does."""
    return cell_of(_measures(evaluation).get(column, math.nan) for evaluation in evaluations)


def cell_of(measured: Iterable[float]) -> Cell | None:
    """Mean and spread of what is a number among the values, one for each seed; None when nothing is."""
    values = [value for value in measured if math.isfinite(value)]
    if not values:
        return None
    return Cell(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def columns(table: Sequence[Row]) -> list[str]:
    """The columns of the first table in reading order."""
    return in_order(column for row in table for column in row.cells)


def more_columns(table: Sequence[Row]) -> list[str]:
    """The columns of the second table: other measures of the ID test set."""
    present = {column for row in table for column in row.cells}
    return [column for column in HEADERS if column.startswith(MORE) and column in present]


def in_order(names: Iterable[str], order: Sequence[str] = ORDER) -> list[str]:
    """The names that are columns of the first table, each once, in reading order: ID, shifts, corruptions, unseen classes, contexts."""
    present = list(dict.fromkeys(names))
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
    if title := GROUPS.get(f"{group}/", ""):
        return f"{title}: {name}" if sum(other.startswith(f"{group}/") for other in among) > 1 else title
    return HEADERS.get(column, name or column)


def row_label(row: Row, table: Sequence[Row]) -> str:
    """The label, with the number of seeds where the row has fewer than others; zero-shot has no seeds."""
    most = max(other.num_seeds for other in table)
    if row.method == ZERO_SHOT or row.num_seeds == most:
        return row.label
    return f"{row.label} ({row.num_seeds} of {most} seeds)"


def best(table: Sequence[Row], column: str) -> str | None:
    """The best mean of a column as displayed, so that rows which read the same are marked alike; None for a table of one row.

    The best is the highest, and for a calibration error the lowest.
    """
    means = [row.cells[column].mean for row in table if column in row.cells]
    pick = min if column in LOWER_IS_BETTER else max
    return f"{100 * pick(means):.1f}" if len(table) > 1 and means else None


def is_best(row: Row, table: Sequence[Row], column: str) -> bool:
    """Whether the row reads as good as the column's best mean."""
    return column in row.cells and f"{100 * row.cells[column].mean:.1f}" == best(table, column)


def is_worse(row: Row, table: Sequence[Row], column: str) -> bool:
    """Whether the row reads worse than zero-shot in that column; False without zero-shot."""
    zero = next((other.cells.get(column) for other in table if other.method == ZERO_SHOT), None)
    if zero is None or column not in row.cells:
        return False
    gain = round(100 * row.cells[column].mean, 1) - round(100 * zero.mean, 1)
    return gain > 0 if column in LOWER_IS_BETTER else gain < 0


def markdown(table: Sequence[Row], shown: Sequence[str] | None = None) -> str:
    """The tables in Markdown: percent, mean ± standard deviation over seeds, the best mean in bold.

    Other measures of the ID test set follow in a second table where the records hold them; with `shown` only these columns, in one table.
    """
    if shown is not None:
        return markdown_of(table, headings(shown))
    first, second = markdown_of(table, headings(columns(table))), more_columns(table)
    return f"{first}\nMore about ID:\n\n{markdown_of(table, headings(second))}" if second else first


def headings(shown: Sequence[str]) -> dict[str, str]:
    """The heading of each of these columns."""
    return {column: header(column, shown) for column in shown}


def rich_table(table: Sequence[Row], *, each_shift: bool = False) -> Table:
    """The table for the terminal; with `each_shift` all columns, otherwise the most telling ones, so that it fits 80 to 100 letters."""
    present = columns(table)
    shown = present if each_shift else in_order(in_order(present, TERMINAL)[:TERMINAL_COLUMNS])
    return terminal_of(table, {column: title.replace(", ", ",\n") for column, title in headings(shown).items()})


def terminal_of(table: Sequence[Row], shown: Mapping[str, str]) -> Table:
    """The columns of `shown`, {column: heading}, for the terminal."""
    view = Table("", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in shown.values():
        view.add_column(Text(title), justify="right")
    for row in table:
        styled = ((str(row.cells.get(column, MISSING)), "bold" if is_best(row, table, column) else "") for column in shown)
        view.add_row(Text(row_label(row, table)), *(Text(text, style=style) for text, style in styled))
    return view


def markdown_of(table: Sequence[Row], shown: Mapping[str, str]) -> str:
    """One table in Markdown, of the columns of `shown`, {column: heading}."""
    lines = [["", *(_plain(title) for title in shown.values())], ["---", *("---:" for _ in shown)]]
    for row in table:
        texts = [str(row.cells.get(column, MISSING)) for column in shown]
        marked = [f"**{text}**" if is_best(row, table, column) else text for text, column in zip(texts, shown, strict=True)]
        lines.append([_plain(row_label(row, table)), *marked])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _measures(evaluation: Evaluation | Curve) -> dict[str, float]:
    """Accuracies, and the other measures of the test set under the names of the second table's columns; a curve's points have none."""
    more = {} if isinstance(evaluation, Curve) else evaluation.metrics.get("test", {})
    return {**evaluation.accuracy, **{MORE + name: value for name, value in more.items()}}


def _cells(evaluations: Sequence[Evaluation]) -> dict[str, Cell]:
    named = dict.fromkeys(column for evaluation in evaluations for column in _measures(evaluation))
    found = {column: cell(evaluations, column) for column in named}
    return {column: value for column, value in found.items() if value is not None}


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, inside a table."""
    for character, shown in {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|", "*": "\\*", "_": "\\_", "`": "\\`", "\n": " "}.items():
        text = text.replace(character, shown)
    return text
