"""The diagonal Fisher matrix: by plain loops over images and weights, by its closed form, and that it leaves the model as it was."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.data import Dataset, Images
from surefoot.errors import SettingError, UnknownNameError
from surefoot.heads import LinearHead
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.prompts import PromptTable
from surefoot.train import Training, fit, pack, part, start_state, text_head
from surefoot.train.fisher import diagonal_fisher
from surefoot.weights import fisher_merge, interpolate

SOME = ("model.visual.proj", "model.visual.ln_post.bias", "head.weight", "head.bias")


@pytest.fixture
def training_set(tiny_model: ImageTextModel, tiny_data: Dataset) -> tuple[Tensor, Tensor]:
    split = tiny_data.split("train")
    return Images(split.paths, tiny_model.preprocess).batch(range(0, len(split), 3)), torch.tensor(split.labels[::3])


@pytest.fixture
def head(tiny_model: ImageTextModel, tiny_data: Dataset) -> LinearHead:
    head = text_head(tiny_model, tiny_data)
    with torch.no_grad():
        head.bias += torch.tensor([0.3, -0.2, 0.1])
        head.weight *= 0.05  # a scale of 100 would leave answers that are sure, and hardly any gradient
    return head


def batches(data: tuple[Tensor, Tensor], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(data[0].split(size), data[1].split(size), strict=True)


def slope(log_p: Tensor, parameter: nn.Parameter) -> Tensor:
    (found,) = torch.autograd.grad(log_p, [parameter], retain_graph=True)
    return found


def test_it_is_the_mean_over_images_of_the_squared_gradient(
    tiny_model: ImageTextModel, head: LinearHead, training_set: tuple[Tensor, Tensor]
) -> None:
    found = diagonal_fisher(tiny_model, head, batches(training_set, 3), SOME, labels="given")
    assert tuple(found) == SOME
    parameters = {f"model.{k}": p for k, p in tiny_model.clip.named_parameters()} | {f"head.{k}": p for k, p in head.named_parameters()}
    for name in SOME:
        total = torch.zeros_like(parameters[name])
        for image, label in zip(*training_set, strict=True):
            logits = tiny_model.encode_image(image[None])[0] @ head.weight.T + head.bias
            total += slope(logits[label] - logits.logsumexp(0), parameters[name]) ** 2
        torch.testing.assert_close(found[name], total / len(training_set[1]), msg=name)
        assert float(found[name].max()) > 0


def test_a_weights_gradient_is_that_of_a_small_step(
    tiny_model: ImageTextModel, head: LinearHead, training_set: tuple[Tensor, Tensor]
) -> None:
    tiny_model.double()
    tiny_model.encode_image = lambda image: F.normalize(tiny_model.clip.encode_image(image), dim=-1)  # type: ignore[method-assign]
    head.double()
    data, step = (training_set[0][:3].double(), training_set[1][:3]), 1e-5
    found, parameter = diagonal_fisher(tiny_model, head, [data], SOME[:1], labels="given")[SOME[0]], tiny_model.clip.visual.proj

    def log_p(image: Tensor, label: Tensor) -> float:
        with torch.no_grad():
            return float(F.log_softmax(head(tiny_model.encode_image(image[None])), dim=1)[0, label])

    for row, column in itertools.product((0, 5), (1, 7)):
        squares = []
        for image, label in zip(*data, strict=True):
            values = []
            for sign in (step, -step):
                with torch.no_grad():
                    parameter[row, column] += sign
                values.append(log_p(image, label))
                with torch.no_grad():
                    parameter[row, column] -= sign
            squares.append(((values[0] - values[1]) / (2 * step)) ** 2)
        assert float(found[row, column]) == pytest.approx(sum(squares) / 3, rel=1e-4)


@pytest.mark.parametrize("labels", ["given", "drawn"])
def test_how_images_are_batched_makes_no_difference(
    labels: str, tiny_model: ImageTextModel, head: LinearHead, training_set: tuple[Tensor, Tensor]
) -> None:
    one, many = (diagonal_fisher(tiny_model, head, batches(training_set, size), SOME, labels=labels) for size in (1, 8))  # type: ignore[arg-type]
    assert all(torch.equal(one[name], many[name]) for name in SOME)


def test_drawn_labels_follow_the_models_own_answer(
    tiny_model: ImageTextModel, head: LinearHead, training_set: tuple[Tensor, Tensor]
) -> None:
    image, times = training_set[0][:1], 200
    with torch.no_grad():
        feature = tiny_model.encode_image(image)[0]
        head.bias += torch.tensor([0.6, 0.2, 0.1]).log() - (head.weight @ feature + head.bias)
        p = torch.tensor([0.6, 0.2, 0.1]) / 0.9
    data = [(image.expand(times, -1, -1, -1), torch.zeros(times, dtype=torch.long))]
    found = diagonal_fisher(tiny_model, head, data, ["head.weight", "head.bias"])
    # of n_c draws of class c among N the bias has (n_c (1 - p_c)^2 + (N - n_c) p_c^2) / N
    share = (found["head.bias"] - p**2) / ((1 - p) ** 2 - p**2)
    counts = share * times
    torch.testing.assert_close(counts, counts.round(), atol=0.05, rtol=0)
    assert counts.sum().item() == pytest.approx(times, abs=0.1)
    assert bool(((share - p).abs() < 3 * (p * (1 - p) / times).sqrt()).all())
    torch.testing.assert_close(found["head.weight"], found["head.bias"][:, None] * feature[None] ** 2)
    given = diagonal_fisher(tiny_model, head, [(image, torch.tensor([0]))], ["head.weight"], labels="given")["head.weight"]
    torch.testing.assert_close(given, ((torch.arange(3) == 0).float() - p)[:, None] ** 2 * feature[None] ** 2)


def test_draws_depend_on_the_seed_alone(tiny_model: ImageTextModel, head: LinearHead, training_set: tuple[Tensor, Tensor]) -> None:
    def bias(seed: int) -> Tensor:
        torch.manual_seed(seed + 10)
        return diagonal_fisher(tiny_model, head, [training_set], ["head.bias"], seed=seed)["head.bias"]

    assert torch.equal(bias(1), diagonal_fisher(tiny_model, head, [training_set], ["head.bias"], seed=1)["head.bias"])
    assert len({tuple(bias(seed).tolist()) for seed in range(4)}) > 1


def test_of_prompts_the_gradient_goes_through_both_towers(
    tiny_model: ImageTextModel, tiny_data: Dataset, training_set: tuple[Tensor, Tensor]
) -> None:
    table = PromptTable.build(tiny_data.templates, tiny_data.class_names)
    names = ("model.visual.proj", "model.text_projection", "model.logit_scale")
    with torch.no_grad():
        tiny_model.clip.logit_scale.fill_(1.5)
    data = (training_set[0][:4], training_set[1][:4])
    found = diagonal_fisher(tiny_model, table, [data], names, labels="given")
    parameters = dict(tiny_model.clip.named_parameters())
    for name in names:
        total = torch.zeros_like(found[name])
        for image, label in zip(*data, strict=True):
            rows = []
            for written in tiny_data.class_names:
                texts = tiny_model.encode_text(tiny_model.tokenize([t.replace("{}", written) for t in tiny_data.templates]))
                rows.append(F.normalize(texts.mean(0), dim=0))
            logits = tiny_model.scale * torch.stack(rows) @ tiny_model.encode_image(image[None])[0]
            total += slope(logits[label] - logits.logsumexp(0), parameters[name.removeprefix("model.")]) ** 2
        torch.testing.assert_close(found[name], total / 4, msg=name)
        assert float(found[name].max()) > 0
    alone = diagonal_fisher(tiny_model, table, [data], names[:1], labels="given")
    torch.testing.assert_close(alone[names[0]], found[names[0]])


def test_what_has_no_part_in_the_answer_has_none_in_the_matrix(
    tiny_model: ImageTextModel, head: LinearHead, training_set: tuple[Tensor, Tensor]
) -> None:
    every = diagonal_fisher(tiny_model, head, [training_set])
    assert every.keys() == {f"model.{name}" for name, _ in tiny_model.clip.named_parameters()} | {"head.weight", "head.bias"}
    groups = tiny_model.groups()
    assert all(not every[f"model.{name}"].any() for name in (*groups["text"], "logit_scale"))
    assert sum(bool(every[f"model.{name}"].any()) for name in groups["visual"]) > len(groups["visual"]) / 2
    assert not diagonal_fisher(tiny_model, head, [training_set], ["model.logit_scale"])["model.logit_scale"].any()
    assert diagonal_fisher(tiny_model, head, [training_set], []) == {}


def test_the_model_is_as_it_was(tiny_model: ImageTextModel, head: LinearHead, training_set: tuple[Tensor, Tensor]) -> None:
    tiny_model.train()
    tiny_model.clip.visual.eval()
    tiny_model.clip.token_embedding.weight.requires_grad_(False)
    head.bias.requires_grad_(False)
    modules = {name: module.training for name, module in tiny_model.named_modules()}
    flags = {name: p.requires_grad for name, p in (*tiny_model.named_parameters(), *head.named_parameters())}
    before = pack(tiny_model, head)
    told: list[int] = []
    diagonal_fisher(tiny_model, head, batches(training_set, 3), SOME, on_images=told.append)
    assert sum(told) == len(training_set[1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in pack(tiny_model, head).items())
    assert modules == {name: module.training for name, module in tiny_model.named_modules()}
    assert flags == {name: p.requires_grad for name, p in (*tiny_model.named_parameters(), *head.named_parameters())}
    assert all(p.grad is None for p in (*tiny_model.parameters(), *head.parameters()))


def test_what_cannot_be_asked_is_said(tiny_model: ImageTextModel, head: LinearHead, tiny_data: Dataset) -> None:
    with pytest.raises(SettingError, match=r"model\.visual\.nothing, head\.scale are no parameter of"):
        diagonal_fisher(tiny_model, head, [], ["model.visual.nothing", "head.bias", "head.scale"])
    with pytest.raises(SettingError, match=r"head\.weight is no parameter .*where the text tower answers"):
        diagonal_fisher(tiny_model, PromptTable.build(tiny_data.templates, tiny_data.class_names), [], ["head.weight"])
    with pytest.raises(SettingError, match="over no image"):
        diagonal_fisher(tiny_model, head, [], SOME)
    with pytest.raises(UnknownNameError, match="Did you mean 'drawn'"):
        diagonal_fisher(tiny_model, head, [], SOME, labels="draw")  # type: ignore[arg-type]


def test_two_models_are_merged_by_their_own_matrices(
    tiny_model: ImageTextModel, tiny_data: Dataset, training_set: tuple[Tensor, Tensor]
) -> None:
    start = start_state(tiny_model, tiny_data)
    end = fit(get("tp_ft"), tiny_model, tiny_data, Training(epochs=1, batch_size=8, learning_rate=1e-2), start=start).state
    moved = [name for name, tensor in end.items() if not torch.equal(tensor, start[name])]
    fishers = []
    for state in (start, end):
        tiny_model.load_weights(part(state, "model"))
        head = LinearHead(torch.zeros_like(state["head.weight"]), 1.0)
        head.load_state_dict(part(state, "head"))
        fishers.append(diagonal_fisher(tiny_model, head, [training_set], moved))
    merged, line = fisher_merge(start, end, *fishers, 0.5), interpolate(start, end, 0.5)
    assert any(not torch.allclose(merged[name], line[name]) for name in moved)
    for name in moved:  # every weight stays between its two ends
        low, high = torch.minimum(start[name], end[name]), torch.maximum(start[name], end[name])
        assert bool(((merged[name] >= low - 1e-6) & (merged[name] <= high + 1e-6)).all())
    assert all(torch.equal(merged[name], start[name]) for name in start if name not in moved)
