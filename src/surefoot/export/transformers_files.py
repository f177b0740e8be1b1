"""A CLIP as the transformers library has it: CLIPModel, image processor and tokenizer, compared with the model before they are let go."""

from __future__ import annotations

import json
from collections.abc import Callable
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

TOLERANCE = 1e-4
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
    _check(folder, model, [t.replace("{}", name) for t in bundle.card.templates[:1] for name in bundle.card.class_names[:16]])
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


def _check(folder: Path, model: ImageTextModel, texts: list[str]) -> None:
    """Open the folder as a stranger does, and compare tokens, features and logits.

    Raises:
        ModelError: no library, or another answer.
    """
    try:
        from transformers import AutoModel, AutoProcessor
    except ImportError as error:
        raise ModelError("--to transformers opens what it wrote once, to compare. Install: pip install 'surefoot[export]'.") from error
    opened: Any = AutoProcessor  # its methods have no types
    theirs = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokens = opened.from_pretrained(folder, local_files_only=True).tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
    size = theirs.config.vision_config.image_size
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = theirs(pixel_values=image, **tokens)
        own = model.encode_image(image), model.encode_text(model.tokenize(texts))
        pairs = [(found.image_embeds, own[0]), (found.text_embeds, own[1]), (theirs.logit_scale.exp(), model.scale)]
    for what, (their, our) in zip(("images", "texts", "the scale"), pairs, strict=True):
        compare(f"transformers on {what}", their if our.ndim == 0 else F.normalize(their, dim=-1), our)


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
