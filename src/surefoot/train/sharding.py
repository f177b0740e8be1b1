"""Weights held together by several processes (FSDP2): each has a part of every weight of a tower that trains, its gradient and moments."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from surefoot.distributed import calls_alike, num_processes, whole
from surefoot.layers import block_modules
from surefoot.model import ImageTextModel
from surefoot.objective import Method, Stage
from surefoot.train.settings import Training
from surefoot.train.state import part


def shares_weights(training: Training) -> bool:
    """Whether a run's processes hold its towers together; one process holds all of them itself."""
    return training.sharding == "fsdp" and num_processes() > 1


def sharding_problems(method: Method, training: Training) -> list[str]:
    """What does not go together with shared weights, each with what to do."""
    if not shares_weights(training):
        return []
    found = []
    if any(stage.adapter for stage in method.stages):
        found.append("sharding=fsdp shares whole weights, not low-rank updates of them: leave lora_rank or sharding out")
    if training.compile == "on" or training.channels_last == "on":
        found.append("sharding=fsdp takes the towers apart while they train: leave compile and channels_last, or sharding, out")
    return found


@contextlib.contextmanager
def sharded(model: ImageTextModel, stage: Stage, start: Mapping[str, Tensor]) -> Iterator[None]:
    """While this is open each process holds an equal part of every weight of the towers that `stage` trains.

    A block's weights are put together when it computes and let go again afterwards. What is not part of a tower's module (in open_clip's
    CLIP the tokens' and positions' tables and the text projection), the scale and the head stay whole in every process, and so does the
    frozen reference. Then the model is as before, with the weights that it has then.

    Args:
        model: its `clip` is another module meanwhile, whose parameters have the same names.
        stage: whose towers are shared; no adapter may be attached.
        start: theta_0, as `start_state` gives it: the weights that the model has after an error, when others may wait for something else.
    """
    plain = model.clip
    memo: dict[int, object] = {id(tensor): tensor for tensor in [*plain.parameters(), *plain.buffers()]}
    model.clip = copy.deepcopy(plain, memo)  # other modules around the same tensors
    _share(model.clip, stage, next(plain.parameters()).device)
    held = dict(model.clip.named_parameters())
    shared = {name: parameter for name, parameter in plain.named_parameters() if held[name] is not parameter}
    for parameter in shared.values():
        parameter.data = parameter.data.new_empty(0)
    values: dict[str, Tensor] = {}
    try:
        with calls_alike():
            yield
            values = {name: whole(held[name].detach()) for name in shared}
    finally:
        model.clip = plain
        for name, parameter in shared.items():
            parameter.data = values.get(name, start[f"model.{name}"]).to(held[name].device, copy=True)
        if len(values) < len(shared):
            model.load_weights(part(start, "model"))


def _share(clip: nn.Module, stage: Stage, device: torch.device) -> None:
    from torch.distributed.device_mesh import init_device_mesh  # here, because they take long to import
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (num_processes(),))
    text = getattr(clip, "text", None)
    towers = {"visual": clip.get_submodule("visual"), "text": text if isinstance(text, nn.Module) else clip.get_submodule("transformer")}
    for tower in (module for name, module in towers.items() if name in stage.groups):
        scalars = {parameter for parameter in tower.parameters() if parameter.ndim == 0}
        ignored: dict[str, Any] = {"ignored_params": scalars} if scalars else {}
        for module in (*block_modules(clip, tower), tower):
            fully_shard(module, mesh=mesh, reshard_after_forward=True, **ignored)


def is_shared(tensor: Tensor) -> bool:
    """Whether the processes hold a tensor together."""
    return hasattr(tensor, "full_tensor")


def average(parameters: Sequence[nn.Parameter]) -> None:
    """Take the mean over the processes of the gradients of parameters that each holds whole; shared ones have theirs already."""
    for parameter in parameters:
        if parameter.grad is not None and not is_shared(parameter):
            dist.all_reduce(parameter.grad)
            parameter.grad /= num_processes()


def kinds_apart(groups: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """An optimizer's groups, each cut into shared and whole parameters, which no kernel updates together."""
    found = []
    for group in groups:
        parameters: list[nn.Parameter] = group["params"]  # type: ignore[assignment]
        halves = [[p for p in parameters if is_shared(p) == shared] for shared in (False, True)]
        found += [{**group, "params": half} for half in halves if half]
    return found


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> None:
    """Make the gradient, of all parameters as one vector, no longer than `most`."""
    kinds = [half for shared in (False, True) if (half := [p for p in parameters if p.grad is not None and is_shared(p) == shared])]
    if not any(is_shared(parameter) for parameter in parameters):
        torch.nn.utils.clip_grad_norm_(list(parameters), most)
        return
    norms = [whole(torch.nn.utils.get_total_norm([p.grad for p in half if p.grad is not None])) for half in kinds]
    total = torch.linalg.vector_norm(torch.stack(norms))
    for parameter in (parameter for half in kinds for parameter in half):
        assert parameter.grad is not None
        parameter.grad *= float((most / (total + 1e-6)).clamp(max=1.0))
