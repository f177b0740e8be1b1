"""Running statistics of BatchNorm after weights were merged."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from surefoot.data.images import Images
from surefoot.errors import SettingError
from surefoot.model import ImageTextModel


def reestimate_batch_norm(model: ImageTextModel, images: Images, *, batch_size: int = 256) -> bool:
    """Measure anew, on training images, the means and variances that the image tower's BatchNorm layers divide by.

    The mean of two models' running statistics is not the statistic of the mean model: already in the first layer, which is linear in its
    weights, activations that differ between the two partly cancel, and the variance of their mean is smaller than the mean of their
    variances (by a quarter of the variance of their difference at alpha 0.5). Every later layer then sees inputs on a wrong scale.

    Each layer takes the plain mean over batches of the batches' means and unbiased variances, batches normalised as in training on the way.

    Args:
        model: with the merged weights; only buffers of BatchNorm layers change.
        images: training images, read in their order; two or more.
        batch_size: about so many at a time; batches are as equal as possible, since each counts alike, and none holds one image alone.

    Returns:
        Whether the tower has such layers; nothing is read if it has none.

    Raises:
        SettingError: fewer than two images, or a batch size below two.

    Relations:
        Not needed between the zero-shot model and what this library fine-tuned: its training leaves BatchNorm in evaluation mode, with the
        pre-trained statistics as constants, so that all points between the two have the same ones (`parameters.train_mode`). It is for
        weights that were trained elsewhere, or whose statistics moved.

    References:
        Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018, section 3.2.
        Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
    """
    layers = _layers(model)
    if not layers:
        return False
    if len(images) < 2 or batch_size < 2:
        raise SettingError(
            f"{len(images)} images in batches of {batch_size} were given; BatchNorm's statistics need two or more at a time. Give more."
        )
    before = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over batches, where a number would let the last ones count most
            layer.train()
        device = next(model.parameters()).device
        with torch.no_grad():
            for rows in torch.arange(len(images)).tensor_split(min(-(-len(images) // batch_size), len(images) // 2)):
                model.encode_image(images.batch(rows.tolist()).to(device))
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        for module, mode in before.items():
            module.training = mode
    return True


def _layers(model: ImageTextModel) -> list[_BatchNorm]:
    found = [module for module in model.clip.get_submodule("visual").modules() if isinstance(module, _BatchNorm)]
    return [layer for layer in found if layer.track_running_stats]
