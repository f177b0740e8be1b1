"""Interpolation, soups and Fisher-weighted merges: their ends and limits bit by bit, their means number by number."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from surefoot.errors import SettingError
from surefoot.weights import fisher_merge, interpolate, uniform_soup


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


def same_bits(one: Tensor, other: Tensor) -> bool:
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.int8}[one.element_size()]
    return one.dtype == other.dtype and torch.equal(one.contiguous().view(whole), other.contiguous().view(whole))


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


# ---- soups


def test_a_soup_is_the_mean_number_by_number() -> None:
    states = [state(seed) for seed in range(3)]
    soup = uniform_soup(states)
    assert list(soup) == list(states[0])
    for name in ("visual.proj", "head.bias", "logit_scale"):
        rows = zip(soup[name].flatten().tolist(), *(one[name].flatten().tolist() for one in states), strict=True)
        assert all(mean == pytest.approx((a + b + c) / 3, rel=1e-12) for mean, a, b, c in rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_soup_of_one_is_itself_bit_by_bit(dtype: torch.dtype) -> None:
    one = state(1, dtype)
    one["head.bias"] = torch.tensor([-0.0, math.inf, math.nan], dtype=dtype)
    soup = uniform_soup([one])
    assert all(same_bits(soup[name], tensor) for name, tensor in one.items())
    soup["visual.proj"].zero_()
    assert not torch.equal(one["visual.proj"], soup["visual.proj"]), "nothing is shared"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [2, 3, 7, 10])
def test_a_soup_of_one_model_several_times_is_the_model(count: int, dtype: torch.dtype) -> None:
    soup = uniform_soup([state(1, dtype)] * count)
    assert all(same_bits(soup[name], tensor) for name, tensor in state(1, dtype).items())


def test_the_order_of_a_soup_does_not_matter() -> None:
    states = [state(seed, torch.float32) for seed in range(5)]
    expected = uniform_soup(states)
    for order in itertools.permutations(range(5)):
        soup = uniform_soup([states[place] for place in order])
        assert all(same_bits(soup[name], expected[name]) for name in ("visual.proj", "head.bias", "logit_scale"))


def test_a_soup_of_both_ends_is_the_middle_of_the_line() -> None:
    soup, middle = uniform_soup([state(0), state(1)]), interpolate(state(0), state(1), 0.5)
    for name in ("visual.proj", "head.bias", "logit_scale"):
        torch.testing.assert_close(soup[name], middle[name])


def test_integer_buffers_of_a_soup_are_those_of_the_first() -> None:
    soup = uniform_soup([state(2), state(0), state(1)])
    assert (soup["visual.num_batches_tracked"].item(), soup["visual.num_batches_tracked"].dtype) == (12, torch.int64)
    assert soup["mask"].tolist() == [True, True]


def test_a_soup_of_different_layouts_names_the_model_and_three_tensors() -> None:
    with pytest.raises(SettingError, match=r"visual\.proj only in model 1; head\.bias only in model 1; logit_scale only in model 1; and 2"):
        uniform_soup([state(0), state(1) | {}, {}])
    with pytest.raises(SettingError, match=r"head\.bias is \[3\] torch\.float64 in model 1 and \[3\] torch\.float32 in model 3"):
        uniform_soup([state(0), state(1), state(2) | {"head.bias": torch.zeros(3)}])
    with pytest.raises(SettingError, match="Give one or more"):
        uniform_soup([])


# ---- Fisher-weighted merge

WEIGHED = ("visual.proj", "head.bias")


def fisher(seed: int) -> dict[str, Tensor]:
    """For two of the tensors."""
    generator = torch.Generator().manual_seed(100 + seed)
    return {name: torch.rand(state(0)[name].shape, generator=generator, dtype=torch.float64) for name in WEIGHED}


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_every_number_of_a_fisher_merge_is_the_weighted_mean(alpha: float) -> None:
    start, end, first, second = state(0), state(1), fisher(0), fisher(1)
    merged = fisher_merge(start, end, first, second, alpha)
    for name in WEIGHED:
        parts = (merged[name], start[name], end[name], first[name], second[name])
        for value, low, high, f0, f1 in zip(*(part.flatten().tolist() for part in parts), strict=True):
            expected = ((1 - alpha) * f0 * low + alpha * f1 * high) / ((1 - alpha) * f0 + alpha * f1)
            assert value == pytest.approx(expected, rel=1e-12)
    line = interpolate(start, end, alpha)
    assert all(same_bits(merged[name], line[name]) for name in start if name not in WEIGHED), "without Fisher values it is the line"


@pytest.mark.parametrize("alpha", [0, 1])
def test_the_ends_of_a_fisher_merge_are_the_models_bit_by_bit(alpha: float) -> None:
    start, end = state(0, torch.float32), state(1, torch.float32)
    for side in (start, end):
        side["head.bias"] = torch.tensor([-0.0, math.inf, math.nan])
    merged = fisher_merge(start, end, fisher(0), fisher(1), alpha)
    assert all(same_bits(merged[name], tensor) for name, tensor in (end if alpha else start).items())


@pytest.mark.parametrize("scale", [1.0, 1e-20, 0.0])
@pytest.mark.parametrize("alpha", [0.3, 0.5])
def test_a_fisher_merge_with_equal_values_is_the_line(alpha: float, scale: float) -> None:
    equal = {name: scale * values for name, values in fisher(0).items()}
    merged, line = fisher_merge(state(0), state(1), equal, equal, alpha), interpolate(state(0), state(1), alpha)
    for name in WEIGHED:
        torch.testing.assert_close(merged[name], line[name])


def test_a_weight_that_only_one_model_depends_on_is_taken_from_it() -> None:
    start, end = {"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([3.0, 3.0])}
    merged = fisher_merge(start, end, {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}, 0.5)
    torch.testing.assert_close(merged["w"], torch.tensor([1.0, 3.0]))


def test_below_the_floor_a_fisher_value_says_nothing() -> None:
    start, end, small = {"w": torch.tensor(0.0)}, {"w": torch.tensor(4.0)}, {"w": torch.tensor(1e-9)}
    values = [fisher_merge(start, end, small, {"w": torch.tensor(3e-9)}, 0.5, floor=floor)["w"].item() for floor in (1e-8, 1e-12)]
    assert values == pytest.approx([2.0, 3.0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_fisher_merge_keeps_dtypes_and_shares_nothing(dtype: torch.dtype) -> None:
    start, end = state(0, dtype), state(1, dtype)
    for name, tensor in fisher_merge(start, end, fisher(0), fisher(1), 0.3).items():
        assert tensor.dtype == start[name].dtype
        tensor.zero_()
    assert all(torch.equal(start[name], tensor) for name, tensor in state(0, dtype).items())


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"w": torch.ones(2)}, {}, "w is there for start only"),
        ({}, {"w": torch.ones(2)}, "w is there for end only"),
        ({"v": torch.ones(2)}, {"v": torch.ones(2)}, "v belongs to no weight"),
        ({"w": torch.ones(3)}, {"w": torch.ones(2)}, r"w of start is \[3\], its weight \[2\]"),
        ({"w": torch.ones(2)}, {"w": torch.tensor([1.0, -1.0])}, "w of end holds a value that is negative"),
        ({"w": torch.tensor([math.nan, 1.0])}, {"w": torch.ones(2)}, "w of start holds a value that is negative or not finite"),
    ],
)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_fisher_values_that_fit_no_weight_are_named(first: dict[str, Tensor], second: dict[str, Tensor], words: str, alpha: float) -> None:
    with pytest.raises(SettingError, match=words):
        fisher_merge({"w": torch.zeros(2)}, {"w": torch.ones(2)}, first, second, alpha)


def test_a_fisher_merge_refuses_what_interpolate_refuses_and_a_floor_of_zero() -> None:
    with pytest.raises(SettingError, match=r"alpha is 1\.5"):
        fisher_merge(state(0), state(1), {}, {}, 1.5)
    with pytest.raises(SettingError, match=r"head\.bias is \[3\]"):
        fisher_merge(state(0), state(1) | {"head.bias": torch.zeros(2)}, {}, {}, 0.5)
    for floor in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(SettingError, match=r"floor is .* must be above 0"):
            fisher_merge(state(0), state(1), {}, {}, 0.5, floor=floor)
