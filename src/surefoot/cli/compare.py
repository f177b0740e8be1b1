"""`surefoot compare`: methods x seeds x alpha on one data set."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from surefoot.cli import console as shared
from surefoot.cli.display import Display
from surefoot.cli.recipe import resolve
from surefoot.cli.report import COMMAND, write_report
from surefoot.cli.tune import Space, tuned_plan
from surefoot.compare import Comparison, Plan
from surefoot.compare.curves import kinds_of
from surefoot.data import Dataset
from surefoot.data.subsets import few_shot
from surefoot.data.writing import alone
from surefoot.distributed import is_first
from surefoot.folders import put_text
from surefoot.job import DataOptions, Job
from surefoot.methods import ALL
from surefoot.model import ImageTextModel, pick_device
from surefoot.train.preflight import foreign_pairs, lacking
from surefoot.tune.sampler import require_optuna
from surefoot.watching import LOCK, Log, Together, boards

Methods = Annotated[str | None, typer.Option(help="Comma-separated, or 'all'; see 'surefoot methods'.")]
Seeds = Annotated[str | None, typer.Option(help="Comma-separated numbers, such as 0,1,2.")]
Alphas = Annotated[str | None, typer.Option(help="WiSE-FT's coefficients, such as 0.5; 0 and 1 are added. Default: the recipe's.")]
Shots = Annotated[str | None, typer.Option(help="Few-shot: images a class, such as 4 or 1,2,4,8,16; a new draw for each seed.")]
References = Annotated[
    str | None, typer.Option(help="Shares of the training images for models from scratch, such as 0.1,0.25,0.5,1: effective robustness.")
]
Curves = Annotated[
    str | None,
    typer.Option(
        help="Draw beside each frontier, at a cost in time: outputs, epochs, fisher, visual (the image tower interpolated alone, of "
        "methods that train both towers; others have no such curve), comma-separated, or 'all'.",
        show_default=False,
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(help="First search each method's settings on ID validation: so many trials each.", show_default=False),
]
BaseToNew = Annotated[bool, typer.Option("--base-to-new", help="Train on the first half of the classes, judge the others too.")]


def compare(
    data: shared.Data,
    root: shared.Root = None,
    out: shared.Out = Path("runs/compare"),
    recipe: shared.Recipe = None,
    model: shared.Model = None,
    methods: Methods = None,
    seeds: Seeds = None,
    alphas: Alphas = None,
    shots: Shots = None,
    base_to_new: BaseToNew = False,
    anchors: shared.Anchors = None,
    corruptions: shared.Corruptions = None,
    references: References = None,
    curves: Curves = None,
    trials: Trials = None,
    space: Space = None,
    watch: shared.Watch = None,
    precision: shared.PrecisionOption = None,
    device: shared.Device = "auto",
    split_seed: shared.SplitSeed = 0,
    val_share: shared.ValShare = None,
    test_share: shared.TestShare = 0.15,
    skip_unreadable: shared.SkipUnreadable = False,
    allow_outside: shared.AllowOutside = False,
    smoke: shared.Smoke = False,
    set_: shared.Set = None,
) -> None:
    """Fine-tune by several methods and seeds, and show what each gains in distribution and costs elsewhere, along WiSE-FT's alpha."""
    kinds = _check(out, device, trials, curves)
    counts = list(dict.fromkeys(shared.numbers(shots, "--shots") or ()))
    said: dict[str, object] = {"methods": shared.names(methods), "seeds": shared.numbers(seeds, "--seeds"), "corruptions": corruptions}
    said |= {"alphas": shared.given_fractions(alphas, "--alphas"), "references": shared.given_fractions(references, "--references")}
    settings = resolve(data, recipe, set_, **said, model=model, precision=precision, shots=min(counts, default=None), smoke=smoke)
    options = DataOptions(
        data=data, split_seed=split_seed, val_share=val_share, test_share=test_share, skip_unreadable=skip_unreadable,
        base_to_new=base_to_new, anchors=anchors, root=root, templates=settings.templates, allow_outside=allow_outside, smoke=smoke,
    )  # fmt: skip
    job, dataset = shared.job(options, settings, device, watch), shared.opened(options)
    if set(job.plan.methods) == set(ALL):
        job = replace(job, plan=possible(job.plan, dataset, job.load_model))
    for own, folder in _parts(job, dataset, out, counts):
        run(own if trials is None else replace(own, plan=tuned_plan(own, dataset, folder, trials, space)), dataset, folder, kinds)


def _check(out: Path, device: str, trials: int | None, curves: str | None) -> tuple[str, ...]:
    """What can be wrong before anything is read; the kinds of curves."""
    shared.check_folder(out)
    pick_device(device)
    if trials is not None:
        require_optuna()
    return kinds_of(shared.names(curves) or ())


def _parts(job: Job, dataset: Dataset, out: Path, counts: Sequence[int]) -> list[tuple[Job, Path]]:
    """The job itself, or one for each number of shots in a folder of its own; none begins before all are known to be possible."""
    for count in counts:
        few_shot(dataset, count, seed=0)
    jobs = [replace(job, plan=replace(job.plan, shots=count)) for count in counts] or [job]
    return [(own, out / f"shots-{own.plan.shots}" if len(jobs) > 1 else out) for own in jobs]


def possible(plan: Plan, dataset: Dataset, load: Callable[[], ImageTextModel]) -> Plan:
    """The plan without the methods that need what the data do not have for this model, each of which is named.

    Args:
        plan: what was asked for.
        dataset: with its anchors.
        load: loads the model, which is asked only where a method needs pairs and other weights may have retrieved them.
    """
    kept, loaded = [], cache(load)
    for name in plan.methods:
        method = plan.method_of(name)
        if missing := lacking(method, dataset) + foreign_pairs(method, loaded, dataset):
            shared.errors.print(f"{escape(name)} is left out: {escape('; '.join(missing))}.", soft_wrap=True, highlight=False)
        else:
            kept.append(name)
    return replace(plan, methods=tuple(kept))


def run(job: Job, dataset: Dataset, folder: Path, curves: Sequence[str] = ()) -> None:
    """Carry a job out into a folder and write its report."""
    carry_out(job, dataset, folder, curves=curves)
    write_report(folder)


def carry_out(
    job: Job,
    dataset: Dataset,
    folder: Path,
    files: Mapping[str, str] | None = None,
    *,
    curves: Sequence[str] = (),
    then: Callable[[Comparison], None] | None = None,
) -> Comparison:
    """Train and judge with a display; `files` are written into the folder as soon as nothing is wrong with the job.

    `then` is what follows, while the folder is still this command's own, and its log not ended.
    """
    model, display, log = job.load_model(), Display(), Log(folder)
    with ExitStack() as opened:
        own = [log, *(opened.enter_context(board) for board in boards(job.watch, folder))] if is_first() else []
        comparison = Comparison(model, dataset, job.plan, folder, Together([display, *own]), curves=curves)
        display.begin(comparison)
        if is_first():
            opened.enter_context(alone(folder, LOCK, "--out", "what is finished is kept", doing=_typed()[0]))
            _write(job, folder, files or {})
            opened.enter_context(log.session(shlex.join(["surefoot", *_typed()])))
        with display.live:
            comparison.run()
        if then is not None:
            then(comparison)
    return comparison


def _typed() -> list[str]:
    """The command and its arguments."""
    return sys.argv[1:] or ["command"]


def _write(job: Job, folder: Path, files: Mapping[str, str]) -> None:
    job.save(folder)
    for name, content in {COMMAND: "surefoot " + shlex.join(sys.argv[1:]) + "\n", **files}.items():
        put_text(folder / name, content)
