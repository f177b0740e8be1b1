"""`surefoot import`: a checkpoint of other code as a model folder; nothing in the file is run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from surefoot.cli import console as shared
from surefoot.cli.export import Overwrite
from surefoot.errors import MissingDataError, SettingError
from surefoot.foreign import convert
from surefoot.guard import read_text
from surefoot.model import imagenet_class_names, templates_named

PLAIN = ("a photo of a {}.",)


def import_(
    file: Annotated[Path, typer.Argument(help="A checkpoint that torch.save wrote: of WiSE-FT's or FLYP's release, or a state dict.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    arch: Annotated[
        str | None, typer.Option(help="ARCH@TAG: an open_clip architecture, and the pretrained tag whose preprocessing it has.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The model that it was fine-tuned from, such as ViT-B-32:openai; gives what FILE lacks.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="A text file with one class name a line, in the head's order, or 'imagenet': write a classifier.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Read a checkpoint of other code without running any of it, and write it as a folder that --model and open_clip open."""
    shared.check_folder(out)
    templates = templates_named("openai80") if classes == "imagenet" else PLAIN
    names = None if classes is None else _names(classes)
    with shared.console.status("reading and comparing"):
        made = convert(file, out, arch=arch, base=base, names=names, templates=templates, overwrite=overwrite)
    for note in made.notes:
        shared.console.print(f"- {escape(note)}", soft_wrap=True, highlight=False)
    next_ = (
        ["surefoot", "predict", str(out), "IMAGES"] if made.is_classifier else ["surefoot", "fit", "DATA", "--model", f"local-dir:{out}"]
    )
    shared.console.print(f"Written: {escape(str(out))}. Next: {escape(shlex.join(next_))}", soft_wrap=True, highlight=False)


def _names(classes: str) -> list[str]:
    """The class names of a file, or ImageNet's."""
    if classes == "imagenet":
        return imagenet_class_names()
    path = Path(classes)
    if not path.is_file():
        raise MissingDataError(f"--classes is '{classes}', and there is no such file. Give a text file with one name a line, or imagenet.")
    try:
        names = [line.strip() for line in read_text(path).splitlines()]
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is no UTF-8 text ({error}). Save it so.") from error
    if not names or not all(names):
        raise SettingError(f"{path} holds no name, or an empty line. Write one class name a line, in the order of the head's rows.")
    return names


import_.__name__ = "import"  # the command's name, which is a word of Python's own
