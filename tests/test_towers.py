"""Towers compute attention without detours and of the last block only the token that is read: the same features and gradients."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import open_clip
import pytest
import torch
from conftest import CONFIG
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from surefoot import towers
from surefoot.adapters import attach
from surefoot.layers import set_checkpointing
from surefoot.model import ImageTextModel
from surefoot.precision import ATTENTION, attention
from surefoot.prefixes import planted
from surefoot.towers import attend, quickly, shortened, whole

TEXTS = ["a cat", "an icon of a very long and winding name of a thing that goes on", "x"]
ALIKE = ["an icon of a cat", "an icon of a dog", "an icon of a cat", "an icon of a cat and a dog", "an icon", "a dog", "a dog and a cat"]
# [configuration of the image tower, tokens of which its last block computes the MLP]
VISION: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 1),
    "norm after the pool": ({"final_ln_after_pool": True}, 1),
    "layer scale": ({"ls_init_value": 0.1}, 1),
    "no norm before": ({"no_ln_pre": True}, 1),
    "mean of the patches": ({"pool_type": "avg"}, 5),
    "attention pools": ({"attentional_pool": True, "attn_pooler_heads": 2}, 5),
    "tokens come out too": ({"output_tokens": True}, 5),
    "another block": ({"qk_norm": True}, 5),
}


def clip_of(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, *, custom: bool = False) -> Any:  # noqa: ANN401
    config: dict[str, Any] = copy.deepcopy(CONFIG["model_cfg"])
    config["vision_cfg"] |= vision or {}
    config["text_cfg"] |= text or {}
    torch.manual_seed(0)
    clip = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config).double()
    for name, parameter in clip.named_parameters():
        if name.endswith(("bias", "ln_1.weight", "ln_2.weight")):
            nn.init.normal_(parameter, std=0.3)  # what is zero or one hides mistakes
    return clip


def gradients(clip: nn.Module, features: Tensor) -> dict[str, Tensor]:
    clip.zero_grad()
    (features * torch.arange(1.0, features.numel() + 1).reshape(features.shape).sin()).sum().backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in clip.named_parameters() if p.grad is not None}


def untouched(clip: nn.Module) -> bool:
    """Whether nothing of a pass is left on the modules."""
    left = {"forward", "attn_mask", "positional_embedding"}
    return not any(left & set(module.__dict__) for module in clip.modules())


@contextmanager
def seen(block: Any) -> Iterator[list[int]]:  # noqa: ANN401
    """How many tokens of each row the MLP of a block computes meanwhile."""
    found: list[int] = []

    def note(_: nn.Module, given: tuple[Tensor]) -> None:
        found.append(given[0].shape[1])

    note.only_notes = True  # type: ignore[attr-defined]
    handle = block.mlp.register_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("kernel", ATTENTION)
@pytest.mark.parametrize("kind", VISION)
def test_images_have_the_same_features_and_gradients(kind: str, kernel: str) -> None:
    config, tokens = VISION[kind]
    clip, image = clip_of(config), torch.randn(3, 3, 32, 32, dtype=torch.double)

    def features() -> Tensor:
        out = clip.visual(image)
        return out[0] if isinstance(out, tuple) else out

    expected = features()
    before = gradients(clip, expected)
    with seen(clip.visual.transformer.resblocks[-1]) as computed, quickly(clip.visual, kernel):
        found = features()
        assert any("forward" in module.__dict__ for module in clip.visual.modules()) != (kind == "another block")
    assert computed == [tokens]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert_same(gradients(clip, found), before)
    assert not any("forward" in module.__dict__ for module in clip.modules())


@pytest.mark.parametrize("most", [1, 14, 128])
@pytest.mark.parametrize("kernel", ATTENTION)
@pytest.mark.parametrize(("custom", "text"), [(False, {}), (True, {}), (True, {"ls_init_value": 0.1})])
def test_texts_have_the_same_features_and_gradients(
    custom: bool, text: dict[str, Any], kernel: str, most: int, tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.clip = clip = clip_of(text=text, custom=custom)
    tokens = tiny_model.tokenize([*TEXTS, *ALIKE])
    expected = clip.encode_text(tokens)
    before = gradients(clip, expected)
    monkeypatch.setattr("surefoot.model.planted", lambda *given: planted(*given, most, worth=9))
    with seen((clip.text if custom else clip).transformer.resblocks[-1]) as computed:
        found = tiny_model._text_features(tokens, kernel)
    assert computed == [1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert_same(gradients(clip, found), before)
    assert untouched(clip)


def test_what_texts_share_is_computed_once(tiny_model: ImageTextModel) -> None:
    tokens = tiny_model.tokenize(ALIKE)
    texts = [row[: end + 1] for row, end in zip(tokens.tolist(), tokens.argmax(1).tolist(), strict=True)]
    beginnings = {tuple(text[:length]) for text in texts for length in range(1, len(text) + 1)}
    with seen(tiny_model.clip.transformer.resblocks[0]) as computed:
        tiny_model.encode_text(tokens)
    assert computed == [len(beginnings)] and len(beginnings) < sum(map(len, texts)) / 1.5


class Doubled(nn.Module):
    def forward(self, given: Tensor) -> Tensor:
        return 2 * given


def hinder(reason: str, clip: Any, stack: contextlib.ExitStack) -> None:  # noqa: ANN401
    """Make a text tower, or what is around a pass, such that texts cannot be trees."""
    tower = getattr(clip, "text", clip)
    first, transformer = tower.transformer.resblocks[0], tower.transformer
    if reason == "whole":
        stack.enter_context(whole())
    elif reason == "another block":
        first.forward = lambda *given, **named: 2 * type(first).forward(first, *given, **named)
    elif reason == "another attention":
        first.attn.dropout = 1e-9
    elif reason == "another stack":
        transformer.forward = lambda x, attn_mask: type(transformer).forward(transformer, 2 * x, attn_mask=attn_mask)
    elif reason == "another module":
        first.ls_2 = Doubled()
    elif reason == "another forward":
        first.ln_1.forward = lambda x: x * torch.arange(x.shape[1])[:, None]
    elif reason == "dropout":
        first.ls_2 = nn.Dropout(1e-9)
    elif reason == "hook":
        tower.token_embedding.register_forward_hook(lambda _, given, out: out * torch.arange(out.shape[1])[:, None])
    elif reason == "gradients' hook":
        first.ln_1.register_full_backward_hook(lambda _, given, out: (given[0] * torch.arange(given[0].shape[1])[:, None],))
    elif reason == "several processes":
        tower.positional_embedding.placements = ()
    elif reason == "another table":
        parametrize.register_parametrization(tower, "positional_embedding", nn.Tanh())


@pytest.mark.parametrize("reason", [
    "whole", "another block", "another attention", "another stack", "another module", "another forward", "dropout", "hook",
    "gradients' hook", "several processes", "another table",
])  # fmt: skip
def test_texts_are_rows_where_trees_would_not_do(reason: str, tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surefoot.model.planted", lambda *given: planted(*given, 14, worth=9))  # two trees
    tiny_model.clip = clip = clip_of(custom=True)
    tokens = tiny_model.tokenize(ALIKE)
    with contextlib.ExitStack() as stack:
        with seen(clip.text.transformer.resblocks[0]) as computed:
            tiny_model._text_features(tokens, "math")
        assert computed == [14], "trees, as nothing is in the way"
        hinder(reason, clip, stack)
        assert not towers.grows(clip.text)
        long = clip.encode_text(tokens)
        before = gradients(clip, long)
        found = tiny_model._text_features(tokens, "math")
        torch.testing.assert_close(found, long, rtol=0, atol=1e-12)
        assert_same(gradients(clip, found), before)


def test_blocks_of_another_kind_are_given_rows(tiny_model: ImageTextModel) -> None:
    tiny_model.clip = clip = clip_of(text={"qk_norm": True}, custom=True)
    assert not towers.grows(clip.text)
    tokens = tiny_model.tokenize(ALIKE)
    torch.testing.assert_close(tiny_model._text_features(tokens, "math"), clip.encode_text(tokens), rtol=0, atol=1e-12)


def test_texts_beyond_the_table_are_told_by_torch(tiny_model: ImageTextModel) -> None:
    tokens = torch.arange(1, 91).repeat(9, 1)
    with pytest.raises(RuntimeError, match="size"):
        tiny_model.encode_text(tokens)


@pytest.mark.parametrize("module", [nn.Dropout(0.5), nn.RReLU(), nn.BatchNorm1d(32)])
def test_what_draws_or_looks_beyond_its_row_hinders_while_it_trains(module: nn.Module, tiny_model: ImageTextModel) -> None:
    assert towers.grows(tiny_model.clip.train())
    tiny_model.clip.transformer.resblocks[0].ls_2 = module
    assert towers.grows(tiny_model.clip.eval()) and not towers.grows(tiny_model.clip.train())
    tiny_model.clip.transformer.resblocks[0].ls_2 = nn.Dropout(0.0)
    assert towers.grows(tiny_model.clip.train())


def test_texts_that_share_little_are_rows_of_whose_last_block_one_token_is_read(tiny_model: ImageTextModel) -> None:
    tiny_model.clip = clip = clip_of()
    tokens, blocks = tiny_model.tokenize(["cat of an icon", "dog of an icon"]), clip.transformer.resblocks
    expected = clip.encode_text(tokens)
    before = gradients(clip, expected)
    with seen(blocks[0]) as first, seen(blocks[1]) as last:
        found = tiny_model._text_features(tokens, "fused")
    assert (first, last) == ([6], [1])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert_same(gradients(clip, found), before)


@pytest.mark.parametrize("custom", [False, True])
def test_a_mask_of_the_towers_own_counts(custom: bool, tiny_model: ImageTextModel) -> None:
    tiny_model.clip = clip = clip_of(custom=custom)
    tower, far = clip.text if custom else clip, torch.arange(77.0)
    tower.attn_mask += 0.3 * (far - far[:, None]).tril()  # the farther, the less it counts
    tokens = tiny_model.tokenize(ALIKE)
    with seen(tower.transformer.resblocks[0]) as computed:
        found = tiny_model._text_features(tokens, "math")
    assert computed[0] > 10, "a tree"
    torch.testing.assert_close(found, clip.encode_text(tokens), rtol=0, atol=1e-12)


def test_a_trace_does_not_hold_the_texts(tiny_model: ImageTextModel) -> None:
    texts = tiny_model.tokenize(["an icon of a cat", "an icon of a dog", "an icon of a car", "an icon of a bar"])
    others = tiny_model.tokenize(["my icon of a cat", "an egg of a bird", "an icon of a car", "an icon of a pot"])
    length = int(texts.argmax(1).max()) + 1
    assert length == int(others.argmax(1).max()) + 1
    tiny_model.requires_grad_(False)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the length, which a trace holds
        traced = torch.jit.trace(lambda tokens: tiny_model.encode_text(tokens), (texts[:, :length],), check_trace=False)
        torch.testing.assert_close(traced(others[:, :length]), tiny_model.encode_text(others))


def test_only_open_clips_own_table_is_sliced(tiny_model: ImageTextModel) -> None:
    for custom in (False, True):
        clip = clip_of(custom=custom)
        tower = clip.text if custom else clip
        with shortened(tower, 5):
            assert tower.attn_mask.shape == (5, 5)
            assert (tower.positional_embedding is tower._parameters.get("positional_embedding")) == custom, (
                "it may lie in several processes"
            )
        assert tower.positional_embedding.shape[0] == tower.attn_mask.shape[0] == 77


@pytest.mark.parametrize("text", [{"no_causal_mask": True, "pool_type": "last"}, {"embed_cls": True}])
def test_text_towers_that_are_not_cut_off_compute_attention_so_too(
    text: dict[str, Any], tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.clip = clip = clip_of(text=text, custom=True)
    tokens, called = tiny_model.tokenize(TEXTS), list[int]()
    expected = clip.encode_text(tokens)
    monkeypatch.setattr(towers, "attend", lambda *given, **named: (called.append(1), attend(*given, **named))[1])
    with seen(clip.text.transformer.resblocks[-1]) as computed:
        found = tiny_model._text_features(tokens, "math")
    assert len(called) == 2 and computed[0] >= 77, "two blocks, both of all tokens"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_last_block_is_left_whole_for_who_reads_its_tokens(tiny_model: ImageTextModel) -> None:
    image, block = torch.randn(2, 3, 32, 32), tiny_model.clip.visual.transformer.resblocks[-1]
    with seen(block) as computed:
        tiny_model.encode_image(image)
        with whole():
            tiny_model.encode_image(image)
        tiny_model.encode_image(image)
        block.attn.forward = lambda q, k, v, **given: nn.MultiheadAttention.forward(block.attn, q, k, v, **given)
        tiny_model.encode_image(image)
        assert "forward" in block.attn.__dict__, "it is another's"
    assert computed == [1, 5, 1, 5]


def watched_once(model: ImageTextModel) -> Any:  # noqa: ANN401
    """`_text_features` whose first call, which stands around the others, gives texts as rows."""
    encode, calls = model._text_features, list[int]()

    def features(tokens: Tensor, kernel: str) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            token = towers._whole.set(False)
            try:
                return encode(tokens, kernel)
            finally:
                towers._whole.reset(token)
        with whole():
            return encode(tokens, kernel)

    return features


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("rows", ["outside", "inside", "never", "always"])
def test_a_pass_inside_another_has_its_own_tokens(rows: str, custom: bool, tiny_model: ImageTextModel) -> None:
    tiny_model.clip = clip_of(custom=custom).float()
    outer, inner = tiny_model.tokenize(ALIKE), tiny_model.tokenize([f"{text} more" for text in ALIKE])
    expected, found = tiny_model.encode_text(inner), list[Tensor]()
    alone = tiny_model.encode_text(outer)

    def ask(*_: object) -> None:
        if not found:
            found.append(torch.empty(0))
            with whole() if rows == "inside" else contextlib.nullcontext():
                found[0] = tiny_model.encode_text(inner)

    ask.only_notes = True  # type: ignore[attr-defined]
    if rows == "outside":
        tiny_model._text_features = watched_once(tiny_model)  # type: ignore[method-assign]
    if rows == "always":
        del ask.only_notes  # type: ignore[attr-defined]
    tower = tiny_model.clip.text if custom else tiny_model.clip
    handle = tower.transformer.resblocks[0].register_forward_hook(ask)  # type: ignore[union-attr, operator]
    around = tiny_model.encode_text(outer)
    handle.remove()
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(around, alone)
    assert untouched(tiny_model)


def test_classes_with_a_forward_of_their_own_are_left_as_they_are(tiny_model: ImageTextModel) -> None:
    image, block = torch.randn(2, 3, 32, 32), tiny_model.clip.visual.transformer.resblocks[-1]

    class Doubled(nn.MultiheadAttention):
        def forward(self, query: Tensor, *given: Any, **named: Any) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401
            return super().forward(query * 2, *given, **named)

    class Twice(type(block)):  # type: ignore[misc]
        def forward(self, *given: Any, **named: Any) -> Tensor:  # noqa: ANN401
            return super().forward(super().forward(*given, **named), attn_mask=named.get("attn_mask"))  # type: ignore[no-any-return]

    for module, kind in ((block.attn, Doubled), (block, Twice)):
        was, module.__class__ = module.__class__, kind
        expected = torch.nn.functional.normalize(tiny_model.clip.encode_image(image), dim=-1)
        torch.testing.assert_close(tiny_model.encode_image(image), expected)
        module.__class__ = was
    block.forward = lambda *given, **named: type(block).forward(block, *given, **named) + 1
    expected = torch.nn.functional.normalize(tiny_model.clip.encode_image(image), dim=-1)
    torch.testing.assert_close(tiny_model.encode_image(image), expected)


@pytest.mark.parametrize("kernel", ATTENTION)
def test_no_texts_have_no_features(kernel: str, tiny_model: ImageTextModel) -> None:
    tiny_model.clip = clip_of(text={"no_causal_mask": True}, custom=True)
    assert tiny_model._text_features(torch.zeros(0, 12, dtype=torch.long), kernel).shape == (0, 16)


def test_a_tower_is_as_before_after_an_error(tiny_model: ImageTextModel) -> None:
    with pytest.raises(RuntimeError):
        tiny_model.encode_image(torch.randn(2, 3, 16, 16))
    assert not any("forward" in module.__dict__ for module in tiny_model.modules())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_that_are_computed_again_are_those_of_the_first_time(precision: str, tiny_model: ImageTextModel) -> None:
    tiny_model.precision = precision  # type: ignore[assignment]
    image, tokens = torch.randn(2, 3, 32, 32), tiny_model.tokenize(TEXTS)
    blocks = [tower.resblocks[-1] for tower in (tiny_model.clip.visual.transformer, tiny_model.clip.transformer)]

    def both() -> Tensor:
        return torch.cat([tiny_model.encode_image(image), tiny_model.encode_text(tokens)])

    tiny_model.train()
    features = both()
    before = gradients(tiny_model.clip, features)
    set_checkpointing(tiny_model.clip, True)
    with seen(blocks[0]) as images, seen(blocks[1]) as texts:
        again = both()
        assert torch.equal(again, features)
        found = gradients(tiny_model.clip, again)
        with torch.no_grad():
            assert torch.equal(both(), features), "a frozen reference is where training starts"
    assert images == texts == [1, 1, 1], "forward, again in the backward pass, and judged"
    for name, gradient in before.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert all(tower.grad_checkpointing for tower in (tiny_model.clip.visual.transformer, tiny_model.clip.transformer))


def test_checkpointed_blocks_that_are_anothers_are_left_to_open_clip() -> None:
    clip, image = clip_of(), torch.randn(2, 3, 32, 32, dtype=torch.double)
    block = clip.visual.transformer.resblocks[0]
    block.forward = lambda *given, **named: 2 * type(block).forward(block, *given, **named)
    expected = gradients(clip, clip.encode_image(image))
    set_checkpointing(clip, True)
    with quickly(clip.visual, "math"):
        assert clip.visual.transformer.grad_checkpointing
        assert "forward" not in clip.visual.transformer.resblocks[1].attn.__dict__, "they would be computed otherwise again"
        features = clip.encode_image(image)
    assert_same(gradients(clip, features), expected)


def test_low_rank_updates_get_the_same_gradients(tiny_model: ImageTextModel) -> None:
    image = torch.randn(3, 3, 32, 32, dtype=torch.double)
    tiny_model.double()
    added = attach(tiny_model.clip, [n for n, _ in tiny_model.clip.named_parameters()], rank=2, alpha=None, seed=0)
    for name, parameter in added.items():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter)
    expected = tiny_model.clip.encode_image(image)
    before = gradients(tiny_model.clip, expected)
    with quickly(tiny_model.clip.visual, "math"):
        found = tiny_model.clip.encode_image(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert_same(gradients(tiny_model.clip, found), before)


def module_of(**given: Any) -> nn.MultiheadAttention:  # noqa: ANN401
    torch.manual_seed(0)
    module = nn.MultiheadAttention(16, 2, batch_first=True, dtype=torch.double, **given)
    if module.in_proj_bias is not None:
        nn.init.normal_(module.in_proj_bias)
    return module


MASKS = {
    "none": None,
    "causal": torch.full((5, 5), -torch.inf).triu(1),
    "true is not seen": torch.ones(5, 5, dtype=torch.bool).triu(1),
    "of every head": torch.randn(6, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double),
}


@pytest.mark.parametrize("kernel", ATTENTION)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_attention_is_torchs(mask: str, bias: bool, kernel: str) -> None:
    module, x = module_of(bias=bias), torch.randn(3, 5, 16, dtype=torch.double)
    y, given = torch.randn(3, 5, 16, dtype=torch.double), {"need_weights": False, "attn_mask": MASKS[mask]}
    for query, key in ((x, x), (y, x)):
        expected, _ = module(query, key, key, **given)
        found, weights = attend(module, query, key, key, **given, written_out=kernel == "math")  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert weights is None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_one_query_asks_for_no_keys_and_values_of_all(mask: str, bias: bool) -> None:
    module, x = module_of(bias=bias), torch.randn(3, 5, 16, dtype=torch.double, requires_grad=True)
    one, whole_mask = torch.randn(3, 1, 16, dtype=torch.double, requires_grad=True), MASKS[mask]
    given: dict[str, Any] = {"need_weights": False, "attn_mask": None if whole_mask is None else whole_mask[..., 2:3, :]}
    read = [one, x, *module.parameters()]
    expected, _ = module(one, x, x, **given)
    before = torch.autograd.grad(expected.sin().sum(), read)
    with FlopCounterMode(display=False) as counter:
        found, _ = attend(module, one, x, x, **given, written_out=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(found.sin().sum(), read), before, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    tokens, size, heads = 3, 16, 2
    assert counter.get_total_flops() == 2 * (4 * tokens * size**2 + 2 * tokens * heads * 5 * size), "four projections of one token a row"


def test_what_it_does_not_compute_is_left_to_torch() -> None:
    module, x = module_of(), torch.randn(3, 5, 16, dtype=torch.double)
    out, weights = attend(module, x, x, x, written_out=True)
    assert weights is not None and weights.shape == (3, 5, 5), "asked for"
    torch.testing.assert_close(out, module(x, x, x)[0], rtol=0, atol=1e-12)
    padded = torch.tensor([[False] * 3 + [True] * 2] * 3)
    out, _ = attend(module, x, x, x, padded, need_weights=False, written_out=True)
    torch.testing.assert_close(out, module(x, x, x, padded, need_weights=False)[0], rtol=0, atol=1e-12)
    y = torch.randn_like(x)
    out, _ = attend(module, x, x, y, need_weights=False, written_out=True)
    torch.testing.assert_close(out, module(x, x, y, need_weights=False)[0], rtol=0, atol=1e-12)
    with pytest.raises(RuntimeError, match="attn_mask"):
        attend(module, x, x, x, need_weights=False, is_causal=True, written_out=True)


@pytest.mark.parametrize("given", [{"dropout": 0.5}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 8, "vdim": 8}])
def test_attention_of_other_kinds_is_left_to_torch(given: dict[str, Any]) -> None:
    module = module_of(**given)
    with quickly(module, "math"):
        assert "forward" not in module.__dict__
    turned, plain = nn.MultiheadAttention(16, 2), module_of()
    with quickly(turned, "math"), quickly(plain, "math"):
        assert "forward" not in turned.__dict__ and "forward" in plain.__dict__


@pytest.mark.parametrize(("size", "within"), [(1, 1.2), (6, 1.6)])
@pytest.mark.parametrize("length", [7, 197])
def test_bfloat16_is_nearly_as_near_to_float32_as_torchs_own(length: int, size: float, within: float) -> None:
    torch.manual_seed(0)
    module, x = nn.MultiheadAttention(96, 2, batch_first=True), size * torch.randn(8, length, 96)
    exact = module(x, x, x, need_weights=False)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with attention("math"):
            torchs = module(x, x, x, need_weights=False)[0]
        own = attend(module, x, x, x, need_weights=False, written_out=True)[0]
        one = attend(module, x[:, :1], x, x, need_weights=False, written_out=True)[0]
    assert (own - exact).abs().mean() <= within * (torchs - exact).abs().mean(), "where attention is sharp, its rounded logits count"
    assert (one - exact[:, :1]).abs().mean() <= 1.05 * (torchs - exact)[:, :1].abs().mean(), "of one query they are not rounded"


def test_frozen_weights_in_bfloat16_multiply_once_and_are_not_copied() -> None:
    shapes: list[list[int]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten.bmm.default:
                shapes.append([*args[1].shape])
            return func(*args, **(kwargs or {}))

    module, x = nn.MultiheadAttention(64, 4, batch_first=True).requires_grad_(False), torch.randn(5, 7, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), Watch():
        module(x, x, x, need_weights=False)
        assert [7, 64, 192] in shapes, "as torch does it"
        shapes.clear()
        attend(module, x, x, x, need_weights=False, written_out=True)
    assert [7, 64, 192] not in shapes, "one product for each position"


def test_texts_of_two_threads_do_not_meet(tiny_model: ImageTextModel) -> None:
    alone = [tiny_model.encode_text(tiny_model.tokenize([text])) for text in TEXTS[:2]]
    inside, found = threading.Event(), dict[int, Tensor]()

    def hold(*_: object) -> None:
        inside.set()
        time.sleep(0.2)

    def encode(number: int) -> None:
        if number:
            inside.wait()
        found[number] = tiny_model.encode_text(tiny_model.tokenize([TEXTS[number]]))

    tiny_model.clip.transformer.resblocks[0].register_forward_pre_hook(hold)
    threads = [threading.Thread(target=encode, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, expected in enumerate(alone):
        torch.testing.assert_close(found[number], expected)
