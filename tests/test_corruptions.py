"""Every corruption: worse with severity, the same with the same seed, in range, and at any size."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from surefoot.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from surefoot.errors import SettingError, UnknownNameError

NOISY = ("gaussian_noise", "shot_noise", "impulse_noise", "elastic_transform")


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth colours with sharp edges, away from black and white."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((3, 6, 6), generator=generator)
    blocks = functional.resize(torch.rand((3, 7 + 2 * seed, 9 - seed), generator=generator), [height, width], interpolation=0)
    smooth = functional.resize(coarse, [height, width], antialias=True)
    return (0.15 + 0.5 * (smooth + blocks) / 2).clamp(0, 1)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(48, 48), (224, 224), (64, 48)])
def test_damage_grows_with_severity(name: str, size: tuple[int, int]) -> None:
    images = [photo(*size, seed) for seed in range(4)]  # several, for a grid of squares may fit one picture's edges
    damage = [sum((corrupt(image, name, severity=s, seed=1) - image).square().mean().item() for image in images) for s in SEVERITIES]
    assert damage[0] > 1e-5 and all(later > earlier for earlier, later in pairwise(damage)), damage


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_result_has_shape_type_and_range_of_an_image(name: str, dtype: torch.dtype) -> None:
    for image in (photo(33, 50), torch.zeros(3, 33, 50), torch.ones(3, 33, 50)):
        before = image.to(dtype).clone()
        result = corrupt(before, name, severity=5)
        assert result.shape == image.shape and result.dtype == dtype
        assert result.isfinite().all() and result.min() >= 0 and result.max() <= 1
        assert torch.equal(before, image.to(dtype)), "the image that was given is left alone"


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_same_seed_same_result_whatever_else_draws(name: str) -> None:
    image = photo(48, 48)
    first = corrupt(image, name, seed=3)
    torch.rand(5)
    state = torch.get_rng_state()
    assert torch.equal(corrupt(image, name, seed=3), first)
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator is left alone"
    assert torch.equal(corrupt(image, name, seed=4), first) == (name not in NOISY)


@pytest.mark.parametrize(("name", "severity", "most"), [("gaussian_blur", 3, 0.25), ("pixelate", 5, 0.25), ("elastic_transform", 3, 0.4)])
def test_small_and_large_copies_of_a_picture_suffer_alike(name: str, severity: int, most: float) -> None:
    small, large = photo(48, 48), photo(240, 240)
    damage = [(corrupt(image, name, severity=severity, seed=0) - image).square().mean().sqrt().item() for image in (small, large)]
    assert abs(damage[0] - damage[1]) < most * max(damage)


def test_closed_forms() -> None:
    grey = torch.full((3, 64, 64), 0.5)
    assert corrupt(grey, "gaussian_noise", severity=3).std().item() == pytest.approx(0.12, rel=0.05)
    assert corrupt(grey, "shot_noise", severity=2).std().item() == pytest.approx((0.5 / 25) ** 0.5, rel=0.05)
    speckled = corrupt(grey, "impulse_noise", severity=4)
    assert (speckled == 0).float().mean().item() == pytest.approx(0.075, abs=0.01)
    assert (speckled == 1).float().mean().item() == pytest.approx(0.075, abs=0.01)
    for name in ("contrast", "saturate"):
        assert torch.allclose(corrupt(grey, name, severity=5), grey, atol=1e-3), "the weights of the colours add up to 0.9999"
    for name in ("gaussian_blur", "elastic_transform", "pixelate"):
        assert torch.allclose(corrupt(grey, name, severity=5), grey, atol=1e-5), name
    red = torch.tensor([0.4, 0.1, 0.1])[:, None, None].expand(3, 8, 8)
    assert torch.allclose(corrupt(red, "brightness", severity=4)[:, 0, 0], torch.tensor([0.8, 0.2, 0.2])), "hue and saturation stay"
    assert torch.allclose(corrupt(torch.zeros(3, 8, 8), "brightness", severity=2), torch.tensor(0.2))


def test_pixelate_leaves_blocks() -> None:
    blocky = corrupt(photo(48, 48), "pixelate", severity=5)
    assert torch.equal(blocky, blocky[:, ::3, ::3].repeat_interleave(3, 1).repeat_interleave(3, 2))


def test_unknown_name_gets_the_nearest_and_wrong_settings_are_named() -> None:
    image = photo(16, 16)
    with pytest.raises(UnknownNameError, match="Did you mean 'gaussian_noise'"):
        corrupt(image, "gausian_noise")
    for severity in (0, 6):
        with pytest.raises(SettingError, match=f"severity is {severity}"):
            corrupt(image, "jpeg", severity=severity)
    for wrong in (image[:1], image[None], (image * 255).to(torch.uint8), image[:, :4]):
        with pytest.raises(SettingError, match="give floating-point"):
            corrupt(wrong, "jpeg")
