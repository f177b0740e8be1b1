"""The loss of a step and its backward pass: in one process, or with the gradients of several averaged."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from surefoot.distributed import num_processes
from surefoot.heads import LinearHead
from surefoot.model import ImageTextModel
from surefoot.objective import Forward, Objective
from surefoot.train.sharding import average, is_shared

_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in signature(DistributedDataParallel).parameters else "broadcast_buffers"
"""What switches the exchange of running statistics off, which no tower that trains has; it was renamed."""


class Steps:
    """Computes losses and gradients of the parameters that require them when it is made.

    With several processes the gradients are averaged by DistributedDataParallel, bucket by bucket while the backward pass goes on. A batch
    in chunks has several backward passes; their sum is averaged once, after the last. Weights that the processes hold together have their
    gradients averaged as they come (`sharding`), the others once, in the end.

    Args:
        model: both towers.
        head: the trained linear head.
    """

    def __init__(self, model: ImageTextModel, head: LinearHead) -> None:
        self._loss = _Loss(model.clip, head)
        self._parallel: DistributedDataParallel | None = None
        trained = [parameter for parameter in self._loss.parameters() if parameter.requires_grad]
        sharded = any(map(is_shared, trained))
        self._whole = [parameter for parameter in trained if sharded and not is_shared(parameter)]
        if num_processes() > 1 and not sharded:
            how: dict[str, Any] = {"find_unused_parameters": True, _BUFFERS: False}
            self._parallel = DistributedDataParallel(self._loss, **how)

    def loss(self, objective: Objective, forward: Forward) -> Tensor:
        """The loss of a batch, a scalar."""
        if self._parallel is None:
            return self._loss(objective, forward)  # type: ignore[no-any-return]
        with self._parallel.no_sync() if forward.in_chunks else nullcontext():
            return self._parallel(objective, forward)  # type: ignore[no-any-return]

    def backward(self, forward: Forward, loss: Tensor) -> None:
        """Gradients of the loss, the same in every process."""
        if self._parallel is None or not forward.in_chunks:
            forward.backward(loss)
            average(self._whole)
            return
        with self._parallel.no_sync():
            forward.backward(loss)
        self._parallel(None, None).backward()  # adds nothing, and averages what is there


class _Loss(nn.Module):
    """What DistributedDataParallel wraps: everything that may train, and a forward pass that gives the loss."""

    def __init__(self, clip: nn.Module, head: LinearHead) -> None:
        super().__init__()
        self.clip, self.head = clip, head

    def forward(self, objective: Objective | None, forward: Forward | None) -> Tensor:
        if objective is None or forward is None:
            return torch.stack([0.0 * parameter.sum() for parameter in self.parameters() if parameter.requires_grad]).sum()
        values: Mapping[str, Tensor] = objective.values(forward)
        return objective.total(values)
