"""The contract over every method, and the loop: what moves, what stays bit-identical, what a seed determines."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from surefoot import losses
from surefoot.data import Dataset, Images
from surefoot.errors import SettingError, TrainingError, UnknownNameError
from surefoot.heads import LinearHead, class_weight, prompt_embeddings
from surefoot.methods import METHODS, get, wise_ft
from surefoot.model import ImageTextModel, load_model
from surefoot.objective import Batch, Forward, Method, Objective, Stage, Term
from surefoot.prompts import PromptTable
from surefoot.train import Step, Training, batches, fit, part, preflight, schedule, select, start_state

SHORT = Training(epochs=1, batch_size=8, learning_rate=1e-2)
TRAINED = [name for name in METHODS if name != "zero_shot"]


@pytest.mark.parametrize("name", TRAINED)
def test_exactly_the_declared_groups_change(name: str, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    method, start, losses_seen = get(name), start_state(tiny_model, tiny_data), []
    end = fit(method, tiny_model, tiny_data, SHORT, start=start, on_step=lambda step: losses_seen.append(step)).state
    assert len([step for step in losses_seen if not step.cached]) == (0 if name == "lp" else 3)
    assert losses_seen[-1].number == losses_seen[-1].total == len(losses_seen)
    groups = {**{g: [f"model.{n}" for n in names] for g, names in tiny_model.groups().items()}, "head": ["head.weight", "head.bias"]}
    for group, names in groups.items():
        changed = [n for n in names if not torch.equal(start[n], end[n])]
        if group == "head" and method.predict == "text":
            assert changed == ["head.weight"]  # rebuilt from the text tower, also where a trained one helped it; bias stays 0
        elif group in method.trains:
            unused = {n for n in names if "token_embedding" in n or "positional" in n}  # rows that no prompt uses
            assert set(names) - unused <= set(changed), (group, set(names) - set(changed))
        else:
            assert not changed, (group, changed)


@pytest.mark.parametrize("name", TRAINED)
def test_same_seed_same_weights_and_another_seed_others(name: str, tiny_folder: str, tiny_data: Dataset) -> None:
    ends = [
        fit(get(name), load_model(f"local-dir:{tiny_folder}"), tiny_data, Training(epochs=1, batch_size=8, seed=seed)).state
        for seed in (3, 3, 4)
    ]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert not all(torch.equal(ends[0][key], ends[2][key]) for key in ends[0])


@pytest.mark.parametrize("name", TRAINED)
def test_wise_ft_ends_are_the_two_models(name: str, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    start = start_state(tiny_model, tiny_data)
    end = fit(get(name), tiny_model, tiny_data, SHORT).state
    assert all(torch.equal(wise_ft(start, end, 0.0)[key], start[key]) for key in start)
    assert all(torch.equal(wise_ft(start, end, 1.0)[key], end[key]) for key in start)
    half = wise_ft(start, end)
    torch.testing.assert_close(half["head.weight"], (start["head.weight"] + end["head.weight"]) / 2)
    assert torch.equal(half["model.visual.proj"], start["model.visual.proj"]) == ("visual" not in get(name).trains)


def forward_of(model: ImageTextModel, data: Dataset, head: LinearHead) -> tuple[Forward, Batch]:
    images = Images(data.split("train").paths, model.preprocess_train, random=True)
    batch = next(iter(batches(data, images, model, SHORT)))
    return Forward(model, head, batch), batch


def test_tp_ft_minimises_cross_entropy_of_the_head(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    head = LinearHead(torch.randn(3, 16), 2.0)
    forward, batch = forward_of(tiny_model, tiny_data, head)
    objective = get("tp_ft").stages[0].objective
    expected = losses.cross_entropy(tiny_model.encode_image(batch.image) @ head.weight.T + head.bias, batch.label)
    torch.testing.assert_close(objective.total(objective.values(forward)), expected)


def test_flyp_contrasts_images_with_prompts_of_their_own_classes(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    forward, batch = forward_of(tiny_model, tiny_data, LinearHead(torch.randn(3, 16), 2.0))
    objective = get("flyp").stages[0].objective
    text = torch.cat([tiny_model.encode_text(batch.tokens[row : row + 1]) for row in batch.text["prompt"].tolist()])
    expected = losses.contrastive(tiny_model.encode_image(batch.image), text, tiny_model.clip.logit_scale.exp())
    torch.testing.assert_close(objective.total(objective.values(forward)), expected)
    own = [
        {tuple(row) for row in tiny_model.tokenize([t.replace("{}", n) for t in tiny_data.templates]).tolist()}
        for n in tiny_data.class_names
    ]
    for row, label in zip(batch.text["prompt"].tolist(), batch.label.tolist(), strict=True):
        assert tuple(batch.tokens[row].tolist()) in own[label]


def test_each_tower_runs_once_however_many_terms_ask(
    tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    forward, _ = forward_of(tiny_model, tiny_data, LinearHead(torch.randn(3, 16), 2.0))
    encode_image, encode_text = tiny_model.encode_image, tiny_model.encode_text
    monkeypatch.setattr(tiny_model, "encode_image", lambda x: (calls.append(len(x)), encode_image(x))[1])
    monkeypatch.setattr(tiny_model, "encode_text", lambda x: (calls.append(len(x)), encode_text(x))[1])
    both = get("tp_ft").stages[0].objective + get("flyp").stages[0].objective
    both.total(both.values(forward))
    assert calls[0] == 8
    assert len(calls) == 2
    assert calls[1] <= 6  # 3 classes, 2 templates: distinct prompts only


def test_terms_are_weighted_and_a_weight_of_zero_is_not_computed(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    def fails(forward: Forward) -> Tensor:
        raise AssertionError

    one, two = (Term(f"t{k}", lambda f, k=k: torch.tensor(float(k)), frozenset()) for k in (1, 2))
    objective = 3 * one + 0.5 * two + 0 * Term("never", fails, frozenset())
    forward, _ = forward_of(tiny_model, tiny_data, LinearHead(torch.randn(3, 16), 2.0))
    assert float(objective.total(objective.values(forward))) == 4.0


def test_terms_of_one_name_are_refused() -> None:
    term = Term("same", lambda f: torch.tensor(0.0), frozenset())
    with pytest.raises(SettingError, match="distinct"):
        term + term


def test_schedule_climbs_and_falls_to_zero() -> None:
    values = [schedule(step, 100, 10) for step in range(101)]
    assert values[9] == values[10] == 1
    assert values[0] == pytest.approx(0.1)
    assert values[55] == pytest.approx(0.5)
    assert values[100] == pytest.approx(0)


def test_every_image_is_seen_once_an_epoch_and_nothing_of_another_split(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    images = Images(tiny_data.split("train").paths, tiny_model.preprocess_train, random=True)
    seen: list[int] = []
    batch = images.batch
    images.batch = lambda rows, seeds: (seen.extend(rows), batch(rows, seeds))[1]  # type: ignore[method-assign]
    labels = torch.cat([b.label for b in batches(tiny_data, images, tiny_model, SHORT)])
    assert sorted(seen) == list(range(24))
    assert labels.tolist() == [tiny_data.split("train").labels[row] for row in seen]
    assert all("train" in path.parts for path in images.paths)


def test_groups_that_a_stage_does_not_train_get_no_gradient(tiny_model: ImageTextModel) -> None:
    head = LinearHead(torch.randn(3, 16), 1.0)
    moving = select(get("tp_ft").stages[0], tiny_model, head)
    assert {id(p) for p in moving.named.values()} == {id(p) for p in [*tiny_model.clip.visual.parameters(), *head.parameters()]}
    assert {id(p) for p in moving.named.values()} == {id(p) for p in [*tiny_model.parameters(), *head.parameters()] if p.requires_grad}
    moving = select(get("flyp").stages[0], tiny_model, head)
    assert {id(p) for p in moving.named.values()} == {id(p) for p in tiny_model.clip.parameters()}


def test_loss_that_is_not_finite_stops_with_what_to_do(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    nan = Stage(
        objective=Objective((Term("nan", lambda f: f.image.sum() * float("nan"), frozenset({"image"})),)),
        trains=("visual",),
        head="from_text",
    )
    with pytest.raises(TrainingError, match="Lower the learning rate"):
        fit(Method(name="nan", stages=(nan,), predict="text"), tiny_model, tiny_data, SHORT)


def test_preflight_reports_all_problems_together(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    stage = Stage(
        objective=Objective((Term("t", lambda f: f.image.sum(), frozenset({"depth"})),)), trains=("visual[9:]",), head="from_text"
    )
    with pytest.raises(SettingError) as error:
        preflight(Method(name="wrong", stages=(stage,), predict="text"), tiny_model, tiny_data, Training())
    assert all(part in str(error.value) for part in ("depth", "visual[9:]", "2 blocks"))


def test_settings_out_of_range_are_reported_together() -> None:
    with pytest.raises(SettingError) as error:
        Training(epochs=0, learning_rate=-1, warmup_share=2)
    assert all(name in str(error.value) for name in ("epochs", "learning_rate", "warmup_share"))


def test_unknown_group_and_method_name_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'visual'"):
        Stage(objective=Objective(()), trains=("visula",), head="keep")
    with pytest.raises(UnknownNameError, match="Did you mean 'flyp'"):
        get("flip")


def test_steps_are_told(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    steps: list[Step] = []
    fit(get("tp_ft"), tiny_model, tiny_data, Training(epochs=2, batch_size=8), on_step=steps.append)
    assert [step.number for step in steps] == [1, 2, 3, 4, 5, 6]
    assert {step.total for step in steps} == {6}
    assert set(part({"head.a": torch.ones(1), "model.b": torch.ones(1)}, "head")) == {"a"}


def test_start_head_is_the_scaled_zero_shot_head(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    with torch.no_grad():
        weight = class_weight(prompt_embeddings(tiny_model, PromptTable.build(tiny_data.templates, tiny_data.class_names)))
    start = start_state(tiny_model, tiny_data)
    torch.testing.assert_close(start["head.weight"], tiny_model.scale.detach() * weight)
    assert not start["head.bias"].any()


def test_optimizer_gets_the_settings(tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    rates, decays, norms = [], [], []
    step, clip = torch.optim.AdamW.step, torch.nn.utils.clip_grad_norm_

    def spy(self: torch.optim.AdamW, closure: None = None) -> None:
        rates.append(self.param_groups[0]["lr"])
        decays.append(self.param_groups[0]["weight_decay"])
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, norm: (norms.append(norm), clip(p, norm))[1])
    training = Training(epochs=2, batch_size=8, learning_rate=0.5, weight_decay=0.25, warmup_share=0.5, clip_norm=2.0)
    fit(get("tp_ft"), tiny_model, tiny_data, training)
    assert rates == pytest.approx([0.5 * schedule(k, 6, 3) for k in range(6)])
    assert set(decays) == {0.25}
    assert norms == [2.0] * 6


def test_flyp_draws_every_template_and_another_order_each_epoch(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    images = Images(tiny_data.split("train").paths, tiny_model.preprocess_train, random=True)
    training = Training(epochs=2, batch_size=24)
    first, second = (batch for batch in batches(tiny_data, images, tiny_model, training))
    assert set(first.text["prompt"].tolist()) == set(range(6))
    assert first.label.tolist() != second.label.tolist()


def test_flyp_answers_with_all_templates_of_its_own_text_tower(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    start = start_state(tiny_model, tiny_data)
    end = fit(get("flyp"), tiny_model, tiny_data, SHORT, start=start).state
    torch.testing.assert_close(end["head.weight"], start_state(tiny_model, tiny_data)["head.weight"])
    assert not torch.allclose(end["head.weight"], start["head.weight"], atol=1e-3)


def test_batch_norm_statistics_do_not_move(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    norm = torch.nn.BatchNorm2d(3)
    tiny_model.clip.visual.conv1 = torch.nn.Sequential(norm, tiny_model.clip.visual.conv1)
    fit(get("tp_ft"), tiny_model, tiny_data, SHORT)
    assert not norm.running_mean.any()
    assert norm.num_batches_tracked == 0
    assert (norm.weight != 1).all()
