"""Where an image tower looks for an answer: relevance of the patches of an image, by attention and its gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.errors import ModelError, SettingError
from surefoot.model import ImageTextModel

SUPPORTED = (
    "Supported are vision transformers of open_clip (with torch's attention) and of timm, which pool by a class token or by the mean of "
    "all patches. Convolutional towers and those that pool by attention of their own have no such maps: leave the maps out (--no-maps)."
)


def relevance(model: ImageTextModel, image: Tensor, direction: Tensor) -> Tensor:
    """How much each patch of an image adds to a score, through all blocks of the image tower.

    The score of image i is f(x_i) . w_i, with f(x_i) the l2-normalised feature and w_i = `direction[i]`: the row of a class in the head
    that answers, which is the scale times a text feature where text answers. Bias and other classes have no part in it. The rule is that
    of `rollout`; the row of the token that is pooled, without the tokens that are no patches, is the map. Where the mean of all patches
    is pooled, the map is the mean of their rows, without the identity that R starts from: it says nothing of one patch against another.

    Weights, gradients, training mode, precision and the kernels of attention are afterwards as they were before. The tower computes in
    float32 in evaluation mode, with the attention written out: the features are those of `encode_image` up to rounding.

    Args:
        model: its image tower is explained with the weights that it holds.
        image: preprocessed images [B, 3, H, W].
        direction: [B, D].

    Returns:
        Relevance [B, h, w] on the grid of patches, 0 or more.

    Raises:
        ModelError: a tower without such maps, named with what is supported.
        SettingError: shapes that do not fit together.

    Differences:
        The released notebook for CLIP takes the last block alone; this is the paper's rule, over all blocks.

    References:
        Chefer, Gur, Wolf, "Generic attention-model explainability for interpreting bi-modal and encoder-decoder transformers", ICCV 2021,
        eqs. 5-6, and section 3.4 for the class token.
    """
    if image.ndim != 4 or direction.ndim != 2 or len(image) != len(direction) or not len(image):
        raise SettingError(
            f"relevance was given images of shape {list(image.shape)} and directions of shape {list(direction.shape)}. "
            "They must be [B, 3, H, W] and [B, D]. Pass a row of the head for each image."
        )
    tower = _tower_of(model)
    maps: list[Tensor] = []
    plain = torch.autocast(image.device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), plain, _written_out(model, tower, maps):
        features = model.encode_image(image.detach().clone())
        score = (features * direction.detach().clone().to(features)).sum()
        gradients = torch.autograd.grad(score, maps)
        return tower.read(rollout(maps, gradients)).detach()


def rollout(maps: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Relevance of every token for every token, R [B, N, N], through self-attention.

    With A = `maps[l]` and dA = `gradients[l]` of block l, of which h runs over the heads::

        R <- I;   for each block:   A_bar = mean_h max(dA * A, 0),   R <- R + A_bar R

    Args:
        maps: attention after softmax [B, heads, N, N], from the first block to the last.
        gradients: of the score by each of them.

    Relations: a score times c >= 0 gives A_bar times c; R of a single block less the identity, too.

    Examples:
        >>> rollout([torch.full((1, 1, 2, 2), 0.5)], [torch.tensor([[[[1.0, -1.0], [0.0, 2.0]]]])])
        tensor([[[1.5000, 0.0000],
                 [0.0000, 2.0000]]])

    References:
        Chefer, Gur, Wolf, ICCV 2021, eqs. 5-6.
    """
    found = torch.eye(maps[0].shape[-1], device=maps[0].device).expand(len(maps[0]), -1, -1)
    for attention, gradient in zip(maps, gradients, strict=True):
        own = (gradient * attention).detach().float().clamp_min(0).mean(1)
        found = found + own @ found
    return found


@dataclass(frozen=True)
class _Tower:
    """The attention layers of an image tower, in order, what writes one out, and how a map is read off R."""

    name: str
    layers: Sequence[nn.Module]
    write_out: Callable[[nn.Module, list[Tensor]], contextlib.AbstractContextManager[None]]
    grid: tuple[int, int]
    prefix: int
    by_mean: bool

    def read(self, rolled: Tensor) -> Tensor:
        """The map [B, h, w] of R [B, N, N]."""
        size = rolled.shape[-1] - self.prefix
        if size != self.grid[0] * self.grid[1]:
            raise ModelError(f"{self.name} has {size} patches, which is not the grid {self.grid} that it states. {SUPPORTED}")
        if self.by_mean:
            own = rolled - torch.eye(rolled.shape[-1], device=rolled.device)
            return own[:, self.prefix :, self.prefix :].mean(1).reshape(-1, *self.grid)
        return rolled[:, 0, self.prefix :].reshape(-1, *self.grid)


def _tower_of(model: ImageTextModel) -> _Tower:
    visual: Any = model.clip.get_submodule("visual")
    name, transformer = f"{model.name} ({type(visual).__name__})", model.image_transformer
    if transformer is not None and visual.attn_pool is None and visual.pool_type in ("tok", "avg"):
        layers: list[Any] = [block.attn for block in transformer.get_submodule("resblocks").children()]
        if all(isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None for layer in layers):
            return _Tower(name, layers, _torch_attention, tuple(visual.grid_size), 1, visual.pool_type == "avg")
    trunk: Any = getattr(visual, "trunk", None)
    layers = [getattr(block, "attn", None) for block in getattr(trunk, "blocks", ())]
    pooled = getattr(trunk, "global_pool", None)
    if layers and pooled in ("token", "avg") and all(hasattr(layer, "fused_attn") and hasattr(layer, "attn_drop") for layer in layers):
        prefix = int(trunk.num_prefix_tokens)
        return _Tower(name, layers, _timm_attention, tuple(trunk.patch_embed.grid_size), prefix, pooled == "avg")
    raise ModelError(f"There are no maps of attention for the image tower of {name}. {SUPPORTED}")


@contextlib.contextmanager
def _written_out(model: ImageTextModel, tower: _Tower, maps: list[Tensor]) -> Iterator[None]:
    """Let every attention layer note its map in `maps` while this is open; afterwards the model is as it was."""
    training = {module: module.training for module in model.modules()}
    kept_less: dict[Any, bool] = {module: module.grad_checkpointing for module in training if hasattr(module, "grad_checkpointing")}  # type: ignore[misc]
    precision = model.precision
    try:
        model.eval()
        model.precision = "fp32"
        for module in kept_less:
            module.grad_checkpointing = False  # what is computed again in the backward pass is not what was noted
        with contextlib.ExitStack() as stack:
            for layer in tower.layers:
                stack.enter_context(tower.write_out(layer, maps))
            yield
    finally:
        model.precision = precision
        for module, before in kept_less.items():
            module.grad_checkpointing = before
        for module, was in training.items():
            module.training = was


@contextlib.contextmanager
def _torch_attention(layer: nn.Module, maps: list[Tensor]) -> Iterator[None]:
    """`nn.MultiheadAttention` as plain matrix products: the weights that it returns itself are outside the graph."""

    def forward(query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None = None, **_: object) -> tuple[Tensor, None]:
        attention: Any = layer
        inputs = [one if attention.batch_first else one.transpose(0, 1) for one in (query, key, value)]
        weights = attention.in_proj_weight.chunk(3)
        biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(one, weight, bias).reshape(*one.shape[:2], attention.num_heads, -1).transpose(1, 2)
            for one, weight, bias in zip(inputs, weights, biases, strict=True)
        )
        logits = q @ k.mT / q.shape[-1] ** 0.5
        noted = _noted((logits if attn_mask is None else logits + attn_mask).softmax(-1), maps)
        out = attention.out_proj((noted @ v).transpose(1, 2).flatten(2))
        return out if attention.batch_first else out.transpose(0, 1), None

    before = layer.__dict__.get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before


@contextlib.contextmanager
def _timm_attention(layer: Any, maps: list[Tensor]) -> Iterator[None]:  # noqa: ANN401
    """timm's attention, which writes itself out when told to, and passes its map through `attn_drop`."""
    before = layer.fused_attn
    handle = layer.attn_drop.register_forward_hook(lambda _, given, out: _noted(out, maps))
    layer.fused_attn = False
    try:
        yield
    finally:
        layer.fused_attn = before
        handle.remove()


def _noted(attention: Tensor, maps: list[Tensor]) -> Tensor:
    """The map, which the score can be derived by even where no parameter requires a gradient."""
    maps.append(attention if attention.requires_grad else attention.requires_grad_())
    return attention
