"""All weights of a run under one set of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from surefoot.data.layout import Dataset
from surefoot.distributed import like
from surefoot.heads import LinearHead, class_weight, prompt_embeddings
from surefoot.model import ImageTextModel
from surefoot.objective import Stage
from surefoot.prompts import PromptTable

State = dict[str, Tensor]


def text_head(model: ImageTextModel, dataset: Dataset) -> LinearHead:
    """The zero-shot head of the live text tower, times the scale."""
    return prompt_head(model, dataset.class_names, dataset.templates)


def prompt_head(model: ImageTextModel, names: Sequence[str], templates: Sequence[str]) -> LinearHead:
    """The same for class names and templates that are known without their data."""
    with torch.inference_mode():
        weight = class_weight(prompt_embeddings(model, PromptTable.build(templates, names)))
        scale = float(model.scale)
    return LinearHead(weight.clone(), scale)


def start_state(model: ImageTextModel, dataset: Dataset) -> State:
    """theta_0: the model's weights under `model.`, and its zero-shot head times the scale under `head.`."""
    return pack(model, text_head(model, dataset))


def start_of(model: ImageTextModel, names: Sequence[str], templates: Sequence[str]) -> State:
    """The same for class names and templates that are known without their data."""
    return pack(model, prompt_head(model, names, templates))


def start_head(head: LinearHead, stage: Stage, start: Mapping[str, Tensor], seed: int) -> None:
    """Give a head what a stage starts from: the zero-shot head, random directions of its rows' length, or what stands in it."""
    if stage.head == "zero_shot":
        head.load_state_dict(part(start, "head"))
    elif stage.head == "random":
        generator = torch.Generator().manual_seed(seed)
        direction = F.normalize(torch.randn(head.weight.shape, generator=generator), dim=-1)
        length = start["head.weight"].norm(dim=-1, keepdim=True).mean()
        head.load_state_dict({"weight": length * direction, "bias": torch.zeros(len(direction))})


def pack(model: ImageTextModel, head: LinearHead) -> State:
    """All tensors of a model and its head, under `model.` and `head.`."""
    state = {f"model.{name}": tensor for name, tensor in model.weights().items()}
    return state | {f"head.{name}": tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}


def part(state: Mapping[str, Tensor], prefix: str) -> State:
    """The tensors under `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in state.items() if name.startswith(f"{prefix}.")}


def put(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters of the same names."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(like(parameter, values[name]))
