"""Ranges of a tower's blocks, such as visual[-3:], as parameter names; what trains, and how the image tower computes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor, nn

from surefoot.errors import SettingError

# where the towers that open_clip builds keep their blocks; a ResNet's are its four stages
_BLOCK = re.compile(
    r"(?:(?:visual|text)\.)?"
    r"(?:transformer\.resblocks\.|trunk\.(?:blocks|stages|layers)\.|(?:trunk\.)?layer(?=\d)"
    r"|transformer\.(?:encoder\.|transformer\.)?(?:layers?|block)\.)(\d+)\."
)
# by the place where these stand among the parameters one would take them for the other end of the tower
_FIRST, _LAST = {"token_embedding"}, {"proj", "text_projection"}
Encode = Callable[[Tensor], Tensor]
_encode: ContextVar[tuple[nn.Module, Encode] | None] = ContextVar("encode", default=None)
_SPEC = re.compile(r"(\w+)(\[(?:(-?\d+)|(-?\d+)?:(-?\d+)?)\])?")


def group_blocks(names: Sequence[str]) -> list[list[str]]:
    """Split the parameter names of one tower, in the model's order, into those of its blocks; nothing if no blocks are recognised.

    What comes before the blocks (patches, positions, tokens) belongs to the first block, what comes after (norm, projection) to the last.

    Examples:
        >>> group_blocks(["visual.proj", "visual.conv1.weight", "visual.transformer.resblocks.0.w", "visual.transformer.resblocks.1.w"])
        [['visual.conv1.weight', 'visual.transformer.resblocks.0.w'], ['visual.proj', 'visual.transformer.resblocks.1.w']]
    """
    number = {name: int(found[1]) for name in names if (found := _BLOCK.match(name))}
    if not number:
        return []
    blocks: dict[int, list[str]] = {block: [] for block in sorted(set(number.values()))}
    first, last = min(blocks), max(blocks)
    end = max(place for place, name in enumerate(names) if name in number)
    for place, name in enumerate(names):
        part = name.removeprefix("visual.").removeprefix("text.").partition(".")[0]
        after = part in _LAST or (place > end and part not in _FIRST)
        blocks[number.get(name, last if after else first)].append(name)
    return list(blocks.values())


def block_modules(clip: nn.Module, tower: nn.Module) -> list[nn.Module]:
    """The blocks of `tower`, which is a part of `clip`, as modules in their order; none where they are not recognised."""
    inside = {id(module) for module in tower.modules()}
    return [module for name, module in clip.named_modules() if id(module) in inside and _BLOCK.fullmatch(f"{name}.")]


def parse(spec: str) -> tuple[str, slice | int | None]:
    """The group of an entry of `trains`, and its range as Python would read it.

    Raises:
        SettingError: brackets that hold neither a number nor a range.

    Examples:
        >>> parse("visual"), parse("visual[2]"), parse("text[-3:]")
        (('visual', None), ('visual', 2), ('text', slice(-3, None, None)))
    """
    found = _SPEC.fullmatch(spec)
    if not found:
        raise SettingError(f"'{spec}' is no range of blocks. Write visual[:9], visual[-3:], text[4:8], or visual[2] for one block.")
    group, brackets, one, start, stop = found.groups()
    if brackets is None:
        return group, None
    return group, int(one) if one else slice(int(start) if start else None, int(stop) if stop else None)


def in_range(spec: str, part: slice | int, blocks: Sequence[Sequence[str]]) -> list[str]:
    """All names of the blocks that `part` of `spec` takes.

    Raises:
        SettingError: it takes none.

    Examples:
        >>> in_range("visual[1:]", slice(1, None), [["a"], ["b", "c"], ["d"]])
        ['b', 'c', 'd']
    """
    taken = range(len(blocks))[part] if isinstance(part, slice) else [part] if -len(blocks) <= part < len(blocks) else []
    if not taken:
        tower = spec.partition("[")[0]
        raise SettingError(
            f"{spec} takes no block. The {tower} tower has {len(blocks)} blocks, counted from 0: "
            f"write {tower}[:{len(blocks)}] for all of them, {tower}[-1:] for the last."
        )
    return [name for block in taken for name in blocks[block]]


def trains(clip: nn.Module, tower: Literal["visual", "text"]) -> bool:
    """Whether any parameter of a tower requires a gradient, those of an adapter included."""
    own = {name: parameter for name, parameter in clip.named_parameters() if name.startswith("visual.") == (tower == "visual")}
    return any(parameter.requires_grad for name, parameter in own.items() if name not in ("logit_scale", "logit_bias"))


def set_checkpointing(clip: nn.Module, enabled: bool) -> None:
    """Keep no activations inside the blocks of the towers, and compute them again in the backward pass; or keep them.

    Raises:
        SettingError: an image tower that cannot do so.
    """
    visual = clip.get_submodule("visual")
    if enabled and not any(hasattr(module, "grad_checkpointing") for module in visual.modules()):
        raise SettingError(f"The image tower ({type(visual).__name__}) keeps all activations: set chunk_size, not checkpointing.")
    if hasattr(clip, "set_grad_checkpointing"):
        clip.set_grad_checkpointing(enabled)  # type: ignore[operator]


def image_tower(clip: nn.Module) -> Encode:
    """Image features [B, D] of images [B, 3, H, W]: `clip.encode_image`, or what stands for it in `encoding_by`."""
    own = _encode.get()
    return own[1] if own is not None and own[0] is clip else clip.encode_image  # type: ignore[return-value]


@contextlib.contextmanager
def encoding_by(clip: nn.Module, encode: Encode | None) -> Iterator[None]:
    """Let `encode` stand for `clip.encode_image` while this is open; None changes nothing."""
    before = _encode.set((clip, encode) if encode is not None else _encode.get())
    try:
        yield
    finally:
        _encode.reset(before)


def set_channels_last(clip: nn.Module, enabled: bool) -> None:
    """Store the image tower's convolutions with their channels innermost, or as usual; the same numbers, and the same parameters."""
    clip.get_submodule("visual").to(memory_format=torch.channels_last if enabled else torch.contiguous_format)
