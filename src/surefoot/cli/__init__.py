"""The command line: one module for each command."""

from __future__ import annotations

import logging
from collections.abc import Callable

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from surefoot.cli.check import check
from surefoot.cli.compare import compare
from surefoot.cli.diff import diff
from surefoot.cli.evaluate import evaluate
from surefoot.cli.fit import fit
from surefoot.cli.frontier import frontier
from surefoot.cli.methods import methods
from surefoot.cli.predict import predict
from surefoot.cli.report import report
from surefoot.cli.tune import tune
from surefoot.errors import SurefootError

app = typer.Typer(
    help="Fine-tune CLIP and other zero-shot image-text models without wrecking them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
EXAMPLES: dict[Callable[..., None], str] = {
    check: "surefoot check photos",
    fit: "surefoot fit photos --out runs/photos --model ViT-B-32:laion2b_s34b_b79k",
    predict: "surefoot predict runs/photos new-photos --classes 'zebra, sea lion' --out answers.csv",
    evaluate: "surefoot evaluate runs/photos other-photos --all-images",
    compare: "surefoot compare iconshift --methods all --out runs/iconshift",
    tune: "surefoot tune photos --method flyp --trials 16 --out runs/tune",
    frontier: "surefoot frontier runs/iconshift --alphas 0,0.25,0.5,0.75,1",
    diff: "surefoot diff runs/iconshift:flyp@val runs/iconshift:tp_ft@val --on test,avg_shifts",
    methods: "surefoot methods l2_sp",
    report: "surefoot report runs/iconshift",
}
for command, example in EXAMPLES.items():
    app.command(epilog=f"Example: {example}")(command)


def main() -> None:
    """Entry point: errors that Surefoot raises on purpose are printed and end with code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=Console(stderr=True), show_path=False)])
    try:
        app()
    except SurefootError as error:
        Console(stderr=True).print(f"[red]error[/red] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
