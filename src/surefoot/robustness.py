"""Effective robustness: accuracy under shift beyond what reference models of the same ID accuracy have. Accuracies are in 0..1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surefoot.errors import SettingError


@dataclass(frozen=True)
class Baseline:
    """The accuracy under shift that an ID accuracy lets expect: beta, a line between the two logits, fit over reference models.

    With logit(p) = log(p / (1 - p)), and sigmoid its inverse::

        beta(p) = sigmoid(`slope` logit(p) + `intercept`)

    `low` and `high` are the smallest and the largest ID accuracy of the references: outside, beta is an extrapolation. `margin` is how
    near to 0 and 1 an accuracy may come.
    """

    slope: float
    intercept: float
    low: float
    high: float
    margin: float

    @classmethod
    def fit(cls, id_accuracies: Sequence[float], ood_accuracies: Sequence[float], *, margin: float = 1e-3) -> Baseline:
        """Least squares between the logits, over models without zero-shot ability.

        Args:
            id_accuracies: [R], ID test accuracy of the reference models, of at least two different values.
            ood_accuracies: [R], their accuracy under one shift, or the mean over several.
            margin: accuracies are clipped to margin..1 - margin, as logit(0) is not finite. A model that is never right on N images may
                well be right on half an image of N; 1e-3 is that half image for N = 500. A smaller margin gives more weight to the
                points that say least: at 1e-6 the logit of 0 is twice as far out, and it alone would turn the line. Use 1/(2N) where
                the sets are large and accuracies are near the ends.

        Returns:
            The fitted line.

        Raises:
            SettingError: other numbers of ID and shifted accuracies, fewer than two different ID accuracies, a value outside 0..1, or a
                margin outside 0..0.5.

        Examples:
            >>> line = Baseline.fit([0.5, 0.8], [0.2, 0.5])
            >>> round(line.slope, 4), round(line.intercept, 4)  # log(4) / log(4), -log(4)
            (1.0, -1.3863)

        References:
            Taori, Dave, Shankar, Carlini, Recht, Schmidt. Measuring robustness to natural distribution shifts in image classification.
            NeurIPS 2020 (effective robustness; its fits are linear in logit space).
        """
        _check(id_accuracies, ood_accuracies, margin)
        x, y = ([_logit(value, margin) for value in values] for values in (id_accuracies, ood_accuracies))
        if max(x) == min(x):
            raise SettingError(
                f"All {len(x)} reference models have the ID accuracy {id_accuracies[0]}, up to the margin of {margin}. "
                "A line needs at least two different ones. Add reference models, such as the same architecture trained on less data."
            )
        centred = np.array(x) - np.mean(x)
        slope = float(centred @ np.array(y) / (centred @ centred))
        return cls(slope, float(np.mean(y) - slope * np.mean(x)), float(min(id_accuracies)), float(max(id_accuracies)), margin)

    def at(self, id_accuracy: float) -> float:
        """beta: the expected accuracy under shift at an ID accuracy.

        Raises:
            SettingError: the accuracy is outside 0..1.

        Examples:
            >>> round(Baseline.fit([0.5, 0.8], [0.2, 0.5]).at(0.8), 4)
            0.5
        """
        logit = self.slope * _logit(id_accuracy, self.margin) + self.intercept
        return (1 + math.tanh(logit / 2)) / 2  # the sigmoid, without overflow on a steep line

    def extrapolates(self, id_accuracy: float) -> bool:
        """Whether no reference is as accurate, or none as inaccurate: rho then rests on the form of the line alone."""
        return not self.low <= id_accuracy <= self.high


def effective_robustness(id_accuracy: float, ood_accuracy: float, baseline: Baseline) -> float:
    """Accuracy under shift beyond the baseline.

    A more accurate model is usually more accurate under shift too; only what goes beyond that is robustness.

    With beta = `baseline`::

        rho = acc_ood - beta(acc_id)

    Args:
        id_accuracy: ID test accuracy of the model.
        ood_accuracy: its accuracy under the shift that `baseline` was fit on.
        baseline: fit over reference models. There is no default: without references there is no rho, and the line from the zero-shot to
            the fine-tuned model is a chord, not a baseline.

    Returns:
        rho, a difference of fractions; 0 for a model on the line.

    Raises:
        SettingError: an accuracy is outside 0..1.

    Examples:
        >>> line = Baseline.fit([0.5, 0.8], [0.2, 0.5])
        >>> round(effective_robustness(0.8, 0.75, line), 4)
        0.25

    References:
        Taori et al. Measuring robustness to natural distribution shifts in image classification. NeurIPS 2020.
    """
    if not 0 <= ood_accuracy <= 1:
        raise _outside(ood_accuracy)
    return ood_accuracy - baseline.at(id_accuracy)


def _logit(accuracy: float, margin: float) -> float:
    if not 0 <= accuracy <= 1:
        raise _outside(accuracy)
    clipped = min(max(accuracy, margin), 1 - margin)
    return math.log(clipped / (1 - clipped))


def _outside(accuracy: float) -> SettingError:
    return SettingError(f"An accuracy is {accuracy}. It must be in 0..1. Divide a percentage by 100.")


def _check(id_accuracies: Sequence[float], ood_accuracies: Sequence[float], margin: float) -> None:
    if len(id_accuracies) != len(ood_accuracies) or len(id_accuracies) < 2:
        raise SettingError(
            f"Baseline.fit was given {len(id_accuracies)} ID accuracies and {len(ood_accuracies)} under shift. It needs both of every "
            "reference model, and at least two models. Evaluate models without zero-shot ability on both sets."
        )
    if not 0 < margin < 0.5:
        raise SettingError(f"margin is {margin}. It must be between 0 and 0.5. Use 1e-3, or 1 / (2 * number of images).")
