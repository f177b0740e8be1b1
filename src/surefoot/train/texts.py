"""Texts of a tower that does not train: encoded once, however many steps read them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from surefoot.model import ImageTextModel
from surefoot.objective import Stage

BLOCK = 32
"""Texts are encoded in fixed blocks, so that their features do not depend, to the last bit, on which step asked first."""


class EncodedOnce:
    """g(t) of rows of a table of tokens, remembered while the table stays the same tensor.

    Args:
        encode: l2-normalised features [N, D] of tokens [N, L]; the same at every call.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor]) -> None:
        self._encode = encode
        self._tokens: Tensor | None = None
        self._known = self._features = torch.empty(0)

    def __call__(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Features [N, D] of the rows [N] of `tokens` [T, L]; no gradient comes out of them."""
        with torch.no_grad():
            if tokens is not self._tokens:
                self._tokens, self._features = tokens, torch.empty(0)
                self._known = torch.zeros(-(-len(tokens) // BLOCK), dtype=torch.bool, device=tokens.device)
            blocks = torch.unique(rows // BLOCK)
            for block in blocks[~self._known[blocks]].tolist():
                place = slice(block * BLOCK, (block + 1) * BLOCK)
                features = self._encode(tokens[place])
                if not len(self._features):
                    self._features = features.new_zeros(len(tokens), features.shape[1])
                self._features[place] = features
                self._known[block] = True
            return self._features[rows]


def frozen_texts(model: ImageTextModel, stage: Stage) -> EncodedOnce | None:
    """The texts of a tower that stands still and draws nothing; None where it trains, or has dropout."""
    tower = [module for name, module in model.clip.named_modules() if not name.startswith("visual")]
    draws = any(isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0 for module in tower)
    return None if "text" in stage.groups or draws else EncodedOnce(model.encode_text)
