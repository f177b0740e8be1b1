"""What all commands share: the console, progress bars with the time left, options that come again and again."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from surefoot.config import Settings
from surefoot.data import Dataset
from surefoot.errors import SettingError
from surefoot.job import DataOptions, Job
from surefoot.watching import require

_COMMA = re.compile(r",(?![^\[\]]*\])")  # not one inside brackets, as in lp+l2=[1e-3,1e-4]
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_Number = TypeVar("_Number", int, float)

console = Console()
errors = Console(stderr=True)

Data = Annotated[
    str,
    typer.Argument(
        help="A folder with train/<class>/ (val, test, shifts, unseen optional), a CSV or JSONL manifest, 'iconshift', or, with --root, a "
        "data set of the catalogue."
    ),
]
Root = Annotated[
    str | None,
    typer.Option(help="The folder that a data set of the catalogue lies in ('surefoot datasets' lists them).", show_default=False),
]
Out = Annotated[Path, typer.Option(help="Folder for records, weights and the report. What is finished there is not run again.")]
Model = Annotated[
    str | None,
    typer.Option(help="ARCH:TAG, ARCH:FILE@TAG, local-dir:FOLDER, hf-hub:NAME or iconclip. Default: ViT-B-32:laion2b_s34b_b79k."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
PrecisionOption = Annotated[str | None, typer.Option(help="auto (bf16 where the hardware has it), fp32, tf32 or bf16.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A setting: epochs=5, or for one method flyp.learning_rate=1e-4, l2_sp.pull=0.1; templates=clip for CLIP's own prompts of "
        "a set of the catalogue. May be repeated.",
    ),
]
Recipe = Annotated[str | None, typer.Option(help="One of 'surefoot recipes', or a TOML file. Default: the model's.")]
Corruptions = Annotated[
    bool | None, typer.Option(help="Judge corrupted test images. Default: only where the data have no shifts.", show_default=False)
]
Anchors = Annotated[
    str | None,
    typer.Option(help="Folder of captions and retrieved pairs. Default: the data's own, in the user's cache.", show_default=False),
]
SplitSeed = Annotated[int, typer.Option(help="Seed of the splits that are cut off train where the data have no val or test.")]
VAL_SHARE_HELP = (
    "Part of the images that becomes validation where the data have none. Default: 0.15, or what the catalogue says of the data set (0.02 "
    "of ImageNet)."
)
ValShare = Annotated[float | None, typer.Option(help=VAL_SHARE_HELP, show_default=False)]
TestShare = Annotated[float, typer.Option(help="Part of the images that becomes test where the data have none.")]
Watch = Annotated[
    str | None,
    typer.Option(help="Boards that show the runs as they go on: tensorboard, wandb (WANDB_MODE=offline for no network), comma-separated."),
]
AllowOutside = Annotated[
    bool,
    typer.Option(
        "--allow-outside", help="Let a manifest, or links and lists in a folder, lead to images outside of it. Only data you trust."
    ),
]
SkipUnreadable = Annotated[bool, typer.Option("--skip-unreadable", help="Leave images out that cannot be read, and count them.")]

Smoke = Annotated[
    bool,
    typer.Option("--smoke", help="Try the command: two steps on a few images of a few classes, one seed. The records say so; no result."),
]


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


def plain(text: str | Path) -> str:
    """As text that any terminal can show: a file's name need not be valid Unicode, its brackets are no markup, and what would steer the
    terminal is shown as a mark.

    Examples:
        >>> plain("a\\x1b]0;title\\x07b [red]")
        'a\ufffd]0;title\ufffdb \\\\[red]'
    """
    return escape(_CONTROLS.sub("\ufffd", str(text).encode("utf-8", "replace").decode()))


def names(text: str | None) -> list[str] | None:
    """The names of a comma-separated list; None if nothing was given."""
    return [name.strip() for name in _COMMA.split(text) if name.strip()] if text is not None else None


def job(options: DataOptions, settings: Settings, device: str, watch: str | None) -> Job:
    """What a command was asked for.

    Raises:
        SettingError: a board of `watch`, names with commas between, that is unknown or not installed.
    """
    boards = tuple(names(watch) or ())
    require(boards)
    return Job(data=options, model=settings.model, precision=settings.precision, plan=settings.plan, device=device, watch=boards)


def numbers(text: str | None, option: str) -> list[int] | None:
    """The whole numbers of a comma-separated list, one at least; None if nothing was given."""
    return None if text is None else _parsed(text, int, option, "whole numbers, such as 0,1,2")


def fractions(text: str, option: str) -> list[float]:
    """The numbers of a comma-separated list, one at least."""
    return _parsed(text, float, option, "numbers, such as 0,0.5,1")


def given_fractions(text: str | None, option: str) -> list[float] | None:
    """The same of an option that may be left out."""
    return None if text is None else fractions(text, option)


def _parsed(text: str, kind: Callable[[str], _Number], option: str, wanted: str) -> list[_Number]:
    try:
        found = [kind(number) for number in names(text) or []]
    except ValueError:
        found = []
    if not found:
        raise SettingError(f"{option} is '{text}'; it must be a comma-separated list of {wanted}.")
    return found


def check_folder(folder: Path) -> None:
    """Whether a folder is there or can be made, asked before any work is done for what goes into it.

    Raises:
        SettingError: it is a file, lies below one, or may not be written.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise SettingError(f"{folder} cannot be a folder for results: {there} is a file. Give another one by --out.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SettingError(f"{folder} cannot be a folder for results: {there} may not be written. Allow it, or give another one by --out.")


def tell_notes(dataset: Dataset) -> None:
    """How the splits were made, how many images were skipped, and what else there is to know of the data."""
    for note in dataset.notes:
        errors.print(plain(note), soft_wrap=True, highlight=False)


def opened(options: DataOptions, *, anchors: bool = True) -> Dataset:
    """The data set, every image read once under a bar, and what is to be told of it; without anchors for commands that make them anew."""
    with counting("reading images") as on_image:
        dataset = options.open(on_image) if anchors else options.open_plain(on_image)
    tell_notes(dataset)
    return dataset


def next_comparison(options: DataOptions, model: str | None = None) -> str:
    """The command that trains with anchors: the same data, cut in the same way, and the same model."""
    usual = DataOptions(data=options.data)
    words = [] if model is None else ["--model", model]
    for name in ("root", "anchors", "split_seed", "val_share", "test_share", "base_to_new", "skip_unreadable", "allow_outside"):
        if (value := getattr(options, name)) != getattr(usual, name):
            words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return shlex.join(["surefoot", "compare", options.data, "--methods", "flyp,arf", *words])
