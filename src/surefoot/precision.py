"""The number format that towers compute in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Precision = Literal["fp32", "bf16"]


@contextlib.contextmanager
def precision_context(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run the towers in float32, or in bfloat16 where that is safe (weights, features and losses stay float32).

    Attention is that of `kernel_context`.
    """
    with contextlib.ExitStack() as stack:
        if precision == "bf16":
            stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16))
        stack.enter_context(kernel_context(device))
        yield


@contextlib.contextmanager
def kernel_context(device: torch.device) -> Iterator[None]:
    """Choose the kernel of attention; a backward pass that computes activations anew needs the one of the forward pass.

    On a CPU the attention is written out as matrix products: the backward pass of the fused kernel is slower there for short sequences.
    """
    if device.type != "cpu":
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield
