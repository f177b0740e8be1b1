"""The library's own step on a batch that is there already, and such batches: what the benchmarks of this folder measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import open_clip
import torch
from torch import Tensor

from surefoot.chunked import Chunks
from surefoot.clock import Clock
from surefoot.data import Dataset
from surefoot.data.layout import Split
from surefoot.heads import LinearHead
from surefoot.layers import set_checkpointing
from surefoot.methods import get
from surefoot.model import EMBEDDED, ImageTextModel, imagenet_class_names, load_model, templates_named
from surefoot.objective import Batch, Forward
from surefoot.precision import Precision, attention
from surefoot.train import part, select, start_state
from surefoot.train.batches import image_size
from surefoot.train.loop import FUSED
from surefoot.train.parameters import moved_by, optimizer_groups, train_mode
from surefoot.train.reference import FrozenReference
from surefoot.train.texts import frozen_texts

NUM_CLASSES = 20


def built(name: str, precision: Precision = "fp32", *, seed: int = 0) -> ImageTextModel:
    """An architecture of open_clip with random weights, the same for one seed; or IconCLIP."""
    if name == "iconclip":
        return load_model(name, precision=precision)
    torch.manual_seed(seed)
    clip, *transforms = open_clip.create_model_and_transforms(name)
    return ImageTextModel(name, clip, tuple(transforms), open_clip.get_tokenizer(name), open_clip.get_model_config(name), precision).eval()


def dataset() -> Dataset:
    """ImageNet's first 20 classes by name, with CLIP's 80 prompts; no image belongs to it."""
    names = tuple(imagenet_class_names()[:NUM_CLASSES])
    train = Split("train", (Path(EMBEDDED),) * NUM_CLASSES, tuple(range(NUM_CLASSES)), names)
    return Dataset(EMBEDDED, "speed", names, {"train": train}, templates=tuple(templates_named("openai80")))


def batch_of(model: ImageTextModel, size: int, *, seed: int = 0) -> Batch:
    """Random images of drawn classes, each with a prompt, a caption of about a dozen words and a retrieved pair of its own."""
    generator, data = torch.Generator().manual_seed(seed), dataset()
    label = torch.randint(NUM_CLASSES, (size,), generator=generator)
    drawn = torch.randint(len(data.templates), (size,), generator=generator)
    prompts = [data.templates[t].format(data.class_names[c]) for t, c in zip(drawn.tolist(), label.tolist(), strict=True)]
    captions = [f"{text.rstrip('.')}, one of {n} on a plain table" for n, text in enumerate(prompts)]
    pairs = [f"{name} beside {n} others" for n, name in enumerate(imagenet_class_names()[-size:])]
    place = {text: row for row, text in enumerate(dict.fromkeys([*prompts, *captions, *pairs]))}
    fields = {"prompt": prompts, "caption": captions, "anchor_text": pairs}
    text = {name: torch.tensor([place[one] for one in texts]) for name, texts in fields.items()}
    shape = (size, 3, *image_size(model))
    image, anchor = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return Batch(image, label, text, model.tokenize(list(place)), anchor_image=anchor)


def of_needs(batch: Batch, needs: Sequence[str] | frozenset[str]) -> Batch:
    """The batch with the texts and images that a method reads, as the loop makes it."""
    text = {name: rows for name, rows in batch.text.items() if name in needs}
    return replace(batch, text=text, anchor_image=batch.anchor_image if "anchor_image" in needs else None)


class Ours:
    """Steps of the last stage of a method, from the pieces of the library's loop.

    Args:
        name: the method.
        model: with its pre-trained weights; changed in place.
        data: whose class names and prompts; those of `dataset` if None.
        chunk_size: images and texts encoded at a time; all at once if None.
        checkpointing: whether the towers' activations are computed anew.

    Attributes:
        kernel: of attention; None for the usual one of the format.
        clock: measures the parts of a step.
    """

    kernel: str | None = None
    clock: Clock = Clock()

    def __init__(
        self,
        name: str,
        model: ImageTextModel,
        data: Dataset | None = None,
        *,
        chunk_size: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        self.model, self.chunk_size, self.stage = model, chunk_size, get(name).stages[-1]
        data, device = data or dataset(), next(model.parameters()).device
        start = start_state(model, data)
        self.head = LinearHead(torch.zeros_like(start["head.weight"]), 1.0)
        self.head.load_state_dict(part(start, "head"))
        self.head.to(device)
        compares = any(need == "reference" or need.startswith("contexts:") for need in self.stage.needs)
        self.reference = FrozenReference(model, start, data) if compares else None
        self.moving = select(self.stage, model, self.head)
        self.texts = frozen_texts(model, self.stage)
        groups = optimizer_groups(self.moving, self.stage.objective.penalises, 0.1)
        self.moved = moved_by(self.stage, self.moving, start, device)
        self.optimizer = torch.optim.AdamW(groups, lr=1e-5, fused=device.type in FUSED)
        set_checkpointing(model.clip, checkpointing)
        train_mode(model)

    def gradients(self, batch: Batch) -> tuple[float, list[Tensor]]:
        """The loss, and the gradient of every parameter that it moves."""
        loss = self.backward(batch)
        return loss, [parameter.grad.clone() for parameter in self.moving.named.values() if parameter.grad is not None]

    def take(self, batch: Batch) -> float:
        """One step; the loss."""
        loss = self.backward(batch)
        with self.clock("optimizer"):
            self.optimizer.step()
        self.clock.end_step()
        return loss

    def backward(self, batch: Batch) -> float:
        """Fresh gradients in every parameter that moves; the loss."""
        batch = of_needs(batch, self.stage.needs)
        own = {"chunks": Chunks(self.chunk_size), "frozen_text": self.texts, "clock": self.clock}
        forward = Forward(self.model, self.head, batch, self.moved, None, self.reference, **own)
        with attention(self.kernel):
            with self.clock("loss"):
                loss = self.stage.objective.total(self.stage.objective.values(forward))
            self.optimizer.zero_grad(set_to_none=True)
            with self.clock("backward"):
                forward.backward(loss)
        return loss.item()
