"""Which images and texts stand in which step: a function of the seed alone, so that a run can go on in the middle of an epoch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from surefoot.data.images import Budget, Images
from surefoot.data.layout import Dataset, Split
from surefoot.data.packing import PER_SHARD
from surefoot.data.shards import member_of
from surefoot.distributed import share
from surefoot.model import ImageTextModel
from surefoot.objective import Batch
from surefoot.prompts import PromptTable
from surefoot.train.ahead import fetched_ahead
from surefoot.train.prefetch import prefetched
from surefoot.train.settings import Training

SUPPLIED = frozenset({"image", "label", "prompt", "first_prompt", "class_prompt", "first_class_prompt", "start", "reference"})
CAPTION, PAIRS = "caption", frozenset({"anchor_image", "anchor_text"})
"""What the anchors of the data supply, once they are made."""
_Draw = tuple[Tensor, int, Tensor]
"""Of a step: its rows [B], a seed for its crops, and a template for each row [B]."""
OVERSIZE = 2
"""How many times the pixels of a side that the model sees an image keeps that is decoded at a reduced size."""


def training_images(paths: Sequence[Path], model: ImageTextModel, training: Training, budget: Budget | None = None) -> Images:
    """The images of some paths as a run crops them, decoded as its settings say."""
    least = OVERSIZE * max(image_size(model)) if training.decode == "reduced" else None
    if training.crop == "center":
        return Images(paths, model.preprocess, budget=budget, least=least)
    return Images(paths, model.preprocess_train, random=True, budget=budget, least=least)


def image_size(model: ImageTextModel) -> tuple[int, int]:
    """Height and width of a preprocessed image, in pixels."""
    size = model.config()["preprocess_cfg"]["size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def batches(
    dataset: Dataset,
    source: Images | Tensor,
    model: ImageTextModel,
    training: Training,
    *,
    needs: Collection[str] = ("image", "label", "prompt"),
    pair_images: Images | None = None,
    reference: Tensor | None = None,
    begin: int = 0,
) -> Generator[Batch, None, None]:
    """All batches of a run after step `begin`, in an order and with prompts drawn from the seed; images are read in another thread.

    An epoch's last images that fill no batch are left out.

    Args:
        dataset: its train split, class names and templates.
        source: the train images, or their features [N, D] where the image tower is frozen.
        model: its tokenizer, and where its parameters lie.
        training: length, batch size, sampling and seed.
        needs: the text fields that the objective reads; others are not drawn.
        pair_images: the images of the retrieved pairs, where the objective reads them. A pair that several images of a batch retrieved
            stands once in it.
        reference: f(x; theta_0) [N, D] of all train images, where it was computed once.
        begin: steps that are done already; nothing is read for them.
    """
    train, device = dataset.split("train"), next(model.parameters()).device
    labels, texts = torch.tensor(train.labels), _Texts(dataset, needs)
    tokens = model.tokenize(texts.all).to(device)
    steps = _steps(train, texts.num_templates, training, begin, read=not isinstance(source, Tensor))
    if isinstance(source, Tensor):
        for rows, seed, template in steps:
            text = _on(device, texts.of(rows, labels[rows], template, seed, texts.pairs_of(rows)))
            yield Batch(None, labels[rows].to(device), text, tokens, feature=source[rows.to(source.device)].to(device))
        return

    def made() -> Generator[tuple[Tensor, Mapping[str, Tensor], Tensor, Tensor | None, Tensor | None], None, None]:
        for rows, seed, template in steps:
            pairs = texts.pairs_of(rows)
            text = texts.of(rows, labels[rows], template, seed, pairs)
            generator = torch.Generator().manual_seed(seed)
            image = _share_of(source, rows, generator)
            anchor = _share_of(pair_images, pairs, generator) if pair_images and len(pairs) else None
            if training.flip:
                image = mirrored(image, torch.rand(len(rows), generator=generator)[share(len(rows))])
            frozen = None if reference is None else reference[rows]
            yield labels[rows], text, _ready(image, device), None if anchor is None else _ready(anchor, device), frozen

    alone = source.draws_globally or bool(pair_images and pair_images.draws_globally)
    with contextlib.closing(made() if alone else prefetched(made())) as ready:
        for label, rows_of, image, anchor, frozen in ready:
            own = {"anchor_image": None if anchor is None else anchor.to(device, non_blocking=True)}
            own["reference_image"] = None if frozen is None else frozen.to(device)
            yield Batch(image.to(device, non_blocking=True), label.to(device), _on(device, rows_of), tokens, **own)


class _Texts:
    """All texts of a run, and which of them an image, a class or a retrieved pair takes."""

    def __init__(self, dataset: Dataset, needs: Collection[str]) -> None:
        self.needs, anchors = needs, dataset.anchors
        table = PromptTable.build(dataset.templates, dataset.class_names)
        place = {text: row for row, text in enumerate(table.texts)}
        paths = dataset.split("train").paths
        captions = [anchors.captions[path] for path in paths] if CAPTION in needs else []
        pairs = [anchors.pairs[path] for path in paths] if PAIRS & set(needs) else []
        self.index = torch.tensor(table.index)
        self.captions = torch.tensor([place.setdefault(text, len(place)) for text in captions])
        self.pairs = torch.tensor(pairs, dtype=torch.long)
        self.pair_texts = torch.tensor([place.setdefault(text, len(place)) for text in anchors.texts] if pairs else [])
        self.all, self.num_templates = list(place), self.index.shape[1]

    def pairs_of(self, rows: Tensor) -> Tensor:
        """The pairs that some images retrieved, each once."""
        return torch.unique(self.pairs[rows]) if len(self.pairs) else torch.empty(0, dtype=torch.long)

    def of(self, rows: Tensor, label: Tensor, template: Tensor, seed: int, pairs: Tensor) -> dict[str, Tensor]:
        """{text field: rows of `all`} of one step."""
        found = {}
        if "prompt" in self.needs:
            found["prompt"] = self.index[label, template]
        if "first_prompt" in self.needs:
            found["first_prompt"] = self.index[label, 0]
        if "first_class_prompt" in self.needs:
            found["first_class_prompt"] = self.index[:, 0]
        if "class_prompt" in self.needs:  # one template a class
            drawn = torch.randint(self.num_templates, (len(self.index),), generator=torch.Generator().manual_seed(seed))
            found["class_prompt"] = self.index[torch.arange(len(self.index)), drawn]
        if CAPTION in self.needs:
            found[CAPTION] = self.captions[rows]
        if len(pairs):
            found["anchor_text"] = self.pair_texts[pairs]
        return found


def _on(device: torch.device, text: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: rows.to(device) for name, rows in text.items()}


def _share_of(images: Images, rows: Tensor, generator: torch.Generator) -> Tensor:
    """This process's share of the images of `rows`; each has a seed of its own, so that what is drawn for it depends on no other image."""
    seeds, mine = torch.randint(2**62, (len(rows),), generator=generator), share(len(rows))
    return images.batch(rows[mine].tolist(), seeds[mine].tolist())


def _ready(image: Tensor, device: torch.device) -> Tensor:
    """Where a copy to the device need not be waited for."""
    return image.pin_memory() if device.type == "cuda" else image


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of `device`; `torch.manual_seed` would queue a call for CUDA at every step without it."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def mirrored(image: Tensor, drawn: Tensor) -> Tensor:
    """Images [B, 3, H, W], those turned left to right of which the number `drawn` [B] in 0..1 lies below one half."""
    turned = drawn < 0.5
    return torch.where(turned[:, None, None, None], image.flip(-1), image)


def shard_numbers(paths: Sequence[Path]) -> Tensor:
    """The number of the shard that each image lies in, [N], counted in the order of the images.

    Images in no shard count to those that `surefoot shards` would pack them into, so that the order is the same before and after.
    """
    place: dict[object, int] = {}
    tars = ((found[0] if (found := member_of(path)) else row // PER_SHARD) for row, path in enumerate(paths))
    return torch.tensor([place.setdefault(tar, len(place)) for tar in tars])


def _steps(train: Split, num_templates: int, training: Training, begin: int, *, read: bool) -> Iterator[_Draw]:
    """Those of a run after `begin`; where images are `read`, the shards of those to come are fetched before their turn."""
    labels = torch.tensor(train.labels)
    shards = shard_numbers(train.paths) if training.shards_at_a_time else labels
    draws = _draws(labels, train.groups, shards, num_templates, training)
    steps = itertools.islice(draws, begin, training.num_steps(len(labels)))
    return fetched_ahead(steps, shards, train.paths) if read and training.shards_at_a_time else steps


def _draws(labels: Tensor, groups: Sequence[str], shards: Tensor, num_templates: int, training: Training) -> Iterator[_Draw]:
    """Every step, without end."""
    size = min(training.batch_size, len(labels))
    for epoch in itertools.count():
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + epoch)
        for rows in torch.split(_order(labels, groups, shards, training, generator), size):
            if len(rows) < size:
                continue
            template = torch.randint(num_templates, (size,), generator=generator)
            yield rows, int(torch.randint(2**62, (), generator=generator)), template


def _order(labels: Tensor, groups: Sequence[str], shards: Tensor, training: Training, generator: torch.Generator) -> Tensor:
    if training.sampling != "shuffled":
        place = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        of = labels if training.sampling == "balanced" else torch.tensor([place[group] for group in groups])
        weight = 1.0 / torch.bincount(of)[of]
        return torch.multinomial(weight, len(labels), replacement=True, generator=generator)
    if training.shards_at_a_time:
        return _by_shards(shards, training.shards_at_a_time, generator)
    return torch.randperm(len(labels), generator=generator)


def _by_shards(shards: Tensor, at_a_time: int, generator: torch.Generator) -> Tensor:
    """Every row once: the shards in a random order, and the rows of each `at_a_time` of them in a random order."""
    found = []
    for part in torch.split(torch.randperm(int(shards.max()) + 1, generator=generator), at_a_time):
        rows = torch.isin(shards, part).nonzero().squeeze(1)
        found.append(rows[torch.randperm(len(rows), generator=generator)])
    return torch.cat(found)
