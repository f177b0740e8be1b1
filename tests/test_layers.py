"""Ranges of blocks, over every kind of tower that open_clip builds."""

from __future__ import annotations

import open_clip
import pytest
from torch import nn

from surefoot.errors import ModelError, SettingError, UnknownNameError
from surefoot.model import ImageTextModel

TEXT = {"context_length": 16, "vocab_size": 64, "width": 16, "heads": 2, "layers": 3}
VIT = {"image_size": 32, "layers": 4, "width": 16, "head_width": 8, "patch_size": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 2, 1], "width": 8}


def build(vision: dict[str, object], text: dict[str, object] | None = None, custom: bool = False) -> ImageTextModel:
    clip = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(embed_dim=8, vision_cfg=vision, text_cfg=TEXT | (text or {}))
    return ImageTextModel("tiny", clip, (None, None), None, {})  # type: ignore[arg-type]


TOWERS = {
    "vit": (build(VIT), {"visual": 4, "text": 3}),
    "vit, attention pooling": (build(VIT | {"attentional_pool": True, "attn_pooler_heads": 2}), {"visual": 4, "text": 3}),
    "resnet": (build(RESNET), {"visual": 4, "text": 3}),
    "custom text": (build(VIT, {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}, custom=True), {"visual": 4, "text": 3}),
    "custom text, class token": (build(VIT, {"embed_cls": True}, custom=True), {"visual": 4, "text": 3}),
    "timm vit": (
        build({"image_size": 224, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}, custom=True),
        {"visual": 6, "text": 3},
    ),
    "timm convnext": (
        build({"image_size": 160, "timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear"}),
        {"visual": 4, "text": 3},
    ),
}


@pytest.mark.parametrize(("model", "counts"), TOWERS.values(), ids=TOWERS)
def test_blocks_together_are_the_whole_tower(model: ImageTextModel, counts: dict[str, int]) -> None:
    for tower, count in counts.items():
        blocks = model.blocks(tower)  # type: ignore[arg-type]
        assert len(blocks) == count
        assert sorted(name for block in blocks for name in block) == sorted(model.groups()[tower])
        assert all(blocks)


@pytest.mark.parametrize(
    ("tower", "first", "last"),
    [
        (
            "vit",
            ["visual.class_embedding", "visual.positional_embedding", "visual.conv1.weight", "visual.ln_pre.weight"],
            ["visual.proj", "visual.ln_post.weight"],
        ),
        ("vit", ["token_embedding.weight", "positional_embedding"], ["ln_final.weight", "text_projection"]),
        ("vit, attention pooling", ["visual.conv1.weight"], ["visual.attn_pool.query"]),
        ("resnet", ["visual.conv1.weight", "visual.bn3.bias", "visual.layer1.0.conv1.weight"], ["visual.attnpool.c_proj.weight"]),
        (
            "custom text",
            ["text.token_embedding.weight", "text.positional_embedding"],
            ["text.ln_final.bias", "text.text_projection.weight"],
        ),
        ("custom text, class token", ["text.cls_emb"], ["text.text_projection"]),
        (
            "timm vit",
            ["visual.trunk.pos_embed", "visual.trunk.patch_embed.proj.weight"],
            ["visual.trunk.norm.weight", "visual.trunk.attn_pool.latent"],
        ),
        ("timm convnext", ["visual.trunk.stem.0.weight"], ["visual.head.proj.weight"]),
    ],
)
def test_what_is_before_the_blocks_is_in_the_first_and_what_is_after_in_the_last(tower: str, first: list[str], last: list[str]) -> None:
    model = TOWERS[tower][0]
    blocks = model.blocks("visual" if first[0].startswith("visual.") else "text")
    assert set(first) <= set(blocks[0])
    assert set(last) <= set(blocks[-1])


def test_hugging_face_text_tower_has_blocks() -> None:
    from surefoot.layers import group_blocks

    names = [
        f"text.{n}" for n in ("transformer.embeddings.w", "transformer.encoder.layer.0.w", "transformer.encoder.layer.1.w", "proj.0.w")
    ]
    assert group_blocks(names) == [names[:2], names[2:]]


@pytest.mark.parametrize(
    ("spec", "taken"),
    [
        ("visual[:2]", [0, 1]),
        ("visual[-3:]", [1, 2, 3]),
        ("visual[1:-1]", [1, 2]),
        ("visual[2]", [2]),
        ("visual[-1]", [3]),
        ("visual[-9:9]", [0, 1, 2, 3]),
        ("text[1:2]", [1]),
    ],
)
def test_range_takes_blocks_as_python_would(spec: str, taken: list[int]) -> None:
    model = TOWERS["vit"][0]
    blocks = model.blocks(spec.partition("[")[0])  # type: ignore[arg-type]
    assert model.layer_names(spec) == [name for block in taken for name in blocks[block]]


def test_whole_groups_are_named_without_brackets() -> None:
    model = TOWERS["custom text"][0]
    assert model.layer_names("visual") == model.groups()["visual"]
    assert model.layer_names("logit_scale") == ["logit_scale"]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("visual[4:]", SettingError, "has 4 blocks"),
        ("visual[4]", SettingError, "has 4 blocks"),
        ("text[-4]", SettingError, "has 3 blocks"),
        ("visual[2:2]", SettingError, "has 4 blocks"),
        ("visual[::2]", SettingError, "no range"),
        ("visual[]", SettingError, "no range"),
        ("visual[-:]", SettingError, "no range"),
        ("logit_scale[0]", SettingError, "has no blocks"),
        ("logit_bias", UnknownNameError, "logit_scale"),
        ("vision", UnknownNameError, "Did you mean 'visual'"),
    ],
)
def test_wrong_range_says_what_there_is(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TOWERS["vit"][0].layer_names(spec)


def test_tower_without_known_blocks_is_named() -> None:
    model = build(VIT)
    model.clip.visual = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"visual tower of tiny \(Sequential\)"):
        model.layer_names("visual[-1:]")
    assert model.layer_names("visual") == ["visual.0.weight", "visual.0.bias"]
