"""Interpolation: its ends are the two models bit by bit, it is linear, and it leaves integer buffers alone."""

import math

import pytest
import torch
from torch import Tensor

from surefoot.errors import SettingError
from surefoot.weights import interpolate


def state(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "visual.proj": torch.randn(3, 4, generator=generator, dtype=torch.float64).to(dtype),
        "head.bias": torch.randn(3, generator=generator, dtype=torch.float64).to(dtype),
        "logit_scale": torch.randn((), generator=generator, dtype=torch.float64).to(dtype),
        "visual.num_batches_tracked": torch.tensor(10 + seed),
        "mask": torch.tensor([True, seed > 0]),
    }


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


@pytest.mark.parametrize("alpha", [0, 0.0, 1, 1.0])
def test_ends_are_the_two_models_bit_by_bit(alpha: float) -> None:
    start, end = state(0, torch.float32), state(1, torch.float32)
    for side in (start, end):  # (1 - alpha) * a + alpha * b would lose all three
        side["head.bias"] = torch.tensor([-0.0, math.inf, math.nan])
    end["visual.proj"][0] = math.inf
    expected = end if alpha else start
    merged = interpolate(start, end, alpha)
    assert list(merged) == list(start)
    assert all(bits(merged[name]) == bits(expected[name]) for name in expected)


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5, 0.9])
def test_every_number_is_on_the_line(alpha: float) -> None:
    start, end = state(0), state(1)
    merged = interpolate(start, end, alpha)
    for name in ("visual.proj", "head.bias", "logit_scale"):
        rows = zip(merged[name].flatten().tolist(), start[name].flatten().tolist(), end[name].flatten().tolist(), strict=True)
        assert all(value == pytest.approx((1 - alpha) * low + alpha * high, rel=1e-12) for value, low, high in rows)


def test_alpha_weighs_the_end() -> None:
    assert interpolate({"w": torch.tensor(0.0)}, {"w": torch.tensor(8.0)}, 0.25)["w"].item() == 2


def test_swapping_the_ends_mirrors_alpha() -> None:
    one, other = interpolate(state(0), state(1), 0.3), interpolate(state(1), state(0), 0.7)
    for name in ("visual.proj", "head.bias", "logit_scale"):
        torch.testing.assert_close(one[name], other[name])


def test_interpolating_a_model_with_itself_gives_the_model() -> None:
    merged = interpolate(state(0), state(0), 0.5)
    assert all(torch.equal(merged[name], tensor) for name, tensor in state(0).items())


def test_merged_linear_head_equals_averaged_outputs() -> None:
    start, end, feature = state(0), state(1), torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def logits(weights: dict[str, Tensor]) -> Tensor:
        return feature @ weights["visual.proj"].T + weights["head.bias"]

    torch.testing.assert_close(logits(interpolate(start, end, 0.3)), 0.7 * logits(start) + 0.3 * logits(end))


@pytest.mark.parametrize(("alpha", "count"), [(0, 10), (0.01, 11), (0.5, 11), (1, 11)])
def test_integer_buffers_are_copied(alpha: float, count: int) -> None:
    merged = interpolate(state(0), state(1), alpha)
    assert merged["visual.num_batches_tracked"].item() == count
    assert merged["mask"].tolist() == [True, alpha > 0]
    assert (merged["visual.num_batches_tracked"].dtype, merged["mask"].dtype) == (torch.int64, torch.bool)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_dtype_is_kept(alpha: float, dtype: torch.dtype) -> None:
    assert interpolate(state(0, dtype), state(1, dtype), alpha)["visual.proj"].dtype == dtype


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_inputs_are_not_changed_and_not_shared(alpha: float) -> None:
    start, end = state(0), state(1)
    for tensor in interpolate(start, end, alpha).values():
        tensor.zero_()
    assert all(torch.equal(start[name], tensor) for name, tensor in state(0).items())
    assert all(torch.equal(end[name], tensor) for name, tensor in state(1).items())


@pytest.mark.parametrize("alpha", [-0.1, 1.5, math.nan])
def test_alpha_out_of_range_is_an_error(alpha: float) -> None:
    with pytest.raises(SettingError, match=r"alpha is .* in 0\.\.1\. Use 0 for the zero-shot model"):
        interpolate(state(0), state(1), alpha)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_differing_names_are_named(alpha: float) -> None:
    start, end = state(0), state(1)
    del start["head.bias"]
    end["adapter.a"] = torch.zeros(1)
    with pytest.raises(SettingError, match=r"head\.bias only in end; adapter\.a only in end\. .* Use two checkpoints"):
        interpolate(start, end, alpha)
    with pytest.raises(SettingError, match=r"head\.bias only in start"):
        interpolate(end, start, alpha)


def test_only_the_first_three_differences_are_named() -> None:
    with pytest.raises(SettingError, match=r"visual\.proj only in end; head\.bias only in end; logit_scale only in end; and 2 more\."):
        interpolate({}, state(0), 0.5)


@pytest.mark.parametrize("other", [torch.zeros(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float16)])
def test_differing_shape_or_dtype_is_named(other: Tensor) -> None:
    with pytest.raises(SettingError, match=r"head\.bias is \[3\] torch\.float64 in start and \[.\] torch\.float.. in end"):
        interpolate(state(0), state(1) | {"head.bias": other}, 0.5)
