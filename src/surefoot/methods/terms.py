"""The terms that several methods share: a loss of `losses`, bound to the encodings that it reads."""

from __future__ import annotations

from surefoot import losses
from surefoot.objective import Term


def cross_entropy() -> Term:
    """Cross-entropy of the head's logits.

    Needs: image, label.
    """
    return Term("cross_entropy", lambda forward: losses.cross_entropy(forward.logits, forward.label), frozenset({"image", "label"}))


def contrastive(text: str) -> Term:
    """Symmetric contrastive loss between the images and one text each, given by the batch field `text`.

    Needs: image, and the field named by `text`.
    """
    return Term(
        f"contrastive_{text}",
        lambda forward: losses.contrastive(forward.image, forward.text(text), forward.scale),
        frozenset({"image", text}),
    )
