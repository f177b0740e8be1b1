"""Attention's input projection is one matrix product where bfloat16 computes without gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from surefoot import layers
from surefoot.layers import folding
from surefoot.model import ImageTextModel

LENGTH, WIDTH = 7, 64


class Block(nn.Module):
    """Self-attention as open_clip's blocks call it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        nn.init.normal_(self.attn.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]


@contextmanager
def products() -> Iterator[list[list[int]]]:
    """The shapes of all inputs of batched matrix products meanwhile."""
    seen: list[list[int]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten.bmm.default:
                seen.append([*args[1].shape])
            return func(*args, **(kwargs or {}))

    with Watch():
        yield seen


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_frozen_and_judged_features_come_of_one_product_and_no_copies_of_weights(
    frozen: bool, context: type[torch.no_grad], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "WIDE", 0)
    block = Block()
    x = torch.randn(5, LENGTH, WIDTH)
    with torch.no_grad():
        exact = block(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            before = block.requires_grad_(not frozen)(x).float()
    block = folding(block).eval()  # type: ignore[assignment]
    with context(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = block(x).float()
        with products() as seen:
            block(x)
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.02)
    assert (found - exact).abs().mean() <= 1.2 * (before - exact).abs().mean(), "as near to float32 as it was"
    assert [LENGTH, WIDTH, 3 * WIDTH] not in seen, "one product for each position"


def test_float32_gradients_and_other_attention_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "WIDE", 0)
    block, x = folding(Block()).eval(), torch.randn(5, LENGTH, WIDTH)
    (hook,) = block.attn._forward_pre_hooks.values()  # type: ignore[union-attr]
    with torch.no_grad():
        assert hook(block, (x, x, x)) is None, "float32"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            turned = hook(block, (x, x, x, "more"))
            assert turned[0] is turned[1] is turned[2] and turned[3] == "more" and torch.equal(turned[0], x)
            assert turned[0].transpose(0, 1).is_contiguous() and not x.transpose(0, 1).is_contiguous()
            assert hook(block, (x, x.clone(), x)) is None, "no self-attention"
            assert hook(block, (x[0], x[0], x[0])) is None, "no batch"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert hook(block, (x, x, x)) is None, "in training"


def test_a_copy_is_not_turned_twice_and_narrow_towers_not_at_all(monkeypatch: pytest.MonkeyPatch, tiny_model: ImageTextModel) -> None:
    assert not any(module._forward_pre_hooks for module in tiny_model.modules())
    assert not folding(Block()).attn._forward_pre_hooks  # type: ignore[union-attr]
    monkeypatch.setattr(layers, "WIDE", 3 * WIDTH * WIDTH)
    block = folding(Block())
    again = folding(copy.deepcopy(block))
    assert len(block.attn._forward_pre_hooks) == len(again.attn._forward_pre_hooks) == 1  # type: ignore[union-attr, arg-type]
