"""How a long run computes: kernels and layouts, measured on its own shapes at its start, or as its settings say."""

from __future__ import annotations

import contextlib
import functools
import logging
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surefoot.clock import wait_for
from surefoot.distributed import num_processes
from surefoot.errors import SettingError
from surefoot.layers import Encode, encoding_by, set_channels_last, trains
from surefoot.model import ImageTextModel
from surefoot.precision import ATTENTION, attention, kernel_context, matrix_products, usual_attention
from surefoot.train.batches import image_size
from surefoot.train.parameters import averages_over_batch, has_batch_norm
from surefoot.train.settings import Training

logger = logging.getLogger(__name__)
LONG = 300
"""Steps from which on a measurement of a few steps is soon earned back."""
WORTH = 600.0
"""Seconds of the image tower in a whole run from which on it is compiled for a trial, which takes its time."""
MARGIN = 1.05
"""How many times faster another way must be to be taken in the place of the usual one."""
KERNEL = ("attention, ", "channels-last, ", "compiled, ")
"""How the names of these choices begin."""
_REPEATS = 3
_BROKEN = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)
"""What torch.compile raises where it finds no compiler, or none that works."""
_WITHOUT = "The image tower cannot be compiled here (%s); the run goes on uncompiled. %s"
_ADVICE = "torch.compile needs a C++ compiler that works, such as g++. Install one, or set compile=off."
Way = Callable[[], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True)
class Kernels:
    """What the steps of a stage compute with.

    Attributes:
        attention: "math" or "fused"; None for the usual one of the device and format.
        encode: what stands for the image tower; None for itself.
    """

    attention: str | None = None
    encode: Encode | None = None

    @contextlib.contextmanager
    def used(self, model: ImageTextModel) -> Iterator[None]:
        """Compute with them while this is open."""
        with attention(self.attention), encoding_by(model.clip, self.encode):
            yield


def pick_kernels(
    choices: MutableMapping[str, Any], stage: int, model: ImageTextModel, training: Training, *, num_images: int, measure: bool
) -> Kernels:
    """What a stage trains with: as its settings say; where these are "auto", in a run of `LONG` steps and more, the faster way of each.

    Args:
        choices: of the run; what was measured is noted there, and what stands there from before a resume is taken.
        stage: its number, from 0.
        model: with what trains selected, in training mode. Its layout is the chosen one afterwards.
        training: of the stage.
        num_images: that it trains on.
        measure: whether nothing was trained yet, in whatever way.

    Raises:
        SettingError: `compile` is "on", and nothing can be compiled here.
    """
    given = {"num_images": num_images, "measure": measure}
    kernel, size = pick_attention(choices, stage, model, training, **given), _size(training, num_images)  # type: ignore[arg-type]

    def switch(name: str, setting: str, pick: Callable[[], bool]) -> bool:
        key = f"{name}, stage {stage + 1}"
        if setting == "auto" and key not in choices and _may_measure(model, training, **given):  # type: ignore[arg-type]
            choices[key] = "on" if pick() else "off"
        return (choices.get(key, "off") if setting == "auto" else setting) == "on"

    with attention(kernel):
        last = switch("channels-last", training.channels_last, lambda: channels_last_is_faster(model, size))
        if last:
            set_channels_last(model.clip, True)
        plain, num_steps = _encoder(model, last), training.num_steps(num_images)
        make = functools.cache(lambda: compiled(plain))
        usual = Kernels(kernel, plain if last else None)
        if not switch("compiled", training.compile, lambda: compiled_is_faster(model, size, plain, make, num_steps)):
            return usual
        if reason := broken(model, size, make()):
            if training.compile == "on":
                raise SettingError(f"compile is on, and the image tower cannot be compiled here: {reason}. {_ADVICE}")
            logger.warning(_WITHOUT, reason, _ADVICE)  # a resume on another machine
            return usual
    return Kernels(kernel, make())


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
        "math" or "fused"; None for the usual one of the device and format.
    """
    key, device = f"attention, stage {stage + 1}", next(model.parameters()).device
    if training.attention != "auto":
        return training.attention
    if key in choices:
        return str(choices[key])
    if device.type != "cpu" or has_batch_norm(model) or not _may_measure(model, training, num_images=num_images, measure=measure):
        return None
    choices[key] = fastest_attention(model, _size(training, num_images))
    return str(choices[key])


def _may_measure(model: ImageTextModel, training: Training, *, num_images: int, measure: bool) -> bool:
    """A long run of one process that is about to begin, whose image tower trains and keeps no statistics that passes would move."""
    long = training.num_steps(num_images) >= LONG
    return long and measure and num_processes() == 1 and trains(model.clip, "visual") and not averages_over_batch(model)


def _size(training: Training, num_images: int) -> int:
    return min(training.batch_size, num_images, training.chunk_size or num_images)


def fastest_attention(model: ImageTextModel, batch_size: int) -> str:
    """The kernel with the shortest forward and backward pass of the image tower; the usual one where that is as fast, up to `MARGIN`.

    Args:
        model: whose image tower trains; no weight changes and no gradient stays.
        batch_size: images of a pass.
    """
    usual = usual_attention(next(model.parameters()).device, model.precision)
    return fastest(model, batch_size, {kernel: lambda kernel=kernel: attention(kernel) for kernel in ATTENTION}, usual)  # type: ignore[misc]


def channels_last_is_faster(model: ImageTextModel, batch_size: int) -> bool:
    """Whether a pass of the image tower is clearly shorter with its channels innermost; the layout is as before afterwards."""

    @contextlib.contextmanager
    def innermost() -> Iterator[None]:
        set_channels_last(model.clip, True)
        try:
            with encoding_by(model.clip, _encoder(model, True)):
                yield
        finally:
            set_channels_last(model.clip, False)

    return fastest(model, batch_size, {"off": contextlib.nullcontext, "on": innermost}, "off") == "on"


def compiled_is_faster(model: ImageTextModel, batch_size: int, plain: Encode, make: Callable[[], Encode], num_steps: int) -> bool:
    """Whether a pass of the image tower is clearly shorter compiled, tried only where all its passes take `WORTH` seconds and more.

    Args:
        model: as for `fastest_attention`.
        batch_size: images of a pass.
        plain: the image tower as it computes uncompiled.
        make: gives it compiled.
        num_steps: passes of the run.
    """
    device = next(model.parameters()).device
    if device.type not in ("cpu", "cuda") or draws(model):
        return False
    off = lambda: encoding_by(model.clip, plain)  # noqa: E731
    if num_steps * _median(model, batch_size, {"off": off})["off"] < WORTH:
        return False
    encode = make()
    if reason := broken(model, batch_size, encode):
        logger.warning(_WITHOUT, reason, _ADVICE)
        return False
    return fastest(model, batch_size, {"off": off, "on": lambda: encoding_by(model.clip, encode)}, "off") == "on"


def compiled(encode: Encode) -> Encode:
    """The same, compiled when it is first called; sizes that change from call to call become variables after the second one."""
    torch.compiler.reset()  # what earlier runs compiled counts against a limit of torch's
    return torch.compile(encode)


def broken(model: ImageTextModel, batch_size: int, encode: Encode) -> str:
    """Why a compiled image tower does not compute, in its last line; "" if it does."""
    try:
        with encoding_by(model.clip, encode):
            forward_and_backward(model, _images(model, batch_size))
    except _BROKEN as error:
        model.zero_grad(set_to_none=True)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return (lines[0] if lines else type(error).__name__).rstrip(".")
    return ""


def draws(model: ImageTextModel) -> bool:
    """Whether the image tower draws random numbers, which come out otherwise where it is compiled."""
    modules = [m for m in model.clip.get_submodule("visual").modules() if type(m).__name__.endswith(("Dropout", "DropPath"))]
    return any(getattr(module, share, 0) for module in modules for share in ("p", "prob", "drop_prob"))


def _encoder(model: ImageTextModel, channels_last: bool) -> Encode:
    """The image tower, which lays out its images as its weights are."""
    clip: Any = model.clip
    if not channels_last:
        return clip.encode_image  # type: ignore[no-any-return]

    def encode(image: Tensor) -> Tensor:
        return clip.encode_image(image.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]

    return encode


def fastest(model: ImageTextModel, batch_size: int, ways: Mapping[str, Way], usual: str) -> str:
    """Which of some ways to compute has the shortest pass; the usual one where that is as fast, up to `MARGIN`."""
    median = _median(model, batch_size, ways)
    best = min(median, key=lambda way: median[way])
    return best if median[best] * MARGIN < median[usual] else usual


def _median(model: ImageTextModel, batch_size: int, ways: Mapping[str, Way]) -> dict[str, float]:
    """Seconds of a forward and backward pass of the image tower in each way, in turns."""
    image = _images(model, batch_size)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(_REPEATS + 1):
        for way, taken in seconds.items():
            with ways[way]():
                began = time.perf_counter()
                forward_and_backward(model, image)
                wait_for(image.device)
                if repeat:  # the first warms up
                    taken.append(time.perf_counter() - began)
    return {way: statistics.median(taken) for way, taken in seconds.items()}


def _images(model: ImageTextModel, batch_size: int) -> Tensor:
    noise = torch.randn(batch_size, 3, *image_size(model), generator=torch.Generator().manual_seed(0))
    return noise.to(next(model.parameters()).device)


def forward_and_backward(model: ImageTextModel, image: Tensor) -> None:
    """One pass of the image tower each way; no gradient stays."""
    features = model.encode_image(image)
    with kernel_context(image.device, model.precision), matrix_products(model.precision):
        features.sum().backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
