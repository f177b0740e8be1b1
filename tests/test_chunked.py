"""Batches larger than memory: chunk by chunk, with the gradients of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fresh, with_resnet
from test_resume import CASES, TRAINING, assert_same, interrupted, runner
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.chunked import Chunks
from surefoot.data import Dataset
from surefoot.errors import SettingError
from surefoot.layers import set_checkpointing
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.objective import Batch, Forward, Method
from surefoot.train import Training, fit
from surefoot.train.settings import settings_of
from surefoot.train.texts import BLOCK, EncodedOnce

LARGE = Training(epochs=1, batch_size=20, learning_rate=1e-3)
IN_CHUNKS = replace(LARGE, chunk_size=3)
AGAIN = {"checkpointing": replace(LARGE, checkpointing=True), "both": replace(LARGE, chunk_size=7, checkpointing=True)}


class SeenError(Exception):
    """Ends a run once its first gradients are seen."""


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Tensor]]:
    """Of the first step that moves a tower, of every trained parameter in the optimizer's order."""

    def of(method: Method, model: ImageTextModel, data: Dataset, training: Training) -> list[Tensor]:
        found: list[Tensor] = []
        step = torch.optim.AdamW.step

        def seen(self: torch.optim.AdamW) -> None:
            parameters = [p for group in self.param_groups for p in group["params"]]
            if len(parameters) <= 2:  # a head alone, on features
                step(self)
                return
            found.extend(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters)
            raise SeenError

        monkeypatch.setattr(torch.optim.AdamW, "step", seen)
        with pytest.raises(SeenError):
            fit(method, fresh(model), data, training)
        monkeypatch.undo()
        return found

    return of


def assert_close(one: list[Tensor], other: list[Tensor]) -> None:
    """To 1e-5 of the largest gradient of each parameter, and of all of them where that is rounding alone."""
    largest = max(float(gradient.abs().max()) for gradient in one)
    assert largest > 0
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(float(a.abs().max()), 1e-2 * largest))


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_whole_batch(
    case: str, gradients: Callable[..., list[Tensor]], tiny_model: ImageTextModel, tiny_data: Dataset
) -> None:
    name, settings, how = CASES[case]
    method, how = get(name, settings), {key: value for key, value in how.items() if key != "steps"}
    whole = gradients(method, tiny_model, tiny_data, replace(LARGE, **how))
    assert_close(whole, gradients(method, tiny_model, tiny_data, replace(IN_CHUNKS, **how)))


@pytest.mark.parametrize("how", AGAIN)
@pytest.mark.parametrize("name", ["tp_ft", "flyp", "arf"])
def test_activations_may_be_computed_again(
    name: str, how: str, gradients: Callable[..., list[Tensor]], tiny_model: ImageTextModel, tiny_data: Dataset
) -> None:
    whole = gradients(get(name), tiny_model, tiny_data, LARGE)
    assert_close(whole, gradients(get(name), tiny_model, tiny_data, AGAIN[how]))


def test_a_run_computes_activations_again_while_it_trains_and_no_longer(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    towers = (tiny_model.clip.visual.transformer, tiny_model.clip.transformer)
    during: list[bool] = []
    fit(get("flyp"), tiny_model, tiny_data, AGAIN["checkpointing"], on_step=lambda _: during.extend(t.grad_checkpointing for t in towers))
    assert during == [True, True]
    assert not any(tower.grad_checkpointing for tower in towers)


@pytest.mark.parametrize("how", [{"chunk_size": 3}, {"checkpointing": True}])
def test_less_is_kept_for_the_backward_pass(how: Mapping[str, Any], tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(size: int | None, checkpointing: bool) -> int:
        model = fresh(tiny_model)
        model.train()
        set_checkpointing(model.clip, checkpointing)
        chunks, total = Chunks(size), 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            chunks.encode(model.encode_image, torch.randn(12, 3, 32, 32), trains=True)
        return total

    assert kept(how.get("chunk_size"), how.get("checkpointing", False)) < 0.6 * kept(None, False), "of two blocks, little of the last"


def test_random_numbers_are_drawn_again(tiny_model: ImageTextModel) -> None:
    tower = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    given, weight = torch.randn(7, 4), torch.randn(7, 3)

    def gradient(encode: Callable[[Chunks], Tensor]) -> list[Tensor]:
        tower.zero_grad()
        torch.manual_seed(3)
        chunks = Chunks(3)
        features = encode(chunks)
        (F.normalize(features, dim=-1) * weight).sum().backward()
        torch.rand(5)  # a loss that draws
        before = torch.get_rng_state()
        chunks.backward()
        assert torch.equal(before, torch.get_rng_state())  # what comes after draws as if nothing had happened
        return [features.detach(), *(p.grad.clone() for p in tower.parameters() if p.grad is not None)]

    chunked = gradient(lambda chunks: chunks.encode(tower, given, trains=True))
    straight = gradient(lambda chunks: torch.cat([tower(chunk) for chunk in given.split(3)]))
    torch.testing.assert_close(chunked, straight)


def test_frozen_tower_is_not_encoded_twice() -> None:
    calls: list[int] = []

    def encode(chunk: Tensor) -> Tensor:
        calls.append(len(chunk))
        return chunk.sum(dim=1, keepdim=True)

    chunks = Chunks(4)
    features = chunks.encode(encode, torch.ones(10, 2), trains=False)
    chunks.backward()
    assert calls == [4, 4, 2]
    assert not features.requires_grad
    features = chunks.encode(encode, torch.ones(10, 2).requires_grad_(), trains=True)
    features.sum().backward()
    chunks.backward()
    assert calls == [4, 4, 2] * 3


@pytest.mark.parametrize("name", ["flyp", "clip_cite"])
def test_a_run_in_chunks_is_resumed_to_the_same_bits(name: str, tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    run = runner(tiny_model, tiny_data, get(name), replace(TRAINING, chunk_size=2))
    interrupted(run, tmp_path / "run.resume", 3)
    assert_same(run(resume=tmp_path / "run.resume"), run())


def test_settings_name_it_only_where_it_is_used(tiny_model: ImageTextModel) -> None:
    named = {"chunk_size", "checkpointing"}
    assert not named & set(settings_of(get("flyp"), LARGE, tiny_model))
    assert settings_of(get("flyp"), AGAIN["both"], tiny_model).items() >= {("chunk_size", 7), ("checkpointing", True)}
    with pytest.raises(SettingError, match="chunk_size is 0; it must be 1 or more, or none"):
        Training(chunk_size=0)


@pytest.fixture
def resnet(tiny_model: ImageTextModel) -> ImageTextModel:
    return with_resnet(tiny_model)


def test_tower_that_keeps_all_activations_is_refused(resnet: ImageTextModel, tiny_data: Dataset) -> None:
    with pytest.raises(SettingError, match=r"ModifiedResNet.*keeps all activations.*chunk_size"):
        fit(get("tp_ft"), resnet, tiny_data, replace(LARGE, checkpointing=True))


def test_batch_norm_that_trains_is_not_cut_into_chunks(resnet: ImageTextModel, tiny_data: Dataset) -> None:
    stage = get("tp_ft").stages[0]
    method = replace(get("tp_ft"), stages=(replace(stage, restart=True),))
    with pytest.raises(SettingError, match="chunk_size would cut the batches that its BatchNorm layers average over"):
        fit(method, resnet, tiny_data, IN_CHUNKS)


def test_text_tower_that_stands_still_is_encoded_once(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    encoded: list[int] = []
    at_step: list[int] = []
    encode = tiny_model.encode_text
    tiny_model.encode_text = lambda tokens: (encoded.append(len(tokens)), encode(tokens))[1]  # type: ignore[func-returns-value, method-assign]
    training = replace(TRAINING, epochs=1, batch_size=4)
    fit(get("flyp", {"frozen_text": True}), tiny_model, tiny_data, training, on_step=lambda _: at_step.append(len(encoded)))
    assert len(at_step) == 6
    assert len(set(at_step)) == 1  # all at the first step, in one block


def test_features_do_not_depend_on_which_step_asked_first(tiny_model: ImageTextModel) -> None:
    tokens = tiny_model.tokenize([f"a text of {'many ' * (number % 5)}words, {number}" for number in range(3 * BLOCK // 2)])
    first, second = EncodedOnce(tiny_model.encode_text), EncodedOnce(tiny_model.encode_text)
    rows = torch.arange(len(tokens))
    every = first(rows, tokens)
    for row in reversed(rows.tolist()):
        assert torch.equal(second(rows[row : row + 1], tokens)[0], every[row])
    with torch.no_grad():
        torch.testing.assert_close(every, tiny_model.encode_text(tokens))
    assert not every.requires_grad


def test_forward_without_chunks_is_one_graph(tiny_model: ImageTextModel) -> None:
    image = torch.randn(5, 3, 32, 32)
    calls: list[int] = []
    encode = tiny_model.encode_image
    tiny_model.encode_image = lambda given: (calls.append(len(given)), encode(given))[1]  # type: ignore[func-returns-value, method-assign]
    forward = Forward(tiny_model, None, Batch(image, torch.zeros(5), {}, torch.zeros(0, 77)))
    forward.backward(forward.image.sum())
    assert calls == [5]
