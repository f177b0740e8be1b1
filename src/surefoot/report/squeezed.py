"""A method far below all others: the axes of a picture that it would squeeze leave it out, and of its line what lies between them stays."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TypeVar

ENOUGH = 3  # methods that a picture shows before one of them may be left out
SHARE = 0.5  # of the whole span; where what is drawn without the rest has less, the rest squeezes it
FAR = 5.0  # points that it must lie below the others

Key = TypeVar("Key")
Place = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


def floor_of(each: Mapping[Key, Sequence[float]], fixed: Sequence[float] = ()) -> float | None:
    """Where an axis upwards begins that the lowest method would stretch to more than twice its length: at the least value of all others.

    Its values above stay on the axis. None where the axis holds all values: the lowest is not far below the others, or few are shown.

    Args:
        each: {method: its values, in percent}.
        fixed: values that are shown in any case, such as the zero-shot model's.

    Examples:
        >>> floor_of({"a": [70.0, 75.0], "b": [72.0], "c": [20.0, 74.0]}, [68.0])
        68.0
        >>> floor_of({"a": [70.0, 75.0], "b": [72.0], "c": [65.0, 74.0]}, [68.0])
        >>> floor_of({"a": [60.1], "b": [60.2], "c": [59.0]}, [60.0])  # far, but by a point alone
        >>> floor_of({"a": [70.0, 75.0], "b": [72.0], "c": [40.0, 99.0]}, [68.0])  # what is drawn of it takes 31 points of 59
    """
    there = {key: values for key, values in each.items() if values}
    if len(there) < ENOUGH:
        return None
    lowest = min(there, key=lambda key: min(there[key]))
    floor = min([*fixed, *(value for key, values in there.items() if key != lowest for value in values)])
    whole = [*fixed, *(value for values in there.values() for value in values)]
    top = max(whole)
    far = floor - min(there[lowest]) >= FAR and top - floor < SHARE * (top - min(whole))
    return floor if far else None


def inside(path: Sequence[Place], box: Box) -> list[list[Place]]:
    """The parts of a path of straight lines that lie in a box, cut off where they leave it; a path of one point stays if it lies there.

    Examples:
        >>> inside([(0.0, 0.0), (4.0, 0.0), (4.0, 8.0), (6.0, 0.0)], (0.0, 0.0, 10.0, 4.0))
        [[(0.0, 0.0), (4.0, 0.0), (4.0, 4.0)], [(5.0, 4.0), (6.0, 0.0)]]
    """
    if len(path) == 1:
        return [list(path)] if _cut(path[0], path[0], box) else []
    parts: list[list[Place]] = []
    for before, after in itertools.pairwise(path):
        if cut := _cut(before, after, box):
            if parts and parts[-1][-1] == cut[0]:
                parts[-1].append(cut[1])
            else:
                parts.append(list(cut))
    return parts


def joined(parts: Sequence[Sequence[Place]]) -> str:
    """Path data of the lines; a part of one point draws none.

    Examples:
        >>> joined([[(0.0, 0.0), (4.0, 0.25)], [(5.0, 5.0)]])
        'M0.0 0.0L4.0 0.2'
    """
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in part) for part in parts if len(part) > 1)


def _cut(start: Place, end: Place, box: Box) -> tuple[Place, Place] | None:
    """The part of a straight line in a box (Liang and Barsky 1984)."""
    (x, y), (across, down) = start, (end[0] - start[0], end[1] - start[1])
    left, top, right, bottom = box
    first, last = 0.0, 1.0
    for speed, room in ((-across, x - left), (across, right - x), (-down, y - top), (down, bottom - y)):
        if speed == 0:
            if room < 0:
                return None
        elif speed < 0:
            first = max(first, room / speed)
        else:
            last = min(last, room / speed)
    if first > last:
        return None
    begin = start if first == 0 else (x + first * across, y + first * down)
    return begin, end if last == 1 else (x + last * across, y + last * down)
