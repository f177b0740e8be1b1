"""FLYP's ablations: frozen text tower, single template, masked collisions, cross-entropy added."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import fresh
from test_arf import contrast, run_batches
from test_baselines import SHORT, changed, softmax_loss
from test_clip_cite import one_of_each
from test_reference import make_case

from surefoot.data import Dataset
from surefoot.errors import SettingError
from surefoot.methods import flyp, get
from surefoot.model import ImageTextModel
from surefoot.train import Training, fit, select, start_state

LAST = Training(steps=4, batch_size=3, learning_rate=1e-2, keep="last")


def test_loss_is_equation_1_and_collisions_stay_negatives(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    case = make_case(tiny_model, tiny_data, flyp())
    image, text, label = case.images(case.now), case.texts("prompt", case.now), case.batch.label.tolist()
    assert case.terms(flyp()) == pytest.approx(
        {"contrastive_prompt": contrast(image, text, case.scale), "total": contrast(image, text, case.scale)}, rel=1e-4
    )
    assert contrast(image, text, case.scale) != pytest.approx(contrast(image, text, case.scale, label), rel=0.05)


def test_masked_collisions_are_no_negatives(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    method = flyp(mask_collisions=True)
    case = make_case(tiny_model, tiny_data, method)
    label = case.batch.label.tolist()
    expected = contrast(case.images(case.now), case.texts("prompt", case.now), case.scale, label)
    assert case.terms(method)["total"] == pytest.approx(expected, rel=1e-4)
    assert len(set(label)) < len(label)


def test_masking_is_nothing_where_no_class_repeats_bit_for_bit(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    for data, same in ((one_of_each(tiny_data), True), (tiny_data, False)):
        ends = [fit(flyp(mask_collisions=mask), fresh(tiny_model), data, LAST).state for mask in (True, False)]
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0]) == same


def test_single_template_is_the_first_of_the_data(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    method = flyp(single_template=True)
    found, _ = run_batches(method, tiny_model, tiny_data, replace(SHORT, epochs=2))
    texts = tiny_model.tokenize(["a bar.", "a square box.", "a disc."])
    for batch in found:
        assert torch.equal(batch.tokens[batch.text["first_prompt"]], texts[batch.label])
        assert list(batch.text) == ["first_prompt"]
    case = make_case(tiny_model, tiny_data, method)
    expected = contrast(case.images(case.now), case.texts("first_prompt", case.now), case.scale)
    assert case.terms(method)["total"] == pytest.approx(expected, rel=1e-4)


def test_single_template_of_data_with_one_template_is_flyp_bit_for_bit(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    data = replace(tiny_data, templates=("a {}.",))
    ends = [fit(flyp(single_template=single), fresh(tiny_model), data, LAST).state for single in (True, False)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


@pytest.mark.parametrize("settings", [{}, {"mask_collisions": True}, {"single_template": True}, {"cross_entropy_weight": 1.0}])
def test_frozen_text_tower_is_unchanged_and_the_rest_moves(
    settings: dict[str, Any], tiny_model: ImageTextModel, tiny_data: Dataset
) -> None:
    method, start = get("flyp", {**settings, "frozen_text": True}), start_state(tiny_model, tiny_data)
    assert method.trains == {"visual", "logit_scale", "logit_bias"}
    case = make_case(fresh(tiny_model), tiny_data, method)
    select(method.stages[0], case.now, case.head)
    case.value(method).backward()
    assert all(parameter.grad is None for name, parameter in case.now.clip.named_parameters() if name in tiny_model.groups()["text"])
    moved = changed(start, fit(method, tiny_model, tiny_data, SHORT).state)
    assert not moved & {f"model.{name}" for name in tiny_model.groups()["text"]}
    assert {"model.visual.proj", "model.logit_scale"} <= moved


def test_added_cross_entropy_is_over_one_prompt_of_every_class(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    method = flyp(cross_entropy_weight=0.5)
    case = make_case(tiny_model, tiny_data, method)
    classes = case.texts("class_prompt", case.now)
    assert len(classes) == 3
    logits = case.scale * case.images(case.now) @ classes.T
    added = sum(softmax_loss(row, label) for row, label in zip(logits, case.batch.label.tolist(), strict=True)) / 8
    terms = case.terms(method)
    assert terms["text_cross_entropy"] == pytest.approx(added, rel=1e-4)
    assert terms["total"] == pytest.approx(terms["contrastive_prompt"] + 0.5 * added, rel=1e-4)
    texts = tiny_model.tokenize([t.replace("{}", name) for name in tiny_data.class_names for t in tiny_data.templates]).tolist()
    drawn = set()
    for batch in run_batches(method, tiny_model, tiny_data, replace(SHORT, epochs=4))[0]:
        rows = [texts.index(batch.tokens[row].tolist()) for row in batch.text["class_prompt"].tolist()]
        assert [row // 2 for row in rows] == [0, 1, 2]
        drawn |= set(rows)
    assert drawn == set(range(6))


def test_added_cross_entropy_changes_neither_images_nor_prompts(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    ours, theirs = (run_batches(method, tiny_model, tiny_data)[0] for method in (flyp(cross_entropy_weight=1.0), flyp()))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.text["prompt"], other.text["prompt"])
        assert one.image is not None
        assert torch.equal(one.image, other.image)  # type: ignore[arg-type]


def test_options_off_are_flyp(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    off = get("flyp", {"frozen_text": False, "single_template": False, "mask_collisions": False, "cross_entropy_weight": 0.0})
    ends = [fit(method, fresh(tiny_model), tiny_data, LAST).state for method in (off, flyp())]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert off.needs == {"image", "prompt"}


def test_negative_weight_is_told() -> None:
    with pytest.raises(SettingError, match="cross_entropy_weight is -1"):
        get("flyp", {"cross_entropy_weight": -1})
