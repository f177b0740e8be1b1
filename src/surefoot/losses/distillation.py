"""Losses that keep distributions of the pre-trained model: theta trains, the reference theta_0 is a constant."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from surefoot.losses._checks import check_contexts, check_pairs, check_reference


def context_kl(image: Tensor, reference: Tensor, contexts: Tensor, scale: float | Tensor) -> Tensor:
    """Divergence of the fine-tuned model's context distribution from the pre-trained one's: CAR-FT's regularizer.

    Fine-tuning on class names makes the image tower forget what else it saw: style, viewpoint, background. Reading the image against
    texts of contexts, such as "a sketch of a dog", gives a distribution over them that needs no labels; it is kept as it was.

    With f(x_i) = `image[i]`, f_0(x_i) = `reference[i]`, w_p = `contexts[p]` (or `contexts[i, p]`) and s = `scale`::

        L = 1/B sum_i KL[ p_0i || p_i ] = 1/B sum_i sum_p p_0i[p] log( p_0i[p] / p_i[p] )
        p_i = softmax_p(s w_p.f(x_i)),   p_0i = softmax_p(s w_p.f_0(x_i))

    Args:
        image: [B, D], l2-normalised image features of the model being trained.
        reference: [B, D], those of the pre-trained model for the same images; a constant, so no gradient reaches it.
        contexts: [P, D], l2-normalised text features of the contexts, averaged over the classes (W_ctx), or [B, P, D], of each image's
            own class; from the pre-trained text tower; a constant.
        scale: exp(logit_scale) of the pre-trained model, a float or a 0-d tensor; 100 for OpenAI's models.

    Returns:
        0-d tensor.

    Raises:
        SettingError: the shapes do not fit together, or the batch is empty, or there are no contexts.

    Needs:
        `image`, and its features from the reference.

    Relations:
        0 when the features are the reference's, as at the start of training, and for a single context. The context distributions of
        `context_mmd` and `context_wasserstein` are the same, but those two know which contexts resemble each other. The roles in
        `similarity_distillation` are the other way round unless it is reversed.

    Differences:
        The paper prints no temperature within the softmax; cosine similarities without one give almost uniform distributions, so the
        pre-trained scale is an explicit argument; 1 is the printed form. Eq. 5 is for one image; this is the mean over the batch.

    Examples:
        >>> import torch
        >>> image, contexts = torch.tensor([[1.0, 0.0]]), torch.eye(2)
        >>> context_kl(image, image, contexts, 100.0).item()
        0.0
        >>> round(context_kl(image.flip(1), image, contexts, 2.0).item(), 4)  # (p - (1 - p)) * 2 with p = sigmoid(2)
        1.5232

    References:
        Mao, Chen, Jia, Zhang, Xue, Li. Context-aware robust fine-tuning. IJCV 2024, eqs. 3-5.
    """
    log_p, log_p_0 = context_log_probabilities("context_kl", image, reference, contexts, scale)
    return _kl(log_p_0, log_p)


def similarity_distillation(
    image: Tensor, text: Tensor, reference_image: Tensor, reference_text: Tensor, scale: float | Tensor, *, reverse: bool = False
) -> Tensor:
    """Divergence between the two models' image-to-text similarities within the batch: CLIP-CITE's distillation, L_VLD.

    Where both towers train they may drift together: pairs stay aligned while all else that the pre-trained model knew of which texts
    resemble which images is lost. This keeps the similarities with all texts of the batch.

    With f(x_i) = `image[i]`, g(t_j) = `text[j]`, f_0 and g_0 = `reference_image` and `reference_text`, and s = `scale`::

        L = 1/B sum_i KL[ p_i || p_0i ] = 1/B sum_i sum_j p_i[j] log( p_i[j] / p_0i[j] )
        p_i = softmax_j(s f(x_i).g(t_j)),   p_0i = softmax_j(s f_0(x_i).g_0(t_j))

    Args:
        image: [B, D], l2-normalised image features of the model being trained.
        text: [B, D], its l2-normalised text features; row j belongs to image j.
        reference_image: [B, D], image features of the pre-trained model for the same images; a constant, so no gradient reaches it.
        reference_text: [B, D], its text features for the same texts; a constant.
        scale: exp(logit_scale), which stays frozen in the paper, a float or a 0-d tensor; 100 for OpenAI's models.
        reverse: take KL[ p_0 || p ], the usual direction of distillation; the paper prints KL[ p || p_0 ].

    Returns:
        0-d tensor.

    Raises:
        SettingError: the four are not of one shape [B, D], or the batch is empty.

    Needs:
        `image`, `prompt`, and the features of both from the reference.

    Relations:
        0 when the features are the reference's, as at the start of training, and for a batch of one. Both directions agree to second
        order near there; further off the printed one asks for no likely text that was unlikely, the reversed one for all texts that
        were likely. `context_kl` compares similarities with fixed texts instead of the batch's.

    Differences:
        Eq. 5 prints a sum over the batch; this is the mean.

    Examples:
        >>> import torch
        >>> image, flat = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> similarity_distillation(image, image, image, image, 100.0).item()
        0.0
        >>> round(similarity_distillation(image, image, image, flat, 100.0).item(), 4)  # from even to sure: log(2)
        0.6931
        >>> round(similarity_distillation(image, image, image, flat, 100.0, reverse=True).item(), 4)  # log(1/2) + 100 / 2
        49.3069

    References:
        Liu, Li, Yu. Fully fine-tuned CLIP models are efficient few-shot learners. arXiv 2024, eq. 5.
    """
    check_pairs("similarity_distillation", image, text)
    check_reference("similarity_distillation", "image", image, reference_image)
    check_reference("similarity_distillation", "text", text, reference_text)
    log_p = F.log_softmax(scale * image @ text.T, dim=1)  # [B, B]: images by texts
    log_p_0 = F.log_softmax(scale * reference_image @ reference_text.T, dim=1).detach()
    return _kl(log_p_0, log_p) if reverse else _kl(log_p, log_p_0)


def context_log_probabilities(
    loss: str, image: Tensor, reference: Tensor, contexts: Tensor, scale: float | Tensor
) -> tuple[Tensor, Tensor]:
    """log p and log p_0, the two context distributions that the losses between them share, each [B, P]; the second is a constant.

    Args:
        loss: the loss that asks, named in the messages.
        image: [B, D], l2-normalised image features of the model being trained.
        reference: [B, D], those of the pre-trained model; no gradient reaches it.
        contexts: [P, D] or [B, P, D], l2-normalised text features; no gradient reaches them.
        scale: exp(logit_scale).

    Raises:
        SettingError: the shapes do not fit together, or the batch is empty, or there are no contexts.
    """
    check_reference(loss, "image", image, reference)
    check_contexts(loss, image, contexts)
    log_p, log_p_0 = (F.log_softmax(scale * (contexts.detach() @ f[:, :, None])[:, :, 0], dim=1) for f in (image, reference))
    return log_p, log_p_0.detach()


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL[ p || q ] of each row, averaged over the rows."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()
