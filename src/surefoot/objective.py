"""What a method is: terms make an objective, objectives make stages, stages make a method. All of them are frozen values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from surefoot.errors import SettingError, unknown_name
from surefoot.heads import LinearHead
from surefoot.model import ImageTextModel

GROUPS = ("visual", "text", "logit_scale", "logit_bias", "head")


@dataclass(frozen=True)
class Batch:
    """One batch: image [B, 3, H, W], label [B] (class ids), text {field: [B] rows of `tokens`}, tokens [T, L] of the distinct texts."""

    image: Tensor
    label: Tensor
    text: Mapping[str, Tensor]
    tokens: Tensor


class Forward:
    """Encodings of one batch, computed when a term first asks for them, so that each tower runs once however many terms ask."""

    def __init__(self, model: ImageTextModel, head: LinearHead | None, batch: Batch) -> None:
        self._model, self._head, self.batch = model, head, batch

    @cached_property
    def image(self) -> Tensor:
        """f(x) [B, D], l2-normalised."""
        return self._model.encode_image(self.batch.image)

    @cached_property
    def _texts(self) -> dict[str, Tensor]:
        rows = torch.cat(list(self.batch.text.values()))
        distinct, place = torch.unique(rows, return_inverse=True)
        features = self._model.encode_text(self.batch.tokens[distinct])[place]
        return dict(zip(self.batch.text, torch.split(features, [len(r) for r in self.batch.text.values()]), strict=True))

    def text(self, name: str) -> Tensor:
        """g(t) [B, D], l2-normalised, of the text field `name`; all fields of a batch are encoded together, each distinct text once."""
        return self._texts[name]

    @property
    def label(self) -> Tensor:
        """y [B]."""
        return self.batch.label

    @cached_property
    def scale(self) -> Tensor:
        """exp(logit_scale), a scalar."""
        return self._model.scale

    @cached_property
    def logits(self) -> Tensor:
        """The head's logits [B, K]."""
        assert self._head is not None, "a stage whose terms ask for logits has a head"
        return self._head(self.image)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Term:
    """One named part of a loss: `function` maps a Forward to a scalar; `needs` are the batch fields it reads."""

    name: str
    function: Callable[[Forward], Tensor]
    needs: frozenset[str]
    weight: float = 1.0

    def __rmul__(self, factor: float) -> Term:
        return Term(self.name, self.function, self.needs, factor * self.weight)

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective((self,)) + other


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms with distinct names, in the paper's order."""

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        names = [term.name for term in self.terms]
        if len(set(names)) < len(names):
            raise SettingError(f"The terms {names} of an objective must have distinct names.")

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective(self.terms + (other.terms if isinstance(other, Objective) else (other,)))

    @property
    def needs(self) -> frozenset[str]:
        """All batch fields that the terms read."""
        return frozenset().union(*(term.needs for term in self.terms))

    def values(self, forward: Forward) -> dict[str, Tensor]:
        """{term: its unweighted value}."""
        return {term.name: term.function(forward) for term in self.terms if term.weight}

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of what `values` gave."""
        return torch.stack([term.weight * values[term.name] for term in self.terms if term.weight]).sum()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One phase of training: what is minimised, which parameter groups move, and what the head starts from.

    `head`: "zero_shot" (text prompts), "keep" (the stage before), "from_text" (no trained head: rebuilt from the live text tower).
    """

    objective: Objective
    trains: tuple[str, ...]
    head: Literal["zero_shot", "keep", "from_text"]

    def __post_init__(self) -> None:
        for group in self.trains:
            if group not in GROUPS:
                raise unknown_name("parameter group", group, GROUPS)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A frozen value: stages, which head answers in the end, and its settings for the record.

    `predict`: "head" (the trained linear head) or "text" (the zero-shot head rebuilt from the model's own text tower).
    """

    name: str
    stages: tuple[Stage, ...]
    predict: Literal["head", "text"]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trains(self) -> frozenset[str]:
        """Every parameter group that any stage moves."""
        return frozenset().union(*(stage.trains for stage in self.stages))
