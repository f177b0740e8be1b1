"""The pre-trained model beside the one that trains: constants for the terms that compare with it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from surefoot.anchors.retrieval import embed_images
from surefoot.data.layout import Dataset
from surefoot.distributed import is_first, wait
from surefoot.errors import SettingError
from surefoot.heads import context_weight, prompt_embeddings
from surefoot.model import ImageTextModel, templates_named
from surefoot.prompts import PromptTable
from surefoot.train.state import part
from surefoot.train.texts import EncodedOnce

CONTEXTS = "contexts:"
"""How the need of a set of context templates begins."""
NUM_FEW = 7
_DRAW = 20_240_107  # any number, but the same for every run: which of the 80 templates "random7" takes


class FrozenReference:
    """theta_0, kept in evaluation mode; texts are encoded once and remembered.

    Args:
        model: the same architecture, whatever its weights are now.
        start: theta_0, as `start_state` gives it.
        dataset: its class names fill the context templates.
    """

    def __init__(self, model: ImageTextModel, start: Mapping[str, Tensor], dataset: Dataset) -> None:
        self._model, self._dataset = model.frozen_copy(), dataset
        self._model.load_weights(part(start, "model"))
        self._texts = EncodedOnce(lambda tokens: self._model.encode_text(tokens))
        self._contexts: dict[str, Tensor] = {}
        self._heads: dict[str, Tensor] = {}

    def image(self, image: Tensor) -> Tensor:
        """f(x; theta_0) [B, D], l2-normalised."""
        with torch.inference_mode():
            features = self._model.encode_image(image)
        return features.clone()  # a tensor that losses may keep for their backward pass

    def images(self, paths: Sequence[Path]) -> Tensor:
        """f(x; theta_0) [N, D] of image files as evaluation sees them, on the CPU; computed by the first process, and kept in the cache."""
        if is_first():
            embed_images(self._model, paths)
        wait()
        return embed_images(self._model, paths)

    def text(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """g(t; theta_0) [N, D] of the rows [N] of `tokens` [T, L]; they are remembered while these stay the same tensor."""
        return self._texts(rows, tokens)

    def contexts(self, templates: str) -> Tensor:
        """W[c, p] [K, P, D] of a set of context templates, named as in `context_templates`."""
        if templates not in self._contexts:
            table = PromptTable.build(context_templates(templates, self._dataset), self._dataset.class_names)
            with torch.no_grad():
                self._contexts[templates] = prompt_embeddings(self._model, table)
        return self._contexts[templates]

    def context_head(self, templates: str) -> Tensor:
        """W_ctx [P, D] of the same templates, made once for all steps."""
        if templates not in self._heads:
            self._heads[templates] = context_weight(self.contexts(templates))
        return self._heads[templates]


def context_templates(name: str, dataset: Dataset) -> Sequence[str]:
    """The templates of a set of contexts, each with a `{}` for the class name.

    Args:
        name: "openai80" (CLIP's 80), "random7" (7 of them, drawn once for all), "searched7" (the 7 that were found by search), "own" (the
            contexts that the data set names), or "templates" (the data set's own prompts).
        dataset: whose contexts or prompts.

    Raises:
        SettingError: "own" or "templates", and the data set has none, or only one, which tells nothing apart.
        UnknownNameError: another name.

    References:
        Mao et al., "Context-aware robust fine-tuning", IJCV 2024, table 5.
    """
    if name in ("own", "templates"):
        found = list(dataset.contexts.values()) if name == "own" else list(dataset.templates)
        if len(found) < 2:
            where, what = ("[contexts]", "contexts") if name == "own" else ("templates", "templates")
            raise SettingError(
                f"contexts is '{name}', and {dataset.name} names {len(found)} {what}; two or more are needed. Name them in "
                f"dataset.toml under {where}, or set contexts to openai80."
            )
        return found
    if name == "random7":
        return random.Random(_DRAW).sample(templates_named("openai80"), NUM_FEW)
    return templates_named("simple7" if name == "searched7" else name)
