"""Common corruptions: what a camera, a codec or a careless hand does to the very images a model is tested on.

Most data come without a shift of their own. Accuracy under these corruptions shows all the same whether fine-tuning made a model brittle.

After the benchmark ImageNet-C, as far as torch, torchvision and Pillow carry it. Of its fifteen corruptions eight are here: Gaussian,
shot and impulse noise, brightness, contrast, elastic transform, pixelation, JPEG; of its four spare ones two: Gaussian blur and saturation
(which leaves a grey image as it is). Not here are defocus, glass, motion and zoom blur, and the weather (snow, frost, fog). The severities
are our own, and blur, elastic transform and pixelation are relative to the image's side, so that 48 and 224 pixels suffer alike: numbers
**cannot be compared** with published ones.

References:
    Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from surefoot.errors import SettingError, unknown_name

SEVERITIES = (1, 2, 3, 4, 5)
_FIELD_POINTS = 9  # of an elastic transform: displacements are drawn on 9 x 9 points and are smooth in between
_Corruption = Callable[[Tensor, float, Generator], Tensor]


def corrupt(image: Tensor, name: str, *, severity: int = 3, seed: int = 0) -> Tensor:
    """One image, corrupted. The same arguments give the same result.

    Args:
        image: [3, H, W], values in 0..1, before any normalisation; sides of 8 pixels or more.
        name: one of `CORRUPTIONS`.
        severity: 1 (mild) to 5.
        seed: of the noise; pass the image's row, so that all models see the same noise and no two images do.

    Returns:
        [3, H, W] in 0..1, of the image's type and device.

    Raises:
        UnknownNameError: no corruption of that name.
        SettingError: a severity outside 1..5, or an image of another form.

    Examples:
        >>> corrupt(torch.full((3, 8, 8), 0.25), "brightness", severity=5)[0, 0, 0].item()
        0.75
    """
    if name not in _TABLE:
        raise unknown_name("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise SettingError(f"severity is {severity}. Give 1, 2, 3, 4 or 5.")
    if image.ndim != 3 or image.shape[0] != 3 or min(image.shape[1:]) < 8 or not image.is_floating_point():
        raise SettingError(
            f"The image is {image.dtype} of shape {list(image.shape)}; give floating-point [3, H, W], sides of 8 or more, in 0..1."
        )
    function, amounts = _TABLE[name]
    generator = Generator().manual_seed(seed)
    damaged = function(image.detach().cpu().float(), amounts[severity - 1], generator)
    return damaged.clamp(0, 1).to(image)


def _side(image: Tensor) -> int:
    return min(image.shape[-2:])


def _gaussian_noise(image: Tensor, sigma: float, generator: Generator) -> Tensor:
    return image + sigma * torch.randn(image.shape, generator=generator)


def _shot_noise(image: Tensor, photons: float, generator: Generator) -> Tensor:
    """`photons` is what a white pixel catches on average."""
    return torch.poisson(image.clamp(0, 1) * photons, generator=generator) / photons


def _impulse_noise(image: Tensor, share: float, generator: Generator) -> Tensor:
    """A share of the values becomes black or white."""
    drawn = torch.rand(image.shape, generator=generator)
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn < share, 1.0, image))


def _gaussian_blur(image: Tensor, sigma: float, generator: Generator) -> Tensor:
    """First one way, then the other, which is the same and many times faster than both at once."""
    sigma *= _side(image)
    width = 2 * math.ceil(3 * sigma) + 1
    across = functional.gaussian_blur(image, kernel_size=[width, 1], sigma=[sigma, sigma])
    result: Tensor = functional.gaussian_blur(across, kernel_size=[1, width], sigma=[sigma, sigma])
    return result


def _brightness(image: Tensor, more: float, generator: Generator) -> Tensor:
    """`more` is added to the value of hue, saturation and value, so that black becomes grey."""
    value = image.amax(0, keepdim=True)
    lifted = (value + more).clamp(max=1)
    return torch.where(value > 0, image * lifted / value, lifted)


def _contrast(image: Tensor, factor: float, generator: Generator) -> Tensor:
    result: Tensor = functional.adjust_contrast(image, factor)
    return result


def _saturate(image: Tensor, factor: float, generator: Generator) -> Tensor:
    result: Tensor = functional.adjust_saturation(image, factor)
    return result


def _elastic_transform(image: Tensor, farthest: float, generator: Generator) -> Tensor:
    """Each pixel comes from up to `farthest` of the side away, neighbours from about the same direction."""
    height, width = image.shape[-2:]
    coarse = 2 * torch.rand((1, 2, _FIELD_POINTS, _FIELD_POINTS), generator=generator) - 1
    field = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0]
    field = field / field.abs().max() * 2 * farthest  # grid_sample's coordinates run from -1 to 1
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    grid = torch.stack([x + field[0], y + field[1]], dim=-1)
    return torch.nn.functional.grid_sample(image[None], grid[None], padding_mode="reflection", align_corners=True)[0]


def _pixelate(image: Tensor, blocks: float, generator: Generator) -> Tensor:
    """Squares of one colour, `blocks` of them along the shorter side."""
    height, width = image.shape[-2:]
    share = min(1.0, blocks / _side(image))
    small = functional.resize(image, [round(share * height), round(share * width)], antialias=True)
    result: Tensor = functional.resize(small, [height, width], interpolation=InterpolationMode.NEAREST_EXACT)
    return result


def _jpeg(image: Tensor, quality: float, generator: Generator) -> Tensor:
    """By Pillow: torchvision is about to drop its codec."""
    packed = io.BytesIO()
    functional.to_pil_image(functional.to_dtype(image.clamp(0, 1), torch.uint8, scale=True)).save(packed, "JPEG", quality=int(quality))
    result: Tensor = functional.to_dtype(functional.pil_to_tensor(Image.open(packed)), torch.float32, scale=True)
    return result


_TABLE: dict[str, tuple[_Corruption, tuple[float, float, float, float, float]]] = {
    "gaussian_noise": (_gaussian_noise, (0.05, 0.08, 0.12, 0.18, 0.26)),
    "shot_noise": (_shot_noise, (60, 25, 12, 6, 3)),
    "impulse_noise": (_impulse_noise, (0.02, 0.04, 0.08, 0.15, 0.25)),
    "gaussian_blur": (_gaussian_blur, (0.010, 0.014, 0.019, 0.025, 0.032)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.6, 0.45, 0.3, 0.2, 0.1)),
    "saturate": (_saturate, (1.7, 2.5, 4, 7, 12)),
    "elastic_transform": (_elastic_transform, (0.010, 0.019, 0.028, 0.040, 0.055)),
    "pixelate": (_pixelate, (40, 32, 26, 21, 16)),
    "jpeg": (_jpeg, (25, 18, 15, 10, 7)),
}
CORRUPTIONS: tuple[str, ...] = tuple(_TABLE)
