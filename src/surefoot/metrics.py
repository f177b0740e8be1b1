"""Accuracies, the choice of alpha, and intervals: which images were right in, numbers out.

Accuracies are fractions in 0..1. An array `correct` says, image by image, whether the model was right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surefoot.errors import SettingError

Correct = NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """A difference and its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def undecided(self) -> bool:
        """Whether the interval holds 0, so that nothing can be claimed."""
        return self.low <= 0 <= self.high


def accuracy(correct: Correct) -> float:
    """Top-1 accuracy.

    Args:
        correct: [N], bool.

    Returns:
        Fraction in 0..1.

    Raises:
        SettingError: `correct` is not a one-dimensional array of bool with at least one image.

    Relations:
        `mean_per_class` weighs classes alike; this one weighs images alike.

    Examples:
        >>> accuracy(np.array([True, True, True, False]))
        0.75
    """
    return float(_checked(correct, "[N]").mean())


def mean_per_class(correct: Correct, label: NDArray[np.integer]) -> float:
    """Mean over classes of the accuracy within each class.

    A frequent class cannot hide the others; the usual score where classes are unbalanced (pets, flowers, aircraft).

    With the class C_k = the images whose `label` is k, and K the number of classes that occur::

        1/K sum_k 1/|C_k| sum_(i in C_k) correct_i

    Args:
        correct: [N], bool.
        label: [N], class ids.

    Returns:
        Fraction in 0..1. Classes without an image are left out.

    Raises:
        SettingError: `correct` is not a one-dimensional array of bool with at least one image, or `label` has another shape.

    Relations:
        Equal to `accuracy` when all classes have the same number of images.

    Examples:
        >>> correct, label = np.array([True, True, True, False]), np.array([7, 7, 7, 9])
        >>> mean_per_class(correct, label)
        0.5

    References:
        Radford et al. Learning transferable visual models from natural language supervision. ICML 2021, appendix A.
    """
    _checked(correct, "[N]")
    if label.shape != correct.shape:
        raise SettingError(
            f"mean_per_class was given {list(correct.shape)} answers and {list(label.shape)} labels. "
            "They must have the same length. Pass the label of every image, in the same order."
        )
    _, class_of = np.unique(label, return_inverse=True)
    return float((np.bincount(class_of, weights=correct) / np.bincount(class_of)).mean())


def standard_error(accuracy: float, num_images: int) -> float:
    """Binomial standard error of an accuracy.

    How far the accuracy would move if other images of the same kind had been drawn.

    With p = `accuracy` and N = `num_images`::

        sqrt(p (1 - p) / N)

    Args:
        accuracy: fraction in 0..1.
        num_images: number of images it was measured on, at least 1.

    Returns:
        Standard error, as a fraction.

    Raises:
        SettingError: a value is out of its range.

    Relations:
        For the difference of two models on the same images use `paired_bootstrap`, which is much narrower.

    Examples:
        >>> standard_error(0.5, 100)
        0.05
    """
    if not (0 <= accuracy <= 1 and num_images >= 1):
        raise SettingError(
            f"standard_error was given accuracy {accuracy} of {num_images} images. "
            "The accuracy must be in 0..1 and the number at least 1. Divide a percentage by 100."
        )
    return math.sqrt(accuracy * (1 - accuracy) / num_images)


def one_standard_error(alphas: Sequence[float], accuracies: Sequence[float], num_images: int) -> tuple[float, float]:
    """Choose alpha on ID validation: the smallest whose accuracy is within one standard error of the best.

    The argmax over a small validation set is noise. Among alphas that the validation set cannot tell apart, the smallest stays nearest
    to the zero-shot model.

    With acc = `accuracies` and N = `num_images`::

        chosen = min { alpha : acc(alpha) >= best - sqrt(best (1 - best) / N) },   best = max acc

    Args:
        alphas: weights of the fine-tuned model, in any order.
        accuracies: ID validation accuracy at each of them, fractions in 0..1.
        num_images: number of ID validation images, N.

    Returns:
        (chosen, argmax). The argmax is shown beside the choice; of several best ones it is the smallest.

    Raises:
        SettingError: no alpha, not one accuracy per alpha, or an accuracy outside 0..1.

    Relations:
        The standard error shrinks with N, so with very many images the choice is the argmax.

    Examples:
        >>> one_standard_error([0.0, 0.25, 0.5, 0.75, 1.0], [0.60, 0.79, 0.80, 0.81, 0.78], num_images=400)
        (0.5, 0.75)

    References:
        Hastie, Tibshirani, Friedman. The elements of statistical learning. 2nd edition, 2009, section 7.10.1 (the rule).
    """
    if not len(alphas) or len(alphas) != len(accuracies) or not all(0 <= value <= 1 for value in accuracies):
        raise SettingError(
            f"one_standard_error was given {len(alphas)} alphas and the accuracies {list(accuracies)}. "
            "There must be one accuracy in 0..1 for every alpha. Evaluate every alpha on ID validation."
        )
    best = max(accuracies)
    floor = best - standard_error(best, num_images)
    curve = sorted(zip(alphas, accuracies, strict=True))
    chosen = next(alpha for alpha, value in curve if value >= floor)
    argmax = next(alpha for alpha, value in curve if value == best)
    return chosen, argmax


def paired_bootstrap(a: Sequence[Correct], b: Sequence[Correct], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """How much more accurate `a` is than `b`, with a 95% interval over seeds and images.

    Two models err on the same hard images, so their difference is far less noisy than either accuracy. Every resample therefore takes
    the same seeds and the same images from both.

    With d[m, s, i] = a[m, s, i] - b[m, s, i] for evaluation set m of M, seed s of S and image i of N_m::

        mean = 1/M sum_m 1/(S N_m) sum_s sum_i d[m, s, i]

    A resample draws S seeds with replacement, once for all sets, and N_m images of each set with replacement, once for all seeds. Low
    and high are the 2.5th and the 97.5th percentile of the resamples' means.

    Args:
        a: one bool array [S, N_m] per evaluation set; several sets give the mean over them ("avg_shifts"). Row s is the run with seed s.
        b: the same, with the same images in the same order. A model without seeds, such as the zero-shot one, has one row [1, N_m].
        resamples: number of resamples.
        seed: of the random generator.

    Returns:
        Interval of the difference, in fractions.

    Raises:
        SettingError: not one array per set in both, arrays that are not bool [S, N], other numbers of images or seeds, no resamples.

    Relations:
        a against a gives exactly 0. With S = 1 only images vary: the percentile form of 1.96 standard errors of d, which says nothing
        about other seeds.

    Differences:
        Resampling both factors counts noise that belongs to one seed on one image about three times (Owen), so the interval is too
        wide where such noise dominates. It is too narrow where a few seeds dominate: with S = 3 it then runs from the worst seed to the
        best, which holds the true difference three times in four.

    Examples:
        >>> tuned = [np.array([[True] * 90 + [False] * 10, [True] * 88 + [False] * 12])]
        >>> zero_shot = [np.array([[True] * 60 + [False] * 40])]
        >>> interval = paired_bootstrap(tuned, zero_shot)
        >>> round(interval.mean, 4), interval.undecided
        (0.29, False)
        >>> paired_bootstrap(tuned, tuned)
        Interval(mean=0.0, low=0.0, high=0.0)

    References:
        Owen. The pigeonhole bootstrap. Annals of Applied Statistics, 2007 (two crossed factors).
        Efron, Tibshirani. An introduction to the bootstrap. 1993, chapter 13 (percentile intervals).
    """
    if resamples < 1:
        raise SettingError(f"resamples is {resamples}. It must be at least 1. Use 2000.")
    differences = _differences(a, b)
    num_seeds = len(differences[0])
    rng = np.random.default_rng(seed)
    drawn_seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=resamples) / num_seeds  # [R, S]
    means = np.mean([(drawn_seeds * _resampled_images(d, resamples, rng)).sum(axis=1) for d in differences], axis=0)  # [R]
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean=float(np.mean([d.mean() for d in differences])), low=float(low), high=float(high))


def _differences(a: Sequence[Correct], b: Sequence[Correct]) -> list[NDArray[np.int8]]:
    """a - b for every set, [S, N_m] of -1, 0 and 1, with single rows repeated to the common number of seeds."""
    if not len(a) or len(a) != len(b):
        raise SettingError(
            f"paired_bootstrap was given {len(a)} and {len(b)} sets. Both need the same sets, at least one. Pass lists of arrays."
        )
    rows = {len(_checked(array, "[S, N]")) for array in (*a, *b)}
    num_images = [[array.shape[1] for array in arrays] for arrays in (a, b)]
    if len(rows - {1}) > 1 or num_images[0] != num_images[1]:
        raise SettingError(
            f"paired_bootstrap was given {[list(array.shape) for array in a]} and {[list(array.shape) for array in b]}. "
            "Both need the same images, and one number of seeds or a single row. Evaluate both on the same images with the same seeds."
        )
    return [np.broadcast_to(x.astype(np.int8) - y.astype(np.int8), (max(rows), x.shape[1])) for x, y in zip(a, b, strict=True)]


def _resampled_images(difference: NDArray[np.int8], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Mean difference of every seed over resampled images, [R, S].

    Images whose column of [S, N] is the same cannot be told apart, so it is enough to draw how often each distinct column comes.
    """
    num_images = difference.shape[1]
    column, count = np.unique(difference, axis=1, return_counts=True)
    drawn = rng.multinomial(num_images, count / num_images, size=resamples)  # [R, distinct columns]
    mean: NDArray[np.float64] = drawn @ column.T.astype(np.float64) / num_images
    return mean


def _checked(correct: Correct, shape: str) -> Correct:
    """`correct` itself, if it is bool, of the shape that is written as "[N]" or "[S, N]", and not empty."""
    if correct.dtype != np.bool_ or correct.ndim != shape.count(",") + 1 or not correct.size:
        raise SettingError(
            f"Which images were right was given as {correct.dtype} {list(correct.shape)}. "
            f"It must be a numpy array of bool, {shape}, and not empty. "
            "Compare predictions with labels; add the axis of seeds with correct[None], or take it off with correct[0]."
        )
    return correct
