"""`surefoot methods`: what there is, and the settings of one."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer
from rich.markup import escape

from surefoot.cli.console import console
from surefoot.methods import METHODS, base_of, get, parameters


def methods(name: Annotated[str | None, typer.Argument(help="One method, to see its settings and its paper.")] = None) -> None:
    """List the methods, what each trains and how it predicts; with a name, its settings, loss and paper."""
    if name is not None:
        method = get(name)
        console.print(f"[bold]{name}[/bold]  trains {_trains(name)}; the {method.predict} head answers.\n")
        console.print(escape(inspect.getdoc(METHODS[base_of(name)]) or ""), highlight=False)
        for key, parameter in parameters(name).items():
            console.print(f"  --set {name}.{key}={escape(str(parameter.default))}", highlight=False)
        return
    for known, factory in METHODS.items():
        summary = (factory.__doc__ or "").strip().split("\n")[0]
        console.print(f"[bold]{known}[/bold]  trains {_trains(known)}; {get(known).predict} head answers. {escape(summary)}")


def _trains(name: str) -> str:
    return ", ".join(sorted(get(name).trains - {"logit_bias"})) or "nothing"
