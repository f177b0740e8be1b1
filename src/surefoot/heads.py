"""Classifiers on image features: made from prompts, or a trained linear layer that starts there."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.model import ImageTextModel
from surefoot.prompts import PromptTable


def prompt_embeddings(model: ImageTextModel, table: PromptTable, *, chunk: int = 512) -> Tensor:
    """W[c, p] = g(template_p(class_c)), l2-normalised, [K, P, D]; every distinct text is encoded once."""
    device = next(model.parameters()).device
    tokens = model.tokenize(table.texts)
    features = torch.cat([model.encode_text(part.to(device)) for part in torch.split(tokens, chunk)])
    return features[torch.tensor(table.index, device=device)]


def class_weight(embeddings: Tensor) -> Tensor:
    """The zero-shot head [K, D] of prompt embeddings [K, P, D]: mean over templates, normalised again.

    References:
        Mao et al., "Context-aware robust fine-tuning", IJCV 2024, eq. 1; its norm is read per class.
    """
    return F.normalize(embeddings.mean(1), dim=-1)


def context_weight(embeddings: Tensor) -> Tensor:
    """The context head W_ctx [P, D] of prompt embeddings [K, P, D]: mean over classes, normalised again.

    References:
        Mao et al., "Context-aware robust fine-tuning", IJCV 2024, eq. 2.
    """
    return F.normalize(embeddings.mean(0), dim=-1)


class LinearHead(nn.Module):
    """logits = features @ weight.T + bias, with weight = scale * W_cls and bias = 0 at the start, both trained.

    The scale is part of the weight, so weight-space interpolation covers it (as in WiSE-FT's release).

    Args:
        weight: [K, D], the zero-shot head.
        scale: exp(logit_scale) of the pre-trained model.
    """

    def __init__(self, weight: Tensor, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale * weight.detach().clone())
        self.bias = nn.Parameter(torch.zeros(len(weight), device=weight.device))

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, K] of l2-normalised features [B, D]."""
        return F.linear(features, self.weight, self.bias)
