"""The report of a run: one page of HTML that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from surefoot.errors import DataError
from surefoot.records import FILE, Difference, Evaluation, read
from surefoot.report import facts, marks
from surefoot.report.frontier import css, frontier_of, page_keys
from surefoot.report.runs import ZERO_SHOT, Runs, collect, display_name
from surefoot.report.table import MISSING, Row, cell, columns, header, in_order, is_best, row_label, rows_of
from surefoot.report.templates import render
from surefoot.report.verdict import sentences


@dataclass(frozen=True)
class Shown:
    """A cell as the page shows it; `css` marks the highest mean of a column and what lies below zero-shot."""

    text: str
    css: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a table: its heading and its cells."""

    label: str
    cells: Sequence[Shown]


@dataclass(frozen=True)
class Contrast:
    """One cell of the table of differences, in points of percent."""

    mean: str
    interval: str
    css: str
    title: str


def write_page(records_folder: Path, out: Path, *, command: str, notes: Sequence[str] = ()) -> Path:
    """Write the report of the records in a folder.

    It shows what is there: a run that is not finished gives a page with fewer rows, columns and pictures.

    Args:
        records_folder: the folder that holds records.jsonl.
        out: the file to write if it ends in ".html", otherwise the folder that gets an index.html; made if it does not exist.
        command: what was typed to make the run; shown, never executed.
        notes: paragraphs of plain text shown below the verdict.

    Returns:
        The path of the page.

    Raises:
        DataError: the folder holds no evaluation, or evaluations of several datasets.
    """
    records = list(read(records_folder))
    if not any(isinstance(record, Evaluation) for record in records):
        raise DataError(
            f"{records_folder / FILE} holds no evaluation. A report needs at least one: run `surefoot compare` first, "
            "or give the folder that it wrote."
        )
    path = out if out.suffix.lower() == ".html" else out / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html(collect(records), command=command, notes=notes), encoding="utf-8")
    return path


def html(runs: Runs, *, command: str, notes: Sequence[str] = ()) -> str:
    """The page as text."""
    table = rows_of(runs)
    shown = columns(table)
    shared, differing = facts.settings(runs)
    contrasts = sorted(in_order(on for _, _, on in runs.differences), key=lambda on: on.startswith("shifts/"))  # single shifts last
    return render(
        "template.html.j2",
        dataset=runs.dataset,
        verdict=sentences(runs),
        notes=notes,
        headers=[header(column, shown) for column in shown],
        lines=[_line(row, table, shown) for row in table],
        panels=_panels(runs, shown),
        points=_points(runs, shown),
        point_headers=[header(column, shown) for column in _drawn(shown)],
        keys=page_keys(runs, _drawn(shown)),
        spread=any(value.spread is not None for row in table for value in row.cells.values()),
        contrast_headers=[header(column, contrasts) for column in contrasts],
        contrasts=_contrasts(runs.differences.values(), contrasts),
        command=command,
        made=facts.made(runs),
        methods={method: display_name(method) for method in runs.methods},
        shared=shared,
        differing=differing,
        origins=facts.origins(runs),
        num_images=facts.num_images(runs),
        rule=next((choice.rule for choice in runs.choices.values()), ""),
        picture_css=css(marks.variables()),
        palettes={scheme: marks.palette(scheme) for scheme in ("light", "dark")},
    )


def _line(row: Row, table: Sequence[Row], shown: Sequence[str]) -> Line:
    return Line(row_label(row, table), [_shown(row, table, column) for column in shown])


def _shown(row: Row, table: Sequence[Row], column: str) -> Shown:
    if column not in row.cells:
        return Shown(MISSING)
    zero = next((other.cells.get(column) for other in table if other.method == ZERO_SHOT), None)
    below = zero is not None and round(100 * row.cells[column].mean, 1) < round(100 * zero.mean, 1)
    return Shown(str(row.cells[column]), " ".join(["best"] * is_best(row, table, column) + ["below"] * below))


def _drawn(shown: Sequence[str]) -> list[str]:
    """The columns with a picture each: the average of the shifts, unseen classes, context."""
    return [column for column in shown if column in ("avg_shifts", "context") or column.startswith("unseen/")]


def _panels(runs: Runs, shown: Sequence[str]) -> list[tuple[str, Markup]]:
    """A heading and a picture for each drawn column that has both axes for at least one fine-tuned model."""
    tuned = [e.accuracy.keys() for e in runs.evaluations() if e.method != ZERO_SHOT]
    drawn = [column for column in _drawn(shown) if any({"test", column} <= keys for keys in tuned)]
    return [(header(column, shown), Markup(frontier_of(runs, column, inline=True))) for column in drawn]


def _points(runs: Runs, shown: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """Method, alpha and numbers of every dot of the pictures."""
    at = [(method, alpha, runs.at(method, alpha)) for method in runs.methods for alpha in runs.alphas(method)]
    drawn = ["test", *_drawn(shown)]
    return [(display_name(method), f"{alpha:g}", [str(cell(found, column) or MISSING) for column in drawn]) for method, alpha, found in at]


def _contrasts(differences: Iterable[Difference], shown: Sequence[str]) -> list[tuple[str, str, list[Contrast | None]]]:
    """A line for each pair of rows: both names, and a difference or nothing for each column."""
    pairs: dict[tuple[str, str], dict[str, Difference]] = {}
    for difference in differences:
        pairs.setdefault((difference.a, difference.b), {})[difference.on] = difference
    return [
        (display_name(a), display_name(b), [_contrast(found[column]) if column in found else None for column in shown])
        for (a, b), found in pairs.items()
    ]


def _contrast(difference: Difference) -> Contrast:
    seeds = "1 seed" if difference.num_seeds == 1 else f"{difference.num_seeds} seeds"
    side = "undecided" if difference.undecided else "higher" if difference.mean > 0 else "lower"
    interval = f"{_signed(difference.low)} to {_signed(difference.high)}"
    return Contrast(_signed(difference.mean), interval, side, f"{difference.num_images} images, {seeds}")


def _signed(value: float) -> str:
    """Points with their sign; a second decimal where one would hide on which side of 0 they are.

    Examples:
        >>> _signed(0.0412), _signed(-0.0002), _signed(0.0)
        ('+4.1', '−0.02', '0.0')
    """
    text = f"{100 * value:+.1f}"
    if float(text) == 0:
        text = f"{100 * value:+.2f}" if value else "0.0"
    return text.replace("-", "−")
