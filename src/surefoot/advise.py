"""Sensible defaults for somebody's data on somebody's machine: which method, how long, at what cost, and why."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surefoot.compare.plan import TRAINING_NAMES, Plan
from surefoot.data.corruptions import CORRUPTIONS
from surefoot.data.images import Budget, Images
from surefoot.data.layout import Dataset
from surefoot.data.subsets import take
from surefoot.distributed import agreed
from surefoot.errors import ModelError, SettingError
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
MEMINFO = Path("/proc/meminfo")
PROBE_BATCHES, PROBE_STEPS = (4, 16), 3
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
    model: ImageTextModel,
    dataset: Dataset,
    plan: Plan,
    start: Mapping[str, Tensor],
    *,
    method: str | None = None,
    minutes: float,
    given: Collection[str] = (),
) -> Advice:
    """The first of `LADDER` whose run fits into the time and the memory; or what the given method costs.

    Args:
        model: the pre-trained model; it gets its weights back.
        dataset: the user's data.
        plan: the recipe's settings, which are fitted to the number of images, and the user's overrides.
        start: theta_0.
        method: a method that the user has chosen already.
        minutes: how long training may take.
        given: training settings that the user has chosen already; they stay.
    """
    room = agreed(available_bytes(next(model.parameters()).device))
    tried: list[str] = []
    choice: Advice | None = None
    for name, settings, words in [(method, {}, "you chose it")] if method else LADDER:
        own = plan.overrides_of(name)
        fitted, reasons = fit_length(dataset, plan.training_of(name, plan.training.seed), {*given, *(own.keys() & TRAINING_NAMES)})
        try:
            cost = agreed(measure(with_method(plan, name, settings).method_of(name), model, dataset, fitted, start))
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


def with_method(plan: Plan, name: str, settings: Mapping[str, Any]) -> Plan:
    """The plan with one method and advised settings of it; what the user set for it stays."""
    return replace(plan, methods=(name,), overrides={**plan.overrides, name: {**settings, **plan.overrides.get(name, {})}})


def fit_length(dataset: Dataset, training: Training, given: Collection[str] = ()) -> tuple[Training, list[str]]:
    """Batch, length and measure that fit the number of images, and why they differ from the recipe's; what is `given` stays."""
    count = len(dataset.split("train"))
    reasons: list[str] = []
    if "batch_size" not in given and training.batch_size > (batch := max(2, count // 4)):
        training = replace(training, batch_size=batch)
        reasons.append(f"Batches of {batch}, since there are {count} training images.")
    if "epochs" not in given and training.steps is None and training.num_steps(count) < MIN_STEPS:
        epochs = min(MAX_EPOCHS, -(-MIN_STEPS // training.per_epoch(count)))
        if epochs > training.epochs:
            training = replace(training, epochs=epochs)
            reasons.append(f"{epochs} epochs, so that few images still give {training.num_steps(count)} steps.")
    sizes = Counter(dataset.split("train").labels).values()
    if max(sizes) > IMBALANCE * min(sizes):
        done: list[str] = []
        if "sampling" not in given:
            training, done = replace(training, sampling="balanced"), [*done, "classes are drawn alike"]
        if "select_by" not in given:
            training, done = replace(training, select_by="mean_per_class"), [*done, "validation counts classes alike"]
        if done:
            reasons.append(f"The largest class has {max(sizes)} images and the smallest {min(sizes)}: {', and '.join(done)}.")
    return training, reasons


def measure(method: Method, model: ImageTextModel, dataset: Dataset, training: Training, start: Mapping[str, Tensor]) -> Cost:
    """Estimate a run from a few real steps on two small batches; the model gets its weights back.

    The time of a step and what its backward pass remembers grow with the batch along a line, which two sizes give: part of a step (the
    optimizer, the texts of all classes) costs the same whatever the batch. Memory is that, and weights, gradients, moments and copies of
    what is trained.
    """
    split, total = dataset.split("train"), float(sum(t.numel() * t.element_size() for t in start.values()))
    if not method.stages:
        return Cost(0.0, total)
    sizes = sorted({min(size, training.batch_size, len(split)) for size in PROBE_BATCHES})
    probes = [_probe(method, model, dataset, training, start, size) for size in (sizes[0], *sizes)][1:]  # the first one warms up
    seconds, batch = 0.0, min(training.batch_size, len(split))
    for stage in method.stages:
        steps = replace(training, **stage.training).num_steps(len(split))
        if stage.groups & {"visual", "text"}:
            seconds += steps * _at(batch, [(probe.size, probe.step) for probe in probes])
        else:
            seconds += _at(len(split), [(probe.num_rows, probe.features) for probe in probes])
            seconds += steps * max(1, len(stage.candidates)) * probes[-1].head_step
    if not method.trains & {"visual", "text"}:
        return Cost(seconds, 2 * total)
    remembered = _at(batch, [(probe.size, probe.num_bytes) for probe in probes])
    return Cost(seconds, total + 4.0 * COPIES * probes[-1].num_trained + remembered)


def judging_seconds(model: ImageTextModel, dataset: Dataset, num_members: int) -> float:
    """How long one pass over the evaluation images takes for so many weights, estimated from a few validation images.

    Every image is read once, and encoded once for each member and for the pre-trained model; without shifts the test images are
    encoded in each corruption too.
    """
    images = Images(dataset.split("val").paths[: PROBE_BATCHES[-1]], model.preprocess, budget=Budget(0))
    began = time.monotonic()
    batch = images.batch(range(len(images))).to(next(model.parameters()).device)
    read = (time.monotonic() - began) / len(images)
    times = []
    with torch.inference_mode():
        for _ in range(2):  # the first one warms up
            began = time.monotonic()
            model.encode_image(batch).sum().item()
            times.append((time.monotonic() - began) / len(images))
    plain = sum(len(split) for name, split in dataset.splits.items() if name != "train")
    corrupted = 0 if dataset.shifts else len(CORRUPTIONS) * len(dataset.split("test"))
    return plain * read + (plain + corrupted) * (num_members + 1) * min(times)


@dataclass(frozen=True)
class _Probe:
    """What a short run with batches of `size` on `num_rows` images took: seconds for features and a step, bytes that a step remembers."""

    size: int
    num_rows: int
    features: float
    head_step: float
    step: float
    num_bytes: float
    num_trained: int


def _probe(method: Method, model: ImageTextModel, dataset: Dataset, training: Training, start: Mapping[str, Tensor], size: int) -> _Probe:
    split = dataset.split("train")
    count = min(len(split), size * (PROBE_STEPS + 1))  # an epoch longer than the probe, so that no validation falls between two steps
    rows = [row * len(split) // count for row in range(count)]
    few = replace(dataset, splits={"train": take(split, rows), "val": take(dataset.split("val"), [0])})
    short = replace(training, steps=PROBE_STEPS, epochs=1, batch_size=size, sampling="shuffled")
    stages = tuple(replace(stage, candidates={}) for stage in method.stages)
    saved, required = _Saved(model), [(p, p.requires_grad) for p in model.parameters()]
    told: list[Step] = []
    try:
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            done = fit(replace(method, stages=stages), model, few, short, start=start, on_step=told.append)
    finally:
        model.load_weights(part(start, "model"))
        for parameter, requires in required:
            parameter.requires_grad_(requires)
    trained = sum(t.numel() for name, t in done.state.items() if t.is_floating_point() and not torch.equal(t, start[name].cpu()))
    num_steps = max(1, sum(not step.cached for step in told))
    features = told[0].seconds if told[0].cached else 0.0
    return _Probe(size, count, features, _quickest(told, cached=True), _quickest(told, cached=False), saved.num_bytes / num_steps, trained)


def _quickest(told: Sequence[Step], *, cached: bool) -> float:
    """Seconds from one step to the next of the same kind; the least, which the machine's other work disturbs least."""
    return min((b.seconds - a.seconds for a, b in pairwise(told) if a.cached == b.cached == cached), default=0.0)


def _at(size: float, measured: Sequence[tuple[float, float]]) -> float:
    """What (size, cost) of one or two measurements say of a larger size; never less than was measured.

    Examples:
        >>> _at(128, [(4, 3.0), (16, 6.0)]), _at(128, [(4, 3.0)])
        (34.0, 96.0)
    """
    (low, cheap), (high, dear) = measured[0], measured[-1]
    slope = max(0.0, (dear - cheap) / (high - low)) if high > low else dear / high
    return dear + slope * (size - high)


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
    if device.type == "cpu" and MEMINFO.is_file():  # free pages alone leave out what caches of files would give back
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines() if ":" in line)
        if "MemAvailable" in lines:
            return 1024.0 * int(lines["MemAvailable"].split()[0])
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
