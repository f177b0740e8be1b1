"""LoRA: low-rank updates of linear and attention weights, attached to a model and folded back into its own weights.

    W = W_0 + (alpha / r) B A

W_0 [out, in] is frozen; A [r, in] is drawn from the seed and B [out, r] starts at zero, so that an attached model computes exactly what
it did before. The q, k and v projections of an attention layer are one weight [3 D, D] here and share one A.

References:
    Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen. LoRA: Low-Rank Adaptation of Large Language Models. ICLR 2022, equation 3.
    Differences: A is uniform in +-1/sqrt(in), as in the released code; the paper says Gaussian. No dropout on the input of A.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from surefoot.errors import SettingError


class LowRank(nn.Module):
    """W_0 -> W_0 + factor * B A, with all that is needed to put W_0 back where and as it was.

    Attributes:
        lora_a: A [r, in].
        lora_b: B [out, r].
        factor: alpha / r.
        order: the names of the layer's parameters, in the order they had before.
        trained: whether W_0 required a gradient.
    """

    def __init__(self, lora_a: Tensor, lora_b: Tensor, factor: float, order: tuple[str, ...], trained: bool) -> None:
        super().__init__()
        self.lora_a, self.lora_b = nn.Parameter(lora_a), nn.Parameter(lora_b)
        self.factor, self.order, self.trained = factor, order, trained

    def forward(self, weight: Tensor) -> Tensor:
        """W [out, in] of W_0 [out, in]."""
        # without autocast: what training computes with is then what `fold` writes, to the last bit
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.factor * (self.lora_b @ self.lora_a)


def attach(module: nn.Module, names: Collection[str], *, rank: int, alpha: float | None, seed: int) -> dict[str, nn.Parameter]:
    """Give every linear and attention weight among `names` a trainable low-rank update, and freeze the weight itself.

    Embeddings, convolutions, norms, tables, biases and bare projections among `names` are left as they are.

    Args:
        module: the model; changed in place until `fold`.
        names: parameter names, as in `module.named_parameters()`.
        rank: r. The paper uses 1 to 64.
        alpha: numerator of the factor alpha / r; r itself if None, a factor of 1.
        seed: of A.

    Returns:
        {"<weight name>.lora_a": A [r, in], "<weight name>.lora_b": B [out, r]}, the parameters to train, in the model's order.

    Raises:
        SettingError: a rank or alpha out of its range, or no weight among `names` that can take an update.

    Examples:
        >>> layer = nn.Linear(8, 4)
        >>> {name: tuple(p.shape) for name, p in attach(layer, ["weight", "bias"], rank=2, alpha=None, seed=0).items()}
        {'weight.lora_a': (2, 8), 'weight.lora_b': (4, 2)}
        >>> fold(layer)
        >>> [name for name, _ in layer.named_parameters()]
        ['weight', 'bias']
    """
    if rank < 1 or (alpha is not None and alpha <= 0):
        raise SettingError(f"The adapter's rank is {rank} and its alpha {alpha}. The rank must be 1 or more, alpha above 0 or none.")
    found = [(name, layer, key) for name, layer, key in _adaptable(module) if name in names]
    if not found:
        raise SettingError(
            f"None of the {len(names)} parameters to adapt is the weight of a linear or attention layer without an adapter. "
            "Name whole towers or ranges of their blocks, such as visual or text[-3:], and fold an earlier adapter first."
        )
    orders = {layer: tuple(layer._parameters) for _, layer, _ in found}
    generator = torch.Generator().manual_seed(seed)
    trained: dict[str, nn.Parameter] = {}
    for name, layer, key in found:
        weight: nn.Parameter = getattr(layer, key)
        lora_a = (2 * torch.rand(rank, weight.shape[1], generator=generator) - 1) / math.sqrt(weight.shape[1])
        lora_b = torch.zeros(weight.shape[0], rank)
        factor = (rank if alpha is None else alpha) / rank
        low_rank = LowRank(lora_a.to(weight), lora_b.to(weight), factor, orders[layer], weight.requires_grad)
        parametrize.register_parametrization(layer, key, low_rank)
        weight.requires_grad_(False)
        trained |= {f"{name}.lora_a": low_rank.lora_a, f"{name}.lora_b": low_rank.lora_b}
    return trained


def fold(module: nn.Module) -> None:
    """Write every update into its weight and remove it: the same parameters under the same names in the same order as before `attach`."""
    for _, layer, key in list(_adapted(module)):
        chain: Any = layer.parametrizations[key]  # type: ignore[index]
        with torch.no_grad():
            chain.original.copy_(getattr(layer, key))
        parametrize.remove_parametrizations(layer, key, leave_parametrized=False)
        chain.original.requires_grad_(chain[0].trained)
        for name in chain[0].order:
            if name in layer._parameters:
                layer._parameters[name] = layer._parameters.pop(name)


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict that `fold` would leave, under the same names but in another order; nothing is changed."""
    state = {name: tensor for name, tensor in module.state_dict().items() if ".parametrizations." not in f".{name}"}
    with torch.no_grad():
        return state | {name: getattr(layer, key) for name, layer, key in _adapted(module)}


def _adaptable(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, layer, the layer's own name) of every weight that can take an update."""
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.MultiheadAttention):
            for key, parameter in layer._parameters.items():
                if parameter is not None and parameter.ndim == 2:
                    yield _join(path, key), layer, key


def _adapted(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, layer, the layer's own name) of every weight that has one."""
    for path, layer in module.named_modules():
        if parametrize.is_parametrized(layer):
            for key, chain in layer.parametrizations.items():
                if isinstance(chain[0], LowRank):
                    yield _join(path, key), layer, key


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
