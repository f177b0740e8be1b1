"""`surefoot compare`: methods x seeds x alpha on one data set."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from surefoot import config
from surefoot.cli import console as shared
from surefoot.cli.display import Display
from surefoot.cli.report import COMMAND, write_report
from surefoot.compare import Comparison
from surefoot.data import Dataset, embedded
from surefoot.job import DataOptions, Job

DEFAULT_MODEL = "ViT-B-32:laion2b_s34b_b79k"
Methods = Annotated[str | None, typer.Option(help="Comma-separated, or 'all'; see 'surefoot methods'.")]
Seeds = Annotated[str | None, typer.Option(help="Comma-separated numbers, such as 0,1,2.")]
Shots = Annotated[str | None, typer.Option(help="Few-shot: images a class, such as 4 or 1,2,4,8,16; a new draw for each seed.")]
BaseToNew = Annotated[bool, typer.Option("--base-to-new", help="Train on the first half of the classes, judge the others too.")]


def compare(
    data: shared.Data,
    out: shared.Out = Path("runs/compare"),
    recipe: shared.Recipe = None,
    model: shared.Model = None,
    methods: Methods = None,
    seeds: Seeds = None,
    shots: Shots = None,
    base_to_new: BaseToNew = False,
    corruptions: shared.Corruptions = None,
    precision: shared.PrecisionOption = None,
    device: shared.Device = "auto",
    split_seed: shared.SplitSeed = 0,
    val_share: shared.ValShare = 0.15,
    test_share: shared.TestShare = 0.15,
    skip_unreadable: shared.SkipUnreadable = False,
    set_: shared.Set = None,
) -> None:
    """Fine-tune by several methods and seeds, and show what each gains in distribution and costs elsewhere, along WiSE-FT's alpha."""
    counts: list[int | None] = list(shared.numbers(shots) or ())
    counts = counts or [None]
    options = DataOptions(
        data=data,
        split_seed=split_seed,
        val_share=val_share,
        test_share=test_share,
        skip_unreadable=skip_unreadable,
        base_to_new=base_to_new,
    )
    given = {"model": model, "precision": precision, "methods": shared.names(methods), "seeds": shared.numbers(seeds)}
    settings = resolve(data, recipe, set_, **given, shots=counts[0], corruptions=corruptions)
    job = Job(data=options, model=settings.model, precision=settings.precision, plan=settings.plan, device=device)
    with shared.counting("reading images") as on_image:
        dataset = options.open(on_image)
    for count in counts:
        folder = out / f"shots-{count}" if len(counts) > 1 else out
        run(replace(job, plan=replace(job.plan, shots=count)), dataset, folder)


def resolve(data: str, recipe: str | None, assignments: Sequence[str] | None, **given: Any) -> config.Settings:  # noqa: ANN401
    """The settings of a recipe with what the command line gives.

    Without a model the embedded data get the embedded one, and anybody's own images a CLIP that was pre-trained on photographs. Without
    a recipe the model's own is taken.
    """
    table = config.read_recipe(recipe) if recipe else {}
    model = given.get("model") or table.get("model") or ("iconclip" if data in embedded.names() else DEFAULT_MODEL)
    table = table or config.read_recipe("iconshift" if model == "iconclip" else "clip")
    return config.resolve(table, config.parse_assignments(assignments or []), **{**given, "model": model})


def run(job: Job, dataset: Dataset, folder: Path, files: Mapping[str, str] | None = None) -> Comparison:
    """Carry a job out into a folder, with a display, and write its report; `files` are written as soon as nothing is wrong with the job."""
    display = Display()
    comparison = Comparison(job.load_model(), dataset, job.plan, folder, display)
    display.begin(comparison)
    job.save(folder)
    for name, content in {COMMAND: "surefoot " + shlex.join(sys.argv[1:]) + "\n", **(files or {})}.items():
        (folder / name).write_text(content, encoding="utf-8")
    with display.live:
        comparison.run()
    write_report(folder)
    return comparison
