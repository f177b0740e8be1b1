"""Sensible defaults for somebody's data on somebody's machine: which method, how long, at what cost, and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from surefoot.data.layout import Dataset
from surefoot.data.subsets import take
from surefoot.errors import ModelError, SettingError
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.objective import Method
from surefoot.train import Step, Training, fit, part

LADDER: tuple[tuple[str, Mapping[str, Any], str], ...] = (
    ("flyp", {}, "FLYP fine-tunes both towers as they were pre-trained, which keeps more zero-shot ability than training a head does"),
    ("tp_ft", {"layers": "visual[-3:]"}, "the last three blocks of the image tower and the head are trained, which costs less"),
    ("lp", {}, "only a linear head is trained, on features that are computed once"),
)
"""What is tried in turn until it fits into time and memory: method, its settings, and what is said of it."""
MIN_STEPS, MAX_EPOCHS = 300, 50
IMBALANCE = 5.0
PROBE_BATCH = 8
COPIES = 5  # gradients, two moments, the pre-trained copy and the kept epoch, beside the weights themselves


@dataclass(frozen=True)
class Cost:
    """What a run takes: seconds of training (validation left out) and bytes of memory, both estimated from a few real steps."""

    seconds: float
    num_bytes: float


@dataclass(frozen=True)
class Advice:
    """A method with its settings, its training, what it costs, and why it was chosen; `reasons` are sentences."""

    method: str
    settings: Mapping[str, Any]
    training: Training
    cost: Cost
    reasons: Sequence[str]


def advise(
    model: ImageTextModel, dataset: Dataset, training: Training, start: Mapping[str, Tensor], *, method: str | None = None, minutes: float
) -> Advice:
    """The first of `LADDER` whose run fits into the time and the memory; or what the given method costs.

    Args:
        model: the pre-trained model; it gets its weights back.
        dataset: the user's data.
        training: the recipe's settings, which are fitted to the number of images.
        start: theta_0.
        method: a method that the user has chosen already.
        minutes: how long training may take.
    """
    fitted, reasons = fit_length(dataset, training)
    room = available_bytes(next(model.parameters()).device)
    tried: list[str] = []
    choice: Advice | None = None
    for name, settings, words in [(method, {}, "you chose it")] if method else LADDER:
        try:
            cost = measure(get(name, settings), model, dataset, fitted, start)
        except (SettingError, ModelError) as error:
            if method:
                raise
            tried.append(f"{name} was passed over: {error}")
            continue
        choice = Advice(name, settings, fitted, cost, [f"{name}: {words}.", *tried, *reasons])
        if cost.seconds <= 60 * minutes and cost.num_bytes <= room:
            break
        if not method:
            tried.append(f"{name} was passed over: it would take about {duration(cost.seconds)} and {cost.num_bytes / 1e9:.1f} GB here.")
    assert choice is not None, "a linear head fits any model"
    return choice


def fit_length(dataset: Dataset, training: Training) -> tuple[Training, list[str]]:
    """Batch, length and measure that fit the number of images, and why they differ from the recipe's."""
    count = len(dataset.split("train"))
    reasons: list[str] = []
    if training.batch_size > (batch := max(2, count // 4)):
        training = replace(training, batch_size=batch)
        reasons.append(f"Batches of {batch}, since there are {count} training images.")
    if training.steps is None and training.num_steps(count) < MIN_STEPS:
        epochs = min(MAX_EPOCHS, -(-MIN_STEPS // training.per_epoch(count)))
        if epochs > training.epochs:
            training = replace(training, epochs=epochs)
            reasons.append(f"{epochs} epochs, so that few images still give {training.num_steps(count)} steps.")
    sizes = Counter(dataset.split("train").labels).values()
    if max(sizes) > IMBALANCE * min(sizes):
        training = replace(training, sampling="balanced", select_by="mean_per_class")
        reasons.append(
            f"The largest class has {max(sizes)} images and the smallest {min(sizes)}: classes are drawn alike, and validation counts "
            "classes alike."
        )
    return training, reasons


def measure(method: Method, model: ImageTextModel, dataset: Dataset, training: Training, start: Mapping[str, Tensor]) -> Cost:
    """Estimate a run from a few real steps on a small batch; the model gets its weights back.

    Time grows in proportion to the batch. Memory: weights, gradients, moments and copies of what is trained, and what the backward pass
    of a step remembers, in proportion to the batch.
    """
    split = dataset.split("train")
    small = min(PROBE_BATCH, training.batch_size, len(split))
    rows = [row * len(split) // small for row in range(small)]
    few = replace(dataset, splits={"train": take(split, rows), "val": take(dataset.split("val"), [0])})
    probe = replace(training, steps=3, epochs=1, batch_size=small, sampling="shuffled")
    times, saved = [0.0], _Saved(model)
    stages = tuple(replace(stage, candidates={}) for stage in method.stages)
    try:
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            done = fit(replace(method, stages=stages), model, few, probe, start=start, on_step=_clock(times))
    finally:
        model.load_weights(part(start, "model"))
        model.requires_grad_(False)
    steps = [later - earlier for earlier, later in pairwise(times[1:])]
    trained = sum(t.numel() for name, t in done.state.items() if t.is_floating_point() and not torch.equal(t, start[name].cpu()))
    total = sum(t.numel() * t.element_size() for t in start.values())
    if not method.trains & {"visual", "text"}:
        return Cost(len(split) * times[1] / small, 2.0 * total)
    batch = min(training.batch_size, len(split))
    seconds = sorted(steps)[len(steps) // 2] * batch / small * training.num_steps(len(split))
    return Cost(seconds, total + 4.0 * COPIES * trained + saved.num_bytes / probe.num_steps(small) * batch / small)


def _clock(times: list[float]) -> Callable[[Step], None]:
    return lambda step: None if step.cached and len(times) > 1 else times.append(step.seconds)


class _Saved:
    """Counts the bytes that the backward pass remembers, parameters left out."""

    def __init__(self, model: ImageTextModel) -> None:
        self.num_bytes = 0
        self._known = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(self, tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in self._known:
            self.num_bytes += tensor.numel() * tensor.element_size()
        return tensor


def available_bytes(device: torch.device) -> float:
    """Memory that is free on the device; without a bound where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return float("inf")


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    Examples:
        >>> duration(42), duration(600), duration(9000)
        ('42 seconds', '10 minutes', '2.5 hours')
    """
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
