"""Accuracies and the choice of alpha against closed forms, the bootstrap against a loop, exact cases and its coverage."""

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest

from surefoot.errors import SettingError
from surefoot.metrics import Correct, Interval, accuracy, mean_per_class, one_standard_error, paired_bootstrap, standard_error


def answers(rng: np.random.Generator, num_seeds: int, num_images: int, rate: float) -> Correct:
    return rng.random((num_seeds, num_images)) < rate


def test_accuracy_is_the_fraction_of_right_images() -> None:
    assert accuracy(np.array([True, False, False])) == pytest.approx(1 / 3)


def test_mean_per_class_weighs_classes_alike() -> None:
    correct, label = np.array([True] * 98 + [False, True]), np.array([0] * 98 + [5, 5])
    assert mean_per_class(correct, label) == pytest.approx((1 + 0.5) / 2)
    assert accuracy(correct) == pytest.approx(0.99)


def test_mean_per_class_is_accuracy_when_classes_are_balanced() -> None:
    correct = np.random.default_rng(0).random(60) < 0.7
    assert mean_per_class(correct, np.arange(60) % 6) == pytest.approx(accuracy(correct))


@pytest.mark.parametrize(
    "correct", [np.array([]), np.array([0.5, 1.0]), np.array([1, 0]), np.ones((2, 2), dtype=bool), np.zeros(0, dtype=bool)]
)
def test_answers_must_be_one_axis_of_bool(correct: Correct) -> None:
    with pytest.raises(SettingError, match=r"must be a numpy array of bool, \[N\], and not empty\. Compare"):
        accuracy(correct)
    with pytest.raises(SettingError, match="must be a numpy array of bool"):
        mean_per_class(correct, np.zeros(correct.shape, dtype=int))


def test_labels_must_match_answers() -> None:
    with pytest.raises(SettingError, match=r"\[2\] answers and \[3\] labels.*Pass the label of every image"):
        mean_per_class(np.array([True, False]), np.array([0, 1, 2]))


@pytest.mark.parametrize(("value", "count", "expected"), [(0.5, 100, 0.05), (0.9, 900, 0.01), (0.0, 10, 0.0), (1.0, 10, 0.0)])
def test_standard_error_has_known_values(value: float, count: int, expected: float) -> None:
    assert standard_error(value, count) == pytest.approx(expected, abs=1e-15)


def test_standard_error_is_the_spread_over_samples() -> None:
    drawn = np.random.default_rng(0).binomial(250, 0.8, size=20000) / 250
    assert standard_error(0.8, 250) == pytest.approx(drawn.std(), rel=0.03)


@pytest.mark.parametrize(("value", "count"), [(81.2, 100), (-0.1, 100), (0.5, 0), (math.nan, 10)])
def test_standard_error_out_of_range_is_an_error(value: float, count: int) -> None:
    with pytest.raises(SettingError, match=r"must be in 0\.\.1 and the number at least 1\. Divide a percentage by 100"):
        standard_error(value, count)


def test_smallest_alpha_within_one_standard_error_is_chosen() -> None:
    alphas, accuracies = [0.0, 0.1, 0.2, 0.3, 0.4], [0.70, 0.87, 0.89, 0.90, 0.88]
    assert one_standard_error(alphas, accuracies, num_images=100) == (0.1, 0.3)  # standard error 0.03
    assert one_standard_error(alphas, accuracies, num_images=900 * 4) == (0.3, 0.3)  # 0.005
    assert one_standard_error(alphas, accuracies, num_images=2) == (0.0, 0.3)  # 0.21


def test_order_of_alphas_does_not_matter() -> None:
    assert one_standard_error([0.4, 0.0, 0.3, 0.1, 0.2], [0.88, 0.70, 0.90, 0.87, 0.89], num_images=100) == (0.1, 0.3)


def test_best_of_equal_alphas_is_the_smallest() -> None:
    assert one_standard_error([1.0, 0.5, 0.0], [1.0, 1.0, 0.9], num_images=100) == (0.5, 0.5)


@pytest.mark.parametrize(("alphas", "accuracies"), [([], []), ([0.0, 1.0], [0.5]), ([0.0, 1.0], [0.5, 81.0]), ([0.0], [math.nan])])
def test_curve_that_is_not_one_is_an_error(alphas: list[float], accuracies: list[float]) -> None:
    with pytest.raises(SettingError, match=r"one accuracy in 0\.\.1 for every alpha\. Evaluate every alpha"):
        one_standard_error(alphas, accuracies, num_images=100)


def loop_bootstrap(a: Sequence[Correct], b: Sequence[Correct], resamples: int, seed: int) -> Interval:
    """The same thing, one index at a time."""
    rng = np.random.default_rng(seed)
    num_seeds = max(len(array) for array in (*a, *b))
    means = []
    for _ in range(resamples):
        seeds = rng.integers(num_seeds, size=num_seeds)
        per_set = []
        for x, y in zip(a, b, strict=True):
            images = rng.integers(x.shape[1], size=x.shape[1])
            rows = [x[s % len(x), images].mean() - y[s % len(y), images].mean() for s in seeds]
            per_set.append(np.mean(rows))
        means.append(np.mean(per_set))
    low, high = np.quantile(means, [0.025, 0.975])
    mean = np.mean([x.mean() - y.mean() for x, y in zip(a, b, strict=True)])
    return Interval(float(mean), float(low), float(high))


@pytest.mark.parametrize("rows_of_b", [1, 3])
def test_bootstrap_agrees_with_a_loop(rows_of_b: int) -> None:
    rng = np.random.default_rng(0)
    hard = [rng.random(size) for size in (60, 150)]
    a = [np.stack([difficulty < 0.7 + 0.1 * s for s in range(3)]) ^ answers(rng, 3, len(difficulty), 0.05) for difficulty in hard]
    b = [
        np.stack([difficulty < 0.6 + 0.1 * s for s in range(rows_of_b)]) ^ answers(rng, rows_of_b, len(difficulty), 0.05)
        for difficulty in hard
    ]
    fast, slow = paired_bootstrap(a, b, resamples=20000), loop_bootstrap(a, b, resamples=4000, seed=1)
    width = slow.high - slow.low
    assert fast.mean == pytest.approx(slow.mean, abs=1e-12)
    assert fast.low == pytest.approx(slow.low, abs=0.05 * width)
    assert fast.high == pytest.approx(slow.high, abs=0.05 * width)


def test_large_difference_is_decided() -> None:
    rng = np.random.default_rng(0)
    interval = paired_bootstrap([answers(rng, 3, 1000, 0.9)], [answers(rng, 3, 1000, 0.6)])
    assert 0.25 < interval.low < interval.mean < interval.high < 0.35
    assert not interval.undecided


def test_swapped_models_have_the_opposite_mean() -> None:
    rng = np.random.default_rng(0)
    a, b = [answers(rng, 3, 100, 0.9)], [answers(rng, 3, 100, 0.6)]
    assert paired_bootstrap(a, b).mean == -paired_bootstrap(b, a).mean
    assert paired_bootstrap(b, a).high < 0 < paired_bootstrap(a, b).low


def test_identical_models_differ_by_exactly_zero() -> None:
    a = [answers(np.random.default_rng(0), 4, 200, 0.6), answers(np.random.default_rng(1), 4, 77, 0.3)]
    assert paired_bootstrap(a, [array.copy() for array in a]) == Interval(0.0, 0.0, 0.0)
    assert paired_bootstrap(a, a).undecided


def test_same_images_are_resampled_for_both() -> None:
    """With one seed the interval is 1.96 standard errors of the paired difference; unpaired it would be six times as wide."""
    b = np.random.default_rng(0).random((1, 4000)) < 0.5
    a = b.copy()
    a[0, np.flatnonzero(~b[0])[:50]] = True
    interval = paired_bootstrap([a], [b])
    paired = 1.96 * float((a.astype(int) - b).std()) / math.sqrt(4000)
    assert interval.high - interval.low == pytest.approx(2 * paired, rel=0.1)
    assert not interval.undecided


def test_seeds_are_resampled() -> None:
    """One of three seeds is 1 better on every image, so the resamples are Binomial(3, 1/3) / 3, whose percentiles are 0 and 1."""
    a, b = np.zeros((3, 10), dtype=bool), np.zeros((1, 10), dtype=bool)
    a[1] = True
    assert paired_bootstrap([a], [b]) == Interval(mean=pytest.approx(1 / 3), low=0.0, high=1.0)


def test_same_seeds_are_drawn_for_all_sets() -> None:
    first, second, none = np.array([[True] * 5, [False] * 5]), np.array([[False] * 9, [True] * 9]), np.zeros((1, 5), dtype=bool)
    assert paired_bootstrap([first, second], [none, np.zeros((1, 9), dtype=bool)]) == Interval(0.5, 0.5, 0.5)


def test_sets_count_alike_whatever_their_size() -> None:
    a, b = [np.ones((1, 10), dtype=bool), np.ones((1, 1000), dtype=bool)], [np.zeros((1, 10), dtype=bool), np.ones((1, 1000), dtype=bool)]
    assert paired_bootstrap(a, b) == Interval(0.5, 0.5, 0.5)


def test_single_row_stands_for_every_seed() -> None:
    rng = np.random.default_rng(0)
    a, b = answers(rng, 5, 80, 0.7), answers(rng, 1, 80, 0.6)
    assert paired_bootstrap([a], [b]) == paired_bootstrap([a], [b.repeat(5, axis=0)])
    assert paired_bootstrap([b], [a]) == paired_bootstrap([b.repeat(5, axis=0)], [a])


def test_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(0)
    a, b = [answers(rng, 3, 80, 0.7)], [answers(rng, 3, 80, 0.6)]
    assert paired_bootstrap(a, b, seed=3) == paired_bootstrap(a, b, seed=3)
    assert paired_bootstrap(a, b, seed=3) != paired_bootstrap(a, b, seed=4)


def coverage(num_seeds: int, num_images: int, trials: int = 300) -> float:
    """How often the interval holds the true difference of 0.1, when images differ in difficulty, seeds in skill, and answers are noisy."""
    rng, held = np.random.default_rng(0), 0
    for trial in range(trials):
        hard = rng.random(num_images)  # shared by both models
        skill = 0.05 * rng.standard_normal((num_seeds, 1)) if num_seeds > 1 else np.zeros((1, 1))
        noise = 0.05 * rng.standard_normal((num_seeds, num_images))
        interval = paired_bootstrap([hard + noise < 0.6 + skill], [hard + noise < np.array([[0.5]])], resamples=300, seed=trial)
        held += interval.low <= 0.1 <= interval.high
    return held / trials


def test_interval_over_images_covers_95_percent() -> None:
    assert 0.91 <= coverage(num_seeds=1, num_images=300) <= 0.98


def test_interval_over_images_and_seeds_covers_95_percent() -> None:
    assert 0.91 <= coverage(num_seeds=20, num_images=300) <= 0.99


def test_ten_sets_take_less_than_two_seconds() -> None:
    rng = np.random.default_rng(0)
    a, b = [[answers(rng, 3, 1500, 0.7) for _ in range(10)] for _ in range(2)]
    began = time.process_time()
    paired_bootstrap(a, b)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("low", "high", "undecided"), [(-0.1, 0.1, True), (0.0, 0.1, True), (-0.1, 0.0, True), (0.01, 0.1, False), (-0.2, -0.1, False)]
)
def test_interval_that_holds_zero_is_undecided(low: float, high: float, undecided: bool) -> None:
    assert Interval(mean=(low + high) / 2, low=low, high=high).undecided is undecided


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "0 and 0 sets"),
        ([(3, 5)], [(3, 5), (3, 5)], "1 and 2 sets"),
        ([(3, 5)], [(3, 6)], r"\[\[3, 5\]\] and \[\[3, 6\]\].*same images"),
        ([(3, 5)], [(2, 5)], r"\[\[3, 5\]\] and \[\[2, 5\]\].*one number of seeds or a single row"),
        ([(3, 5), (2, 5)], [(1, 5), (1, 5)], "one number of seeds or a single row"),
        ([(5,)], [(5,)], r"bool, \[S, N\].*add the axis of seeds"),
        ([(3, 0)], [(3, 0)], "not empty"),
    ],
)
def test_arrays_that_do_not_fit_are_an_error(a: list[tuple[int, ...]], b: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        paired_bootstrap([np.ones(shape, dtype=bool) for shape in a], [np.ones(shape, dtype=bool) for shape in b])


def test_bootstrap_needs_a_resample() -> None:
    one = [np.ones((1, 2), dtype=bool)]
    with pytest.raises(SettingError, match=r"resamples is 0\. It must be at least 1\. Use 2000"):
        paired_bootstrap(one, one, resamples=0)
