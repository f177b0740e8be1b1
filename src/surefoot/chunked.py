"""Batches larger than memory: features chunk by chunk, with exactly the gradients of the whole batch (GradCache)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Encoded:
    """What was encoded in chunks: how, of what, the random state before each chunk, and the features that the losses saw."""

    encode: Encode
    given: Tensor
    states: list[dict[str, Tensor]]
    features: Tensor


class Chunks:
    """The encodings of one batch, of which only one chunk's activations are in memory at a time.

    A contrastive loss needs the features of all images and texts at once, but not their activations: every chunk is encoded without a
    graph first, the loss is differentiated with respect to the features, and then every chunk is encoded once more, with the same random
    numbers, to carry its share of that gradient on to the weights. Loss and gradients are those of the whole batch, up to rounding; the
    price is one more forward pass of each tower that trains.

    Args:
        size: images or texts encoded at a time; None for the whole batch at once, in one pass.

    References:
        Gao, Zhang, Han, Callan, "Scaling deep contrastive learning batch size under memory limited setup", RepL4NLP 2021.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size
        self._encoded: list[_Encoded] = []

    def encode(self, encode: Encode, given: Tensor, *, trains: bool) -> Tensor:
        """`encode(given)` [N, D], chunk by chunk where `given` [N, ...] is larger than a chunk.

        Args:
            encode: features of a part of `given`; a row of them depends on its own row alone.
            given: images or tokens.
            trains: whether gradients are wanted; their second pass is `backward`.
        """
        if self.size is None or len(given) <= self.size:
            return encode(given)
        states, features = [], []
        with torch.no_grad():
            for chunk in torch.split(given, self.size):
                states.append(random_state(given.device))
                features.append(encode(chunk))
        whole = torch.cat(features)
        if trains and torch.is_grad_enabled():
            self._encoded.append(_Encoded(encode, given, states, whole.requires_grad_()))
        return whole

    def backward(self) -> None:
        """After the loss's own backward pass: carry the gradients of the features on to the weights, chunk by chunk."""
        for one in self._encoded:
            if one.features.grad is None:  # no term of the loss depends on them
                continue
            size = self.size or len(one.given)
            chunks = zip(torch.split(one.given, size), one.states, torch.split(one.features.grad, size), strict=True)
            for chunk, state, gradient in chunks:
                with replayed(state, one.given.device):
                    one.encode(chunk).backward(gradient)  # type: ignore[no-untyped-call]
        self._encoded = []


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that dropout on `device` draws from."""
    states = {"cpu": torch.default_generator.get_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


@contextlib.contextmanager
def replayed(states: dict[str, Tensor], device: torch.device) -> Iterator[None]:
    """Draw the random numbers once more that followed these states; what comes after draws as if nothing had happened."""
    now = random_state(device)
    _restore(states, device)
    try:
        yield
    finally:
        _restore(now, device)


def _restore(states: dict[str, Tensor], device: torch.device) -> None:
    torch.default_generator.set_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])
