"""The bootstraps against loops, exact cases and each other, and the coverage of the interval."""

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest

from surefoot.errors import SettingError
from surefoot.intervals import Answered, Interval, paired_bootstrap, paired_bootstrap_of
from surefoot.metrics import Correct, Ids, accuracy, harmonic_mean, macro_f1


def answers(rng: np.random.Generator, num_seeds: int, num_images: int, rate: float) -> Correct:
    return rng.random((num_seeds, num_images)) < rate


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


def pairs(rng: np.random.Generator, num_seeds: int, label: Ids, rate: float) -> Answered:
    """Answers that are right with probability `rate`, and any class otherwise."""
    right = rng.random((num_seeds, len(label))) < rate
    return np.where(right, label, rng.integers(label.max() + 1, size=right.shape)), label


def mean_accuracy(sets: list[Answered]) -> float:
    return float(np.mean([accuracy(prediction == label) for prediction, label in sets]))


@pytest.mark.parametrize("rows_of_b", [1, 3])
def test_bootstrap_of_accuracy_agrees_with_the_fast_one(rows_of_b: int) -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(4, size=size) for size in (60, 150)]
    a, b = ([pairs(rng, rows, label, rate) for label in labels] for rows, rate in ((3, 0.7), (rows_of_b, 0.5)))
    a[0][0][2], a[1][0][2] = labels[0], labels[1]  # one seed is far better, so that seeds matter
    slow = paired_bootstrap_of(mean_accuracy, a, b, resamples=2000)
    fast = paired_bootstrap(*([p == y for p, y in sets] for sets in (a, b)), resamples=20000)
    width = fast.high - fast.low
    assert slow.mean == pytest.approx(fast.mean, abs=1e-12)
    assert slow.low == pytest.approx(fast.low, abs=0.06 * width)
    assert slow.high == pytest.approx(fast.high, abs=0.06 * width)


def test_bootstrap_of_takes_the_same_images_from_both() -> None:
    """A model that is right where the other is not, on few images: paired, the interval is narrow."""
    label = np.zeros(2000, dtype=int)
    b = (np.random.default_rng(0).random((1, 2000)) < 0.5).astype(int)
    a = b.copy()
    a[0, np.flatnonzero(b[0])[:25]] = 0
    interval = paired_bootstrap_of(mean_accuracy, [(a, label)], [(b, label)])
    paired = 2 * 1.96 * float((a - b).std()) / math.sqrt(2000)
    assert interval.high - interval.low == pytest.approx(paired, rel=0.2)


def test_bootstrap_of_takes_the_same_seeds_for_all_sets_and_both_models() -> None:
    """A statistic that is one only if both sets come from the same run, and a model that beats the other in its own run by 1."""
    sets = [(np.array([[0] * 5, [1] * 5]), np.zeros(5, dtype=int)), (np.array([[0] * 9, [1] * 9]), np.zeros(9, dtype=int))]
    higher = [(prediction + 1, label) for prediction, label in sets]
    zero = [(np.zeros_like(prediction), label) for prediction, label in sets]
    same_run = paired_bootstrap_of(lambda s: float(s[0][0][0] == s[1][0][0]) + s[0][0].mean(), higher, sets)
    assert same_run == Interval(1.0, 1.0, 1.0)
    assert paired_bootstrap_of(lambda s: float(s[0][0][0] != s[1][0][0]), sets, zero) == Interval(0.0, 0.0, 0.0)


def test_bootstrap_of_resamples_seeds() -> None:
    a, b = (np.array([[1] * 10, [0] * 10, [1] * 10]), np.zeros(10, dtype=int)), (np.ones((1, 10), dtype=int), np.zeros(10, dtype=int))
    assert paired_bootstrap_of(mean_accuracy, [a], [b]) == Interval(mean=pytest.approx(1 / 3), low=0.0, high=1.0)


def test_statistic_is_taken_within_a_seed_and_then_averaged() -> None:
    """The harmonic mean of (1, 0) and of (0, 1) is 0, though that of their mean is 1/2."""
    label = np.zeros(4, dtype=int)
    a = [(np.array([[0] * 4, [1] * 4]), label), (np.array([[1] * 4, [0] * 4]), label)]
    b = [(np.ones((1, 4), dtype=int), label)] * 2

    def harmonic(sets: list[Answered]) -> float:
        return harmonic_mean(*(accuracy(prediction == truth) for prediction, truth in sets))

    assert paired_bootstrap_of(harmonic, a, b) == Interval(0.0, 0.0, 0.0)


def test_bootstrap_of_macro_f1_has_its_difference_in_the_middle() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(5, size=400)
    a, b = pairs(rng, 2, label, 0.9), pairs(rng, 1, label, 0.5)
    interval = paired_bootstrap_of(lambda sets: macro_f1(*sets[0]), [a], [b])
    expected = np.mean([macro_f1(row, label) for row in a[0]]) - macro_f1(b[0][0], label)
    assert interval.mean == pytest.approx(expected)
    assert interval.low < interval.mean < interval.high < interval.low + 0.2
    assert not interval.undecided


def test_bootstrap_of_identical_models_is_exactly_zero_and_repeats() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(3, size=50)
    a, b = pairs(rng, 3, label, 0.8), pairs(rng, 3, label, 0.5)
    assert paired_bootstrap_of(mean_accuracy, [a], [a], resamples=20) == Interval(0.0, 0.0, 0.0)
    same = (a[0][:1].repeat(3, axis=0), label)
    assert paired_bootstrap_of(mean_accuracy, [same], [(a[0][:1], label)], resamples=20) == Interval(0.0, 0.0, 0.0)
    one, again, other = (paired_bootstrap_of(mean_accuracy, [a], [b], resamples=20, seed=seed) for seed in (3, 3, 4))
    assert one == again != other


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "0 and 0 sets"),
        ([((3, 5), (5,))], [((3, 5), (5,))] * 2, "1 and 2 sets"),
        ([((5,), (5,))], [((5,), (5,))], r"\[S, N\] and \[N\].*prediction\[None\]"),
        ([((3, 5), (4,))], [((3, 5), (4,))], r"\(\[3, 5\], \[4\]\).*They must be"),
        ([((3, 5), (5,))], [((2, 5), (5,))], "one number of seeds or a single row"),
        ([((3, 0), (0,))], [((3, 0), (0,))], "not empty"),
        ([((3, 5), (5,))], [((3, 6), (6,))], "other labels for a than for b.*same data"),
    ],
)
def test_answers_that_do_not_fit_are_an_error(a: list[tuple], b: list[tuple], message: str) -> None:
    both = [[(np.zeros(p, dtype=int), np.zeros(y, dtype=int)) for p, y in one] for one in (a, b)]
    with pytest.raises(SettingError, match=message):
        paired_bootstrap_of(mean_accuracy, *both)


def test_bootstrap_of_needs_the_same_labels_and_a_resample() -> None:
    a, b = [(np.zeros((1, 2), dtype=int), np.array([0, 1]))], [(np.zeros((1, 2), dtype=int), np.array([1, 0]))]
    with pytest.raises(SettingError, match="other labels"):
        paired_bootstrap_of(mean_accuracy, a, b)
    with pytest.raises(SettingError, match=r"resamples is 0\. It must be at least 1\. Use 300"):
        paired_bootstrap_of(mean_accuracy, a, a, resamples=0)
