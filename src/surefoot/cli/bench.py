"""`surefoot bench`: where the time of a step goes."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from surefoot.bench import Profile, profile
from surefoot.cli import console as shared
from surefoot.cli.recipe import resolve
from surefoot.clock import PARTS
from surefoot.job import DataOptions, Job
from surefoot.model import pick_device


def bench(
    data: shared.Data,
    root: shared.Root = None,
    method: Annotated[str, typer.Option(help="See 'surefoot methods'.")] = "flyp",
    model: shared.Model = None,
    steps: Annotated[int, typer.Option(help="How many steps are measured, after three to warm up.")] = 10,
    anchors: shared.Anchors = None,
    recipe: shared.Recipe = None,
    precision: shared.PrecisionOption = None,
    device: shared.Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Write what was measured as JSON.")] = False,
    set_: shared.Set = None,
) -> None:
    """Measure real steps on your images: input, towers, loss, backward, optimizer; name the bottleneck. Nothing is written."""
    pick_device(device)
    options = DataOptions(data=data, root=root, anchors=anchors)
    settings = resolve(data, recipe, set_, model=model, methods=[method], precision=precision)
    job = Job(data=options, model=settings.model, precision=settings.precision, plan=settings.plan, device=device)
    dataset, loaded = shared.opened(options), job.load_model()
    training = job.plan.training_of(method, 0)
    with shared.errors.status(f"{method}: taking {steps + 3} steps"):
        found = profile(job.plan.method_of(method), loaded, dataset, training, steps=steps)
    if as_json:
        typer.echo(json.dumps(_facts(found), indent=1))
        return
    shared.console.print(_table(found))
    rate = f"{found.batch_size / found.seconds:.1f} images a second, {found.peak_bytes / 1e9:.1f} GB at the peak"
    share = f"{found.flops / 1e9:.1f} GFLOP a step, {found.rate_share:.0%} of the rate of a plain matrix product here"
    shared.console.print(f"{rate}; {share}.", highlight=False, soft_wrap=True)
    shared.console.print(found.bottleneck, highlight=False, soft_wrap=True)


def _table(found: Profile) -> Table:
    table = Table("part of a step", "ms, median", "least", "most", "share", title=f"{found.method}, batches of {found.batch_size}")
    for name in PARTS:
        median, least, most = found.part(name)
        if most:
            table.add_row(name, *(f"{1000 * value:.1f}" for value in (median, least, most)), f"{median / found.seconds:.0%}")
    table.add_section()
    table.add_row("a step", f"{1000 * found.seconds:.1f}", "", "", "")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _facts(found: Profile) -> dict[str, object]:
    parts = {name: dict(zip(("median", "least", "most"), found.part(name), strict=True)) for name in PARTS}
    return {
        "method": found.method, "batch_size": found.batch_size, "num_steps": len(found.steps), "seconds": found.seconds, "parts": parts,
        "flops": found.flops, "matmul_rate": found.matmul_rate, "rate_share": found.rate_share, "peak_bytes": found.peak_bytes,
        "bottleneck": found.bottleneck,
    }  # fmt: skip
