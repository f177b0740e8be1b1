"""A finished classifier in a folder: weights, head, class names and prompts; what `fit` leaves and `predict` and `evaluate` take.

FOLDER/
├── open_clip_config.json           the image-text model, which open_clip opens as local-dir:FOLDER
├── open_clip_model.safetensors
├── head.safetensors                what answers: the trained head (weight [K, D], bias [K]), or the text head of these weights
└── surefoot.json                   class names, templates, which head answers, and where all of it comes from
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from surefoot.data.layout import Dataset
from surefoot.errors import DataError, MissingDataError, SettingError, TrainingError
from surefoot.guard import made, parse_json, read_text
from surefoot.heads import class_weight, prompt_embeddings
from surefoot.model import ImageTextModel, load_model, pick_device, probe_names
from surefoot.objective import Method
from surefoot.precision import Precision
from surefoot.prompts import PromptTable
from surefoot.train import part, text_head
from surefoot.train.checkpoint import write

CARD, HEAD = "surefoot.json", "head.safetensors"
NONE_OF_THESE = "none of these"
_NONE = "does not hold a classifier of Surefoot ({}). Write it again by 'surefoot fit'."


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of a classifier besides its weights.

    Attributes:
        class_names: K names in the order of the head's rows.
        templates: prompts with a `{}` for the name.
        predict: which head answers for these names: the trained "head", or "text".
        method: what it was fine-tuned by.
        alpha: WiSE-FT's coefficient, 1 for the fine-tuned weights themselves.
        base: the pre-trained model's name.
        origin: settings, seed, hashes and versions.
    """

    class_names: Sequence[str]
    templates: Sequence[str]
    predict: Literal["head", "text"]
    method: str
    alpha: float
    base: str
    origin: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A classifier, ready to answer."""

    model: ImageTextModel
    head: Mapping[str, Tensor]
    card: Card

    def classifier(self, added: Sequence[str] = (), *, none_of_these: bool = False) -> Classifier:
        """What maps images to probabilities over the trained class names and `added` ones.

        Without added names the head that was trained answers. With them all names, old and new, are answered by the text tower, so that
        they compete on equal terms. `none_of_these` lets everyday names compete too (but for those that are asked for); their
        probabilities together are its probability.

        Raises:
            SettingError: an added name that is empty, already there or given twice.
        """
        known = {name.casefold() for name in self.card.class_names}
        if wrong := [name for name in added if not name.strip() or name.casefold() in known]:
            raise SettingError(f"The class name '{wrong[0]}' is empty, or one of those that were trained on already. Leave it out.")
        if len({name.casefold() for name in added}) < len(added):
            raise SettingError(f"The added class names {list(added)} hold one name twice. Name each once.")
        names = [*self.card.class_names, *added]
        others = [name for name in probe_names() if name.casefold() not in {name.casefold() for name in names}] if none_of_these else []
        device = next(self.model.parameters()).device
        if self.card.predict == "head" and not added and not others:
            return Classifier(self.model, tuple(names), self.head["weight"].to(device), self.head["bias"].to(device), 0)
        with torch.inference_mode():
            text = class_weight(prompt_embeddings(self.model, PromptTable.build(self.card.templates, [*names, *others])))
            weight = float(self.model.scale) * text
        shown = (*names, NONE_OF_THESE) if others else tuple(names)
        return Classifier(self.model, shown, weight, torch.zeros(len(weight), device=device), len(others))


@dataclass(frozen=True)
class Classifier:
    """Images to probabilities: `weight` [K, D], `bias` [K]; the last `num_others` rows together are the last of `names`."""

    model: ImageTextModel
    names: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    num_others: int

    def __call__(self, image: Tensor) -> Tensor:
        """Probabilities [B, len(names)] of preprocessed images [B, 3, H, W]."""
        with torch.inference_mode():
            logits = self.model.encode_image(image.to(self.weight.device)) @ self.weight.T + self.bias
            each = logits.softmax(1).cpu()
        if not self.num_others:
            return each
        known = len(self.weight) - self.num_others
        return torch.cat([each[:, :known], each[:, known:].sum(1, keepdim=True)], dim=1)

    def stack(self, images: Sequence[Tensor]) -> list[list[float]]:
        """The probabilities of some preprocessed images [3, H, W]; none for none."""
        return self(torch.stack(list(images))).tolist() if images else []


def save_bundle(
    folder: Path,
    model: ImageTextModel,
    state: Mapping[str, Tensor],
    dataset: Dataset,
    method: Method,
    alpha: float,
    **origin: Any,  # noqa: ANN401
) -> Card:
    """Put `state` into the model and write both as a classifier's folder.

    The card goes first and comes last, so that an interruption never leaves a new model behind an old card.

    Raises:
        ModelError: the model cannot be written as a folder.
        TrainingError: no room on the disk.
    """
    model.load_weights(part(state, "model"))
    (folder / CARD).unlink(missing_ok=True)
    model.save(folder)
    # between the two ends of WiSE-FT the mean of two text heads is not the text head of the mean weights
    head = text_head(model, dataset).state_dict() if method.predict == "text" else part(state, "head")
    write(folder / HEAD, head, {})
    card = Card(
        class_names=list(dataset.class_names), templates=list(dataset.templates), predict=method.predict, method=method.name,
        alpha=alpha, base=model.name, origin=origin,
    )  # fmt: skip
    partial = folder / (CARD + ".part")
    try:
        partial.write_text(json.dumps(asdict(card), indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / CARD)
    except OSError as error:
        raise TrainingError(f"{folder / CARD} could not be written ({error}). Make room or give another folder.") from error
    return card


def read_card(folder: Path) -> Card:
    """What is known of the classifier in a folder.

    Raises:
        DataError: its card is damaged.
        OSError: it cannot be read.
    """
    try:
        card = made(Card, parse_json(read_text(folder / CARD)))
        PromptTable.build(card.templates, card.class_names)  # tells of a template without a place for the name
        if not isinstance(card.origin.get("settings", {}), dict) or type(card.origin.get("seed", 0)) is not int:
            raise TypeError("origin does not hold settings and a seed")
        "".join(card.class_names).encode("utf-8", "surrogateescape")  # JSON may hold half a character, which no tokenizer reads
    except (ValueError, TypeError) as error:  # ValueError: no JSON, or no UTF-8
        raise DataError(f"{folder} {_NONE.format(error)}") from error
    return card


def load_bundle(folder: Path, *, device: str = "auto", precision: Precision = "fp32") -> Bundle:
    """Open what `save_bundle` wrote; also the folder of a run that holds it as model/.

    Raises:
        MissingDataError: no classifier there.
        DataError: files that are not what they must be.
    """
    folder = folder / "model" if not (folder / CARD).is_file() and (folder / "model" / CARD).is_file() else folder
    for name in (CARD, HEAD):
        if not (folder / name).is_file():
            raise MissingDataError(f"{folder / name} is not there. Give the folder of a model that 'surefoot fit' wrote.")
    card = read_card(folder)
    try:
        head, names = load_file(folder / HEAD), list(card.class_names)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{folder} {_NONE.format(error)}") from error
    weight, bias = (head.get(name, torch.empty(0)) for name in ("weight", "bias"))
    if weight.ndim != 2 or len(weight) != len(names) or bias.shape != (len(names),) or not names:
        raise DataError(f"{folder / HEAD} has no row for each of the {len(names)} classes of {CARD}. Fit the model again.")
    return Bundle(load_model(f"local-dir:{folder}", device=pick_device(device), precision=precision), head, card)
