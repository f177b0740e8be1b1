"""The baselines against their definitions: each loss by loops, each start, what is chosen and by what, and what stays as it was."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fresh
from torch import Tensor
from torch.nn import functional as F

from surefoot.data import Dataset
from surefoot.data.images import read_image
from surefoot.errors import SettingError
from surefoot.heads import LinearHead
from surefoot.methods import METHODS, get, l2_sp, wise_ft, zero_shot
from surefoot.metrics import Score
from surefoot.model import ImageTextModel
from surefoot.objective import Batch, Forward, Method, Moved, Objective
from surefoot.protocols import Judge
from surefoot.train import Training, batches, fit, loop, start_state
from surefoot.train.parameters import Moving, select
from surefoot.train.validate import Validation

SHORT = Training(epochs=1, batch_size=8, learning_rate=1e-2)
STILL = replace(SHORT, learning_rate=1e-20)  # no weight but one that is 0 moves by that
PROBE: dict[str, Any] = {"l2": (1e-2, 1e-4, 0.0), "head_epochs": 1}
TRAINED = [name for name in METHODS if name != "zero_shot"]


def features_of(model: ImageTextModel, data: Dataset, split: str) -> Tensor:
    """f(x) of a split, image after image, by nothing but the model's own preprocessing."""
    with torch.no_grad():
        return torch.cat([model.eval().encode_image(model.preprocess(read_image(path))[None]) for path in data.split(split).paths])


def changed(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> set[str]:
    assert list(start) == list(end)
    return {name for name in start if not torch.equal(start[name], end[name])}


def softmax_loss(logits: Tensor, label: int, smoothing: float = 0.0) -> float:
    """Cross-entropy of one row, from its definition."""
    row = [math.exp(float(z)) for z in logits.detach()]
    log_p = [math.log(value / sum(row)) for value in row]
    return -(1 - smoothing) * log_p[label] - smoothing * sum(log_p) / len(log_p)


def unequal(data: Dataset, counts: tuple[int, ...]) -> Dataset:
    """The first so many training images of each class."""
    train, rows = data.split("train"), []
    for label, count in enumerate(counts):
        rows += [row for row, one in enumerate(train.labels) if one == label][:count]
    short = replace(train, paths=tuple(train.paths[row] for row in rows), labels=tuple(train.labels[row] for row in rows))
    return replace(data, splits={**data.splits, "train": short})


# Where heads start


def test_ft_starts_from_random_directions_of_the_zero_shot_length(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    start = start_state(tiny_model, tiny_data)["head.weight"]
    heads = [fit(get("ft"), fresh(tiny_model), tiny_data, replace(STILL, seed=seed)).state["head.weight"] for seed in (0, 0, 1)]
    torch.testing.assert_close(heads[0].norm(dim=1), torch.full((3,), float(tiny_model.scale.detach())))
    assert torch.equal(heads[0], heads[1])
    for one, other in itertools.combinations([start, heads[0], heads[2]], 2):
        assert float(F.cosine_similarity(one, other, dim=1).max()) < 0.95


def test_tp_ft_and_l2_sp_start_from_the_text_prompts(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    start = start_state(tiny_model, tiny_data)["head.weight"]
    for name in ("tp_ft", "l2_sp"):
        assert torch.equal(fit(get(name), fresh(tiny_model), tiny_data, STILL).state["head.weight"], start)


def test_wise_ft_of_a_random_head_begins_at_the_zero_shot_model(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    start = start_state(tiny_model, tiny_data)
    text_head = start["head.weight"].clone()
    end = fit(get("ft"), tiny_model, tiny_data, SHORT, start=start).state
    zero = wise_ft(start, end, 0.0)
    assert not changed(start, zero)
    assert torch.equal(zero["head.weight"], text_head)  # fit changed nothing of what it was given
    assert not zero["head.bias"].any()
    assert "head.weight" in changed(start, end)


def spy_on_starts(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The head's weight when each stage begins."""
    heads: list[Tensor] = []

    def spy(stage: Any, model: ImageTextModel, head: LinearHead, *, seed: int = 0) -> Moving:  # noqa: ANN401
        heads.append(head.weight.detach().clone())
        return select(stage, model, head, seed=seed)

    monkeypatch.setattr(loop, "select", spy)
    return heads


def test_lp_ft_starts_from_the_very_head_that_lp_keeps(
    tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = fit(get("lp", PROBE), fresh(tiny_model), tiny_data, SHORT)
    heads = spy_on_starts(monkeypatch)
    tuned = fit(get("lp_ft", PROBE), fresh(tiny_model), tiny_data, SHORT)
    assert torch.equal(heads[1], probe.state["head.weight"])
    assert not torch.equal(heads[1], heads[0])
    assert tuned.choices == probe.choices
    assert [(row["stage"], row["epoch"]) for row in tuned.history] == [(1, 1), (2, 1)]
    assert tuned.num_steps == 3 * 3 + 3
    assert tuned.kept_epoch == 1


def test_lp_may_start_at_random(tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = spy_on_starts(monkeypatch)
    for head in ("zero_shot", "random"):
        fit(get("lp", {**PROBE, "head": head}), fresh(tiny_model), tiny_data, SHORT)
    assert torch.equal(heads[0], start_state(tiny_model, tiny_data)["head.weight"])
    assert not torch.allclose(heads[0], heads[1], atol=1e-2)


# LP


def test_lp_answers_unseen_classes_and_contexts_as_zero_shot(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    start = start_state(tiny_model, tiny_data)
    end = fit(get("lp", {"head_epochs": 30}), tiny_model, tiny_data, SHORT, start=start).state
    assert changed(start, end) == {"head.weight", "head.bias"}
    judge = Judge(tiny_model, tiny_data, start)
    probe, zero = (judge.judge(get(name), state).answers for name, state in (("lp", end), ("zero_shot", start)))
    same = [name for name in zero if name.startswith(("unseen/", "joint", "context", "agreement"))]
    assert len(same) >= 5
    for name in same:
        assert (probe[name].prediction == zero[name].prediction).all()
        assert (probe[name].confidence == zero[name].confidence).all()
    assert (probe["test"].confidence != zero["test"].confidence).any()


def test_lp_learns_from_features_of_images_as_they_are(
    tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources: list[Any] = []
    monkeypatch.setattr(
        loop, "batches", lambda data, source, *rest, **how: (sources.append(source), batches(data, source, *rest, **how))[1]
    )
    expected = features_of(tiny_model, tiny_data, "train")
    fit(get("lp", PROBE), tiny_model, tiny_data, SHORT)
    assert len(sources) == 3
    for source in sources:
        torch.testing.assert_close(source, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "chosen"),
    [((0.80, 0.89, 0.90), 1), ((0.5, 0.5, 0.9), 2), ((0.9, 0.9, 0.9), 0), ((0.88, 0.90, 0.89), 0), ((0.8, 0.9, 0.7), 1)],
)
def test_lp_keeps_the_strongest_penalty_within_one_standard_error(
    values: tuple[float, ...], chosen: int, tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    strengths = ("0.01", "0.0001", "0")
    alone = fit(get("lp", {**PROBE, "l2": (float(strengths[chosen]),)}), fresh(tiny_model), tiny_data, SHORT)
    weights: list[bytes] = []

    def scripted(self: Validation, head: LinearHead, features: Tensor) -> Score:
        if (weight := head.weight.detach().numpy().tobytes()) not in weights:  # one epoch each: one head each
            weights.append(weight)
        return Score(values[weights.index(weight)], 0.025)

    monkeypatch.setattr(Validation, "score", scripted)
    fitted = fit(get("lp", {**PROBE, "l2": (0.0, 1e-2, 1e-4)}), fresh(tiny_model), tiny_data, SHORT)
    assert fitted.choices == {"stage 1": f"l2={strengths[chosen]}"}
    assert [row["val"] for row in fitted.history] == [values[chosen]]
    assert fitted.history[0]["loss"] == alone.history[0]["loss"]
    assert not changed(alone.state, fitted.state)


def test_lp_has_no_penalty_but_its_own(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    heads = [
        fit(get("lp", {**PROBE, "l2": (strength,)}), fresh(tiny_model), tiny_data, replace(SHORT, weight_decay=decay)).state
        for strength, decay in [(0.0, 0.0), (0.0, 0.5), (1e-2, 0.0), (1e-2, 0.5)]
    ]
    assert not changed(heads[0], heads[1])
    assert not changed(heads[2], heads[3])
    assert float(heads[0]["head.weight"].norm()) > float(heads[2]["head.weight"].norm())


def test_interpolating_lp_with_zero_shot_averages_their_logits(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    start = start_state(tiny_model, tiny_data)
    end = fit(get("lp", {"head_epochs": 10}), tiny_model, tiny_data, SHORT, start=start).state
    features = features_of(tiny_model, tiny_data, "test")

    def logits(state: Mapping[str, Tensor]) -> Tensor:
        return features @ state["head.weight"].T + state["head.bias"]

    for alpha in (0.2, 0.5, 0.9):
        expected = (1 - alpha) * logits(start) + alpha * logits(end)
        torch.testing.assert_close(logits(wise_ft(start, end, alpha)), expected, rtol=0, atol=1e-5)
    assert float((logits(start) - logits(end)).abs().max()) > 0.1


# L2-SP


def test_l2_sp_is_cross_entropy_and_two_penalties(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    a, b, generator = 0.3, 0.02, torch.Generator().manual_seed(0)
    head = LinearHead(torch.randn(3, 16, generator=generator), 2.0)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([5.0, -1.0, 0.5]))
    now = {n: p for n, p in tiny_model.clip.named_parameters() if n.startswith("visual.")}
    start = {n: p.detach() + 0.1 * torch.randn(p.shape, generator=generator) for n, p in now.items()}
    moved = Moved({"visual": list(now.values()), "head": list(head.parameters())}, {"visual": list(start.values())})
    images = torch.randn(4, 3, 32, 32, generator=generator)
    forward = Forward(tiny_model, head, Batch(images, torch.tensor([0, 1, 2, 1]), {}, torch.zeros(0, 77)), moved)
    objective = l2_sp(pull=a, head_l2=b).stages[0].objective

    features = tiny_model.encode_image(images).detach()
    expected = sum(softmax_loss(head.weight @ f + head.bias, y) for f, y in zip(features, [0, 1, 2, 1], strict=True)) / 4
    for name, parameter in now.items():
        for theta, theta_0 in zip(parameter.detach().flatten().tolist(), start[name].flatten().tolist(), strict=True):
            expected += a / 2 * (theta - theta_0) ** 2
    expected += b / 2 * sum(w**2 for w in head.weight.detach().flatten().tolist())
    assert float(objective.total(objective.values(forward)).detach()) == pytest.approx(expected, rel=1e-5)


def test_l2_sp_without_its_penalties_is_tp_ft(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    ends = {
        pull: fit(l2_sp(pull=pull, head_l2=0.0), fresh(tiny_model), tiny_data, replace(SHORT, weight_decay=0.5)).state
        for pull in (0.0, 1.0)
    }
    plain = fit(get("tp_ft"), fresh(tiny_model), tiny_data, replace(SHORT, weight_decay=0.5)).state
    assert not changed(plain, ends[0.0])
    assert changed(plain, ends[1.0])


def test_l2_sp_pulls_to_where_the_model_started(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    start = start_state(tiny_model, tiny_data)
    distances = []
    for pull in (0.0, 100.0):
        training = Training(epochs=4, batch_size=8, learning_rate=1e-3, weight_decay=0.0, keep="last")
        end = fit(get("l2_sp", {"pull": pull, "layers": "visual[-1:]"}), fresh(tiny_model), tiny_data, training).state
        distances.append(math.sqrt(sum(float((end[n] - start[n]).square().sum()) for n in start if n.startswith("model."))))
    assert distances[1] < distances[0] / 2


@pytest.mark.parametrize(
    ("method", "decays"),
    [
        (get("tp_ft"), {"visual": 0.25, "head": 0.25}),
        (get("l2_sp"), {"visual": 0.0, "head": 0.0}),
        (l2_sp(pull=0.1, head_l2=0.0), {"visual": 0.0, "head": 0.25}),
        (l2_sp(pull=0.0, head_l2=0.1), {"visual": 0.25, "head": 0.0}),
        (get("lp", {"l2": (0.0,)}), {"head": 0.0}),
        (get("flyp"), {"visual": 0.25, "text": 0.25, "logit_scale": 0.25}),
    ],
    ids=["tp_ft", "l2_sp", "tower pulled", "head pulled", "lp", "flyp"],
)
def test_what_a_term_penalises_gets_no_weight_decay(
    method: Method, decays: dict[str, float], tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.AdamW] = []
    moving: list[Moving] = []
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, **how: (made.append(adamw(*args, **how)), made[-1])[1])
    monkeypatch.setattr(loop, "select", lambda *args, **how: (moving.append(select(*args, **how)), moving[-1])[1])
    fit(method, tiny_model, tiny_data, replace(SHORT, weight_decay=0.25))
    decay = {id(p): float(group["weight_decay"]) for group in made[0].param_groups for p in group["params"]}
    found = {group: {decay.pop(id(p)) for p in parameters.values()} for group, parameters in moving[0].groups.items()}
    assert found == {group: {value} for group, value in decays.items()}
    assert not decay


# FLYP-CE, smoothing, priors


def class_prompts(model: ImageTextModel, data: Dataset, training: Training) -> list[Batch]:
    features = torch.zeros(len(data.split("train")), 16)
    return list(batches(data, features, model, training, needs=("label", "class_prompt")))


def test_flyp_ce_draws_one_template_of_every_class_at_each_step(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    own = [
        [tuple(row) for row in tiny_model.tokenize([t.replace("{}", n) for t in tiny_data.templates]).tolist()]
        for n in tiny_data.class_names
    ]
    drawn = [
        [own[c].index(tuple(batch.tokens[row].tolist())) for c, row in enumerate(batch.text["class_prompt"].tolist())]
        for batch in class_prompts(tiny_model, tiny_data, Training(epochs=100, batch_size=8))
    ]
    assert all(len(templates) == 3 for templates in drawn)
    assert {tuple(templates) for templates in drawn} == set(itertools.product((0, 1), repeat=3))  # drawn for each class by itself
    assert abs(sum(map(sum, drawn)) / 900 - 0.5) < 0.06


@pytest.mark.parametrize(("smoothing", "tau"), [(0.0, 0.0), (0.2, 0.0), (0.0, 1.5), (0.2, 1.5)])
@pytest.mark.parametrize("name", ["flyp_ce", "tp_ft", "ft", "l2_sp", "lp_ft"])
def test_cross_entropies_by_loops(name: str, smoothing: float, tau: float, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    prior = torch.tensor([0.7, 0.2, 0.1])
    settings = {"label_smoothing": smoothing, "logit_adjustment": tau} | ({"pull": 0.0, "head_l2": 0.0} if name == "l2_sp" else {})
    (batch,) = class_prompts(tiny_model, tiny_data, Training(steps=1, batch_size=5))
    batch = replace(batch, feature=F.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(2)), dim=1))
    head = LinearHead(torch.randn(3, 16, generator=torch.Generator().manual_seed(1)), 2.0)
    with torch.no_grad():
        text = [tiny_model.encode_text(batch.tokens[row][None])[0] for row in batch.text["class_prompt"].tolist()]
        weight = torch.stack([math.exp(float(tiny_model.clip.logit_scale)) * g for g in text]) if name == "flyp_ce" else head.weight
    expected = 0.0
    for f, y in zip(batch.feature, batch.label.tolist(), strict=True):
        logits = torch.tensor([float(f @ weight[c].detach()) + tau * math.log(float(prior[c])) for c in range(3)])
        expected += softmax_loss(logits, y, smoothing) / 5
    for stage in get(name, settings).stages:
        objective = next(iter(stage.candidates.values()), stage.objective)
        value = objective.values(Forward(tiny_model, head, batch, log_prior=prior.log()))
        assert float(Objective(objective.terms[:1]).total(value).detach()) == pytest.approx(expected, rel=1e-5)


def test_prior_is_the_share_of_the_training_images(tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    priors: list[Tensor] = []
    monkeypatch.setattr(loop, "Forward", lambda *given, **named: (priors.append(given[4]), Forward(*given, **named))[1])
    fit(get("lp", PROBE), tiny_model, unequal(tiny_data, (8, 6, 2)), replace(SHORT, sampling="balanced"))
    torch.testing.assert_close(priors[0].exp(), torch.tensor([8 / 16, 6 / 16, 2 / 16]))


def test_class_without_training_images_does_not_make_the_loss_infinite(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    settings = {"label_smoothing": 0.1, "logit_adjustment": 1.0}
    fit(get("tp_ft", settings), tiny_model, unequal(tiny_data, (8, 8, 0)), SHORT)


def test_larger_adjustment_moves_answers_to_rare_classes(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    data, features, shares = unequal(tiny_data, (8, 8, 2)), features_of(tiny_model, tiny_data, "test"), []
    for tau in (0.0, 1.0, 4.0):
        settings = {"l2": (0.0,), "head_learning_rate": 0.02, "head_epochs": 10, "logit_adjustment": tau}
        head = fit(get("lp", settings), fresh(tiny_model), data, SHORT).state
        shares.append(float((features @ head["head.weight"].T + head["head.bias"]).softmax(1)[:, 2].mean()))
    assert shares[0] < shares[1] < shares[2]


@pytest.mark.parametrize(("sampling", "expected"), [("shuffled", [90, 9, 1]), ("balanced", [100 / 3] * 3)])
def test_balanced_sampling_draws_classes_alike(
    sampling: str, expected: list[float], tiny_model: ImageTextModel, tiny_data: Dataset
) -> None:
    labels = (0,) * 90 + (1,) * 9 + (2,)
    train = replace(tiny_data.split("train"), paths=(Path("x"),) * 100, labels=labels)
    data = replace(tiny_data, splits={**tiny_data.splits, "train": train})
    source = torch.arange(100.0)[:, None]
    drawn = list(batches(data, source, tiny_model, Training(epochs=60, batch_size=50, sampling=sampling), needs=()))  # type: ignore[arg-type]
    counts = torch.bincount(torch.cat([batch.label for batch in drawn])) / 60
    tolerance = 0 if sampling == "shuffled" else 6 * math.sqrt(100 * 2 / 9 / 60)  # six standard errors
    torch.testing.assert_close(counts, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=tolerance)
    for batch in drawn:
        assert batch.feature is not None
        assert batch.label.tolist() == [labels[int(row)] for row in batch.feature.flatten()]
    assert {int(row) for batch in drawn for row in batch.feature.flatten()} == set(range(100))  # type: ignore[union-attr]


def test_fewer_images_than_a_batch_still_make_a_step(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    data, sizes = unequal(tiny_data, (2, 1, 1)), []
    for name in ("flyp", "tp_ft"):
        fit(get(name), fresh(tiny_model), data, Training(epochs=2, batch_size=128), on_step=lambda step: sizes.append(step.num_images))
    fit(get("flyp"), tiny_model, unequal(tiny_data, (8, 0, 0)), Training(epochs=1, batch_size=8))  # a batch of one class
    assert sizes == [4] * 4


def test_settings_that_make_no_sense_are_refused() -> None:
    for name, settings, message in [
        ("lp", {"head_epochs": 0}, "head_epochs is 0"),
        ("lp_ft", {"head_learning_rate": 0.0}, "head_learning_rate is 0"),
        ("lp", {"l2": ()}, "l2 is"),
        ("lp", {"layers": "visual[-1:]"}, "lp trains head"),
        ("l2_sp", {"pull": -1.0}, "0 or more"),
        ("l2_sp", {"lora_rank": 2}, "lora_rank=0"),
        ("tp_ft", {"lora_rank": 2, "lora_alpha": 0.0}, "lora_alpha is 0"),
        ("tp_ft", {"lora_rank": -1}, "lora_rank is -1"),
        ("tp_ft", {"label_smoothing": 1.0}, "label_smoothing"),
    ]:
        with pytest.raises(SettingError, match=message):
            get(name, settings)


def test_zero_shot_trains_nothing(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    start = start_state(tiny_model, tiny_data)
    fitted = fit(zero_shot(), tiny_model, tiny_data, SHORT)
    assert not changed(start, fitted.state)
    assert (fitted.num_steps, fitted.kept_epoch, list(fitted.history)) == (0, 0, [])
