"""Which parameters a stage moves: its groups, ranges of their blocks, or low-rank updates beside them; everything else is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surefoot import adapters
from surefoot.distributed import like
from surefoot.heads import LinearHead
from surefoot.model import ImageTextModel
from surefoot.objective import Moved, Stage, group_of

TOWERS = frozenset({"visual", "text"})
_BATCH_NORM = torch.nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Moving:
    """{group: {name: parameter}} of what a stage trains; names as in `state`, under `model.` and `head.`."""

    groups: Mapping[str, Mapping[str, nn.Parameter]]

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """All of them, in a fixed order."""
        return {name: parameter for group in self.groups.values() for name, parameter in group.items()}


def select(stage: Stage, model: ImageTextModel, head: LinearHead, *, seed: int = 0) -> Moving:
    """Let what the stage trains require gradients, and freeze all other parameters.

    Args:
        stage: its `trains` are groups or ranges of blocks; groups that the model does not have (a logit bias) are left out.
        model: with an adapter its towers get low-rank updates, to be folded in by `adapters.fold` when the stage ends.
        head: trained if the stage says so.
        seed: of the adapter's random factor.

    Raises:
        SettingError: a range that names no block of this model, or an adapter that fits no weight.
    """
    for parameter in [*model.parameters(), *head.parameters()]:
        parameter.requires_grad_(False)
    present = dict(model.clip.named_parameters())
    groups: dict[str, dict[str, nn.Parameter]] = {}
    for spec in (spec for spec in stage.trains if group_of(spec) in (*model.groups(), "head")):
        group = group_of(spec)
        if group == "head":
            found = {f"head.{name}": parameter for name, parameter in head.named_parameters()}
        elif stage.adapter and group in TOWERS:
            alpha, rank = stage.adapter.alpha, stage.adapter.rank
            updates = adapters.attach(model.clip, model.layer_names(spec), rank=rank, alpha=alpha, seed=seed)
            found = {f"model.{name}": parameter for name, parameter in updates.items()}
        else:
            found = {f"model.{name}": present[name] for name in model.layer_names(spec)}
        groups[group] = {**groups.get(group, {}), **found}
    for parameters in groups.values():
        for parameter in parameters.values():
            parameter.requires_grad_(True)
    return Moving(groups)


def moved_by(stage: Stage, moving: Moving, start: Mapping[str, Tensor], device: torch.device) -> Moved:
    """What a stage trains as its terms see it, and theta_0's values of it where a term compares with them."""
    now = {group: list(parameters.values()) for group, parameters in moving.groups.items()}
    known = {group: parameters for group, parameters in moving.groups.items() if group != "head"} if "start" in stage.needs else {}
    return Moved(now, {group: [like(p, start[name].to(device)) for name, p in parameters.items()] for group, parameters in known.items()})


def optimizer_groups(moving: Moving, penalised: frozenset[str], weight_decay: float) -> list[dict[str, object]]:
    """AdamW's groups: weight decay on every trained parameter, except on those that a term of the objective penalises."""
    free = [p for group, parameters in moving.groups.items() if group not in penalised for p in parameters.values()]
    pulled = [p for group, parameters in moving.groups.items() if group in penalised for p in parameters.values()]
    groups = [{"params": free, "weight_decay": weight_decay}, {"params": pulled, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def train_mode(model: ImageTextModel) -> None:
    """Training mode, except BatchNorm: its running statistics stay the pre-trained ones, since interpolating moved ones is wrong."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BATCH_NORM):
            module.eval()


def has_batch_norm(model: ImageTextModel) -> bool:
    """Whether the image tower averages over the batch where its BatchNorm layers train."""
    return any(isinstance(module, _BATCH_NORM) for name, module in model.clip.named_modules() if name.startswith("visual."))


def averages_over_batch(model: ImageTextModel) -> bool:
    """Whether BatchNorm layers of the image tower train now, so that every pass moves their running statistics."""
    return any(isinstance(module, _BATCH_NORM) and module.training for module in model.clip.get_submodule("visual").modules())


def stage_identity(stage: Stage) -> tuple[object, ...]:
    """What a stage does, its objectives left out."""
    found = (stage.trains, stage.head, stage.adapter, sorted(stage.training.items()))
    return (*found, "restart") if stage.restart else found
