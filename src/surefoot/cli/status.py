"""`surefoot status`: how far a folder is, while a command is at work there or after it ended."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from surefoot.advise import duration
from surefoot.cli import console as shared
from surefoot.cli.report import COMMAND
from surefoot.errors import MissingDataError
from surefoot.guard.texts import SMALL, read_bytes
from surefoot.job import FILE, Job
from surefoot.report.runs import display_name
from surefoot.tune import TRIALS
from surefoot.watching import Status
from surefoot.watching import status as look

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 40  # of the line of losses
PAUSE = 2.0  # seconds between two looks


def status(
    folder: Annotated[Path, typer.Argument(help="A folder that 'surefoot fit', 'compare', 'sweep', 'tune' or a protocol writes.")],
    follow: Annotated[bool, typer.Option("--follow", help="Look again every two seconds, until nobody is at work there.")] = False,
) -> None:
    """How far a folder is: what is trained and judged, who is at work there, how long it takes still, and how to go on."""
    if not follow:
        shared.console.print(page(folder))
        return
    with Live(page(folder), console=shared.console, auto_refresh=False) as live:
        while any(one.state == "running" for one in statuses(folder)):
            time.sleep(PAUSE)
            live.update(page(folder), refresh=True)


def statuses(folder: Path) -> list[Status]:
    """The folder's own, or those of the parts of a protocol below it, in the order of their names.

    Raises:
        MissingDataError: nothing there that a command which trains wrote.
        DataError: damaged files, named.
    """
    places = [folder] if (folder / FILE).is_file() else sorted(path.parent for path in folder.glob(f"*/{FILE}"))
    if not places and not list(trials(folder)):
        raise MissingDataError(
            f"{folder} holds no {FILE}, neither itself nor one folder below, and no {TRIALS}. "
            "Give the --out of 'surefoot fit', 'compare', 'tune' or a protocol."
        )
    jobs = [(place, Job.of(place)) for place in places]
    return [look(place, [(name, seed) for name in job.plan.tuned for seed in job.plan.seeds], job.plan.all_alphas) for place, job in jobs]


def page(folder: Path) -> Group:
    """All that is to be said of a folder."""
    found = statuses(folder)
    parts: list[Table | Text] = []
    for one in found:
        name = "" if one.folder == folder else f"{one.folder.name}: "
        parts += [Text(f"{name}{one.says}", style="bold"), *_of(one)]
    for name, number in trials(folder):
        parts.append(Text(f"{name}: {number} runs of trials are finished"))
    noted = folder / COMMAND
    if (
        noted.is_file()
        and not any(one.state == "running" for one in found)
        and any(one.left or one.state in ("stopped", "killed") for one in found)
    ):
        said = read_bytes(noted, most=SMALL).decode("utf-8", "replace").strip()
        parts.append(Text(f"Go on: {said}"))
    return Group(*parts)


def trials(folder: Path) -> Iterator[tuple[str, int]]:
    """Finished runs of a search: the folder's own, as 'surefoot tune' writes it, and those below it, by method."""
    own = folder / TRIALS
    for path in [*([own] if own.is_file() else []), *sorted(folder.glob(f"tune/*/{TRIALS}"))]:
        yield folder.name if path == own else f"tune/{path.parent.name}", read_bytes(path).count(b"\n")


def _of(one: Status) -> Iterator[Table | Text]:
    yield _table(one)
    if one.at:
        left = f", {duration(one.seconds_left)} left of its training" if one.seconds_left is not None else ""
        at = one.at
        name = f"{display_name(at['method'])}, seed {at['seed']}" if "method" in at else f"reference {at.get('reference', '')}"
        yield Text(f"{name}: step {at['step']} of {at['total']}, loss {at['loss']:.3f}{left}")
        yield Text(sparkline(one.losses))
    if one.left and one.run_seconds is not None:
        yield Text(
            f"{one.left} of {len(one.runs)} runs left, about {duration(one.left * one.run_seconds)} at {duration(one.run_seconds)} each"
        )


def _table(one: Status) -> Table:
    made = Table("method", "seed", "training", "judged", "ID validation", box=box.SIMPLE_HEAD)
    for run in one.runs:
        under_way = not run.trained and (one.at.get("method"), one.at.get("seed")) == (run.method, run.seed)
        state = "finished" if run.trained else "under way" if under_way and one.state == "running" else "begun" if under_way else "–"
        val = "–" if run.val is None else f"{100 * run.val:.1f}% after epoch {run.epoch}"
        made.add_row(escape(display_name(run.method)), str(run.seed), state, f"{run.judged} of {run.wanted} alphas", val)
    return made


def sparkline(values: Sequence[float]) -> str:
    """The newest values as blocks, in as many columns as a line has room for; each column is a mean.

    Examples:
        >>> sparkline([1.0, 2.0, 3.0])
        '▁▅█'
    """
    num = min(WIDTH, len(values))
    columns = [values[k * len(values) // num : (k + 1) * len(values) // num] for k in range(num)]
    means = [sum(column) / len(column) for column in columns]
    low, span = min(means, default=0.0), (max(means, default=0.0) - min(means, default=0.0)) or 1.0
    return "".join(BLOCKS[round((mean - low) / span * (len(BLOCKS) - 1))] for mean in means)
