"""`surefoot report`: page, table and picture from the records of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from surefoot import records
from surefoot.bundle import CARD
from surefoot.cli.console import console
from surefoot.report import frontier_svg, markdown, rich_table, rows, write_page
from surefoot.report.runs import display_name
from surefoot.report.table import header

COMMAND = "command.txt"


def report(folder: Annotated[Path, typer.Argument(help="A folder that 'surefoot compare' or 'surefoot fit' wrote.")]) -> None:
    """Write the report of a comparison again (page, table as markdown, picture), and print its table."""
    write_report(folder)


def write_report(folder: Path) -> None:
    """The page, the table as markdown and the picture alone, in report/; the table on the console too."""
    found = list(records.read(folder))
    page = write_page(folder, folder / "report", command=command_of(folder), notes=delivered(folder, found))
    (page.parent / "table.md").write_text(markdown(rows(found)), encoding="utf-8")
    if against := frontier_column(found):
        (page.parent / "frontier.svg").write_text(frontier_svg(found, on=against), encoding="utf-8")
    console.print(rich_table(rows(found)))
    console.print(f"Report: {escape(str(page))}", soft_wrap=True)


def delivered(folder: Path, found: list[records.Record]) -> list[str]:
    """What the classifier that `fit` left in model/ is, and how it does beside the zero-shot model; nothing for a comparison."""
    if not (folder / "model" / CARD).is_file():
        return []
    card = json.loads((folder / "model" / CARD).read_text(encoding="utf-8"))
    at = {(r.method, r.alpha): r for r in found if isinstance(r, records.Evaluation)}
    own, zero = at.get((card["method"], card["alpha"])), at.get(("zero_shot", 0.0))
    if own is None or zero is None:
        return []
    columns = ["test", *([column] if (column := frontier_column(found)) else [])]
    figures = "; ".join(f"{header(c)} {100 * own.accuracy[c]:.1f}% (zero-shot {100 * zero.accuracy[c]:.1f}%)" for c in columns)
    return [f"The classifier in model/ is {display_name(card['method'])} at α = {card['alpha']:g}: {figures}."]


def frontier_column(found: list[records.Record]) -> str | None:
    """What ID accuracy is drawn against: shifts, or corruptions, unseen classes, contexts, agreement, whichever the data have first."""
    measured = {column for record in found if isinstance(record, records.Evaluation) for column in record.accuracy}
    unseen = sorted(column for column in measured if column.startswith("unseen/"))
    return next((c for c in ("avg_shifts", "avg_corruptions", *unseen, "context", "agreement") if c in measured), None)


def command_of(folder: Path) -> str:
    """The command that made the records of a folder, as it was noted there."""
    path = folder / COMMAND
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else f"surefoot report {folder}"
