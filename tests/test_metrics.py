"""Scores against loops from their equations and closed forms, their errors against repeated draws, and the choice of alpha."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from surefoot.errors import SettingError, UnknownNameError
from surefoot.metrics import (
    Bin,
    Confusion,
    Correct,
    Ids,
    Score,
    accuracy,
    confusions,
    expected_calibration_error,
    harmonic_mean,
    macro_f1,
    mean_per_class,
    one_standard_error,
    reliability,
    score,
    standard_error,
)


def answered(seed: int, num_images: int = 200, num_classes: int = 5, rate: float = 0.6) -> tuple[Ids, Ids]:
    """Predictions and labels of unbalanced classes."""
    rng = np.random.default_rng(seed)
    label = rng.choice(num_classes, p=np.arange(1, num_classes + 1) / np.arange(1, num_classes + 1).sum(), size=num_images)
    return np.where(rng.random(num_images) < rate, label, rng.integers(num_classes, size=num_images)), label


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
    alphas, values = [0.0, 0.1, 0.2, 0.3, 0.4], [0.70, 0.87, 0.89, 0.90, 0.88]
    for error, chosen in ((0.03, 0.1), (0.005, 0.3), (0.21, 0.0), (0.0, 0.3)):
        assert one_standard_error(alphas, values, [error] * 5) == (chosen, 0.3)


def test_only_the_error_of_the_best_counts() -> None:
    alphas, values = [0.0, 0.5, 1.0], [0.80, 0.89, 0.90]
    assert one_standard_error(alphas, values, [0.5, 0.5, 0.02]) == (0.5, 1.0)
    assert one_standard_error(alphas, values, [0.0, 0.0, 0.2]) == (0.0, 1.0)


def test_order_of_alphas_does_not_matter() -> None:
    errors = [0.2, 0.0, 0.03, 0.2, 0.2]
    assert one_standard_error([0.4, 0.0, 0.3, 0.1, 0.2], [0.88, 0.70, 0.90, 0.87, 0.89], errors) == (0.1, 0.3)


def test_best_of_equal_alphas_is_the_smallest() -> None:
    assert one_standard_error([1.0, 0.5, 0.0], [1.0, 1.0, 0.9], [0.2, 0.0, 0.2]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("alphas", "values", "errors"),
    [
        ([], [], []),
        ([0.0, 1.0], [0.5], [0.1]),
        ([0.0, 1.0], [0.5, 0.5], [0.1]),
        ([0.0, 1.0], [0.5, 81.0], [0.1, 0.1]),
        ([0.0], [math.nan], [0.1]),
        ([0.0], [0.5], [math.nan]),
        ([0.0], [0.5], [-0.1]),
    ],
)
def test_curve_that_is_not_one_is_an_error(alphas: list[float], values: list[float], errors: list[float]) -> None:
    with pytest.raises(SettingError, match=r"one value in 0\.\.1 and one error of at least 0 for every alpha\. Evaluate every alpha"):
        one_standard_error(alphas, values, errors)


def loop_macro_f1(prediction: Ids, label: Ids) -> float:
    """From precision and recall, class by class."""
    each = []
    for k in sorted(set(label.tolist())):
        right = sum(1 for p, y in zip(prediction, label, strict=True) if p == y == k)
        precision = right / max(1, sum(1 for p in prediction if p == k))
        recall = right / sum(1 for y in label if y == k)
        each.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return sum(each) / len(each)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_macro_f1_is_the_mean_of_harmonic_means(seed: int) -> None:
    prediction, label = answered(seed)
    assert macro_f1(prediction, label) == pytest.approx(loop_macro_f1(prediction, label), rel=1e-12)


def test_macro_f1_counts_the_classes_of_the_labels() -> None:
    label = np.array([3, 3, 3, 3, 8, 8])
    assert macro_f1(label, label) == 1
    assert macro_f1(np.array([3, 3, 3, 5, 8, 8]), label) == pytest.approx((2 * 3 / (4 + 3) + 1) / 2)  # 5 is no class, but 3 lost an image
    assert macro_f1(np.full(6, 3), label) == pytest.approx((2 * 4 / (4 + 6) + 0) / 2)  # 8 is never answered


def test_harmonic_mean_is_below_the_mean_and_symmetric() -> None:
    assert harmonic_mean(0.9, 0.3) == harmonic_mean(0.3, 0.9) == pytest.approx(2 / (1 / 0.9 + 1 / 0.3))
    assert harmonic_mean(0.4, 0.4) == pytest.approx(0.4)
    assert (harmonic_mean(0.0, 1.0), harmonic_mean(0.0, 0.0)) == (0, 0)


@pytest.mark.parametrize(("a", "b"), [(-0.1, 0.5), (0.5, math.nan)])
def test_harmonic_mean_of_no_accuracies_is_an_error(a: float, b: float) -> None:
    with pytest.raises(SettingError, match=r"must be at least 0\. Pass two accuracies"):
        harmonic_mean(a, b)


def stated(seed: int, num_images: int = 500) -> tuple[NDArray[np.floating], Correct]:
    """Confidences, and answers that are right less often than they say."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.2, 1, size=num_images)
    return confidence, rng.random(num_images) < confidence**2


def loop_ece(confidence: NDArray[np.floating], correct: Correct, num_bins: int) -> float:
    """Guo et al., eq. 3, bin by bin."""
    total = 0.0
    for m in range(1, num_bins + 1):
        own = [i for i, c in enumerate(confidence) if (m - 1) / num_bins < c <= m / num_bins]
        if own:
            acc, conf = sum(correct[i] for i in own) / len(own), sum(confidence[i] for i in own) / len(own)
            total += len(own) / len(confidence) * abs(acc - conf)
    return total


@pytest.mark.parametrize("num_bins", [1, 2, 10, 15])
def test_calibration_error_is_equation_3(num_bins: int) -> None:
    confidence, correct = stated(0)
    assert expected_calibration_error(confidence, correct, num_bins) == pytest.approx(loop_ece(confidence, correct, num_bins), rel=1e-12)


def test_calibration_error_uses_15_bins() -> None:
    confidence, correct = stated(0)
    assert expected_calibration_error(confidence, correct) == expected_calibration_error(confidence, correct, 15)


def test_calibration_error_has_closed_forms() -> None:
    correct = np.array([True, True, True, False])
    assert expected_calibration_error(np.full(4, 0.75), correct) == 0
    assert expected_calibration_error(np.ones(4), correct) == 0.25
    assert expected_calibration_error(np.zeros(4), correct) == 0.75
    assert expected_calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), correct, 2) == pytest.approx((0.1 + 0.4) / 2)


def test_over_and_underconfidence_in_one_bin_cancel_and_in_two_do_not() -> None:
    confidence, correct = np.array([0.4, 0.6]), np.array([True, False])
    assert expected_calibration_error(confidence, correct, 1) == pytest.approx(0)
    assert expected_calibration_error(confidence, correct, 2) == pytest.approx(0.6)


def test_bins_are_closed_above() -> None:
    bins = reliability(np.array([0.0, 0.25, 0.26, 1.0], dtype=np.float32), np.array([True, False, True, True]), num_bins=4)
    assert [(b.low, b.high, b.count, b.accuracy) for b in bins] == [(0.0, 0.25, 2, 0.5), (0.25, 0.5, 1, 1.0), (0.75, 1.0, 1, 1.0)]
    assert isinstance(bins[0], Bin)
    assert bins[0].confidence == 0.125


@pytest.mark.parametrize(
    ("confidence", "num_bins"),
    [([0.5], 15), ([0.5, 1.1], 15), ([-0.1, 0.5], 15), ([math.nan, 0.5], 15), ([0.5, 0.5], 0), ([50.0, 90.0], 15)],
)
def test_confidences_that_do_not_fit_are_an_error(confidence: list[float], num_bins: int) -> None:
    with pytest.raises(SettingError, match=r"one confidence in 0\.\.1 for every answer, and at least one bin\. Pass the probability"):
        expected_calibration_error(np.array(confidence), np.array([True, False]), num_bins)


def test_confusions_are_counted_and_sorted() -> None:
    label = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    prediction = np.array([0, 1, 1, 2, 2, 0, 0, 0, 1, 2, 2])
    expected = [
        Confusion(0, 1, 2, 2 / 4),
        Confusion(2, 0, 2, 2 / 5),
        Confusion(0, 2, 1, 1 / 4),
        Confusion(1, 0, 1, 1 / 2),
        Confusion(1, 2, 1, 1 / 2),
        Confusion(2, 1, 1, 1 / 5),
    ]
    assert confusions(prediction, label) == expected
    assert confusions(prediction, label, most=2) == expected[:2]
    assert confusions(label, label) == []


def test_confusions_of_all_pairs_are_the_wrong_images() -> None:
    prediction, label = answered(0)
    found = confusions(prediction, label, most=25)
    assert sum(one.num_images for one in found) == (prediction != label).sum()
    for y, p, number, share in found:
        assert number == ((label == y) & (prediction == p)).sum()
        assert share == number / (label == y).sum()


def test_scores_are_the_metrics() -> None:
    prediction, label = answered(0)
    assert score(prediction, label, "accuracy").value == accuracy(prediction == label)
    assert score(prediction, label, "mean_per_class").value == mean_per_class(prediction == label, label)
    assert score(prediction, label, "macro_f1").value == macro_f1(prediction, label)


def test_error_of_accuracy_is_binomial() -> None:
    prediction, label = answered(0)
    assert score(prediction, label, "accuracy").error == standard_error(accuracy(prediction == label), len(label))


def test_error_of_mean_per_class_is_its_equation() -> None:
    prediction, label = np.array([0, 0, 0, 1, 1, 0, 2]), np.array([0, 0, 0, 0, 1, 1, 2])
    expected = math.sqrt(0.75 * 0.25 / 4 + 0.5 * 0.5 / 2 + 0) / 3
    assert score(prediction, label, "mean_per_class") == Score(pytest.approx((0.75 + 0.5 + 1) / 3), pytest.approx(expected))


@pytest.mark.parametrize("by", ["accuracy", "mean_per_class", "macro_f1"])
def test_error_is_the_spread_over_other_images(by: str) -> None:
    drawn = [score(*answered(seed, num_images=400), by) for seed in range(100)]
    assert np.mean([one.error for one in drawn]) == pytest.approx(np.std([one.value for one in drawn]), rel=0.25)


def test_error_of_macro_f1_repeats() -> None:
    prediction, label = answered(0)
    assert score(prediction, label, "macro_f1") == score(prediction, label, "macro_f1")
    assert score(label, label, "macro_f1") == Score(1.0, 0.0)


def test_unknown_score_names_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match=r"Unknown score 'macrof1'\. Did you mean 'macro_f1'\? Known: accuracy, macro_f1, mean_per_class"
    ):
        score(*answered(0), "macrof1")


@pytest.mark.parametrize(
    ("prediction", "label"),
    [
        (np.zeros(2, dtype=int), np.zeros(3, dtype=int)),
        (np.zeros(2), np.zeros(2, dtype=int)),
        (np.zeros((2, 2), dtype=int), np.zeros((2, 2), dtype=int)),
        (np.zeros(0, dtype=int), np.zeros(0, dtype=int)),
        (np.array([True]), np.array([True])),
    ],
)
def test_answers_must_be_class_ids(prediction: Ids, label: Ids) -> None:
    for function in (macro_f1, confusions, lambda p, y: score(p, y, "accuracy")):
        with pytest.raises(SettingError, match=r"Both must be class ids, \[N\] integers.*Take the argmax"):
            function(prediction, label)
