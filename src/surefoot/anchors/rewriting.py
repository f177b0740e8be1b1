"""Captions in other words, by a local language model: ARF's table 4 compares BLIP-2 with BLIP-2 rewritten by Vicuna."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from surefoot.anchors import pretrained
from surefoot.errors import ModelError, SettingError

PROMPT = "Rewrite this image caption with different words, keep all facts, one sentence, and answer with the sentence alone: {}"
CONTINUED = "Image caption: {}\nThe same caption in different words, with all facts, in one sentence:"
MAX_NEW_TOKENS = 60
EXAMPLES = "llama (Vicuna), mistral, qwen2, qwen3, gemma2, phi3, gpt2"
_FAILED = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)


class TransformersRewriter:
    """A causal language model of the transformers library, asked once for each caption, greedily.

    A model with a chat template gets `PROMPT` as the user's message, another `CONTINUED` as the text that it goes on with.

    Args:
        name: hf:FOLDER or hf:NAME.
        device: where it computes; float32 except on CUDA.
        max_new_tokens: the longest answer.

    Raises:
        SettingError: a name of another form, or transformers is not installed.
        MissingDataError: no such folder.
        ModelError: the hub cannot be reached, or the model is no causal language model.
    """

    def __init__(self, name: str, *, device: torch.device | str = "cpu", max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        kind, _, given = name.partition(":")
        if kind != "hf" or not given:
            raise SettingError(f"'{name}' cannot rewrite captions. Give hf:FOLDER or hf:NAME of a causal language model.")
        pretrained.library()
        from transformers import AutoTokenizer
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

        self._checkpoint = pretrained.find(given, KNOWN, "rewrite captions", EXAMPLES)
        self._device, self._max_new_tokens = torch.device(device), max_new_tokens
        self._tokenizer = self._checkpoint.load(AutoTokenizer, padding_side="left")
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        if self._tokenizer.pad_token is None:
            raise ModelError(f"The tokenizer of {given} has neither a padding nor an end token. Give another language model.")
        self._chats = bool(self._tokenizer.chat_template)
        precision = str(pretrained.half(self._device)).removeprefix("torch.")
        asked = PROMPT if self._chats else CONTINUED
        self.identity = f"{self._checkpoint.identity}, prompt {asked!r}, at most {max_new_tokens} tokens, {precision}"

    @cached_property
    def _model(self) -> Any:  # noqa: ANN401
        from transformers import AutoModelForCausalLM

        return self._checkpoint.load_model(AutoModelForCausalLM, self._device)

    def __call__(self, texts: Sequence[str]) -> list[str]:
        model = self._model
        asked = [self._asked(text) for text in texts]
        begun = self._tokenizer.bos_token and asked[0].startswith(self._tokenizer.bos_token)
        try:
            inputs = self._tokenizer(asked, padding=True, return_tensors="pt", add_special_tokens=not begun)
            inputs = pretrained.placed(inputs, model)
            with torch.inference_mode():
                tokens = model.generate(
                    **inputs, max_new_tokens=self._max_new_tokens, do_sample=False, pad_token_id=self._tokenizer.pad_token_id
                )
        except _FAILED as error:
            raise ModelError(
                f"{self._checkpoint.source} failed on {len(texts)} captions: {error}. If memory is short give a smaller --batch-size."
            ) from error
        return [first_line(text) for text in pretrained.decode(self._tokenizer, tokens, inputs["input_ids"])]

    def _asked(self, text: str) -> str:
        if not self._chats:
            return CONTINUED.format(text)
        message = {"role": "user", "content": PROMPT.format(text)}
        return self._tokenizer.apply_chat_template(  # type: ignore[no-any-return]
            [message], add_generation_prompt=True, tokenize=False, enable_thinking=False
        )


def first_line(text: str) -> str:
    """The rewritten caption in a model's answer: its first line without quotes; one that announces the next, with a colon, is passed over.

    Examples:
        >>> first_line('Sure, here it is:\\n"A black disc."\\nAnything else?')
        'A black disc.'
    """
    lines = [line.strip() for line in pretrained.answer(text).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = lines[1:]
    return lines[0].strip("\"'“” ") if lines else ""
