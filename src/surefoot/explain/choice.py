"""Which images are shown, by a rule that looks for no nice ones."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Why = Literal["drawn", "changed", "given"]


def chosen(name: str, size: int, changed: NDArray[np.bool_] | None, count: int, seed: int) -> list[tuple[int, Why]]:
    """Images of one set: the first of a seeded order, then the first ones in that order whose answer changed.

    The order depends on the name of the set, its size and the seed, on nothing that a model said, so that no image is picked for how its
    map looks.

    Args:
        name: of the set.
        size: how many images it has.
        changed: [size], whether the fine-tuned model gives another answer than the zero-shot one; None where that is not known.
        count: how many are drawn, and how many of those that changed are added at most.
        seed: of the order.

    Returns:
        (row, why), each row once.

    Examples:
        >>> chosen("test", 4, np.array([True, True, True, True]), 1, seed=0)
        [(2, 'drawn'), (0, 'changed')]
    """
    order: Sequence[int] = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(size).tolist()
    found: list[tuple[int, Why]] = [(row, "drawn") for row in order[:count]]
    if changed is not None:
        found += [(row, "changed") for row in [row for row in order[count:] if changed[row]][:count]]
    return found


def some(size: int, most: int, seed: int) -> list[int]:
    """The rows of at most `most` of `size` images, in their order: all of them, or as many, drawn by a seed.

    Examples:
        >>> some(3, 5, seed=0), some(5, 3, seed=0), some(5, 3, seed=1)
        ([0, 1, 2], [2, 3, 4], [0, 1, 4])
    """
    if size <= most:
        return list(range(size))
    drawn: Sequence[int] = np.random.default_rng(seed).permutation(size)[:most].tolist()
    return sorted(drawn)
