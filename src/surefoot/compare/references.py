"""Reference models, trained from random weights on shares of the training images, and the effective robustness that follows from them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surefoot import records
from surefoot.compare.conclusions import rows_of
from surefoot.compare.plan import Plan, Watcher
from surefoot.data.draws import named
from surefoot.data.images import Budget
from surefoot.data.layout import Dataset
from surefoot.data.subsets import fraction
from surefoot.distributed import is_first
from surefoot.errors import SettingError
from surefoot.methods.reference import REFERENCE, reference
from surefoot.model import ImageTextModel
from surefoot.protocols import Judge, Outcome
from surefoot.robustness import Baseline, effective_robustness
from surefoot.train import State, Training, fit, part, settings_of

SETS = ("val", "test", "shifts/", "restricted/", "corruptions/")
"""What a reference is judged on: no text answers for it, so that it has no unseen classes, no contexts and no agreement."""


@dataclass(frozen=True)
class References:
    """The reference models of a comparison; what is recorded is not trained again.

    They are trained on shares of the whole training split, few shots or not, and their epoch is chosen on the whole of validation. Their
    seed is the plan's first.

    Args:
        model: its architecture is trained; it is left with the weights of the last reference.
        dataset: the data of the comparison.
        plan: its shares, and the training settings.
        folder: of the records; a checkpoint stands in weights/ while a reference is trained.
        provenance: versions and hashes, as in every record of the comparison.
    """

    model: ImageTextModel
    dataset: Dataset
    plan: Plan
    folder: Path
    provenance: Mapping[str, Any]

    @property
    def training(self) -> Training:
        """The training settings of every reference."""
        return self.plan.training_of(REFERENCE, self.plan.seeds[0])

    def settings(self, share: float) -> dict[str, object]:
        """What is written with a reference's record."""
        return {**settings_of(reference(), self.training, self.model), "share": share, **named(self.dataset, [self.training.seed])}

    def done(self, sets: Iterable[str]) -> dict[float, records.Reference]:
        """{share: record} of the plan's references that were judged on all these sets before."""
        needed, found = {name for name in sets if name.startswith(SETS)}, {}
        for record in self._of_these_data():
            same = (record.seed, record.settings_hash) == (self.training.seed, records.settings_hash(self.settings(record.share)))
            whole = needed <= record.num_images.keys() and (self.folder / record.answers).is_file()
            if same and whole and record.share in self.plan.references:
                found[record.share] = record
        return found

    def missing(self, sets: Iterable[str]) -> list[float]:
        """The shares whose reference still has to be trained."""
        done = self.done(sets)
        return [share for share in self.plan.references if share not in done]

    def standing(self) -> list[records.Reference]:
        """The references that count, in the order of their shares: for each share and seed the one that was written last."""
        last = {(record.share, record.seed): record for record in self._of_these_data()}
        return [last[key] for key in sorted(last)]

    def run(self, judge: Judge, start: State, budget: Budget, watcher: Watcher) -> None:
        """Train, judge and record every reference of the plan that is missing.

        Args:
            judge: evaluates them as it does all other weights.
            start: theta_0; the text tower and the length of the head's rows are taken from it.
            budget: how many bytes of images may be kept in memory.
            watcher: hears of the progress.
        """
        done = self.done(judge.splits)
        for number, share in enumerate(self.plan.references, start=1):
            if share not in done:
                data = fraction(self.dataset, share, seed=self.training.seed)
                size = len(data.split("train"))
                trained = self.training.num_steps(size) * min(self.training.batch_size, size)
                watcher.reference(share, number, len(self.plan.references), trained=trained, judged=judge.num_images)
                self._one(share, data, judge, start, budget, watcher)
            elif done[share] not in self.standing():
                records.append(self.folder, done[share])

    def _one(self, share: float, data: Dataset, judge: Judge, start: State, budget: Budget, watcher: Watcher) -> None:
        settings = self.settings(share)
        origin = {"seed": self.training.seed, "data": self.provenance["data"], "start": self.provenance["weights"]}
        name = f"{REFERENCE}-{share:g}-seed{self.training.seed}-{records.settings_hash({**settings, **origin})}"
        resume = self.folder / "weights" / f"{name}.resume"
        self.model.load_weights(part(start, "model"))
        fitted = fit(reference(), self.model, data, self.training, start=start, budget=budget, on_step=watcher.step, resume=resume)
        judged = judge.judge(reference(), fitted.state).with_val(judge.dataset.split("val"), self.dataset.split("val"))
        outcome = Outcome({key: answers for key, answers in judged.answers.items() if key.startswith(SETS)})
        record = records.Reference(
            share=share,
            seed=self.training.seed,
            num_train=len(data.split("train")),
            dataset=self.dataset.name,
            accuracy=outcome.accuracy,
            num_images={key: len(given.label) for key, given in outcome.answers.items()},
            answers=records.save_answers(self.folder, name, outcome.answers),
            settings=settings,
            settings_hash=records.settings_hash(settings),
            provenance=self.provenance,
            train_seconds=fitted.seconds,
        )
        records.append(self.folder, record)
        if is_first():
            resume.unlink(missing_ok=True)

    def _of_these_data(self) -> Iterator[records.Reference]:
        for record in records.read(self.folder):
            if isinstance(record, records.Reference) and all(
                record.provenance.get(key) == self.provenance[key] for key in ("data", "weights")
            ):
                yield record


def robustness(
    found: Sequence[records.Evaluation], chosen: Sequence[records.Choice], references: Sequence[records.Reference]
) -> list[records.Robustness]:
    """Effective robustness of every row of the table, on the average of the shifts and on each; on corruptions where there are no shifts.

    rho is taken for each seed at its own ID accuracy, then averaged: beta is a curve, and the mean of a curve is not the curve at a mean.

    Args:
        found: evaluations of runs, at several alphas each.
        chosen: the alphas of the rows "WiSE-FT (ID val.)".
        references: the models that the baseline is fit to.

    Returns:
        One for each row and column; none where there are not two references of different ID accuracy.
    """
    made = []
    for column in _columns(references):
        try:
            line = Baseline.fit(*([reference.accuracy[key] for reference in references] for key in ("test", column)))
        except SettingError:  # no two different ID accuracies: there is no line, and the report says so
            continue
        for name, rows in rows_of(found, chosen).items():
            own = [row for row in rows if {"test", column} <= row.accuracy.keys()]
            made += [_of_row(name, column, own, line, len(references))] if own else []
    return made


def _columns(references: Sequence[records.Reference]) -> list[str]:
    """The columns that all references have: of the shifts, or else of the corruptions; the average first."""
    if not references or not all("test" in reference.accuracy for reference in references):
        return []  # with a domain held out there is no ID test set to measure against
    common = [name for name in references[0].accuracy if all(name in other.accuracy for other in references)]
    for kind in ("shifts", "corruptions"):
        if f"avg_{kind}" in common:
            return [f"avg_{kind}", *(name for name in sorted(common) if name.startswith(f"{kind}/"))]
    return []


def _of_row(name: str, column: str, rows: Sequence[records.Evaluation], line: Baseline, num_references: int) -> records.Robustness:
    pairs = [(row.accuracy["test"], row.accuracy[column]) for row in rows]
    rhos = [effective_robustness(given, shifted, line) for given, shifted in pairs]
    return records.Robustness(
        row=name,
        on=column,
        rho=statistics.fmean(rhos),
        spread=statistics.stdev(rhos) if len(rhos) > 1 else None,
        id_accuracy=statistics.fmean(given for given, _ in pairs),
        ood_accuracy=statistics.fmean(shifted for _, shifted in pairs),
        expected=statistics.fmean(line.at(given) for given, _ in pairs),
        num_seeds=len(rows),
        num_references=num_references,
        extrapolates=any(line.extrapolates(given) for given, _ in pairs),
        baseline=asdict(line),
    )
