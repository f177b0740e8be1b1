"""The terms that several methods share: a loss of `losses`, bound to the encodings and parameters that it reads."""

from __future__ import annotations

from torch import Tensor

from surefoot import losses
from surefoot.errors import SettingError
from surefoot.objective import Forward, Term


def cross_entropy(label_smoothing: float = 0.0, logit_adjustment: float = 0.0) -> Term:
    """Cross-entropy of the head's logits.

    Args:
        label_smoothing: weight of the uniform distribution, in 0..1.
        logit_adjustment: tau; tau log(prior) is added to the logits in training, so that rare classes are not given up (0 adds nothing).

    Needs: image, label.
    """
    _check(label_smoothing, logit_adjustment)

    def value(forward: Forward) -> Tensor:
        adjustment = logit_adjustment * forward.log_prior if logit_adjustment else None
        return losses.cross_entropy(forward.logits, forward.label, label_smoothing, adjustment=adjustment)

    return Term("cross_entropy", value, frozenset({"image", "label"}))


def text_cross_entropy(text: str, label_smoothing: float = 0.0, logit_adjustment: float = 0.0) -> Term:
    """Cross-entropy over one live text of every class, given by the batch field `text` with K rows; logits = scale f(x).g(t_k).

    Needs: image, label, and the field named by `text`.
    """
    _check(label_smoothing, logit_adjustment)

    def value(forward: Forward) -> Tensor:
        logits = forward.scale * forward.image @ forward.text(text).T
        adjustment = logit_adjustment * forward.log_prior if logit_adjustment else None
        return losses.cross_entropy(logits, forward.label, label_smoothing, adjustment=adjustment)

    return Term("text_cross_entropy", value, frozenset({"image", "label", text}))


def contrastive(text: str) -> Term:
    """The model's own pre-training loss between the images and one text each, given by the batch field `text`.

    Symmetric softmax for CLIP; SigLIP's sigmoid loss for a model with a logit bias.

    Needs: image, and the field named by `text`.
    """

    def value(forward: Forward) -> Tensor:
        if forward.bias is None:
            return losses.contrastive(forward.image, forward.text(text), forward.scale)
        return losses.sigmoid_contrastive(forward.image, forward.text(text), forward.scale, forward.bias)

    return Term(f"contrastive_{text}", value, frozenset({"image", text}))


def distance_to_start() -> Term:
    """1/2 ||theta - theta_0||^2 over what is trained of the image tower.

    Needs: start.
    """
    return Term(
        "distance_to_start",
        lambda forward: losses.half_squared_distance(forward.moved.now["visual"], forward.moved.start["visual"]),
        frozenset({"start"}),
        penalises=frozenset({"visual"}),
    )


def head_norm() -> Term:
    """1/2 ||W||^2 of the head's weight; its bias is free."""
    return Term("head_norm", lambda forward: losses.half_squared_norm([forward.head.weight]), frozenset(), penalises=frozenset({"head"}))


def _check(label_smoothing: float, logit_adjustment: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise SettingError(f"label_smoothing is {label_smoothing}; it must be in 0..1, 1 left out. The papers use 0; 0.1 is common.")
    if logit_adjustment < 0:
        raise SettingError(f"logit_adjustment is {logit_adjustment}; it must be 0 or more. 0 is off, 1 is the value of its paper.")
