"""State-dict algebra: weights in, weights out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from surefoot.errors import SettingError


def interpolate(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """WiSE-FT: the point at `alpha` on the line from the zero-shot weights to the fine-tuned ones.

    Along the line the accuracy under shift often rises above both ends, at no cost in training or inference.

    With theta_0 = `start` and theta_1 = `end`::

        theta_alpha = (1 - alpha) theta_0 + alpha theta_1

    Args:
        start: name -> tensor of any shape, the zero-shot model; its head, if it has one, is the text-prompt head.
        end: the fine-tuned model: the same names, shapes and dtypes.
        alpha: weight of `end`, in 0..1; 0.5 when nothing is known about the shift.

    Returns:
        New tensors under the names of `start`, in its order, of the same shapes and dtypes. Floating tensors are interpolated in their
        own dtype. All others, such as BatchNorm's counter, are copied from `end`, and at alpha 0 from `start`.

    Raises:
        SettingError: `alpha` is outside 0..1, or the two differ in names, shapes or dtypes.

    Relations:
        alpha 0 is `start` and alpha 1 is `end`, bit for bit. For a linear head on a frozen tower this equals averaging the logits of the
        two models with the same alpha.

    Differences:
        The release computes integer buffers too, which turns them into floating ones; here they are copied. It also offers a
        Fisher-weighted merge; this is the one without.
        BatchNorm's running statistics are floating and interpolated like the rest, which does not make them the statistics of the
        merged model: re-estimate them on training images.

    Examples:
        >>> import torch
        >>> start, end = {"head.bias": torch.tensor([0.0, 2.0])}, {"head.bias": torch.tensor([4.0, 4.0])}
        >>> interpolate(start, end, 0.25)
        {'head.bias': tensor([1.0000, 2.5000])}

    References:
        Wortsman, Ilharco, Kim et al. Robust fine-tuning of zero-shot models. CVPR 2022, eq. 1.
        Goyal, Kumar, Garg, Kolter, Raghunathan. Finetune like you pretrain: Improved finetuning of zero-shot vision models. CVPR 2023,
        eq. 2 (image tower).
        Liu, Li, Yu. Fully fine-tuned CLIP models are efficient few-shot learners. arXiv 2024, eq. 7 (both towers).
    """
    if not 0 <= alpha <= 1:
        raise SettingError(
            f"alpha is {alpha}. It must be in 0..1. Use 0 for the zero-shot model, 1 for the fine-tuned one, or a value between."
        )
    _check_same_layout(start, end)
    if alpha in (0, 1):
        return {name: (end if alpha else start)[name].clone() for name in start}
    return {
        name: (1 - alpha) * tensor + alpha * end[name] if tensor.is_floating_point() else end[name].clone()
        for name, tensor in start.items()
    }


def _check_same_layout(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> None:
    """Raise a SettingError that names the first three tensors in which the two differ."""
    missing = [f"{name} only in start" for name in start if name not in end] + [f"{name} only in end" for name in end if name not in start]
    changed = [
        f"{name} is {list(tensor.shape)} {tensor.dtype} in start and {list(end[name].shape)} {end[name].dtype} in end"
        for name, tensor in start.items()
        if name in end and (tensor.shape, tensor.dtype) != (end[name].shape, end[name].dtype)
    ]
    if problems := missing + changed:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise SettingError(
            f"The weights differ in layout: {shown}. Both must have the same names, shapes and dtypes. "
            "Use two checkpoints of one architecture and one head, saved in one precision."
        )
