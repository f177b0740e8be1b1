"""ImageNet's classes: the 1000 folders in their order, and the 200 that ImageNet-R and ImageNet-A hold, from lists that timm ships."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from surefoot.errors import SettingError, unknown_name

SUBSETS = {"imagenet_a": "imagenet_a_indices.txt", "imagenet_r": "imagenet_r_indices.txt"}
_SYNSETS = "imagenet_synsets.txt"


def wnids() -> tuple[str, ...]:
    """WordNet's identifiers of the 1000 classes; class number i is the i-th of them in sorted order.

    Examples:
        >>> wnids()[0], len(wnids())
        ('n01440764', 1000)
    """
    return tuple(sorted(_lines(_SYNSETS)))


def subset(name: str) -> tuple[int, ...]:
    """The class numbers that ImageNet-R ("imagenet_r") or ImageNet-A ("imagenet_a") hold images of.

    Raises:
        UnknownNameError: another name.

    Examples:
        >>> len(subset("imagenet_r")), len(subset("imagenet_a"))
        (200, 200)
    """
    if name not in SUBSETS:
        raise unknown_name("subset of ImageNet", name, SUBSETS)
    return tuple(int(line) for line in _lines(SUBSETS[name]))


@cache
def _lines(file: str) -> tuple[str, ...]:
    """The lines of a list that comes with timm."""
    path = files("timm") / "data" / "_info" / file
    if not path.is_file():
        raise SettingError(f"timm has no list {file} any more (looked for {path}). Install the release that open_clip_torch asks for.")
    return tuple(path.read_text(encoding="utf-8").split())
