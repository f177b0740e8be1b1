"""Loss functions: features and logits in, a scalar out.

Every function is pure and takes `scale` = exp(logit_scale), never the parameter. Features are l2-normalised by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        other; log(B) when all features are the same, 0 for a batch of one. `sigmoid_contrastive` is its sibling for SigLIP's models.

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
    _check_pairs("contrastive", image, text)
    logits = scale * image @ text.T  # [B, B]: images by texts
    target = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid_contrastive(image: Tensor, text: Tensor, scale: float | Tensor, bias: float | Tensor) -> Tensor:
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

    Returns:
        0-d tensor: the mean over the B images of a sum over B texts. The paper divides by B, not by the B^2 pairs.

    Raises:
        SettingError: `image` and `text` are not of one shape [B, D], or the batch is empty.

    Needs:
        A pair of one image and one text per row, as from `image` and `prompt`, or `image` and `caption`.

    Relations:
        `contrastive` asks which text belongs to the image, this one whether each text does. Images and texts may be swapped in both. A
        batch of one is a plain logistic loss, not 0. Rows of the same class stay negatives of each other.

    Examples:
        >>> image = torch.eye(2)
        >>> round(sigmoid_contrastive(image, image, 0.0, 0.0).item(), 4)  # B log(2): nothing is told apart
        1.3863
        >>> sigmoid_contrastive(image, image.flip(0), 100.0, -50.0).item()  # every text with the wrong image
        100.0

    References:
        Zhai, Mustafa, Kolesnikov, Beyer. Sigmoid loss for language image pre-training. ICCV 2023, section 3.2, algorithm 1.
    """
    _check_pairs("sigmoid_contrastive", image, text)
    logits = scale * image @ text.T + bias  # [B, B]: images by texts
    sign = 2 * torch.eye(len(image), dtype=logits.dtype, device=logits.device) - 1  # z
    return -F.logsigmoid(sign * logits).sum() / len(image)


def cross_entropy(logits: Tensor, label: Tensor, label_smoothing: float = 0.0, *, adjustment: Tensor | None = None) -> Tensor:
    """Cross-entropy of a classification head, averaged over the batch; adjusted for unbalanced classes if asked.

    The loss of every method that trains a head on class ids. Where some classes are rare, adding tau log(prior) to the logits in
    training, and nothing at test, leaves the prior to the addition: the plain logits then aim at accuracy averaged over classes.

    With z = `logits`, a = `adjustment`, y = `label` and e = `label_smoothing`::

        L = 1/B sum_i -log q_i,   log q_i = (1 - e) log p_i[y_i] + e/K sum_k log p_i[k],   p_i = softmax(z_i + a)

    Args:
        logits: [B, K], already multiplied by the scale.
        label: [B], class ids in 0..K-1, int64.
        label_smoothing: e, the weight of the uniform distribution, in 0..1; 0 in the papers.
        adjustment: [K], finite: tau log(pi_k) with pi_k the share of class k among the training images; tau = 1 in the paper. None adds
            nothing.

    Returns:
        0-d tensor.

    Raises:
        SettingError: `logits` and `label`, or `logits` and `adjustment`, do not fit together, or `label_smoothing` is outside 0..1.

    Needs:
        `image` and `label`.

    Relations:
        Plain cross-entropy at `label_smoothing` 0 without `adjustment`; an adjustment that is the same for all classes, as with balanced
        ones, changes nothing. `contrastive` is two of these with the row number as label.

    Examples:
        >>> logits, label = torch.zeros(2, 2), torch.tensor([0, 1])
        >>> round(cross_entropy(logits, label).item(), 4)  # log(2)
        0.6931
        >>> prior = torch.tensor([0.9, 0.1])
        >>> round(cross_entropy(logits, label, adjustment=prior.log()).item(), 4)  # -(log(0.9) + log(0.1)) / 2
        1.204

    References:
        Szegedy, Vanhoucke, Ioffe, Shlens, Wojna. Rethinking the inception architecture for computer vision. CVPR 2016, section 7
        (label smoothing).
        Menon, Jayasumana, Rawat, Jain, Veit, Kumar. Long-tail learning via logit adjustment. ICLR 2021, eq. 10.
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
    if adjustment is not None and adjustment.shape != logits.shape[1:]:
        raise SettingError(
            f"cross_entropy was given logits of shape {list(logits.shape)} and an adjustment of shape {list(adjustment.shape)}. "
            "They must be [B, K] and [K]. Pass tau * log(share of the training images) for every class, in the order of the logits."
        )
    return F.cross_entropy(logits if adjustment is None else logits + adjustment, label, label_smoothing=label_smoothing)


def half_squared_distance(now: Sequence[Tensor], start: Sequence[Tensor]) -> Tensor:
    """Half the squared Euclidean distance of parameters to where they started.

    Added to a loss it pulls towards the pre-trained weights, as weight decay pulls towards 0.

    With theta = `now` and theta_0 = `start`, over all tensors and all their entries::

        1/2 ||theta - theta_0||^2

    Args:
        now: tensors of any shapes, at least one; the parameters being trained.
        start: the same number of tensors, of the same shapes; constants, so no gradient reaches them.

    Returns:
        0-d tensor. A sum, not a mean: its gradient is theta - theta_0.

    Raises:
        SettingError: no tensors, or other numbers or shapes of them.

    Relations:
        `half_squared_norm` of the differences; 0 at the start of training.

    Examples:
        >>> half_squared_distance([torch.tensor([3.0, 1.0]), torch.tensor(4.0)], [torch.tensor([0.0, 1.0]), torch.tensor(0.0)])
        tensor(12.5000)

    References:
        Li, Grandvalet, Davoine. Explicit inductive bias for transfer learning with convolutional networks. ICML 2018, section 3: L2-SP
        without its factor alpha.
    """
    shapes = [[list(tensor.shape) for tensor in tensors] for tensors in (now, start)]
    if not len(now) or shapes[0] != shapes[1]:
        raise SettingError(
            f"half_squared_distance was given tensors of shapes {_few(shapes[0])} and a start of shapes {_few(shapes[1])}. "
            "Both must be the same parameters in the same order, at least one. Take both from the model under the same names."
        )
    return half_squared_norm([theta - theta_0.detach() for theta, theta_0 in zip(now, start, strict=True)])


def half_squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Half the squared Euclidean norm of all entries of some tensors: weight decay written as a loss.

        1/2 ||theta||^2

    Args:
        tensors: of any shapes, at least one.

    Returns:
        0-d tensor. A sum, not a mean: its gradient is theta.

    Raises:
        SettingError: no tensors.

    Relations:
        `half_squared_distance` to zero. Under plain SGD the same as weight decay; under AdamW it is not, because Adam rescales it.

    Examples:
        >>> half_squared_norm([torch.tensor([3.0, 4.0])])
        tensor(12.5000)

    References:
        Li, Grandvalet, Davoine. Explicit inductive bias for transfer learning with convolutional networks. ICML 2018, section 3: the
        L2 penalty without its factor, alpha or for the new head beta.
    """
    if not len(tensors):
        raise SettingError("half_squared_norm was given no tensors. It needs at least one. Name parameters that the model has.")
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum() / 2


def _check_pairs(loss: str, image: Tensor, text: Tensor) -> None:
    if image.ndim != 2 or image.shape != text.shape or not len(image):
        raise SettingError(
            f"{loss} was given image features of shape {list(image.shape)} and text features of shape {list(text.shape)}. "
            "Both must be [B, D] with the same B of at least 1. Pass one text per image."
        )


def _few(shapes: list[list[int]]) -> str:
    """The first few of a list that may be long, for a message."""
    return f"{shapes[:4]}{f' and {len(shapes) - 4} more' if len(shapes) > 4 else ''}"
