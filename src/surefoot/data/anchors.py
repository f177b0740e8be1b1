"""What ARF gives to training images besides their class: generated captions, and retrieved image-text pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """The anchors of a data set's training images, as they were found; `anchors.attach` reads them.

    Attributes:
        captions: {training image: its caption}.
        captioner: what wrote them.
        pairs: {training image: rows of `images` and `texts` that it retrieved, the nearest first}.
        images: of the retrieved pairs.
        texts: of the retrieved pairs.
        weights: hash of the weights that retrieved.
        pool: what was retrieved from.
    """

    captions: Mapping[Path, str] = field(default_factory=dict)
    captioner: str = ""
    pairs: Mapping[Path, tuple[int, ...]] = field(default_factory=dict)
    images: tuple[Path, ...] = ()
    texts: tuple[str, ...] = ()
    weights: str = ""
    pool: str = ""

    def identity(self, written: Callable[[Path], str]) -> dict[str, str]:
        """What a run that uses them is determined by: {"captions": ..., "pairs": ...}, a hash each, and where they come from.

        Args:
            written: how an image is called; see `Dataset.written`.
        """
        captions = sorted((written(path), text) for path, text in self.captions.items())
        pairs = sorted((written(path), [(self.images[row].name, self.texts[row]) for row in rows]) for path, rows in self.pairs.items())
        return {
            "captions": f"{self.captioner} {_hash(captions)}" if captions else "",
            "pairs": f"{self.pool} {_hash(pairs)}" if pairs else "",
        }


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]
