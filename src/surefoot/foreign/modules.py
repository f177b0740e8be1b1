"""A state dict, and what else a model's shape depends on, from objects that only stand for modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from surefoot.errors import DataError
from surefoot.foreign.archive import is_module
from surefoot.foreign.pickles import Inert

INTERPOLATION = {"bilinear": "bilinear", "bicubic": "bicubic", "2": "bilinear", "3": "bicubic"}
_LISTS = ("state_dict", "model_state_dict", "model")
_FRAMES = ("module.", "_orig_mod.")


@dataclass
class Found:
    """What a file says of a model.

    Attributes:
        state: {name: tensor}.
        heads: {prefix of an attention layer: its number of heads}, where the file holds live objects.
        activations: names of the activation classes, where the file holds live objects.
        preprocess_cfg: as open_clip has it, where the file holds the transforms.
        normalize: whether the classification head takes features of length 1, where the file says so.
    """

    state: dict[str, Tensor]
    heads: dict[str, int] = field(default_factory=dict)
    activations: set[str] = field(default_factory=set)
    preprocess_cfg: dict[str, Any] | None = None
    normalize: bool | None = None

    @property
    def is_live(self) -> bool:
        """Whether the file held a model as an object, not only its weights."""
        return bool(self.heads)


def find(content: Any, depth: int = 3) -> Found:  # noqa: ANN401
    """The model in what a file holds: a module, a state dict, or one of them in a dict, at most `depth` deep.

    Raises:
        DataError: neither.
    """
    if is_module(content):
        return _of_module(content)
    if isinstance(content, dict):
        for name in _LISTS if depth else ():
            if isinstance(content.get(name), dict) or is_module(content.get(name)):
                return find(content[name], depth - 1)
        state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if state and len(state) == len(content):
            return Found(_unframed(state))
    raise DataError(
        "It holds no model: neither a module nor a state dict ({name: tensor}, also under 'state_dict'). Give the checkpoint with weights."
    )


def _unframed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what a wrapper for several devices or a compiler puts before all of them."""
    found = dict(state)
    for frame in _FRAMES:
        if found and all(name.startswith(frame) for name in found):
            return _unframed({name.removeprefix(frame): tensor for name, tensor in found.items()})
    return found


def _of_module(root: Inert) -> Found:
    found = Found({})
    for prefix, module in walk(root):
        skipped = module.get("_non_persistent_buffers_set") or set()
        for table in ("_parameters", "_buffers"):
            own = {name: value for name, value in module.get(table, {}).items() if isinstance(value, Tensor) and name not in skipped}
            found.state.update({f"{prefix}{name}": value for name, value in own.items()})
        if isinstance(module.get("num_heads"), int):
            found.heads[prefix] = module.get("num_heads")
        if "GELU" in module.kind.name.upper():
            found.activations.add(module.kind.name)
        if isinstance(module.get("val_preprocess"), Inert):
            found.preprocess_cfg = found.preprocess_cfg or transforms(module.get("val_preprocess"))
        if module.kind.name == "ImageClassifier_Norm":
            found.normalize = True  # it does so itself, before its head
        elif isinstance(module.get("normalize"), bool) and found.normalize is None:
            found.normalize = module.get("normalize")
    found.state = _unframed(found.state)
    return found


def walk(root: Inert) -> Iterator[tuple[str, Inert]]:
    """(prefix, module) of a module and all in it, each object once, in order."""
    waiting, seen = [("", root)], set[int]()
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield prefix, module
        children = [(f"{prefix}{name}.", child) for name, child in module.get("_modules", {}).items() if is_module(child)]
        waiting += reversed(children)


def transforms(compose: Inert) -> dict[str, Any] | None:
    """open_clip's preprocess_cfg of torchvision's transforms (resize, centre crop, to a tensor, normalise); None if they are others."""
    steps = {step.kind.name: step for step in compose.get("transforms") or [] if isinstance(step, Inert)}
    resize, crop, normalize = steps.get("Resize"), steps.get("CenterCrop"), steps.get("Normalize")
    if resize is None or normalize is None:
        return None
    size = resize.get("size")
    squash = isinstance(size, tuple | list) and len(size) == 2 and crop is None
    side = size[0] if isinstance(size, tuple | list) else size
    square = (side, side)
    cropped = crop.get("size") if crop else None
    interpolation = INTERPOLATION.get(str(resize.get("interpolation")))
    if not isinstance(side, int) or interpolation is None or not (squash or cropped in (side, square, list(square))):
        return None
    if squash and tuple(size) != square:
        return None
    return {
        "size": [side, side], "mode": "RGB", "mean": [float(v) for v in normalize.get("mean")],
        "std": [float(v) for v in normalize.get("std")],
        "interpolation": interpolation, "resize_mode": "squash" if squash else "shortest", "fill_color": 0,
    }  # fmt: skip
