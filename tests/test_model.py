"""The adapter: exact text truncation, groups, saving, and errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from surefoot.errors import MissingDataError, ModelError, SettingError, UnknownNameError
from surefoot.model import ImageTextModel, load_model, pick_device

TEXTS = ["a cat", "an icon of a very long and winding name of a thing that goes on", "x"]


@pytest.mark.parametrize("custom", [False, True])
def test_truncated_text_equals_the_whole_context_with_gradients(tiny_model: ImageTextModel, custom: bool) -> None:
    if custom:
        config = open_clip.get_model_config(tiny_model.name)
        tiny_model.clip = open_clip.CustomTextCLIP(**config).eval()
    tiny_model.double()
    tokens = tiny_model.tokenize(TEXTS)
    whole = tiny_model.clip.encode_text(tokens)
    short = tiny_model._text_features(tokens)
    torch.testing.assert_close(short, whole, rtol=0, atol=1e-12)
    embedding = (tiny_model.clip.text if custom else tiny_model.clip).positional_embedding
    expected = torch.autograd.grad(whole.square().sum(), embedding)[0]
    torch.testing.assert_close(torch.autograd.grad(short.square().sum(), embedding)[0], expected, rtol=0, atol=1e-12)


def test_truncation_leaves_the_model_as_it_was(tiny_model: ImageTextModel) -> None:
    before = tiny_model.weights()
    names = [name for name, _ in tiny_model.clip.named_parameters()]
    tiny_model.encode_text(tiny_model.tokenize(["a cat"]))
    assert sorted(names) == sorted(name for name, _ in tiny_model.clip.named_parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_model.weights().items())
    assert tiny_model.clip.attn_mask.shape == (77, 77)


def test_text_tower_that_is_not_causal_gets_its_whole_context(tiny_model: ImageTextModel) -> None:
    config = open_clip.get_model_config(tiny_model.name)
    config["text_cfg"] |= {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    tiny_model.clip = open_clip.CustomTextCLIP(**config).eval()
    tokens = tiny_model.tokenize(TEXTS)
    assert torch.equal(tiny_model._text_features(tokens), tiny_model.clip.encode_text(tokens))


def test_every_parameter_is_in_exactly_one_group(tiny_model: ImageTextModel) -> None:
    groups = tiny_model.groups()
    assert set(groups) == {"visual", "text", "logit_scale"}
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in tiny_model.clip.named_parameters())
    assert all(name.startswith("visual.") for name in groups["visual"])
    assert "token_embedding.weight" in groups["text"]


def test_saved_folder_opens_in_open_clip_with_the_checkpoints_own_preprocessing(tiny_model: ImageTextModel, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny_model.clip.logit_scale += 0.5
    tiny_model.save(tmp_path / "saved")
    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'saved'}")
    image = Image.new("RGB", (50, 40), (10, 200, 90))
    pixels = preprocess(image)
    torch.testing.assert_close(pixels, tiny_model.preprocess(image))
    torch.testing.assert_close(
        pixels[:, 0, 0], (torch.tensor([10, 200, 90]) / 255 - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.3, 0.2, 0.1])
    )
    for name, tensor in clip.state_dict().items():
        assert torch.equal(tensor, tiny_model.clip.state_dict()[name]), name
    again = load_model(f"local-dir:{tmp_path / 'saved'}")
    again.save(tmp_path / "twice")
    assert (tmp_path / "twice" / "open_clip_config.json").read_text() == (tmp_path / "saved" / "open_clip_config.json").read_text()


def test_features_are_normalised_float32_in_either_precision(tiny_model: ImageTextModel) -> None:
    images = torch.randn(4, 3, 32, 32)
    exact = tiny_model.encode_image(images).detach()
    tiny_model.precision = "bf16"
    rough = tiny_model.encode_image(images).detach()
    assert exact.dtype == rough.dtype == torch.float32
    torch.testing.assert_close(rough.norm(dim=1), torch.ones(4))
    assert 0 < float((exact - rough).abs().max()) < 0.05


def test_bare_checkpoint_file_needs_a_tag_for_its_preprocessing(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(ModelError, match=r"@TAG"):
        load_model(f"RN50:{tmp_path / 'weights.pt'}")


def test_checkpoint_file_takes_the_preprocessing_of_its_tag(tmp_path: Path) -> None:
    clip = open_clip.create_model("ViT-S-32-alt")
    torch.save(clip.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UnknownNameError, match="pretrained tag"):
        load_model(f"ViT-S-32-alt:{tmp_path / 'weights.pt'}@openai")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("local-dir:/nowhere/at/all", MissingDataError, "open_clip_config.json"),
        ("ViT-B-33:openai", UnknownNameError, "Did you mean 'ViT-B-32'"),
        ("ViT-B-32:opena", UnknownNameError, "Did you mean 'openai'"),
        ("ViT-B-32", ModelError, "openai"),
        ("ViT-B-32:/no/file.pt@openai", MissingDataError, "no file"),
    ],
)
def test_a_wrong_name_says_what_is_allowed(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_model(name)


def test_weights_of_another_model_are_refused(tiny_model: ImageTextModel) -> None:
    with pytest.raises(ModelError, match="do not belong"):
        tiny_model.load_weights({"visual.proj": torch.zeros(3)})


def test_unknown_device_is_refused() -> None:
    with pytest.raises(SettingError, match="not available"):
        pick_device("cuda:99")


def test_activation_follows_the_tag_and_is_saved(tmp_path: Path) -> None:
    clip = open_clip.create_model("ViT-B-32-quickgelu")
    torch.save(clip.state_dict(), tmp_path / "weights.pt")
    model = load_model(f"ViT-B-32:{tmp_path / 'weights.pt'}@openai")
    model.save(tmp_path / "saved")
    again = load_model(f"local-dir:{tmp_path / 'saved'}")
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = clip.eval().encode_image(image, normalize=True)
        torch.testing.assert_close(model.encode_image(image), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again.encode_image(image), expected, rtol=1e-4, atol=1e-5)


def test_folder_without_weights_or_with_broken_ones_is_refused(tiny_model: ImageTextModel, tmp_path: Path) -> None:
    tiny_model.save(tmp_path / "saved")
    (tmp_path / "saved" / "open_clip_model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(f"local-dir:{tmp_path / 'saved'}")
