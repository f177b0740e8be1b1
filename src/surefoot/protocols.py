"""How a set of weights is judged: ID, shifts, unseen classes and context recognition, for any number of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surefoot.data.images import Budget, Images
from surefoot.data.layout import Dataset, Split
from surefoot.heads import class_weight, context_weight, prompt_embeddings
from surefoot.model import ImageTextModel
from surefoot.objective import Method
from surefoot.prompts import PromptTable
from surefoot.train import part

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Outcome:
    """Which images were right, {evaluation set: bool [N]}, and the accuracies that follow.

    Sets: "val", "test", "shifts/<name>", "unseen/<name>", "context/<context>", "context_own/<context>".
    """

    correct: Mapping[str, NDArray[np.bool_]]

    @property
    def accuracy(self) -> dict[str, float]:
        """{set: top-1 in 0..1}, with "avg_shifts" (mean over the shifts) and "context", "context_own" (means over the contexts)."""
        each = {name: float(right.mean()) for name, right in self.correct.items()}
        means = {"avg_shifts": "shifts/", "context": "context/", "context_own": "context_own/"}
        for name, prefix in means.items():
            if values := [value for key, value in each.items() if key.startswith(prefix)]:
                each[name] = float(np.mean(values))
        return each


def members(name: str, sets: Mapping[str, object]) -> list[str]:
    """The evaluation sets whose mean a column is: a set itself, or all shifts for "avg_shifts", all contexts for "context".

    Examples:
        >>> members("avg_shifts", {"test": 0, "shifts/a": 0, "shifts/b": 0})
        ['shifts/a', 'shifts/b']
    """
    prefix = {"avg_shifts": "shifts/", "context": "context/", "context_own": "context_own/"}.get(name)
    return [key for key in sets if key.startswith(prefix)] if prefix else [name]


@dataclass
class Judge:
    """Evaluates weights of one model on one data set; images are read once and kept where they fit.

    Args:
        model: its weights are replaced by every evaluation.
        dataset: all splits but train are used.
        start: theta_0, whose text tower makes the fixed context head.
        budget: how much of the images may be kept in memory.
    """

    model: ImageTextModel
    dataset: Dataset
    start: Mapping[str, Tensor]
    budget: Budget | None = None
    _images: dict[str, Images] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.splits = [split for name, split in self.dataset.splits.items() if name != "train"]
        self.contexts = list(self.dataset.contexts)
        budget = self.budget or Budget()
        self._images = {split.name: Images(split.paths, self.model.preprocess, budget=budget) for split in self.splits}
        self.model.load_weights(part(self.start, "model"))
        self.model.eval()
        with torch.inference_mode():
            self._start_texts = self._text_heads()

    def _text_heads(self) -> dict[str, Tensor]:
        """The heads that the live text tower makes: "seen" [K, D], one for each unseen split, and "context" [P, D]."""
        data = self.dataset
        heads = {"seen": class_weight(prompt_embeddings(self.model, PromptTable.build(data.templates, data.class_names)))}
        for split in data.unseen:
            heads[split.name] = class_weight(prompt_embeddings(self.model, PromptTable.build(data.templates, split.class_names)))
        if self.contexts:
            table = PromptTable.build(list(data.contexts.values()), data.class_names)
            heads["context"] = context_weight(prompt_embeddings(self.model, table))
        return heads

    def judge(self, method: Method, state: Mapping[str, Tensor]) -> Outcome:
        """Evaluate `state` (as `train.fit` gives it, or an interpolation of two) as `method` predicts.

        ID and shifts are answered by the trained head, or by the text head if the method predicts from text. Unseen classes are always
        answered by the model's own text tower. Context recognition swaps the image tower only ("context"), or both ("context_own").
        """
        self.model.load_weights(part(state, "model"))
        self.model.eval()
        correct: dict[str, NDArray[np.bool_]] = {}
        with torch.inference_mode():
            moved = bool(method.trains & {"text", "logit_scale"})
            texts = self._text_heads() if moved else self._start_texts
            weight, bias = texts["seen"], torch.zeros(len(texts["seen"]), device=texts["seen"].device)
            if method.predict == "head":
                weight, bias = state["head.weight"].to(weight.device), state["head.bias"].to(weight.device)
            for split in self.splits:
                features = self._features(split)
                logits = features @ texts[split.name].T if split.name.startswith("unseen/") else features @ weight.T + bias
                correct[split.name] = (logits.argmax(1).cpu() == torch.tensor(split.labels)).numpy()
                self._judge_context(split, features, texts, correct)
        return Outcome(correct)

    def _judge_context(self, split: Split, features: Tensor, texts: Mapping[str, Tensor], correct: dict[str, NDArray[np.bool_]]) -> None:
        context = self.dataset.context_of(split.name)
        if context is None or split.name in ("val", "train"):
            return
        target = self.contexts.index(context)
        for name, head in (("context", self._start_texts["context"]), ("context_own", texts["context"])):
            right = ((features @ head.T).argmax(1) == target).cpu().numpy()
            before = correct.get(f"{name}/{context}", right[:0])  # several sets may be drawn in one context
            correct[f"{name}/{context}"] = np.concatenate([before, right])

    def _features(self, split: Split) -> Tensor:
        device = next(self.model.parameters()).device
        return torch.cat([self.model.encode_image(batch.to(device)) for batch in self._images[split.name].batches(EVALUATION_BATCH)])
