"""Distances between context distributions that know which contexts resemble each other: the alternatives to `context_kl`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from surefoot.errors import SettingError
from surefoot.losses.distillation import context_log_probabilities


def context_mmd(image: Tensor, reference: Tensor, contexts: Tensor, scale: float | Tensor) -> Tensor:
    """Squared maximum mean discrepancy between the context distributions of the fine-tuned and the pre-trained model.

    Moving mass between two contexts that look alike, a sketch and a drawing, costs less than between two that do not.

    With f(x_i) = `image[i]`, f_0(x_i) = `reference[i]`, w_p = `contexts[p]` (or `contexts[i, p]`) and s = `scale`::

        L = 1/B sum_i (p_i - p_0i)^T K (p_i - p_0i),   K[p, q] = exp( -||w_p - w_q||^2 / (2 sigma^2) )
        p_i = softmax_p(s w_p.f(x_i)),   p_0i = softmax_p(s w_p.f_0(x_i)),   sigma^2 = mean over p != q of ||w_p - w_q||^2

    Args:
        image: [B, D], l2-normalised image features of the model being trained.
        reference: [B, D], those of the pre-trained model for the same images; a constant, so no gradient reaches it.
        contexts: [P, D], l2-normalised text features of the contexts, or [B, P, D], of each image's own class, each image then having
            a kernel of its own; a constant.
        scale: exp(logit_scale) of the pre-trained model, a float or a 0-d tensor; 100 for OpenAI's models.

    Returns:
        0-d tensor, in 0..2.

    Raises:
        SettingError: the shapes do not fit together, or the batch is empty, or there are no contexts.

    Needs:
        `image`, and its features from the reference.

    Relations:
        0 when the features are the reference's, for a single context, and for contexts that are all the same. The kernel levels off
        for contexts far apart, the cost of `context_wasserstein` does not. `context_kl` is CAR-FT's default.

    Differences:
        The paper names this alternative, which "brings no better performance", and gives no kernel. Ours is Gaussian, its
        bandwidth set by the contexts themselves, so that it has no parameter.

    Examples:
        >>> image, contexts = torch.tensor([[1.0, 0.0]]), torch.eye(2)
        >>> context_mmd(image, image, contexts, 100.0).item()
        0.0
        >>> round(context_mmd(image.flip(1), image, contexts, 100.0).item(), 4)  # 2 - 2 exp(-1/2)
        0.7869

    References:
        Mao, Chen, Jia, Zhang, Xue, Li. Context-aware robust fine-tuning. IJCV 2024, section 5.
        Gretton, Borgwardt, Rasch, Schoelkopf, Smola. A kernel two-sample test. JMLR 2012, lemma 6.
    """
    log_p, log_p_0 = context_log_probabilities("context_mmd", image, reference, contexts, scale)
    relative, _ = _costs(contexts.detach())
    moved = (log_p.exp() - log_p_0.exp())[:, :, None]  # [B, P, 1]
    kernel = (-relative / 2).exp()  # ||w_p - w_q||^2 is twice the cost, so sigma^2 twice the mean cost
    return (moved.mT @ kernel @ moved).mean()


def context_wasserstein(
    image: Tensor, reference: Tensor, contexts: Tensor, scale: float | Tensor, *, blur: float = 0.2, num_iterations: int = 100
) -> Tensor:
    """Cost of moving the fine-tuned model's context distribution onto the pre-trained one's, by optimal transport.

    Mass that moves between contexts pays by how little they resemble each other, in proportion.

    With f(x_i) = `image[i]`, f_0(x_i) = `reference[i]`, w_p = `contexts[p]` (or `contexts[i, p]`) and s = `scale`::

        L = 1/B sum_i [ OT(p_i, p_0i) - OT(p_i, p_i) / 2 - OT(p_0i, p_0i) / 2 ],   C[p, q] = 1 - w_p.w_q
        OT(a, b) = min over T >= 0, T 1 = a, T^T 1 = b, of <T, C> + epsilon KL[ T || a b^T ]
        p_i = softmax_p(s w_p.f(x_i)),   p_0i = softmax_p(s w_p.f_0(x_i)),   epsilon = `blur` * (mean over p != q of C[p, q])

    The entropy, weight epsilon, makes the transport smooth and fast to compute by Sinkhorn's iterations, run on logarithms; taking off
    the OT of each distribution with itself makes L 0 where p_i = p_0i.

    Args:
        image: [B, D], l2-normalised image features of the model being trained.
        reference: [B, D], those of the pre-trained model for the same images; a constant, so no gradient reaches it.
        contexts: [P, D], l2-normalised text features of the contexts, or [B, P, D], of each image's own class; a constant.
        scale: exp(logit_scale) of the pre-trained model, a float or a 0-d tensor; 100 for OpenAI's models.
        blur: epsilon as a share of the mean cost, above 0. Smaller is nearer to the plain transport cost, and needs more iterations:
            0.05 can take 1000 where little mass moves.
        num_iterations: of Sinkhorn, at least 1. One passes eight times over an array [B, P, P]; memory does not grow with their number.

    Returns:
        0-d tensor, in units of the cost.

    Raises:
        SettingError: the shapes do not fit together, the batch is empty, there are no contexts, or a number is out of its range.

    Needs:
        `image`, and its features from the reference.

    Relations:
        0 when the features are the reference's, for a single context, and for contexts that are all the same. As `blur` goes to 0 it
        becomes the Wasserstein distance of cost C; as it grows, half the squared distance between the two mean contexts, which is a
        discrepancy like `context_mmd`. `context_kl` is CAR-FT's default.

    Differences:
        The paper names this alternative, which "brings no better performance", and gives neither cost nor solver. Entropy makes L
        quadratic near p_i = p_0i, where the plain cost has a kink, and lower: at the default by a fifth to a third where a third of the
        mass moves, by half or more where a tenth or less does. The gradient is that of the optimum, the dual potentials, instead of one
        through the iterations; a second derivative is not available.

    Examples:
        >>> image, contexts = torch.tensor([[1.0, 0.0]]), torch.eye(2)
        >>> context_wasserstein(image, image, contexts, 100.0).item()
        0.0
        >>> round(context_wasserstein(image.flip(1), image, contexts, 100.0).item(), 4)  # all mass moves, at a cost of 1
        1.0

    References:
        Mao, Chen, Jia, Zhang, Xue, Li. Context-aware robust fine-tuning. IJCV 2024, section 5.
        Cuturi. Sinkhorn distances: Lightspeed computation of optimal transport. NeurIPS 2013.
        Feydy, Sejourne, Vialard, Amari, Trouve, Peyre. Interpolating between optimal transport and MMD using Sinkhorn divergences.
        AISTATS 2019, section 1 (definition and limits), section 3 (derivatives).
        Thibault, Chizat, Dossal, Papadakis. Overrelaxed Sinkhorn-Knopp algorithm for regularized optimal transport. Algorithms 2021.
    """
    if not (0 < blur < math.inf and num_iterations >= 1):
        raise SettingError(
            f"context_wasserstein was given blur {blur} and num_iterations {num_iterations}. They must be above 0 and at least 1. "
            "Leave them at 0.2 and 100, or take more iterations for a smaller blur."
        )
    log_p, log_p_0 = context_log_probabilities("context_wasserstein", image, reference, contexts, scale)
    relative, mean = _costs(contexts.detach())
    slope, slope_0 = _slopes(log_p.detach(), log_p_0, relative, blur, num_iterations)
    return (mean * (log_p.exp() * slope + log_p_0.exp() * slope_0).sum(dim=1)).mean()


def _costs(contexts: Tensor) -> tuple[Tensor, Tensor]:
    """1 - cosine between contexts in units of its mean over p != q, [1, P, P] or [B, P, P], and that mean, [1] or [B]."""
    contexts = contexts if contexts.ndim == 3 else contexts[None]
    size = contexts.shape[1]
    cost = (1 - contexts @ contexts.mT).clamp_min(0)
    cost = cost.masked_fill(torch.eye(size, dtype=torch.bool, device=cost.device), 0)  # exactly, whatever the rounding
    mean = cost.sum(dim=(1, 2)) / max(size * (size - 1), 1)
    return cost / mean.clamp_min(torch.finfo(cost.dtype).tiny)[:, None, None], mean


def _slopes(log_a: Tensor, log_b: Tensor, cost: Tensor, blur: float, num_iterations: int) -> tuple[Tensor, Tensor]:
    """Derivatives of OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2 by a and by b, each [B, P].

    The mean over both orders of a and b: so it is 0 for a = b even where the iterations have not converged.
    """
    first, second = torch.stack([log_a, log_b, log_a, log_b]), torch.stack([log_b, log_a, log_a, log_b])
    (ab, ba, aa, bb), (ab_2, ba_2, aa_2, bb_2) = _potentials(first, second, cost, blur, num_iterations)
    return ((ab - aa) + (ba_2 - aa_2)) / 2, ((ab_2 - bb_2) + (ba - bb)) / 2


def _potentials(log_a: Tensor, log_b: Tensor, cost: Tensor, blur: float, num_iterations: int) -> tuple[Tensor, Tensor]:
    """Derivatives of OT(a, b) by a and by b, each [4, B, P], up to a constant that OT(a, b) = <a, .> + <b, .> does not see.

    The cost is [1 or B, P, P] with a mean of 1, so `blur` is epsilon.
    """

    def update(log_weight: Tensor, potential: Tensor) -> Tensor:
        return -blur * torch.logsumexp(log_weight[..., None, :] + (potential[..., None, :] - cost) / blur, dim=-1)

    by_a = by_b = torch.zeros_like(log_a)
    for _ in range(num_iterations):
        by_a = by_a + 1.5 * (update(log_b, by_b) - by_a)  # over-relaxed: plain steps (1.0) take several times as many
        by_b = by_b + 1.5 * (update(log_a, by_a) - by_b)
    by_a = update(log_b, by_b)
    return by_a, update(log_a, by_a)
