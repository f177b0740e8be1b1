"""What came out, in words: one sentence for each method, made from the numbers of the table."""

from __future__ import annotations

from collections.abc import Mapping

from surefoot.report.runs import ZERO_SHOT, Runs
from surefoot.report.table import Row, columns, header, rows_of

WORDS = {
    "test": "on ID",
    "avg_shifts": "on the average of the shifts",
    "avg_corruptions": "on the average of the corruptions",
    "context": "on context recognition",
    "agreement": "of agreement with zero-shot",
}


def sentences(runs: Runs) -> list[str]:
    """One sentence for each method that is fine-tuned to alpha 1; the method with the highest ID accuracy comes first.

    A sentence tells the change on ID, the worst change elsewhere (averages of shifts and of corruptions, unseen classes, context; the
    agreement with zero-shot where there is nothing else), and what WiSE-FT 0.5 gives back of a loss. A change whose paired interval
    holds 0 is marked undecided. Data without ID test images (a held-out domain) give a sentence on their first column instead.
    """
    found = rows_of(runs)
    if not any("test" in row.cells for row in found):
        return _without_id(runs, {row.name: row for row in found})
    table = {row.name: row for row in found if "test" in row.cells}
    tuned = sorted((table[method] for method in runs.methods if method in table), key=lambda row: -row.cells["test"].mean)
    if tuned and ZERO_SHOT in table:
        return [_sentence(runs, table, row) for row in tuned]
    reached = [f"{row.label} reaches {100 * row.cells['test'].mean:.1f}% on ID" for row in tuned or table.values()]
    missing = "no zero-shot model" if tuned else "no fine-tuned model"
    return [f"{text}; {missing} has been evaluated yet, so there is nothing to compare it with." for text in reached]


def _without_id(runs: Runs, table: Mapping[str, Row]) -> list[str]:
    zero = table.get(ZERO_SHOT)
    column = next(iter(columns(list(table.values()))), "")
    tuned = [table[method] for method in runs.methods if method in table and column in table[method].cells]
    if zero is None or column not in zero.cells or not tuned:
        return ["There is no pair of models yet that could be compared."]
    return [f"{row.label} {_claim(runs, row, zero, column)}." for row in tuned]


def _sentence(runs: Runs, table: Mapping[str, Row], row: Row) -> str:
    zero = table[ZERO_SHOT]
    text = f"{row.label} {_claim(runs, row, zero, 'test')}"
    present = [column for column in columns([row]) if column in zero.cells]
    shared = [column for column in present if column.startswith(("avg_shifts", "avg_corruptions", "unseen/")) or column == "context"]
    shared = shared or [column for column in present if column == "agreement"]
    if not shared:
        return f"{text}."
    worst = min(shared, key=lambda column: _change(row, zero, column))
    text += f" and {_claim(runs, row, zero, worst)}"
    half = table.get(f"{row.name} + WiSE-FT 0.5")
    if half is None or worst not in half.cells or _points(_change(row, zero, worst)) >= 0:
        return f"{text}."
    back, rest = _points(_change(half, row, worst)), _points(_change(half, zero, "test"))
    given = f"gives back {back:.1f}" if back > 0 else "gives back nothing"
    return f"{text}; WiSE-FT 0.5 {given}{_doubt(runs, half, row, worst)} and is {abs(rest):.1f} points {_side(rest)} zero-shot on ID."


def _claim(runs: Runs, a: Row, b: Row, column: str) -> str:
    """Such as "gains 4.1 points on ID"."""
    change = _points(_change(a, b, column))
    words = WORDS.get(column) or f"on {header(column, [*a.cells]).replace('Unseen', 'unseen classes')}"
    return f"{'loses' if change < 0 else 'gains'} {abs(change):.1f} points {words}{_doubt(runs, a, b, column)}"


def _change(a: Row, b: Row, column: str) -> float:
    return a.cells[column].mean - b.cells[column].mean


def _points(change: float) -> float:
    """Points of percent as displayed, so that what reads 0.0 is neither a gain nor a loss."""
    return round(100 * change, 1)


def _side(change: float) -> str:
    return "below" if change < 0 else "above"


def _doubt(runs: Runs, a: Row, b: Row, column: str) -> str:
    """Marks a change whose interval, in whichever direction it was taken, holds 0."""
    found = runs.differences.get((a.name, b.name, column)) or runs.differences.get((b.name, a.name, column))
    return " (undecided)" if found and found.undecided else ""
