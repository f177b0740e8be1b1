"""What a method is: terms make an objective, objectives make stages, stages make a method. All of them are frozen values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from surefoot.chunked import Chunks, Encode
from surefoot.clock import Clock
from surefoot.distributed import evened, gathered, share, whole
from surefoot.errors import SettingError, unknown_name
from surefoot.heads import LinearHead
from surefoot.layers import trains
from surefoot.model import ImageTextModel
from surefoot.precision import kernel_context, matrix_products

GROUPS = ("visual", "text", "logit_scale", "logit_bias", "head")
_RANGE = re.compile(r"(visual|text)\[-?\d*(:-?\d*)?\]")


def group_of(spec: str) -> str:
    """The parameter group of an entry of `trains`: "visual" for "visual" and for "visual[-3:]".

    Raises:
        UnknownNameError: no such group.
        SettingError: brackets that are no range of blocks.

    Examples:
        >>> group_of("visual[-3:]"), group_of("head")
        ('visual', 'head')
    """
    group, bracket, _ = spec.partition("[")
    if group not in GROUPS:
        raise unknown_name("parameter group", group, GROUPS)
    if bracket and not _RANGE.fullmatch(spec):
        raise SettingError(f"'{spec}' is no range of blocks. Write visual[:9], visual[-3:] or text[4:8].")
    return group


@dataclass(frozen=True)
class Batch:
    """One batch: image [B, 3, H, W], label [B] (class ids), text {field: [N] rows of `tokens`}, tokens [T, L] of the distinct texts.

    Of several processes each has its share of the images, and all labels and texts.

    `feature` [B, D] stands in for `image` where the image tower is frozen: f(x), l2-normalised, computed once for all epochs.
    `reference_image` [B, D] is f(x; theta_0) of all images of the batch, where it was computed once for all epochs.
    `anchor_image` [A, 3, H, W] are the retrieved images that belong to the texts of the field "anchor_text" [A].
    """

    image: Tensor | None
    label: Tensor
    text: Mapping[str, Tensor]
    tokens: Tensor
    feature: Tensor | None = None
    anchor_image: Tensor | None = None
    reference_image: Tensor | None = None


class Reference(Protocol):
    """The pre-trained model theta_0, which never trains: no gradient comes out of it."""

    def image(self, image: Tensor) -> Tensor:
        """f(x; theta_0) [B, D] of images [B, 3, H, W], l2-normalised."""

    def text(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """g(t; theta_0) [N, D] of the rows [N] of `tokens`, l2-normalised."""

    def contexts(self, templates: str) -> Tensor:
        """W[c, p] [K, P, D]: the embeddings of a set of context templates, filled with every class."""

    def context_head(self, templates: str) -> Tensor:
        """W_ctx [P, D]: their means over the classes, l2-normalised."""


@dataclass(frozen=True)
class Moved:
    """The parameters that a stage trains, by group, and the pre-trained values of those that belong to the model."""

    now: Mapping[str, Sequence[Tensor]]
    start: Mapping[str, Sequence[Tensor]]


class Forward:
    """Encodings of one batch, computed when a term first asks for them, so that each tower runs once however many terms ask.

    Args:
        model: both towers.
        head: the trained linear head, if the stage has one.
        batch: images, labels and texts.
        moved: the trained parameters and where they started, for terms that look at weights.
        log_prior: [K] logarithms of the training classes' shares, for logit adjustment.
        reference: the pre-trained model, for terms that compare with it.
        chunks: how many images and texts are encoded at a time.
        frozen_text: g of rows [N] of tokens [T, L], remembered from step to step, where the text tower does not train.
        clock: measures what the towers take.
    """

    def __init__(
        self,
        model: ImageTextModel,
        head: LinearHead | None,
        batch: Batch,
        moved: Moved | None = None,
        log_prior: Tensor | None = None,
        reference: Reference | None = None,
        *,
        chunks: Chunks | None = None,
        frozen_text: Callable[[Tensor, Tensor], Tensor] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._model, self._head, self.batch = model, head, batch
        self.moved = moved or Moved({}, {})
        self._log_prior, self._reference = log_prior, reference
        self._chunks, self._frozen_text, self._clock = chunks or Chunks(), frozen_text, clock or Clock()

    @cached_property
    def image(self) -> Tensor:
        """f(x) [B, D], l2-normalised."""
        if self.batch.feature is not None:
            return self.batch.feature
        assert self.batch.image is not None, "a batch holds images or their features"
        return self._encode_image(self.batch.image, len(self.batch.label))

    @cached_property
    def anchor_image(self) -> Tensor:
        """f(x) [A, D] of the retrieved images, l2-normalised."""
        assert self.batch.anchor_image is not None, "a method that needs retrieved images is given them"
        return self._encode_image(self.batch.anchor_image, len(self.batch.text["anchor_text"]))

    def _encode_image(self, image: Tensor, total: int) -> Tensor:
        """Of all images of the batch, of which `image` holds the share of this process."""
        with self._clock("image tower"):
            return gathered(self._encode(self._model.encode_image, image, total, trains=trains(self._model.clip, "visual")), total)

    def _encode(self, encode: Encode, given: Tensor, total: int, *, trains: bool) -> Tensor:
        """`encode(given)` in chunks; `given` is the share of this process of `total` rows."""
        return evened(lambda rows: self._chunks.encode(encode, rows, trains=trains), given, total)

    @property
    def in_chunks(self) -> bool:
        """Whether the backward pass may come in several parts."""
        return self._chunks.size is not None

    @property
    def reference(self) -> Reference:
        """The pre-trained model."""
        assert self._reference is not None, "a method that compares with the pre-trained model is given it"
        return self._reference

    @cached_property
    def reference_image(self) -> Tensor:
        """f(x; theta_0) [B, D] of the same (cropped) images, l2-normalised; a constant."""
        if self.batch.reference_image is not None:
            return self.batch.reference_image
        assert self.batch.image is not None, "the reference sees the images themselves"
        total = len(self.batch.label)
        with self._clock("reference"):
            return gathered(self._encode(self.reference.image, self.batch.image, total, trains=False), total)

    def reference_text(self, name: str) -> Tensor:
        """g(t; theta_0) [N, D] of the text field `name`, l2-normalised; a constant."""
        with self._clock("reference"):
            return self.reference.text(self.batch.text[name], self.batch.tokens)

    @cached_property
    def _texts(self) -> dict[str, Tensor]:
        rows = torch.cat(list(self.batch.text.values()))
        with self._clock("text tower"):
            if self._frozen_text is not None:
                features = self._frozen_text(rows, self.batch.tokens)
            else:
                distinct, place = torch.unique(rows, return_inverse=True)
                tokens, moves = self.batch.tokens[distinct[share(len(distinct))]], trains(self._model.clip, "text")
                total = len(distinct)
                features = gathered(self._encode(self._model.encode_text, tokens, total, trains=moves), total)[place]
        return dict(zip(self.batch.text, torch.split(features, [len(r) for r in self.batch.text.values()]), strict=True))

    def text(self, name: str) -> Tensor:
        """g(t) [N, D], l2-normalised, of the text field `name`; all fields of a batch are encoded together, each distinct text once."""
        return self._texts[name]

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss made from these encodings, in every parameter that trains."""
        with kernel_context(loss.device, self._model.precision), matrix_products(self._model.precision):
            loss.backward()  # type: ignore[no-untyped-call]
            self._chunks.backward()

    @property
    def label(self) -> Tensor:
        """y [B]."""
        return self.batch.label

    @cached_property
    def scale(self) -> Tensor:
        """exp(logit_scale), a scalar."""
        return self._model.scale

    @property
    def bias(self) -> Tensor | None:
        """logit_bias, a scalar, of models that were pre-trained with the sigmoid loss; None for all others."""
        return self._model.logit_bias

    @property
    def head(self) -> LinearHead:
        """The trained linear head."""
        assert self._head is not None, "a stage whose terms ask for the head has one"
        return self._head

    @property
    def log_prior(self) -> Tensor:
        """log of the share of every class among the training images [K]."""
        assert self._log_prior is not None, "the loop gives the prior to every stage"
        return self._log_prior

    @cached_property
    def logits(self) -> Tensor:
        """The head's logits [B, K]."""
        return self.head(self.image)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Term:
    """One named part of a loss.

    `function` maps a Forward to a scalar; `needs` are the batch fields it reads, "start" if it compares with the pre-trained weights,
    "reference" if it asks the pre-trained model, and "contexts:<set>" for context templates; `penalises` are the parameter groups that it
    pulls, which therefore get no weight decay.
    """

    name: str
    function: Callable[[Forward], Tensor]
    needs: frozenset[str]
    weight: float = 1.0
    penalises: frozenset[str] = frozenset()

    def __rmul__(self, factor: float) -> Term:
        return replace(self, weight=factor * self.weight)

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
        """All that the terms of non-zero weight read."""
        return frozenset().union(*(term.needs for term in self.terms if term.weight))

    @property
    def penalises(self) -> frozenset[str]:
        """All parameter groups that a term of non-zero weight pulls."""
        return frozenset().union(*(term.penalises for term in self.terms if term.weight))

    def values(self, forward: Forward) -> dict[str, Tensor]:
        """{term: its unweighted value}."""
        return {term.name: whole(term.function(forward)) for term in self.terms if term.weight}

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of what `values` gave."""
        return torch.stack([term.weight * values[term.name] for term in self.terms if term.weight]).sum()


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """LoRA: the towers that a stage trains move by low-rank updates only, folded into the weights when the stage ends.

    Attributes:
        rank: r of W = W_0 + (alpha / r) B A.
        alpha: its numerator; the rank itself if None.
    """

    rank: int
    alpha: float | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One phase of training: what is minimised, which parameters move, and what the head starts from.

    Attributes:
        objective: the loss.
        trains: parameter groups, or ranges of their blocks such as "visual[-3:]".
        head: "zero_shot" (text prompts), "random", "keep" (the stage before), "from_text" (no trained head: the live text tower's).
        adapter: low-rank updates instead of the whole towers.
        candidates: {name: objective}, tried one after the other from the same start; ID validation keeps the first (the most regularised)
            within one standard error of the best. `objective` is not used then.
        training: training settings that differ in this stage, such as the learning rate of a head alone.
        restart: the image tower begins at random, not at the pre-trained weights.
    """

    objective: Objective
    trains: tuple[str, ...]
    head: Literal["zero_shot", "random", "keep", "from_text"]
    adapter: Adapter | None = None
    candidates: Mapping[str, Objective] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    restart: bool = False

    def __post_init__(self) -> None:
        for spec in self.trains:
            group_of(spec)

    @property
    def groups(self) -> frozenset[str]:
        """The parameter groups that move, ranges without their brackets."""
        return frozenset(group_of(spec) for spec in self.trains)

    @property
    def needs(self) -> frozenset[str]:
        """All batch fields that any of its objectives reads."""
        return self.objective.needs.union(*(objective.needs for objective in self.candidates.values()))


@dataclass(frozen=True, kw_only=True)
class Method:
    """A frozen value: stages, which head answers in the end, and its settings for the record.

    `predict`: "head" (the trained linear head) or "text" (the zero-shot head rebuilt from the model's own text tower).
    `finish`: WiSE-FT's alpha, if interpolating the weights with it belongs to the method.
    """

    name: str
    stages: tuple[Stage, ...]
    predict: Literal["head", "text"]
    settings: Mapping[str, Any] = field(default_factory=dict)
    finish: float | None = None

    @property
    def trains(self) -> frozenset[str]:
        """Every parameter group that any stage moves."""
        return frozenset().union(*(stage.groups for stage in self.stages))

    @property
    def needs(self) -> frozenset[str]:
        """All that any stage reads."""
        return frozenset().union(*(stage.needs for stage in self.stages))
