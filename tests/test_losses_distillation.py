"""Losses that keep distributions of the pre-trained model, re-implemented with plain loops, then which way each divergence points."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from test_losses import features
from torch import Tensor
from torch.nn import functional as F

from surefoot.errors import SettingError
from surefoot.losses import context_kl, context_mmd, context_wasserstein, similarity_distillation

CONTEXT_LOSSES = pytest.mark.parametrize("loss", [context_kl, context_mmd, context_wasserstein])


def softmax(similarity: list[float], scale: float) -> list[float]:
    powers = [math.exp(scale * value) for value in similarity]
    return [power / sum(powers) for power in powers]


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def loop_kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def loop_contexts(image: Tensor, contexts: Tensor, scale: float) -> list[list[float]]:
    """CAR-FT eq. 3, with the scale."""
    return [
        softmax([dot(w, f) for w in (contexts[i] if contexts.ndim == 3 else contexts).tolist()], scale)
        for i, f in enumerate(image.tolist())
    ]


def own_contexts(rows: int = 5, num_contexts: int = 3) -> Tensor:
    return torch.stack([features(20 + i, rows=num_contexts) for i in range(rows)])


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_context_kl_is_equations_3_to_5(rows: int, scale: float) -> None:
    image, reference = features(0, rows), features(1, rows)
    for contexts in (features(2, rows=3), own_contexts(rows)):
        p_0, p = loop_contexts(reference, contexts, scale), loop_contexts(image, contexts, scale)
        expected = sum(loop_kl(before, now) for before, now in zip(p_0, p, strict=True)) / rows
        assert context_kl(image, reference, contexts, scale).item() == pytest.approx(expected, rel=1e-11)


def test_context_kl_is_weighted_by_the_pre_trained_distribution() -> None:
    """The reference is even, the model sure: the logarithms of the unlikely half count, not those of the likely one."""
    sure, even = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)]])
    assert context_kl(sure, even, torch.eye(2), 100.0).item() == pytest.approx(50 - math.log(2))
    assert context_kl(even, sure, torch.eye(2), 100.0).item() == pytest.approx(math.log(2))


def loop_similarities(image: Tensor, text: Tensor, scale: float) -> list[list[float]]:
    return [softmax([dot(f, g) for g in text.tolist()], scale) for f in image.tolist()]


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_similarity_distillation_is_equation_5_and_its_reverse(rows: int, scale: float) -> None:
    image, text, *reference = (features(seed, rows) for seed in range(4))
    p, p_0 = loop_similarities(image, text, scale), loop_similarities(reference[0], reference[1], scale)
    printed = sum(loop_kl(now, before) for now, before in zip(p, p_0, strict=True)) / rows
    reverse = sum(loop_kl(before, now) for now, before in zip(p, p_0, strict=True)) / rows
    assert similarity_distillation(image, text, *reference, scale).item() == pytest.approx(printed, rel=1e-11, abs=1e-14)
    assert similarity_distillation(image, text, *reference, scale, reverse=True).item() == pytest.approx(reverse, rel=1e-11, abs=1e-14)


def test_similarity_distillation_is_weighted_by_the_trained_model_unless_reversed() -> None:
    image, flat = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert similarity_distillation(image, image, image, flat, 100.0).item() == pytest.approx(math.log(2))
    assert similarity_distillation(image, image, image, flat, 100.0, reverse=True).item() == pytest.approx(50 - math.log(2))


def test_similarity_distillation_is_over_the_texts_of_an_image() -> None:
    """Images that resemble all texts alike give even rows, however the columns differ: nothing has changed."""
    image = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    text = torch.tensor([[0.6, 0.8], [0.6, -0.8]])
    assert similarity_distillation(image, text, torch.eye(2), torch.full((2, 2), 0.5**0.5), 10.0).item() == pytest.approx(0, abs=1e-6)


@CONTEXT_LOSSES
def test_a_batch_is_the_mean_of_its_images(loss) -> None:
    image, reference, own = features(0), features(1), own_contexts()
    for contexts in (features(2, rows=3), own):
        single = [loss(image[i : i + 1], reference[i : i + 1], contexts[i] if contexts is own else contexts, 9.0).item() for i in range(5)]
        assert len({round(value, 6) for value in single}) == 5
        assert loss(image, reference, contexts, 9.0).item() == pytest.approx(sum(single) / 5, rel=1e-10)


@CONTEXT_LOSSES
def test_contexts_of_the_own_class_may_be_the_same_for_all(loss) -> None:
    image, reference, contexts = features(0), features(1), features(2, rows=3)
    torch.testing.assert_close(
        loss(image, reference, contexts.expand(5, -1, -1), 9.0), loss(image, reference, contexts, 9.0), rtol=1e-11, atol=0
    )


@CONTEXT_LOSSES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_has_not_moved_has_no_loss_and_no_gradient(loss, dtype: torch.dtype) -> None:
    image, contexts = features(0, rows=9).to(dtype).requires_grad_(), features(2, rows=4).to(dtype)
    value = loss(image, image.detach().clone(), contexts, 100.0)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert image.grad is not None
    torch.testing.assert_close(image.grad, torch.zeros_like(image), rtol=0, atol=1e-5 if dtype is torch.float32 else 1e-13)


@CONTEXT_LOSSES
def test_one_context_tells_nothing(loss) -> None:
    image = features(0).requires_grad_()
    value = loss(image, features(1), features(2, rows=1), 100.0)
    value.backward()
    assert value.item() == 0
    assert torch.equal(image.grad, torch.zeros_like(image))


@CONTEXT_LOSSES
@pytest.mark.parametrize("own", [False, True])
def test_reference_and_contexts_get_no_gradient(loss, own: bool) -> None:
    image, reference = features(0).requires_grad_(), features(1).requires_grad_()
    contexts = (own_contexts() if own else features(2, rows=3)).requires_grad_()
    loss(image, reference, contexts, 9.0).backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0.01
    assert reference.grad is None
    assert contexts.grad is None


@pytest.mark.parametrize("reverse", [False, True])
def test_reference_similarities_get_no_gradient(reverse: bool) -> None:
    image, text, *reference = (features(seed).requires_grad_() for seed in range(4))
    similarity_distillation(image, text, *reference, 9.0, reverse=reverse).backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0.01 for tensor in (image, text))
    assert all(tensor.grad is None for tensor in reference)


@CONTEXT_LOSSES
@pytest.mark.parametrize("own", [False, True])
def test_context_losses_pass_gradcheck(loss, own: bool) -> None:
    reference, contexts = features(1, rows=3), own_contexts(3) if own else features(2, rows=3)
    settings = {"blur": 0.5, "num_iterations": 50} if loss is context_wasserstein else {}
    assert torch.autograd.gradcheck(lambda f: loss(f, reference, contexts, 3.0, **settings), features(0, rows=3).requires_grad_())


@pytest.mark.parametrize("reverse", [False, True])
def test_similarity_distillation_passes_gradcheck(reverse: bool) -> None:
    image, text, *reference = (features(seed) for seed in range(4))
    inputs = (image.requires_grad_(), text.requires_grad_())
    assert torch.autograd.gradcheck(lambda f, g: similarity_distillation(f, g, *reference, 5.0, reverse=reverse), inputs)


@CONTEXT_LOSSES
def test_further_from_the_reference_costs_more(loss) -> None:
    reference, contexts = features(1), torch.eye(4, dtype=torch.float64)
    moved = [F.normalize(reference + noise * features(0), dim=1) for noise in (0.0, 0.1, 0.3, 0.9)]
    values = [loss(image, reference, contexts, 5.0).item() for image in moved]
    assert all(near < far for near, far in pairwise(values))


def test_similarities_further_from_the_reference_cost_more() -> None:
    image, text = features(0), features(1)
    moved = [F.normalize(image + noise * features(2), dim=1) for noise in (0.0, 0.1, 0.3, 0.9)]
    for reverse in (False, True):
        values = [similarity_distillation(f, text, image, text, 5.0, reverse=reverse).item() for f in moved]
        assert values[0] == pytest.approx(0, abs=1e-15)
        assert all(near < far for near, far in pairwise(values))


@CONTEXT_LOSSES
def test_opposite_features_at_a_large_scale_stay_finite(loss) -> None:
    """Float32 at the scale of OpenAI's models, and at ten times it: some probabilities are 0 to the last bit."""
    contexts = F.normalize(torch.eye(3) - 1 / 3, dim=1)
    for scale in (100.0, torch.tensor(1000.0)):
        image = contexts.clone().requires_grad_()
        value = loss(image, -contexts, contexts, scale)
        value.backward()
        assert value.item() > 0.1
        assert math.isfinite(value.item())
        assert image.grad is not None
        assert image.grad.isfinite().all()


@pytest.mark.parametrize("reverse", [False, True])
def test_similarities_at_a_large_scale_stay_finite(reverse: bool) -> None:
    image, text = torch.eye(3).requires_grad_(), torch.eye(3)
    value = similarity_distillation(image, text, torch.eye(3), torch.eye(3).flip(0), 1000.0, reverse=reverse)
    value.backward()
    assert value.item() == pytest.approx(2 / 3 * 1000)
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_similarity_of_a_batch_of_one_is_certain() -> None:
    assert similarity_distillation(*(features(seed, rows=1) for seed in range(4)), 100.0).item() == 0


def test_repeated_texts_are_fine() -> None:
    text = features(1, rows=1).expand(5, -1)
    value = similarity_distillation(features(0), text, features(2), text, 100.0)
    assert value.item() == pytest.approx(0, abs=1e-12)  # both are even


@CONTEXT_LOSSES
def test_scale_may_be_a_tensor_and_the_loss_keeps_the_dtype(loss) -> None:
    image, reference, contexts = features(0).float(), features(1).float(), features(2, rows=3).float()
    value = loss(image, reference, contexts, torch.tensor(14.5))
    assert (value.shape, value.dtype) == (torch.Size([]), torch.float32)
    assert torch.equal(value, loss(image, reference, contexts, 14.5))


@CONTEXT_LOSSES
@pytest.mark.parametrize(("image", "reference"), [((5, 4), (4, 4)), ((5, 4), (5, 3)), ((5, 4), (4,)), ((4,), (4,)), ((5, 4, 1), (5, 4, 1))])
def test_features_of_other_batches_are_an_error(loss, image: tuple[int, ...], reference: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match=rf"{loss.__name__} was given image features .*Both must be \[B, D\].*Encode the same batch"):
        loss(torch.ones(image), torch.ones(reference), torch.ones(3, 4), 1.0)


@CONTEXT_LOSSES
@pytest.mark.parametrize("contexts", [(4,), (3, 5), (0, 4), (4, 3, 4), (5, 0, 4), (5, 3, 3), (1, 5, 3, 4)])
def test_contexts_that_do_not_fit_are_an_error(loss, contexts: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match=rf"{loss.__name__} was given .*contexts of shape .*\[P, D\] or \[B, P, D\].*Pass the text"):
        loss(torch.ones(5, 4), torch.ones(5, 4), torch.ones(contexts), 1.0)


@CONTEXT_LOSSES
def test_an_empty_batch_is_an_error(loss) -> None:
    with pytest.raises(SettingError, match="B of at least 1"):
        loss(torch.ones(0, 4), torch.ones(0, 4), torch.ones(3, 4), 1.0)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(5, 4), (4, 4), (5, 4), (5, 4)], "Pass one text per image"),
        ([(0, 4), (0, 4), (0, 4), (0, 4)], "Pass one text per image"),
        ([(5, 4), (5, 4), (4, 4), (5, 4)], "given image features .*Encode the same batch"),
        ([(5, 4), (5, 4), (5, 4), (5, 3)], "given text features .*Encode the same batch"),
    ],
)
def test_similarities_of_other_batches_are_an_error(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(SettingError, match=rf"similarity_distillation was .*{message}|similarity_distillation was {message}"):
        similarity_distillation(*(torch.ones(shape) for shape in shapes), 1.0)
