"""Losses of a classification head: logits and class ids in."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from surefoot.errors import SettingError


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
        >>> import torch
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
