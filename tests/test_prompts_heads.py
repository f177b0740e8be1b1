"""Prompts and heads against plain loops."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from surefoot.errors import SettingError
from surefoot.heads import LinearHead, class_weight, context_weight, prompt_embeddings
from surefoot.model import ImageTextModel
from surefoot.prompts import PromptTable

TEMPLATES, NAMES = ["a {}.", "the {} of dreams"], ["cat", "dog", "cat"]


def test_repeated_class_names_share_their_texts() -> None:
    table = PromptTable.build(TEMPLATES, NAMES)
    assert table.texts == ("a cat.", "the cat of dreams", "a dog.", "the dog of dreams")
    assert table.index == ((0, 1), (2, 3), (0, 1))


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_template_must_hold_one_place_for_the_name(template: str) -> None:
    with pytest.raises(SettingError, match="exactly one"):
        PromptTable.build([template], NAMES)


def test_heads_follow_car_ft_equations_1_and_2(tiny_model: ImageTextModel) -> None:
    with torch.no_grad():
        embeddings = prompt_embeddings(tiny_model, PromptTable.build(TEMPLATES, NAMES), chunk=3)
        for c, name in enumerate(NAMES):
            single = [tiny_model.encode_text(tiny_model.tokenize([t.replace("{}", name)]))[0] for t in TEMPLATES]
            torch.testing.assert_close(embeddings[c], torch.stack(single), rtol=1e-4, atol=1e-5)
            mean = (single[0] + single[1]) / 2
            torch.testing.assert_close(class_weight(embeddings)[c], mean / mean.norm(), rtol=1e-4, atol=1e-5)
        for p in range(len(TEMPLATES)):
            mean = (embeddings[0, p] + embeddings[1, p] + embeddings[2, p]) / 3
            torch.testing.assert_close(context_weight(embeddings)[p], mean / mean.norm())


def test_linear_head_starts_as_the_scaled_zero_shot_head() -> None:
    weight, features = F.normalize(torch.randn(4, 8), dim=1), F.normalize(torch.randn(5, 8), dim=1)
    head = LinearHead(weight, 100.0)
    torch.testing.assert_close(head(features), 100 * features @ weight.T)
    assert {name: p.requires_grad for name, p in head.named_parameters()} == {"weight": True, "bias": True}
