"""What all commands share: the console, progress bars with the time left, options that come again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console()
errors = Console(stderr=True)

Data = Annotated[
    str, typer.Argument(help="A folder with train/<class>/ (val, test, shifts, unseen optional), a CSV or JSONL manifest, or 'iconshift'.")
]
Out = Annotated[Path, typer.Option(help="Folder for records, weights and the report. What is finished there is not run again.")]
Model = Annotated[
    str | None,
    typer.Option(help="ARCH:TAG, ARCH:FILE@TAG, local-dir:FOLDER, hf-hub:NAME or iconclip. Default: ViT-B-32:laion2b_s34b_b79k."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
PrecisionOption = Annotated[str | None, typer.Option(help="auto (bf16 where the hardware has it), fp32 or bf16.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting: epochs=5, or for one method flyp.learning_rate=1e-4, l2_sp.pull=0.1. May be repeated."),
]
Recipe = Annotated[str | None, typer.Option(help="'iconshift' or 'clip', which come with Surefoot, or a TOML file. Default: the model's.")]
Corruptions = Annotated[
    bool | None, typer.Option(help="Judge corrupted test images. Default: only where the data have no shifts.", show_default=False)
]
SplitSeed = Annotated[int, typer.Option(help="Seed of the splits that are cut off train where the data have no val or test.")]
ValShare = Annotated[float, typer.Option(help="Part of the images that becomes validation where the data have none.")]
TestShare = Annotated[float, typer.Option(help="Part of the images that becomes test where the data have none.")]
SkipUnreadable = Annotated[bool, typer.Option("--skip-unreadable", help="Leave images out that cannot be read, and count them.")]


def bar(*, transient: bool = True) -> Progress:
    """A progress bar with the time left; it writes to the error stream, so that output can be piped."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    return Progress(*columns, console=errors, transient=transient)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for functions that tell how many of how many are done."""
    with bar() as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def names(text: str | None) -> list[str] | None:
    """The names of a comma-separated list; None if nothing was given."""
    return [name.strip() for name in text.split(",") if name.strip()] if text is not None else None


def numbers(text: str | None) -> list[int] | None:
    """The whole numbers of a comma-separated list; None if nothing was given."""
    try:
        return [int(number) for number in names(text) or []] if text is not None else None
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is not a comma-separated list of whole numbers, such as 0,1,2.") from error


def fractions(text: str | None) -> list[float] | None:
    """The numbers of a comma-separated list; None if nothing was given."""
    try:
        return [float(number) for number in names(text) or []] if text is not None else None
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is not a comma-separated list of numbers, such as 0,0.5,1.") from error
