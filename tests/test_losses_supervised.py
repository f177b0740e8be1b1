"""Contrast in which items of one class are not each other's negatives: the equation in plain loops, and what stands in no denominator."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import pytest
import torch
from test_losses import features
from torch import Tensor

from surefoot.errors import SettingError
from surefoot.losses import contrastive, sigmoid_contrastive, supervised_contrastive

LABEL = [3, 0, 3, 1, 0]  # 3 and 0 are there twice
BOTH_FORMS = pytest.mark.parametrize("keep", [True, False])


def loop_supervised(image: Tensor, text: Tensor, label: list[int], scale: float, keep: bool) -> float:
    """CLIP-CITE eq. 4 with the scale, the sign mended, divided by 2B; with the positive in the denominator if `keep`."""
    f, g, size = image.tolist(), text.tolist(), len(image)

    def similarity(i: int, j: int) -> float:
        return math.exp(scale * sum(x * y for x, y in zip(f[i], g[j], strict=True)))

    total = 0.0
    for i in range(size):
        negatives = [j for j in range(size) if label[j] != label[i] or (keep and j == i)]
        if negatives:
            total -= math.log(similarity(i, i) / sum(similarity(i, j) for j in negatives))
            total -= math.log(similarity(i, i) / sum(similarity(j, i) for j in negatives))
    return total / (2 * size)


@BOTH_FORMS
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_supervised_contrastive_is_equation_4(rows: int, scale: float, keep: bool) -> None:
    image, text, label = features(0, rows), features(1, rows), LABEL[:rows]
    value = supervised_contrastive(image, text, torch.tensor(label), scale, positive_in_denominator=keep)
    assert value.item() == pytest.approx(loop_supervised(image, text, label, scale, keep), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_repeated_classes_it_is_contrastive_bit_for_bit(dtype: torch.dtype) -> None:
    image, text = (features(seed, rows=7).to(dtype).requires_grad_() for seed in (0, 1))
    label = torch.tensor([5, 2, 9, 0, 1, 8, 3])
    supervised, plain = supervised_contrastive(image, text, label, 14.3), contrastive(image, text, 14.3)
    assert torch.equal(supervised, plain)
    for ours, theirs in zip(torch.autograd.grad(supervised, (image, text)), torch.autograd.grad(plain, (image, text)), strict=True):
        assert torch.equal(ours, theirs)


def test_printed_form_is_not_flyp_even_without_repeated_classes() -> None:
    image, label = torch.eye(6, dtype=torch.float64), torch.arange(6)
    assert supervised_contrastive(image, image, label, 2.0, positive_in_denominator=False).item() == pytest.approx(math.log(5) - 2)
    assert supervised_contrastive(image, image, label, 2.0).item() == pytest.approx(math.log(1 + 5 * math.exp(-2)))


def test_repeated_classes_lower_the_loss() -> None:
    image, text = features(0), features(1)
    assert supervised_contrastive(image, text, torch.tensor(LABEL), 10.0) < contrastive(image, text, 10.0)


@BOTH_FORMS
def test_items_of_one_class_do_not_push_each_other(keep: bool) -> None:
    """Rows 0 and 2 are of one class: what text 2 is does not matter to image 0, nor image 2 to text 0."""
    image, text, label = features(0).requires_grad_(), features(1).requires_grad_(), torch.tensor(LABEL)
    logits = 10 * image @ text.T
    (gradient,) = torch.autograd.grad(
        supervised_contrastive(logits, torch.eye(5, dtype=torch.float64), label, 1.0, positive_in_denominator=keep), logits
    )
    same = label[:, None] == label
    outside = same & ~torch.eye(5, dtype=torch.bool)
    assert torch.equal(gradient[outside], torch.zeros(int(outside.sum()), dtype=torch.float64))
    assert (gradient[~same] > 0).all()
    assert (gradient.diagonal() < 0).all()


@BOTH_FORMS
@pytest.mark.parametrize("rows", [1, 4])
def test_batch_of_one_class_gives_zero_and_no_gradient(rows: int, keep: bool) -> None:
    image, text = features(0, rows).requires_grad_(), features(1, rows).requires_grad_()
    scale = torch.tensor(100.0, requires_grad=True)
    with warnings.catch_warnings(action="ignore"), torch.autograd.detect_anomaly():  # which raises at a nan even if it is masked further on
        value = supervised_contrastive(image, text, torch.full((rows,), 7), scale, positive_in_denominator=keep)
        value.backward()
    assert value.item() == 0
    for tensor in (image, text, scale):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


@BOTH_FORMS
def test_images_and_texts_may_be_swapped_and_the_batch_reordered(keep: bool) -> None:
    image, text, label, order = features(0), features(1), torch.tensor(LABEL), torch.tensor([3, 0, 4, 1, 2])
    plain = supervised_contrastive(image, text, label, 10.0, positive_in_denominator=keep)
    torch.testing.assert_close(supervised_contrastive(text, image, label, 10.0, positive_in_denominator=keep), plain)
    moved = supervised_contrastive(image[order], text[order], label[order], 10.0, positive_in_denominator=keep)
    torch.testing.assert_close(moved, plain)


@BOTH_FORMS
def test_better_pairs_score_lower(keep: bool) -> None:
    text = torch.eye(4, dtype=torch.float64)[LABEL]
    noisy = [torch.nn.functional.normalize(text + noise * features(1), dim=-1) for noise in (0.0, 0.3, 0.6)]
    values = [
        supervised_contrastive(image, text, torch.tensor(LABEL), 10.0, positive_in_denominator=keep).item()
        for image in [*noisy, text.roll(1, 0)]
    ]
    assert all(better < worse for better, worse in pairwise(values))


@BOTH_FORMS
def test_supervised_contrastive_passes_gradcheck(keep: bool) -> None:
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    inputs = (features(0).requires_grad_(), features(1).requires_grad_(), scale)
    assert torch.autograd.gradcheck(
        lambda f, g, s: supervised_contrastive(f, g, torch.tensor(LABEL), s, positive_in_denominator=keep), inputs
    )


@BOTH_FORMS
def test_large_scales_stay_finite(keep: bool) -> None:
    image, text = torch.eye(3).requires_grad_(), torch.eye(3).roll(1, 0)
    value = supervised_contrastive(image, text, torch.tensor([0, 1, 1]), 1000.0, positive_in_denominator=keep)
    value.backward()
    assert math.isfinite(value.item())
    assert image.grad is not None
    assert image.grad.isfinite().all()


@pytest.mark.parametrize("label", [(4,), (5, 1), ()])
def test_labels_that_do_not_fit_are_an_error(label: tuple[int, ...]) -> None:
    message = r"contrastive was given .*labels of shape .*\[B, D\] and \[B\].*Pass one class id"
    with pytest.raises(SettingError, match=f"supervised_{message}"):
        supervised_contrastive(torch.ones(5, 4), torch.ones(5, 4), torch.zeros(label, dtype=torch.long), 1.0)
    with pytest.raises(SettingError, match=f"sigmoid_{message}"):
        sigmoid_contrastive(torch.ones(5, 4), torch.ones(5, 4), 1.0, 0.0, label=torch.zeros(label, dtype=torch.long))


@pytest.mark.parametrize(("image", "text"), [((5, 4), (4, 4)), ((4,), (4,)), ((0, 4), (0, 4))])
def test_features_that_do_not_fit_are_an_error(image: tuple[int, ...], text: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match=r"supervised_contrastive was given .*Both must be \[B, D\].*Pass one text per image"):
        supervised_contrastive(torch.ones(image), torch.ones(text), torch.zeros(image[0], dtype=torch.long), 1.0)


def test_sigmoid_leaves_out_the_same_pairs() -> None:
    image, text = features(0), features(1)
    total = 0.0
    for i in range(5):
        for j in range(5):
            if i == j or LABEL[i] != LABEL[j]:
                logit = 10 * float(image[i] @ text[j]) - 2
                total += math.log(1 + math.exp(-logit if i == j else logit))
    assert sigmoid_contrastive(image, text, 10.0, -2.0, label=torch.tensor(LABEL)).item() == pytest.approx(total / 5, rel=1e-12)
    distinct = sigmoid_contrastive(image, text, 10.0, -2.0, label=torch.arange(5))
    assert torch.equal(distinct, sigmoid_contrastive(image, text, 10.0, -2.0))


def test_sigmoid_with_labels_passes_gradcheck() -> None:
    inputs = (features(0).requires_grad_(), features(1).requires_grad_())
    assert torch.autograd.gradcheck(lambda f, g: sigmoid_contrastive(f, g, 5.0, -2.0, label=torch.tensor(LABEL)), inputs)
