"""What a comparison runs, and what a front end may hear of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from surefoot import records
from surefoot.methods import base_of, get, variant_settings, without
from surefoot.methods.reference import FROM_SCRATCH, REFERENCE
from surefoot.objective import Method
from surefoot.train import Step, Training

TRAINING_NAMES = frozenset(f.name for f in fields(Training)) - {"seed"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`methods` x `seeds`, each evaluated at `alphas` (0 and 1 are added).

    Attributes:
        methods: names of the table of methods, or variants of them such as "car_ft+contexts=own" or "flyp+batch_size=32".
        seeds: one run each.
        alphas: WiSE-FT's coefficients.
        training: the settings of every run.
        overrides: {method: what differs for it}: training settings, and settings of the method's own factory. A variant has those of its
            method too.
        shots: images a class that are trained on, drawn anew for each seed (validation likewise, at most 4 a class); None for all.
        corruptions: whether corrupted test images are judged; None for data without shifts only.
        references: shares of the training images, on each of which one reference model is trained from random weights, to the settings of
            `training` but for its rate, and what `overrides` has under "reference"; none for no effective robustness.
    """

    methods: tuple[str, ...] = ("tp_ft", "flyp")
    seeds: tuple[int, ...] = (0, 1, 2)
    alphas: tuple[float, ...] = tuple(k / 10 for k in range(11))
    training: Training = field(default_factory=Training)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shots: int | None = None
    corruptions: bool | None = None
    references: tuple[float, ...] = ()

    def training_of(self, method: str, seed: int) -> Training:
        """The training settings of one run."""
        given = {**(FROM_SCRATCH if method == REFERENCE else {}), **self.overrides_of(method)}
        own = {key: value for key, value in given.items() if key in TRAINING_NAMES}
        return replace(self.training, **{**own, "seed": seed})

    def method_of(self, name: str) -> Method:
        """A method with the settings that the plan gives it."""
        own = {key: value for key, value in self.overrides_of(name).items() if key not in TRAINING_NAMES}
        return replace(get(without(name, TRAINING_NAMES), own), name=name)

    def overrides_of(self, name: str) -> dict[str, Any]:
        """What differs for a method or a variant; the training settings in its name count before all others."""
        return {**self.overrides.get(base_of(name), {}), **self.overrides.get(name, {}), **named_training(name)}

    @property
    def all_alphas(self) -> list[float]:
        """The alphas in ascending order, both ends among them."""
        return sorted({0.0, 1.0, *self.alphas})

    @property
    def tuned(self) -> list[str]:
        """The methods that train something."""
        return [name for name in self.methods if base_of(name) != "zero_shot"]


def named_training(name: str) -> dict[str, Any]:
    """The training settings that a variant's name holds.

    Examples:
        >>> named_training("flyp+batch_size=32+clip_norm=none+frozen_text=true")
        {'batch_size': 32, 'clip_norm': None}
    """
    return {key: None if value == "none" else value for key, value in variant_settings(name).items() if key in TRAINING_NAMES}


class Watcher:
    """What a front end may want to know while a comparison runs; this one ignores it."""

    def run(self, method: str, seed: int, number: int, total: int, *, training: bool, images: int) -> None:
        """Run `number` of `total` begins: whether it must be trained, and how many images must still be judged for it."""

    def reference(self, share: float, number: int, total: int, *, trained: int, judged: int) -> None:
        """Reference `number` of `total` begins, on a share of the training images: how many images its steps and its evaluation take."""

    def curve(self, method: str, seed: int, along: str, *, training: bool, images: int) -> None:
        """A curve beside a run's frontier begins: whether the run must be trained again for it, and how many images must be judged."""

    def step(self, step: Step) -> None:
        """A training step is done."""

    def trained(self, record: records.Trained) -> None:
        """A run's training is finished, now or before."""

    def judged(self, num_images: int) -> None:
        """So many images were encoded for an evaluation."""

    def evaluated(self, record: records.Evaluation) -> None:
        """A record was written, or found from before."""


def reference_problems(shares: Sequence[float]) -> list[str]:
    """What is wrong with the shares of the reference models, each as a sentence; no reference at all is fine.

    Examples:
        >>> reference_problems((0.25, 1.0)), len(reference_problems((1.5,)))
        ([], 2)
    """
    found = [
        f"A reference is trained on {share} of the training images; it must be above 0 and at most 1."
        for share in shares
        if not 0 < share <= 1
    ]
    if len(set(shares)) < len(shares):
        found.append(f"references holds {list(shares)}; each share may stand there once.")
    elif len(shares) == 1:
        found.append(f"references holds {list(shares)}; a baseline needs two or more, such as 0.1, 0.25, 0.5, 1.")
    return found
