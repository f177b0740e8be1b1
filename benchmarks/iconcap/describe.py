"""The captions that IconCap learns: an icon's whole name in a sentence, its style, and what can be measured in its pixels.

The sentence and its words are those that IconCLIP's text tower was trained on, so far as they can be. Words that it never read (`thin`,
`thick`, `bold`, which the icons' names were stripped of) do not describe a picture to it but disturb its features: tried on the icons'
own names, a word on the strokes' width cost 11 to 15 of 63 points of retrieval among icons of the same first word, "with a plus"
instead of "plus" cost 2, "wide" and "tall" 2, "in a circle" 0.2.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "iconclip"))
from corpus import article, load_styles

COLOURS = {
    "red": (220, 50, 50), "orange": (250, 150, 40), "yellow": (250, 215, 70), "green": (80, 175, 80), "blue": (60, 140, 235),
    "purple": (140, 80, 190), "pink": (245, 140, 180), "brown": (140, 95, 60),
}  # fmt: skip
COLOURED_FROM = 40  # difference of a pixel's channels
MIN_SHARE = 0.25  # of the coloured pixels, for a colour to be named
CHUNK = 4096


@dataclass(frozen=True)
class Looks:
    """What the pixels show, one entry an icon: the one or two colours that cover most, and whether a circle is drawn around it."""

    colours: list[tuple[str, ...]]
    ringed: list[bool]


def looks(pictures: np.ndarray) -> Looks:
    """Measure uint8 [N, S, S, 3]."""
    colours: list[tuple[str, ...]] = []
    ringed: list[bool] = []
    for i in range(0, len(pictures), CHUNK):
        batch = torch.from_numpy(np.array(pictures[i : i + CHUNK])).float()
        colours += _colours(batch)
        ringed += _ringed(1 - batch.mean(3) / 255).tolist()
    return Looks(colours, ringed)


def caption(words: tuple[str, ...], style: str, seen: Looks, row: int) -> str:
    """The caption of an icon; `words` are its name's, `row` its entry in `seen`."""
    drawn = load_styles()[style]
    if seen.colours[row] and "black and white" not in drawn:
        drawn = f"colourful {drawn}"
    kind = drawn if "emoji" in drawn else f"{drawn} icon"
    text = f"{article(kind)} {kind} of {article(words[0])} {' '.join(words)}"
    if seen.ringed[row] and not {"circle", "circled", "circular", "ring"} & set(words):
        text += " in a circle"
    return text + (f", {' and '.join(seen.colours[row])}" if seen.colours[row] else "")


def _colours(pictures: torch.Tensor) -> list[tuple[str, ...]]:
    """For each of float [n, S, S, 3] the names of the one or two commonest colours, () for one in black and grey."""
    names, palette = list(COLOURS), torch.tensor(list(COLOURS.values())).float()
    found: list[tuple[str, ...]] = []
    masks = pictures.amax(3) - pictures.amin(3) > COLOURED_FROM
    for picture, mask, coloured in zip(pictures, masks, masks.any(2).any(1).tolist(), strict=True):
        if not coloured:
            found.append(())
            continue
        strong = picture[mask]
        share = torch.cdist(strong, palette).argmin(1).bincount(minlength=len(names)) / len(strong)
        order = share.argsort(descending=True, stable=True)[:2].tolist()
        found.append(tuple(names[k] for k in order if share[k] >= MIN_SHARE) or (names[order[0]],))
    return found


def _ringed(ink: torch.Tensor) -> torch.Tensor:
    """Whether the outermost ink of [n, S, S] in all directions lies on one large circle around the middle, with something drawn inside."""
    n, size = len(ink), ink.shape[1]
    angle = torch.arange(72) * (2 * torch.pi / 72)
    radius = torch.arange(4, size // 2 + 1, 0.5)
    grid = torch.stack([angle.cos()[:, None] * radius, angle.sin()[:, None] * radius], dim=-1) / (size / 2)  # [A, R, 2]
    seen = torch.nn.functional.grid_sample(ink[:, None], grid.expand(n, *grid.shape), align_corners=False)[:, 0] > 0.4  # [n, A, R]
    outer = torch.where(seen, radius, 0.0).amax(2)
    middle = outer.median(1).values
    is_round = ((outer - middle[:, None]).abs() < 1.25).float().mean(1) > 0.95
    inside = (seen & (radius < 0.72 * middle[:, None])[:, None, :]).float().mean((1, 2))
    return is_round & (middle > size * 0.3) & (inside > 0.02) & (inside < 0.7)
