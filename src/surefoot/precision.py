"""The number format that towers compute in, and the kernel of their attention."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Precision = Literal["fp32", "tf32", "bf16"]
ATTENTION = ("math", "fused")
"""Attention written out as matrix products, or one of the fused kernels that torch picks by shape and device."""
_chosen: ContextVar[str | None] = ContextVar("attention", default=None)


@contextlib.contextmanager
def precision_context(precision: Precision, device: torch.device) -> Iterator[str]:
    """Run the towers in float32, in float32 with TF32 matrix products, or in bfloat16 where that is safe.

    Weights, features and losses stay float32. Attention is that of `kernel_context`, whose name this yields.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(matrix_products(precision))
        if precision == "bf16":
            stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16))
        stack.enter_context(kernel_context(device, precision))
        yield attention_kernel(device, precision)


@contextlib.contextmanager
def matrix_products(precision: Precision) -> Iterator[None]:
    """Let float32 matrices be multiplied in TF32 where the hardware has it, in all threads, while this is open with "tf32"."""
    before = torch.get_float32_matmul_precision()
    try:
        if precision == "tf32":
            torch.set_float32_matmul_precision("high")
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def usual_attention(device: torch.device, precision: Precision) -> str:
    """On a CPU in bfloat16 "math", since the backward pass of its fused kernel is slower there; elsewhere "fused"."""
    return "math" if device.type == "cpu" and precision == "bf16" else "fused"


@contextlib.contextmanager
def attention(kernel: str | None) -> Iterator[None]:
    """Let the towers compute attention by one of `ATTENTION` while this is open; None for the usual one of the device and format.

    Second derivatives, and derivatives forward, exist on a CPU for "math" alone. In bfloat16 "math" rounds the logits of attention too:
    where these are large, it is less exact than "fused".
    """
    before = _chosen.set(kernel)
    try:
        yield
    finally:
        _chosen.reset(before)


def attention_kernel(device: torch.device, precision: Precision) -> str:
    """The one of `ATTENTION` that the towers compute by: what `attention` says, or the usual one."""
    return _chosen.get() or usual_attention(device, precision)


@contextlib.contextmanager
def kernel_context(device: torch.device, precision: Precision) -> Iterator[None]:
    """Choose the kernel of attention; a backward pass that computes activations anew needs the one of the forward pass."""
    with sdpa_kernel(SDPBackend.MATH) if attention_kernel(device, precision) == "math" else contextlib.nullcontext():
        yield
