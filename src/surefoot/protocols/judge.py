"""How weights are judged: ID, shifts, corruptions, unseen classes, context recognition and agreement with zero-shot.

Any number of weights is judged in one pass over the images: each image is read, decoded and preprocessed once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from surefoot.data.corruptions import CORRUPTIONS, corrupt
from surefoot.data.images import Budget, Images
from surefoot.data.layout import Dataset, Split
from surefoot.heads import class_weight, context_weight, prompt_embeddings
from surefoot.model import ImageTextModel, ImageTransform, probe_names
from surefoot.objective import Method
from surefoot.prompts import PromptTable
from surefoot.protocols.outcome import Outcome
from surefoot.records import Answers
from surefoot.train.state import part

EVALUATION_BATCH = 256
CHUNK_BYTES = 1 << 28
AGREEMENT = "agreement"


@dataclass(frozen=True)
class Member:
    """One set of weights to judge: the method that it comes from, and its weights, made when they are needed."""

    method: Method
    state: Callable[[], Mapping[str, Tensor]]

    @classmethod
    def of(cls, method: Method, state: Mapping[str, Tensor]) -> Member:
        """A member whose weights are at hand."""
        return cls(method, lambda: state)


@dataclass
class Judge:
    """Evaluates weights of one model on one data set.

    Args:
        model: its weights are replaced by every evaluation.
        dataset: all splits but train are used.
        start: theta_0, whose text tower makes the fixed context head, and whose answers agreement is measured against.
        budget: how much of the images may be kept in memory between two passes.
        corruptions: whether corrupted test images are judged; None for data without shifts only.
        on_images: called with the number of images that a member was judged on, now and then.
    """

    model: ImageTextModel
    dataset: Dataset
    start: Mapping[str, Tensor]
    budget: Budget | None = None
    corruptions: bool | None = None
    on_images: Callable[[int], None] | None = None
    _images: dict[str, Images] = field(default_factory=dict)
    _start_features: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data, budget = self.dataset, self.budget or Budget()
        self.splits = {name: split for name, split in data.splits.items() if name != "train"}
        self._images = {name: Images(split.paths, self.model.preprocess, budget=budget) for name, split in self.splits.items()}
        if "test" in data.splits and (self.corruptions or (self.corruptions is None and not data.shifts)):
            for name in CORRUPTIONS:
                self.splits[f"corruptions/{name}"] = data.split("test")
                self._images[f"corruptions/{name}"] = Images(data.split("test").paths, corrupted(self.model, name), budget=budget)
        self.contexts = list(data.contexts)
        own = {name.casefold() for name in data.class_names}
        self.probe = [name for name in probe_names() if name.casefold() not in own]
        self.device = next(self.model.parameters()).device
        self._load(self.start)
        with torch.inference_mode():
            self._start_texts = self._text_heads()

    @property
    def num_images(self) -> int:
        """Images that one member is judged on."""
        return sum(len(split) for split in self.splits.values())

    def judge(self, method: Method, state: Mapping[str, Tensor]) -> Outcome:
        """Evaluate one set of weights (as `train.fit` gives it, or an interpolation of two) as `method` predicts."""
        return self.judge_all([Member.of(method, state)])[0]

    def judge_all(self, members: Sequence[Member]) -> list[Outcome]:
        """Evaluate any number of weights in one pass over the images.

        ID, shifts and corruptions are answered by the trained head, or by the text head if the method predicts from text. Unseen
        classes are always answered by the model's own text tower. Context recognition swaps the image tower only ("context"), or both
        ("context_own"). Members whose image tower did not move share the zero-shot model's features, which are the same.
        """
        moved = [member for member in members if "visual" in member.method.trains]
        states = [member.state for member in moved]
        if not self._start_features:
            states.append(lambda: self.start)
        with torch.inference_mode():
            features = self._encode_all(states) if states else []
            if len(features) > len(moved):
                self._start_features = features.pop()
            own = iter(features)
            return [self._outcome(m, next(own) if "visual" in m.method.trains else self._start_features) for m in members]

    def _encode_all(self, states: Sequence[Callable[[], Mapping[str, Tensor]]]) -> list[dict[str, Tensor]]:
        """{set: f(x) [N, D]} for each of several weights, chunk by chunk of the images."""
        found: list[dict[str, list[Tensor]]] = [{name: [] for name in self.splits} for _ in states]
        for chunk in self._chunks():
            for state, parts in zip(states, found, strict=True):
                self._load(state())
                for name, batch in chunk:
                    parts[name].append(self.model.encode_image(batch.to(self.device)))
                    if self.on_images:
                        self.on_images(len(batch))
        return [{name: torch.cat(parts) for name, parts in one.items()} for one in found]

    def _chunks(self) -> Iterator[list[tuple[str, Tensor]]]:
        """Preprocessed batches of all sets in their order, as many at a time as memory is given for."""
        chunk: list[tuple[str, Tensor]] = []
        size = 0
        for name, images in self._images.items():
            for batch in images.batches(EVALUATION_BATCH):
                chunk.append((name, batch))
                size += batch.numel() * batch.element_size()
                if size >= CHUNK_BYTES:
                    yield chunk
                    chunk, size = [], 0
        if chunk:
            yield chunk

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_weights(part(state, "model"))
        self.model.eval()

    def _text_heads(self) -> dict[str, Tensor]:
        """Heads of the live text tower: "seen" [K, D], each unseen split, "joint/<unseen>", "context" [P, D], "probe"."""
        data = self.dataset
        heads = {"seen": self._class_head(data.class_names)}
        for split in data.unseen:
            heads[split.name] = self._class_head(split.class_names)
            heads[f"joint/{split.name}"] = torch.cat([heads["seen"], heads[split.name]])
        if self.contexts:
            table = PromptTable.build(list(data.contexts.values()), data.class_names)
            heads["context"] = context_weight(prompt_embeddings(self.model, table))
        heads["probe"] = self._class_head(self.probe, data.templates[:1])
        return {name: float(self.model.scale) * head for name, head in heads.items()}

    def _class_head(self, names: Sequence[str], templates: Sequence[str] = ()) -> Tensor:
        return class_weight(prompt_embeddings(self.model, PromptTable.build(templates or self.dataset.templates, names)))

    def _outcome(self, member: Member, features: Mapping[str, Tensor]) -> Outcome:
        state = member.state()
        texts = self._start_texts
        if member.method.trains & {"text", "logit_scale"}:
            self._load(state)
            texts = self._text_heads()
        weight, bias = texts["seen"], torch.zeros(len(texts["seen"]), device=self.device)
        if member.method.predict == "head":
            weight, bias = state["head.weight"].to(self.device), state["head.bias"].to(self.device)
        found: dict[str, Answers] = {}
        for name, split in self.splits.items():
            logits = features[name] @ texts[name].T if name.startswith("unseen/") else features[name] @ weight.T + bias
            found[name] = answers(logits, split.labels)
            if name.startswith("shifts/") and len(present := sorted(set(split.labels))) < len(weight):
                found[f"restricted/{name.removeprefix('shifts/')}"] = answers(logits, split.labels, among=present)
            found |= self._context(split, features[name], texts, found) if name in self.dataset.splits else {}
        if "test" in self.splits:  # a data set of train and val alone, for choices, has none
            found |= self._joint(features, texts) | self._agreement(features["test"], texts)
        return Outcome(found)

    def _context(self, split: Split, features: Tensor, texts: Mapping[str, Tensor], found: Mapping[str, Answers]) -> dict[str, Answers]:
        context = self.dataset.context_of(split.name)
        if context is None or split.name in ("val", "train"):
            return {}
        label = [self.contexts.index(context)] * len(features)
        given = {}
        for name, head in (("context", self._start_texts["context"]), ("context_own", texts["context"])):
            own = answers(features @ head.T, label)
            before = found.get(f"{name}/{context}")  # several sets may be drawn in one context
            given[f"{name}/{context}"] = own if before is None else before.followed_by(own)
        return given

    def _joint(self, features: Mapping[str, Tensor], texts: Mapping[str, Tensor]) -> dict[str, Answers]:
        """Seen and unseen images with all names competing, answered by the text tower."""
        found = {}
        for split in self.dataset.unseen:
            head, short = texts[f"joint/{split.name}"], split.name.removeprefix("unseen/")
            found[f"joint_seen/{short}"] = answers(features["test"] @ head.T, self.dataset.split("test").labels)
            shifted = [label + len(self.dataset.class_names) for label in split.labels]
            found[f"joint_unseen/{short}"] = answers(features[split.name] @ head.T, shifted)
        return found

    def _agreement(self, features: Tensor, texts: Mapping[str, Tensor]) -> dict[str, Answers]:
        """Does a vocabulary of names that have nothing to do with the data get the zero-shot model's answers?"""
        expected = (self._start_features["test"] @ self._start_texts["probe"].T).argmax(1)
        return {AGREEMENT: answers(features @ texts["probe"].T, expected.tolist())}


def answers(logits: Tensor, label: Sequence[int], among: Sequence[int] | None = None) -> Answers:
    """The answers of logits [N, K] to images of class numbers `label` [N]; `among` lets only these classes compete."""
    if among is not None:
        mask = torch.full((logits.shape[1],), float("-inf"), device=logits.device)
        mask[list(among)] = 0.0
        logits = logits + mask
    confidence, prediction = logits.softmax(1).max(1)
    # the largest logit, not the largest probability: softmax rounds two large logits to one value
    prediction = logits.argmax(1)
    return Answers(
        prediction.cpu().to(torch.int32).numpy(), torch.tensor(label, dtype=torch.int32).numpy(), confidence.cpu().to(torch.float32).numpy()
    )


def corrupted(model: ImageTextModel, name: str) -> ImageTransform:
    """The model's preprocessing with a corruption at its own resolution, drawn anew for each image and the same for every model."""
    config = model.config()["preprocess_cfg"]
    mean, std = (torch.tensor(config[key]).reshape(3, 1, 1) for key in ("mean", "std"))

    def transform(image: object) -> Tensor:
        ready = model.preprocess(image)
        plain = (ready * std + mean).clamp(0, 1)
        return (corrupt(plain, name, seed=zlib.crc32(plain.numpy().tobytes())) - mean) / std

    return transform
