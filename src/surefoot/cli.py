"""The command line."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from surefoot import config, records
from surefoot.compare import Comparison, Plan, Watcher
from surefoot.data import Dataset, load
from surefoot.errors import SurefootError
from surefoot.methods import METHODS
from surefoot.model import load_model, pick_device
from surefoot.report import frontier_svg, markdown, rich_table, rows, write_page
from surefoot.train import Step

app = typer.Typer(
    help="Fine-tune CLIP and other zero-shot image-text models without wrecking them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()
COMMAND = "command.txt"
TRAINING_COST = 3  # forward and backward against one forward


class _Display(Watcher):
    """A progress bar with the time left, and the table as it grows."""

    def __init__(self, dataset: Dataset, plan: Plan) -> None:
        self.found: list[records.Record] = []
        self.eval_images = sum(len(split) for name, split in dataset.splits.items() if name != "train")
        self.plan, self.num_train = plan, len(dataset.split("train"))
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self.progress = Progress(*columns, console=console)
        methods = [name for name in plan.methods if name != "zero_shot"]
        self.alphas = len({0.0, 1.0, *plan.alphas})
        total = self.eval_images * (1 + self.alphas * len(methods) * len(plan.seeds))
        total += sum(self._training_work(name) for name in methods) * len(plan.seeds)
        self.task = self.progress.add_task("images", total=total)
        self.live = Live(self._view(), console=console, refresh_per_second=2)
        self._trained = 0

    def _training_work(self, method: str) -> int:
        training = self.plan.training_of(method, 0)
        return TRAINING_COST * training.epochs * (self.num_train // training.batch_size) * training.batch_size

    def _view(self) -> Group:
        return Group(rich_table(rows(self.found)), self.progress) if self.found else Group(self.progress)

    def run(self, method: str, seed: int, number: int, total: int) -> None:
        self._finish_training()
        self._trained = self._training_work(method)
        self.progress.update(self.task, description=f"{method}, seed {seed} ({number} of {total})")

    def step(self, step: Step) -> None:
        share = self._trained // max(1, step.total - step.number + 1)
        self._trained -= share
        self.progress.advance(self.task, share)

    def _finish_training(self) -> None:
        self.progress.advance(self.task, self._trained)
        self._trained = 0

    def evaluated(self, record: records.Evaluation) -> None:
        self._finish_training()
        self.found.append(record)
        self.progress.advance(self.task, self.eval_images)
        self.live.update(self._view())
        if not console.is_terminal and record.alpha in (0.0, 1.0):
            shown = {key: record.accuracy[key] for key in ("test", "avg_shifts", "context") if key in record.accuracy}
            numbers = "  ".join(f"{key} {100 * value:.1f}" for key, value in shown.items())
            console.print(f"{record.method} seed {record.seed} alpha {record.alpha:.1f}  {numbers}")


@app.command(epilog="Example: surefoot compare iconshift --out runs/iconshift")
def compare(
    data: Annotated[str, typer.Argument(help="'iconshift', or a folder with train/, val/, test/ and optionally shifts/ and unseen/.")],
    out: Annotated[Path, typer.Option(help="Folder for records, weights and the report. What is finished there is not run again.")] = Path(
        "runs/compare"
    ),
    recipe: Annotated[
        str | None, typer.Option(help="'iconshift' or 'clip', which come with Surefoot, or a TOML file. Default: the one for the model.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="iconclip, ARCH:TAG, ARCH:FILE@TAG, local-dir:FOLDER or hf-hub:NAME.")] = None,
    methods: Annotated[str | None, typer.Option(help="Comma-separated; see 'surefoot methods'.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Comma-separated numbers, such as 0,1,2.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A training setting, such as epochs=5 or flyp.learning_rate=1e-4.")
    ] = None,
) -> None:
    """Fine-tune by several methods and seeds, and show what each gains in distribution and costs elsewhere, along WiSE-FT's alpha."""
    settings = config.resolve(
        config.read_recipe(recipe or ("iconshift" if model in (None, "iconclip") else "clip")),
        config.parse_assignments(set_ or []),
        model=model,
        precision=precision,
        methods=_names(methods),
        seeds=_numbers(seeds),
    )
    dataset = load(data)
    loaded = load_model(settings.model, device=pick_device(device), precision=settings.precision)
    display = _Display(dataset, settings.plan)
    with display.live:
        Comparison(loaded, dataset, settings.plan, out, display).run()
    (out / COMMAND).write_text("surefoot " + shlex.join(sys.argv[1:]) + "\n", encoding="utf-8")
    _write_report(out)


@app.command(epilog="Example: surefoot report runs/iconshift")
def report(folder: Annotated[Path, typer.Argument(help="A folder that 'surefoot compare' wrote.")]) -> None:
    """Write the report of a comparison again (page, table as markdown, picture), and print its table."""
    _write_report(folder)


@app.command(epilog="Example: surefoot methods")
def methods() -> None:
    """List the methods, what each trains and how it predicts."""
    for name, factory in METHODS.items():
        method = factory()
        summary = (factory.__doc__ or "").strip().split("\n")[0]
        console.print(
            f"[bold]{name}[/bold]  trains {', '.join(sorted(method.trains)) or 'nothing'}; {method.predict} head answers. {summary}"
        )


def _write_report(folder: Path) -> None:
    """The page, the table as markdown and the picture alone, in report/; the table on the console too."""
    page = write_page(folder, folder / "report", command=_command(folder))
    found = list(records.read(folder))
    (page.parent / "table.md").write_text(markdown(rows(found)), encoding="utf-8")
    measured = {column for record in found if isinstance(record, records.Evaluation) for column in record.accuracy}
    against = [
        column for column in ("avg_shifts", *sorted(c for c in measured if c.startswith("unseen/")), "context") if column in measured
    ]
    if against:  # data without shifts, unseen classes and contexts has no frontier
        (page.parent / "frontier.svg").write_text(frontier_svg(found, on=against[0]), encoding="utf-8")
    console.print(rich_table(rows(found)))
    console.print(f"Report: {escape(str(page))}", soft_wrap=True)


def _command(folder: Path) -> str:
    """The command that made the records of a folder, as `compare` noted it."""
    path = folder / COMMAND
    return path.read_text(encoding="utf-8").strip() if path.is_file() else f"surefoot report {folder}"


def _names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",") if name.strip()] if text is not None else None


def _numbers(text: str | None) -> list[int] | None:
    try:
        return [int(number) for number in _names(text) or []] if text is not None else None
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is not a comma-separated list of whole numbers, such as 0,1,2.") from error


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
