"""Where the time of a training step goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
PARTS = ("input", "image tower", "text tower", "reference", "loss", "backward", "optimizer")
"""The parts of a step, in their order."""


class Clock:
    """Measures the parts of steps, each without the parts that lie inside it; this one measures nothing, at no cost."""

    def __call__(self, part: str) -> contextlib.AbstractContextManager[None]:
        """While this is open, time counts for `part`."""
        return contextlib.nullcontext()

    def waiting(self, part: str, items: Iterable[_Item]) -> Iterator[_Item]:
        """The items; the time until each is there counts for `part`."""
        yield from items

    def end_step(self) -> None:
        """What follows belongs to the next step."""


class StepClock(Clock):
    """A clock that measures.

    Attributes:
        steps: {part: seconds} of every step that has ended.

    Args:
        device: where the work is done; it is waited for at every change of parts, which makes a step on a GPU somewhat slower.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps: list[dict[str, float]] = []
        self._device, self._now = device, dict[str, float]()
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """While this is open, time counts for `part`, and not for the part around it."""
        self._book()
        self._open.append(part)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def waiting(self, part: str, items: Iterable[_Item]) -> Iterator[_Item]:
        """The items; the time until each is there counts for `part`."""
        iterator = iter(items)
        while True:
            with self(part):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def end_step(self) -> None:
        """Put what was measured since the last step into `steps`."""
        self.steps.append(self._now)
        self._now = {}

    def _book(self) -> None:
        """Count the time since the last change for the innermost part that is open."""
        wait_for(self._device)
        now = time.perf_counter()
        if self._open:
            self._now[self._open[-1]] = self._now.get(self._open[-1], 0.0) + now - self._since
        self._since = now


def wait_for(device: torch.device) -> None:
    """Until a device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
