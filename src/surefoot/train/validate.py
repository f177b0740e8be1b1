"""What ID validation says of the weights as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from surefoot.data.images import Budget, Images
from surefoot.data.layout import Dataset
from surefoot.distributed import all_rows
from surefoot.heads import LinearHead
from surefoot.metrics import Score, score
from surefoot.model import ImageTextModel
from surefoot.train.settings import SelectBy

BATCH = 256


def encode_all(model: ImageTextModel, images: Images) -> Tensor:
    """f(x) [N, D] of all images, without gradient, in evaluation mode; of several processes each encodes its share."""
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        return all_rows(lambda mine: torch.cat([model.encode_image(b.to(device)) for b in images.batches(BATCH, mine)]), len(images))


class Validation:
    """The validation split of a data set, which makes every choice; no other split can be given.

    Args:
        model: encodes its images.
        dataset: whose "val".
        by: what is measured: "accuracy", "mean_per_class" or "macro_f1".
        budget: how much of the images may be kept in memory.
    """

    def __init__(self, model: ImageTextModel, dataset: Dataset, by: SelectBy, budget: Budget | None = None) -> None:
        split = dataset.split("val")
        self._model, self._by = model, by
        self._images = Images(split.paths, model.preprocess, budget=budget)
        self._label = torch.tensor(split.labels)

    def features(self) -> Tensor:
        """f(x) [N, D] of its images under the model's weights of this moment."""
        return encode_all(self._model, self._images)

    def score(self, head: LinearHead, features: Tensor) -> Score:
        """How good the head's answers are."""
        with torch.no_grad():
            answer = head(features).argmax(1).cpu()
        return score(answer.numpy(), self._label.numpy(), self._by)
