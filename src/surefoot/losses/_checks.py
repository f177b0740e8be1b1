"""The shape checks that several losses share; `loss` is the name that the message begins with."""

from __future__ import annotations

from torch import Tensor

from surefoot.errors import SettingError


def check_pairs(loss: str, image: Tensor, text: Tensor) -> None:
    """Raise a SettingError unless `image` and `text` are of one shape [B, D] with B of at least 1."""
    if image.ndim != 2 or image.shape != text.shape or not len(image):
        raise SettingError(
            f"{loss} was given image features of shape {list(image.shape)} and text features of shape {list(text.shape)}. "
            "Both must be [B, D] with the same B of at least 1. Pass one text per image."
        )


def check_labels(loss: str, image: Tensor, label: Tensor) -> None:
    """Raise a SettingError unless `label` is [B], one class id per row of `image` [B, D]."""
    if label.shape != image.shape[:1]:
        raise SettingError(
            f"{loss} was given image features of shape {list(image.shape)} and labels of shape {list(label.shape)}. "
            "They must be [B, D] and [B] with the same B. Pass one class id per image."
        )


def check_reference(loss: str, what: str, now: Tensor, reference: Tensor) -> None:
    """Raise a SettingError unless the features of the model and of the reference are of one shape [B, D] with B of at least 1."""
    if now.ndim != 2 or now.shape != reference.shape or not len(now):
        raise SettingError(
            f"{loss} was given {what} features of shape {list(now.shape)} and the reference's of shape {list(reference.shape)}. "
            "Both must be [B, D] with the same B of at least 1. Encode the same batch with both models."
        )


def check_contexts(loss: str, image: Tensor, contexts: Tensor) -> None:
    """Raise a SettingError unless `contexts` is [P, D] or [B, P, D] with P of at least 1, for `image` [B, D]."""
    rows, dim = image.shape
    fits = contexts.ndim in (2, 3) and contexts.shape[-1] == dim and contexts.shape[-2] and (contexts.ndim == 2 or len(contexts) == rows)
    if not fits:
        raise SettingError(
            f"{loss} was given image features of shape {list(image.shape)} and contexts of shape {list(contexts.shape)}. "
            "They must be [B, D], and [P, D] or [B, P, D], with P of at least 1. Pass the text features of the contexts."
        )
