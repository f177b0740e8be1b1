"""The pre-trained model beside the one that trains: a constant, whatever happens to the other; and the context templates it fills."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conftest import fresh
from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from open_clip.transformer import PatchDropout
from test_baselines import SHORT
from torch import Tensor

from surefoot.data import Dataset, Images
from surefoot.errors import SettingError, UnknownNameError
from surefoot.heads import LinearHead
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.objective import Batch, Forward, Method
from surefoot.train import Training, batches, fit, loop, part, start_state
from surefoot.train.parameters import train_mode
from surefoot.train.reference import FrozenReference, context_templates

RANDOM7 = [
    "a good photo of a {}.", "the cartoon {}.", "a rendition of the {}.", "a photo of the dirty {}.",
    "a rendition of a {}.", "a plushie {}.", "a photo of my {}.",
]  # fmt: skip
"""What "random7" draws: every run that was ever made with it took these."""
COMPARING: list[tuple[str, dict[str, Any]]] = [("car_ft", {"contexts": "own"}), ("clip_cite", {})]
ALONE: list[tuple[str, dict[str, Any]]] = [
    ("tp_ft", {}), ("flyp", {}), ("arf", {}), ("car_ft", {"context_weight": 0.0}), ("clip_cite", {"distillation_weight": 0.0}),
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A batch as training makes it, `now` a model that has moved away from `before`, and what a term is given."""

    now: ImageTextModel
    before: ImageTextModel
    head: LinearHead
    batch: Batch
    reference: FrozenReference
    forward: Forward

    def value(self, method: Method) -> Tensor:
        """The method's loss."""
        objective = method.stages[0].objective
        return objective.total(objective.values(self.forward))

    def terms(self, method: Method) -> dict[str, float]:
        """Its parts without their weights, and the "total"."""
        objective = method.stages[0].objective
        values = objective.values(self.forward)
        return {name: float(tensor.detach()) for name, tensor in (values | {"total": objective.total(values)}).items()}

    @property
    def scale(self) -> float:
        """exp(logit_scale) of theta_0."""
        return math.exp(float(self.before.clip.logit_scale.detach()))

    def texts(self, name: str, model: ImageTextModel) -> Tensor:
        """The features of a text field, each text encoded by itself."""
        with torch.no_grad():
            return torch.cat([model.encode_text(self.batch.tokens[row : row + 1]) for row in self.batch.text[name].tolist()])

    def images(self, model: ImageTextModel) -> Tensor:
        """The features of the batch's images."""
        assert self.batch.image is not None
        with torch.no_grad():
            return model.encode_image(self.batch.image)


def move(model: ImageTextModel, amount: float = 0.05) -> None:
    """Noise on every parameter but the scale, which no method that compares trains."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.clip.named_parameters():
            if name != "logit_scale":
                parameter += amount * torch.randn(parameter.shape, generator=generator)


def make_case(model: ImageTextModel, data: Dataset, method: Method, training: Training = SHORT, *, moved: float = 0.05) -> Case:
    """The first batch of a run of the method."""
    before, images = fresh(model), Images(data.split("train").paths, model.preprocess_train, random=True)
    reference, pairs = FrozenReference(model, start_state(model, data), data), Images(data.anchors.images, model.preprocess_train)
    batch = next(iter(batches(data, images, model, training, needs=method.needs, pair_images=pairs)))
    move(model, moved)
    head = LinearHead(torch.randn(len(data.class_names), 16, generator=torch.Generator().manual_seed(2)), 2.0)
    return Case(model, before, head, batch, reference, Forward(model, head, batch, reference=reference))


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def built(monkeypatch: pytest.MonkeyPatch) -> list[FrozenReference]:
    """Every reference that a run builds, and what it is shown, in `seen`."""
    made: list[FrozenReference] = []

    class Watched(FrozenReference):
        def __init__(self, model: ImageTextModel, start: Mapping[str, Tensor], dataset: Dataset) -> None:
            super().__init__(model, start, dataset)
            self.seen: list[Tensor] = []
            made.append(self)

        def image(self, image: Tensor) -> Tensor:
            self.seen.append(image)
            return super().image(image)

    monkeypatch.setattr(loop, "FrozenReference", Watched)
    return made


@pytest.mark.parametrize(("name", "settings"), COMPARING)
def test_nothing_that_the_reference_gives_has_a_gradient(
    name: str, settings: dict[str, Any], tiny_model: ImageTextModel, tiny_data: Dataset
) -> None:
    case = make_case(tiny_model, tiny_data, method := get(name, settings))
    case.value(method).backward()
    given = [case.forward.reference_image, case.reference.contexts("own")]
    given += [case.forward.reference_text("prompt")] if name == "clip_cite" else []
    assert not any(tensor.requires_grad for tensor in given)
    assert case.forward.image.requires_grad
    assert case.now.clip.visual.proj.grad.any()
    parameters = list(case.reference._model.parameters())
    assert parameters
    assert not any(parameter.requires_grad for parameter in parameters)
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(("name", "settings"), COMPARING)
def test_reference_stays_theta_0_while_the_model_trains(
    name: str, settings: dict[str, Any], rank: int, tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, start, steps = built(monkeypatch), part(start_state(tiny_model, tiny_data), "model"), []

    def check(_: object) -> None:
        own = made[0]._model.clip.state_dict()  # names too: no low-rank update was attached to it
        assert list(own) == list(start)
        assert all(torch.equal(own[name], start[name]) for name in start)
        steps.append(not torch.equal(tiny_model.weights()["visual.transformer.resblocks.0.mlp.c_fc.weight"],
                                     start["visual.transformer.resblocks.0.mlp.c_fc.weight"]))  # fmt: skip

    fit(get(name, {**settings, "lora_rank": rank}), tiny_model, tiny_data, SHORT, on_step=check)
    assert len(made) == 1
    assert steps[-1]
    assert len(steps) == 3


def test_reference_is_the_start_that_is_given_not_what_the_model_is_now(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    before, start = fresh(tiny_model), start_state(tiny_model, tiny_data)
    move(tiny_model)
    image = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(FrozenReference(tiny_model, start, tiny_data).image(image), before.encode_image(image))
        assert not torch.allclose(tiny_model.encode_image(image), before.encode_image(image), atol=1e-3)


@pytest.mark.parametrize(("name", "settings"), COMPARING)
def test_reference_sees_the_crops_that_the_model_sees(
    name: str, settings: dict[str, Any], tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, seen, encode = built(monkeypatch), [], tiny_model.encode_image
    monkeypatch.setattr(tiny_model, "encode_image", lambda x: (seen.append(x) if tiny_model.training else None, encode(x))[1])
    fit(get(name, settings), tiny_model, tiny_data, SHORT)
    assert len(seen) == 3
    assert all(torch.equal(one, other) for one, other in zip(seen, made[0].seen, strict=True))
    plain = Images(tiny_data.split("train").paths, tiny_model.preprocess).batch(range(24))
    assert not all(any(torch.equal(crop, image) for image in plain) for crop in torch.cat(seen))  # they are crops


def test_reference_drops_nothing_while_the_model_does(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    tiny_model.clip.visual.patch_dropout = PatchDropout(0.5)
    train_mode(tiny_model)
    reference, image = FrozenReference(tiny_model, start_state(tiny_model, tiny_data), tiny_data), torch.randn(8, 3, 32, 32)
    train_mode(tiny_model)
    assert torch.equal(reference.image(image), reference.image(image))
    assert not torch.equal(tiny_model.encode_image(image), tiny_model.encode_image(image))


def test_texts_are_encoded_once_and_are_what_fresh_encodings_are(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    tokens = tiny_model.tokenize([template.replace("{}", name) for template in tiny_data.templates for name in tiny_data.class_names])
    reference = FrozenReference(tiny_model, start_state(tiny_model, tiny_data), tiny_data)
    with torch.no_grad():
        expected = torch.cat([tiny_model.encode_text(row[None]) for row in tokens])
    encoded, encode = [], reference._model.encode_text
    reference._model.encode_text = lambda x: (encoded.append(len(x)), encode(x))[1]  # type: ignore[method-assign]
    move(tiny_model)
    for rows in ([2, 2, 0], [0, 2], [5, 0, 1, 5], [4, 3, 2, 1]):
        torch.testing.assert_close(reference.text(torch.tensor(rows), tokens), expected[rows])
    assert encoded == [6]


def test_contexts_are_encoded_once_whatever_the_model_becomes(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    reference, encoded = FrozenReference(tiny_model, start_state(tiny_model, tiny_data), tiny_data), []
    encode = reference._model.encode_text
    reference._model.encode_text = lambda x: (encoded.append(len(x)), encode(x))[1]  # type: ignore[method-assign]
    first = reference.contexts("own").clone()
    move(tiny_model)
    assert torch.equal(reference.contexts("own"), first)
    assert reference.contexts("templates").shape == (3, 2, 16)
    assert not torch.allclose(reference.contexts("templates"), first, atol=1e-3)
    assert encoded == [6, 6]


def test_contexts_are_the_templates_filled_with_every_class(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    reference = FrozenReference(tiny_model, start_state(tiny_model, tiny_data), tiny_data)
    for c, name in enumerate(("bar", "square box", "disc")):
        for p, text in enumerate((f"a black {name}.", f"a red {name}.")):
            with torch.no_grad():
                torch.testing.assert_close(reference.contexts("own")[c, p], tiny_model.encode_text(tiny_model.tokenize([text]))[0])


@pytest.mark.parametrize(("name", "settings"), ALONE)
def test_no_reference_is_built_when_no_term_asks_for_it(
    name: str, settings: dict[str, Any], tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = built(monkeypatch)
    fit(get(name, settings), tiny_model, tiny_data, replace(SHORT, epochs=1))
    assert not made
    assert "reference" not in get(name, settings).needs


def test_sets_of_contexts_are_what_the_paper_took(tiny_data: Dataset) -> None:
    clip = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    assert context_templates("openai80", tiny_data) == clip
    assert len(set(clip)) == 80
    drawn = context_templates("random7", tiny_data)
    assert drawn == RANDOM7
    assert set(drawn) < set(clip)
    assert context_templates("searched7", tiny_data) == [template("{}") for template in SIMPLE_IMAGENET_TEMPLATES]
    assert len(set(context_templates("searched7", tiny_data)) & set(clip)) == 7
    assert list(context_templates("own", tiny_data)) == ["a black {}.", "a red {}."]
    assert list(context_templates("templates", tiny_data)) == ["a {}.", "a drawing of a {}."]


def test_random_contexts_do_not_depend_on_what_was_drawn_before(tiny_data: Dataset) -> None:
    import random

    random.seed(1)
    first = context_templates("random7", tiny_data)
    random.seed(2)
    assert context_templates("random7", tiny_data) == first
    assert context_templates("random7", replace(tiny_data, name="another")) == first


@pytest.mark.parametrize("contexts", [{}, {"black": "a black {}."}])
def test_own_contexts_that_tell_nothing_apart_are_an_error(contexts: dict[str, str], tiny_data: Dataset) -> None:
    with pytest.raises(SettingError, match=rf"shapes names {len(contexts)} contexts.*two or more.*dataset\.toml.*openai80"):
        context_templates("own", replace(tiny_data, contexts=contexts))


def test_unknown_set_of_contexts_is_an_error(tiny_data: Dataset) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'openai80'"):
        context_templates("openai8", tiny_data)
