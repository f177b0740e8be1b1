"""Which kernels a long run computes with: measured on its own shapes at its start, or as its settings say."""

from __future__ import annotations

import statistics
import time
from collections.abc import MutableMapping
from typing import Any

import torch

from surefoot.clock import wait_for
from surefoot.distributed import num_processes
from surefoot.layers import trains
from surefoot.model import ImageTextModel
from surefoot.precision import ATTENTION, attention, kernel_context, matrix_products, usual_attention
from surefoot.train.batches import image_size
from surefoot.train.parameters import has_batch_norm
from surefoot.train.settings import Training

LONG = 300
"""Steps from which on a measurement of a few steps is soon earned back."""
MARGIN = 1.05
"""How many times faster another kernel must be to be taken in the place of the usual one."""
KERNEL = "attention, "
"""How the name of a choice among kernels begins."""
_REPEATS = 3


def pick_attention(
    choices: MutableMapping[str, Any], stage: int, model: ImageTextModel, training: Training, *, num_images: int, measure: bool
) -> str | None:
    """The attention kernel that a stage trains with: the setting's; on a CPU, in a run of `LONG` steps and more, the faster one, measured.

    Elsewhere torch picks by the shape, and a kernel that keeps whole attention matrices might not fit into memory.

    Args:
        choices: of the run; what was measured is noted there, and what stands there from before a resume is taken.
        stage: its number, from 0.
        model: with what trains selected.
        training: of the stage.
        num_images: that it trains on.
        measure: whether nothing was trained yet, by whatever kernel.

    Returns:
        "math" or "fused"; None for the usual one of the device.
    """
    key, device = f"{KERNEL}stage {stage + 1}", next(model.parameters()).device
    if training.attention != "auto":
        return training.attention
    if key in choices:
        return str(choices[key])
    long = device.type == "cpu" and training.num_steps(num_images) >= LONG
    if not long or not measure or num_processes() > 1 or not trains(model.clip, "visual") or has_batch_norm(model):
        return None
    choices[key] = fastest_attention(model, min(training.batch_size, num_images, training.chunk_size or num_images))
    return str(choices[key])


def fastest_attention(model: ImageTextModel, batch_size: int) -> str:
    """The kernel with the shortest forward and backward pass of the image tower; the usual one where that is as fast, up to `MARGIN`.

    Args:
        model: whose image tower trains; no weight changes and no gradient stays.
        batch_size: images of a pass.
    """
    device = next(model.parameters()).device
    image = torch.randn(batch_size, 3, *image_size(model), generator=torch.Generator().manual_seed(0)).to(device)
    seconds: dict[str, list[float]] = {kernel: [] for kernel in ATTENTION}
    for repeat in range(_REPEATS + 1):
        for kernel, taken in seconds.items():
            began = time.perf_counter()
            with attention(kernel):
                forward_and_backward(model, image)
            wait_for(device)
            if repeat:  # the first warms up
                taken.append(time.perf_counter() - began)
    median = {kernel: statistics.median(taken) for kernel, taken in seconds.items()}
    usual, best = usual_attention(device), min(median, key=lambda kernel: median[kernel])
    return best if median[best] * MARGIN < median[usual] else usual


def forward_and_backward(model: ImageTextModel, image: torch.Tensor) -> None:
    """One pass of the image tower each way; no gradient stays."""
    features = model.encode_image(image)
    with kernel_context(image.device), matrix_products(model.precision):
        features.sum().backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
