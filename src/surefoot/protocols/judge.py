"""How weights are judged: ID, shifts, corruptions, unseen classes, context recognition and agreement with zero-shot.

Any number of weights is judged in one pass over the images: each image is read, decoded and preprocessed once.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surefoot.data.corruptions import CORRUPTIONS, corrupt
from surefoot.data.images import Budget, Images
from surefoot.data.layout import Dataset
from surefoot.distributed import merged, num_processes, rank
from surefoot.heads import class_weight, context_weight, prompt_embeddings
from surefoot.model import ImageTextModel, probe_names
from surefoot.objective import Method
from surefoot.prompts import PromptTable
from surefoot.protocols.common import CommonBlocks
from surefoot.protocols.outcome import Outcome
from surefoot.records import Answers
from surefoot.train.state import part

EVALUATION_BATCH = 256
CHUNK_BYTES = 1 << 28
AGREEMENT = "agreement"
CORRUPTED = "corruptions/"


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
    _start_features: dict[_Place, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data, budget = self.dataset, self.budget or Budget()
        self.splits = {name: split for name, split in data.splits.items() if name != "train"}
        self._images = {
            name: Images(split.paths, self.model.preprocess, budget=budget, border=split.border) for name, split in self.splits.items()
        }
        if "test" in data.splits and (self.corruptions or (self.corruptions is None and not data.shifts)):
            self.splits |= {f"{CORRUPTED}{name}": data.split("test") for name in CORRUPTIONS}
        config = self.model.config()["preprocess_cfg"]
        self._normalisation = tuple(torch.tensor(config[key]).reshape(3, 1, 1) for key in ("mean", "std"))
        self.contexts = list(data.contexts)
        present = {split.name: split.own_classes for split in data.shifts if not split.mapped}
        self._present = {name: classes for name, classes in present.items() if len(classes) < len(data.class_names)}
        own = {name.casefold() for name in data.class_names}
        self._groups = {name: numbered(split.groups) for name, split in self.splits.items()}
        together = [split.name for split in data.shifts if split.together]
        self._together = frozenset(together + [f"restricted/{_short(name)}" for name in together])
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
        found: _Found = {}
        with torch.inference_mode():
            for one in self._pass(members):
                given = self._answers(one, self._logits(one.name, one.features, one.heads))
                found |= {(one.number, one.order, name): answers for name, answers in given.items()}
        return _outcomes(found, len(members), self._together)

    def ensembles(self, method: Method, state: Mapping[str, Tensor], alphas: Sequence[float]) -> list[Outcome]:
        """Evaluate output-space ensembles of theta_0 and one set of weights theta_1, all in one pass over the images by theta_1.

            z_alpha(x) = (1 - alpha) z(x; theta_0) + alpha z(x; theta_1)

        z are the logits of all that answers: theta_0's are those of the zero-shot model, the scale of each model is part of its own.

        Args:
            method: where theta_1 comes from; its trained head or its text head answers, as in `judge`.
            state: theta_1.
            alphas: weights of theta_1, in 0..1.

        Returns:
            An outcome for each alpha.

        Relations: alpha 0 is the zero-shot model and alpha 1 is theta_1, exactly. For a linear head on a frozen tower the same as WiSE-FT.

        References:
            Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022 (the comparison with ensembles of the outputs).
        """
        found: _Found = {}
        with torch.inference_mode():
            for one in self._pass([Member.of(method, state)]):
                first = self._logits(one.name, one.start.to(self.device), self._text_answers(self._start_texts))
                second = self._logits(one.name, one.features, one.heads)
                for number, alpha in enumerate(alphas):
                    mixed = {key: (1 - alpha) * logits + alpha * second[key] for key, logits in first.items()}
                    found |= {(number, one.order, name): answers for name, answers in self._answers(one, mixed).items()}
        return _outcomes(found, len(alphas), self._together)

    def _pass(self, members: Sequence[Member]) -> Iterator[_Seen]:
        """Every batch of images as every member sees it; members whose image tower did not move come last, with theta_0's features."""
        moved = [number for number, member in enumerate(members) if "visual" in member.method.trains]
        if moved or not self._start_features:
            yield from self._encode({number: members[number] for number in moved})
        for number, member in enumerate(members):
            if number not in moved:
                heads = self._heads(member.method, member.state())
                for (order, name, place), features in self._start_features.items():
                    yield _Seen(number, order, name, place, features.to(self.device), features, heads)

    def _encode(self, moved: Mapping[int, Member]) -> Iterator[_Seen]:
        """The images as the members see them whose image tower moved; theta_0's features are kept if they are not known yet.

        Features of a chunk of images become answers at once: those of all images by many members would not fit into memory. Blocks that
        several members have as theta_0 has them are computed once.
        """
        start: dict[_Place, Tensor] = self._start_features or {}
        heads: dict[int, _Heads] = {}
        common = CommonBlocks(self.model, part(self.start, "model"))
        depths = {number: common.depth(part(member.state(), "model")) for number, member in moved.items()}
        for chunk in self._chunks():
            if start is not self._start_features:
                self._load(self.start)
                for place, batch in chunk:
                    start[place] = self.model.encode_image(batch.to(self.device)).cpu()
                    self._tell(batch)
            for number, member in moved.items():
                self._load(state := member.state())
                heads[number] = heads.get(number) or self._heads(member.method, state, loaded=True)
                depth, shared = depths[number], Counter(depths.values())[depths[number]] > 1
                for place, batch in chunk:
                    same = depth == common.num_blocks
                    features = start[place].to(self.device) if same else common.encode(batch.to(self.device), place, depth, shared=shared)
                    self._tell(batch)
                    yield _Seen(number, *place, features, start[place], heads[number])
            common.forget()
        self._start_features = start

    def _tell(self, batch: Tensor) -> None:
        if self.on_images:
            self.on_images(len(batch) * num_processes())  # the others are about as far

    def _chunks(self) -> Iterator[list[tuple[_Place, Tensor]]]:
        """Batches of preprocessed images of all sets in their order, as many at a time as memory is given for.

        Of several processes each reads every so many batches; its answers join those of the others at the end.
        """
        chunk: list[tuple[_Place, Tensor]] = []
        size = 0
        parts = [(name, place) for name, images in self._images.items() for place in range(-(-len(images) // EVALUATION_BATCH))]
        for order in range(rank(), len(parts), num_processes()):
            name, place = parts[order]
            here = slice(place * EVALUATION_BATCH, (place + 1) * EVALUATION_BATCH)
            for batch in self._images[name].batches(EVALUATION_BATCH, here):
                for of, variant in self._variants(name, batch):
                    chunk.append(((order, of, place), variant))
                    size += variant.numel() * variant.element_size()
                    if size >= CHUNK_BYTES:
                        yield chunk
                        chunk, size = [], 0
        if chunk:
            yield chunk

    def _variants(self, name: str, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
        """A batch itself and, of the test images, each of its corruptions: one reading serves all of them."""
        yield name, batch
        for of in self.splits if name == "test" else ():
            if of.startswith(CORRUPTED):
                yield of, corrupted(batch, of.removeprefix(CORRUPTED), *self._normalisation)

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_weights(part(state, "model"))
        self.model.eval()

    def _text_heads(self) -> dict[str, Tensor]:
        """Heads of the live text tower: "seen" [K, D], each unseen split, "joint/<unseen>", "context" [P, D], "probe" if there is one."""
        data = self.dataset
        heads = {"seen": self._class_head(data.class_names)}
        for split in data.unseen:
            heads[split.name] = self._class_head(split.class_names, split.templates)
            heads[f"joint/{split.name}"] = torch.cat([heads["seen"], heads[split.name]])
        if self.contexts:
            table = PromptTable.build(list(data.contexts.values()), data.class_names)
            heads["context"] = context_weight(prompt_embeddings(self.model, table))
        if self.probe:  # nothing is left of it where the data have every class of ImageNet
            heads["probe"] = self._class_head(self.probe, data.templates[:1])
        return {name: float(self.model.scale) * head for name, head in heads.items()}

    def _class_head(self, names: Sequence[str], templates: Sequence[str] = ()) -> Tensor:
        return class_weight(prompt_embeddings(self.model, PromptTable.build(templates or self.dataset.templates, names)))

    def _heads(self, method: Method, state: Mapping[str, Tensor], *, loaded: bool = False) -> _Heads:
        """What answers for a member; `loaded` says that the model holds its weights already."""
        texts = self._start_texts
        if method.trains & {"text", "logit_scale"}:
            if not loaded:
                self._load(state)
            texts = self._text_heads()
        if method.predict == "head":
            return _Heads(texts, state["head.weight"].to(self.device), state["head.bias"].to(self.device))
        return self._text_answers(texts)

    def _text_answers(self, texts: Mapping[str, Tensor]) -> _Heads:
        return _Heads(texts, texts["seen"], torch.zeros(len(texts["seen"]), device=self.device))

    def _logits(self, name: str, features: Tensor, heads: _Heads) -> dict[str, Tensor]:
        """{what is asked of the images of a set: logits [N, K]}, for `features` [N, D] of some of its images."""
        asked = {"classes": features @ heads.texts[name].T if name.startswith("unseen/") else features @ heads.weight.T + heads.bias}
        if name in self.dataset.splits and name != "val" and self.dataset.context_of(name):
            asked["context"] = features @ self._start_texts["context"].T
            asked["context_own"] = features @ heads.texts["context"].T
        if "test" in self.splits:  # a data set of train and val alone, for choices, has none
            others = [split.name for split in self.dataset.unseen] if name == "test" else [name] * name.startswith("unseen/")
            asked |= {f"joint/{of}": features @ heads.texts[f"joint/{of}"].T for of in others}
        if name == "test" and self.probe:
            asked["probe"] = features @ heads.texts["probe"].T
        return asked

    def _answers(self, one: _Seen, logits: Mapping[str, Tensor]) -> dict[str, Answers]:
        """{evaluation set: answers} that `logits` (see `_logits`) give to one batch of a set."""
        name, split = one.name, self.splits[one.name]
        here = slice(one.place * EVALUATION_BATCH, one.place * EVALUATION_BATCH + len(one.start))
        label = split.labels[here]
        classes = of_mapped(logits["classes"], split.mapped) if split.mapped else logits["classes"]
        given = accepting(answers(classes, label), split.accepted[here])
        found = {name: replace(given, group=self._groups[name][here]) if split.groups else given}
        if name in self._present:
            own = accepting(answers(logits["classes"], label, among=self._present[name]), split.accepted[here])
            found[f"restricted/{_short(name)}"] = replace(own, group=found[name].group) if split.together else own
        if "context" in logits and (context := self.dataset.context_of(name)):
            number = [self.contexts.index(context)] * len(label)
            found |= {f"{kind}/{context}": answers(logits[kind], number) for kind in ("context", "context_own")}
        kind, before = ("joint_seen", 0) if name == "test" else ("joint_unseen", len(self.dataset.class_names))
        for asked in (key for key in logits if key.startswith("joint/")):
            of = asked.removeprefix("joint/unseen/")
            found[f"{kind}/{of}"] = answers(logits[asked], [number + before for number in label])
        if "probe" in logits:
            expected = (one.start.to(self.device) @ self._start_texts["probe"].T).argmax(1)
            found[AGREEMENT] = answers(logits["probe"], expected.tolist())
        return found


@dataclass(frozen=True)
class _Heads:
    """What answers: text heads by name, and `weight` [K, D] and `bias` [K] for the classes that were trained on."""

    texts: Mapping[str, Tensor]
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Seen:
    """A batch of the set `name`, the one at `place`, as member `number` sees it: its features [N, D], theta_0's `start` [N, D] (on the
    CPU), and what answers; `order` counts the batches of all sets."""

    number: int
    order: int
    name: str
    place: int
    features: Tensor
    start: Tensor
    heads: _Heads


_Place = tuple[int, str, int]
"""Number of a batch among those of all sets, the set, and number of the batch within the set."""
_Found = dict[tuple[int, int, str], Answers]
"""{(member, number of the batch, evaluation set): answers}."""


def _short(name: str) -> str:
    return name.removeprefix("shifts/")


def _outcomes(found: _Found, number: int, together: Collection[str]) -> list[Outcome]:
    """What all processes found, put together for each member in the order of the images; of the sets `together`, group by group."""
    parts: list[dict[str, list[Answers]]] = [{} for _ in range(number)]
    for (member, _, name), given in sorted(merged(found).items(), key=lambda one: one[0][1]):
        parts[member].setdefault(name, []).append(given)
    whole = [{name: Answers.joined(own) for name, own in one.items()} for one in parts]
    return [Outcome({name: given.by_group() if name in together else given for name, given in one.items()}) for one in whole]


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


def accepting(given: Answers, accepted: Sequence[Sequence[int]]) -> Answers:
    """The answers to N images some of which show several classes: one that names any of them is right, as that class.

    Args:
        given: with one label each.
        accepted: for each image the classes that are right besides its label; empty for none at all.

    References:
        Shankar et al., "Do image classifiers generalize across time?", ICCV 2021.
    """
    if not any(accepted):
        return given
    pairs = zip(given.prediction.tolist(), given.label.tolist(), accepted, strict=True)
    label = [prediction if prediction in others else own for prediction, own, others in pairs]
    return replace(given, label=np.array(label, dtype=np.int32))


def of_mapped(logits: Tensor, mapped: Sequence[Sequence[int]]) -> Tensor:
    """Logits [N, C] of classes each of which stands for several of the K that `logits` [N, K] are of: the largest of theirs.

    Examples:
        >>> of_mapped(torch.tensor([[1.0, 5.0, 3.0, 9.0]]), [(0, 2), (1,)])
        tensor([[3., 5.]])
    """
    return torch.stack([logits[:, list(rows)].amax(1) for rows in mapped], dim=1)


def numbered(groups: Sequence[str]) -> NDArray[np.int32]:
    """A number for each text, in their alphabetical order; -1 for "", which is no group.

    Examples:
        >>> numbered(["Europe", "Asia", "", "Europe"])
        array([ 1,  0, -1,  1], dtype=int32)
    """
    place = {group: number for number, group in enumerate(sorted(set(groups) - {""}))} | {"": -1}
    return np.array([place[group] for group in groups], dtype=np.int32)


def corrupted(batch: Tensor, name: str, mean: Tensor, std: Tensor) -> Tensor:
    """Preprocessed images [B, 3, H, W], corrupted at the model's own resolution; each draws its own noise, the same for every model."""
    plain = (batch * std + mean).clamp(0, 1)
    return (torch.stack([corrupt(image, name, seed=zlib.crc32(image.numpy().tobytes())) for image in plain]) - mean) / std
