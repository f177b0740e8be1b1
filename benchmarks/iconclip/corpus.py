"""The pre-training corpus of IconCLIP: icons of the pre-training side, screened against the benchmark, and their captions.

A caption is the icon's own name, in one of a few plain sentences; about half of them say the style, and some say whether the
drawing is coloured, because those are the words that the benchmark's context prompts are made of.
"""

from __future__ import annotations

import hashlib
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "iconshift"))
from duplicates import THRESHOLD, descriptors, near
from naming import Classes
from source import Icon, catalogue, download, load_rules, render_all

SHARE_WITH_STYLE = 0.5
SHARE_WITH_COLOUR = 0.2
PLAIN = (
    "an icon of {a}", "a {} icon", "a picture of {a}", "an image of {a}", "a drawing of {a}", "a symbol of {a}", "{a}", "{}", "an icon: {}",
)  # fmt: skip
STYLED = ("{s} icon of {a}", "{s} {} icon", "{s} drawing of {a}", "{s} {}", "{a}, {s} icon", "{s} picture of {a}")
STYLED_EMOJI = ("{s} of {a}", "{a}, {s}", "{s} picture of {a}", "{} {s}")


@dataclass(frozen=True)
class Corpus:
    """Icons with their pictures, uint8 [N, S, S, 3], and whether each is drawn in colour."""

    icons: list[Icon]
    pictures: np.ndarray
    coloured: np.ndarray
    screened_out: int
    repeated: int


def build(cache: Path, size: int = 48) -> Corpus:
    """All pre-training icons that are not blank, not pixel-identical to another one and not near-duplicates of any benchmark candidate."""
    package = download(cache)
    icons, classes = catalogue(package), Classes.load()
    pictures = render_all(icons, package, size, cache)
    candidates = [r for r, icon in enumerate(icons) if icon.side == "benchmark" and classes.class_of(icon)]
    rows, seen, repeated = [], set(), 0
    for r, icon in enumerate(icons):
        if icon.side != "pretraining" or pictures[r].min() > 200:
            continue
        digest = hashlib.blake2b(pictures[r].tobytes(), digest_size=16).digest()
        repeated += digest in seen
        if digest not in seen:
            rows.append(r)
        seen.add(digest)
    known = near(descriptors(pictures[candidates]), descriptors(pictures[rows]), THRESHOLD).numpy()
    kept = [r for r, is_known in zip(rows, known, strict=True) if not is_known]
    chosen = pictures[kept]
    coloured = (chosen.max(3).astype(np.int16) - chosen.min(3)).max((1, 2)) > 40
    return Corpus([icons[r] for r in kept], chosen, coloured, int(known.sum()), repeated)


def caption(icon: Icon, coloured: bool, tinted: bool, rng: random.Random) -> str:
    """One caption; `tinted` says that the picture was recoloured, so no word about its colour may be used."""
    name = " ".join(icon.words)
    named = {"a": f"{article(name)} {name}"}
    if rng.random() >= SHARE_WITH_STYLE:
        return rng.choice(PLAIN).format(name, **named)
    style = load_styles()[icon.style]
    if not tinted and "black and white" not in style and rng.random() < SHARE_WITH_COLOUR:
        style = ("colourful " if coloured else "black and white ") + style
    forms = STYLED_EMOJI if "emoji" in style else STYLED
    return rng.choice(forms).format(name, s=f"{article(style)} {style}", **named)


def article(words: str) -> str:
    return "an" if words[:1] in "aeiou" else "a"


_STYLES: dict[str, str] = {}


def load_styles() -> dict[str, str]:
    """{style: its words}, of sets.toml."""
    if not _STYLES:
        _STYLES.update(load_rules()["styles"])
    return _STYLES


def augment(pictures: torch.Tensor, tint: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """uint8 [B, S, S, 3] -> float [B, 3, S, S] in 0..1: shift by up to 3 pixels, mirror half, give the ink of rows in `tint` a colour."""
    batch = pictures.permute(0, 3, 1, 2).float() / 255
    n, size = len(batch), batch.shape[2]
    colour = torch.rand(n, 3, 1, 1, generator=generator) * 0.8
    batch = torch.where(tint[:, None, None, None], 1 - (1 - batch) * (1 - colour), batch)
    mirror = torch.rand(n, generator=generator) < 0.5
    batch = torch.where(mirror[:, None, None, None], batch.flip(3), batch)
    padded = torch.nn.functional.pad(batch, (3, 3, 3, 3), value=1.0)
    dx, dy = torch.randint(0, 7, (2, n), generator=generator)
    span = torch.arange(size)
    rows = (dy[:, None] + span)[:, None, :, None].expand(n, 3, size, size)
    columns = (dx[:, None] + span)[:, None, None, :].expand(n, 3, size, size)
    return padded[torch.arange(n)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]
