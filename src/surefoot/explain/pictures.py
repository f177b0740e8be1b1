"""Images as the model gets them, and maps of attention laid over them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from surefoot.model import ImageTextModel

SIDE = 176
FAINT, STRONG = (255, 196, 0), (204, 0, 51)
"""The colours of a patch of half and of the whole of the largest relevance: yellow and red, which differ in lightness too."""
MOST = 0.8
"""How much of a picture the strongest patch covers."""


def as_seen(model: ImageTextModel, image: Tensor) -> Image.Image:
    """The picture of one preprocessed image [3, H, W]: cut and scaled as the model gets it, `SIDE` pixels on its longer side."""
    config = model.config()["preprocess_cfg"]
    mean, std = (torch.tensor(config[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    pixels = (255 * (image.cpu() * std + mean).clamp(0, 1)).round().to(torch.uint8)
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    factor = SIDE / max(picture.size)
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def upsampled(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """A map [h, w], 0 or more, on `size` = (width, height) pixels, [height, width], and in 0..1: its largest value becomes 1.

    Every map is scaled by itself: maps of two models say where each looks, not which looks harder. A map of zeros stays one.
    """
    smooth = F.interpolate(heat[None, None].float(), size=(size[1], size[0]), mode="bilinear", align_corners=False)[0, 0]
    return smooth / smooth.amax().clamp_min(1e-12)


def overlaid(picture: Image.Image, heat: Tensor) -> Image.Image:
    """A map [h, w] over a picture, which turns grey and pale below it."""
    strength = upsampled(heat, picture.size).numpy()[..., None]
    grey = 255 - 0.6 * (255 - np.asarray(picture.convert("L"), dtype=np.float32)[..., None])
    faint, strong = (np.array(colour, dtype=np.float32) for colour in (FAINT, STRONG))
    colour = faint + (strong - faint) * np.clip(2 * strength - 1, 0, 1)
    mixed = grey + MOST * strength * (colour - grey)
    return Image.fromarray(mixed.round().astype(np.uint8))


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture as WebP, in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    picture.save(partial, format="WEBP", quality=80)
    partial.replace(path)
