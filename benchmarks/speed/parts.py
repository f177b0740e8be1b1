"""Where the time of a step goes, inside the towers too: attention, MLP, layer norm, the rest of them, loss, update; forward and backward.

Hooks on the towers' modules open and close the parts of the library's own clock. A block is "attention" but for its MLP and its layer
norms; its sums with what went in belong to it. The batch is there already: what a run waits for its images, `surefoot bench` says.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from library import Ours
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from surefoot.clock import StepClock
from surefoot.layers import block_modules
from surefoot.objective import Batch

PARTS = ("attention", "MLP", "layer norm", "rest of the towers", "reference", "loss", "optimizer")
_REST = ("image tower", "text tower", "backward")
GOAL = 0.5
"""The share of a matrix product's rate that the profile says the price of."""


class Operations(StepClock):
    """Counts floating-point operations in the parts of a step, in the place of seconds."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__(torch.device("cpu"))
        self._counter = counter

    def _book(self) -> None:
        now = float(self._counter.get_total_flops())
        if self._open:
            self._now[self._open[-1]] = self._now.get(self._open[-1], 0.0) + now - self._since
        self._since = now


def kinds(clip: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The modules that a part is for."""
    for block in block_modules(clip, clip):
        yield block, "attention"
        if isinstance(mlp := getattr(block, "mlp", None), nn.Module):
            yield mlp, "MLP"
    for module in clip.modules():
        if isinstance(module, nn.LayerNorm):
            yield module, "layer norm"


@contextmanager
def watched(clip: nn.Module, clock: StepClock) -> Iterator[None]:
    """While this is open, what the modules compute counts for their parts, in both directions."""
    opened: list[tuple[str, AbstractContextManager[None]]] = []
    handles: list[Any] = []

    def begin(part: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            opened.append((part, clock(part)))
            opened[-1][1].__enter__()

        hook.only_notes = True  # type: ignore[attr-defined]
        return hook

    def end(part: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            name, context = opened.pop()
            assert name == part, f"{part} ended inside {name}"
            context.__exit__(None, None, None)

        hook.only_notes = True  # type: ignore[attr-defined]
        return hook

    for module, part in kinds(clip):
        handles += [module.register_forward_pre_hook(begin(part)), module.register_forward_hook(end(part))]
        handles += [module.register_full_backward_pre_hook(begin(part)), module.register_full_backward_hook(end(part))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def parts_of(ours: Ours, batch: Batch, repeats: int) -> dict[str, dict[str, float]]:
    """{part: {"seconds": the median of some steps, "flops": its operations}}; parts that a method does not have are left out."""
    counter, clock = FlopCounterMode(display=False), StepClock(torch.device("cpu"))
    operations, before = Operations(counter), (ours.clock, ours.kernel)
    ours.clock, ours.kernel = operations, "math"  # of a fused kernel nothing is counted
    with counter, watched(ours.model.clip, operations):
        ours.take(batch)
    ours.clock, ours.kernel = clock, before[1]
    with watched(ours.model.clip, clock):
        for _ in range(repeats + 1):
            ours.take(batch)
    ours.clock = before[0]
    steps = [merged(step) for step in clock.steps[1:]]  # the first warms up
    counted = merged(operations.steps[0])
    found = {name: statistics.median(step.get(name, 0.0) for step in steps) for name in PARTS if name in counted}
    return {name: {"seconds": seconds, "flops": counted[name]} for name, seconds in found.items()}


def merged(step: Mapping[str, float]) -> dict[str, float]:
    """A step of the clock with what is left of the towers and of the backward pass as one part."""
    rest = sum(step.get(name, 0.0) for name in _REST)
    return {name: value for name, value in step.items() if name not in _REST} | {"rest of the towers": rest}


def rows(parts: Mapping[str, Mapping[str, float]], rate: float) -> list[tuple[str, float, float, float]]:
    """(part, its share of the step, its share of the rate of a matrix product, seconds beyond its operations at that rate)."""
    total = sum(one["seconds"] for one in parts.values())
    return [
        (
            name,
            one["seconds"] / total,
            one["flops"] / rate / one["seconds"] if one["seconds"] else 0.0,
            one["seconds"] - one["flops"] / rate,
        )
        for name, one in parts.items()
    ]


def price(parts: Mapping[str, Mapping[str, float]], rate: float, goal: float = GOAL) -> str:
    """What it takes to reach a share of the rate of a matrix product, in a sentence or two.

    Examples:
        >>> found = {"MLP": {"seconds": 2.0, "flops": 1.0}, "layer norm": {"seconds": 2.0, "flops": 0.0}}
        >>> price(found, 1.0)
        'A step reaches 25% of the rate. Half would take a step of 2.00 s, 2.00 s less: as much as layer norm loses (2.00 s of 3.00 s).'
    """
    total, flops = (sum(one[what] for one in parts.values()) for what in ("seconds", "flops"))
    share, wanted = flops / rate / total, flops / rate / goal
    word = "Half" if goal == GOAL else f"{goal:.0%}"
    if share >= goal:
        return f"A step reaches {share:.0%} of the rate."
    lost = sorted(((name, over) for name, _, _, over in rows(parts, rate)), key=lambda one: -one[1])
    names, sum_of = [], 0.0
    for name, over in lost:
        names.append(name)
        sum_of += over
        if sum_of >= total - wanted - 1e-9:
            break
    what = names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"
    return (
        f"A step reaches {share:.0%} of the rate. {word} would take a step of {wanted:.2f} s, {total - wanted:.2f} s less: "
        f"as much as {what} {'loses' if len(names) == 1 else 'lose'} ({sum_of:.2f} s of {total - flops / rate:.2f} s)."
    )
