"""What an evaluation says: answers set by set, and the accuracies that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surefoot.data.layout import Split
from surefoot.metrics import accuracy as top1
from surefoot.metrics import expected_calibration_error, harmonic_mean, macro_f1, mean_per_class, worst_group
from surefoot.records import Answers

MEANS = {
    "avg_shifts": "shifts/",
    "avg_restricted": "restricted/",
    "avg_corruptions": "corruptions/",
    "context": "context/",
    "context_own": "context_own/",
}
"""Columns that are plain means over the sets with a prefix; see `members` for restricted ones."""
DESCRIBED = ("val", "test", "shifts/")
"""The sets whose metrics beyond accuracy are recorded."""


@dataclass(frozen=True)
class Outcome:
    """{evaluation set: what was answered}; the sets are named in `records.Evaluation`, "hm/..." and means left out."""

    answers: Mapping[str, Answers]

    @property
    def correct(self) -> dict[str, NDArray[np.bool_]]:
        """{set: which images were right, [N]}."""
        return {name: answers.correct for name, answers in self.answers.items()}

    def with_val(self, judged: Split, own: Split) -> Outcome:
        """With the answers to the validation images of `own` alone, in its order, out of those to all that were `judged`."""
        if own.paths == judged.paths:
            return self
        place = {path: row for row, path in enumerate(judged.paths)}
        return Outcome({**self.answers, "val": self.answers["val"].rows([place[path] for path in own.paths])})

    @property
    def accuracy(self) -> dict[str, float]:
        """{column: value in 0..1}: top-1 of every set, means over sets, harmonic means of seen and unseen classes."""
        each = {name: top1(answers.correct) for name, answers in self.answers.items()}
        for name in MEANS:
            if sets := members(name, self.answers):
                each[name] = float(np.mean([each[key] for key in sets]))
        for name in [key.removeprefix("joint_seen/") for key in self.answers if key.startswith("joint_seen/")]:
            each[f"hm/{name}"] = harmonic_mean(each["test"], each[f"unseen/{name}"])
            each[f"joint_hm/{name}"] = harmonic_mean(each[f"joint_seen/{name}"], each[f"joint_unseen/{name}"])
        return each

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """{set: {"mean_per_class", "macro_f1", "ece"}} of ID and shifts, and "worst_group" where the images have groups."""
        return {
            name: {
                "mean_per_class": mean_per_class(given.correct, given.label),
                "macro_f1": macro_f1(given.prediction, given.label),
                "ece": expected_calibration_error(given.confidence, given.correct),
                **_worst_group(given),
            }
            for name, given in self.answers.items()
            if name.startswith(DESCRIBED)
        }


def _worst_group(given: Answers) -> dict[str, float]:
    """{"worst_group": accuracy} over the images that are in a group, if any is."""
    if given.group is None or not (grouped := given.group >= 0).any():
        return {}
    return {"worst_group": worst_group(given.correct[grouped], given.group[grouped])}


def members(name: str, sets: Mapping[str, object]) -> list[str]:
    """The evaluation sets that a column is made of: a set itself, those of a mean, the two of a harmonic mean.

    Examples:
        >>> members("avg_shifts", {"test": 0, "shifts/a": 0, "shifts/b": 0})
        ['shifts/a', 'shifts/b']
        >>> members("avg_restricted", {"shifts/a": 0, "restricted/a": 0, "shifts/b": 0})
        ['restricted/a', 'shifts/b']
        >>> members("joint_hm/birds", {"joint_seen/birds": 0, "joint_unseen/birds": 0})
        ['joint_seen/birds', 'joint_unseen/birds']
    """
    kind, _, rest = name.partition("/")
    if kind == "hm":
        return ["test", f"unseen/{rest}"]
    if kind == "joint_hm":
        return [f"joint_seen/{rest}", f"joint_unseen/{rest}"]
    if name not in MEANS:
        return [name]
    found = [key for key in sets if key.startswith(MEANS[name])]
    if name == "avg_restricted" and found:  # a shift that holds every class has nothing to restrict, and belongs to the mean as it is
        restricted = {key: f"restricted/{key.removeprefix('shifts/')}" for key in sets if key.startswith("shifts/")}
        return [other if other in sets else key for key, other in restricted.items()]
    return found
