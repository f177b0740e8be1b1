"""The table of differences: paired, in points of percent, each with its interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from surefoot.records import Difference
from surefoot.report.runs import ZERO_SHOT, Runs, display_name
from surefoot.report.table import headings, in_order


@dataclass(frozen=True)
class Contrast:
    """One cell of the table of differences, in points of percent."""

    mean: str
    interval: str
    css: str
    title: str


Line = tuple[str, str, list[Contrast | None]]  # both names, and a difference or nothing for each column


def section(runs: Runs) -> dict[str, object] | None:
    """What the section shows, or None without differences: those to other models than zero-shot first, as the first table lacks them."""
    if not runs.differences:
        return None
    shown = sorted(in_order(on for _, _, on in runs.differences), key=lambda on: on.startswith("shifts/"))  # single shifts last
    return grouped(runs.differences.values(), headings(shown))


def grouped(differences: Iterable[Difference], shown: Mapping[str, str], spans: Sequence[tuple[str, int]] = ()) -> dict[str, object]:
    """Differences in the columns of `shown`, {column: heading}: between fine-tuned models, then against zero-shot.

    `spans` holds a heading and the number of columns below it, for a row of its own above the headings.
    """
    lines = _lines(differences, list(shown))
    groups = {
        "Between fine-tuned models": [line for line in lines if line[1] != display_name(ZERO_SHOT)],
        "Against zero-shot": [line for line in lines if line[1] == display_name(ZERO_SHOT)],
    }
    return {"headers": list(shown.values()), "spans": spans, "groups": {title: found for title, found in groups.items() if found}}


def against_zero_shot(differences: Mapping[tuple[str, str, str], Difference], name: str, column: str) -> Contrast | None:
    """The difference of a row of the table to zero-shot in one column, if it was taken; differences by what is compared and on what."""
    found = differences.get((name, ZERO_SHOT, column))
    return contrast(found) if found else None


def contrast(difference: Difference) -> Contrast:
    """A difference as the page shows it."""
    seeds = "1 seed" if difference.num_seeds == 1 else f"{difference.num_seeds} seeds"
    side = "undecided" if difference.undecided else "higher" if difference.mean > 0 else "lower"
    interval = f"{signed(difference.low)} to {signed(difference.high)}"
    return Contrast(signed(difference.mean), interval, side, f"{difference.num_images} images, {seeds}")


def signed(value: float) -> str:
    """Points with their sign; a second decimal where one would hide on which side of 0 they are.

    Examples:
        >>> signed(0.0412), signed(-0.0002), signed(0.0)
        ('+4.1', '−0.02', '0.0')
    """
    text = f"{100 * value:+.1f}"
    if float(text) == 0:
        text = f"{100 * value:+.2f}" if value else "0.0"
    return text.replace("-", "−")


def _lines(differences: Iterable[Difference], shown: Sequence[str]) -> list[Line]:
    pairs: dict[tuple[str, str], dict[str, Difference]] = {}
    for difference in differences:
        pairs.setdefault((difference.a, difference.b), {})[difference.on] = difference
    return [
        (display_name(a), display_name(b), [contrast(found[column]) if column in found else None for column in shown])
        for (a, b), found in pairs.items()
    ]
