"""Colours, marker shapes and axis ticks of the pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Okabe and Ito's colour-blind safe palette, darkened or lightened until it stands out from the page at 3:1 or more.
METHOD_COLOURS = {
    "light": ("#0072b2", "#c44e00", "#008a66", "#b0548f", "#9a6a00", "#6b5bd0", "#5b5b5b", "#7d2e3a"),
    "dark": ("#5cb3ee", "#ff8b4a", "#2fc79b", "#e59cc8", "#f0b93a", "#a99bff", "#b8b8b8", "#f28b9b"),
}
INK = {
    "light": {"paper": "#ffffff", "ink": "#1c1f24", "muted": "#5a616b", "line": "#d8dce2"},
    "dark": {"paper": "#14171c", "ink": "#e8eaed", "muted": "#a2a9b4", "line": "#343a44"},
}
# Corners and rotation in degrees; no corners is a circle. Eight colours and six shapes: 24 methods until a pair comes again.
SHAPES = ((0, 0.0), (4, 45.0), (3, -90.0), (4, 0.0), (3, 90.0), (5, -90.0))


def palette(scheme: str) -> dict[str, str]:
    """All colours of a scheme, "light" or "dark", by name: m0, m1, ... for methods, then paper, ink, muted and line."""
    return {f"m{index}": colour for index, colour in enumerate(METHOD_COLOURS[scheme])} | INK[scheme]


def variables() -> Mapping[str, str]:
    """The same names as references to the page's CSS variables."""
    return {name: f"var(--{name})" for name in palette("light")}


def marker(index: int, x: float, y: float, radius: float) -> str:
    """Path data of the marker of the method at `index`; shapes with corners are enlarged to the area of the circle."""
    corners, rotation = SHAPES[index % len(SHAPES)]
    if not corners:
        arc = f"a{radius:g} {radius:g} 0 1 0"
        return f"M{x - radius:.1f} {y:.1f}{arc} {2 * radius:g} 0{arc} {-2 * radius:g} 0Z"
    reach = radius * math.sqrt(2 * math.pi / (corners * math.sin(2 * math.pi / corners)))
    return _polygon([(reach, rotation + 360 * corner / corners) for corner in range(corners)], x, y)


def star(x: float, y: float, radius: float) -> str:
    """Path data of a five-pointed star, the zero-shot model."""
    return _polygon([(radius * (1 if corner % 2 == 0 else 0.45), 36 * corner - 90) for corner in range(10)], x, y)


def css_class(index: int) -> str:
    """The class that gives a picture's elements the colour of the method at `index`."""
    return f"m{index % len(METHOD_COLOURS['light'])}"


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels: as near to the wanted ones as a distance of `gap` allows, in the same order, inside low..high.

    The places with the least squared displacement: neighbours that would collide move as one group to the mean of what they want
    (pool adjacent violators). Where there is no room for all of them the gap shrinks.

    Examples:
        >>> spread_out([50.0, 10.0, 52.0], gap=10, low=0, high=100)
        [46.0, 10.0, 56.0]
        >>> spread_out([98.0, 99.0], gap=10.0, low=0.0, high=100.0)
        [90.0, 100.0]
    """
    count = len(wanted)
    gap = min(gap, (high - low) / max(count - 1, 1))
    order = sorted(range(count), key=lambda number: wanted[number])
    groups: list[list[float]] = []  # of places without the gaps before them
    for rank, number in enumerate(order):
        groups.append([wanted[number] - rank * gap])
        while len(groups) > 1 and statistics.fmean(groups[-2]) > statistics.fmean(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    flat = [statistics.fmean(group) for group in groups for _ in group]
    most = high - (count - 1) * gap
    found = [0.0] * count
    for rank, number in enumerate(order):
        found[number] = min(max(flat[rank], low), most) + rank * gap
    return found


def _polygon(corners: Sequence[tuple[float, float]], x: float, y: float) -> str:
    points = [(x + reach * math.cos(math.radians(angle)), y + reach * math.sin(math.radians(angle))) for reach, angle in corners]
    return "M" + "L".join(f"{across:.1f} {down:.1f}" for across, down in points) + "Z"


@dataclass(frozen=True)
class Axis:
    """A linear map from percent to pixels, with room around the values."""

    low: float
    high: float
    first: float
    last: float

    @classmethod
    def around(cls, values: Sequence[float], first: float, last: float) -> Axis:
        """An axis that holds all values, at least one point of percent in length, from pixel `first` to pixel `last`."""
        room = max(0.08 * (max(values) - min(values)), 0.5)
        return cls(min(values) - room, max(values) + room, first, last)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)

    def ticks(self, most: int = 6) -> list[tuple[str, float]]:
        """Round values with their pixels, at most `most`, none outside 0..100.

        Examples:
            >>> [text for text, _ in Axis(70.2, 79.1, 0, 400).ticks()]
            ['72', '74', '76', '78']
            >>> [text for text, _ in Axis(71.6, 72.8, 0, 400).ticks()]
            ['71.75', '72.00', '72.25', '72.50', '72.75']
        """
        step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 20, 50) if (self.high - self.low) / step < most)
        digits = 2 if step == 0.25 else 1 if step < 1 else 0
        counts = range(math.ceil(max(self.low, 0) / step), math.floor(min(self.high, 100) / step) + 1)
        return [(f"{count * step:.{digits}f}", self.at(count * step)) for count in counts]
