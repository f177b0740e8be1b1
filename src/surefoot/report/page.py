"""The report of a run: one page of HTML that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from surefoot.errors import DataError
from surefoot.folders import put_text
from surefoot.records import FILE, Curve, Difference, Evaluation, read
from surefoot.report import (
    calibration,
    confusion,
    contexts,
    contrasts,
    explained,
    facts,
    gallery,
    marks,
    reliability,
    robustness,
    shifts,
    training,
)
from surefoot.report.answers import Stored
from surefoot.report.contrasts import Contrast
from surefoot.report.frontier import NARROW, SMALL, WIDE, css, drawn_of, frontier_of, page_keys
from surefoot.report.frontier_lines import NAMES, curves_beside, place
from surefoot.report.runs import ZERO_SHOT, Runs, collect, display_name
from surefoot.report.table import MISSING, Row, cell, columns, header, headings, is_best, is_worse, more_columns, row_label, rows_of
from surefoot.report.templates import render
from surefoot.report.verdict import sentences

Differences = Mapping[tuple[str, str, str], Difference]
"""By what is compared, and on which column."""


@dataclass(frozen=True)
class Shown:
    """A cell as the page shows it; `css` marks the best mean of a column and what is worse than zero-shot."""

    text: str
    css: str = ""
    difference: Contrast | None = None


@dataclass(frozen=True)
class Line:
    """A line of a table: its heading and its cells; `css` is "first" where another method begins."""

    label: str
    css: str
    cells: Sequence[Shown]


@dataclass(frozen=True)
class Panel:
    """A frontier; the first one of a page is wide, with a narrow copy for narrow screens."""

    name: str
    wide: Markup | None
    narrow: Markup


def write_page(records_folder: Path, out: Path, *, command: str, notes: Sequence[str] = ()) -> Path:
    """Write the report of the records in a folder.

    It shows what is there: a run that is not finished gives a page with fewer rows, columns and pictures.

    Args:
        records_folder: the folder that holds records.jsonl, and beside it the answers and pictures that the records name.
        out: the file to write if it ends in ".html", otherwise the folder that gets an index.html; made if it does not exist.
        command: what was typed to make the run; shown, never executed.
        notes: paragraphs of plain text shown below the verdict, before the notes on the data.

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
    put_text(path, html(collect(records), records_folder, command=command, notes=notes))
    return path


def html(runs: Runs, folder: Path, *, command: str, notes: Sequence[str] = ()) -> str:
    """The page as text; `folder` is where the records lie."""
    table = rows_of(runs)
    stored = Stored(folder)
    shared, differing = facts.settings(runs)
    return render(
        "template.html.j2",
        title=runs.dataset,
        eyebrow="Surefoot comparison",
        heading=f"Fine-tuning on {runs.dataset}",
        verdict=sentences(runs),
        notes=[*notes, *(runs.described.notes if runs.described else ())],
        tables=_tables(runs, table),
        spread=any(value.spread is not None for row in table for value in row.cells.values()),
        **_frontiers(runs, columns(table)),
        shifts=shifts.section(runs, table),
        robustness=robustness.section(runs, table),
        calibration=calibration.section(runs, stored),
        reliability=reliability.section(runs, stored),
        contexts=contexts.section(runs, stored),
        confusion=confusion.section(runs, stored),
        missing=stored.missing,
        gallery=gallery.section(runs, folder),
        anchors=gallery.anchors(runs, folder),
        explained=explained.section(folder, runs),
        training=training.section(runs),
        contrasts=contrasts.section(runs),
        command=command,
        made=facts.made(runs),
        methods={method: display_name(method) for method in runs.methods},
        shared=shared,
        differing=differing,
        origins=facts.origins(runs),
        num_images=facts.num_images(runs),
        rule=next((choice.rule for choice in runs.choices.values()), ""),
        picture_css=css(marks.variables()),
        colours=marks.variables(),
        palettes={scheme: marks.palette(scheme) for scheme in ("light", "dark")},
    )


def _tables(runs: Runs, table: Sequence[Row]) -> list[dict[str, object]]:
    """The table of accuracies, and that of other measures where there are any."""
    return [
        {"headers": list(headings(shown).values()), "spans": [], "lines": lines_of(table, shown, runs.differences)}
        for shown in (columns(table), more_columns(table))
        if shown
    ]


def lines_of(table: Sequence[Row], shown: Sequence[str], differences: Differences) -> list[Line]:
    """The table as the page shows it: these columns of all rows, with the differences to zero-shot."""
    first = {row.method: row.name for row in reversed(table)}
    return [
        Line(
            row_label(row, table),
            "first" if row.name == first[row.method] else "",
            [_shown(differences, row, table, column) for column in shown],
        )
        for row in table
    ]


def _shown(differences: Differences, row: Row, table: Sequence[Row], column: str) -> Shown:
    if column not in row.cells:
        return Shown(MISSING)
    marked = " ".join(["best"] * is_best(row, table, column) + ["below"] * is_worse(row, table, column))
    return Shown(str(row.cells[column]), marked, contrasts.against_zero_shot(differences, row.name, column))


def _frontiers(runs: Runs, shown: Sequence[str]) -> dict[str, object]:
    """Pictures, their legend, and the numbers of their dots as a table."""
    drawn = drawn_of(shown)
    return {
        "panels": _panels(runs, shown),
        "points": _points(runs, drawn),
        "several_curves": bool(runs.curves),
        "point_headers": [header(column, shown) for column in drawn],
        "keys": page_keys(runs, drawn),
    }


def _panels(runs: Runs, shown: Sequence[str]) -> list[Panel]:
    """A picture for each drawn column that has both axes for at least one fine-tuned model."""
    tuned = [e.accuracy.keys() for e in runs.evaluations() if e.method != ZERO_SHOT]
    drawn = [column for column in drawn_of(shown) if any({"test", column} <= keys for keys in tuned)]
    return [
        Panel(
            header(column, shown),
            Markup(frontier_of(runs, column, inline=WIDE)) if column == drawn[0] else None,
            Markup(frontier_of(runs, column, inline=NARROW if column == drawn[0] else SMALL)),
        )
        for column in drawn
    ]


def _points(runs: Runs, drawn: Sequence[str]) -> list[tuple[str, str, str, list[str]]]:
    """Method, curve, alpha or epoch, and numbers of every dot of the pictures: along the frontier, then along the curves beside it."""

    def numbers(seeds: Sequence[Evaluation | Curve]) -> list[str]:
        return [str(cell(seeds, column) or MISSING) for column in ("test", *drawn)]

    found = []
    for method in runs.methods:
        name = display_name(method)
        found += [(name, "WiSE-FT", f"{alpha:g}", numbers(runs.at(method, alpha))) for alpha in runs.alphas(method)]
        for along, curve in curves_beside(runs, method):
            found += [(name, NAMES.get(along, along), place(along, at), numbers(seeds)) for at, seeds in curve.items()]
    return found
