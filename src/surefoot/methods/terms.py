"""The terms that several methods share: a loss of `losses`, bound to the encodings and parameters that it reads."""

from __future__ import annotations

from collections.abc import Callable

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
    return Term(f"contrastive_{text}", lambda forward: _pre_training_loss(forward, forward.image, text), frozenset({"image", text}))


def anchor_contrastive() -> Term:
    """The same loss between the image-text pairs that the images of the batch retrieved, each pair once.

    Needs: anchor_image, anchor_text.
    """
    needs = frozenset({"anchor_image", "anchor_text"})
    return Term("contrastive_anchor", lambda forward: _pre_training_loss(forward, forward.anchor_image, "anchor_text"), needs)


def _pre_training_loss(forward: Forward, image: Tensor, text: str) -> Tensor:
    if forward.bias is None:
        return losses.contrastive(image, forward.text(text), forward.scale)
    return losses.sigmoid_contrastive(image, forward.text(text), forward.scale, forward.bias)


def supervised_contrastive(text: str, positive_in_denominator: bool = True) -> Term:
    """Image-text contrast in both directions, in which other items of the same class are no negatives.

    SigLIP's sigmoid loss without those pairs for a model with a logit bias, whatever `positive_in_denominator` says.

    Needs: image, label, and the field named by `text`.
    """

    def value(forward: Forward) -> Tensor:
        pair, keep = (forward.image, forward.text(text)), positive_in_denominator
        if forward.bias is not None:
            return losses.sigmoid_contrastive(*pair, forward.scale, forward.bias, label=forward.label)
        return losses.supervised_contrastive(*pair, forward.label, forward.scale, positive_in_denominator=keep)

    return Term("supervised_contrastive", value, frozenset({"image", "label", text}))


def similarity_distillation(text: str, reverse: bool = False) -> Term:
    """KL(p || p_0) between the batch's image-to-text similarities and those of the pre-trained model; the other way if `reverse`.

    Needs: image, reference, and the field named by `text`.
    """

    def value(forward: Forward) -> Tensor:
        return losses.similarity_distillation(
            forward.image, forward.text(text), forward.reference_image, forward.reference_text(text), forward.scale, reverse=reverse
        )  # fmt: skip

    return Term("similarity_distillation", value, frozenset({"image", "reference", text}))


DIVERGENCES: dict[str, Callable[[Tensor, Tensor, Tensor, float | Tensor], Tensor]] = {
    "kl": losses.context_kl,
    "mmd": losses.context_mmd,
    "wasserstein": losses.context_wasserstein,
}


def context_divergence(contexts: str, divergence: str = "kl", scale: float | None = None, of_class: bool = False) -> Term:
    """How far the context distribution of the image tower is from that of the pre-trained one.

    Args:
        contexts: a set of context templates, as `train.reference` names them.
        divergence: "kl", "mmd" or "wasserstein".
        scale: what cosines are multiplied by in the softmax; the pre-trained scale if None.
        of_class: context prompts of each image's own class, not the means over classes.

    Needs: image, label where `of_class`, reference, contexts.
    """

    def value(forward: Forward) -> Tensor:
        theta_0 = forward.reference
        head = theta_0.contexts(contexts)[forward.label] if of_class else theta_0.context_head(contexts)
        # neither method that has this term trains the scale, so the model's is still the pre-trained one
        factor = forward.scale.detach() if scale is None else scale
        return DIVERGENCES[divergence](forward.image, forward.reference_image, head, factor)

    needs = {"image", "reference", f"contexts:{contexts}"} | ({"label"} if of_class else set())
    return Term(f"context_{divergence}", value, frozenset(needs))


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
