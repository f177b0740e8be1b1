"""Which images and texts stand in which step: a function of the seed alone, so that a run can go on in the middle of an epoch."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from surefoot.data.images import Images
from surefoot.data.layout import Dataset
from surefoot.model import ImageTextModel
from surefoot.objective import Batch
from surefoot.prompts import PromptTable
from surefoot.train.settings import Training

SUPPLIED = frozenset({"image", "label", "prompt", "class_prompt", "start"})


def batches(
    dataset: Dataset,
    source: Images | Tensor,
    model: ImageTextModel,
    training: Training,
    *,
    needs: Collection[str] = ("image", "label", "prompt"),
    begin: int = 0,
) -> Iterator[Batch]:
    """All batches of a run after step `begin`, in an order and with prompts drawn from the seed.

    An epoch's last images that fill no batch are left out.

    Args:
        dataset: its train split, class names and templates.
        source: the train images, or their features [N, D] where the image tower is frozen.
        model: its tokenizer, and where its parameters lie.
        training: length, batch size, sampling and seed.
        needs: the text fields that the objective reads; others are not drawn.
        begin: steps that are done already; nothing is read for them.
    """
    device = next(model.parameters()).device
    labels = torch.tensor(dataset.split("train").labels)
    table = PromptTable.build(dataset.templates, dataset.class_names)
    index, tokens = torch.tensor(table.index), model.tokenize(table.texts).to(device)
    for rows, seed, template in itertools.islice(_draws(labels, index.shape[1], training), begin, training.num_steps(len(labels))):
        label = labels[rows]
        text = {}
        if "prompt" in needs:
            text["prompt"] = index[label, template].to(device)
        if "class_prompt" in needs:  # one template a class
            drawn = torch.randint(index.shape[1], (len(index),), generator=torch.Generator().manual_seed(seed))
            text["class_prompt"] = index[torch.arange(len(index)), drawn].to(device)
        if isinstance(source, Tensor):
            yield Batch(None, label.to(device), text, tokens, feature=source[rows.to(source.device)].to(device))
            continue
        with torch.random.fork_rng(devices=[]):  # torchvision's crops draw from the global generator
            torch.default_generator.manual_seed(seed)
            image = source.batch(rows.tolist())
        yield Batch(image.to(device), label.to(device), text, tokens)


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of `device`; `torch.manual_seed` would queue a call for CUDA at every step without it."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def _draws(labels: Tensor, num_templates: int, training: Training) -> Iterator[tuple[Tensor, int, Tensor]]:
    """For every step, without end: rows [B], a seed for its crops, and a template for each row [B]."""
    size = min(training.batch_size, len(labels))
    for epoch in itertools.count():
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + epoch)
        for rows in torch.split(_order(labels, training, generator), size):
            if len(rows) < size:
                continue
            template = torch.randint(num_templates, (size,), generator=generator)
            yield rows, int(torch.randint(2**62, (), generator=generator)), template


def _order(labels: Tensor, training: Training, generator: torch.Generator) -> Tensor:
    if training.sampling == "balanced":
        weight = 1.0 / torch.bincount(labels)[labels]
        return torch.multinomial(weight, len(labels), replacement=True, generator=generator)
    return torch.randperm(len(labels), generator=generator)
