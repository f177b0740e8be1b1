"""What became of right answers between two models on the same images."""

from __future__ import annotations

from dataclasses import dataclass

from surefoot.errors import SettingError
from surefoot.metrics.answered import Correct, checked


@dataclass(frozen=True)
class Change:
    """Shares of the images, 1 together: right before and after, before only, after only, and neither."""

    kept: float
    lost: float
    gained: float
    missed: float


def change(before: Correct, after: Correct) -> Change:
    """What one model answered rightly and another, on the same images in the same order.

    Args:
        before: [N], bool: of the zero-shot model.
        after: [N], bool: of the fine-tuned one.

    Raises:
        SettingError: arrays that are not of the same images, or of none.

    Relations: kept + lost is the accuracy before, kept + gained that after.

    Examples:
        >>> import numpy as np
        >>> change(np.array([True, True, False, False]), np.array([True, False, True, False]))
        Change(kept=0.25, lost=0.25, gained=0.25, missed=0.25)
    """
    checked(before, "[N]")
    checked(after, "[N]")
    if before.shape != after.shape:
        raise SettingError(f"change was given {list(before.shape)} and {list(after.shape)} answers. They must be to the same images.")
    parts = (before & after, before & ~after, ~before & after, ~before & ~after)
    return Change(*(float(part.mean()) for part in parts))
