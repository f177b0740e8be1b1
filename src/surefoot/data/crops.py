"""Random crops that draw from a generator of their own, so that images can be prepared in other threads than the one that trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, RandomResizedCrop
from torchvision.transforms import functional as F

Box = tuple[int, int, int, int]
"""top, left, height, width, in pixels."""
_TRIES = 10


@dataclass(frozen=True)
class RandomCrop:
    """A preprocessing that begins with torchvision's RandomResizedCrop, in two halves: the draw, and all that follows from it.

    Attributes:
        crop: torchvision's transform, whose settings these are.
        rest: what is done with the resized crop; nothing in it is random.
    """

    crop: RandomResizedCrop
    rest: Callable[[Any], Tensor]

    @classmethod
    def of(cls, transform: Callable[[Image.Image], Tensor]) -> RandomCrop | None:
        """The two halves of a `Compose` that begins with a RandomResizedCrop; None for any other transform."""
        steps = transform.transforms if isinstance(transform, Compose) else []
        if not steps or type(steps[0]) is not RandomResizedCrop or any(_draws(step) for step in steps[1:]):
            return None
        return cls(steps[0], Compose(steps[1:]))

    def draw(self, image: Image.Image, generator: torch.Generator) -> Box:
        """Where to cut: the same numbers, in the same order, as RandomResizedCrop draws from torch's global generator."""
        width, height = image.size
        low, high = torch.log(torch.tensor(self.crop.ratio)).tolist()
        for _ in range(_TRIES):
            area = height * width * torch.empty(1).uniform_(*self.crop.scale, generator=generator).item()
            ratio = torch.exp(torch.empty(1).uniform_(low, high, generator=generator)).item()
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                top = int(torch.randint(0, height - tall + 1, (1,), generator=generator))
                left = int(torch.randint(0, width - wide + 1, (1,), generator=generator))
                return top, left, tall, wide
        return self._middle(width, height)

    def _middle(self, width: int, height: int) -> Box:
        """The largest box in the middle whose ratio is allowed."""
        least, most = min(self.crop.ratio), max(self.crop.ratio)
        wide, tall = width, height
        if width / height < least:
            tall = round(wide / least)
        elif width / height > most:
            wide = round(tall * most)
        return (height - tall) // 2, (width - wide) // 2, tall, wide

    def finish(self, image: Image.Image, box: Box) -> Tensor:
        """The preprocessed crop [3, H, W]."""
        return self.rest(F.resized_crop(image, *box, self.crop.size, self.crop.interpolation, antialias=self.crop.antialias))


def _draws(step: object) -> bool:
    """Whether a transform may be random: what is not known to be fixed is."""
    return type(step).__name__ not in ("MaybeConvertMode", "MaybeToTensor", "ToTensor", "Normalize", "CenterCrop", "Resize")
