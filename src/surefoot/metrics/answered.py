"""What a model answered in, numbers out: accuracies, F1, confusions, and the choice of alpha.

Accuracies and confidences are fractions in 0..1. `correct` says, image by image, whether the model was right; `prediction` and `label`
hold class ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from surefoot.errors import SettingError, unknown_name

Correct = NDArray[np.bool_]
Ids = NDArray[np.integer]
By = Literal["accuracy", "mean_per_class", "macro_f1"]


@dataclass(frozen=True)
class Score:
    """A score in 0..1 and its standard error."""

    value: float
    error: float


class Confusion(NamedTuple):
    """`num_images` of class `label` were taken for `prediction`; they are a `share` of that class's images."""

    label: int
    prediction: int
    num_images: int
    share: float


def accuracy(correct: Correct) -> float:
    """Top-1 accuracy: the fraction of True in `correct` [N].

    Raises:
        SettingError: `correct` is not a one-dimensional array of bool with at least one image.

    Relations:
        `mean_per_class` weighs classes alike; this one weighs images alike.

    Examples:
        >>> accuracy(np.array([True, True, True, False]))
        0.75
    """
    return float(checked(correct, "[N]").mean())


def mean_per_class(correct: Correct, label: Ids) -> float:
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
        Equal to `accuracy` when all classes have the same number of images. `macro_f1` also counts what was wrongly put into a class.

    Examples:
        >>> correct, label = np.array([True, True, True, False]), np.array([7, 7, 7, 9])
        >>> mean_per_class(correct, label)
        0.5

    References:
        Radford et al. Learning transferable visual models from natural language supervision. ICML 2021, appendix A.
    """
    checked(correct, "[N]")
    if label.shape != correct.shape:
        raise SettingError(
            f"mean_per_class was given {list(correct.shape)} answers and {list(label.shape)} labels. "
            "They must have the same length. Pass the label of every image, in the same order."
        )
    share, _ = _per_class(correct, label)
    return float(share.mean())


def worst_group(correct: Correct, group: Ids) -> float:
    """Accuracy in the group of images where it is lowest, which is what FMoW is measured by (groups are regions there).

    Args:
        correct: [N], bool.
        group: [N], a number for the group of each image; groups without an image do not count.

    Raises:
        SettingError: `correct` is not a one-dimensional array of bool with at least one image, or `group` not as many integers.

    Relations:
        With one group it is `accuracy`; with the labels as groups, the accuracy of the worst class.

    Examples:
        >>> worst_group(np.array([True, True, True, False]), np.array([0, 0, 1, 1]))
        0.5

    References:
        Koh et al., WILDS: a benchmark of in-the-wild distribution shifts, ICML 2021, section 4 (FMoW).
    """
    _check_answers(group, checked(correct, "[N]").astype(np.int8))
    return float(_per_class(correct, group)[0].min())


def macro_f1(prediction: Ids, label: Ids) -> float:
    """Mean over classes of F1, the harmonic mean of precision and recall.

    With n_k images of class k, m_k answers k, t_k of them right, and K the number of classes that occur in `label`::

        1/K sum_k 2 t_k / (n_k + m_k)

    Args:
        prediction: [N], class ids; a class that no label has counts as a wrong answer.
        label: [N], class ids.

    Returns:
        Fraction in 0..1. A class with images that is never answered has F1 0. Classes without images are left out, as in
        `mean_per_class`: their F1 could only be 0, so one stray answer would weigh as much as all images of another class, and K would
        depend on the model. The stray answer still counts against the class whose image it missed.

    Raises:
        SettingError: the two are not integers of one shape [N] with at least one image.

    Relations:
        `mean_per_class` is the mean of the recalls t_k / n_k.

    Differences:
        scikit-learn's default also takes the mean over classes that occur in `prediction` only. WILDS, whose iWildCam is scored by this
        number, passes the classes of the labels, as here.

    Examples:
        >>> macro_f1(np.array([0, 0, 1, 7]), np.array([0, 0, 0, 1]))  # class 0: 4/5, class 1: 0
        0.4

    References:
        Koh, Sagawa et al. WILDS: A benchmark of in-the-wild distribution shifts. ICML 2021 (iWildCam2020-wilds).
    """
    _check_answers(prediction, label)
    return _macro_f1(prediction, label, np.ones(len(label)))


def harmonic_mean(a: float, b: float) -> float:
    """Harmonic mean of two accuracies, as on seen and on unseen classes: 2 a b / (a + b), high only if both are; 0 when both are 0.

    Raises:
        SettingError: a value is negative or not a number.

    Examples:
        >>> round(harmonic_mean(0.8, 0.4), 4), harmonic_mean(0.8, 0.0), harmonic_mean(0.0, 0.0)
        (0.5333, 0.0, 0.0)
    """
    if not (a >= 0 and b >= 0):
        raise SettingError(f"harmonic_mean was given {a} and {b}. Both must be at least 0. Pass two accuracies.")
    return 2 * a * b / (a + b) if a + b else 0.0


def confusions(prediction: Ids, label: Ids, most: int = 10) -> list[Confusion]:
    """The pairs of classes that are confused most often, at most `most`.

    Args:
        prediction: [N], class ids.
        label: [N], class ids.

    Returns:
        (label, prediction, number of images, share of the label's images), most images first, then by label and prediction.

    Raises:
        SettingError: the arrays are not integers of one shape [N] with at least one image.

    Examples:
        >>> confusions(np.array([1, 1, 0, 0, 1]), np.array([0, 0, 0, 0, 2]))
        [Confusion(label=0, prediction=1, num_images=2, share=0.5), Confusion(label=2, prediction=1, num_images=1, share=1.0)]
    """
    _check_answers(prediction, label)
    wrong = prediction != label
    pairs, counts = np.unique(np.stack([label[wrong], prediction[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [
        Confusion(int(y), int(p), int(n), float(n / np.sum(label == y))) for (y, p), n in zip(pairs.T[order], counts[order], strict=True)
    ]


def score(prediction: Ids, label: Ids, by: By) -> Score:
    """One of the scores that a choice may go by, with its standard error: how far it would move with other images of the same kind.

    With p_k the accuracy within class k, n_k its images and K the classes that occur, the error is

        accuracy         sqrt(p (1 - p) / N)
        mean_per_class   sqrt(sum_k p_k (1 - p_k) / n_k) / K
        macro_f1         standard deviation over 200 resamples of the images, drawn with a fixed seed

    Args:
        prediction: [N], class ids.
        label: [N], class ids.
        by: "accuracy", "mean_per_class" or "macro_f1".

    Returns:
        Value and error, fractions.

    Raises:
        SettingError: the arrays are not integers of one shape [N] with at least one image.
        UnknownNameError: another `by`.

    Relations:
        `one_standard_error` chooses with it. A class with one image adds nothing to the error of `mean_per_class`: with very few images
        per class all three errors are too small.

    Examples:
        >>> prediction, label = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
        >>> score(prediction, label, "accuracy")
        Score(value=0.75, error=0.21650635094610965)
    """
    if by not in get_args(By):
        raise unknown_name("score", by, get_args(By))
    _check_answers(prediction, label)
    correct = prediction == label
    if by == "accuracy":
        return Score(accuracy(correct), standard_error(accuracy(correct), len(label)))
    if by == "mean_per_class":
        share, count = _per_class(correct, label)
        return Score(float(share.mean()), math.sqrt((share * (1 - share) / count).sum()) / len(share))
    return Score(macro_f1(prediction, label), _error_of_macro_f1(prediction, label))


def standard_error(accuracy: float, num_images: int) -> float:
    """Binomial standard error of an accuracy.

    How far it would move if other images of the same kind had been drawn. With p = `accuracy` and N = `num_images`::

        sqrt(p (1 - p) / N)

    Raises:
        SettingError: `accuracy` is outside 0..1, or `num_images` below 1.

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


def one_standard_error(alphas: Sequence[float], values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Choose alpha on ID validation: the smallest whose score is within one standard error of the best.

    The argmax over a small validation set is noise. Among alphas that the validation set cannot tell apart, the smallest stays nearest
    to the zero-shot model.

    With v = `values` and e = `errors`::

        chosen = min { alpha : v(alpha) >= v(best) - e(best) },   best = argmax v

    Args:
        alphas: weights of the fine-tuned model, in any order.
        values: ID validation score at each of them, fractions in 0..1.
        errors: standard error of each value, as from `score`.

    Returns:
        (chosen, argmax). The argmax is shown beside the choice; of several best ones it is the smallest.

    Raises:
        SettingError: no alpha, not one value and one error per alpha, a value outside 0..1, or an error that is negative or no number.

    Relations:
        Standard errors shrink with the number of images, so with very many of them the choice is the argmax.

    Examples:
        >>> one_standard_error([0.0, 0.25, 0.5, 0.75, 1.0], [0.60, 0.79, 0.80, 0.81, 0.78], errors=[0.0196] * 5)
        (0.5, 0.75)

    References:
        Hastie, Tibshirani, Friedman. The elements of statistical learning. 2nd edition, 2009, section 7.10.1 (the rule).
    """
    fits = len(alphas) == len(values) == len(errors) > 0
    if not fits or not all(0 <= value <= 1 for value in values) or not all(0 <= error < math.inf for error in errors):
        raise SettingError(
            f"one_standard_error was given {len(alphas)} alphas, the values {list(values)} and the errors {list(errors)}. "
            "There must be one value in 0..1 and one error of at least 0 for every alpha. Evaluate every alpha on ID validation."
        )
    curve = sorted(zip(alphas, values, errors, strict=True))
    argmax, best, error = max(curve, key=lambda point: point[1])  # the first of equals
    return next(alpha for alpha, value, _ in curve if value >= best - error), argmax


def checked(correct: Correct, shape: str) -> Correct:
    """`correct` itself, if it is bool, of the shape that is written as "[N]" or "[S, N]", and not empty.

    Raises:
        SettingError: it is not.
    """
    if correct.dtype != np.bool_ or correct.ndim != shape.count(",") + 1 or not correct.size:
        raise SettingError(
            f"Which images were right was given as {correct.dtype} {list(correct.shape)}. "
            f"It must be a numpy array of bool, {shape}, and not empty. "
            "Compare predictions with labels; add the axis of seeds with correct[None], or take it off with correct[0]."
        )
    return correct


def _check_answers(prediction: Ids, label: Ids) -> None:
    integers = np.issubdtype(prediction.dtype, np.integer) and np.issubdtype(label.dtype, np.integer)
    if not integers or prediction.ndim != 1 or prediction.shape != label.shape or not label.size:
        raise SettingError(
            f"Predictions were given as {prediction.dtype} {list(prediction.shape)} and labels as {label.dtype} {list(label.shape)}. "
            "Both must be class ids, [N] integers, one of each for every image, and not empty. Take the argmax of the logits."
        )


def _per_class(correct: Correct, label: Ids) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Accuracy within, and number of images of, every class that occurs: two arrays [K]."""
    _, class_of, count = np.unique(label, return_inverse=True, return_counts=True)
    return np.bincount(class_of, weights=correct) / count, count


def _macro_f1(prediction: Ids, label: Ids, weight: NDArray[np.floating]) -> float:
    """`macro_f1` of images that come `weight` [N] times; classes whose images never come are left out."""
    ids, position = np.unique(np.concatenate([label, prediction]), return_inverse=True)
    truth, answer = position[: len(label)], position[len(label) :]
    images, answers = (np.bincount(one, weights=weight, minlength=len(ids)) for one in (truth, answer))
    right = np.bincount(truth, weights=weight * (truth == answer), minlength=len(ids))
    occurs = images > 0
    return float((2 * right[occurs] / (images + answers)[occurs]).mean())


def _error_of_macro_f1(prediction: Ids, label: Ids, resamples: int = 200) -> float:
    """Images with the same label and answer cannot be told apart, so it is enough to draw how often each distinct pair comes."""
    pairs, count = np.unique(np.stack([prediction, label]), axis=1, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(label), count / len(label), size=resamples)
    return float(np.std([_macro_f1(pairs[0], pairs[1], weight.astype(np.float64)) for weight in drawn]))
