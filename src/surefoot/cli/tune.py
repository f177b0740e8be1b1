"""`surefoot tune`: the settings of one method, chosen on ID validation."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.markup import escape
from rich.progress import TaskID
from rich.table import Table

from surefoot import records
from surefoot.anchors.attach import attach
from surefoot.cli import console as shared
from surefoot.cli.recipe import resolve
from surefoot.compare import Plan
from surefoot.config import parse_assignments
from surefoot.data import Dataset, load
from surefoot.data.subsets import base_to_new as base_half
from surefoot.data.subsets import smoke as smoke_of
from surefoot.data.survey import verified
from surefoot.distributed import announced
from surefoot.errors import SettingError
from surefoot.job import DataOptions, Job, pick_precision
from surefoot.model import load_model, pick_device
from surefoot.train import Step
from surefoot.tune import Trial, Tuned, Watcher, default_space, parse_space, search, train_and_val
from surefoot.tune.choice import RULE, shown
from surefoot.tune.sampler import require_optuna
from surefoot.tune.search import DEFAULT_TRIALS
from surefoot.tune.space import searchable, with_settings

Name = Annotated[str, typer.Option("--method", help="The method whose settings are searched; see 'surefoot methods'.")]
Out = Annotated[Path, typer.Option(help="Folder for trials and the tuned recipe. Trials that are finished there are not run again.")]
Trials = Annotated[
    int | None, typer.Option(help=f"How many trials at most. Default: {DEFAULT_TRIALS}, or no limit with --minutes.", show_default=False)
]
Minutes = Annotated[float | None, typer.Option(help="How long at most; a trial that would pass it is not begun.")]
Space = Annotated[
    list[str] | None,
    typer.Option(
        help="What is searched: learning_rate=1e-5..1e-3:log is a range, epochs=5,10,20 are values. May be repeated. "
        "Default: learning rate, length, and the method's own strengths."
    ),
]
SelectOn = Annotated[str, typer.Option(help="The split that chooses. Only 'val' is accepted: a test set never chooses.")]
Seeds = Annotated[str | None, typer.Option(help="Comma-separated; a trial takes the first, the tuned recipe keeps all.")]


def tune(
    data: shared.Data,
    method: Name,
    root: shared.Root = None,
    out: Out = Path("runs/tune"),
    trials: Trials = None,
    minutes: Minutes = None,
    space: Space = None,
    select_on: SelectOn = "val",
    recipe: shared.Recipe = None,
    model: shared.Model = None,
    seeds: Seeds = None,
    seeds_per_trial: Annotated[int, typer.Option(help="Runs a trial, whose mean is its score.")] = 1,
    search_seed: Annotated[int, typer.Option(help="Seed of the search itself.")] = 0,
    shots: Annotated[int | None, typer.Option(help="Few-shot: images a class.")] = None,
    base_to_new: Annotated[bool, typer.Option("--base-to-new", help="Train on the first half of the classes.")] = False,
    anchors: shared.Anchors = None,
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
    """Search a method's settings within a budget, by ID validation alone; OUT/tuned.toml is a recipe with what was chosen."""
    place, listed = _check(out, device), shared.numbers(seeds, "--seeds")
    settings = resolve(data, recipe, set_, model=model, precision=precision, methods=[method], seeds=listed, shots=shots, smoke=smoke)
    ranges = parse_space(space) if space else _free(settings.plan, method, set_ or [])
    options = DataOptions(
        data=data, root=root, split_seed=split_seed, val_share=val_share, test_share=test_share, skip_unreadable=skip_unreadable,
        anchors=anchors, templates=settings.templates, allow_outside=allow_outside, smoke=smoke,
    )  # fmt: skip
    dataset = _opened(options, base_to_new)
    pre_trained = load_model(settings.model, device=place, precision=pick_precision(settings.precision, place))
    with Display() as display:
        tuned = search(
            method, pre_trained, dataset, settings.plan, out, trials=trials, minutes=minutes, space=ranges, select_on=select_on,
            seed=search_seed, num_seeds=seeds_per_trial, watcher=display, command="surefoot " + shlex.join(sys.argv[1:]),
        )  # fmt: skip
    tell(tuned, options)


def _check(out: Path, device: str) -> torch.device:
    """What can be wrong before anything is read; the device."""
    require_optuna()
    shared.check_folder(out)
    return pick_device(device)


def _opened(options: DataOptions, base_to_new: bool) -> Dataset:
    """Train and val of the data, or of the first half of their classes, with the anchors."""
    found = load(
        options.data, root=options.root, seed=options.split_seed, val_share=options.val_share, test_share=options.test_share,
        templates=options.templates, allow_outside=options.allow_outside,
    )  # fmt: skip
    dataset = attach(opened(found, options.skip_unreadable, base_to_new, options.smoke), options.anchors_folder)
    shared.tell_notes(dataset)
    return dataset


def _free(plan: Plan, method: str, assignments: list[str]) -> Mapping[str, Any]:
    """The method's own space without what the command line sets."""
    fixed = {key.rpartition(".")[2] for key in parse_assignments(assignments)}
    return {key: values for key, values in default_space(plan, method).items() if key not in fixed}


def tuned_plan(job: Job, dataset: Dataset, out: Path, trials: int, space: list[str] | None) -> Plan:
    """The plan of a comparison with the settings that ID validation chose for each of its methods, searched below OUT/tune.

    Args:
        job: its plan is the middle of every search.
        dataset: train and val of it are used.
        out: trials that are finished in it are not run again.
        trials: of each method.
        space: what is searched; where a method has nothing of it, and without one, its own default space.
    """
    if announced():
        raise SettingError("Settings are searched by one process. Run 'surefoot tune' without torchrun, and give its recipe by --recipe.")
    plan, model, wanted = job.plan, job.load_model(), parse_space(space) if space else {}
    for name in job.plan.tuned:
        known = searchable(job.plan, name)
        ranges = {key: values for key, values in wanted.items() if key in known} or default_space(job.plan, name)
        shared.errors.print(f"{escape(name)}: {trials} trials", highlight=False)
        with Display() as display:
            found = search(
                name, model, dataset, job.plan, out / "tune" / records.file_name(name), trials=trials, space=ranges, watcher=display,
                command="surefoot " + shlex.join(sys.argv[1:]),
            )  # fmt: skip
        plan = with_settings(plan, name, found.chosen.settings)
    return plan


def opened(found: Dataset, skip_unreadable: bool, base_to_new: bool, smoke: bool) -> Dataset:
    """Train and val of the part that was asked for, every image of them read once; no image of another split is opened."""
    found = smoke_of(found) if smoke else found
    found = base_half(found) if base_to_new else found
    with shared.counting("reading images") as on_image:
        return verified(train_and_val(found), skip_unreadable=skip_unreadable, on_image=on_image)


class Display(Watcher):
    """One bar for the trials, whose parts count too so that the time left is steady, and one for the steps of the trial under way."""

    def __init__(self) -> None:
        self.progress = shared.bar()
        self.trials: TaskID | None = None
        self.steps: TaskID | None = None
        self.done = 0

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def trial(self, number: int, total: int | None, settings: Mapping[str, Any]) -> None:
        if self.trials is None:
            self.trials = self.progress.add_task("trials", total=total, completed=number)
        if self.steps is not None:
            self.progress.remove_task(self.steps)
        self.steps = self.progress.add_task(f"trial {number}", total=None)

    def step(self, step: Step) -> None:
        if self.trials is not None and self.steps is not None:
            self.progress.update(self.steps, completed=step.number, total=step.total)
            self.progress.update(self.trials, completed=self.done + step.number / step.total)

    def finished(self, trial: Trial) -> None:
        self.done += 1
        self.progress.console.print(escape(f"trial {trial.number}  {_score(trial)}  {shown(trial.settings)}"), highlight=False)
        if self.trials is not None:
            self.progress.update(self.trials, completed=self.done)


def table(tuned: Tuned) -> Table:
    """All trials, the best first, the chosen one marked, those that failed last."""
    keys = list(tuned.chosen.settings)
    made = Table("", "trial", box=box.SIMPLE_HEAD)
    for key in keys:
        made.add_column(key.replace("_", " "), overflow="fold")
    for title in ("validation", "epoch", "seconds"):
        made.add_column(title, no_wrap=True)
    for trial in sorted(tuned.trials, key=lambda trial: (bool(trial.failure), -trial.value, trial.number)):
        mark = "chosen" if trial == tuned.chosen else "best" if trial == tuned.argmax else ""
        epochs = ", ".join(str(run.kept_epoch) for run in trial.runs if run.kept_epoch is not None)
        cells = (mark, str(trial.number), *(_cell(trial.settings[key]) for key in keys), _score(trial), epochs, f"{trial.seconds:.0f}")
        made.add_row(*map(escape, cells), style="bold" if mark == "chosen" else None)
    return made


def _score(trial: Trial) -> str:
    return "failed" if trial.failure else f"{100 * trial.value:.1f} ± {100 * trial.error:.1f}"


def _cell(value: object) -> str:
    return "none" if value is None else str(value)


def tell(tuned: Tuned, options: DataOptions) -> None:
    """The trials, what was chosen and why, where it stands, and what to do with it."""
    chosen, best = tuned.chosen, tuned.argmax
    more = [*(["--root", options.root] if options.root else []), *["--allow-outside"] * options.allow_outside]
    more += [] if options.templates == "own" else ["--set", f"templates={options.templates}"]
    beside = "" if chosen == best else f" Validation cannot tell it from the best, trial {best.number}."
    lines = [f"Trial {trial.number} failed: {trial.failure}" for trial in tuned.trials if trial.failure]
    lines += [
        f"Trial {chosen.number} is chosen: {RULE}.{beside} Trial 0 has the settings that were given.",
        f"Recipe: {tuned.recipe}",
        "Next: " + shlex.join(["surefoot", "compare", options.data, "--recipe", str(tuned.recipe), *more]),
    ]
    shared.console.print(table(tuned))
    for line in lines:
        shared.console.print(escape(line), soft_wrap=True, highlight=False)
