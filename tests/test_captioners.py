"""Captioners and rewriters of the transformers library, on tiny random checkpoints: they say what the library would say by hand."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_captions import Fake, invoke, paths_of

from surefoot.anchors import pretrained
from surefoot.anchors.attach import default_folder
from surefoot.anchors.captioners import PROMPT, TransformersCaptioner, load_captioner
from surefoot.anchors.captions import FILE, caption_images, read_captions
from surefoot.anchors.rewriting import CONTINUED, TransformersRewriter, first_line
from surefoot.anchors.rewriting import PROMPT as REWRITE
from surefoot.data import Dataset
from surefoot.data.digest import digests
from surefoot.errors import MissingDataError, ModelError, SettingError

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))


VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] [DEC] a black red disc box bar on white picture of the"
WORDS = VOCABULARY.split()
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SEES = TOWER | {"image_size": 32, "patch_size": 16}
CLIP_SIZES = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} a picture{% endif %}"
)


def saved(folder: Path, model: Any, *parts: Any, spread: float = 0.5) -> Path:  # noqa: ANN401
    """The model with weights so large that what it says depends on the image."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    for part in (model, *parts):
        part.save_pretrained(folder)
    return folder


def bert_words(folder: Path) -> Any:  # noqa: ANN401
    (vocabulary := folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return transformers.BertTokenizer(str(vocabulary), bos_token="[DEC]")


def plain_words(**options: Any) -> Any:  # noqa: ANN401
    """Words, begun by <s> as Llama's are."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *WORDS[6:]]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"], **options,
    )  # fmt: skip


def blip(folder: Path) -> Path:
    special = {"bos_token_id": 5, "eos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}
    text = TOWER | special | {"vocab_size": len(WORDS), "encoder_hidden_size": 32, "max_position_embeddings": 64}
    model = transformers.BlipForConditionalGeneration(transformers.BlipConfig(text_config=text, vision_config=SEES))
    processor = transformers.BlipProcessor(transformers.BlipImageProcessor(size={"height": 32, "width": 32}), bert_words(folder))
    return saved(folder, model, processor)


def git(folder: Path) -> Path:
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = transformers.GitConfig(vision_config=SEES, vocab_size=len(WORDS), max_position_embeddings=64, **TOWER, **special)
    processor = transformers.GitProcessor(transformers.CLIPImageProcessor(**CLIP_SIZES), bert_words(folder))
    return saved(folder, transformers.GitForCausalLM(config), processor)


def opt(vocabulary: int) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64, "word_embed_proj_dim": 32}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {"model_type": "opt", "vocab_size": vocabulary, "max_position_embeddings": 64, **sizes, **special}


def blip2(folder: Path) -> Path:
    words = plain_words()
    config = transformers.Blip2Config(
        vision_config=SEES, qformer_config=TOWER | {"vocab_size": 20, "encoder_hidden_size": 32}, text_config=opt(len(words)),
        num_query_tokens=4, image_token_index=4,
    )  # fmt: skip
    sizes = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    processor = transformers.Blip2Processor(sizes, words, num_query_tokens=4)
    return saved(folder, transformers.Blip2ForConditionalGeneration(config), processor)


def llava(folder: Path) -> Path:
    words = plain_words()
    text = transformers.LlamaConfig(**TOWER, vocab_size=len(words), num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    vision = transformers.CLIPVisionConfig(**SEES, projection_dim=16)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=4, vision_feature_layer=-1, image_seq_length=4
    )  # fmt: skip
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(**CLIP_SIZES), words, patch_size=16, vision_feature_select_strategy="default",
        chat_template=CHAT, num_additional_image_tokens=1,
    )  # fmt: skip
    return saved(folder, transformers.LlavaForConditionalGeneration(config), processor)


def vit_gpt2(folder: Path) -> Path:
    words = {"vocab_size": 16, "bos_token_id": 1, "eos_token_id": 2}
    decoder = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **words)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(transformers.ViTConfig(**SEES), decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    model = transformers.VisionEncoderDecoderModel(config=config)
    model.generation_config.decoder_start_token_id, model.generation_config.pad_token_id = 1, 0
    return saved(folder, model, transformers.ViTImageProcessor(size={"height": 32, "width": 32}), plain_words(), spread=0.2)


def instructblip(folder: Path) -> Path:
    words = plain_words()
    config = transformers.InstructBlipConfig(
        vision_config=SEES, qformer_config=TOWER | {"vocab_size": 20, "encoder_hidden_size": 32}, text_config=opt(len(words)),
        num_query_tokens=4, image_token_index=4,
    )  # fmt: skip
    sizes = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    processor = transformers.InstructBlipProcessor(sizes, words, bert_words(folder), num_query_tokens=4)
    return saved(folder, transformers.InstructBlipForConditionalGeneration(config), processor, spread=0.2)


def paligemma(folder: Path) -> Path:
    words = plain_words()
    text = transformers.GemmaConfig(
        **TOWER, vocab_size=len(words), num_key_value_heads=1, head_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    vision = transformers.SiglipVisionConfig(**SEES, projection_dim=32, vision_use_head=False)
    config = transformers.PaliGemmaConfig(vision_config=vision, text_config=text, image_token_index=4, projection_dim=32)
    sizes = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    sizes.image_seq_length = 4
    return saved(folder, transformers.PaliGemmaForConditionalGeneration(config), transformers.PaliGemmaProcessor(sizes, words))


KINDS = {made.__name__: made for made in (blip, git, blip2, instructblip, paligemma, llava, vit_gpt2)}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            torch.manual_seed(0)
            made[kind] = KINDS[kind](tmp_path_factory.mktemp(kind))
        return made[kind]

    return make


def captioner_of(folder: Path, prompt: str | None = None, beams: int = 1) -> TransformersCaptioner:
    return TransformersCaptioner(str(folder), prompt=prompt, device="cpu", max_new_tokens=6, num_beams=beams)


@pytest.fixture
def images() -> list[Image.Image]:
    """As different from each other as they can be, so that even small random towers see it."""
    noise = torch.randint(256, (3, 40, 40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return [*(Image.new("RGB", (40, 40), colour) for colour in ("black", "white", "red")), *map(Image.fromarray, noise.numpy())]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # the library's own, in PaliGemma's processor
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_captioned_as_its_images_alone_would_be(kind: str, model_of: Callable[[str], Path], images: list[Image.Image]) -> None:
    captioner = captioner_of(model_of(kind))
    together = captioner(images)
    assert together == [captioner([image])[0] for image in images]
    assert len(set(together)) > 1, "what is said depends on the image"
    assert all("<image>" not in text and "[" not in text for text in together)
    assert len(captioner_of(model_of(kind), beams=2)(images[:1])) == 1


def test_blip_s_captions_are_those_of_the_library_by_hand(model_of: Callable[[str], Path], images: list[Image.Image]) -> None:
    folder = str(model_of("blip"))
    model = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.BlipProcessor.from_pretrained(folder)
    for prompt, beams in ((None, 1), ("a picture of", 1), (None, 3)):
        text = {} if prompt is None else {"text": [prompt]}
        wanted = []
        for image in images:
            tokens = model.generate(**processor(images=[image], return_tensors="pt", **text), max_new_tokens=6, num_beams=beams)
            wanted.append(processor.batch_decode(tokens, skip_special_tokens=True)[0].removeprefix(prompt or "").strip())
        assert captioner_of(Path(folder), prompt, beams)(images) == wanted


@pytest.mark.parametrize("kind", ["blip", "git", "blip2"])
def test_a_prompt_leads_the_caption_and_is_no_part_of_it(kind: str, model_of: Callable[[str], Path], images: list[Image.Image]) -> None:
    plain, led = captioner_of(model_of(kind)), captioner_of(model_of(kind), prompt="The  picture of")
    assert plain.identity != led.identity
    assert led(images) != plain(images)
    assert not any(text.startswith("the picture of") for text in led(images))


def test_git_goes_on_with_the_prompt(model_of: Callable[[str], Path], images: list[Image.Image]) -> None:
    folder = str(model_of("git"))
    captioner = captioner_of(Path(folder), prompt="a picture of")
    model = transformers.GitForCausalLM.from_pretrained(folder).eval()
    tokens = torch.tensor([[2, 6, 14, 15]] * len(images))  # [CLS] a picture of
    pixels = captioner._processor(images=images, return_tensors="pt")["pixel_values"]
    wanted = model.generate(pixel_values=pixels, input_ids=tokens, max_new_tokens=6, do_sample=False)[:, 4:]
    assert captioner(images) == captioner._tokenizer.batch_decode(wanted, skip_special_tokens=True)


def test_a_chat_model_is_asked_with_the_image(model_of: Callable[[str], Path], images: list[Image.Image]) -> None:
    folder = str(model_of("llava"))
    captioner = captioner_of(Path(folder))
    assert PROMPT in captioner.identity
    inputs = captioner._inputs(images[:2])
    text = captioner._tokenizer.decode(inputs["input_ids"][0])
    assert (text.count("<image>"), text.count("<s>")) == (4, 1)
    assert text.endswith("a picture")
    assert captioner._tokenizer.padding_side == "left"  # images may fill unequal numbers of tokens, and the answer follows the last
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert captioner(images[:2]) == [" ".join(text.split()) for text in captioner._tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def test_a_captioner_s_identity_is_its_content_and_its_settings(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = model_of("blip")
    same = Path(shutil.copytree(folder, tmp_path / "elsewhere" / folder.name))
    assert captioner_of(folder).identity == captioner_of(same).identity
    settings = json.loads((same / "generation_config.json").read_text())
    (same / "generation_config.json").write_text(json.dumps(settings | {"repetition_penalty": 2.0}))
    others = [captioner_of(same), captioner_of(folder, beams=2), captioner_of(folder, prompt="a")]
    assert len({captioner_of(folder).identity, *(other.identity for other in others)}) == 4


def test_a_checkpoint_that_cannot_caption_is_refused_before_any_image(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = model_of("blip")
    for name, change, said in (
        ("clip", {"model_type": "clip"}, "type 'clip', which cannot caption images. Types that can: blip, blip-2"),
        ("new", {"model_type": "from-the-future"}, "from-the-future"),
    ):
        shutil.copytree(folder, tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
        with pytest.raises(ModelError, match=said):
            captioner_of(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingDataError, match=r"empty holds no config\.json"):
        captioner_of(tmp_path / "empty")
    with pytest.raises(MissingDataError, match=r"There is no folder .*gone"):
        captioner_of(tmp_path / "gone")
    shutil.copytree(folder, tmp_path / "partial")
    weights = load_file(folder / "model.safetensors")
    save_file({name: weights[name] for name in weights if "crossattention" not in name}, tmp_path / "partial" / "model.safetensors")
    with pytest.raises(ModelError, match=r"partial lacks .* weights of BlipForConditionalGeneration"):
        captioner_of(tmp_path / "partial")([Image.new("RGB", (32, 32))])
    (tmp_path / "partial" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"could not be loaded.*the folder is whole"):
        captioner_of(tmp_path / "partial")([Image.new("RGB", (32, 32))])


def test_without_a_connection_a_hub_name_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"hf download some/blip --local-dir FOLDER', and give hf:FOLDER"):
        load_captioner("hf:some/blip")


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SettingError, match=r"surefoot\[captions\]"):
        load_captioner("hf:some/blip")


def test_settings_that_cannot_be_are_refused(model_of: Callable[[str], Path]) -> None:
    with pytest.raises(SettingError, match="num_beams is 0"):
        load_captioner("iconcap", num_beams=0)
    with pytest.raises(SettingError, match="iconcap takes no prompt"):
        load_captioner("iconcap", prompt="a")
    with pytest.raises(SettingError, match="captions without a prompt"):
        captioner_of(model_of("vit_gpt2"), prompt="a")
    with pytest.raises(SettingError, match="batch size is 0"):
        caption_images([], Fake(), Path("none"), batch_size=0)


def test_half_precision_is_for_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert [pretrained.half(torch.device(name)) for name in ("cpu", "mps", "cuda")] == [torch.float32, torch.float32, torch.bfloat16]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert pretrained.half(torch.device("cuda")) == torch.float16


@pytest.mark.parametrize("template", [None, CHAT.replace("{% for c in m.content %}", "{{ m.content }}{% for c in [] %}")])
def test_a_language_model_answers_in_a_batch_as_alone(template: str | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = plain_words(**({"chat_template": template} if template else {}))
    config = transformers.LlamaConfig(**TOWER, vocab_size=len(words), num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    saved(tmp_path, transformers.LlamaForCausalLM(config), words)
    rewriter = TransformersRewriter(f"hf:{tmp_path}", max_new_tokens=8)
    texts = ["a black disc", "a picture of the white box on the bar", "the red bar"]
    assert rewriter._asked("X") == ("<s>user: " + REWRITE.format("X") + " a picture" if template else CONTINUED.format("X"))
    found = rewriter(texts)
    assert found == [rewriter([text])[0] for text in texts]
    model, alone = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval(), []
    for text in texts:
        inputs = words(rewriter._asked(text), return_tensors="pt", add_special_tokens=not template)  # one <s> in either case
        tokens = model.generate(input_ids=inputs["input_ids"], max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        alone.append(first_line(words.decode(tokens, skip_special_tokens=True)))
    assert found == alone
    assert len(set(found)) > 1


def test_only_a_language_model_rewrites(model_of: Callable[[str], Path]) -> None:
    with pytest.raises(SettingError, match=r"'vicuna' cannot rewrite captions. Give hf:FOLDER"):
        TransformersRewriter("vicuna")
    with pytest.raises(ModelError, match=r"type 'blip-2', which cannot rewrite captions. Types that can: llama"):
        TransformersRewriter(f"hf:{model_of('blip2')}")


def test_the_command_with_a_model_goes_on_after_ctrl_c(
    tiny_data: Dataset, tiny_root: Path, model_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ["caption", str(tiny_root), "--captioner", f"hf:{model_of('blip')}", "--batch-size", "8", "--max-new-tokens", "6"]
    own, calls = TransformersCaptioner.__call__, list[int]()

    def interrupted(self: TransformersCaptioner, images: Sequence[Image.Image]) -> list[str]:
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(self, images)

    monkeypatch.setattr(TransformersCaptioner, "__call__", interrupted)
    stopped = invoke(*command)
    assert stopped.exit_code == 130
    assert "the same command goes on from there" in stopped.output
    assert not default_folder(str(tiny_root)).joinpath(FILE).exists()
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert "13 images captioned, 8 taken from the cache" in result.output
    assert calls == [8, 8, 8, 5]
    found = read_captions(default_folder(str(tiny_root)))
    assert set(found.by_digest) <= set(digests(paths_of(tiny_data)))
    assert found.captioner == captioner_of(model_of("blip")).identity
    monkeypatch.setattr(pretrained.Checkpoint, "load_model", lambda *_: pytest.fail("weights were loaded for nothing"))
    (default_folder(str(tiny_root)) / FILE).write_text("damaged")
    again = invoke(*command)
    assert again.exit_code == 0, again.output
    assert "0 images captioned, 21 taken from the cache" in again.output
    assert read_captions(default_folder(str(tiny_root))) == found
