"""`surefoot frontier`: more points of the curve between the zero-shot and the fine-tuned weights, from what was trained already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surefoot.cli import console as shared
from surefoot.cli.compare import run
from surefoot.errors import SettingError
from surefoot.job import Job

DENSE = ",".join(f"{k / 20:g}" for k in range(21))


def frontier(
    folder: Annotated[Path, typer.Argument(help="A folder that 'surefoot compare' or 'surefoot fit' wrote.")],
    alphas: Annotated[str, typer.Option(help="Comma-separated coefficients in 0..1; 0 and 1 are added.")] = DENSE,
) -> None:
    """Judge the runs of a folder at more alphas, all of them in one pass over the images, and draw the frontier again."""
    wanted = shared.fractions(alphas, "--alphas")
    if wrong := [alpha for alpha in wanted if not 0 <= alpha <= 1]:
        raise SettingError(f"alpha {wrong[0]} is not in 0..1. Give numbers such as --alphas 0,0.25,0.5,0.75,1.")
    job = Job.of(folder)
    with shared.counting("reading images") as on_image:
        dataset = job.data.open(on_image)
    run(job.at(tuple(sorted({*wanted, *job.plan.alphas}))), dataset, folder)
