"""What several weights of one image tower have in common with the pre-trained ones is computed once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from surefoot.errors import ModelError
from surefoot.model import ImageTextModel


class CommonBlocks:
    """Features of one chunk of images by several weights, the leading blocks that weights have in common computed once.

    Weights whose first d blocks are those of theta_0 share what enters block d: the first of them that sees a batch keeps it, the others
    go on from there. The operations and their order are the same, and so are the features, to the last bit.

    Args:
        model: holds the weights that an image is encoded by.
        start: theta_0, under the names of `ImageTextModel.weights`.
    """

    def __init__(self, model: ImageTextModel, start: Mapping[str, Tensor]) -> None:
        self._model, self._start = model, {name: tensor for name, tensor in start.items() if name.startswith("visual.")}
        try:
            self._blocks = model.blocks("visual")
        except ModelError:
            self._blocks = [model.groups()["visual"]]
        self._entered: dict[tuple[int, object], Tensor] = {}

    @property
    def num_blocks(self) -> int:
        """How many blocks the image tower has, as `ImageTextModel.blocks` counts them."""
        return len(self._blocks)

    def depth(self, state: Mapping[str, Tensor]) -> int:
        """How many leading blocks are those of theta_0, bit for bit; all of them where the whole tower is."""
        in_blocks = {name for block in self._blocks for name in block}
        if not all(_same(state, self._start, name) for name in self._start if name not in in_blocks):
            return 0  # running statistics, which stand in no block
        for number, block in enumerate(self._blocks):
            if not all(_same(state, self._start, name) for name in block):
                return number
        return self.num_blocks

    def forget(self) -> None:
        """Drop what was kept of a chunk of images."""
        self._entered = {}

    def encode(self, image: Tensor, place: object, depth: int, *, shared: bool = True) -> Tensor:
        """f(x) [B, D] of images [B, 3, H, W] by the weights that the model holds.

        Args:
            image: the batch.
            place: which batch it is; the same for all weights.
            depth: of these weights, as `depth` gives it.
            shared: whether others of this depth see the batch too; nothing is kept for one alone.
        """
        transformer = self._model.image_transformer
        if transformer is None or not shared or not 0 < depth < self.num_blocks:
            return self._model.encode_image(image)
        known = self._entered.get((depth, place))
        with _entering(transformer, depth, known) as entered:
            features = self._model.encode_image(image)
        self._entered[depth, place] = entered[0]
        return features


@contextlib.contextmanager
def _entering(transformer: nn.Module, depth: int, known: Tensor | None) -> Iterator[list[Tensor]]:
    """Yield a list that holds, after a forward pass, what entered block `depth`; with a `known` input the tower begins there."""
    blocks, entered = transformer.get_submodule("resblocks"), list[Tensor]()
    assert isinstance(blocks, nn.ModuleList)

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        entered.append(given[0] if known is None else known)
        return (entered[0], *given[1:])

    handle = blocks[depth].register_forward_pre_hook(note)
    if known is not None:
        transformer.resblocks = blocks[depth:]
    try:
        yield entered
    finally:
        handle.remove()
        transformer.resblocks = blocks


def _same(state: Mapping[str, Tensor], start: Mapping[str, Tensor], name: str) -> bool:
    return name in state and torch.equal(state[name].cpu(), start[name].cpu())
