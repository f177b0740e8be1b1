"""The two distances that know which contexts are alike: their definitions in plain loops, exact transport, and closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from test_losses import features
from test_losses_distillation import dot, loop_contexts, own_contexts
from torch import Tensor

from surefoot.errors import SettingError
from surefoot.losses import context_kl, context_mmd, context_wasserstein

Matrix = list[list[float]]


def distance_squared(x: list[float], y: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def loop_mmd(p: list[float], q: list[float], contexts: Matrix) -> float:
    """Gretton et al., lemma 6: E k(x, x') - 2 E k(x, y) + E k(y, y'), x from p and y from q."""
    pairs = [(a, b) for a, b in itertools.product(range(len(p)), repeat=2) if a != b]
    bandwidth = sum(distance_squared(contexts[a], contexts[b]) for a, b in pairs) / len(pairs)

    def expected(left: list[float], right: list[float]) -> float:
        total = 0.0
        for a, x in enumerate(left):
            for b, y in enumerate(right):
                total += x * y * math.exp(-distance_squared(contexts[a], contexts[b]) / (2 * bandwidth))
        return total

    return expected(p, p) - 2 * expected(p, q) + expected(q, q)


def loop_transport(p: list[float], q: list[float], cost: Matrix, epsilon: float) -> float:
    """<T, C> + epsilon KL[T || p q^T] at its least, by Sinkhorn's own iterations: rows, then columns, on plain numbers."""
    every = range(len(p))
    kernel = [[math.exp(-cost[a][b] / epsilon) for b in every] for a in every]
    u, v = [1.0] * len(p), [1.0] * len(p)
    for _ in range(400):
        u = [1 / sum(kernel[a][b] * v[b] * q[b] for b in every) for a in every]
        v = [1 / sum(kernel[a][b] * u[a] * p[a] for a in every) for b in every]
    total = 0.0
    for a, b in itertools.product(every, every):
        density = u[a] * kernel[a][b] * v[b]
        total += p[a] * q[b] * density * (cost[a][b] + epsilon * math.log(density))
    return total


def loop_wasserstein(p: list[float], q: list[float], contexts: Matrix, blur: float) -> float:
    every = range(len(p))
    cost = [[0.0 if a == b else 1 - dot(contexts[a], contexts[b]) for b in every] for a in every]
    epsilon = blur * sum(map(sum, cost)) / (len(p) * (len(p) - 1))
    both = loop_transport(p, q, cost, epsilon)
    return both - loop_transport(p, p, cost, epsilon) / 2 - loop_transport(q, q, cost, epsilon) / 2


def exact_transport(p: Tensor, q: Tensor, cost: Tensor) -> float:
    """The linear programme, by looking at every vertex: at most 2P - 1 cells of the plan hold mass."""
    size, best = len(p), math.inf
    marginals = torch.cat([torch.eye(size, dtype=p.dtype).repeat_interleave(size, 1), torch.eye(size, dtype=p.dtype).repeat(1, size)])[:-1]
    for cells in itertools.combinations(range(size**2), 2 * size - 1):
        basis = marginals[:, list(cells)]
        if basis.det().abs() > 0.5:  # a determinant of such a matrix is -1, 0 or 1
            plan = torch.linalg.solve(basis, torch.cat([p, q])[:-1])
            if plan.min() > -1e-12:
                best = min(best, float(plan @ cost.flatten()[list(cells)]))
    return best


def contexts_as_lists(contexts: Tensor, row: int) -> Matrix:
    return (contexts[row] if contexts.ndim == 3 else contexts).tolist()


@pytest.mark.parametrize("rows", [1, 4])
def test_mmd_is_its_definition(rows: int) -> None:
    image, reference = features(0, rows), features(1, rows)
    for contexts in (features(2, rows=3), own_contexts(rows)):
        p, p_0 = loop_contexts(image, contexts, 5.0), loop_contexts(reference, contexts, 5.0)
        expected = sum(loop_mmd(p[i], p_0[i], contexts_as_lists(contexts, i)) for i in range(rows)) / rows
        assert context_mmd(image, reference, contexts, 5.0).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("blur", [0.3, 2.0])
@pytest.mark.parametrize("rows", [1, 3])
def test_wasserstein_is_its_definition(rows: int, blur: float) -> None:
    image, reference = features(0, rows), features(1, rows)
    for contexts in (features(2, rows=3), own_contexts(rows)):
        p, p_0 = loop_contexts(image, contexts, 3.0), loop_contexts(reference, contexts, 3.0)
        expected = sum(loop_wasserstein(p[i], p_0[i], contexts_as_lists(contexts, i), blur) for i in range(rows)) / rows
        value = context_wasserstein(image, reference, contexts, 3.0, blur=blur, num_iterations=200)
        assert value.item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("angle", [0.3, 1.0, math.pi])
def test_mmd_of_two_contexts_has_a_closed_form(angle: float) -> None:
    """The bandwidth is their distance, whatever it is."""
    contexts = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    image, reference = features(0, dim=2), features(1, dim=2)
    p, p_0 = ((2 * f @ contexts.T).softmax(1)[:, 0] for f in (image, reference))
    expected = (2 * (1 - math.exp(-0.5)) * (p - p_0) ** 2).mean()
    torch.testing.assert_close(context_mmd(image, reference, contexts, 2.0), expected)


@pytest.mark.parametrize("angle", [0.3, 1.0, math.pi])
def test_transport_between_two_contexts_is_the_mass_moved_times_the_cost(angle: float) -> None:
    contexts = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    image, reference = features(0, dim=2), features(1, dim=2)
    p, p_0 = ((2 * f @ contexts.T).softmax(1)[:, 0] for f in (image, reference))
    expected = ((p - p_0).abs() * (1 - math.cos(angle))).mean()
    value = context_wasserstein(image, reference, contexts, 2.0, blur=0.01, num_iterations=1000)
    torch.testing.assert_close(value, expected, rtol=0.05, atol=0)


def test_transport_is_the_optimum_of_the_linear_programme() -> None:
    image, reference, contexts = features(0), features(1), features(2, rows=3)
    p, p_0 = ((4 * f @ contexts.T).softmax(1) for f in (image, reference))
    cost = (1 - contexts @ contexts.T).fill_diagonal_(0)
    expected = sum(exact_transport(now, before, cost) for now, before in zip(p, p_0, strict=True)) / 5
    exact = context_wasserstein(image, reference, contexts, 4.0, blur=0.002, num_iterations=1000).item()
    assert exact == pytest.approx(expected, rel=0.01)
    assert context_wasserstein(image, reference, contexts, 4.0).item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("num_contexts", "scale"), [(3, 10.0), (7, 20.0)])
@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_transport_has_converged_at_the_defaults(noise: float, num_contexts: int, scale: float) -> None:
    """The value, and the gradient, which depends on the convergence more."""
    reference = features(0, rows=8, dim=16)
    image = torch.nn.functional.normalize(reference + noise * features(1, rows=8, dim=16), dim=1)
    contexts = torch.nn.functional.normalize(features(3, rows=1, dim=16) + features(2, rows=num_contexts, dim=16), dim=1)
    found = []
    for settings in ({}, {"num_iterations": 1000}):
        moved = image.clone().requires_grad_()
        value = context_wasserstein(moved, reference, contexts, scale, **settings)
        value.backward()
        found.append((value.item(), moved.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-3 * found[1][1].abs().max().item())


def test_transport_of_endless_blur_compares_the_mean_contexts() -> None:
    image, reference, contexts = features(0), features(1), features(2, rows=3)
    p, p_0 = ((4 * f @ contexts.T).softmax(1) for f in (image, reference))
    expected = ((p - p_0) @ contexts).square().sum(dim=1).mean() / 2
    torch.testing.assert_close(context_wasserstein(image, reference, contexts, 4.0, blur=1e5), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss", [context_mmd, context_wasserstein])
def test_both_are_symmetric(loss) -> None:
    image, reference, contexts = features(0), features(1), features(2, rows=3)
    torch.testing.assert_close(
        loss(image, reference, contexts, 4.0), loss(reference, image, contexts, 4.0), rtol=1e-9, atol=0
    )  # fmt: skip


def test_transport_that_has_not_converged_still_leaves_the_reference_alone() -> None:
    reference, contexts = features(1, rows=9), features(2, rows=4)
    image = reference.clone().requires_grad_()
    value = context_wasserstein(image, reference, contexts, 100.0, blur=0.01, num_iterations=3)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(image.grad, torch.zeros_like(image), rtol=0, atol=1e-12)
    one, other = features(0, rows=9), features(3, rows=9)
    there, back = (context_wasserstein(*pair, contexts, 9.0, blur=0.01, num_iterations=3) for pair in ((one, other), (other, one)))
    torch.testing.assert_close(there, back, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [context_mmd, context_wasserstein])
def test_mass_that_moves_to_a_context_alike_costs_less(loss) -> None:
    """Contexts 0 and 1 are alike, 2 is not. For `context_kl` all three are equally different."""
    contexts = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2, 0.0], [1.0, -0.2, 0.0], [0.0, 0.0, 1.0]]), dim=1)
    at = torch.linalg.solve(contexts, torch.eye(3)).T  # the feature that has similarity 1 with one context and 0 with the others
    before, alike, unlike = (row[None] for row in at)
    assert loss(alike, before, contexts, 50.0) < 0.3 * loss(unlike, before, contexts, 50.0)
    torch.testing.assert_close(context_kl(alike, before, contexts, 50.0), context_kl(unlike, before, contexts, 50.0))


@pytest.mark.parametrize("loss", [context_mmd, context_wasserstein])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contexts_that_are_all_the_same_tell_nothing(loss, dtype: torch.dtype) -> None:
    image = features(0).to(dtype).requires_grad_()
    value = loss(image, features(1).to(dtype), features(2, rows=1).to(dtype).expand(4, -1), 100.0)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert image.grad is not None
    assert image.grad.isfinite().all()


@pytest.mark.parametrize("settings", [{"blur": 0.0}, {"blur": -1.0}, {"blur": math.nan}, {"blur": math.inf}, {"num_iterations": 0}])
def test_settings_of_transport_out_of_range_are_an_error(settings: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=r"was given blur .* above 0 and at least 1\. Leave them"):
        context_wasserstein(torch.ones(1, 2), torch.ones(1, 2), torch.eye(2), 1.0, **settings)
