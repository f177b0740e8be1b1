"""WiSE-FT: weight-space ensembles of the zero-shot and the fine-tuned model, a finish for any method."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from surefoot.weights import interpolate

ALPHAS = tuple(k / 10 for k in range(11))
REPORTED = 0.5


def wise_ft(zero_shot: Mapping[str, Tensor], fine_tuned: Mapping[str, Tensor], alpha: float = REPORTED) -> dict[str, Tensor]:
    """Interpolate every floating tensor of the model, the head's weight and bias included.

        theta_alpha = (1 - alpha) theta_0 + alpha theta_1

    alpha = 0 is always the zero-shot model with its text-prompt head, alpha = 1 the fine-tuned one. The paper recommends 0.5 when
    nothing is known about the shift.

    Args:
        zero_shot: theta_0, the pre-trained weights, with the zero-shot head.
        fine_tuned: theta_1, the weights after training.
        alpha: mixing coefficient in 0..1.

    Returns:
        theta_alpha under the same names.

    References:
        Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, eq. 1.
    """
    return interpolate(zero_shot, fine_tuned, alpha)
