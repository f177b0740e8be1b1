"""The losses, re-implemented with plain loops from the equations, then closed forms, symmetry and gradients."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from surefoot.errors import SettingError
from surefoot.losses import contrastive, cross_entropy, half_squared_distance, half_squared_norm, sigmoid_contrastive


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


def loop_sigmoid(image: Tensor, text: Tensor, scale: float, bias: float) -> float:
    """SigLIP's equation, pair by pair."""
    f, g, size = image.tolist(), text.tolist(), len(image)
    total = 0.0
    for i in range(size):
        for j in range(size):
            z = 1 if i == j else -1
            logit = scale * sum(x * y for x, y in zip(f[i], g[j], strict=True)) + bias
            total += math.log(1 / (1 + math.exp(-z * logit)))
    return -total / size


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (10.0, -10.0), (30.0, 2.5)])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_sigmoid_contrastive_is_its_equation(rows: int, scale: float, bias: float) -> None:
    image, text = features(0, rows), features(1, rows)
    expected = loop_sigmoid(image, text, scale, bias)
    assert sigmoid_contrastive(image, text, scale, bias).item() == pytest.approx(expected, rel=1e-12)


def test_sigmoid_of_nothing_told_apart_is_batch_size_times_log_2() -> None:
    assert sigmoid_contrastive(features(0), features(1), 0.0, 0.0).item() == pytest.approx(5 * math.log(2), rel=1e-12)


def test_sigmoid_of_orthogonal_pairs_has_a_closed_form() -> None:
    image = torch.eye(6, dtype=torch.float64)
    expected = math.log(1 + math.exp(-(4.0 - 1.5))) + 5 * math.log(1 + math.exp(-1.5))
    assert sigmoid_contrastive(image, image, 4.0, -1.5).item() == pytest.approx(expected, rel=1e-12)


def test_sigmoid_images_and_texts_may_be_swapped_and_reordered() -> None:
    image, text, order = features(0), features(1), torch.tensor([3, 0, 4, 1, 2])
    plain = sigmoid_contrastive(image, text, 10.0, -3.0)
    torch.testing.assert_close(sigmoid_contrastive(text, image, 10.0, -3.0), plain, rtol=1e-14, atol=0)
    torch.testing.assert_close(sigmoid_contrastive(image[order], text[order], 10.0, -3.0), plain)


def test_sigmoid_better_pairs_score_lower() -> None:
    image = torch.eye(5, 4, dtype=torch.float64) + torch.eye(5, 4, dtype=torch.float64).roll(1, 0)
    image = torch.nn.functional.normalize(image, dim=-1)
    noisy = [torch.nn.functional.normalize(image + noise * features(1), dim=-1) for noise in (0.0, 0.5, 1.0)]
    losses = [sigmoid_contrastive(image, text, 10.0, -5.0).item() for text in [*noisy, image.roll(1, 0)]]
    assert all(better < worse for better, worse in pairwise(losses))


def test_sigmoid_stays_finite_at_large_scales() -> None:
    image = torch.eye(3)
    assert sigmoid_contrastive(image, image.roll(1, 0), 1e4, 0.0).item() == pytest.approx(1e4 + 2 * math.log(2))


def test_sigmoid_passes_gradcheck() -> None:
    numbers = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (5.0, -2.0)]
    assert torch.autograd.gradcheck(sigmoid_contrastive, (features(0).requires_grad_(), features(1).requires_grad_(), *numbers))


@pytest.mark.parametrize(("image", "text"), [((5, 4), (4, 4)), ((4,), (4,)), ((0, 4), (0, 4))])
def test_sigmoid_names_shapes_that_do_not_fit(image: tuple[int, ...], text: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match=r"sigmoid_contrastive was given .*Both must be \[B, D\].*Pass one text per image"):
        sigmoid_contrastive(torch.ones(image), torch.ones(text), 1.0, 0.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_adjusted_cross_entropy_is_its_equation(smoothing: float) -> None:
    """Menon et al., eq. 10, in its first form: log(1 + sum over the other classes of (pi_k / pi_y)^tau exp(f_k - f_y)), smoothed."""
    logits, label, prior, tau = 3 * features(0, rows=6), [0, 1, 2, 3, 3, 0], [0.6, 0.25, 0.1, 0.05], 1.3
    total = 0.0
    for row, correct in zip(logits.tolist(), label, strict=True):
        log_p = [-math.log(1 + sum((prior[k] / prior[y]) ** tau * math.exp(row[k] - row[y]) for k in range(4) if k != y)) for y in range(4)]
        total -= (1 - smoothing) * log_p[correct] + smoothing / 4 * sum(log_p)
    adjustment = tau * torch.tensor(prior, dtype=torch.float64).log()
    value = cross_entropy(logits, torch.tensor(label), smoothing, adjustment=adjustment)
    assert value.item() == pytest.approx(total / len(label), rel=1e-12)


def test_adjustment_of_balanced_classes_changes_nothing() -> None:
    logits, label = features(0), torch.tensor([0, 1, 2, 3, 3])
    adjusted = cross_entropy(logits, label, adjustment=torch.full((4,), 0.25, dtype=torch.float64).log())
    torch.testing.assert_close(adjusted, cross_entropy(logits, label), rtol=1e-14, atol=0)


def test_adjustment_asks_more_for_a_rare_class() -> None:
    """Logits that say nothing cost a rare class more, so that the plain logits have to make up for the prior."""
    adjustment = torch.tensor([0.9, 0.1]).log()
    frequent, rare = (cross_entropy(torch.zeros(1, 2), torch.tensor([y]), adjustment=adjustment).item() for y in (0, 1))
    assert (frequent, rare) == (pytest.approx(-math.log(0.9)), pytest.approx(-math.log(0.1)))


def test_adjusted_cross_entropy_passes_gradcheck() -> None:
    logits, label, adjustment = features(0).requires_grad_(), torch.tensor([0, 1, 2, 3, 3]), features(1, rows=1)[0]
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, label, 0.1, adjustment=adjustment), (logits,))


@pytest.mark.parametrize("shape", [(3,), (1, 4), (5, 4), ()])
def test_adjustment_must_have_a_number_per_class(shape: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match=r"adjustment of shape .*\[B, K\] and \[K\]\. Pass tau \* log"):
        cross_entropy(torch.zeros(5, 4), torch.zeros(5, dtype=torch.long), adjustment=torch.zeros(shape))


def parameters(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 2), (4,), ())]


def test_half_squared_distance_is_a_sum_over_all_entries() -> None:
    now, start = parameters(0), parameters(1)
    total = 0.0
    for theta, theta_0 in zip(now, start, strict=True):
        for x, y in zip(theta.flatten().tolist(), theta_0.flatten().tolist(), strict=True):
            total += (x - y) ** 2
    assert half_squared_distance(now, start).item() == pytest.approx(total / 2, rel=1e-12)


def test_half_squared_norm_is_the_distance_to_zero() -> None:
    now = parameters(0)
    torch.testing.assert_close(half_squared_norm(now), half_squared_distance(now, [torch.zeros_like(theta) for theta in now]))


def test_distance_to_itself_is_zero_and_grows() -> None:
    now, start = parameters(0), parameters(1)
    values = [half_squared_distance([a + far * b for a, b in zip(now, start, strict=True)], now).item() for far in (0.0, 0.5, 1.0)]
    assert values[0] == 0
    assert values[1] == pytest.approx(values[2] / 4)


def test_distance_is_symmetric() -> None:
    now, start = parameters(0), parameters(1)
    torch.testing.assert_close(half_squared_distance(now, start), half_squared_distance(start, now), rtol=0, atol=0)


def test_gradient_of_the_distance_is_the_difference_and_does_not_reach_the_start() -> None:
    now, start = ([theta.requires_grad_() for theta in parameters(seed)] for seed in (0, 1))
    half_squared_distance(now, start).backward()
    for theta, theta_0 in zip(now, start, strict=True):
        torch.testing.assert_close(theta.grad, (theta - theta_0).detach())
        assert theta_0.grad is None


def test_penalties_pass_gradcheck() -> None:
    now, start = [theta.requires_grad_() for theta in parameters(0)], parameters(1)
    assert torch.autograd.gradcheck(lambda *tensors: half_squared_distance(tensors, start), now)
    assert torch.autograd.gradcheck(lambda *tensors: half_squared_norm(tensors), now)


@pytest.mark.parametrize(
    ("now", "start"), [([], []), ([(2,)], []), ([(2,)], [(2,), (2,)]), ([(2, 3)], [(3, 2)]), ([(2, 1)], [(2,)]), ([(1,)] * 9, [(2,)] * 9)]
)
def test_parameters_that_do_not_fit_are_an_error(now: list[tuple[int, ...]], start: list[tuple[int, ...]]) -> None:
    with pytest.raises(SettingError, match=r"tensors of shapes \[.*start of shapes \[.*same parameters in the same order.*Take both"):
        half_squared_distance([torch.ones(shape) for shape in now], [torch.ones(shape) for shape in start])


def test_norm_of_no_parameters_is_an_error() -> None:
    with pytest.raises(SettingError, match=r"given no tensors\. It needs at least one\. Name parameters"):
        half_squared_norm([])
