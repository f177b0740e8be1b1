"""The straightforward step of every method, as one would write it from its paper: what the library's step is measured against.

Every prompt of the batch is encoded, at the tower's full 77 tokens, each field of texts by itself; every image once by each model that
needs it; float32; plain AdamW. Nothing of the library is used but the tokens and images of the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from open_clip import CLIP
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.objective import Batch


class Straight:
    """Steps of one method on a model of its own.

    Args:
        name: tp_ft, flyp, car_ft, arf or clip_cite.
        clip: open_clip's model; changed in place.
        head: [K, D] the zero-shot head times the scale, where the method trains a head.
        contexts: [P, D] CAR-FT's W_ctx.
    """

    def __init__(self, name: str, clip: CLIP, head: Tensor, contexts: Tensor) -> None:
        self.name, self.clip, self.contexts = name, clip.train(), contexts
        self.frozen = copy.deepcopy(clip).eval().requires_grad_(False) if name in ("car_ft", "clip_cite") else None
        self.head = nn.Linear(head.shape[1], head.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(head)
            self.head.bias.zero_()
        trained = list(self.trained())
        for parameter in clip.parameters():
            parameter.requires_grad_(any(parameter is one for one in trained))
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.1)

    def trained(self) -> Iterator[nn.Parameter]:
        """The parameters that the method moves."""
        for name, parameter in self.clip.named_parameters():
            tower = "scale" if name == "logit_scale" else "visual" if name.startswith("visual.") else "text"
            if tower == "visual" or self.name in ("flyp", "arf") or (self.name == "clip_cite" and tower == "text"):
                yield parameter
        if self.name not in ("flyp", "arf"):
            yield from self.head.parameters()

    def loss(self, batch: Batch) -> Tensor:
        """The method's loss on a batch."""
        assert batch.image is not None
        image = F.normalize(self.clip.encode_image(batch.image), dim=-1)
        if self.name in ("flyp", "arf"):
            loss = self.contrast(image, self.text(batch, "prompt"))
            if self.name == "arf":
                assert batch.anchor_image is not None
                loss = loss + self.contrast(image, self.text(batch, "caption"))
                anchor = F.normalize(self.clip.encode_image(batch.anchor_image), dim=-1)
                loss = loss + self.contrast(anchor, self.text(batch, "anchor_text"))
            return loss
        loss = F.cross_entropy(self.head(image), batch.label)
        scale = self.clip.logit_scale.exp()
        if self.name == "car_ft":
            assert self.frozen is not None
            with torch.no_grad():
                before = F.normalize(self.frozen.encode_image(batch.image), dim=-1)
            loss = loss + kl(scale * before @ self.contexts.T, scale * image @ self.contexts.T)
        if self.name == "clip_cite":
            assert self.frozen is not None
            text = self.text(batch, "prompt")
            with torch.no_grad():
                before = F.normalize(self.frozen.encode_image(batch.image), dim=-1)
                text_before = F.normalize(self.frozen.encode_text(batch.tokens[batch.text["prompt"]]), dim=-1)
            logits = scale * image @ text.T
            same = (batch.label[:, None] == batch.label[None, :]) & ~torch.eye(len(text), dtype=torch.bool)
            masked, target = logits.masked_fill(same, -torch.inf), torch.arange(len(text))
            loss = loss + 0.7 * (F.cross_entropy(masked, target) + F.cross_entropy(masked.T, target))
            loss = loss + 0.1 * kl(logits, scale * before @ text_before.T)
        return loss

    def text(self, batch: Batch, name: str) -> Tensor:
        """g of every text of a field [B, D]."""
        return F.normalize(self.clip.encode_text(batch.tokens[batch.text[name]]), dim=-1)

    def contrast(self, image: Tensor, text: Tensor) -> Tensor:
        """CLIP's symmetric cross-entropy."""
        logits, target = self.clip.logit_scale.exp() * image @ text.T, torch.arange(len(image))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def gradients(self, batch: Batch) -> tuple[float, list[Tensor]]:
        """The loss, and the gradient of every parameter that it moves."""
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        return loss.item(), [parameter.grad.clone() for parameter in self.trained() if parameter.grad is not None]

    def take(self, batch: Batch) -> float:
        """One step; the loss."""
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Mean over rows of KL(softmax(p) || softmax(q))."""
    log_p, log_q = p.log_softmax(dim=-1), q.log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()
