"""What a step costs on this machine, part by part, and what to do about its largest part."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from surefoot.clock import PARTS, StepClock
from surefoot.data import Dataset
from surefoot.data.subsets import take
from surefoot.errors import SettingError
from surefoot.model import ImageTextModel
from surefoot.objective import Method
from surefoot.precision import Precision, matrix_products
from surefoot.train import Training, fit, part, start_state
from surefoot.train.parameters import TOWERS

INPUT_BOUND, OPTIMIZER_BOUND = 0.2, 0.25
_MATRIX, _REPEATS = 2048, 5


@dataclass(frozen=True)
class Profile:
    """Steps of one method, measured.

    Attributes:
        method: its name.
        batch_size: images a step.
        steps: {part: seconds} of each measured step, parts as in `clock.PARTS`.
        flops: floating-point operations of a step in matrix products, attention and convolutions, forward and backward.
        matmul_rate: operations a second of a plain matrix product in the towers' number format, measured before and after.
        peak_bytes: the most memory that was in use: of the device, or of the process on a CPU.
    """

    method: str
    batch_size: int
    steps: Sequence[Mapping[str, float]]
    flops: float
    matmul_rate: float
    peak_bytes: float

    @property
    def seconds(self) -> float:
        """Of a step, the median."""
        return statistics.median(sum(step.values()) for step in self.steps)

    def part(self, name: str) -> tuple[float, float, float]:
        """Seconds of a part: median, least and most."""
        found = [step.get(name, 0.0) for step in self.steps]
        return statistics.median(found), min(found), max(found)

    @property
    def rate_share(self) -> float:
        """The share of the matrix-product rate that a step reaches."""
        return self.flops / self.seconds / self.matmul_rate

    @property
    def bottleneck(self) -> str:
        """What takes most of the time, and what can be done about it, in two sentences."""
        share = {name: self.part(name)[0] / self.seconds for name in PARTS}
        if share["input"] >= INPUT_BOUND:
            return (
                f"The model waits for images {share['input']:.0%} of the time. Set decode=reduced for large JPEGs, "
                "save them once at about the size that the model sees, or use more processors."
            )
        if share["optimizer"] >= OPTIMIZER_BOUND:
            return (
                f"The update of the weights takes {share['optimizer']:.0%} of the time. A larger batch_size needs fewer updates; "
                "layers=visual[-3:] or lora_rank=8 moves fewer weights."
            )
        name = max(("image tower", "text tower", "reference", "loss"), key=lambda name: share[name])
        what = f"The towers' own work is what takes the time, most of it in the {name} and its backward pass"
        if name in ("reference", "loss"):
            what = f"The {name} takes the most time beside the backward pass"
        return f"{what}. --precision bf16 where the hardware has it, a smaller model, or layers=visual[-3:] shortens it."


def profile(method: Method, model: ImageTextModel, dataset: Dataset, training: Training, *, steps: int = 10, warm_up: int = 3) -> Profile:
    """Take some real steps of a method's last stage, on real images; the model ends with its pre-trained weights.

    Args:
        method: what is trained.
        model: with its pre-trained weights.
        dataset: whose train images.
        training: batch size and all that belongs to a step; its length is not used.
        steps: how many are measured.
        warm_up: how many are taken before.

    Raises:
        SettingError: a method that moves no tower, or fewer than one step.
    """
    if not method.stages or not method.stages[-1].groups & TOWERS:
        how = "it encodes every image once, and its steps take next to nothing" if method.stages else "it trains nothing"
        raise SettingError(f"{method.name} moves no tower: {how}. Give another --method.")
    if steps < 1:
        raise SettingError(f"{steps} steps were asked for; ask for 1 or more.")
    device, last = next(model.parameters()).device, replace(method, stages=method.stages[-1:])
    few = replace(dataset, splits={"train": dataset.split("train"), "val": take(dataset.split("val"), [0])})
    start, clock = start_state(model, dataset), StepClock(device)
    rates = [matmul_rate(device, model.precision)]
    flops = _flops(last, model, few, replace(training, steps=1), start)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    fit(last, model, few, replace(training, steps=warm_up + steps), start=start, clock=clock)
    peak = peak_bytes(device)
    model.load_weights(part(start, "model"))
    rates.append(matmul_rate(device, model.precision))
    batch_size = min(training.batch_size, len(dataset.split("train")))
    return Profile(method.name, batch_size, clock.steps[warm_up:], flops, max(rates), peak)


def _flops(method: Method, model: ImageTextModel, dataset: Dataset, training: Training, start: Mapping[str, torch.Tensor]) -> float:
    """Of one step; what the run does before and after its step is counted too, and taken off."""
    counted: list[float] = []
    counter = FlopCounterMode(display=False)

    class Between(StepClock):
        """Notes the count when the step's batch is there, and when the step ends."""

        def waiting(self, part: str, items: Any) -> Any:  # noqa: ANN401
            for item in items:
                counted.append(counter.get_total_flops())
                yield item

        def end_step(self) -> None:
            counted.append(counter.get_total_flops())

    if next(model.parameters()).device.type == "cpu":
        training = replace(training, attention="math")  # what its fused kernel computes is not counted
    with counter:
        fit(method, model, dataset, training, start=start, clock=Between(next(model.parameters()).device))
    model.load_weights(part(start, "model"))
    return counted[1] - counted[0]


def matmul_rate(device: torch.device, precision: Precision = "fp32") -> float:
    """Floating-point operations a second of a product of two square matrices, the best of a few."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(_MATRIX, _MATRIX, device=device, dtype=dtype)
    seconds = []
    with matrix_products(precision):
        for _ in range(_REPEATS + 1):
            began = time.perf_counter()
            (a @ a)[0, 0].item()
            seconds.append(time.perf_counter() - began)
    return 2.0 * _MATRIX**3 / min(seconds[1:])


def peak_bytes(device: torch.device) -> float:
    """The most memory that was in use so far: of the device, or of this process where it is the CPU; not a number where nobody tells."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return float(torch.mps.driver_allocated_memory())
    if sys.platform == "win32":
        return float("nan")
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
