"""`surefoot datasets`: the data sets of the catalogue, and what one of them must look like on disk."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from surefoot.cli import console as shared
from surefoot.data.catalog import declared
from surefoot.data.catalog.listing import COLUMNS, rows, tree

Name = Annotated[str | None, typer.Argument(help="A data set of the catalogue. Without one, all are listed.", show_default=False)]


def datasets(name: Name = None) -> None:
    """The data sets of the papers that Surefoot opens by their name, where to get them, and how they must lie on disk."""
    if name is None:
        wide = (COLUMNS[3],)  # the places and sources of one set are shown with its name: they fill no terminal's width
        table = Table(*(Column(title, no_wrap=title not in wide) for title in COLUMNS[:5]), box=box.SIMPLE_HEAD)
        for cells in rows():
            table.add_row(*map(escape, cells[:5]))
        shared.console.print(table)
        _say("* can be left out. What one must look like, and where to get it: surefoot datasets NAME.")
        _say("Whether it is complete: surefoot check NAME --root DIR")
        return
    declaration = declared(name)
    _say(f"{declaration.title}. {declaration.paper}.")
    for line in tree(declaration):
        _say(f"  {line}")
    for source in declaration.sources:
        _say(f"Get it from: {source}")
    for note in declaration.notes:
        _say(note)
    _say(f"Next: surefoot check {name} --root ROOT")


def _say(line: str) -> None:
    shared.console.print(escape(line), soft_wrap=True, highlight=False)
