"""Whether a model's confidence says how often it is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surefoot.errors import SettingError
from surefoot.metrics.answered import Correct, checked


@dataclass(frozen=True)
class Bin:
    """The images with a confidence in (low, high]: how many, their mean confidence, and their accuracy."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(confidence: NDArray[np.floating], correct: Correct, num_bins: int = 15) -> list[Bin]:
    """How often the model is right when it says that it is right with probability p: the bins of a reliability diagram.

    Args:
        confidence: [N], the probability of the answer, in 0..1.
        correct: [N], bool.
        num_bins: M; bin m holds the confidences in ((m - 1)/M, m/M], the first one 0 too. 15 in the paper.

    Returns:
        The bins that hold an image, by confidence.

    Raises:
        SettingError: arrays that do not fit together, a confidence outside 0..1, or no bins.

    Examples:
        >>> reliability(np.array([0.75, 0.75, 0.25]), np.array([True, False, False]), num_bins=2)  # doctest: +NORMALIZE_WHITESPACE
        [Bin(low=0.0, high=0.5, count=1, confidence=0.25, accuracy=0.0),
         Bin(low=0.5, high=1.0, count=2, confidence=0.75, accuracy=0.5)]

    References:
        Guo, Pleiss, Sun, Weinberger. On calibration of modern neural networks. ICML 2017, section 2.
    """
    checked(correct, "[N]")
    if confidence.shape != correct.shape or num_bins < 1 or not ((confidence >= 0) & (confidence <= 1)).all():
        raise SettingError(
            f"reliability was given {list(confidence.shape)} confidences, {list(correct.shape)} answers and {num_bins} bins. "
            "There must be one confidence in 0..1 for every answer, and at least one bin. Pass the probability of each answer, and 15."
        )
    edges = np.linspace(0, 1, num_bins + 1)
    bin_of = np.maximum(np.searchsorted(edges, confidence.astype(np.float64), side="left") - 1, 0)
    bins = []
    for m in np.unique(bin_of):
        own = bin_of == m
        stated, right = float(confidence[own].mean(dtype=np.float64)), float(correct[own].mean())
        bins.append(Bin(float(edges[m]), float(edges[m + 1]), int(own.sum()), stated, right))
    return bins


def expected_calibration_error(confidence: NDArray[np.floating], correct: Correct, num_bins: int = 15) -> float:
    """Expected calibration error (ECE): how far the confidence is from the accuracy, on average over the images.

    With B_m the images of bin m of `reliability`, whose arguments and errors these are, and N all::

        ECE = sum_m |B_m| / N  | acc(B_m) - conf(B_m) |

    Returns:
        Fraction in 0..1; with one bin |accuracy - mean confidence|.

    Examples:
        >>> expected_calibration_error(np.array([0.75, 0.75, 0.25]), np.array([True, False, False]), num_bins=2)
        0.25

    References:
        Guo, Pleiss, Sun, Weinberger. On calibration of modern neural networks. ICML 2017, eq. 3.
    """
    bins = reliability(confidence, correct, num_bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / len(correct)


def overconfidence(confidence: NDArray[np.floating], correct: Correct) -> float:
    """By how much a model is surer than it is right: its mean confidence minus its accuracy; below 0 it is not sure enough.

    Args:
        confidence: [N], the probability of the answer, in 0..1.
        correct: [N], bool.

    Returns:
        In -1..1. Its size is the ECE of a single bin, and no larger than that of any number of bins.

    Raises:
        SettingError: as `reliability`.

    Examples:
        >>> overconfidence(np.array([0.75, 0.75]), np.array([True, False]))
        0.25
    """
    (only,) = reliability(confidence, correct, num_bins=1)
    return only.confidence - only.accuracy
