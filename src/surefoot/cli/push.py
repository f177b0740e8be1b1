"""`surefoot push`: an exported folder on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from surefoot import export as exporting
from surefoot.cli import console as shared


def push(
    folder: Annotated[Path, typer.Argument(help="A folder that 'surefoot export' wrote.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Of a repository that is made now.")] = False,
) -> None:
    """Upload an exported folder to the Hugging Face Hub, with the token of 'hf auth login' or HF_TOKEN."""
    address = exporting.push(folder, repo, private=private)
    shared.console.print(f"Uploaded: {escape(address)}", soft_wrap=True, highlight=False)
