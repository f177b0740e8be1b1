"""`surefoot report`: page, table and picture from the records of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from surefoot import records
from surefoot.bundle import CARD, read_card
from surefoot.cli.console import console
from surefoot.distributed import is_first
from surefoot.folders import put_text
from surefoot.guard.texts import SMALL, read_bytes
from surefoot.report import (
    frontier_column,
    frontier_svg,
    markdown,
    parts_in,
    rich_table,
    rows,
    series_markdown,
    series_table,
    write_page,
    write_series_page,
)
from surefoot.report.runs import display_name
from surefoot.report.table import header

COMMAND = "command.txt"


def report(folder: Annotated[Path, typer.Argument(help="A folder that 'surefoot compare', 'fit' or a protocol wrote.")]) -> None:
    """Write the report of a comparison or a protocol again (page, table as markdown, picture), and print its table."""
    (write_series if is_protocol(folder) else write_report)(folder)


def is_protocol(folder: Path) -> bool:
    """Whether a protocol wrote last into a folder; without any record, whether folders below it have some."""
    kinds = [type(record) for record in records.read(folder) if isinstance(record, records.Evaluation | records.Series)]
    return kinds[-1] is records.Series if kinds else bool(parts_in(folder))


def write_report(folder: Path) -> None:
    """The page, the table as markdown and the picture alone, in report/; the table on the console too. The first process writes."""
    if not is_first():
        return
    found = list(records.read(folder))
    page = write_page(folder, folder / "report", command=command_of(folder), notes=delivered(folder, found))
    put_text(page.parent / "table.md", markdown(rows(found)))
    if against := frontier_column(found):
        put_text(page.parent / "frontier.svg", frontier_svg(found, on=against))
    console.print(rich_table(rows(found)))
    console.print(f"Report: {escape(str(page))}", soft_wrap=True)


def write_series(folder: Path) -> None:
    """The page of a protocol's table, the table as markdown and its picture, in report/; the table on the console too."""
    if not is_first():
        return
    found = list(records.read(folder))
    page = write_series_page(folder, folder / "report", command=command_of(folder, *parts_in(folder)))
    put_text(page.parent / "table.md", series_markdown(found))
    console.print(series_table(found))
    console.print(f"Report: {escape(str(page))}", soft_wrap=True)


def delivered(folder: Path, found: list[records.Record]) -> list[str]:
    """What the classifier that `fit` left in model/ is, and how it does beside the zero-shot model; nothing for a comparison."""
    if not (folder / "model" / CARD).is_file():
        return []
    card = read_card(folder / "model")
    at = {(r.method, r.alpha): r for r in found if isinstance(r, records.Evaluation)}
    own, zero = at.get((card.method, card.alpha)), at.get(("zero_shot", 0.0))
    if own is None or zero is None:
        return []
    columns = ["test", *([column] if (column := frontier_column(found)) else [])]
    figures = "; ".join(f"{header(c)} {100 * own.accuracy[c]:.1f}% (zero-shot {100 * zero.accuracy[c]:.1f}%)" for c in columns)
    return [f"The classifier in model/ is {display_name(card.method)} at α = {card.alpha:g}: {figures}."]


def command_of(folder: Path, *parts: str) -> str:
    """The command that made the records of a folder, as it was noted there or in one of its parts, whichever was noted last."""
    noted = [path for path in (folder / COMMAND, *(folder / part / COMMAND for part in parts)) if path.is_file()]
    last = max(noted, key=lambda path: path.stat().st_mtime, default=None)
    return read_bytes(last, most=SMALL).decode("utf-8", "replace").strip() if last else f"surefoot report {folder}"
