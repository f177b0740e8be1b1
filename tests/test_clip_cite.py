"""CLIP-CITE against its equations: three losses by loops, which tower each one moves, its ablations and its limits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import fresh
from test_arf import contrast
from test_baselines import SHORT, changed, softmax_loss
from test_car_ft import kl, softmax
from test_reference import Case, dot, make_case
from torch import Tensor

from surefoot.data import Dataset
from surefoot.data.images import Images, read_image
from surefoot.data.subsets import take
from surefoot.errors import SettingError
from surefoot.heads import class_weight, prompt_embeddings
from surefoot.methods import clip_cite, flyp, get, wise_ft
from surefoot.model import ImageTextModel
from surefoot.objective import Method
from surefoot.prompts import PromptTable
from surefoot.protocols import Judge
from surefoot.train import Training, batches, fit, part, select, start_state

ALONE = {
    "cross_entropy": {"contrastive_weight": 0.0, "distillation_weight": 0.0},
    "supervised_contrastive": {"alignment_weight": 0.0, "contrastive_weight": 0.5, "distillation_weight": 0.0},
    "similarity_distillation": {"alignment_weight": 0.0, "contrastive_weight": 0.0, "distillation_weight": 1.0},
}
LAST = replace(SHORT, epochs=2, keep="last")


def similarities(case: Case, model: ImageTextModel, text: str) -> list[list[float]]:
    """p of eq. 5: for every image a distribution over the texts of the batch."""
    texts = case.texts(text, model).tolist()
    return [softmax([case.scale * dot(image, one) for one in texts]) for image in case.images(model).tolist()]


def alignment(case: Case) -> float:
    """L_DVA."""
    rows = zip(case.images(case.now) @ case.head.weight.T + case.head.bias, case.batch.label.tolist(), strict=True)
    return sum(softmax_loss(row, label) for row, label in rows) / len(case.batch.label)


@pytest.mark.parametrize(("single", "text"), [(False, "prompt"), (True, "first_prompt")])
def test_objective_is_equation_6(single: bool, text: str, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    method = clip_cite(alignment_weight=3.0, contrastive_weight=0.5, distillation_weight=0.25, single_template=single)
    case = make_case(tiny_model, tiny_data, method)
    now, before = (similarities(case, model, text) for model in (case.now, case.before))
    label = case.batch.label.tolist()
    assert len(set(label)) < len(label)
    expected = {
        "cross_entropy": alignment(case),
        "supervised_contrastive": contrast(case.images(case.now), case.texts(text, case.now), case.scale, label),
        "similarity_distillation": sum(map(kl, now, before)) / 8,
    }
    terms = case.terms(method)
    for name, value in expected.items():
        assert terms[name] == pytest.approx(value, rel=1e-3), name
    total = 3.0 * terms["cross_entropy"] + 2 * 0.5 * terms["supervised_contrastive"] + 0.25 * terms["similarity_distillation"]
    assert terms["total"] == pytest.approx(total, rel=1e-6)
    assert list(case.batch.text) == [text]


def test_lambda_is_07_and_eta_01(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    terms = make_case(tiny_model, tiny_data, clip_cite()).terms(clip_cite())
    total = terms["cross_entropy"] + 2 * 0.7 * terms["supervised_contrastive"] + 0.1 * terms["similarity_distillation"]
    assert terms["total"] == pytest.approx(total, rel=1e-6)
    assert clip_cite().finish == 0.5


def test_distillation_is_in_the_printed_order_unless_reversed(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    case = make_case(tiny_model, tiny_data, clip_cite())
    now, before = (similarities(case, model, "prompt") for model in (case.now, case.before))
    printed, reverse = sum(map(kl, now, before)) / 8, sum(map(kl, before, now)) / 8
    assert printed != pytest.approx(reverse, rel=1e-2)
    assert case.terms(clip_cite())["similarity_distillation"] == pytest.approx(printed, rel=1e-3)
    assert case.terms(clip_cite(reverse_distillation=True))["similarity_distillation"] == pytest.approx(reverse, rel=1e-3)


def test_printed_contrast_leaves_the_positive_out(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    case = make_case(tiny_model, tiny_data, clip_cite())
    z = (case.scale * case.images(case.now) @ case.texts("prompt", case.now).T).tolist()
    label, total = case.batch.label.tolist(), 0.0
    for i in range(8):
        others = [j for j in range(8) if label[j] != label[i]]
        total -= z[i][i] - (math.log(sum(math.exp(z[i][j]) for j in others)) + math.log(sum(math.exp(z[j][i]) for j in others))) / 2
    printed = clip_cite(positive_in_denominator=False)
    assert case.terms(printed)["supervised_contrastive"] == pytest.approx(total / 8, rel=1e-3, abs=1e-5)


def gradients(case: Case, method: Method, name: str) -> dict[str, Tensor | None]:
    """{parameter: the gradient of one term by it, None if there is none} of model and head, all of which may have one."""
    term = next(term for term in method.stages[0].objective.terms if term.name == name)
    named = {**dict(case.now.clip.named_parameters()), "head.weight": case.head.weight, "head.bias": case.head.bias}
    return dict(zip(named, torch.autograd.grad(term.function(case.forward), list(named.values()), allow_unused=True), strict=True))


def test_alignment_moves_the_image_tower_and_w_alone(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    found = gradients(make_case(tiny_model, tiny_data, clip_cite()), clip_cite(), "cross_entropy")
    assert {name for name, gradient in found.items() if gradient is not None} == {
        *tiny_model.groups()["visual"], "head.weight", "head.bias",
    }  # fmt: skip
    assert found["visual.proj"].any()
    assert found["head.weight"].any()


@pytest.mark.parametrize("name", ["supervised_contrastive", "similarity_distillation"])
def test_contrast_and_distillation_move_both_towers_and_not_w(name: str, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    found = gradients(make_case(tiny_model, tiny_data, clip_cite()), clip_cite(), name)
    assert all(found[parameter] is not None for parameter in tiny_model.groups()["visual"] + tiny_model.groups()["text"])
    assert found["text_projection"].any()
    assert found["visual.proj"].any()
    assert found["head.weight"] is found["head.bias"] is None


@pytest.mark.parametrize(
    ("settings", "trains"),
    [
        ({}, {"visual", "text", "head"}),
        ({"frozen": "nothing"}, {"visual", "text", "head"}),
        ({"frozen": "classifier"}, {"visual", "text"}),
        ({"frozen": "text"}, {"visual", "head"}),
        ({"alignment_weight": 0.0}, {"visual", "text"}),
        (ALONE["cross_entropy"], {"visual", "head"}),
        (ALONE["supervised_contrastive"], {"visual", "text"}),
        (ALONE["similarity_distillation"], {"visual", "text"}),
    ],
)
def test_groups_that_move(settings: dict[str, Any], trains: set[str], tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    method, start = get("clip_cite", settings), start_state(tiny_model, tiny_data)
    assert method.trains == trains
    case = make_case(fresh(tiny_model), tiny_data, method)
    moving = select(method.stages[0], case.now, case.head)
    assert set(moving.groups) == trains
    assert not case.now.clip.logit_scale.requires_grad
    case.value(method).backward()
    assert all(parameter.grad is not None for parameter in moving.named.values())
    assert ("head" in trains) == (case.head.weight.grad is not None)
    end = fit(method, tiny_model, tiny_data, replace(LAST, learning_rate=1e-3)).state
    moved = changed(start, end)
    assert ("model.text_projection" in moved) == ("text" in trains)
    if settings != ALONE["similarity_distillation"]:  # which is at its optimum there
        assert "model.visual.proj" in moved
    assert "model.logit_scale" not in moved


@pytest.mark.parametrize("name", ALONE)
def test_each_loss_alone_is_that_loss(name: str, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    method = get("clip_cite", ALONE[name])
    case = make_case(tiny_model, tiny_data, method)
    terms = case.terms(method)
    assert set(terms) == {name, "total"}
    assert terms["total"] == terms[name] == pytest.approx(make_whole(case)[name])
    wanted = {"cross_entropy": set(), "supervised_contrastive": {"prompt"}, "similarity_distillation": {"prompt", "reference"}}
    assert method.needs - {"image", "label"} == wanted[name]


def make_whole(case: Case) -> dict[str, float]:
    """All three losses of a batch, or those whose texts it holds."""
    whole = clip_cite() if case.batch.text else get("clip_cite", ALONE["cross_entropy"])
    return case.terms(whole)


def test_classifier_starts_at_the_text_embeddings_and_frozen_it_stays_there(
    tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surefoot.train import loop

    seen: list[tuple[Tensor, Tensor]] = []
    real = loop._Run.step

    def step(self: Any, *given: Any) -> float:  # noqa: ANN401
        before = self.head.weight.detach().clone()
        value = real(self, *given)
        seen.append((before, self.head.weight.detach().clone()))
        return value

    monkeypatch.setattr(loop._Run, "step", step)
    start = start_state(tiny_model, tiny_data)["head.weight"]
    for frozen in ("nothing", "classifier"):
        seen.clear()
        fit(clip_cite(frozen=frozen), fresh(tiny_model), tiny_data, SHORT)
        assert torch.equal(seen[0][0], start)
        assert torch.equal(seen[-1][1], start) == (frozen == "classifier")


def test_text_head_answers_before_and_after_the_merge(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    method, start = clip_cite(), start_state(tiny_model, tiny_data)
    end = fit(method, tiny_model, tiny_data, LAST).state
    judge = Judge(fresh(tiny_model), tiny_data, start)
    for alpha in (1.0, 0.5):
        merged = wise_ft(start, end, alpha)
        tiny_model.load_weights(part(merged, "model"))
        with torch.no_grad():
            head = class_weight(prompt_embeddings(tiny_model, PromptTable.build(tiny_data.templates, tiny_data.class_names)))
            images = torch.stack([tiny_model.preprocess(read_image(path)) for path in tiny_data.split("test").paths])
            probability = (tiny_model.scale * tiny_model.encode_image(images) @ head.T).softmax(1).max(1).values
        if alpha == 1.0:
            torch.testing.assert_close(end["head.weight"], tiny_model.scale.detach() * head)
        for state in (merged, {**merged, "head.weight": torch.randn(3, 16)}):  # whatever W is
            confidence = torch.from_numpy(judge.judge(method, state).answers["test"].confidence)
            torch.testing.assert_close(confidence, probability, atol=1e-5, rtol=0)


def test_validation_asks_the_text_head(tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from surefoot.train.validate import Validation

    asked, score = [], Validation.score
    monkeypatch.setattr(Validation, "score", lambda self, head, f: (asked.append(head.weight.detach().clone()), score(self, head, f))[1])
    fit(clip_cite(), tiny_model, tiny_data, replace(SHORT, keep="last"))
    assert torch.equal(asked[-1], start_state(tiny_model, tiny_data)["head.weight"])


def test_alignment_alone_has_the_towers_of_tp_ft_bit_for_bit(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    ours = fit(get("clip_cite", ALONE["cross_entropy"]), fresh(tiny_model), tiny_data, LAST).state
    theirs = fit(get("tp_ft"), fresh(tiny_model), tiny_data, LAST).state
    whole = fit(clip_cite(), fresh(tiny_model), tiny_data, LAST).state
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items() if name.startswith("model."))
    assert not torch.equal(whole["model.visual.proj"], theirs["model.visual.proj"])
    assert not torch.equal(ours["head.weight"], theirs["head.weight"])  # it answers by its text head


def one_of_each(data: Dataset) -> Dataset:
    """One training image of each class, so that no batch holds a class twice."""
    train = data.split("train")
    return replace(data, splits={**data.splits, "train": take(train, [train.labels.index(label) for label in range(3)])})


def test_contrast_alone_without_repeated_classes_is_flyp_with_a_frozen_scale(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    training = Training(steps=4, batch_size=3, learning_rate=1e-2, keep="last")
    theirs = replace(flyp(), stages=(replace(flyp().stages[0], trains=("visual", "text")),))
    for data, same in ((one_of_each(tiny_data), True), (tiny_data, False)):
        ends = [fit(one, fresh(tiny_model), data, training).state for one in (get("clip_cite", ALONE["supervised_contrastive"]), theirs)]
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0]) == same


def test_batch_of_one_class_is_no_crash(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    train = tiny_data.split("train")
    data = replace(tiny_data, splits={**tiny_data.splits, "train": take(train, range(8))})
    images = Images(data.split("train").paths, tiny_model.preprocess_train, random=True)
    assert set(next(iter(batches(data, images, tiny_model, SHORT))).label.tolist()) == {0}
    for keep in (True, False):
        end = fit(clip_cite(positive_in_denominator=keep), fresh(tiny_model), data, SHORT).state
        assert all(torch.isfinite(tensor).all() for tensor in end.values() if tensor.is_floating_point())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contrastive_weight": -0.1}, "'contrastive_weight': -0.1"),
        ({"alignment_weight": 0.0, "contrastive_weight": 0.0, "distillation_weight": 0.0}, "one of them above 0"),
        ({"frozen": "image"}, "one of nothing, classifier, text"),
    ],
)
def test_settings_that_do_not_fit_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as error:
        get("clip_cite", settings)
    assert message in str(error.value)
