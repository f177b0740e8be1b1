"""CAR-FT against its equations: the context distribution of every set of templates by loops, what gets its gradient, and its limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import fresh
from test_baselines import SHORT, softmax_loss
from test_reference import RANDOM7, Case, dot, make_case
from torch import Tensor

from surefoot import losses
from surefoot.data import Dataset
from surefoot.errors import SettingError
from surefoot.methods import car_ft, get
from surefoot.model import ImageTextModel, templates_named
from surefoot.train import fit, preflight

TEMPLATES: dict[str, Sequence[str]] = {
    "openai80": templates_named("openai80"),
    "random7": RANDOM7,
    "searched7": templates_named("simple7"),
    "own": ["a black {}.", "a red {}."],
    "templates": ["a {}.", "a drawing of a {}."],
}
NAMES = ("bar", "square box", "disc")


def softmax(logits: Sequence[float]) -> list[float]:
    row = [math.exp(z) for z in logits]
    return [value / sum(row) for value in row]


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def prompts(model: ImageTextModel, templates: Sequence[str]) -> Tensor:
    """W[c, p] of theta_0 [K, P, D], class after class."""
    with torch.no_grad():
        return torch.stack([model.encode_text(model.tokenize([t.replace("{}", name) for t in templates])) for name in NAMES])


def context_heads(case: Case, templates: Sequence[str], *, of_class: bool) -> Tensor:
    """The context head of every image [B, P, D]: eq. 2, or the prompts of its own class."""
    embedded = prompts(case.before, templates)
    if of_class:
        return torch.stack([embedded[label] for label in case.batch.label.tolist()])
    mean = embedded.sum(0) / len(NAMES)
    return torch.stack([mean / mean.square().sum(1, keepdim=True).sqrt()] * len(case.batch.label))


def distributions(case: Case, model: ImageTextModel, heads: Tensor, scale: float) -> list[list[float]]:
    """p_ctx(x; theta) of every image, eqs. 3 and 4."""
    images = case.images(model).tolist()
    return [softmax([scale * dot(image, w) for w in head]) for image, head in zip(images, heads.tolist(), strict=True)]


def classified(case: Case) -> float:
    """CE(W_f^T f(x), y)."""
    logits = case.images(case.now) @ case.head.weight.T + case.head.bias
    rows = zip(logits, case.batch.label.tolist(), strict=True)
    return sum(softmax_loss(row, label) for row, label in rows) / len(logits)


@pytest.mark.parametrize("of_class", [False, True])
@pytest.mark.parametrize("contexts", TEMPLATES)
def test_objective_is_equation_6_for_every_set_of_contexts(
    contexts: str, of_class: bool, tiny_model: ImageTextModel, tiny_data: Dataset
) -> None:
    method = get("car_ft", {"contexts": contexts, "class_contexts": of_class, "context_weight": 1.5})
    case = make_case(tiny_model, tiny_data, method)
    heads = context_heads(case, TEMPLATES[contexts], of_class=of_class)
    before, now = (distributions(case, model, heads, case.scale) for model in (case.before, case.now))
    pull, reverse = (sum(map(kl, one, other)) / 8 for one, other in ((before, now), (now, before)))
    terms = case.terms(method)
    assert terms["context_kl"] == pytest.approx(pull, rel=1e-3)
    assert pull != pytest.approx(reverse, rel=1e-2)
    assert terms["cross_entropy"] == pytest.approx(classified(case), rel=1e-4)
    assert terms["total"] == pytest.approx(terms["cross_entropy"] + 1.5 * terms["context_kl"], rel=1e-6)


def test_weight_is_1_and_the_contexts_are_clips_80_by_default(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    case = make_case(tiny_model, tiny_data, car_ft())
    explicit = car_ft(context_weight=1.0, contexts="openai80", class_contexts=False, divergence="kl")
    assert torch.equal(case.value(car_ft()), case.value(explicit))
    assert not torch.equal(case.value(car_ft()), case.value(car_ft(context_weight=0.5)))


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_scale_that_is_given_stands_for_the_pre_trained_one(scale: float, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    method = car_ft(contexts="own", context_scale=scale)
    case = make_case(tiny_model, tiny_data, method)
    heads = context_heads(case, TEMPLATES["own"], of_class=False)
    before, now = (distributions(case, model, heads, scale) for model in (case.before, case.now))
    pull = sum(map(kl, before, now)) / 8
    assert case.terms(method)["context_kl"] == pytest.approx(pull, rel=1e-3, abs=1e-6)
    assert pull > 1e-5


@pytest.mark.parametrize("of_class", [False, True])
def test_mmd_is_the_kernel_distance_of_the_context_distributions(of_class: bool, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    method = car_ft(contexts="searched7", divergence="mmd", class_contexts=of_class)
    case = make_case(tiny_model, tiny_data, method)
    heads = context_heads(case, TEMPLATES["searched7"], of_class=of_class)
    pull, places = 0.0, range(7)
    before, now = (distributions(case, model, heads, case.scale) for model in (case.before, case.now))
    for p_0, p, head in zip(before, now, heads.tolist(), strict=True):
        apart = [[sum((x - y) ** 2 for x, y in zip(head[a], head[b], strict=True)) for b in places] for a in places]
        width = sum(map(sum, apart)) / (7 * 6)
        moved = [x - y for x, y in zip(p, p_0, strict=True)]
        pull += sum(moved[a] * moved[b] * math.exp(-apart[a][b] / (2 * width)) for a in places for b in places) / 8
    assert case.terms(method)["context_mmd"] == pytest.approx(pull, rel=1e-3)
    assert pull > 1e-5


@pytest.mark.parametrize("of_class", [False, True])
def test_wasserstein_is_over_the_contexts_of_theta_0(of_class: bool, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    method = car_ft(contexts="searched7", divergence="wasserstein", class_contexts=of_class)
    case = make_case(tiny_model, tiny_data, method)
    heads = context_heads(case, TEMPLATES["searched7"], of_class=of_class)
    pull = float(losses.context_wasserstein(case.images(case.now), case.images(case.before), heads, case.scale))
    assert case.terms(method)["context_wasserstein"] == pytest.approx(pull, rel=1e-3)
    assert pull > 1e-5


@pytest.mark.parametrize("divergence", ["kl", "mmd", "wasserstein"])
def test_pull_reaches_the_image_tower_alone(divergence: str, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    method = get("car_ft", {"contexts": "own", "divergence": divergence})
    case = make_case(tiny_model, tiny_data, method)
    pull = next(term for term in method.stages[0].objective.terms if term.name == f"context_{divergence}")
    pull.function(case.forward).backward()
    groups = case.now.groups()
    reached = {name for name, parameter in case.now.clip.named_parameters() if parameter.grad is not None}
    assert reached == set(groups["visual"])
    assert case.head.weight.grad is None
    assert method.stages[0].trains == ("visual", "head")


def test_pull_is_nothing_before_the_first_step(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    method = car_ft(contexts="own")
    case = make_case(tiny_model, tiny_data, method, moved=0.0)
    assert case.terms(method)["context_kl"] == pytest.approx(0, abs=1e-6)


def test_pull_holds_the_context_distribution_where_it_was(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    apart = {}
    for weight in (0.0, 10.0):
        model, method = fresh(tiny_model), car_ft(contexts="own", context_weight=weight)
        fit(method, model, tiny_data, replace(SHORT, epochs=3, keep="last"))
        case = make_case(fresh(tiny_model), tiny_data, car_ft(contexts="own"))
        heads = context_heads(case, TEMPLATES["own"], of_class=False)
        before, now = (distributions(case, one, heads, 14.0) for one in (case.before, model))
        apart[weight] = sum(map(kl, before, now))
    assert apart[10.0] < 0.5 * apart[0.0]


@pytest.mark.parametrize("settings", [{}, {"contexts": "own"}, {"label_smoothing": 0.1, "logit_adjustment": 1.0}])
def test_without_the_pull_it_is_tp_ft_bit_for_bit(settings: dict[str, Any], tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    shared = {key: value for key, value in settings.items() if key != "contexts"}
    without = replace(tiny_data, contexts={}, id_context=None)  # what it would need is not needed then
    training = replace(SHORT, epochs=2, keep="last")
    ends = [
        fit(get(name, given), fresh(tiny_model), without, training).state
        for name, given in (("car_ft", {**settings, "context_weight": 0.0}), ("tp_ft", shared), ("car_ft", {"contexts": "templates"}))
    ]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert not torch.equal(ends[2]["model.visual.proj"], ends[1]["model.visual.proj"])


def test_missing_contexts_are_told_before_anything_is_computed(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    with pytest.raises(SettingError) as error:
        preflight(get("car_ft", {"contexts": "own"}), tiny_model, replace(tiny_data, contexts={}), SHORT)
    assert str(error.value).startswith("car_ft cannot run: contexts is 'own', and shapes names 0 contexts")
    assert "dataset.toml under [contexts], or set contexts to openai80." in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_weight": -1.0}, "context_weight is -1.0"),
        ({"context_scale": 0.0}, "context_scale 0.0"),
        ({"contexts": "openai8"}, "contexts is 'openai8'; it must be one of openai80, random7, searched7, own, templates"),
        ({"divergence": "js"}, "one of kl, mmd, wasserstein"),
        ({"context_wieght": 1.0}, "Did you mean 'context_weight'"),
    ],
)
def test_settings_that_do_not_fit_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as error:
        get("car_ft", settings)
    assert message in str(error.value)
