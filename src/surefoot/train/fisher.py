"""The diagonal of the Fisher matrix: how much a model's answers depend on each of its weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.errors import SettingError, unknown_name
from surefoot.heads import LinearHead, class_weight, prompt_embeddings
from surefoot.model import ImageTextModel
from surefoot.prompts import PromptTable
from surefoot.train.state import State

Labels = Literal["drawn", "given"]


def diagonal_fisher(
    model: ImageTextModel,
    head: LinearHead | PromptTable,
    batches: Iterable[tuple[Tensor, Tensor]],
    names: Collection[str] | None = None,
    *,
    labels: Labels = "drawn",
    seed: int = 0,
    on_images: Callable[[int], None] | None = None,
) -> State:
    """The mean over images of the squared gradient of log p(y | x), weight by weight.

    A weight on which the answers hardly depend may be moved in a merge, one on which they do should stay; see `weights.fisher_merge`.

        F_j = 1/N sum_i ( d log p(y_i | x_i; theta) / d theta_j )^2,   y_i ~ p(y | x_i; theta)

    Args:
        model: both towers; in evaluation mode while this runs, its weights stay as they are.
        head: what answers, the trained linear head or, for methods that predict from text, the class prompts.
        batches: (images [B, 3, H, W], class numbers [B]) of training images. How they are cut into batches makes no difference: the
            gradient is taken for each image by itself, since the square of a mean is not the mean of the squares.
        names: of the weights, as `train.state` has them: `model.` and `head.` parameters; all of them if None.
        labels: "drawn" from the model's own answer, which is the Fisher matrix, or "given", the empirical one, which vanishes where the
            model is right and sure.
        seed: of the drawn labels.
        on_images: called with 1 after each image.

    Returns:
        {name: F in the shape of the parameter}, float32 on the CPU. 0 for weights that have no part in the answer, such as the text
        tower's beside a trained head.

    Raises:
        SettingError: names that are no parameters, no image, or labels of another kind.

    Relations:
        For the weight of a linear head on features f, F of W[c, d] is the mean of (1[y = c] - p_c)^2 f_d^2; over draws of y it tends to
        that of p_c (1 - p_c) f_d^2.

    Differences:
        The paper takes the expectation over y exactly where there are few classes, and draws otherwise; here one y is drawn for each image,
        at the cost of one backward pass instead of K.

    References:
        Matena, Raffel, "Merging models with Fisher-weighted averaging", NeurIPS 2022, section 2.2.
    """
    if labels not in get_args(Labels):
        raise unknown_name("kind of labels", labels, get_args(Labels))
    chosen = _chosen(model, head, names)
    total = {name: torch.zeros_like(parameter) for name, parameter in chosen.items()}
    generator, count = torch.Generator().manual_seed(seed), 0
    device = next(model.parameters()).device
    with _differentiable(model, head, chosen.values()):
        answer = _answering(model, head, through_text=any(not name.startswith(("model.visual.", "head.")) for name in chosen))
        for image, label in _each(batches):
            log_p = F.log_softmax(answer(image.to(device)), dim=-1)
            y = int(torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)) if labels == "drawn" else int(label)
            for name, gradient in _gradients(log_p[y], chosen).items():
                total[name] += gradient.square()
            count += 1
            if on_images:
                on_images(1)
    if not count:
        raise SettingError("The Fisher matrix was asked for over no image. Give training images.")
    return {name: (summed / count).float().cpu() for name, summed in total.items()}


def _gradients(value: Tensor, chosen: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Those that there are: a weight that has no part in the value has none. The graph of the text head serves the next image too."""
    if not value.requires_grad:
        return {}
    found = torch.autograd.grad(value, list(chosen.values()), retain_graph=True, allow_unused=True)
    return {name: gradient for name, gradient in zip(chosen, found, strict=True) if gradient is not None}


def _chosen(model: ImageTextModel, head: LinearHead | PromptTable, names: Collection[str] | None) -> dict[str, nn.Parameter]:
    """The parameters of those names."""
    known = {f"model.{name}": parameter for name, parameter in model.clip.named_parameters()}
    if isinstance(head, LinearHead):
        known |= {f"head.{name}": parameter for name, parameter in head.named_parameters()}
    if wrong := [name for name in names or () if name not in known]:
        raise SettingError(
            f"{', '.join(wrong[:3])} {'is' if len(wrong) == 1 else 'are'} no parameter of {model.name} and its head. "
            f"Names look like {next(iter(known))}; leave out buffers, and head.weight where the text tower answers."
        )
    return known if names is None else {name: known[name] for name in names}


@contextmanager
def _differentiable(model: ImageTextModel, head: LinearHead | PromptTable, chosen: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients for the chosen parameters alone, in evaluation mode; everything is as before afterwards."""
    every = [*model.parameters(), *(head.parameters() if isinstance(head, LinearHead) else ())]
    before, training = [parameter.requires_grad for parameter in every], {module: module.training for module in model.modules()}
    try:
        model.eval()
        for parameter in every:
            parameter.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, required in zip(every, before, strict=True):
            parameter.requires_grad_(required)
        for module, mode in training.items():
            module.training = mode


def _answering(model: ImageTextModel, head: LinearHead | PromptTable, *, through_text: bool) -> Callable[[Tensor], Tensor]:
    """Logits [K] of an image [3, H, W]; the text head is made once, and all images share its graph."""
    if isinstance(head, LinearHead):
        return lambda image: head(model.encode_image(image[None]))[0]
    with torch.set_grad_enabled(through_text):
        weight = model.scale * class_weight(prompt_embeddings(model, head))
    return lambda image: weight @ model.encode_image(image[None])[0]


def _each(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in batches:
        yield from zip(images, labels, strict=True)
