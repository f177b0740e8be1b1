"""Pre-trained captioners: any image-to-text model of the transformers library, and the one that comes with Surefoot.

    iconcap                 the small captioner of icons that comes with Surefoot
    hf:FOLDER, hf:NAME      BLIP, BLIP-2, GIT, ViT-GPT2, or a chat model that sees images (LLaVA, SmolVLM, Qwen-VL, ...)

A captioner's weights are loaded when it is first called: where everything is cached, they never are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from surefoot.anchors import pretrained
from surefoot.anchors.captions import Captioner
from surefoot.errors import ModelError, SettingError

PROMPT = "Describe the image in one sentence."
MAX_NEW_TOKENS = 40
EXAMPLES = "blip, blip-2, git, instructblip, paligemma, vision-encoder-decoder, llava, smolvlm, qwen2_5_vl"
_NEED = {"instructblip": PROMPT, "paligemma": "<image>caption en"}  # no chat template, and no caption without a prompt
_FAILED = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)


def load_captioner(
    name: str, *, prompt: str | None = None, device: torch.device | str = "cpu", max_new_tokens: int = MAX_NEW_TOKENS, num_beams: int = 1
) -> Captioner:
    """The captioner of that name; see the head of this module.

    Args:
        name: iconcap, hf:FOLDER or hf:NAME.
        prompt: what a chat model is asked; what the captions of another begin with, which is not repeated in them. Its default if None.
        device: where it computes.
        max_new_tokens: the longest caption.
        num_beams: 1 is greedy; BLIP's authors use 3, BLIP-2's 5.

    Raises:
        SettingError: an unknown kind of captioner, numbers below 1, a prompt for one that takes none, transformers not installed.
        MissingDataError: no such folder.
        ModelError: the hub cannot be reached, or the model writes no captions.
    """
    for option, value in (("max_new_tokens", max_new_tokens), ("num_beams", num_beams)):
        if value < 1:
            raise SettingError(f"{option} is {value}; it must be 1 or more.")
    kind, _, given = name.partition(":")
    if kind == "hf" and given:
        return TransformersCaptioner(given, prompt=prompt, device=device, max_new_tokens=max_new_tokens, num_beams=num_beams)
    if name != "iconcap":
        raise SettingError(f"'{name}' is no captioner. Give iconcap, hf:FOLDER or hf:NAME.")
    if prompt is not None:
        raise SettingError("iconcap takes no prompt. Leave --prompt out, or use a captioner hf:FOLDER that takes one.")
    from surefoot.anchors.iconcap import load_iconcap

    return load_iconcap(device=device, num_beams=num_beams)


class TransformersCaptioner:
    """An image-to-text model of the transformers library.

    Args:
        given: its folder, or its name on the hub.
        prompt: as in `load_captioner`.
        device: where it computes; float32 except on CUDA.
        max_new_tokens: the longest caption.
        num_beams: 1 is greedy.

    Raises:
        as `load_captioner`.
    """

    def __init__(self, given: str, *, prompt: str | None, device: torch.device | str, max_new_tokens: int, num_beams: int) -> None:
        pretrained.library()
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

        self._checkpoint = pretrained.find(given, KNOWN, "caption images", EXAMPLES)
        self._device = torch.device(device)
        self._load_processor()
        self._chats = bool(getattr(self._processor, "chat_template", None)) and self._joint
        self._prompt = prompt or (PROMPT if self._chats else _NEED.get(self._checkpoint.config.model_type))
        if prompt and not self._joint:
            raise SettingError(f"{given} captions without a prompt. Leave --prompt out.")
        self._generation = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "do_sample": False}
        precision = str(pretrained.half(self._device)).removeprefix("torch.")
        asked = f"prompt {self._prompt!r}" if self._prompt else "no prompt"
        settings = f"{asked}, at most {max_new_tokens} tokens, {num_beams} beams, {precision}"
        self.identity = f"{self._checkpoint.identity}, {settings}"

    def _load_processor(self) -> None:
        """One processor for images and text; or two, for checkpoints that were put together from an image tower and a text decoder."""
        from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

        self._joint = self._checkpoint.config.model_type != "vision-encoder-decoder"
        if self._joint:
            self._processor = self._checkpoint.load(AutoProcessor)
            self._joint = hasattr(self._processor, "image_processor") and hasattr(self._processor, "tokenizer")
        if not self._joint:
            self._processor = self._checkpoint.load(AutoImageProcessor)
        self._tokenizer = self._processor.tokenizer if self._joint else self._checkpoint.load(AutoTokenizer)

    @cached_property
    def _model(self) -> Any:  # noqa: ANN401
        from transformers import AutoModelForImageTextToText

        return self._checkpoint.load_model(AutoModelForImageTextToText, self._device)

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        model = self._model
        try:
            inputs = pretrained.placed(self._inputs(images), model)
            with torch.inference_mode():
                tokens = model.generate(**inputs, **self._generation)
            return [self._caption(text) for text in self._decode(tokens, inputs)]
        except _FAILED as error:
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise ModelError(
                f"{self._checkpoint.source} failed on {len(images)} images: {reason[0]}. If memory is short give a smaller --batch-size; "
                "if the model needs a prompt, give the one that its documentation shows by --prompt."
            ) from error

    def _inputs(self, images: Sequence[Image.Image]) -> Mapping[str, Any]:
        """What `generate` takes. All images have the same text, so that no padding is needed beside that of the images' own tokens."""
        if not self._joint or self._prompt is None:
            return self._processor(images=list(images), return_tensors="pt")  # type: ignore[no-any-return]
        if not self._chats:
            inputs = self._processor(images=list(images), text=[self._prompt] * len(images), return_tensors="pt")
            if self._checkpoint.config.model_type == "git":  # its tokenizer ends the text, which is to go on
                inputs = {key: value[:, :-1] if key in ("input_ids", "attention_mask") else value for key, value in inputs.items()}
            return inputs  # type: ignore[no-any-return]
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self._prompt}]}
        text = self._processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        begun = self._tokenizer.bos_token and text.startswith(self._tokenizer.bos_token)
        self._tokenizer.padding_side = "left"
        return self._processor(  # type: ignore[no-any-return]
            images=[[image] for image in images], text=[text] * len(images), padding=True, return_tensors="pt",
            **({"add_special_tokens": False} if begun else {}),
        )  # fmt: skip

    def _decode(self, tokens: Tensor, inputs: Mapping[str, Any]) -> list[str]:
        """The texts of token numbers [B, L], without those that went in."""
        return pretrained.decode(self._tokenizer, tokens, inputs.get("input_ids"))

    def _caption(self, text: str) -> str:
        """One line; BLIP and BLIP-2 repeat the prompt in their own spelling."""
        caption = pretrained.answer(" ".join(text.split()))
        prompt = " ".join((self._prompt or "").split())
        return caption[len(prompt) :].strip() if prompt and caption.casefold().startswith(prompt.casefold()) else caption
