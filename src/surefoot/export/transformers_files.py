"""A CLIP as the transformers library has it: CLIPModel, image processor and tokenizer, compared with the model before they are let go."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from surefoot import hf_clip
from surefoot.bundle import Bundle
from surefoot.errors import ModelError
from surefoot.model import ImageTextModel

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
PLAIN = ("a photo of a dog.", "two grey cats, 42 stones and nobody else's hat")  # what every tokenizer of CLIP reads alike
OTHERS = "Export it by --to open_clip or --to onnx instead."
START, END = "<|startoftext|>", "<|endoftext|>"


def write(folder: Path, bundle: Bundle, tell: Callable[[int, int], None]) -> None:
    """Write config.json, model.safetensors, preprocessor_config.json and the tokenizer's files.

    Raises:
        ModelError: no plain CLIP, no transformers library, or features that differ from the model's by more than 1e-4.
    """
    model = bundle.model
    config, preprocessor = _converted(model)
    _put(folder / hf_clip.CONFIG, config)
    _put(folder / hf_clip.PREPROCESSING, preprocessor)
    _write_tokenizer(folder, model)
    save_file(hf_clip.rename_back(model.weights()), folder / hf_clip.WEIGHTS, metadata={"format": "pt"})
    tell(1, 2)
    _check(folder, model, {name: t.replace("{}", name) for t in bundle.card.templates[:1] for name in bundle.card.class_names})
    tell(2, 2)


def _converted(model: ImageTextModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and preprocessor_config.json.

    Raises:
        ModelError: what CLIPModel does not have, and what the model can be exported as instead.
    """
    config, kind = model.config(), type(model.clip).__name__
    if kind != "CLIP" or model.image_transformer is None:
        raise ModelError(
            f"{model.name} is a {kind} with the image tower {type(model.clip.visual).__name__}; to transformers goes a CLIP "
            f"with a ViT. {OTHERS}"
        )
    if not hasattr(model._tokenizer, "bpe_ranks"):
        raise ModelError(f"{model.name} reads text by another tokenizer than CLIP's, which CLIPModel does not have. {OTHERS}")
    try:
        return hf_clip.to_config(config["model_cfg"]), hf_clip.to_preprocessor(config["preprocess_cfg"])
    except ModelError as error:
        raise ModelError(f"{model.name}: {error} {OTHERS}") from error


def _put(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, model: ImageTextModel) -> None:
    """CLIP's byte-pair encoding, whose two special tokens are spelt in another way there."""
    tokenizer = model._tokenizer
    spelt = {"<start_of_text>": START, "<end_of_text>": END}
    _put(folder / "vocab.json", {spelt.get(token, token): number for token, number in tokenizer.encoder.items()})
    merges = "\n".join(" ".join(pair) for pair in tokenizer.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    length = int(tokenizer.context_length)
    _put(
        folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **special}
    )
    _put(folder / "special_tokens_map.json", special)


def _check(folder: Path, model: ImageTextModel, prompts: Mapping[str, str]) -> None:
    """Open the folder as a stranger does, and compare tokens, features and logits.

    Args:
        folder: what was written.
        model: whose copy it is.
        prompts: {class name: a prompt of it}.

    Raises:
        ModelError: no library, or another answer.
    """
    try:
        from transformers import AutoModel, AutoProcessor
    except ImportError as error:
        raise ModelError("--to transformers opens what it wrote once, to compare. Install: pip install 'surefoot[export]'.") from error
    opened: Any = AutoProcessor  # its methods have no types
    theirs = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = opened.from_pretrained(folder, local_files_only=True).tokenizer
    texts = [*PLAIN, *alike(tokenizer, model, prompts)[:16]]
    tokens = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
    size = theirs.config.vision_config.image_size
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = theirs(pixel_values=image, **tokens)
        own = model.encode_image(image), model.encode_text(model.tokenize(texts))
        pairs = [(found.image_embeds, own[0]), (found.text_embeds, own[1]), (theirs.logit_scale.exp(), model.scale)]
    for what, (their, our) in zip(("images", "texts", "the scale"), pairs, strict=True):
        compare(f"transformers on {what}", their if our.ndim == 0 else F.normalize(their, dim=-1), our)


def alike(tokenizer: Any, model: ImageTextModel, prompts: Mapping[str, str]) -> list[str]:  # noqa: ANN401
    """The prompts that the library's tokenizer reads as the model's own does; names for which it does not are told.

    They hold signs that the two spell out in different ways, such as &amp;. A trained head answers for them all the same.

    Args:
        tokenizer: the library's.
        model: with its own.
        prompts: {class name: a prompt of it}.
    """
    theirs, ours = tokenizer(list(prompts.values()), truncation=True)["input_ids"], model.tokenize(list(prompts.values())).tolist()
    same = {name: own[: len(their)] == their and not any(own[len(their) :]) for name, their, own in zip(prompts, theirs, ours, strict=True)}
    if other := [name for name, is_same in same.items() if not is_same]:
        logger.warning(
            "The tokenizer of transformers reads %d class name%s in another way (%s): prompts of these are answered otherwise there.",
            len(other), "" if len(other) == 1 else "s", ", ".join(map(repr, other[:5])),
        )  # fmt: skip
    return [prompt for name, prompt in prompts.items() if same[name]]


def compare(where: str, found: Tensor, expected: Tensor) -> None:
    """Whether a copy computes what the model does.

    Args:
        where: the copy.
        found: what it gives, of any shape.
        expected: what the model gives, of the same shape.

    Raises:
        ModelError: a difference above 1e-4, or a number that is not finite.
    """
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE:
        raise ModelError(
            f"The answers of {where} differ from the model's by {difference:.2g}; {TOLERANCE:g} is allowed. Nothing was written. Try "
            "another target of --to, and tell the authors which model it was."
        )
