"""Contrastive losses between the images and the texts of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from surefoot.losses._checks import check_labels, check_pairs


def contrastive(image: Tensor, text: Tensor, scale: float | Tensor) -> Tensor:
    """Symmetric image-text contrastive loss, the one that CLIP was pre-trained with.

    Fine-tuning with the pre-training loss keeps both towers aligned, so a head can be rebuilt from the tuned text tower.

    With f(I_i) = `image[i]`, g(T_i) = `text[i]` and s = `scale`::

        L = (L_image + L_text) / 2
        L_image = 1/B sum_i -log[ exp(s f(I_i).g(T_i)) / sum_j exp(s f(I_i).g(T_j)) ]
        L_text  = 1/B sum_i -log[ exp(s f(I_i).g(T_i)) / sum_j exp(s f(I_j).g(T_i)) ]

    Args:
        image: [B, D], l2-normalised image features.
        text: [B, D], l2-normalised text features; row i belongs to image i.
        scale: exp(logit_scale), a float or a 0-d tensor; 100 for OpenAI's models.

    Returns:
        0-d tensor.

    Raises:
        SettingError: `image` and `text` are not of one shape [B, D], or the batch is empty.

    Needs:
        A pair of one image and one text per row, as from `image` and `prompt`, or `image` and `caption`.

    Relations:
        `cross_entropy` of each direction's logits with the row number as label, averaged. Rows of the same class stay negatives of each
        other, unlike in `supervised_contrastive`; log(B) when all features are the same, 0 for a batch of one. `sigmoid_contrastive` is its
        sibling for SigLIP's models.

    Differences:
        FLYP's eq. 1 prints sums over the batch and over the directions, and no scale. Its release takes means and multiplies by the
        scale, and so do we: this is eq. 1 divided by 2B.

    Examples:
        >>> image = torch.eye(2)
        >>> round(contrastive(image, image, 1.0).item(), 4)  # log(1 + exp(-1))
        0.3133
        >>> contrastive(image, image.flip(0), 100.0).item()  # every text with the wrong image
        100.0

    References:
        Goyal, Kumar, Garg, Kolter, Raghunathan. Finetune like you pretrain: Improved finetuning of zero-shot vision models. CVPR 2023,
        eq. 1.
        Radford et al. Learning transferable visual models from natural language supervision. ICML 2021, figure 3.
    """
    check_pairs("contrastive", image, text)
    return _symmetric_cross_entropy(scale * image @ text.T)


def supervised_contrastive(
    image: Tensor, text: Tensor, label: Tensor, scale: float | Tensor, *, positive_in_denominator: bool = True
) -> Tensor:
    """Symmetric image-text contrastive loss in which items of one class are not each other's negatives: CLIP-CITE's L_SCL.

    In a small batch of few classes many texts are the same prompt, and pushing an image away from the text of its own class teaches
    nothing true.

    With f(I_i) = `image[i]`, g(T_i) = `text[i]`, y = `label`, s = `scale` and N_i = {j : y_j != y_i} (with i itself, by default)::

        L = (L_image + L_text) / 2
        L_image = 1/B sum_i -log[ exp(s f(I_i).g(T_i)) / sum_{j in N_i} exp(s f(I_i).g(T_j)) ]
        L_text  = 1/B sum_i -log[ exp(s f(I_i).g(T_i)) / sum_{j in N_i} exp(s f(I_j).g(T_i)) ]

    Args:
        image: [B, D], l2-normalised image features.
        text: [B, D], l2-normalised text features; row i belongs to image i.
        label: [B], class ids.
        scale: exp(logit_scale), a float or a 0-d tensor; 100 for OpenAI's models.
        positive_in_denominator: keep j = i in the denominator. False leaves it out, as printed; L then has no lower bound, and a batch
            of one class gives 0.

    Returns:
        0-d tensor.

    Raises:
        SettingError: `image` and `text` are not of one shape [B, D], `label` is not [B], or the batch is empty.

    Needs:
        `image`, `prompt` and `label`.

    Relations:
        `contrastive`, bit for bit, if no class repeats; below it if one does, and 0 for a batch of one class. The same as FLYP's ablation
        that masks class collisions, which made it slightly worse. Only the text of its own row is a positive; in Khosla et al., where
        the name comes from, all items of the class are. `sigmoid_contrastive` with `label` is its sibling for SigLIP's models.

    Differences:
        Eq. 4 prints sums, no sign before the logarithms, no scale, and denominators without the positive, and says that it equals FLYP
        if no class repeats, which holds with the positive only; so that is the default. The sign is mended and means are taken.

    Examples:
        >>> image, label = torch.eye(2), torch.tensor([0, 1])
        >>> round(supervised_contrastive(image, image, label, 1.0).item(), 4)  # log(1 + exp(-1)), as `contrastive`
        0.3133
        >>> supervised_contrastive(image, image, label, 1.0, positive_in_denominator=False).item()  # log(exp(0) / exp(1))
        -1.0
        >>> supervised_contrastive(image, image.flip(0), torch.tensor([0, 0]), 100.0).item()  # no negatives
        0.0

    References:
        Liu, Li, Yu. Fully fine-tuned CLIP models are efficient few-shot learners. arXiv 2024, eq. 4.
        Goyal, Kumar, Garg, Kolter, Raghunathan. Finetune like you pretrain: Improved finetuning of zero-shot vision models. CVPR 2023,
        section 5 (class collisions).
        Khosla et al. Supervised contrastive learning. NeurIPS 2020, eq. 2.
    """
    check_pairs("supervised_contrastive", image, text)
    check_labels("supervised_contrastive", image, label)
    logits = scale * image @ text.T  # [B, B]: images by texts
    if positive_in_denominator:
        return _symmetric_cross_entropy(logits.masked_fill(_collisions(label), -torch.inf))
    same = label[:, None] == label
    one_class = same.all()  # then no row has a negative; else every row has one
    others = logits.masked_fill(same & ~one_class, -torch.inf)
    denominator = (others.logsumexp(dim=1) + others.logsumexp(dim=0)) / 2
    return (denominator - logits.diagonal()).mean().masked_fill(one_class, 0)


def sigmoid_contrastive(image: Tensor, text: Tensor, scale: float | Tensor, bias: float | Tensor, *, label: Tensor | None = None) -> Tensor:
    """Sigmoid image-text contrastive loss, the one that SigLIP was pre-trained with.

    Every pair of the batch is a yes-or-no question of its own, so nothing is normalised over the batch. A model that was pre-trained
    with this loss is fine-tuned like it was pre-trained with this loss.

    With f(I_i) = `image[i]`, g(T_j) = `text[j]`, s = `scale` (the paper's t) and b = `bias`::

        L = -1/B sum_i sum_j log sigmoid( z_ij (s f(I_i).g(T_j) + b) ),   z_ij = 1 if i = j, else -1

    Args:
        image: [B, D], l2-normalised image features.
        text: [B, D], l2-normalised text features; row i belongs to image i.
        scale: exp(logit_scale), a float or a 0-d tensor; 10 at the start of the paper's training.
        bias: the model's logit bias, a float or a 0-d tensor; -10 at the start of the paper's training.
        label: [B], class ids: pairs i != j of one class are left out of the sum. None, as in the paper, keeps all pairs.

    Returns:
        0-d tensor: the mean over the B images of a sum over B texts. The paper divides by B, not by the B^2 pairs.

    Raises:
        SettingError: `image` and `text` are not of one shape [B, D], `label` is not [B], or the batch is empty.

    Needs:
        A pair of one image and one text per row, as from `image` and `prompt`, or `image` and `caption`; `label` if asked.

    Relations:
        `contrastive` asks which text belongs to the image, this one whether each text does. Images and texts may be swapped in both. A
        batch of one is a plain logistic loss, not 0. Rows of the same class stay negatives of each other; with `label` they do not, as in
        `supervised_contrastive`.

    Examples:
        >>> image = torch.eye(2)
        >>> round(sigmoid_contrastive(image, image, 0.0, 0.0).item(), 4)  # B log(2): nothing is told apart
        1.3863
        >>> sigmoid_contrastive(image, image.flip(0), 100.0, -50.0).item()  # every text with the wrong image
        100.0

    References:
        Zhai, Mustafa, Kolesnikov, Beyer. Sigmoid loss for language image pre-training. ICCV 2023, section 3.2, algorithm 1.
    """
    check_pairs("sigmoid_contrastive", image, text)
    logits = scale * image @ text.T + bias  # [B, B]: images by texts
    sign = 2 * torch.eye(len(image), dtype=logits.dtype, device=logits.device) - 1  # z
    pairs = -F.logsigmoid(sign * logits)
    if label is not None:
        check_labels("sigmoid_contrastive", image, label)
        pairs = pairs.masked_fill(_collisions(label), 0)
    return pairs.sum() / len(image)


def _symmetric_cross_entropy(logits: Tensor) -> Tensor:
    """Cross-entropy of the rows and of the columns of [B, B] logits, averaged; the diagonal is right."""
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _collisions(label: Tensor) -> Tensor:
    """[B, B], true where two different rows are of one class."""
    return (label[:, None] == label) & ~torch.eye(len(label), dtype=torch.bool, device=label.device)
