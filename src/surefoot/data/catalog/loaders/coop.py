"""Data sets with published lists of their images: CoOp's split_zhou files, and the official lists that torchvision reads too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from surefoot.data.catalog.declaration import Declaration, Part
from surefoot.data.catalog.loaders import official
from surefoot.data.catalog.loaders.found import Classes, Found, missing, not_there, place_of, without_images
from surefoot.data.catalog.loaders.official import Listed, inside, read
from surefoot.data.findings import Finding
from surefoot.data.layout import Split
from surefoot.errors import DataError, MissingDataError, unknown_name
from surefoot.guard import parse_json


def load_lists(declaration: Declaration, root: Path) -> Found:
    """The splits that the published list names, in its order. Its paths are relative to the option `base`, or to the part's folder.

    References:
        Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022 (the split_zhou files).
    """
    splits: dict[str, Split] = {}
    if gone := [missing(declaration, root, part) for part in declaration.parts if place_of(root, part) is None]:
        return Found(root, Classes((), ()), splits, tuple(gone))
    first = declaration.parts[0]
    if first.reading not in LISTS:
        raise unknown_name(f"reading of {declaration.name}", first.reading, LISTS)
    try:
        labels, images = LISTS[first.reading](root, first)
        classes = _classes(declaration, labels, images)
    except (DataError, MissingDataError) as error:
        text = f"{error} Get it from: {declaration.source}."
        return Found(root, Classes((), ()), splits, (Finding("error", text),))
    findings: list[Finding] = []
    for part in declaration.parts:
        base = root / part.options["base"] if "base" in part.options else place_of(root, part)
        split, own = _split(part, base or root, images.get(part.name, []), classes)
        splits[part.name] = split
        findings += own
    return Found(root, classes, splits, tuple(findings))


def _classes(declaration: Declaration, labels: tuple[str, ...], images: Listed) -> Classes:
    """The classes that a list names, or that the declaration names where the list only numbers them."""
    if declaration.names:
        labels = tuple(str(number) for number in range(len(declaration.names)))
    most = max((label for rows in images.values() for _, label in rows), default=0)
    if most >= len(labels) or any(label < 0 for rows in images.values() for _, label in rows):
        raise DataError(f"The lists number classes up to {most}, and {declaration.name} has {len(labels)} from 0 on.")
    called = tuple(declaration.class_names.get(label, label.replace("_", " ")) for label in labels)
    return Classes(labels, declaration.names or called)


def _split(part: Part, base: Path, images: Iterable[tuple[str, int]], classes: Classes) -> tuple[Split, list[Finding]]:
    found = [(base / name, label) for name, label in images]
    split = Split(part.name, tuple(path for path, _ in found), tuple(label for _, label in found), classes.names)
    return split, not_there(part, split.paths) or without_images(part, split, range(len(classes.labels)), classes.names)


def _zhou(root: Path, part: Part) -> tuple[tuple[str, ...], Listed]:
    """{"train" | "val" | "test": [[path, class number, class name], ...]}."""
    path = root / part.options["list"]
    text = read(path)
    try:
        table = parse_json(text)
        images = {name: [(str(place), int(label)) for place, label, _ in rows] for name, rows in table.items()}
        named = {(int(label), str(called)) for rows in table.values() for _, label, called in rows}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a list of [path, class number, class name] for train, val and test ({error}).") from error
    if sorted(label for label, _ in named) != list(range(len(named))):
        raise DataError(f"{path} does not give each class number from 0 on one name.")
    return tuple(called for _, called in sorted(named)), inside(path, images)


LISTS: dict[str, Callable[[Path, Part], tuple[tuple[str, ...], Listed]]] = {"zhou": _zhou, **official.LISTS}
"""How a list is read, by the `reading` of the first part."""
