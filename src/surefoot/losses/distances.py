"""Penalties on parameters: how far they moved, how large they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surefoot.errors import SettingError


def half_squared_distance(now: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    """Half the squared Euclidean distance of parameters to where they started.

    Added to a loss it pulls towards the pre-trained weights, as weight decay pulls towards 0.

    With theta = `now` and theta_0 = `start`, over all tensors and all their entries::

        1/2 ||theta - theta_0||^2

    Args:
        now: tensors of any shapes, at least one; the parameters being trained.
        start: the same number of tensors, of the same shapes; constants, so no gradient reaches them.

    Returns:
        0-d tensor. A sum, not a mean: its gradient is theta - theta_0.

    Raises:
        SettingError: no tensors, or other numbers or shapes of them.

    Relations:
        `half_squared_norm` of the differences; 0 at the start of training.

    Examples:
        >>> half_squared_distance([torch.tensor([3.0, 1.0]), torch.tensor(4.0)], [torch.tensor([0.0, 1.0]), torch.tensor(0.0)])
        tensor(12.5000)

    References:
        Li, Grandvalet, Davoine. Explicit inductive bias for transfer learning with convolutional networks. ICML 2018, section 3: L2-SP
        without its factor alpha.
    """
    shapes = [[list(tensor.shape) for tensor in tensors] for tensors in (now, start)]
    if not len(now) or shapes[0] != shapes[1]:
        raise SettingError(
            f"half_squared_distance was given tensors of shapes {_few(shapes[0])} and a start of shapes {_few(shapes[1])}. "
            "Both must be the same parameters in the same order, at least one. Take both from the model under the same names."
        )
    return half_squared_norm([theta - theta_0.detach() for theta, theta_0 in zip(now, start, strict=True)])


def half_squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Half the squared Euclidean norm of all entries of some tensors: weight decay written as a loss.

        1/2 ||theta||^2

    Args:
        tensors: of any shapes, at least one.

    Returns:
        0-d tensor. A sum, not a mean: its gradient is theta.

    Raises:
        SettingError: no tensors.

    Relations:
        `half_squared_distance` to zero. Under plain SGD the same as weight decay; under AdamW it is not, because Adam rescales it.

    Examples:
        >>> half_squared_norm([torch.tensor([3.0, 4.0])])
        tensor(12.5000)

    References:
        Li, Grandvalet, Davoine. Explicit inductive bias for transfer learning with convolutional networks. ICML 2018, section 3: the
        L2 penalty without its factor, alpha or for the new head beta.
    """
    if not len(tensors):
        raise SettingError("half_squared_norm was given no tensors. It needs at least one. Name parameters that the model has.")
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum() / 2


def _few(shapes: list[list[int]]) -> str:
    """The first few of a list that may be long, for a message."""
    return f"{shapes[:4]}{f' and {len(shapes) - 4} more' if len(shapes) > 4 else ''}"
