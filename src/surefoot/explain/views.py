"""The same images under several models: class, context, and the map of attention for one class, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from surefoot.errors import SettingError
from surefoot.explain.attention import relevance
from surefoot.heads import class_weight, context_weight, prompt_embeddings
from surefoot.model import ImageTextModel, templates_named
from surefoot.prompts import PromptTable
from surefoot.protocols.judge import of_mapped

Mapped = Sequence[Sequence[int]]
BATCH = 16
NUM_NAMES = 20
"""Class names that generic contexts are averaged over: enough for a mean, and 80 templates of 1000 classes would take minutes."""


@dataclass(frozen=True)
class Version:
    """One set of weights: the row of the table that it stands in, what it is called beside the others, and what answers.

    `weights` gives the model's own, as `ImageTextModel.weights` does. `head` is (weight [K, D], bias [K]) of a trained head; None where
    prompts through the text tower of these weights answer.
    """

    row: str
    label: str
    weights: Callable[[], Mapping[str, Tensor]]
    head: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Question:
    """What is asked of an image: which of K `names`, filled into `templates`, and which of `contexts`, {name: prompt with `{}`}.

    `added` is one more name, whose map may be asked for; it does not compete.
    """

    names: Sequence[str]
    templates: Sequence[str]
    contexts: Mapping[str, str]
    added: str = ""


@dataclass(frozen=True)
class View:
    """What one model makes of one image: its class and context, how sure it is of them, and the map [h, w] for the class in question.

    `row` is that of `Question.names` whose score answers: `answer` itself, unless the image is asked for classes of its own.
    """

    answer: int
    confidence: float
    context: int
    context_confidence: float
    row: int
    heat: Tensor | None = None


def generic_contexts() -> dict[str, str]:
    """The contexts that CAR-FT is trained with where data name none: CLIP's 80 templates, each by its own name, "..." for the class."""
    return {template.replace("{}", "…"): template for template in templates_named("openai80")}


def views(
    model: ImageTextModel,
    image: Tensor,
    versions: Sequence[Version],
    question: Question,
    of: Sequence[int | None],
    *,
    mapped: Sequence[Mapped] = (),
    maps: bool = True,
    on_done: Callable[[int, int], None] | None = None,
) -> tuple[list[list[View]], list[int]]:
    """What every model makes of every image.

    Contexts are asked by the text tower of the first version, so that they tell of the image towers alone, as the context of the table.

    Args:
        model: takes the weights of one version after another, and has its own again afterwards.
        image: preprocessed images [N, 3, H, W].
        versions: the zero-shot model first.
        question: what is asked.
        of: for each image the class whose score its maps explain, the same for all models: a row of `names`, or K for the added name;
            None for what the last version answers.
        mapped: empty, or for each image the rows of `names` that count as each class of its own, which is what its answer is then asked
            among, as in `Split.mapped`; () for an image that is asked for the names themselves.
        maps: whether maps are made, which takes a backward pass through the image tower.
        on_done: hears how many passes over a batch are done, and how many there are.

    Returns:
        For each image the views in the order of the versions, and the class of its maps.

    Raises:
        ModelError: a tower without maps.
        SettingError: a class for which there is no name.
    """
    known = len(question.names) + bool(question.added)
    if wrong := [number for number in of if number is not None and not 0 <= number < known]:
        raise SettingError(f"The maps of class {wrong[0]} were asked for; there are {known} names, counted from 0. Name one of them.")
    tell = _counter(on_done, len(versions) * len(_parts(image)) * (1 + maps))
    with _holding(model):
        seen, heads = _answers(model, image, versions, question, mapped or [()] * len(image), tell)
        wanted = [own[-1].row if number is None else number for own, number in zip(seen, of, strict=True)]
        for place, version in enumerate(versions if maps else ()):
            model.load_weights(version.weights())
            for part in _parts(image):
                heat = relevance(model, image[part].to(heads[place]), heads[place][wanted[part]]).cpu()
                for row, own in enumerate(heat, start=part.start):
                    seen[row][place] = replace(seen[row][place], heat=own)
                tell()
    return seen, wanted


def _answers(
    model: ImageTextModel,
    image: Tensor,
    versions: Sequence[Version],
    question: Question,
    mapped: Sequence[Mapped],
    tell: Callable[[], None],
) -> tuple[list[list[View]], list[Tensor]]:
    """The views of every image without maps, and the rows that answer for each version, [K, D] or one more."""
    seen: list[list[View]] = [[] for _ in range(len(image))]
    heads: list[Tensor] = []
    contexts: Tensor | None = None
    for version in versions:
        model.load_weights(version.weights())
        with torch.inference_mode():
            contexts = _context_head(model, question) if contexts is None else contexts
            weight, bias = _head(model, version, question)
            for part in _parts(image):
                features = model.encode_image(image[part].to(weight))
                found = _answered(features @ weight[: len(bias)].T + bias, features @ contexts.T, mapped[part])
                for row, view in enumerate(found, start=part.start):
                    seen[row].append(view)
                tell()
        heads.append(weight)
    return seen, heads


def _parts(image: Tensor) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, len(image), BATCH)]


def _counter(on_done: Callable[[int, int], None] | None, total: int) -> Callable[[], None]:
    """What tells one more that is done."""
    done = count(1)
    return lambda: on_done(next(done), total) if on_done else None


@contextmanager
def _holding(model: ImageTextModel) -> Iterator[None]:
    """Give the model its weights and its mode back."""
    before, training = model.weights(), {module: module.training for module in model.modules()}
    try:
        yield model.eval()  # type: ignore[misc]
    finally:
        model.load_weights(before)
        for module, was in training.items():
            module.training = was


def _context_head(model: ImageTextModel, question: Question) -> Tensor:
    """The scale times W_ctx [P, D] of the weights that the model holds."""
    names, size = question.names, len(question.names)
    if size > NUM_NAMES and dict(question.contexts) == generic_contexts():
        names = [names[place * size // NUM_NAMES] for place in range(NUM_NAMES)]  # spread evenly
    table = PromptTable.build(list(question.contexts.values()), names)
    return float(model.scale) * context_weight(prompt_embeddings(model, table))


def _head(model: ImageTextModel, version: Version, question: Question) -> tuple[Tensor, Tensor]:
    """(weight [K, D], bias [K]) that answers, and below the weight a row for the added name."""
    device = next(model.parameters()).device

    def text(names: Sequence[str]) -> Tensor:
        return float(model.scale) * class_weight(prompt_embeddings(model, PromptTable.build(question.templates, names)))

    weight, bias = version.head or (text(question.names), torch.zeros(len(question.names)))
    extra = [text([question.added])] if question.added else []
    return torch.cat([weight.to(device), *extra]), bias.to(device)


def _answered(classes: Tensor, contexts: Tensor, mapped: Sequence[Mapped]) -> list[View]:
    """The views of logits [B, K] and [B, P]."""
    found = []
    for own, context, rows in zip(classes, contexts, mapped, strict=True):
        asked = of_mapped(own[None], rows)[0] if rows else own
        answer, number = int(asked.argmax()), int(context.argmax())
        row = max(rows[answer], key=lambda one: float(own[one])) if rows else answer
        found.append(View(answer, float(asked.softmax(0)[answer]), number, float(context.softmax(0)[number]), row))
    return found
