"""The adapter: exact text truncation, groups, saving, and errors that say what to do."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import CONFIG
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from surefoot.adapters import attach
from surefoot.errors import MissingDataError, ModelError, SettingError, UnknownNameError
from surefoot.model import ImageTextModel, load_model, pick_device, probe_names, templates_named
from surefoot.prompts import check_template

TEXTS = ["a cat", "an icon of a very long and winding name of a thing that goes on", "x"]


@pytest.mark.parametrize("custom", [False, True])
def test_truncated_text_equals_the_whole_context_with_gradients(tiny_model: ImageTextModel, custom: bool) -> None:
    if custom:
        config = open_clip.get_model_config(tiny_model.name)
        tiny_model.clip = open_clip.CustomTextCLIP(**config).eval()
    tiny_model.double()
    tokens = tiny_model.tokenize(TEXTS)
    whole = tiny_model.clip.encode_text(tokens)
    short = tiny_model._text_features(tokens, "math")
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
    for kernel in ("math", "fused"):
        torch.testing.assert_close(tiny_model._text_features(tokens, kernel), tiny_model.clip.encode_text(tokens), rtol=0, atol=1e-5)


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


def test_activation_follows_the_tag_and_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny-architecture.json").write_text(json.dumps(CONFIG["model_cfg"]))
    open_clip.add_model_config(tmp_path / "tiny-architecture.json")
    tag = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda model: ["openai"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, name: tag)
    clip = open_clip.create_model("tiny-architecture", force_quick_gelu=True)
    torch.save(clip.state_dict(), tmp_path / "weights.pt")
    model = load_model(f"tiny-architecture:{tmp_path / 'weights.pt'}@openai")
    model.save(tmp_path / "saved")
    again = load_model(f"local-dir:{tmp_path / 'saved'}")
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = clip.eval().encode_image(image, normalize=True)
        torch.testing.assert_close(model.encode_image(image), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again.encode_image(image), expected, rtol=1e-4, atol=1e-5)
        plain = open_clip.create_model("tiny-architecture").eval()
        plain.load_state_dict(clip.state_dict())
        assert float((plain.encode_image(image, normalize=True) - expected).abs().max()) > 1e-4


def test_folder_without_weights_or_with_broken_ones_is_refused(tiny_model: ImageTextModel, tmp_path: Path) -> None:
    tiny_model.save(tmp_path / "saved")
    (tmp_path / "saved" / "open_clip_model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(f"local-dir:{tmp_path / 'saved'}")


@pytest.fixture
def siglip_folder(tmp_path: Path) -> Path:
    """A tiny model in the shape of SigLIP: sigmoid bias, bidirectional text tower that reads its last position."""
    config = json.loads(json.dumps(CONFIG))
    config["model_cfg"] |= {"init_logit_bias": -10, "custom_text": True}
    config["model_cfg"]["text_cfg"] |= {"context_length": 64, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    torch.manual_seed(0)
    clip = open_clip.CustomTextCLIP(**{key: value for key, value in config["model_cfg"].items() if key != "custom_text"})
    (tmp_path / "siglip").mkdir()
    (tmp_path / "siglip" / "open_clip_config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, tmp_path / "siglip" / "open_clip_model.safetensors")
    return tmp_path / "siglip"


def test_siglip_style_model_has_a_bias_that_trains_and_others_have_none(tiny_model: ImageTextModel, siglip_folder: Path) -> None:
    assert tiny_model.logit_bias is None
    model = load_model(f"local-dir:{siglip_folder}")
    assert model.logit_bias is not None and model.logit_bias.shape == () and model.logit_bias.item() == -10
    assert model.groups()["logit_bias"] == model.layer_names("logit_bias") == ["logit_bias"]
    logits = model.scale * model.encode_image(torch.randn(2, 3, 32, 32)) @ model.encode_text(model.tokenize(["a", "b"])).T
    torch.nn.functional.logsigmoid((2 * torch.eye(2) - 1) * (logits + model.logit_bias)).mean().neg().backward()
    assert all(p.grad is not None for name, p in model.clip.named_parameters())
    assert float(model.clip.logit_bias.grad) != 0


def test_siglip_style_text_is_never_truncated(siglip_folder: Path) -> None:
    model = load_model(f"local-dir:{siglip_folder}")
    tokens = model.tokenize(TEXTS)
    assert tokens.shape[1] == 64
    expected = torch.nn.functional.normalize(model.clip.text(tokens), dim=-1)
    torch.testing.assert_close(model.encode_text(tokens), expected, rtol=0, atol=1e-6)


def test_saved_siglip_style_model_keeps_bias_and_configuration(siglip_folder: Path, tmp_path: Path) -> None:
    model = load_model(f"local-dir:{siglip_folder}")
    with torch.no_grad():
        model.clip.logit_bias += 3
    model.save(tmp_path / "saved")
    again = load_model(f"local-dir:{tmp_path / 'saved'}")
    assert again.logit_bias is not None and again.logit_bias.item() == -7
    assert again.config() == model.config() and again.config()["model_cfg"]["init_logit_bias"] == -10
    assert isinstance(open_clip.create_model(f"local-dir:{tmp_path / 'saved'}"), open_clip.CustomTextCLIP)


def with_tokenizer(folder: Path) -> Path:
    """Let the configuration ask for a tokenizer of the hub."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "somebody/some-tokenizer", "tokenizer_kwargs": {"clean": "canonicalize"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def test_tokenizer_that_is_not_in_the_folder_is_asked_for(siglip_folder: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match=r"somebody/some-tokenizer.*tokenizer.json and tokenizer_config.json, beside the weights"):
        load_model(f"local-dir:{with_tokenizer(siglip_folder)}")


def test_tokenizer_without_the_library_that_reads_it(siglip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match="pip install transformers"):
        load_model(f"local-dir:{with_tokenizer(siglip_folder)}")


def test_tokenizer_of_the_folder_is_used_and_saved(siglip_folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<pad>": 1, "</s>": 0, "<unk>": 2, "a": 3, "cat": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(with_tokenizer(siglip_folder))
    model = load_model(f"local-dir:{siglip_folder}")
    assert model.tokenize(["A cat!"]).tolist() == [[3, 4] + [1] * 62]
    model.save(tmp_path / "saved")
    again = load_model(f"local-dir:{tmp_path / 'saved'}")
    assert torch.equal(again.tokenize(TEXTS), model.tokenize(TEXTS))
    assert again.config() == model.config()


def test_save_that_does_not_fit_on_the_disk_leaves_what_was_there(tiny_model: ImageTextModel, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    tiny_model.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the weights are larger
    try:
        with torch.no_grad():
            tiny_model.clip.logit_scale += 1
        with pytest.raises(ModelError, match=rf"{tmp_path} could not be written .*Make room"):
            tiny_model.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")])
def test_half_written_files_are_removed(
    tiny_model: ImageTextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full_disk(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr("surefoot.model.save_file", full_disk)
    with pytest.raises(ModelError, match=r"No space left on device.*Make room"):
        tiny_model.save(tmp_path / "saved")
    assert list((tmp_path / "saved").iterdir()) == []


def test_save_where_no_folder_can_be_is_refused(tiny_model: ImageTextModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match="file could not be written"):
        tiny_model.save(tmp_path / "file")
    with pytest.raises(ModelError, match="could not be written"):
        tiny_model.save(tmp_path / "file" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_weights_of_an_adapted_model_are_the_merged_ones_under_their_own_names(tiny_model: ImageTextModel, tmp_path: Path) -> None:
    before = tiny_model.weights()
    trained = attach(tiny_model.clip, tiny_model.layer_names("visual[-1:]"), rank=2, alpha=None, seed=0)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1)
    merged = tiny_model.weights()
    assert merged.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert changed and changed <= set(tiny_model.blocks("visual")[-1]) | {name.rpartition(".")[0] for name in trained}
    image = torch.randn(2, 3, 32, 32)
    tiny_model.save(tmp_path)
    torch.testing.assert_close(load_model(f"local-dir:{tmp_path}").encode_image(image), tiny_model.encode_image(image))


def test_probe_names_are_distinct_and_spread() -> None:
    everything = list(dict.fromkeys(open_clip.IMAGENET_CLASSNAMES))
    assert len(everything) == 998
    names = probe_names()
    assert len(set(names)) == len(names) == 200
    places = [everything.index(name) for name in names]
    assert {b - a for a, b in itertools.pairwise(places)} <= {4, 5} and places[0] == 0
    assert probe_names(5000) == everything
    with pytest.raises(SettingError, match="1 or more"):
        probe_names(0)


def test_named_templates_are_open_clips() -> None:
    assert len(templates_named("openai80")) == 80 and len(templates_named("simple7")) == 7
    for template, function in zip(templates_named("openai80"), open_clip.OPENAI_IMAGENET_TEMPLATES, strict=True):
        assert check_template(template).replace("{}", "cat") == function("cat")
    with pytest.raises(UnknownNameError, match="openai80, simple7"):
        templates_named("openai8")
