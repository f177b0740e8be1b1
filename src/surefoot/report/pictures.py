"""Pictures that stand on a page beside a legend, and alone: together in one file, with the legend and a background of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from surefoot.report import marks
from surefoot.report.templates import render

LETTER = 6.7  # the width of an average letter of the legend
READOUT = 28.0  # the height at the top of a picture that shows what is pointed at; nothing is pointed at in a picture alone
MARGIN, HEADING, LINE = 12.0, 24.0, 22.0
ACROSS = 2  # pictures in a row of a file


@dataclass(frozen=True)
class Picture:
    """A title, and a template with what it shows: a chart whose topmost `READOUT` units are kept free for what is pointed at."""

    title: str
    template: str
    size: tuple[float, float]
    values: Mapping[str, object]

    def svg(self, place: tuple[float, float] | None = None) -> Markup:
        """The picture for a page, or at a place of another picture: without its readout there."""
        return Markup(render(self.template, size=self.size, place=place, readout=READOUT, **self.values))


@dataclass(frozen=True)
class Key:
    """An entry of a legend: shapes, (class, path data) each, on 28 by 16 units."""

    text: str
    shapes: Sequence[tuple[str, str]]

    @property
    def width(self) -> float:
        """About what it takes in a legend."""
        return 36 + LETTER * len(self.text) + 20


def method_key(index: int, label: str) -> Key:
    """The entry of the method at `index`: its line and its filled mark."""
    css = marks.css_class(index)
    return Key(label, [(f"between {css}", "M1 8H27"), (f"solid {css}", marks.marker(index, 14, 8, 5))])


def zero_key() -> Key:
    """The entry of the zero-shot model."""
    return Key("zero-shot", [("zeroline", "M1 8H27"), ("star", marks.star(14, 8, 7.5))])


def alone(title: str, pictures: Sequence[Picture], legend: Iterable[Key]) -> str:
    """All pictures in one SVG file: title, legend, white background, fixed colours."""
    across = min(ACROSS, len(pictures))
    width = max((picture.size[0] for picture in pictures), default=0) * across + MARGIN * (across + 1)
    keys, below = _flowing(legend, width)
    placed, top = [], below
    for start in range(0, len(pictures), ACROSS):
        row = pictures[start : start + ACROSS]
        for number, picture in enumerate(row):
            left = MARGIN + number * (picture.size[0] + MARGIN)
            placed.append({"title": picture.title, "x": left, "y": top + 16, "svg": picture.svg((left, top + HEADING))})
        top += HEADING + max(picture.size[1] for picture in row) - READOUT + MARGIN
    width = max(width, 2 * MARGIN + 7.6 * len(title), *(x + key.width for key, x, _ in keys))
    return render(
        "pictures.svg.j2",
        size=(round(width), round(top)),
        title=title,
        at=(MARGIN, MARGIN + 14),
        keys=keys,
        pictures=placed,
        style=Markup(render("chart.css.j2", colours=marks.palette("light"))),
        paper=marks.palette("light")["paper"],
    )


def _flowing(legend: Iterable[Key], width: float) -> tuple[list[tuple[Key, float, float]], float]:
    """Each entry with its place, as many in a line as there is room for, and where what follows begins."""
    placed: list[tuple[Key, float, float]] = []
    x, y = MARGIN, MARGIN + HEADING
    for key in legend:
        if x > MARGIN and x + key.width > width:
            x, y = MARGIN, y + LINE
        placed.append((key, x, y))
        x += key.width
    return placed, y + LINE + 6
