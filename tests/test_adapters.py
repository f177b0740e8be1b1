"""LoRA: the equation, what moves, and that folding leaves a checkpoint as if nothing had been attached."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from surefoot.adapters import attach, fold, merged_state
from surefoot.errors import SettingError
from surefoot.model import ImageTextModel

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TEXTS = ["a cat", "a drawing of a box"]


def attached(model: ImageTextModel, rank: int = 2, alpha: float | None = None, seed: int = 0) -> dict[str, nn.Parameter]:
    names = [name for group in ("visual", "text") for name in model.groups()[group]]
    return attach(model.clip, names, rank=rank, alpha=alpha, seed=seed)


def features(model: ImageTextModel, grad: bool = False) -> tuple[Tensor, Tensor]:
    with contextlib.nullcontext() if grad else torch.inference_mode():
        return model.encode_image(IMAGES), model.encode_text(model.tokenize(TEXTS))


def train(model: ImageTextModel, trained: dict[str, nn.Parameter], steps: int = 2) -> None:
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    for _ in range(steps):
        model.train()
        logits = model.scale * model.encode_image(IMAGES[:2]) @ model.encode_text(model.tokenize(TEXTS)).T
        optimizer.zero_grad()
        F.cross_entropy(logits, torch.arange(2)).backward()
        optimizer.step()
        model.eval()
        features(model)  # evaluation between steps must not disturb them


def test_effective_weight_is_the_papers_equation() -> None:
    layer = nn.Linear(6, 5)
    start = layer.weight.detach().clone()
    trained = attach(layer, ["weight"], rank=2, alpha=3.0, seed=0)
    a, b = trained["weight.lora_a"], trained["weight.lora_b"]
    with torch.no_grad():
        b.copy_(torch.randn(5, 2))
    expected = start.clone()
    for row in range(5):
        for column in range(6):
            expected[row, column] += 3.0 / 2 * sum(b[row, r] * a[r, column] for r in range(2)).detach()
    torch.testing.assert_close(layer.weight, expected)
    x = torch.randn(4, 6)
    torch.testing.assert_close(layer(x), x @ expected.T + layer.bias)
    fold(layer)
    torch.testing.assert_close(layer.weight, expected, rtol=0, atol=0)


def test_alpha_is_the_rank_if_none_is_given() -> None:
    one, two = nn.Linear(6, 5), nn.Linear(6, 5)
    for layer, alpha in ((one, None), (two, 4.0)):
        trained = attach(layer, ["weight"], rank=4, alpha=alpha, seed=0)
        with torch.no_grad():
            trained["weight.lora_b"].fill_(1.0)
            layer.parametrizations.weight.original.zero_()
    assert torch.equal(one.weight, two.weight) and bool(one.weight.any())


@pytest.mark.parametrize("grad", [False, True])
def test_attached_model_computes_what_it_did_bit_for_bit(tiny_model: ImageTextModel, grad: bool) -> None:
    tiny_model.requires_grad_(grad)  # torch picks the kernel of a product by whether the weight requires a gradient
    before, weights = features(tiny_model, grad), tiny_model.weights()
    parameters = [(name, id(p), p.requires_grad) for name, p in tiny_model.clip.named_parameters()]
    attached(tiny_model)
    assert all(map(torch.equal, features(tiny_model, grad), before))
    assert tiny_model.weights().keys() == weights.keys()
    fold(tiny_model.clip)
    assert all(map(torch.equal, features(tiny_model, grad), before))
    assert [(name, id(p), p.requires_grad) for name, p in tiny_model.clip.named_parameters()] == parameters
    assert list(tiny_model.weights()) == list(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tiny_model.weights().items())
    assert not any(parametrize.is_parametrized(module) for module in tiny_model.modules())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_the_adapted_weights_move_and_folding_keeps_the_trained_function(tiny_model: ImageTextModel, precision: str) -> None:
    tiny_model.precision = precision  # type: ignore[assignment]
    tiny_model.requires_grad_(False)
    before, frozen = features(tiny_model), tiny_model.weights()
    trained = attached(tiny_model)
    train(tiny_model, trained)
    after, merged = features(tiny_model), tiny_model.weights()
    assert not torch.equal(after[0], before[0]) and not torch.equal(after[1], before[1])
    fold(tiny_model.clip)
    folded = tiny_model.weights()
    assert folded.keys() == merged.keys() == frozen.keys()
    assert all(torch.equal(folded[name], merged[name]) for name in folded)
    assert all(map(torch.equal, features(tiny_model), after))
    moved = {name for name in frozen if not torch.equal(folded[name], frozen[name])}
    assert moved == {name.rpartition(".")[0] for name in trained}
    kinds = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    assert moved == {name for name in frozen if name.endswith(kinds)}


def test_every_update_gets_a_gradient_and_no_original_does(tiny_model: ImageTextModel) -> None:
    trained = attached(tiny_model)
    for b in (p for name, p in trained.items() if name.endswith("lora_b")):
        nn.init.normal_(b)
    logits = tiny_model.encode_image(IMAGES[:2]) @ tiny_model.encode_text(tiny_model.tokenize(TEXTS)).T
    logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in trained.values())
    assert all(p.grad is None for name, p in tiny_model.clip.named_parameters() if name.endswith(".original"))


def test_far_fewer_values_train() -> None:
    layers = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
    whole = sum(p.numel() for p in layers.parameters())
    trained = attach(layers, [name for name, _ in layers.named_parameters()], rank=4, alpha=None, seed=0)
    assert sum(p.numel() for p in trained.values()) < whole / 20
    assert {id(p) for p in layers.parameters() if p.requires_grad} >= {id(p) for p in trained.values()}


def test_seed_alone_decides_the_draw(tiny_model: ImageTextModel) -> None:
    draws = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(tiny_model)
        torch.rand(1)
        draws.append({name: p.detach() for name, p in attached(model, seed=seed).items()})
    assert all(torch.equal(draws[0][name], draws[1][name]) for name in draws[0])
    a = next(iter(draws[0]))
    assert a.endswith("lora_a") and not torch.equal(draws[0][a], draws[2][a])
    assert draws[0][a].abs().max() <= draws[0][a].shape[1] ** -0.5
    assert all(not bool(p.any()) for name, p in draws[0].items() if name.endswith("lora_b"))


def test_attention_reads_the_update_in_training_and_in_its_fast_path() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    trained = attach(attention, ["in_proj_weight", "out_proj.weight", "in_proj_bias"], rank=2, alpha=None, seed=0)
    assert list(trained) == [f"{w}.lora_{m}" for w in ("in_proj_weight", "out_proj.weight") for m in "ab"]
    for b in (trained["in_proj_weight.lora_b"], trained["out_proj.weight.lora_b"]):
        nn.init.normal_(b)
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    plain.load_state_dict(merged_state(attention))
    x = torch.randn(2, 5, 8)
    for module in (attention, plain):
        module.eval()
    with torch.no_grad():
        fast, expected = attention(x, x, x, need_weights=False)[0], plain(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(fast, expected)
    torch.testing.assert_close(attention.train()(x, x, x, need_weights=False)[0], expected)


def test_attention_with_separate_projections_keeps_all_its_parameters() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    names = [name for name, _ in attention.named_parameters()]
    attach(attention, ["q_proj_weight"], rank=1, alpha=None, seed=0)
    attach(attention, ["k_proj_weight", "v_proj_weight"], rank=1, alpha=None, seed=0)
    fold(attention)
    assert sorted(name for name, _ in attention.named_parameters()) == sorted(names)


@pytest.mark.parametrize(
    ("names", "rank", "alpha", "message"),
    [
        (
            ["positional_embedding", "visual.proj", "token_embedding.weight", "visual.conv1.weight", "ln_final.weight"],
            2,
            None,
            "None of the 5",
        ),
        (["visual.transformer.resblocks.0.mlp.c_fc.weight"], 0, None, "rank must be 1 or more"),
        (["visual.transformer.resblocks.0.mlp.c_fc.weight"], 2, 0.0, "alpha above 0"),
    ],
)
def test_what_cannot_be_adapted_is_said(tiny_model: ImageTextModel, names: list[str], rank: int, alpha: float | None, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        attach(tiny_model.clip, names, rank=rank, alpha=alpha, seed=0)


def test_a_second_adapter_on_the_same_weights_is_refused(tiny_model: ImageTextModel) -> None:
    attached(tiny_model)
    with pytest.raises(SettingError, match="fold an earlier adapter"):
        attach(tiny_model.clip, tiny_model.groups()["visual"], rank=2, alpha=None, seed=0)


def test_layer_ranges_of_an_attached_model_still_cover_it(tiny_model: ImageTextModel) -> None:
    attached(tiny_model)
    names = [name for block in tiny_model.blocks("visual") for name in block]
    assert sorted(names) == sorted(tiny_model.groups()["visual"])
