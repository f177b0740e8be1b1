"""`surefoot export`: a classifier in a format that other libraries open, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from surefoot import export as exporting
from surefoot.cli import console as shared

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that is there.")]


def export(
    model: Annotated[Path, typer.Argument(help="A folder that 'surefoot fit' wrote, or its model/.")],
    to: Annotated[str, typer.Option(help="open_clip, transformers or onnx.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    overwrite: Overwrite = False,
    licence: Annotated[
        str | None,
        typer.Option("--license", help="Of the checkpoint that the model came from. Default: what its folder says.", show_default=False),
    ] = None,
) -> None:
    """Write a classifier as open_clip, transformers or ONNX files with a model card; a copy that answers differently is not left."""
    shared.check_folder(out)
    with shared.counting("writing and comparing") as tell:
        exporting.export(model, to, out, overwrite=overwrite, licence=licence, tell=tell)
    shared.console.print(f"Written: {escape(str(out))}. Its README.md says how to open it.", soft_wrap=True, highlight=False)
