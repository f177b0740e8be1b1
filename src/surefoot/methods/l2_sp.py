"""L2-SP: fine-tuning with a pull towards the pre-trained weights."""

from __future__ import annotations

from surefoot.errors import SettingError
from surefoot.methods.terms import cross_entropy, distance_to_start, head_norm
from surefoot.objective import Method, Stage


def l2_sp(*, pull: float = 1e-2, head_l2: float = 1e-6, label_smoothing: float = 0.0, logit_adjustment: float = 0.0) -> Method:
    """Cross-entropy plus the squared distance of the image tower to where it started, and the squared norm of the head.

        L = CE(W^T f(x), y) + a/2 ||theta - theta_0||^2 + b/2 ||W||^2

    Args:
        pull: a, the strength of the pull; its paper searches 1e-3 to 1 on validation, and so may you (`surefoot tune`).
        head_l2: b, the penalty of the head, whose weight holds the scale.
        label_smoothing: weight of the uniform distribution in the targets.
        logit_adjustment: tau of the logit adjustment for unbalanced classes.

    Raises:
        SettingError: a negative strength.

    Needs: image, label, start.
    Relations: `tp_ft` when both strengths are 0, weight decay included. What a term pulls gets no weight decay.

    References:
        Li, Grandvalet, Davoine, "Explicit inductive bias for transfer learning with convolutional networks", ICML 2018, section 3 (L2-SP).
    """
    if pull < 0 or head_l2 < 0:
        raise SettingError(f"pull is {pull} and head_l2 is {head_l2}; both must be 0 or more. With 0 the method is tp_ft.")
    objective = cross_entropy(label_smoothing, logit_adjustment) + pull * distance_to_start() + head_l2 * head_norm()
    return Method(name="l2_sp", stages=(Stage(objective=objective, trains=("visual", "head"), head="zero_shot"),), predict="head")
