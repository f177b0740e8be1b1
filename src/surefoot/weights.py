"""State-dict algebra: weights in, weights out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
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
        alpha 0 is `start` and alpha 1 is `end`, bit for bit, and so is a tensor that both have alike. For a linear head on a frozen tower
        this equals averaging the logits of the two models with the same alpha.

    Differences:
        The release computes integer buffers too, which turns them into floating ones; here they are copied. Its
        Fisher-weighted merge is `fisher_merge`.
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
    return {name: _between(tensor, end[name], alpha) for name, tensor in start.items()}


def _between(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """What did not move stays, to the last bit, which (1 - alpha) t + alpha t is not; integers are taken from the end."""
    if not start.is_floating_point() or torch.equal(start, end):
        return end.clone()
    return (1 - alpha) * start + alpha * end


def uniform_soup(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several fine-tuned models, tensor by tensor.

    Models that were fine-tuned from one pre-trained model often lie in one basin of the loss; their mean is then better than each.

        theta = 1/n sum_i theta_i

    Args:
        states: of n models, at least one: name -> tensor, the same names, shapes and dtypes in all.

    Returns:
        New tensors under the names of the first, in its order. Floating tensors are averaged in float64 and given back in their own dtype;
        all others are copied from the first.

    Raises:
        SettingError: no model, or two that differ in names, shapes or dtypes.

    Relations:
        A soup of one model is that model, bit for bit, and so is one of several times the same. Of the zero-shot and one fine-tuned model
        it is `interpolate` at 0.5.

    Examples:
        >>> import torch
        >>> uniform_soup([{"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([1.0, 4.0])}])
        {'w': tensor([0.5000, 3.0000])}

    References:
        Wortsman et al. Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time.
        ICML 2022, section 3 (uniform soup).
    """
    if not states:
        raise SettingError("A soup was asked for of no model. Give one or more.")
    first = states[0]
    for number, other in enumerate(states[1:], start=2):
        _check_same_layout(first, other, ("model 1", f"model {number}"))
    return {
        name: sum((state[name].double() for state in states[1:]), tensor.double()).div(len(states)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in first.items()
    }


def fisher_merge(
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    start_fisher: Mapping[str, Tensor],
    end_fisher: Mapping[str, Tensor],
    alpha: float,
    *,
    floor: float = 1e-8,
) -> dict[str, Tensor]:
    """Fisher-weighted merge: a mean of the zero-shot and the fine-tuned weights in which each counts by its Fisher information.

    Of two models the one whose answers depend more on a weight has more say in it.

    With F_0 = `start_fisher` and F_1 = `end_fisher`, raised to `floor` where they are below it, weight by weight::

        theta_alpha = ((1 - alpha) F_0 theta_0 + alpha F_1 theta_1) / ((1 - alpha) F_0 + alpha F_1)

    Args:
        start: theta_0: name -> tensor of any shape.
        end: theta_1: the same names, shapes and dtypes.
        start_fisher: name -> diagonal of the Fisher matrix at theta_0, of the shape of the tensor.
        end_fisher: the same at theta_1, under the same names. Tensors that neither has, such as buffers, are interpolated.
        alpha: weight of `end`, in 0..1.
        floor: below it a Fisher value says nothing; where both are below it the weight is interpolated. The release's default.

    Returns:
        New tensors under the names of `start`, in its order, of the same shapes and dtypes, computed in float64.

    Raises:
        SettingError: `alpha` or `floor` out of range; weights that differ in layout; Fisher values that belong to no weight, to one of the
            two models only, or are negative or not finite.

    Relations:
        alpha 0 is `start` and alpha 1 is `end`, bit for bit. With the same Fisher on both sides it is `interpolate`; a factor that all
        values of one side share moves alpha.

    Examples:
        >>> import torch
        >>> start, end = {"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([4.0, 4.0])}
        >>> fisher_merge(start, end, {"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([1.0, 1.0])}, 0.5)
        {'w': tensor([2., 1.])}

    References:
        Matena, Raffel. Merging models with Fisher-weighted averaging. NeurIPS 2022, eq. 3.
        Wortsman, Ilharco, Kim et al. Robust fine-tuning of zero-shot models. CVPR 2022 (its release takes Fisher values as an option).
    """
    if not 0 < floor < math.inf:
        raise SettingError(f"floor is {floor}. It must be above 0, since it is divided by; 1e-8 is the usual one.")
    line = interpolate(start, end, alpha)
    _check_fishers(start, start_fisher, end_fisher)
    if alpha in (0, 1):
        return line
    return line | {
        name: _weighted(tensor, end[name], (1 - alpha) * _raised(start_fisher[name], floor), alpha * _raised(end_fisher[name], floor))
        for name, tensor in start.items()
        if name in start_fisher and tensor.is_floating_point()
    }


def _raised(fisher: Tensor, floor: float) -> Tensor:
    return fisher.double().clamp(min=floor)


def _weighted(first: Tensor, second: Tensor, first_weight: Tensor, second_weight: Tensor) -> Tensor:
    total = first_weight * first.double() + second_weight * second.double()
    return (total / (first_weight + second_weight)).to(first.dtype)


def _check_fishers(weights: Mapping[str, Tensor], start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> None:
    """Raise a SettingError that names the first three Fisher tensors that cannot weigh anything."""
    both = {**start, **end}
    problems = [f"{name} belongs to no weight" for name in both if name not in weights]
    problems += [f"{name} is there for {'start' if name in start else 'end'} only" for name in both if (name in start) != (name in end)]
    for side, fishers in (("start", start), ("end", end)):
        for name, fisher in fishers.items():
            if name in weights and fisher.shape != weights[name].shape:
                problems.append(f"{name} of {side} is {list(fisher.shape)}, its weight {list(weights[name].shape)}")
            elif not bool(((fisher >= 0) & fisher.isfinite()).all()):
                problems.append(f"{name} of {side} holds a value that is negative or not finite")
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise SettingError(
            f"The Fisher values do not fit the weights: {shown}. Both models must have them for the same weights, in the weights' shapes, "
            "as means of squared gradients. Compute both with the same names."
        )


def _check_same_layout(start: Mapping[str, Tensor], end: Mapping[str, Tensor], sides: tuple[str, str] = ("start", "end")) -> None:
    """Raise a SettingError that names the first three tensors in which the two differ."""
    one, other = sides
    missing = [f"{name} only in {one}" for name in start if name not in end]
    missing += [f"{name} only in {other}" for name in end if name not in start]
    changed = [
        f"{name} is {list(tensor.shape)} {tensor.dtype} in {one} and {list(end[name].shape)} {end[name].dtype} in {other}"
        for name, tensor in start.items()
        if name in end and (tensor.shape, tensor.dtype) != (end[name].shape, end[name].dtype)
    ]
    if problems := missing + changed:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise SettingError(
            f"The weights differ in layout: {shown}. Both must have the same names, shapes and dtypes. "
            "Use two checkpoints of one architecture and one head, saved in one precision."
        )
