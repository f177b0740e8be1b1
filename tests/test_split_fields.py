"""Splits with prompts, class names or groups of their own are judged by them, and data without them stay what they were."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import fakes
import numpy as np
import pytest
import torch

from surefoot import records
from surefoot.data import Dataset, Images, load
from surefoot.data.catalog.loaders.imagenet import subset
from surefoot.data.subsets import joined, only_classes, take
from surefoot.errors import SettingError
from surefoot.heads import class_weight, prompt_embeddings
from surefoot.methods import get
from surefoot.metrics import worst_group
from surefoot.model import ImageTextModel
from surefoot.prompts import PromptTable
from surefoot.protocols import Judge
from surefoot.train import start_state

MAPPED = ((0, 2), (1,))


def with_split(dataset: Dataset, name: str, **changes: object) -> Dataset:
    return replace(dataset, splits={**dataset.splits, name: replace(dataset.split(name), **changes)})


def features(model: ImageTextModel, paths: tuple[Path, ...]) -> torch.Tensor:
    with torch.inference_mode():
        return model.encode_image(Images(paths, model.preprocess).batch(range(len(paths))))


def test_unseen_classes_are_named_by_their_own_prompts(tiny_data: Dataset, tiny_model: ImageTextModel) -> None:
    data = with_split(tiny_data, "unseen/other", templates=("blurry {} at night", "the {}"))
    start = start_state(tiny_model, data)
    found = Judge(tiny_model, data, start).judge(get("zero_shot"), start)
    split = data.split("unseen/other")
    with torch.inference_mode():
        head = class_weight(prompt_embeddings(tiny_model, PromptTable.build(split.templates, split.class_names)))
        usual = class_weight(prompt_embeddings(tiny_model, PromptTable.build(data.templates, split.class_names)))
    expected = (features(tiny_model, split.paths) @ head.T * tiny_model.scale).softmax(1)
    given = found.answers["unseen/other"]
    np.testing.assert_array_equal(given.prediction, expected.argmax(1).numpy())
    np.testing.assert_allclose(given.confidence, expected.amax(1).detach().numpy(), rtol=1e-4)
    other = (features(tiny_model, split.paths) @ usual.T * tiny_model.scale).softmax(1).amax(1).detach().numpy()
    assert not np.allclose(given.confidence, other, rtol=1e-3)


def test_a_mapped_class_answers_by_the_largest_logit_of_its_training_classes(tiny_data: Dataset, tiny_model: ImageTextModel) -> None:
    red = tiny_data.split("shifts/red")
    own = tuple(next(row for row, classes in enumerate(MAPPED) if label in classes) for label in red.labels)
    data = with_split(tiny_data, "shifts/red", labels=own, class_names=("flat thing", "round thing"), mapped=MAPPED)
    start = start_state(tiny_model, data)
    found = Judge(tiny_model, data, start).judge(get("zero_shot"), start)
    logits = features(tiny_model, red.paths) @ start["head.weight"].T + start["head.bias"]
    expected = [[max(float(row[label]) for label in classes) for classes in MAPPED] for row in logits]
    given = found.answers["shifts/red"]
    np.testing.assert_array_equal(given.prediction, np.argmax(expected, axis=1))
    np.testing.assert_array_equal(given.label, own)
    assert "restricted/red" not in found.answers
    assert found.accuracy["avg_shifts"] == pytest.approx((found.accuracy["shifts/red"] + found.accuracy["shifts/green"]) / 2)


def test_declared_classes_compete_even_if_they_have_no_image_on_disk(tiny_data: Dataset, tiny_model: ImageTextModel) -> None:
    red = tiny_data.split("shifts/red")
    first = take(red, [row for row, label in enumerate(red.labels) if label == 0])
    plain = with_split(tiny_data, "shifts/red", paths=first.paths, labels=first.labels)
    data = with_split(plain, "shifts/red", declared=(0, 2))
    start = start_state(tiny_model, data)
    state = {**start, "head.bias": torch.tensor([0.0, 2e6, 1e6])}  # class 1 before 2 before 0
    found = Judge(tiny_model, data, start).judge(get("tp_ft"), state)
    assert set(found.answers["shifts/red"].prediction.tolist()) == {1}
    assert set(found.answers["restricted/red"].prediction.tolist()) == {2}
    assert found.accuracy["restricted/red"] == 0
    assert Judge(tiny_model, plain, start).judge(get("tp_ft"), state).accuracy["restricted/red"] == 1, "class 0 alone is no question"
    assert data.fingerprint() != plain.fingerprint()
    whole = with_split(tiny_data, "shifts/red", declared=(0, 1, 2))
    assert whole.fingerprint() == tiny_data.fingerprint(), "nothing changes where all classes are there"
    assert only_classes(data.split("shifts/red"), [2, 0]).declared == (1, 0)


def test_an_image_of_several_classes_is_right_by_any_of_them(tiny_data: Dataset, tiny_model: ImageTextModel) -> None:
    red = tiny_data.split("shifts/red")
    one = with_split(tiny_data, "shifts/red", labels=(0,) * len(red))
    both = with_split(one, "shifts/red", accepted=tuple((1,) if row % 2 else () for row in range(len(red))))
    start = start_state(tiny_model, one)
    state = {**start, "head.bias": torch.tensor([0.0, 1e6, 0.0])}  # every answer is class 1
    judged = [Judge(tiny_model, data, start).judge(get("tp_ft"), state) for data in (one, both)]
    assert [found.accuracy["shifts/red"] for found in judged] == [0, 0.5]
    given = judged[1].answers["shifts/red"]
    assert given.correct.tolist() == [bool(row % 2) for row in range(len(red))]
    assert given.label.tolist() == [row % 2 for row in range(len(red))], "an answer that is right is right as its own class"
    assert one.fingerprint() != both.fingerprint()
    few = take(both.split("shifts/red"), [1, 2, 3])
    assert few.accepted == ((1,), (), (1,)) and joined([red, few]).accepted == ((),) * len(red) + few.accepted
    assert only_classes(few, [1, 0]).accepted == ((0,), (), (0,))
    assert given.label.dtype == judged[0].answers["shifts/red"].label.dtype


def test_a_part_of_imagenet_r_is_judged_among_its_200_classes(tmp_path: Path) -> None:
    root = fakes.make("imagenet", tmp_path)
    for folder in sorted((root / "imagenet-r").glob("n*"))[5:]:
        shutil.rmtree(folder)
    split = load("imagenet", root=root).split("shifts/r")
    assert len(set(split.labels)) == 5
    assert split.own_classes == list(subset("imagenet_r"))


def test_worst_group_is_the_lowest_accuracy_within_a_group(tiny_data: Dataset, tiny_model: ImageTextModel, tmp_path: Path) -> None:
    groups = tuple("north" if row % 3 else "south" for row in range(len(tiny_data.split("test"))))
    data = with_split(tiny_data, "test", groups=groups)
    start = start_state(tiny_model, data)
    found = Judge(tiny_model, data, start).judge(get("zero_shot"), start)
    correct = found.answers["test"].correct
    each = {name: np.mean([right for right, group in zip(correct, groups, strict=True) if group == name]) for name in ("north", "south")}
    assert each["north"] != each["south"]
    assert found.metrics["test"]["worst_group"] == min(each.values())
    assert "worst_group" not in found.metrics["shifts/red"]
    stored = records.load_answers(tmp_path, records.save_answers(tmp_path, "one", found.answers))
    np.testing.assert_array_equal(stored["test"].group, found.answers["test"].group)
    assert stored["val"].group is None
    assert stored["test"].rows([0, 1]).group.tolist() == [1, 0]


def test_a_group_that_counts_as_one_is_right_only_if_all_of_it_is(tiny_data: Dataset, tiny_model: ImageTextModel) -> None:
    red = tiny_data.split("shifts/red")
    groups = tuple(["b", "", "a", "b"][row % 4] for row in range(len(red)))
    labels = tuple(0 if row in (0, 1, 2, 7) else 1 for row in range(len(red)))
    apart = with_split(tiny_data, "shifts/red", labels=labels, groups=groups)
    data = with_split(apart, "shifts/red", together=True, declared=(0, 1))
    start = start_state(tiny_model, data)
    state = {**start, "head.bias": torch.tensor([0.0, 1e6, 0.0])}  # every answer is class 1
    found = Judge(tiny_model, data, start).judge(get("tp_ft"), state)
    whole = {}  # a group, or an image by itself: whether all of it is right
    for row, (label, group) in enumerate(zip(labels, groups, strict=True)):
        key = group or f"image {row}"
        whole[key] = whole.get(key, True) and label == 1
    assert len(whole) == 2 + 3 and whole["a"] is whole["b"] is False
    for name in ("shifts/red", "restricted/red"):
        assert sorted(found.answers[name].correct.tolist()) == sorted(whole.values())
        assert found.accuracy[name] == np.mean(list(whole.values()))
    assert found.metrics["shifts/red"].keys().isdisjoint({"worst_group"})
    assert len(Judge(tiny_model, apart, start).judge(get("tp_ft"), state).answers["shifts/red"].label) == len(red)
    assert data.fingerprint() != with_split(data, "shifts/red", together=False).fingerprint()
    (mixed,) = Judge(tiny_model, data, start).ensembles(get("tp_ft"), state, [1.0])
    np.testing.assert_array_equal(mixed.answers["shifts/red"].correct, found.answers["shifts/red"].correct)


def test_groups_keep_their_order_whatever_was_answered() -> None:
    """So that two models are compared group by group: the label, here the group's number, is the same in every place."""
    group, draw = np.array([2, -1, 0, 2, 0, -1, 1], dtype=np.int32), np.random.default_rng(0)
    orders = set()
    for _ in range(20):
        label = group.copy()
        prediction = np.where(draw.random(7) < 0.5, label, 9).astype(np.int32)
        found = records.Answers(prediction, label, np.ones(7, dtype=np.float32), group).by_group()
        orders.add(tuple(found.label.tolist()))
        assert found.group is None
    assert len(orders) == 1 and len(orders.pop()) == 5
    with pytest.raises(SettingError, match="have no groups"):
        records.Answers(group, group, np.ones(7, dtype=np.float32)).by_group()


def test_a_group_without_images_has_no_say() -> None:
    assert worst_group(np.array([True, False, True]), np.array([5, 5, 9])) == 0.5


@pytest.mark.parametrize(
    "changes", [{"templates": ("the {}",)}, {"mapped": MAPPED}, {"groups": ("a",) * 12}, {"border": 2}], ids=lambda c: next(iter(c))
)
def test_every_field_of_its_own_makes_other_data(tiny_data: Dataset, changes: dict[str, object]) -> None:
    assert with_split(tiny_data, "shifts/red", **changes).fingerprint() != tiny_data.fingerprint()


def test_data_without_such_fields_keep_their_fingerprint(tiny_data: Dataset) -> None:
    """As records that were written before have it: class names, prompts, and for each split what the formula names."""
    import hashlib

    from surefoot.data.digest import digests

    total = hashlib.sha256(
        repr((tiny_data.class_names, tiny_data.templates, sorted(tiny_data.contexts.items()), tiny_data.id_context)).encode()
    )
    for name, split in sorted(tiny_data.splits.items()):
        images = [(tiny_data.written(path), digest) for path, digest in zip(split.paths, digests(split.paths), strict=True)]
        total.update(repr((name, split.class_names, split.labels, split.captions, images)).encode())
    assert tiny_data.fingerprint() == total.hexdigest()[:16]
