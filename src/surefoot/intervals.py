"""Differences of two models with 95% intervals over seeds and images, by a bootstrap that takes the same of both from both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surefoot.errors import SettingError
from surefoot.metrics import Correct, Ids, checked

Answered = tuple[Ids, Ids]  # prediction and label of one evaluation set: [S, N] and [N] for all seeds, [N] and [N] for one
Statistic = Callable[[list[Answered]], float]


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
        about other seeds. `paired_bootstrap_of` does the same for a score that is no mean over images.

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


def paired_bootstrap_of(
    statistic: Statistic, a: Sequence[Answered], b: Sequence[Answered], *, resamples: int = 300, seed: int = 0
) -> Interval:
    """How much higher `a` scores than `b` by any statistic of the answers, with a 95% interval over seeds and images.

    For scores that are no mean over images, such as macro F1, the mean per class, or the harmonic mean of two sets.

    With F = `statistic`, and the seeds s of S::

        mean = 1/S sum_s F(a[1][s], ..., a[M][s]) - F(b[1][s], ..., b[M][s])

    A resample draws S seeds with replacement, and N_m images of each set m with replacement, once for all seeds and both models. Low and
    high are the 2.5th and the 97.5th percentile of the resamples' means.

    Args:
        statistic: takes the (prediction [N_m], label [N_m]) of every set, of one seed, and gives a number.
        a: (prediction [S, N_m], label [N_m]) of every set, class ids. Row s is the run with seed s.
        b: the same, with the same images in the same order. A model without seeds, such as the zero-shot one, has one row [1, N_m].
        resamples: number of resamples; each costs up to 2 S calls of `statistic`.
        seed: of the random generator.

    Returns:
        Interval of the difference, in the unit of `statistic`.

    Raises:
        SettingError: not one pair per set in both, shapes that do not fit, other labels or numbers of seeds, no resamples.

    Relations:
        `paired_bootstrap`, which is much faster, when `statistic` is the mean over sets of the accuracy. a against a gives exactly 0.

    Differences:
        Where classes have few images a resample may miss some, and a statistic over classes is then one over those that are left; its
        interval may lie off the middle.

    Examples:
        >>> from surefoot.metrics import macro_f1
        >>> label = np.array([0, 1] * 50)
        >>> tuned, zero_shot = label[None].copy(), np.zeros((1, 100), dtype=int)
        >>> tuned[0, :10] = 0
        >>> interval = paired_bootstrap_of(lambda sets: macro_f1(*sets[0]), [(tuned, label)], [(zero_shot, label)])
        >>> round(interval.mean, 4), interval.undecided
        (0.6165, False)

    References:
        As `paired_bootstrap`.
    """
    num_seeds = _check_answered(a, b, resamples)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        weight = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds)) / num_seeds  # [S]
        image = [rng.integers(len(label), size=len(label)) for _, label in a]
        drawn = [[(prediction[:, i], label[i]) for (prediction, label), i in zip(one, image, strict=True)] for one in (a, b)]
        means.append(_difference(statistic, drawn[0], drawn[1], weight))
    low, high = np.quantile(means, [0.025, 0.975])
    mean = _difference(statistic, a, b, np.full(num_seeds, 1 / num_seeds))
    return Interval(mean=mean, low=float(low), high=float(high))


def _differences(a: Sequence[Correct], b: Sequence[Correct]) -> list[NDArray[np.int8]]:
    """a - b for every set, [S, N_m] of -1, 0 and 1, with single rows repeated to the common number of seeds."""
    if not len(a) or len(a) != len(b):
        raise SettingError(
            f"paired_bootstrap was given {len(a)} and {len(b)} sets. Both need the same sets, at least one. Pass lists of arrays."
        )
    rows = {len(checked(array, "[S, N]")) for array in (*a, *b)}
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


def _difference(statistic: Statistic, a: Sequence[Answered], b: Sequence[Answered], weight: NDArray[np.float64]) -> float:
    """Mean of F(a) - F(b) over seeds that count `weight` [S]; taken seed by seed, so that equal models differ by exactly 0."""
    drawn = np.flatnonzero(weight)
    of_a, of_b = (_values(statistic, sets, drawn) for sets in (a, b))
    return float(weight[drawn] @ (of_a - of_b))


def _values(statistic: Statistic, sets: Sequence[Answered], seeds: NDArray[np.intp]) -> NDArray[np.float64]:
    """The statistic of each of `seeds`; a model with a single row has one value for all of them, [1]."""
    rows = max(len(prediction) for prediction, _ in sets)
    chosen = seeds if rows > 1 else [0]
    return np.array([statistic([(prediction[min(s, len(prediction) - 1)], label) for prediction, label in sets]) for s in chosen])


def _check_answered(a: Sequence[Answered], b: Sequence[Answered], resamples: int) -> int:
    """The common number of seeds, if everything fits together."""
    if resamples < 1:
        raise SettingError(f"resamples is {resamples}. It must be at least 1. Use 300.")
    if not len(a) or len(a) != len(b):
        raise SettingError(
            f"paired_bootstrap_of was given {len(a)} and {len(b)} sets. Both need the same sets, at least one. Pass lists of pairs."
        )
    fit = all(prediction.ndim == 2 and prediction.size and prediction.shape[1:] == label.shape for prediction, label in (*a, *b))
    rows = {len(prediction) for prediction, _ in (*a, *b)} if fit else set()
    if not fit or len(rows - {1}) > 1:
        shapes = [[(list(prediction.shape), list(label.shape)) for prediction, label in one] for one in (a, b)]
        raise SettingError(
            f"paired_bootstrap_of was given predictions and labels of shapes {shapes[0]} and {shapes[1]}. "
            "They must be [S, N] and [N], not empty, with one number of seeds or a single row. "
            "Evaluate both with the same seeds, and add the axis of seeds with prediction[None]."
        )
    if not all(np.array_equal(of_a, of_b) for (_, of_a), (_, of_b) in zip(a, b, strict=True)):
        raise SettingError(
            "paired_bootstrap_of was given other labels for a than for b. Both need the same images in the same order. "
            "Evaluate both on the same data."
        )
    return max(rows)
