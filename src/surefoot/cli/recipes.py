"""`surefoot recipes`: the settings that come with Surefoot, the papers' among them."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from surefoot import cookbook
from surefoot.cli import console as shared

COLUMNS = ("Name", "Reproduces", "Data", "Command")
Name = Annotated[str | None, typer.Argument(help="A recipe, to see its file. Without one, all are listed.", show_default=False)]


def recipes(name: Name = None) -> None:
    """The papers' settings, each with its commands, the numbers to expect and the hardware it needs; with a name, the file itself."""
    if name is not None:
        text = cookbook.find(name).read_text(encoding="utf-8")
        shared.console.print(escape(text.rstrip()), soft_wrap=True, highlight=False)
        return
    table = Table(*(Column(title, overflow="fold") for title in COLUMNS), box=box.SIMPLE_HEAD)
    for head in map(cookbook.head, cookbook.names()):
        kinds = dict.fromkeys(command.split()[1] for command in head.commands)
        table.add_row(*map(escape, (head.name, head.reproduces or "–", ", ".join(head.data), ", ".join(kinds))))
    shared.console.print(table)
    told = "The whole commands, what to expect and what it takes: surefoot recipes NAME. In any command: --recipe NAME"
    shared.console.print(told, soft_wrap=True, highlight=False)
