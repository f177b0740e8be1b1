"""The losses, re-implemented with plain loops from the equations, then closed forms, symmetry and gradients."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from surefoot.errors import SettingError
from surefoot.losses import contrastive, cross_entropy


def features(seed: int, rows: int = 5, dim: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=-1)


def loop_contrastive(image: Tensor, text: Tensor, scale: float) -> float:
    """FLYP eq. 1 as printed, with the scale inside the exponentials, divided by 2B."""
    f, g, size = image.tolist(), text.tolist(), len(image)

    def similarity(i: int, j: int) -> float:
        return math.exp(scale * sum(x * y for x, y in zip(f[i], g[j], strict=True)))

    total = 0.0
    for i in range(size):
        total -= math.log(similarity(i, i) / sum(similarity(i, j) for j in range(size)))
    for i in range(size):
        total -= math.log(similarity(i, i) / sum(similarity(j, i) for j in range(size)))
    return total / (2 * size)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_contrastive_is_equation_1(rows: int, scale: float) -> None:
    image, text = features(0, rows), features(1, rows)
    assert contrastive(image, text, scale).item() == pytest.approx(loop_contrastive(image, text, scale), rel=1e-12, abs=1e-14)


def test_scale_may_be_a_tensor() -> None:
    image, text = features(0), features(1)
    assert torch.equal(contrastive(image, text, torch.tensor(14.3, dtype=torch.float64)), contrastive(image, text, 14.3))


def test_contrastive_is_a_scalar_of_the_features_dtype() -> None:
    loss = contrastive(features(0).float(), features(1).float(), torch.tensor(100.0))
    assert (loss.shape, loss.dtype) == (torch.Size([]), torch.float32)


def test_identical_features_give_log_batch_size() -> None:
    same = features(0, rows=1).expand(7, -1)
    assert contrastive(same, same, 100.0).item() == pytest.approx(math.log(7), rel=1e-12)


def test_orthogonal_pairs_have_a_closed_form() -> None:
    image = torch.eye(6, dtype=torch.float64)
    assert contrastive(image, image, 2.0).item() == pytest.approx(math.log(1 + 5 * math.exp(-2)), rel=1e-12)


def test_batch_of_one_gives_zero() -> None:
    assert contrastive(features(0, rows=1), features(1, rows=1), 100.0).item() == 0


def test_image_and_text_may_be_swapped() -> None:
    image, text = features(0), features(1)
    torch.testing.assert_close(contrastive(image, text, 10.0), contrastive(text, image, 10.0), rtol=1e-14, atol=0)


def test_each_direction_has_half_of_the_weight() -> None:
    image, text = features(0), features(1)
    logits = 10 * image @ text.T
    images, texts = cross_entropy(logits, torch.arange(5)), cross_entropy(logits.T, torch.arange(5))
    assert abs(images - texts) > 0.1
    torch.testing.assert_close(contrastive(image, text, 10.0), (images + texts) / 2)


def test_order_of_the_batch_does_not_matter() -> None:
    image, text, order = features(0), features(1), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(contrastive(image[order], text[order], 10.0), contrastive(image, text, 10.0))


def test_repeated_prompts_stay_negatives() -> None:
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert contrastive(text, text, 100.0).item() == pytest.approx(math.log(2))


def test_better_pairs_score_lower() -> None:
    image = features(0)
    noisy = [torch.nn.functional.normalize(image + noise * features(1), dim=-1) for noise in (0.0, 0.5, 1.0)]
    losses = [contrastive(image, text, 10.0).item() for text in [*noisy, image.roll(1, 0)]]
    assert all(better < worse for better, worse in pairwise(losses))


def test_contrastive_passes_gradcheck() -> None:
    inputs = (features(0).requires_grad_(), features(1).requires_grad_(), torch.tensor(5.0, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(contrastive, inputs)


@pytest.mark.parametrize(("image", "text"), [((5, 4), (4, 4)), ((5, 4), (5, 3)), ((4,), (4,)), ((0, 4), (0, 4))])
def test_contrastive_names_shapes_that_do_not_fit(image: tuple[int, ...], text: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match=r"shape \[.*Both must be \[B, D\].*Pass one text per image"):
        contrastive(torch.ones(image), torch.ones(text), 1.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_its_equation(smoothing: float) -> None:
    logits, label = 3 * features(0, rows=6), [0, 1, 2, 3, 3, 0]
    total = 0.0
    for row, correct in zip(logits.tolist(), label, strict=True):
        log_p = [z - math.log(sum(math.exp(other) for other in row)) for z in row]
        total -= (1 - smoothing) * log_p[correct] + smoothing / len(row) * sum(log_p)
    assert cross_entropy(logits, torch.tensor(label), smoothing).item() == pytest.approx(total / len(label), rel=1e-12)


def test_equal_logits_give_log_number_of_classes() -> None:
    assert cross_entropy(torch.zeros(2, 9), torch.tensor([0, 8]), 0.3).item() == pytest.approx(math.log(9))


def test_right_class_scores_below_wrong_class() -> None:
    logits = torch.tensor([[4.0, 0.0, 0.0]])
    assert cross_entropy(logits, torch.tensor([0])) < cross_entropy(logits, torch.tensor([1]))


def test_cross_entropy_passes_gradcheck() -> None:
    logits, label = features(0).requires_grad_(), torch.tensor([0, 1, 2, 3, 3])
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, label, 0.1), (logits,))


@pytest.mark.parametrize(("logits", "label"), [((5, 4), (4,)), ((5, 4), (5, 4)), ((4,), (4,)), ((0, 4), (0,))])
def test_cross_entropy_names_shapes_that_do_not_fit(logits: tuple[int, ...], label: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match=r"They must be \[B, K\] and \[B\].*Pass one class id"):
        cross_entropy(torch.zeros(logits), torch.zeros(label, dtype=torch.long))


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, math.nan])
def test_label_smoothing_out_of_range_is_an_error(smoothing: float) -> None:
    with pytest.raises(SettingError, match=r"label_smoothing is .* in 0\.\.1\. Use 0"):
        cross_entropy(torch.zeros(1, 2), torch.tensor([0]), smoothing)
