"""ARF against its equations: three contrastive losses of one form, the anchors of a batch's own images, and what is said without them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fresh
from test_baselines import SHORT
from test_reference import dot, make_case, move
from torch import Tensor

from surefoot.data import Dataset, Images
from surefoot.data.anchors import Anchors
from surefoot.errors import SettingError
from surefoot.identity import weights_hash
from surefoot.methods import arf, flyp, get
from surefoot.model import ImageTextModel
from surefoot.objective import Batch, Method
from surefoot.train import Training, batches, fit, preflight, settings_of, start_state
from surefoot.train.preflight import lacking


def contrast(image: Tensor, text: Tensor, scale: float, label: Sequence[int] | None = None) -> float:
    """Eq. 1 as it is meant, halved; with labels, items of one class are no negatives of each other."""
    total, rows = 0.0, range(len(image))
    z = [[scale * dot(f, g) for g in text.tolist()] for f in image.tolist()]
    for i in rows:
        among = [j for j in rows if j == i or label is None or label[j] != label[i]]
        total -= math.log(math.exp(z[i][i]) / sum(math.exp(z[i][j]) for j in among))
        total -= math.log(math.exp(z[i][i]) / sum(math.exp(z[j][i]) for j in among))
    return total / (2 * len(image))


def text_of(model: ImageTextModel, texts: Sequence[str]) -> Tensor:
    """Each text encoded by itself."""
    with torch.no_grad():
        return torch.cat([model.encode_text(model.tokenize([text])) for text in texts])


def run_batches(method: Method, model: ImageTextModel, data: Dataset, training: Training = SHORT) -> tuple[list[Batch], list[list[int]]]:
    """All batches of a run, and the rows of the training images in each."""
    rows: list[list[int]] = []
    source = Images(data.split("train").paths, model.preprocess_train, random=True)
    read, pairs = source.batch, Images(data.anchors.images, model.preprocess_train, random=True) if data.anchors.images else None
    source.batch = lambda given, seeds: (rows.append(list(given)), read(given, seeds))[1]  # type: ignore[method-assign]
    return list(batches(data, source, model, training, needs=method.needs, pair_images=pairs)), rows


def test_objective_is_equation_5(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    method = arf(caption_weight=0.5, retrieval_weight=2.0)
    (batch, *_), (rows, *_) = run_batches(method, fresh(tiny_model), tiny_data)
    case, anchors, paths = make_case(tiny_model, tiny_data, method), tiny_data.anchors, tiny_data.split("train").paths
    assert torch.equal(case.batch.label, batch.label)
    image, found = case.images(case.now), sorted({pair for row in rows for pair in anchors.pairs[paths[row]]})
    assert case.batch.anchor_image is not None
    with torch.no_grad():
        retrieved = case.now.encode_image(case.batch.anchor_image)
    captions = text_of(case.now, [anchors.captions[paths[row]] for row in rows])
    expected = {
        "contrastive_prompt": contrast(image, case.texts("prompt", case.now), case.scale),
        "contrastive_caption": contrast(image, captions, case.scale),
        "contrastive_anchor": contrast(retrieved, text_of(case.now, [anchors.texts[pair] for pair in found]), case.scale),
    }
    terms = case.terms(method)
    for name, value in expected.items():
        assert terms[name] == pytest.approx(value, rel=1e-4), name
    total = expected["contrastive_prompt"] + 0.5 * expected["contrastive_caption"] + 2.0 * expected["contrastive_anchor"]
    assert terms["total"] == pytest.approx(total, rel=1e-4)
    assert list(terms) == [*expected, "total"]


def test_all_three_weigh_alike_by_default(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    terms = make_case(tiny_model, tiny_data, arf()).terms(arf())
    assert terms.pop("total") == pytest.approx(sum(terms.values()))
    assert len(terms) == 3


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"retrieval_weight": 0.0}, {"prompt", "caption"}),
        ({"caption_weight": 0.0}, {"prompt", "anchor"}),
        ({}, {"prompt", "caption", "anchor"}),
    ],
)
def test_either_anchor_alone_asks_for_the_other_nowhere(
    settings: dict[str, Any], kept: set[str], tiny_model: ImageTextModel, tiny_data: Dataset
) -> None:
    method, anchors = get("arf", settings), tiny_data.anchors
    without = replace(tiny_data, anchors=replace(anchors, **{} if "caption" in kept else {"captions": {}}))
    without = replace(without, anchors=replace(without.anchors, **{} if "anchor" in kept else {"pairs": {}, "images": (), "texts": ()}))
    fit(method, fresh(tiny_model), without, SHORT)
    case = make_case(tiny_model, without, method)
    assert set(case.terms(method)) == {f"contrastive_{name}" for name in kept} | {"total"}
    assert (case.batch.anchor_image is not None) == ("anchor" in kept)
    assert set(case.batch.text) == {name if name != "anchor" else "anchor_text" for name in kept}


def test_every_image_brings_its_own_caption(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    found, rows = run_batches(arf(), tiny_model, tiny_data, replace(SHORT, epochs=2))
    paths = tiny_data.split("train").paths
    assert len(found) == 6
    for batch, own in zip(found, rows, strict=True):
        captions = tiny_model.tokenize([tiny_data.anchors.captions[paths[row]] for row in own])
        assert torch.equal(batch.tokens[batch.text["caption"]], captions)
        assert len(set(batch.text["caption"].tolist())) == len(own)


def chain(data: Dataset, pool: Sequence[Path], k: int) -> Dataset:
    """Eight pairs, of which image i retrieves number i and the k - 1 that follow."""
    images = tuple(data.split("test").paths[:8])
    pairs = {path: tuple((row + step) % 8 for step in range(k)) for row, path in enumerate(data.split("train").paths)}
    return replace(data, anchors=replace(data.anchors, pairs=pairs, images=images, texts=tuple(f"text {n}" for n in range(8))))


@pytest.mark.parametrize("k", [1, 2])
def test_anchors_are_those_that_the_images_of_the_batch_retrieved_each_once(
    k: int, tiny_model: ImageTextModel, tiny_data: Dataset, tiny_pool: tuple[Path, ...]
) -> None:
    data = chain(tiny_data, tiny_pool, k)
    found, rows = run_batches(arf(), tiny_model, data, replace(SHORT, batch_size=4))
    texts, repeated, sizes = tiny_model.tokenize(data.anchors.texts), 0, set()
    for batch, own in zip(found, rows, strict=True):
        retrieved = [(row + step) % 8 for row in own for step in range(k)]
        assert torch.equal(batch.tokens[batch.text["anchor_text"]], texts[sorted(set(retrieved))])
        assert batch.anchor_image is not None
        assert len(batch.anchor_image) == len(set(retrieved))
        repeated += len(retrieved) - len(set(retrieved))
        sizes.add(len(set(retrieved)))
    assert repeated > 0
    assert len(sizes) > 1


def test_every_anchor_text_stands_at_its_own_image(tiny_model: ImageTextModel, tiny_data: Dataset, tiny_pool: tuple[Path, ...]) -> None:
    data = chain(tiny_data, tiny_pool, 2)
    plain = Images(data.anchors.images, tiny_model.preprocess)
    source = Images(data.split("train").paths, tiny_model.preprocess)
    texts = tiny_model.tokenize(data.anchors.texts)
    for batch in batches(data, source, tiny_model, replace(SHORT, batch_size=3), needs=arf().needs, pair_images=plain):
        assert batch.anchor_image is not None
        for image, row in zip(batch.anchor_image, batch.text["anchor_text"].tolist(), strict=True):
            number = next(n for n in range(8) if torch.equal(texts[n], batch.tokens[row]))
            assert torch.equal(image, plain.batch([number])[0])


def test_retrieved_images_are_cropped_as_training_images_are(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    seen, encode = [], tiny_model.encode_image
    tiny_model.encode_image = lambda x: (seen.append(x) if tiny_model.training else None, encode(x))[1]  # type: ignore[method-assign]
    fit(arf(), tiny_model, tiny_data, replace(SHORT, epochs=2))
    anchors = [x for x in seen if len(x) == 3]
    assert len(anchors) == 6
    assert not all(torch.equal(anchors[0], other) for other in anchors[1:])


def test_images_crops_and_prompts_are_those_that_flyp_draws(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    training = replace(SHORT, epochs=2)
    ours, theirs = (run_batches(method, tiny_model, tiny_data, training)[0] for method in (arf(), flyp()))
    for one, other in zip(ours, theirs, strict=True):
        assert one.image is not None
        assert other.image is not None
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.tokens[one.text["prompt"]], other.tokens[other.text["prompt"]])
    drawn = torch.cat([batch.text["prompt"] for batch in ours])
    assert len(set(drawn.tolist())) == 6  # both templates of every class


def test_without_its_anchors_it_is_flyp_bit_for_bit_and_needs_none(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    bare, training = replace(tiny_data, anchors=Anchors()), replace(SHORT, epochs=2)
    method = arf(caption_weight=0.0, retrieval_weight=0.0)
    assert method.needs == flyp().needs
    ends = [fit(one, fresh(tiny_model), data, training).state for one, data in ((method, bare), (flyp(), bare), (arf(), tiny_data))]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert not torch.equal(ends[2]["model.visual.proj"], ends[0]["model.visual.proj"])
    assert method.stages[0].trains == flyp().stages[0].trains


@pytest.mark.parametrize("name", ["caption", "anchor"])
def test_each_anchor_moves_both_towers(name: str, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    case = make_case(tiny_model, tiny_data, arf())
    next(term for term in arf().stages[0].objective.terms if term.name == f"contrastive_{name}").function(case.forward).backward()
    for parameter in (case.now.clip.visual.proj, case.now.clip.text_projection, case.now.clip.logit_scale):
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_text_head_of_the_tuned_tower_answers(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    end = fit(arf(), tiny_model, tiny_data, SHORT).state
    assert torch.equal(end["head.weight"], start_state(tiny_model, tiny_data)["head.weight"])


def half(data: Dataset, what: str) -> Dataset:
    """Captions or pairs for every other training image."""
    kept = {path: value for row, (path, value) in enumerate(getattr(data.anchors, what).items()) if row % 2}
    return replace(data, anchors=replace(data.anchors, **{what: kept}))


@pytest.mark.parametrize(
    ("what", "settings", "words", "command"),
    [
        ("captions", {"retrieval_weight": 0.0}, "captions", "surefoot caption {}"),
        ("pairs", {"caption_weight": 0.0}, "retrieved image-text pairs", "surefoot retrieve {} --candidates POOL"),
    ],
)
def test_missing_anchors_are_told_with_how_many_and_the_command(
    what: str, settings: dict[str, Any], words: str, command: str, tiny_model: ImageTextModel, tiny_data: Dataset
) -> None:
    method, command = get("arf", settings), command.format(tiny_data.root)
    none = replace(tiny_data, anchors=replace(tiny_data.anchors, **{what: {}}))
    expected = f"it needs {words} for the training images, and there are none: run '{command}' first"
    assert lacking(method, none) == [expected]
    with pytest.raises(SettingError) as error:
        preflight(method, tiny_model, none, SHORT)
    assert str(error.value) == f"arf cannot run: {expected}."
    missing = tiny_data.split("train").paths[0]
    expected = f"it needs {words} for the training images, and 12 of 24, such as {missing}, have none: run '{command}'"
    assert lacking(method, half(tiny_data, what)) == [expected]
    with pytest.raises(SettingError, match="12 of 24"):
        fit(method, tiny_model, half(tiny_data, what), SHORT)
    assert lacking(method, tiny_data) == []


def test_all_that_is_missing_is_told_together_and_embedded_data_by_their_name(tiny_data: Dataset) -> None:
    captions, pairs = lacking(arf(), replace(tiny_data, anchors=Anchors(), name="iconshift"))[::-1]
    assert "'surefoot caption iconshift'" in captions
    assert "'surefoot retrieve iconshift --candidates POOL'" in pairs


def test_pairs_that_other_weights_retrieved_are_refused(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    before = weights_hash(tiny_model)
    move(tiny_model)
    with pytest.raises(SettingError) as error:
        preflight(arf(), tiny_model, tiny_data, SHORT)
    told = f"with other weights ({before}) than those of {tiny_model.name} ({weights_hash(tiny_model)})"
    assert told in str(error.value)
    assert f"run 'surefoot retrieve {tiny_data.root} --candidates POOL --model {tiny_model.name}'" in str(error.value)
    preflight(arf(retrieval_weight=0.0), tiny_model, tiny_data, SHORT)  # captions belong to no weights
    preflight(flyp(), tiny_model, tiny_data, SHORT)


def other_caption(anchors: Anchors) -> Anchors:
    first = next(iter(anchors.captions))
    return replace(anchors, captions={**anchors.captions, first: "another"})


def other_text(anchors: Anchors) -> Anchors:
    return replace(anchors, texts=("another", *anchors.texts[1:]))


def other_pair(anchors: Anchors) -> Anchors:
    first = next(iter(anchors.pairs))
    return replace(anchors, pairs={**anchors.pairs, first: tuple(reversed(anchors.pairs[first]))})


@pytest.mark.parametrize(
    ("change", "captions", "pairs"), [(other_caption, True, False), (other_text, False, True), (other_pair, False, True)]
)
def test_anchors_that_are_used_are_part_of_the_settings(
    change: Callable[[Anchors], Anchors], captions: bool, pairs: bool, tiny_model: ImageTextModel, tiny_data: Dataset
) -> None:
    other = replace(tiny_data, anchors=change(tiny_data.anchors))
    for method, differs in (
        (arf(), True), (arf(retrieval_weight=0.0), captions), (arf(caption_weight=0.0), pairs), (flyp(), False),
    ):  # fmt: skip
        one, two = (settings_of(method, SHORT, tiny_model, data) for data in (tiny_data, other))
        assert (one != two) == differs


@pytest.mark.parametrize("settings", [{"caption_weight": -1.0}, {"retrieval_weight": -0.5}])
def test_negative_weights_are_told(settings: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="must be 0 or more"):
        get("arf", settings)
