"""Whether a method can run, asked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from surefoot.data.embedded import names
from surefoot.data.layout import Dataset
from surefoot.data.shard_cache import too_little
from surefoot.distributed import num_processes
from surefoot.errors import ModelError, SettingError
from surefoot.identity import weights_hash
from surefoot.layers import set_checkpointing
from surefoot.model import ImageTextModel
from surefoot.objective import Method, group_of
from surefoot.train.batches import CAPTION, PAIRS, SUPPLIED
from surefoot.train.parameters import TOWERS, has_batch_norm
from surefoot.train.reference import CONTEXTS, context_templates
from surefoot.train.settings import Training
from surefoot.train.sharding import sharding_problems

_REPEATED = ("center", False, "full")
"""The crop, flip and decode of training images that are the same in every epoch, and those of evaluation."""


def preflight(method: Method, model: ImageTextModel, dataset: Dataset, training: Training) -> None:
    """Compare what a method needs with what model and data have; all problems at once, before anything is computed.

    Raises:
        SettingError: the list of problems.
    """
    groups, problems = {*model.groups(), "head", "logit_bias"}, lacking(method, dataset) + foreign_pairs(method, lambda: model, dataset)
    for stage in method.stages:
        problems += [f"it trains '{spec}', which {model.name} does not have" for spec in stage.trains if group_of(spec) not in groups]
        try:
            for spec in stage.trains:
                if "[" in spec:
                    model.layer_names(spec)
            if stage.restart:
                model.fresh_visual(training.seed)
        except (SettingError, ModelError) as error:
            problems.append(str(error))
    try:
        set_checkpointing(model.clip, training.checkpointing)
    except SettingError as error:
        problems.append(str(error).rstrip("."))
    if training.chunk_size and any(stage.restart for stage in method.stages) and has_batch_norm(model):
        problems.append("chunk_size would cut the batches that its BatchNorm layers average over: leave it out")
    if num_processes() > 1 and any(stage.restart for stage in method.stages) and has_batch_norm(model):
        problems.append("its BatchNorm layers would each average over a part of the batch: run it in one process")
    if training.reference_cache and "reference" in method.needs and (training.crop, training.flip, training.decode) != _REPEATED:
        problems.append("reference_cache needs images that are the same in every epoch: set crop=center, flip=false and decode=full")
    problems += sharding_problems(method, training)
    if training.sampling == "groups" and not dataset.split("train").groups:
        problems.append("sampling is 'groups', and the training images have none: use 'balanced' or 'shuffled'")
    problems += _too_little_room(method, dataset, training)
    if not dataset.split("val").paths:
        problems.append("there are no validation images, by which epochs are chosen")
    if problems:
        raise SettingError(f"{method.name} cannot run: " + "; ".join(problems) + ".")


def _too_little_room(method: Method, dataset: Dataset, training: Training) -> list[str]:
    """That the training images are read in an order for which all their shards had to lie in the cache; heads read them in their own."""
    if not any(stage.groups & TOWERS for stage in method.stages):
        return []
    reason = too_little(dataset.split("train").paths, training.shards_at_a_time)
    return [f"{reason}: allow more, or set shuffle=shards:B, such as shards:4, which reads B shards in turns"] if reason else []


def lacking(method: Method, dataset: Dataset) -> list[str]:
    """What a method needs and the data do not supply, each with what to do: contexts, captions, retrieved pairs."""
    anchors, paths, found = dataset.anchors, dataset.split("train").paths, []
    for need in sorted(method.needs - SUPPLIED):
        if need.startswith(CONTEXTS):
            try:
                context_templates(need.removeprefix(CONTEXTS), dataset)
            except SettingError as error:
                found.append(str(error).rstrip("."))
        elif need == CAPTION:
            found += _missing(anchors.captions, paths, "captions", f"surefoot caption {_argument(dataset)}")
        elif need == "anchor_image":
            found += _missing(anchors.pairs, paths, "retrieved image-text pairs", _retrieve(dataset))
        elif need not in PAIRS:
            found.append(f"it needs '{need}', which {dataset.name} does not supply")
    return found


def foreign_pairs(method: Method, load: Callable[[], ImageTextModel], dataset: Dataset) -> list[str]:
    """That other weights than the model's retrieved the pairs that a method needs, and what to do; nothing where they are its own.

    `load` gives the model, and is not called for a method that needs no pairs, or where there are none.
    """
    anchors = dataset.anchors
    if not PAIRS & method.needs or not anchors.pairs or anchors.weights == (own := weights_hash(model := load())):
        return []
    return [
        f"its image-text pairs were retrieved with other weights ({anchors.weights}) than those of {model.name} ({own}): "
        f"run '{_retrieve(dataset)} --model {model.name}'"
    ]


def _missing(given: Mapping[Path, object], paths: Sequence[Path], what: str, command: str) -> list[str]:
    missing = [path for path in paths if path not in given]
    if not missing:
        return []
    if len(missing) == len(paths):
        return [f"it needs {what} for the training images, and there are none: run '{command}' first"]
    return [
        f"it needs {what} for the training images, and {len(missing)} of {len(paths)}, such as {missing[0]}, have none: run '{command}'"
    ]


def _retrieve(dataset: Dataset) -> str:
    return f"surefoot retrieve {_argument(dataset)} --candidates POOL"


def _argument(dataset: Dataset) -> str:
    """What a command calls the data."""
    if dataset.source:  # unpacked arrays, which are opened by name
        return f"{dataset.name} --root {dataset.source}"
    return dataset.name if dataset.name in names() else str(dataset.root)
