"""Loss functions: features and logits in, a scalar out.

Every function is pure and takes `scale` = exp(logit_scale), never the parameter. Features are l2-normalised by the caller.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from surefoot.errors import SettingError


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
        other; log(B) when all features are the same, 0 for a batch of one.

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
    if image.ndim != 2 or image.shape != text.shape or not len(image):
        raise SettingError(
            f"contrastive was given image features of shape {list(image.shape)} and text features of shape {list(text.shape)}. "
            "Both must be [B, D] with the same B of at least 1. Pass one text per image."
        )
    logits = scale * image @ text.T  # [B, B]: images by texts
    target = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def cross_entropy(logits: Tensor, label: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of a classification head, averaged over the batch.

    The loss of every method that trains a head on class ids.

    With z = `logits`, y = `label` and e = `label_smoothing`::

        L = 1/B sum_i -log q_i,   log q_i = (1 - e) log p_i[y_i] + e/K sum_k log p_i[k],   p_i = softmax(z_i)

    Args:
        logits: [B, K], already multiplied by the scale.
        label: [B], class ids in 0..K-1, int64.
        label_smoothing: e, the weight of the uniform distribution, in 0..1; 0 in the papers.

    Returns:
        0-d tensor.

    Raises:
        SettingError: `logits` and `label` do not fit together, or `label_smoothing` is outside 0..1.

    Needs:
        `image` and `label`.

    Relations:
        Plain cross-entropy at `label_smoothing` 0; `contrastive` is two of these with the row number as label.

    Examples:
        >>> logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
        >>> round(cross_entropy(logits, torch.tensor([0, 1])).item(), 4)  # log(2)
        0.6931

    References:
        Szegedy, Vanhoucke, Ioffe, Shlens, Wojna. Rethinking the inception architecture for computer vision. CVPR 2016, section 7
        (label smoothing).
    """
    if logits.ndim != 2 or label.shape != logits.shape[:1] or not len(label):
        raise SettingError(
            f"cross_entropy was given logits of shape {list(logits.shape)} and labels of shape {list(label.shape)}. "
            "They must be [B, K] and [B] with the same B of at least 1. Pass one class id per row of logits."
        )
    if not 0 <= label_smoothing <= 1:
        raise SettingError(
            f"label_smoothing is {label_smoothing}. It must be in 0..1. Use 0 for plain cross-entropy, or a value such as 0.1."
        )
    return F.cross_entropy(logits, label, label_smoothing=label_smoothing)
