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
from surefoot.data.subsets import few_shot
from surefoot.job import DataOptions, Job
from surefoot.model import pick_device

DEFAULT_MODEL = "ViT-B-32:laion2b_s34b_b79k"
Methods = Annotated[str | None, typer.Option(help="Comma-separated, or 'all'; see 'surefoot methods'.")]
Seeds = Annotated[str | None, typer.Option(help="Comma-separated numbers, such as 0,1,2.")]
Shots = Annotated[str | None, typer.Option(help="Few-shot: images a class, such as 4 or 1,2,4,8,16; a new draw for each seed.")]
References = Annotated[
    str | None, typer.Option(help="Shares of the training images for models from scratch, such as 0.1,0.25,0.5,1: effective robustness.")
]
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
    references: References = None,
    precision: shared.PrecisionOption = None,
    device: shared.Device = "auto",
    split_seed: shared.SplitSeed = 0,
    val_share: shared.ValShare = 0.15,
    test_share: shared.TestShare = 0.15,
    skip_unreadable: shared.SkipUnreadable = False,
    set_: shared.Set = None,
) -> None:
    """Fine-tune by several methods and seeds, and show what each gains in distribution and costs elsewhere, along WiSE-FT's alpha."""
    shared.check_folder(out)
    pick_device(device)
    counts = list(dict.fromkeys(shared.numbers(shots, "--shots") or ()))
    shares = None if references is None else shared.fractions(references, "--references")
    options = DataOptions(
        data=data, split_seed=split_seed, val_share=val_share, test_share=test_share, skip_unreadable=skip_unreadable,
        base_to_new=base_to_new,
    )  # fmt: skip
    given = {"model": model, "precision": precision, "methods": shared.names(methods), "seeds": shared.numbers(seeds, "--seeds")}
    settings = resolve(data, recipe, set_, **given, shots=min(counts, default=None), corruptions=corruptions, references=shares)
    job = Job(data=options, model=settings.model, precision=settings.precision, plan=settings.plan, device=device)
    with shared.counting("reading images") as on_image:
        dataset = options.open(on_image)
    shared.tell_notes(dataset)
    for count in counts:  # all of them before the first hour is spent on one
        few_shot(dataset, count, seed=0)
    plans = [replace(job.plan, shots=count) for count in counts] or [job.plan]
    for plan in plans:
        folder = out / f"shots-{plan.shots}" if len(plans) > 1 else out
        run(replace(job, plan=plan), dataset, folder)


def resolve(data: str, recipe: str | None, assignments: Sequence[str] | None, **given: Any) -> config.Settings:  # noqa: ANN401
    """The settings of a recipe with what the command line gives.

    Without a model the embedded data get the embedded one, and anybody's own images a CLIP that was pre-trained on photographs. Without
    a recipe the model's own is taken.
    """
    table = config.read_recipe(recipe) if recipe else {}
    model = given.get("model")
    if model is None:
        model = table.get("model", "iconclip" if data in embedded.names() else DEFAULT_MODEL)
    table = table or config.read_recipe("iconshift" if model == "iconclip" else "clip")
    return config.resolve(table, config.parse_assignments(assignments or []), **{**given, "model": model})


def run(job: Job, dataset: Dataset, folder: Path) -> None:
    """Carry a job out into a folder and write its report."""
    carry_out(job, dataset, folder)
    write_report(folder)


def carry_out(job: Job, dataset: Dataset, folder: Path, files: Mapping[str, str] | None = None) -> Comparison:
    """Train and judge with a display; `files` are written into the folder as soon as nothing is wrong with the job."""
    display = Display()
    comparison = Comparison(job.load_model(), dataset, job.plan, folder, display)
    display.begin(comparison)
    job.save(folder)
    for name, content in {COMMAND: "surefoot " + shlex.join(sys.argv[1:]) + "\n", **(files or {})}.items():
        (folder / name).write_text(content, encoding="utf-8")
    with display.live:
        comparison.run()
    return comparison
