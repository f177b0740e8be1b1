"""Models that were pre-trained with the sigmoid loss are fine-tuned with it, bias included."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import open_clip
import pytest
import torch
from conftest import fresh
from test_baselines import SHORT, changed
from torch.nn import functional as F

from surefoot.data import Dataset
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.objective import Forward
from surefoot.train import Training, batches, fit, start_state


def siglip(model: ImageTextModel) -> ImageTextModel:
    """The tiny model's architecture with a logit bias."""
    torch.manual_seed(3)
    made, config = fresh(model), open_clip.get_model_config(model.name)
    made.clip = open_clip.CustomTextCLIP(**config, init_logit_scale=math.log(10), init_logit_bias=-10.0).eval()
    return made


def test_flyp_of_a_sigmoid_model_is_its_pre_training_loss(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    model = siglip(tiny_model)
    (batch,) = batches(tiny_data, torch.zeros(24, 16), model, Training(steps=1, batch_size=6))
    image = F.normalize(torch.randn(6, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    objective = get("flyp").stages[0].objective
    value = objective.total(objective.values(Forward(model, None, replace(batch, feature=image))))
    with torch.no_grad():
        text = [model.encode_text(batch.tokens[row][None])[0] for row in batch.text["prompt"].tolist()]
    expected = 0.0
    for i, j in itertools.product(range(6), repeat=2):
        sign = 1 if i == j else -1
        expected += math.log(1 + math.exp(-sign * (10 * float(image[i] @ text[j]) - 10))) / 6
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "moves"), [("flyp", True), ("flyp_ce", False), ("tp_ft", False)])
def test_logit_bias_trains_with_the_sigmoid_loss_only(name: str, moves: bool, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    model = siglip(tiny_model)
    start = start_state(model, tiny_data)
    moved = changed(start, fit(get(name), model, tiny_data, SHORT, start=start).state)
    assert ("model.logit_bias" in moved) == moves
    assert ("model.logit_scale" in moved) == (name != "tp_ft")
    assert {f"model.{n}" for n in model.groups()["visual"]} <= moved
