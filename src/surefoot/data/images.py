"""Reading images, and handing them out in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from surefoot.errors import DataError

KEEP_BYTES = 1 << 30


def read_image(path: Path) -> Image.Image:
    """One image as RGB: turned as its EXIF data says, transparent parts on white.

    Raises:
        DataError: the file cannot be read as an image.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                rgba = image.convert("RGBA")
                white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
                return Image.alpha_composite(white, rgba).convert("RGB")
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}). Repair or remove the file.") from error


class Images:
    """The images of some paths, preprocessed on demand.

    Decoded images are kept while they fit `KEEP_BYTES`; preprocessed ones too when the transform is not random.

    Args:
        paths: the files.
        transform: PIL image -> tensor [3, H, W].
        random: whether the transform draws random numbers, so that its results must not be kept.
    """

    def __init__(self, paths: Sequence[Path], transform: Callable[[Image.Image], Tensor], *, random: bool = False) -> None:
        self.paths, self._transform, self._random = tuple(paths), transform, random
        self._decoded: dict[int, Image.Image] = {}
        self._ready: dict[int, Tensor] = {}
        self._kept = 0

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
            self._keep(self._decoded, row, image, image.width * image.height * 3)
        else:
            self._keep(self._ready, row, result, result.numel() * result.element_size())
        return result

    def _keep(self, store: dict[int, Tensor] | dict[int, Image.Image], row: int, value: Tensor | Image.Image, size: int) -> None:
        if row not in store and self._kept + size <= KEEP_BYTES:
            store[row] = value  # type: ignore[assignment]
            self._kept += size
