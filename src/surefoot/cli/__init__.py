"""The command line: one module for each command."""

from __future__ import annotations

import errno
import functools
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from surefoot import distributed, stopping
from surefoot.cli import console as shared
from surefoot.cli.bench import bench
from surefoot.cli.caption import caption
from surefoot.cli.check import check
from surefoot.cli.compare import compare
from surefoot.cli.datasets import datasets
from surefoot.cli.diff import diff
from surefoot.cli.evaluate import evaluate
from surefoot.cli.explain import explain
from surefoot.cli.export import export
from surefoot.cli.fit import fit
from surefoot.cli.frontier import frontier
from surefoot.cli.import_ import import_
from surefoot.cli.methods import methods
from surefoot.cli.predict import predict
from surefoot.cli.protocols import COMMANDS
from surefoot.cli.push import push
from surefoot.cli.recipes import recipes
from surefoot.cli.report import report
from surefoot.cli.retrieve import retrieve
from surefoot.cli.shards import shards
from surefoot.cli.soup import soup
from surefoot.cli.status import status
from surefoot.cli.sweep import sweep
from surefoot.cli.tune import tune
from surefoot.errors import SettingError, SurefootError, TrainingError

RESUME = (fit, compare, tune, frontier, caption, retrieve, shards, sweep, *COMMANDS)
TOGETHER = (fit, compare, sweep, *COMMANDS)
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}

app = typer.Typer(
    help="Fine-tune CLIP and other zero-shot image-text models without wrecking them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
EXAMPLES: dict[Callable[..., None], str] = {
    datasets: "surefoot datasets pacs",
    check: "surefoot check photos",
    shards: "surefoot shards photos --out photos-shards",
    caption: "surefoot caption photos --captioner hf:Salesforce/blip2-opt-2.7b",
    retrieve: "surefoot retrieve photos --candidates 'pool/{000..099}.tar'",
    fit: "surefoot fit photos --out runs/photos --model ViT-B-32:laion2b_s34b_b79k",
    predict: "surefoot predict runs/photos new-photos --classes 'zebra, sea lion' --out answers.csv",
    evaluate: "surefoot evaluate runs/photos other-photos --all-images",
    explain: "surefoot explain runs/iconshift --method flyp --per-set 2",
    export: "surefoot export runs/photos --to onnx --out photos-onnx",
    push: "surefoot push photos-open-clip anna/photos-clip --private",
    import_: "surefoot import checkpoint.pt --base ViT-B-32:openai --out models/wise-ft",
    compare: "surefoot compare iconshift --methods all --out runs/iconshift",
    tune: "surefoot tune photos --method flyp --trials 16 --out runs/tune",
    frontier: "surefoot frontier runs/iconshift --alphas 0,0.25,0.5,0.75,1",
    diff: "surefoot diff runs/iconshift:flyp@val runs/iconshift:tp_ft@val --on test,avg_shifts",
    soup: "surefoot soup runs/iconshift:car_ft --greedy --out runs/soup",
    methods: "surefoot methods l2_sp",
    bench: "surefoot bench photos --method flyp --set batch_size=64",
    report: "surefoot report runs/iconshift",
    status: "surefoot status runs/iconshift --follow",
    recipes: "surefoot recipes flyp/imagenet",
    sweep: "surefoot sweep iconshift --methods car_ft --over context_weight=0,0.5,1,2,5 --out runs/sweep",
    **COMMANDS,
}


def _version(wanted: bool) -> None:
    if wanted:
        Console().print(f"surefoot {version('surefoot')}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    show: Annotated[bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)] = False,
) -> None:
    """Fine-tune CLIP and other zero-shot image-text models without wrecking them."""


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which Ctrl-C and SIGTERM end with a sentence, and with 128 plus the signal's number as shells have it."""

    @functools.wraps(command)
    def run(**given: object) -> None:
        if distributed.announced():
            _check_together(command)
        try:
            command(**given)
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, stopping.Stopped) else signal.SIGINT
            how = "Interrupted" if number == signal.SIGINT else f"Ended by {signal.Signals(number).name}"
            Console(stderr=True).print(escape(f"{how}.{_kept(command)}"), soft_wrap=True, highlight=False)
            raise typer.Exit(128 + number) from error
        except RuntimeError as error:
            if isinstance(error, SurefootError) or not distributed.announced() or not (said := distributed.lost(error)):
                raise
            raise TrainingError(
                f"Another process of this run ended or cannot be reached ({said}). It or torchrun says why, above or below; a process that "
                f"was killed says nothing, and the system kills where memory runs out.{_kept(command)}"
            ) from error

    return run


def _kept(command: Callable[..., None]) -> str:
    """How to go on, for commands that do."""
    return f" What is finished is kept: the same command goes on from there.\n{_again()}" if command in RESUME else ""


def _again() -> str:
    """The command as it was typed."""
    start = f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', '1')} -m surefoot" if distributed.announced() else "surefoot"
    return f"{start} {shlex.join(sys.argv[1:])}"


def _check_together(command: Callable[..., None]) -> None:
    """Of several processes one speaks; a command that they cannot share is refused."""
    if command not in TOGETHER:
        raise SettingError(f"surefoot {command.__name__.replace('_', '-')} runs in one process. Start it without torchrun.")
    for console in (shared.console, shared.errors):
        console.quiet = os.environ.get("RANK", "0") != "0"


for command, example in EXAMPLES.items():
    app.command(epilog=f"Example: {example}")(_interruptible(command))


def main() -> None:
    """Entry point: errors that Surefoot raises on purpose, and a disk that refuses, are printed and end with code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=Console(stderr=True), show_path=False)])
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger("surefoot.data.streamed").setLevel(logging.INFO)  # which shard is downloaded: it may take hours
    try:
        with stopping.listening():
            app()
    except SurefootError as error:
        _fail(str(error), error)
    except OSError as error:
        if error.errno in _FULL:
            _fail(f"{_said(error)}. Make room or give another folder by --out, and run the same command again.", error)
        if error.errno in _REFUSED:
            _fail(f"{_said(error)}. Give another place, or see to it that this one may be read and written.", error)
        raise
    finally:
        distributed.end()


def _said(error: OSError) -> str:
    return ": ".join(str(part) for part in (error.filename, error.strerror) if part)


def _fail(text: str, error: Exception) -> NoReturn:
    Console(stderr=True).print(f"[red]error[/red] {shared.plain(text)}", soft_wrap=True, highlight=False)
    raise SystemExit(2) from error


if __name__ == "__main__":
    main()
