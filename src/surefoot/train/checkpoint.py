"""Where a run stands, on disk: written as a whole or not at all, so that a run that was killed goes on to bit-identical weights."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from surefoot.distributed import is_first, like, whole
from surefoot.errors import ModelError, SurefootError, TrainingError
from surefoot.guard import made, parse_json

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run is. Losses and scores are kept as they are, so that what follows from them is the same after a resume.

    Attributes:
        stage: number of the stage, from 0.
        step: steps of the stage that are done.
        done: steps of the run that are done, over all stages and candidates.
        seconds: training time so far.
        epoch_losses: the losses of the epoch that is under way.
        history: what ID validation said after each epoch, {"stage", "epoch", "loss", "val"}.
        scores: {epoch: [value, error]} of the stage under way.
        choices: what ID validation chose in stages that are done.
    """

    stage: int = 0
    step: int = 0
    done: int = 0
    seconds: float = 0.0
    epoch_losses: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    scores: dict[int, tuple[float, float]] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)


def save(path: Path, identity: str, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint in one piece; the one before stays until the new one is complete.

    Args:
        path: the file.
        identity: what the run is (settings, seed, data, weights), so that no other run takes it up.
        progress: how far it is.
        tensors: what must be put back: trained parameters, optimizer moments, weights of epochs that may be kept.

    Raises:
        TrainingError: a weight is not finite, or the disk cannot take the file; the checkpoint before stays.
    """
    if bad := [name for name, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]:
        kept = f" The last good checkpoint is {path}." if path.is_file() else ""
        raise TrainingError(f"{bad[0]} is not finite after step {progress.done}. Lower the learning rate.{kept}")
    write(path, tensors, {"identity": identity, "progress": json.dumps(asdict(progress))})


def collected(
    live: Mapping[str, Tensor],
    head: nn.Module,
    named: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    before: Mapping[str, Tensor],
    kept: Mapping[int, Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """All that must be put back, in whole tensors, which processes that share them give each other; all but the first keep none.

    Args:
        live: what a step changes.
        head: the linear head.
        named: the trained parameters.
        optimizer: its moments.
        before: what earlier stages made of the towers.
        kept: the weights of epochs that may be kept.
    """
    moments = [(f"adam.{key}.{name}", value) for name, p in named.items() for key, value in optimizer.state[p].items()]
    epochs = [(f"kept.{epoch}.{name}", tensor) for epoch, weights in kept.items() for name, tensor in weights.items()]
    others = [(f"head.{name}", tensor) for name, tensor in head.state_dict().items()] + [(f"before.{n}", t) for n, t in before.items()]
    found = {}
    for name, tensor in [*live.items(), *others, *moments, *epochs]:
        every = whole(tensor.detach())
        if is_first():
            found[name] = every
    return found


def put_moments(named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    """Give the optimizer the moments of a checkpoint, each laid out as its parameter is."""
    for name, parameter in named.items():
        known = {key: saved[f"adam.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"adam.{key}.{name}" in saved}
        if known:
            moments = {key: torch.empty_like(parameter).copy_(like(parameter, t)) for key, t in known.items() if key != "step"}
            optimizer.state[parameter] = {"step": known["step"].clone().to(parameter.device)} | moments


@contextlib.contextmanager
def belonging(path: Path | None) -> Iterator[None]:
    """What does not fit while a checkpoint is put back becomes a sentence.

    Raises:
        TrainingError: its tensors or numbers are not those of the run, though it names it.
    """
    try:
        yield
    except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, SurefootError) and not isinstance(error, ModelError):
            raise
        raise TrainingError(f"{path} does not hold what the run goes on from ({error}). Delete it, and the run starts again.") from error


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and plain metadata as safetensors, in one piece; of several processes the first one does.

    Raises:
        TrainingError: no room, or no right to write; no partial file stays.
    """
    if not is_first():
        return
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial, dict(metadata))
        with partial.open("r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise TrainingError(
            f"{path} could not be written ({error}). Make room or give another folder; what was finished is kept."
        ) from error


def load(path: Path, identity: str) -> tuple[Progress, dict[str, Tensor]] | None:
    """What `save` wrote for the run of that identity; None if there is nothing, or something of another run."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("identity") != identity:
                return None
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        found = parse_json(metadata["progress"])
        scores = {int(epoch): (float(score[0]), float(score[1])) for epoch, score in found.pop("scores").items()}
        return replace(made(Progress, found), scores=scores), tensors
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        logger.warning("%s cannot be read (%s); the run starts again from its beginning.", path, error)
        return None
