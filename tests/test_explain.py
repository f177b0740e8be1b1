"""Attention relevance against the rule written out by hand, and that it leaves the model as it found it."""

from __future__ import annotations

import copy
import math
from typing import Any

import open_clip
import pytest
import torch
from conftest import fresh, with_resnet
from torch import Tensor

from surefoot.errors import ModelError, SettingError
from surefoot.explain import relevance, rollout
from surefoot.model import ImageTextModel

WIDTH, HEADS, SIDE, PATCH = 12, 3, 6, 2
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}


def with_tower(model: ImageTextModel, **vision: Any) -> ImageTextModel:  # noqa: ANN401
    """The model with a tiny tower whose every weight matters: 2 blocks, 3 heads, 3 x 3 patches."""
    torch.manual_seed(3)
    config = {"image_size": SIDE, "layers": 2, "width": WIDTH, "head_width": WIDTH // HEADS, "patch_size": PATCH, **vision}
    model.clip = open_clip.CLIP(5, config, TEXT)
    with torch.no_grad():
        for parameter in model.clip.visual.parameters():
            parameter.normal_(0, 0.6)
    return model.eval()


def layer_norm(x: Tensor, module: torch.nn.LayerNorm) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    spread = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(spread + module.eps) * module.weight + module.bias


def by_hand(tower: Any, image: Tensor, direction: Tensor, pool: str) -> Tensor:  # noqa: ANN401
    """The map of one image [3, H, W], by loops over patches, heads and tokens."""
    rows_of, columns_of = (side // PATCH for side in image.shape[1:])
    tokens = [tower.class_embedding]
    for row in range(rows_of):
        for column in range(columns_of):
            patch = image[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
            tokens.append((tower.conv1.weight * patch).sum(dim=(1, 2, 3)))
    x = layer_norm(torch.stack(tokens) + tower.positional_embedding, tower.ln_pre)
    count, size, maps = len(tokens), WIDTH // HEADS, []
    for block in tower.transformer.resblocks:
        inner, weight, bias = layer_norm(x, block.ln_1), block.attn.in_proj_weight, block.attn.in_proj_bias
        q, k, v = (inner @ weight[part * WIDTH : (part + 1) * WIDTH].T + bias[part * WIDTH : (part + 1) * WIDTH] for part in range(3))
        own = []
        for head in range(HEADS):
            of = slice(head * size, (head + 1) * size)
            rows = []
            for a in range(count):
                powers = torch.stack([torch.exp((q[a, of] * k[b, of]).sum() / math.sqrt(size)) for b in range(count)])
                rows.append(powers / powers.sum())
            own.append(torch.stack(rows))
        attention = torch.stack(own)
        attention.retain_grad()
        maps.append(attention)
        heads = [attention[head] @ v[:, head * size : (head + 1) * size] for head in range(HEADS)]
        x = x + torch.cat(heads, dim=1) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        x = x + block.mlp(layer_norm(x, block.ln_2))
    x = layer_norm(x, tower.ln_post)
    feature = (x[0] if pool == "tok" else x[1:].mean(0)) @ tower.proj
    score = (feature / feature.norm() * direction).sum()
    score.backward()
    rolled = [[float(a == b) for b in range(count)] for a in range(count)]
    for attention in maps:
        assert attention.grad is not None
        bar = [[0.0] * count for _ in range(count)]
        for a in range(count):
            for b in range(count):
                for head in range(HEADS):
                    bar[a][b] += max(float(attention.grad[head, a, b] * attention.detach()[head, a, b]), 0.0) / HEADS
        rolled = [
            [rolled[a][b] + sum(bar[a][between] * rolled[between][b] for between in range(count)) for b in range(count)]
            for a in range(count)
        ]
    if pool == "tok":
        found = [rolled[0][b] for b in range(1, count)]
    else:
        found = [sum(rolled[a][b] - (a == b) for a in range(1, count)) / (count - 1) for b in range(1, count)]
    return torch.tensor(found).reshape(rows_of, columns_of)


@pytest.mark.parametrize(("pool", "height", "width"), [("tok", 6, 6), ("avg", 6, 6), ("tok", 4, 8)])
def test_relevance_is_the_rule_written_out(tiny_model: ImageTextModel, pool: str, height: int, width: int) -> None:
    model = with_tower(tiny_model, pool_type=pool, image_size=[height, width])
    image, direction = torch.randn(2, 3, height, width), torch.randn(2, 5)
    found = relevance(model, image, direction)
    assert found.shape == (2, height // 2, width // 2)
    expected = torch.stack([by_hand(model.clip.visual, image[i], direction[i], pool) for i in range(2)])
    assert (expected.amax(dim=(1, 2)) > 1e-3).all(), "a map that is nothing would prove nothing"
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-6)


def test_rows_of_a_batch_do_not_mix_and_the_score_counts(tiny_model: ImageTextModel) -> None:
    model = with_tower(tiny_model)
    image, direction = torch.randn(3, 3, SIDE, SIDE), torch.randn(3, 5)
    together = relevance(model, image, direction)
    alone = torch.cat([relevance(model, image[i : i + 1], direction[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(relevance(model, image, -direction), together, rtol=0.1)


def test_a_larger_score_scales_the_relevance_of_one_block(tiny_model: ImageTextModel) -> None:
    model = with_tower(tiny_model, layers=1)
    image, direction = torch.randn(2, 3, SIDE, SIDE), torch.randn(2, 5)
    torch.testing.assert_close(relevance(model, image, 7 * direction), 7 * relevance(model, image, direction), rtol=1e-4, atol=1e-7)
    # of several blocks the products of l of them grow with the l-th power: A_bar_2 A_bar_1 by c^2
    maps, gradients = torch.rand(2, 1, 2, 4, 4).softmax(-1), torch.randn(2, 1, 2, 4, 4)
    first, second = ((gradients[i] * maps[i]).clamp_min(0).mean(1) for i in range(2))
    expected = torch.eye(4) + 3 * (first + second) + 9 * second @ first
    torch.testing.assert_close(rollout(list(maps), list(3 * gradients)), expected)


def test_a_patch_that_does_not_reach_the_class_token_has_no_relevance(tiny_model: ImageTextModel) -> None:
    model = with_tower(tiny_model)
    blind = 5  # the token of the patch 4, which no token may attend to
    mask = torch.zeros(10, 10)
    mask[:, blind] = -torch.inf

    def attend(layer: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        return layer.attn(x, x, x, need_weights=False, attn_mask=mask)[0]  # type: ignore[no-any-return]

    for block in model.clip.visual.transformer.resblocks:
        block.attention = lambda q_x, layer=block, **_: attend(layer, q_x)
    found = relevance(model, torch.randn(1, 3, SIDE, SIDE), torch.randn(1, 5)).flatten()
    assert found[blind - 1] == 0
    assert (found > 0).sum() > 3


def test_the_model_is_left_as_it_was(tiny_model: ImageTextModel) -> None:
    model = tiny_model
    image, direction = torch.randn(2, 3, 32, 32), torch.randn(2, 16)
    expected = relevance(model, image, direction)
    model.precision = "bf16"
    model.train()
    model.clip.visual.ln_post.eval()
    model.clip.set_grad_checkpointing(True)
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    before = {name: tensor.clone() for name, tensor in model.clip.state_dict().items()}
    modes = [module.training for module in model.modules()]
    outputs = model.encode_image(image)
    found = relevance(model, image, direction)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert not found.requires_grad
    assert torch.equal(model.encode_image(image), outputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.clip.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert model.precision == "bf16"
    assert model.clip.visual.transformer.grad_checkpointing
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(parameter.grad is None for parameter in list(model.parameters())[1:])
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())


def test_a_model_in_training_is_explained_as_it_answers(tiny_model: ImageTextModel) -> None:
    model = with_tower(tiny_model, patch_dropout=0.5)
    image, direction = torch.randn(2, 3, SIDE, SIDE), torch.randn(2, 5)
    expected = relevance(model, image, direction)
    assert torch.equal(relevance(model.train(), image, direction), expected)


def test_nothing_stays_changed_when_the_tower_fails(tiny_model: ImageTextModel) -> None:
    tiny_model.train()
    with pytest.raises(RuntimeError, match="channels"):
        relevance(tiny_model, torch.randn(1, 4, 32, 32), torch.randn(1, 16))
    assert not any("forward" in vars(module) for module in tiny_model.modules())
    assert all(module.training for module in tiny_model.modules())


def test_frozen_weights_and_inference_mode_give_the_same_map(tiny_model: ImageTextModel) -> None:
    image, direction = torch.randn(2, 3, 32, 32), torch.randn(2, 16)
    expected = relevance(tiny_model, image, direction)
    assert expected.max() > 0
    frozen = tiny_model.frozen_copy()
    with torch.inference_mode():
        inside = relevance(frozen, image.clone(), direction.clone())
    assert torch.equal(inside.clone(), expected)


def test_maps_are_in_float32_whatever_is_around_them(tiny_model: ImageTextModel) -> None:
    model = with_tower(tiny_model)
    image, direction = torch.randn(2, 3, SIDE, SIDE), torch.randn(2, 5)
    expected = relevance(model, image, direction)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = relevance(model, image, direction)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found, expected)


def test_maps_are_those_of_the_features_that_the_model_gives(tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    image, given = torch.randn(2, 3, 32, 32), []
    encode = tiny_model.encode_image
    monkeypatch.setattr(tiny_model, "encode_image", lambda batch: given.append(encode(batch)) or given[-1])
    relevance(tiny_model, image, torch.randn(2, 16))
    torch.testing.assert_close(given[0], encode(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("pool", "registers"), [("token", 0), ("avg", 0), ("token", 2), ("avg", 2)])
def test_timm_towers_agree_with_their_own_attention(tiny_model: ImageTextModel, pool: str, registers: int) -> None:
    model = with_timm(tiny_model, pool, registers)
    trunk: Any = model.clip.visual.trunk
    image, direction = torch.randn(2, 3, 32, 48), torch.randn(2, 16)
    found = relevance(model, image, direction)
    assert [layer.attn.fused_attn for layer in trunk.blocks] == [True, True]
    assert not any(module._forward_hooks for module in model.modules())
    twin, maps = copy.deepcopy(model), []
    for block in twin.clip.visual.trunk.blocks:  # type: ignore[union-attr]
        block.attn.forward = lambda x, layer=block.attn, **_: _timm_by_hand(layer, x, maps)
    score = (twin.encode_image(image) * direction).sum()
    gradients = torch.autograd.grad(score, maps)
    rolled = torch.eye(maps[0].shape[-1]).repeat(2, 1, 1)
    for attention, gradient in zip(maps, gradients, strict=True):
        rolled = rolled + (gradient * attention).clamp_min(0).mean(1) @ rolled
    first = rolled.shape[-1] - 6  # the class token and the registers are no patches
    assert first == 1 + registers and found.shape == (2, 2, 3)
    own = rolled[:, 0, first:] if pool == "token" else (rolled - torch.eye(first + 6))[:, first:, first:].mean(1)
    torch.testing.assert_close(found.flatten(1), own.detach(), rtol=1e-4, atol=1e-6)


def _timm_by_hand(layer: Any, x: Tensor, maps: list[Tensor]) -> Tensor:  # noqa: ANN401
    q, k, v = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    maps.append((q @ k.mT * layer.head_dim**-0.5).softmax(-1))
    return layer.proj((maps[-1] @ v).transpose(1, 2).flatten(2))


def with_timm(model: ImageTextModel, pool: str, registers: int = 0) -> ImageTextModel:
    import timm

    torch.manual_seed(0)
    trunk = timm.models.VisionTransformer(
        img_size=(32, 48),
        patch_size=16,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=0,
        global_pool=pool,
        class_token=True,
        reg_tokens=registers,
    )
    visual = torch.nn.Module()
    visual.trunk = trunk
    visual.forward = trunk.forward  # type: ignore[method-assign]
    model = fresh(model)
    model.clip.visual = visual
    return model.eval()


def test_towers_without_such_maps_are_refused_with_what_is_supported(tiny_model: ImageTextModel) -> None:
    image, direction = torch.randn(1, 3, 32, 32), torch.randn(1, 16)
    with pytest.raises(ModelError, match=r"ModifiedResNet.*Supported are.*--no-maps"):
        relevance(with_resnet(fresh(tiny_model)), image, direction)
    with pytest.raises(ModelError, match="Supported are"):
        relevance(with_timm(tiny_model, "map"), image, direction)
    pooled = with_tower(fresh(tiny_model), attentional_pool=True, attn_pooler_heads=1)
    with pytest.raises(ModelError, match="Supported are"):
        relevance(pooled, torch.randn(1, 3, SIDE, SIDE), torch.randn(1, 5))
    with pytest.raises(SettingError, match=r"\[B, D\]"):
        relevance(tiny_model, image, direction[0])
