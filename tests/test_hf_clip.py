"""CLIP folders of the transformers library: the same features, the same pixels, and a clear no to everything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from surefoot.errors import MissingDataError, ModelError
from surefoot.hf_clip import model_config, preprocess_config, rename
from surefoot.model import ImageTextModel, load_model

transformers = pytest.importorskip("transformers")

TEXTS = ["a cat", "an icon of a very long and winding name of a thing that goes on", "x"]
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
PREPROCESSING = {
    "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 3, "do_center_crop": True,
    "image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.1],
}  # fmt: skip


def write(folder: Path, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> Path:
    """A tiny CLIP with random weights; every tensor is random, so that none can be swapped for another or forgotten."""
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2} | (text or {})
    vision = {
        "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 32, "patch_size": 16
    } | (vision or {})  # fmt: skip
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Callable[[str, dict[str, Any] | None], Path]:
    """A copy of the folder in which one JSON file is updated, or removed."""

    def make(file: str, changes: dict[str, Any] | None) -> Path:
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        if changes is None:
            (copy / file).unlink()
        else:
            (copy / file).write_text(json.dumps((json.loads((copy / file).read_text()) if (copy / file).exists() else {}) | changes))
        return copy

    return make


def theirs(folder: Path, tokens: Tensor) -> tuple[Tensor, Tensor]:
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found = model(input_ids=tokens, pixel_values=IMAGES)
    return found.image_embeds, found.text_embeds


def ours(model: ImageTextModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model.encode_image(IMAGES), model.encode_text(tokens)


@pytest.mark.parametrize(
    ("text", "vision"),
    [
        ({"eos_token_id": 49407}, {}),
        ({"eos_token_id": 2}, {}),
        ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
        ({"layer_norm_eps": 1e-1}, {"layer_norm_eps": 1e-2}),
        ({"max_position_embeddings": 40, "intermediate_size": 37}, {"intermediate_size": 61, "hidden_size": 60, "num_attention_heads": 6}),
    ],
    ids=["quick_gelu", "old end of text", "gelu", "epsilon", "odd sizes"],
)
def test_features_equal_those_of_transformers(tmp_path: Path, text: dict[str, Any], vision: dict[str, Any]) -> None:
    write(tmp_path, text, vision)
    model = load_model(f"local-dir:{tmp_path}")
    tokens = model.tokenize(TEXTS)
    assert tokens.shape[1] == text.get("max_position_embeddings", 77)
    for found, expected in zip(ours(model, tokens), theirs(tmp_path, tokens), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    state = transformers.CLIPModel.from_pretrained(tmp_path).state_dict()
    assert float(model.scale.detach()) == pytest.approx(float(state["logit_scale"].exp()))


def test_half_precision_weights_become_float32(folder: Path, tmp_path: Path) -> None:
    transformers.CLIPModel.from_pretrained(folder).half().save_pretrained(tmp_path)
    shutil.copy(folder / "preprocessor_config.json", tmp_path)
    assert all(p.dtype == torch.float32 for p in load_model(f"hf-dir:{tmp_path}").parameters())


def test_saved_folder_is_open_clips_and_computes_the_same(folder: Path, tmp_path: Path) -> None:
    model = load_model(f"hf-dir:{folder}")
    with torch.no_grad():
        model.clip.logit_scale += 1
    model.save(tmp_path / "saved")
    again = load_model(f"local-dir:{tmp_path / 'saved'}")
    tokens = model.tokenize(TEXTS)
    assert torch.equal(again.tokenize(TEXTS), tokens)
    assert all(map(torch.equal, ours(again, tokens), ours(model, tokens)))
    assert torch.equal(again.scale, model.scale)
    assert again.config() == model.config()
    image = Image.effect_noise((50, 40), 90).convert("RGB")
    assert torch.equal(again.preprocess(image), model.preprocess(image))


@pytest.mark.parametrize(
    "changes",
    [{}, {"resample": 2}, {"size": {"height": 32, "width": 32}, "do_center_crop": False}, {"size": 32, "crop_size": 32}],
    ids=["bicubic", "bilinear", "squash", "old spelling"],
)
def test_pixels_equal_those_of_transformers(damaged: Callable[..., Path], changes: dict[str, Any]) -> None:
    copy = damaged("preprocessor_config.json", changes)
    noise = torch.randint(256, (45, 70, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy())
    expected = transformers.CLIPImageProcessor.from_pretrained(copy)(image, return_tensors="pt").pixel_values[0]
    found = load_model(f"hf-dir:{copy}").preprocess(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=2 / 255 / 0.1)  # each resizes with its own rounding of a level


def test_newer_processor_file_is_read(damaged: Callable[..., Path]) -> None:
    copy = damaged("processor_config.json", {"image_processor": PREPROCESSING | {"image_mean": [0.1, 0.2, 0.3]}})
    (copy / "preprocessor_config.json").unlink()
    assert load_model(f"hf-dir:{copy}").config()["preprocess_cfg"]["mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("file", "changes", "error", "message"),
    [
        ("config.json", {"model_type": "siglip"}, ModelError, "ViT-B-16-SigLIP:webli"),
        ("config.json", {"model_type": "bert"}, ModelError, "only 'clip'"),
        ("config.json", {"text_config": {"vocab_size": 30522}}, ModelError, "30522"),
        ("config.json", {"text_config": {"eos_token_id": 3}}, ModelError, "49407"),
        ("config.json", {"text_config": {"hidden_act": "gelu"}}, ModelError, "both towers"),
        ("config.json", {"vision_config": {"num_channels": 1}}, ModelError, "colour"),
        ("config.json", {"projection_dim": 20}, ModelError, "does not belong"),
        ("config.json", None, MissingDataError, "open_clip_config.json|config.json"),
        ("model.safetensors", None, MissingDataError, "save_pretrained"),
        ("preprocessor_config.json", None, MissingDataError, "preprocessor_config.json"),
        ("preprocessor_config.json", {"resample": 1}, ModelError, "bicubic"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 48}}, ModelError, "32 pixels"),
        ("preprocessor_config.json", {"do_normalize": False}, ModelError, "without do_normalize"),
        ("vocab.json", {"a": 0}, ModelError, "holds 1 tokens"),
        ("tokenizer.json", {"model": {"vocab": {"a": 0, "b": 1}}}, ModelError, "holds 2 tokens"),
    ],
)
def test_what_open_clip_cannot_compute_is_refused(
    damaged: Callable[..., Path], file: str, changes: dict[str, Any] | None, error: type[Exception], message: str
) -> None:
    copy = damaged(file, changes)
    for prefix in ("hf-dir", "local-dir"):
        with pytest.raises(error, match=message):
            load_model(f"{prefix}:{copy}")


def test_pickled_weights_are_never_opened(damaged: Callable[..., Path]) -> None:
    copy = damaged("model.safetensors", None)
    (copy / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(MissingDataError, match="Pickled weights are not read"):
        load_model(f"local-dir:{copy}")


def test_broken_weights_are_refused(damaged: Callable[..., Path]) -> None:
    copy = damaged("vocab.json", {str(number): number for number in range(49408)})
    (copy / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="could not be read"):
        load_model(f"hf-dir:{copy}")


def test_left_out_settings_are_the_librarys_defaults() -> None:
    text, vision = transformers.CLIPTextConfig(), transformers.CLIPVisionConfig()
    cfg = model_config({"model_type": "clip"})
    assert cfg["embed_dim"] == transformers.CLIPConfig().projection_dim and cfg["quick_gelu"] is True
    assert (cfg["text_cfg"]["width"], cfg["text_cfg"]["layers"], cfg["text_cfg"]["heads"]) == (
        text.hidden_size, text.num_hidden_layers, text.num_attention_heads,
    )  # fmt: skip
    assert (cfg["vision_cfg"]["width"], cfg["vision_cfg"]["layers"], cfg["vision_cfg"]["patch_size"], cfg["vision_cfg"]["image_size"]) == (
        vision.hidden_size, vision.num_hidden_layers, vision.patch_size, vision.image_size,
    )  # fmt: skip
    assert cfg["text_cfg"]["context_length"] == text.max_position_embeddings
    assert preprocess_config({}, 224)["mean"] == list(transformers.CLIPImageProcessor().image_mean)


def test_inner_width_survives_open_clips_rounding() -> None:
    for width in range(1, 200):
        for inner in range(width, 6 * width, 7):
            text = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": 1}
            ratio = model_config({"model_type": "clip", "text_config": text})["text_cfg"]["mlp_ratio"]
            assert int(width * ratio) == inner


def test_old_config_keys_win_over_new_ones() -> None:
    cfg = model_config({"model_type": "clip", "text_config": {"hidden_size": 1}, "text_config_dict": {"hidden_size": 256}})
    assert cfg["text_cfg"]["width"] == 256 and cfg["text_cfg"]["layers"] == 12


def test_query_key_and_value_are_stacked_in_this_order() -> None:
    state = {f"text_model.encoder.layers.0.self_attn.{part}_proj.bias": torch.full((2,), i) for i, part in enumerate("kqv")}
    renamed = rename(state | {"text_model.embeddings.position_ids": torch.arange(3)})
    assert {name: tensor.tolist() for name, tensor in renamed.items()} == {"transformer.resblocks.0.attn.in_proj_bias": [1, 1, 0, 0, 2, 2]}
