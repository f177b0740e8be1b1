"""Reading images, and handing them out in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from surefoot.errors import DataError

KEEP_BYTES = 1 << 30
_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image(path: Path) -> Image.Image:
    """One image as RGB: turned as its EXIF data says, transparent parts on white, 16-bit grey scaled to 8.

    Raises:
        DataError: the file cannot be read as an image.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                image = _eight_bits(image)
            if image.mode == "F":
                raise DataError(f"{path} holds floating-point values, which have no fixed range. Save it as 8- or 16-bit.")
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                rgba = image.convert("RGBA")
                white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
                return Image.alpha_composite(white, rgba).convert("RGB")
            return image.convert("RGB")
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read as an image ({error}). Repair or remove the file.") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey image (Pillow's modes I and I;16) as 8-bit grey."""
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray((values // 257 if values.max(initial=0) > 255 else values).clip(0, 255).astype(np.uint8))


@dataclass
class Budget:
    """How many bytes of images may be kept in memory, by all `Images` that share it."""

    left: int = KEEP_BYTES


class Images:
    """The images of some paths, preprocessed on demand.

    Preprocessed images are kept while the budget lasts; decoded ones if the transform is random.

    Args:
        paths: the files.
        transform: PIL image -> tensor [3, H, W].
        random: whether the transform draws random numbers, so that its results must not be kept.
        budget: what may be kept; its own if none is given.
    """

    def __init__(
        self, paths: Sequence[Path], transform: Callable[[Image.Image], Tensor], *, random: bool = False, budget: Budget | None = None
    ) -> None:
        self.paths, self._transform, self._random = tuple(paths), transform, random
        self._budget = budget or Budget()
        self._decoded: dict[int, Image.Image] = {}
        self._ready: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, rows: Sequence[int]) -> Tensor:
        """The preprocessed images of `rows`, [B, 3, H, W]."""
        return torch.stack([self._one(row) for row in rows])

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in order, [<= size, 3, H, W] each."""
        for start in range(0, len(self), size):
            yield self.batch(range(start, min(start + size, len(self))))

    def _one(self, row: int) -> Tensor:
        if row in self._ready:
            return self._ready[row]
        image = self._decoded[row] if row in self._decoded else read_image(self.paths[row])
        result = self._transform(image)
        if self._random:
            self._keep(self._decoded, row, image, image.width * image.height * 4)
        else:
            self._keep(self._ready, row, result, result.numel() * result.element_size())
        return result

    def _keep(self, store: dict[int, Tensor] | dict[int, Image.Image], row: int, value: Tensor | Image.Image, size: int) -> None:
        if row not in store and size <= self._budget.left:
            store[row] = value  # type: ignore[assignment]
            self._budget.left -= size
