"""Which epoch is kept: the rules on curves made by hand, the weights of that epoch, and what they are chosen by."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_baselines import SHORT, TRAINED, features_of
from torch import Tensor, nn

from surefoot.data import Dataset
from surefoot.data import images as reading
from surefoot.data.images import read_image
from surefoot.heads import LinearHead
from surefoot.methods import get
from surefoot.metrics import Score
from surefoot.model import ImageTextModel
from surefoot.train import Step, Training, fit, part
from surefoot.train.keep import Keeper
from surefoot.train.validate import Validation

CURVE = [(0.60, 0.02), (0.79, 0.02), (0.80, 0.02), (0.80, 0.02), (0.70, 0.02)]


def seen(rule: str, curve: Sequence[tuple[float, float]]) -> Keeper:
    """A keeper that saw a curve of (value, error); the weights of epoch n are the number n."""
    keeper = Keeper(rule)  # type: ignore[arg-type]
    for epoch, (value, error) in enumerate(curve, start=1):
        keeper.see(epoch, Score(value, error), lambda epoch=epoch: {"w": torch.tensor(epoch)})  # type: ignore[misc]
    return keeper


@pytest.mark.parametrize(("rule", "epoch"), [("best", 3), ("one_standard_error", 2), ("last", 5)])
def test_rules_on_one_curve(rule: str, epoch: int) -> None:
    assert seen(rule, CURVE).epoch == epoch


@pytest.mark.parametrize("rule", ["best", "one_standard_error"])
def test_the_first_of_equal_epochs_is_kept(rule: str) -> None:
    assert seen(rule, [(0.5, 0.1)] * 4).epoch == 1


def test_a_score_just_at_one_standard_error_is_within() -> None:
    assert seen("one_standard_error", [(0.25, 0.25), (0.5, 0.25)]).epoch == 1
    assert seen("one_standard_error", [(0.2499, 0.25), (0.5, 0.25)]).epoch == 2


def test_it_is_the_error_of_the_best_that_counts() -> None:
    assert seen("one_standard_error", [(0.7, 0.5), (0.8, 0.01)]).epoch == 2
    assert seen("one_standard_error", [(0.79, 0.0), (0.8, 0.05), (0.8, 0.001)]).epoch == 1  # of equals, the first's


@pytest.mark.parametrize("rule", ["best", "one_standard_error"])
def test_the_weights_held_are_those_of_the_chosen_epoch_at_every_moment(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        curve = [(float(v), float(e)) for v, e in torch.rand(8, 2, generator=generator) * torch.tensor([1.0, 0.3])]
        for length in range(1, 9):
            keeper = seen(rule, curve[:length])
            assert int(keeper.weights[keeper.epoch]["w"]) == keeper.epoch


def test_chosen_epoch_equals_the_rule_over_the_whole_curve_where_errors_are_alike() -> None:
    for values in itertools.product([0.5, 0.55, 0.6, 0.7], repeat=5):
        keeper = seen("one_standard_error", [(value, 0.06) for value in values])
        assert keeper.epoch == next(k for k, value in enumerate(values, start=1) if value >= max(values) - 0.06)


def test_a_best_with_a_larger_error_does_not_call_back_an_epoch_that_was_let_go() -> None:
    keeper = seen("one_standard_error", [(0.70, 0.05), (0.80, 0.01), (0.81, 0.12)])
    assert keeper.epoch == 2


def test_epochs_that_cannot_be_chosen_any_more_are_not_held() -> None:
    assert set(seen("best", CURVE).weights) == {3}
    assert set(seen("one_standard_error", CURVE).weights) == {2, 3}  # 3 is the first if a later best leaves 2 behind; 4 never is
    assert not seen("last", CURVE).weights


def test_weights_are_copied_only_where_they_may_be_needed() -> None:
    copied: list[int] = []
    keeper = Keeper("best")
    for epoch, value in enumerate([0.5, 0.4, 0.5, 0.6], start=1):
        keeper.see(epoch, Score(value, 0.1), lambda epoch=epoch: (copied.append(epoch), {})[1])  # type: ignore[misc]
    assert copied == [1, 4]


@pytest.mark.parametrize(
    ("keep", "settings", "expected"),
    [
        ("best", {}, 2),
        ("one_standard_error", {}, 2),
        ("last", {}, 4),
        ("best", {"lora_rank": 2}, 2),
        ("best", {"layers": "visual[-1:]"}, 2),
    ],
)
def test_fit_returns_the_weights_of_the_kept_epoch(
    keep: str, settings: dict[str, object], expected: int, tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, snapshots = [0.1, 0.9, 0.8, 0.3], []

    def scripted(self: Validation, head: LinearHead, features: Tensor) -> Score:
        model = {f"model.{name}": tensor for name, tensor in tiny_model.weights().items()}
        snapshots.append(model | {f"head.{name}": tensor.clone() for name, tensor in head.state_dict().items()})
        return Score(values[len(snapshots) - 1], 0.05)

    monkeypatch.setattr(Validation, "score", scripted)
    training = Training(epochs=4, batch_size=8, learning_rate=1e-2, keep=keep)  # type: ignore[arg-type]
    fitted = fit(get("tp_ft", settings), tiny_model, tiny_data, training)
    assert fitted.kept_epoch == expected
    assert [row["val"] for row in fitted.history] == values
    same = [all(torch.equal(fitted.state[name], snapshot[name]) for name in fitted.state) for snapshot in snapshots]
    assert same == [epoch == expected for epoch in range(1, 5)]


def test_text_head_is_rebuilt_from_the_kept_epoch(tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[Tensor] = []

    def scripted(self: Validation, head: LinearHead, features: Tensor) -> Score:
        heads.append(head.weight.detach().clone())
        return Score([0.2, 0.9, 0.1][len(heads) - 1], 0.0)

    monkeypatch.setattr(Validation, "score", scripted)
    fitted = fit(get("flyp"), tiny_model, tiny_data, Training(epochs=3, batch_size=8, learning_rate=1e-2))
    assert [torch.equal(fitted.state["head.weight"], head) for head in heads] == [False, True, False]


@pytest.mark.parametrize(("steps", "epochs"), [(2, [1]), (3, [1]), (7, [1, 2, 3])])
def test_a_length_in_steps_is_validated_after_each_pass_and_at_its_end(
    steps: int, epochs: list[int], tiny_model: ImageTextModel, tiny_data: Dataset
) -> None:
    told: list[Step] = []
    fitted = fit(get("tp_ft"), tiny_model, tiny_data, Training(steps=steps, batch_size=8), on_step=told.append)
    assert [row["epoch"] for row in fitted.history] == epochs
    assert (fitted.num_steps, told[-1].number, told[-1].total) == (steps, steps, steps)
    losses = [step.loss for step in told]
    assert fitted.history[-1]["loss"] == pytest.approx(sum(losses[3 * (epochs[-1] - 1) :]) / len(losses[3 * (epochs[-1] - 1) :]))


@pytest.mark.parametrize("name", TRAINED)
def test_fit_opens_images_of_train_and_val_only(
    name: str, tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: set[Path] = set()
    monkeypatch.setattr(reading, "read_image", lambda path, *least: (opened.add(path), read_image(path, *least))[1])
    missing = {
        split: replace(tiny_data.split(split), paths=(Path("/nowhere.png"),)) for split in tiny_data.splits if split not in ("train", "val")
    }
    fit(get(name), tiny_model, replace(tiny_data, splits={**tiny_data.splits, **missing}), SHORT)
    retrieved = tiny_data.anchors.images if "anchor_image" in get(name).needs else ()
    assert opened == {*tiny_data.split("train").paths, *tiny_data.split("val").paths, *retrieved}


@pytest.mark.parametrize("name", ["tp_ft", "flyp", "flyp_ce", "lp"])
def test_validation_is_of_the_answers_that_the_method_gives(name: str, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    tiny_model.clip.visual.transformer.resblocks[0].mlp.gelu = nn.Sequential(nn.GELU(), nn.Dropout(0.5))
    fitted = fit(get(name), tiny_model, tiny_data, replace(SHORT, learning_rate=3e-3, keep="last"))
    tiny_model.load_weights(part(fitted.state, "model"))
    logits = features_of(tiny_model, tiny_data, "val") @ fitted.state["head.weight"].T + fitted.state["head.bias"]
    correct = [int(row.argmax()) == label for row, label in zip(logits, tiny_data.split("val").labels, strict=True)]
    assert fitted.history[-1]["val"] == pytest.approx(sum(correct) / len(correct))
    assert not any(module.training for module in tiny_model.modules())
