"""The search itself: trials one after the other, each a whole run, judged on ID validation; what is finished is never run again."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from surefoot import records
from surefoot.compare import Plan, check_room
from surefoot.data.draws import named, of_seed
from surefoot.data.images import Budget, Images
from surefoot.data.layout import Dataset
from surefoot.data.subsets import few_shot
from surefoot.errors import SettingError, TrainingError, unknown_name
from surefoot.folders import put_text
from surefoot.heads import LinearHead
from surefoot.identity import weights_hash
from surefoot.methods import METHODS, base_of
from surefoot.metrics import Score
from surefoot.model import ImageTextModel
from surefoot.train import Fitted, Step, fit, part, preflight, start_state, training_images
from surefoot.train.loop import CHECKPOINT_SECONDS
from surefoot.train.settings import stated
from surefoot.train.validate import Validation
from surefoot.tune import trials as stored
from surefoot.tune.choice import RULE, choose, recipe, shown
from surefoot.tune.sampler import require_optuna, suggest
from surefoot.tune.space import Range, Settings, checked_space, default_space, settings_of_plan, with_settings
from surefoot.tune.trials import Run, Trial

logger = logging.getLogger(__name__)

FILE = "tuned.toml"
DEFAULT_TRIALS = 16


class Watcher:
    """What a front end may want to know while a search runs; this one ignores it."""

    def trial(self, number: int, total: int | None, settings: Mapping[str, Any]) -> None:
        """Trial `number`, from 0, begins; `total` is None if only the time is limited."""

    def step(self, step: Step) -> None:
        """A training step is done."""

    def finished(self, trial: Trial) -> None:
        """A trial ended, or was found from before."""


@dataclass(frozen=True)
class Tuned:
    """A finished search.

    Attributes:
        method: its name.
        trials: in their order.
        chosen: nearest to the pre-trained model within one standard error of the best.
        argmax: the best on ID validation.
        recipe: the file that holds the chosen settings.
    """

    method: str
    trials: tuple[Trial, ...]
    chosen: Trial
    argmax: Trial
    recipe: Path


def train_and_val(dataset: Dataset) -> Dataset:
    """The data set with nothing in it but what a choice may use."""
    return replace(dataset, splits={name: dataset.split(name) for name in ("train", "val")})


def search(
    method: str,
    model: ImageTextModel,
    dataset: Dataset,
    plan: Plan,
    folder: Path,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    space: Mapping[str, Range] | None = None,
    select_on: str = "val",
    seed: int = 0,
    num_seeds: int = 1,
    watcher: Watcher | None = None,
    command: str = "surefoot.tune.search",
) -> Tuned:
    """Search the settings of one method, by ID validation alone.

    The first trial has the plan's own settings, so that the best one is never worse than they are. A trial whose loss leaves the finite
    numbers, or whose settings do not go together, is recorded as failed, and counts as 0 for the search.

    Args:
        method: its name.
        model: the pre-trained model; it has its first weights again afterwards.
        dataset: its train and val are used; no other split is looked at.
        plan: the settings around which is searched, and the seeds.
        folder: trials.jsonl and tuned.toml go here; trials of the same search that are finished there are not run again.
        trials: how many there are at most, those from before included; 16 if nothing is limited.
        minutes: how long all may take, those from before included; a trial that would pass it, by the mean so far, is not begun.
        space: what is searched; `default_space` if None.
        select_on: "val"; nothing else is accepted.
        seed: of the search.
        num_seeds: runs a trial, with the first seeds of the plan; its score is their mean.
        watcher: hears of the progress.
        command: what is noted in the recipe as its origin.

    Raises:
        SettingError: another split than validation, settings that do not fit, no budget, or Optuna is missing; nothing is written then.
        TrainingError: every trial failed, or the disk cannot take what must be written.
    """
    if select_on != "val":
        raise SettingError(
            f"select_on is '{select_on}'; only 'val' is accepted. A test set, a shift or an unseen set never chooses: what it chose would "
            "look better on it than it is, and nothing would be left that could say by how much. Leave --select-on out."
        )
    if base_of(method) not in METHODS:
        raise unknown_name("method", base_of(method), METHODS)
    if (trials is not None and trials < 1) or (minutes is not None and not minutes > 0) or not 1 <= num_seeds <= len(plan.seeds):
        raise SettingError(
            f"The budget is {trials} trials, {minutes} minutes and {num_seeds} of {len(plan.seeds)} seeds a trial. "
            "Trials must be 1 or more, minutes above 0, seeds a trial 1 to as many as the plan has."
        )
    require_optuna()
    trials = DEFAULT_TRIALS if trials is None and minutes is None else trials
    task = _Search(method, model, train_and_val(dataset), plan, folder, space, seed, num_seeds, watcher or Watcher())
    return task.run(trials, minutes, command)


class _Search:
    """One call of `search`: what determines it, and what is finished of it."""

    def __init__(
        self,
        name: str,
        model: ImageTextModel,
        dataset: Dataset,
        plan: Plan,
        folder: Path,
        space: Mapping[str, Range] | None,
        seed: int,
        num_seeds: int,
        watcher: Watcher,
    ) -> None:
        self.name, self.model, self.plan, self.folder, self.seed, self.watcher = name, model, plan, folder, seed, watcher
        if not plan.method_of(name).stages:
            raise SettingError(f"{name} trains nothing, so there is nothing to tune. Give a method that does, such as --method tp_ft.")
        self.space = checked_space(plan, name, default_space(plan, name) if space is None else space)
        self.seeds = plan.seeds[:num_seeds]
        own = {one: of_seed(dataset, one) for one in self.seeds}
        self.data_of = {one: few_shot(data, plan.shots, seed=one) if plan.shots else data for one, data in own.items()}
        self.draws = named(dataset, self.seeds)
        for one in self.seeds:
            preflight(plan.method_of(name), model, self.data_of[one], plan.training_of(name, one))
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        check_room(folder, 5 * size)  # a checkpoint: weights, the optimizer's moments, the kept epoch, and the one that replaces it
        self.provenance = records.provenance() | {"data": dataset.fingerprint(), "weights": weights_hash(model)}
        self.identity = self._identity()
        self.recorded = stored.read(folder, self.identity)
        self.start = start_state(model, dataset)
        self.budget = Budget()
        by = plan.training_of(name, self.seeds[0]).select_by
        self.images: dict[tuple[tuple[Path, ...], str], Images] = {}  # read once for all trials, and for all seeds that have the same
        self.validation: dict[tuple[Path, ...], Validation] = {}
        for data in self.data_of.values():
            val = data.split("val").paths
            self.validation.setdefault(val, Validation(model, data, by, self.budget))

    def run(self, most: int | None, minutes: float | None, command: str) -> Tuned:
        done: list[Trial] = []
        try:
            while (settings := self._next(done, most, minutes)) is not None:
                done.append(self._trial(len(done), most, settings))
                self.watcher.finished(done[-1])
        finally:
            self.model.load_weights(part(self.start, "model"))
        chosen, argmax = choose(done, self._size)
        path = self._write(done, chosen, argmax, command)
        for rest in self.folder.glob(f"*-{self.identity}.resume"):
            rest.unlink()
        return Tuned(self.name, tuple(done), chosen, argmax, path)

    def _identity(self) -> str:
        plan, seed = self.plan, self.seeds[0]
        shape = {key: self.provenance[key] for key in ("data", "weights")} | {"model": self.model.name, "precision": self.model.precision}
        own = {
            "method": self.name,
            "settings": plan.method_of(self.name).settings,
            "training": stated(plan.training_of(self.name, seed)),
            **self.draws,
        }
        return records.settings_hash({**shape, **own, "seeds": self.seeds, "shots": plan.shots, "space": self.space, "seed": self.seed})

    def _next(self, done: Sequence[Trial], most: int | None, minutes: float | None) -> Settings | None:
        """The settings of the next trial: recorded ones, the plan's own, or what the sampler says; None at the end of the search."""
        recorded = self._recorded(len(done))
        if recorded and Trial(recorded).complete(len(self.seeds)):
            return recorded[0].settings
        if _spent(done, most, minutes):
            return None
        if recorded:
            return recorded[0].settings
        if not done:
            return settings_of_plan(self.plan, self.name, list(self.space))
        settings = suggest(self.space, [(trial.settings, trial.value) for trial in done], seed=self.seed)
        if settings is None:
            logger.warning("All settings of the space were tried; the search ends after %d trials.", len(done))
        return settings

    def _recorded(self, number: int) -> tuple[Run, ...]:
        return tuple(run for run in self.recorded if run.number == number)

    def _trial(self, number: int, total: int | None, settings: Settings) -> Trial:
        """Run what is not recorded of a trial; a seed that fails ends it."""
        trial = Trial(self._recorded(number))
        if trial.complete(len(self.seeds)):
            return trial
        self.watcher.trial(number, total, settings)
        for seed in self.seeds[len(trial.runs) :]:
            path = self.folder / f"trial-{number}-seed{seed}-{self.identity}.resume"
            run = self._run(number, settings, seed, path)
            stored.append(self.folder, run)
            path.unlink(missing_ok=True)
            trial = Trial((*trial.runs, run))
            if run.failure:
                break
        return trial

    def _run(self, number: int, settings: Settings, seed: int, resume: Path) -> Run:
        score: Score | None = None
        epoch, failure, began, trained = None, "", time.monotonic(), 0.0
        try:
            score, fitted = self._fit(settings, seed, resume)
            epoch, trained = fitted.kept_epoch, fitted.seconds
        except (TrainingError, SettingError) as error:
            if error.__cause__ is not None:  # the disk, not the settings
                raise
            failure = str(error).partition(" The last good checkpoint")[0]  # it is removed with the trial
        return Run(
            search=self.identity, number=number, seed=seed, settings=settings, kept_epoch=epoch, failure=failure,
            value=score.value if score else None, error=score.error if score else None,
            seconds=max(time.monotonic() - began, trained), provenance=self.provenance,
        )  # fmt: skip

    def _fit(self, settings: Settings, seed: int, resume: Path) -> tuple[Score, Fitted]:
        """A run, and what ID validation says of the weights that it ended with, those of the kept epoch."""
        plan, data = with_settings(self.plan, self.name, settings), self.data_of[seed]
        self.model.load_weights(part(self.start, "model"))
        training, paths = plan.training_of(self.name, seed), data.split("train").paths
        images = self.images.setdefault((paths, training.reading), training_images(paths, self.model, training, self.budget))
        fitted = fit(
            plan.method_of(self.name), self.model, data, training, start=self.start,
            images=images, on_step=self.watcher.step, resume=resume, checkpoint_seconds=CHECKPOINT_SECONDS,
            budget=replace(self.budget),  # what is left of it; images that a run keeps are gone when it ends
        )  # fmt: skip
        device = next(self.model.parameters()).device
        head = LinearHead(torch.zeros_like(fitted.state["head.weight"]), 1.0)
        head.load_state_dict(part(fitted.state, "head"))
        validation = self.validation[data.split("val").paths]
        return validation.score(head.to(device), validation.features()), fitted

    def _size(self, trial: Trial) -> tuple[float, ...]:
        """How far a trial goes from the pre-trained model: learning rate, length, learning rate of a head alone."""
        plan, seed = with_settings(self.plan, self.name, trial.settings), self.seeds[0]
        training, own = plan.training_of(self.name, seed), plan.method_of(self.name).settings
        return training.learning_rate, training.num_steps(len(self.data_of[seed].split("train"))), own.get("head_learning_rate", 0.0)

    def _write(self, done: Sequence[Trial], chosen: Trial, argmax: Trial, command: str) -> Path:
        failed = sum(bool(trial.failure) for trial in done)
        by = self.plan.training_of(self.name, self.seeds[0]).select_by
        header = [
            command,
            "",
            f"{len(done)} trials of {self.name}, {failed} of them failed, judged by {by} on ID validation, {len(self.seeds)} seed(s) each.",
            f"Chosen, {RULE}: trial {chosen.number}, {_said(chosen)}.",
            f"Best on validation: trial {argmax.number}, {_said(argmax)}.",
        ]
        path = self.folder / FILE
        put_text(path, recipe(self.plan, self.name, self.model, header, chosen.settings))
        return path


def _said(trial: Trial) -> str:
    return f"{trial.value:.4f} ± {trial.error:.4f}: {shown(trial.settings)}"


def _spent(done: Sequence[Trial], most: int | None, minutes: float | None) -> bool:
    """Whether another trial would pass the budget, as long as the mean of those before; the first one is always run."""
    if not done:
        return False
    seconds = sum(trial.seconds for trial in done)
    return (most is not None and len(done) >= most) or (minutes is not None and seconds + seconds / len(done) > 60 * minutes)
