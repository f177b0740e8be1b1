"""Data sets with published lists of their images: CoOp's split_zhou files, and the lists of FGVC-Aircraft, whose splits are official."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from surefoot.data.catalog.declaration import Declaration, Part
from surefoot.data.catalog.loaders.found import Classes, Found, missing, place_of, without_images
from surefoot.data.findings import Finding
from surefoot.data.layout import Split, listed
from surefoot.errors import DataError, MissingDataError

Listed = Mapping[str, list[tuple[str, int]]]
"""{split: (path below the images' folder, class number) of each image}."""


def load_lists(declaration: Declaration, root: Path) -> Found:
    """The splits that the published list names, in its order. Its paths are relative to the option `base`, or to the part's folder.

    References:
        Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022 (the split_zhou files).
    """
    splits: dict[str, Split] = {}
    if gone := [missing(declaration, root, part) for part in declaration.parts if place_of(root, part) is None]:
        return Found(root, Classes((), ()), splits, tuple(gone))
    first = declaration.parts[0]
    try:
        labels, images = LISTS[first.reading](root, first)
    except (DataError, MissingDataError) as error:
        text = f"{error} Get it from: {declaration.source}."
        return Found(root, Classes((), ()), splits, (Finding("error", text),))
    classes = Classes(labels, tuple(declaration.class_names.get(label, label.replace("_", " ")) for label in labels))
    findings: list[Finding] = []
    for part in declaration.parts:
        base = root / part.options["base"] if "base" in part.options else place_of(root, part)
        split, own = _split(part, base or root, images.get(part.name, []), classes)
        splits[part.name] = split
        findings += own
    return Found(root, classes, splits, tuple(findings))


def _split(part: Part, base: Path, images: Iterable[tuple[str, int]], classes: Classes) -> tuple[Split, list[Finding]]:
    found = [(base / name, label) for name, label in images]
    split = Split(part.name, tuple(path for path, _ in found), tuple(label for _, label in found), classes.names)
    if gone := [path for path in split.paths if not path.is_file()]:
        text = f"{part.name}: {len(gone):,} of {len(found):,} listed images are not there: {listed(gone, 3)}."
        return split, [Finding("error", f"{text} A half-extracted archive? Unpack it again.")]
    return split, without_images(part, split, range(len(classes.labels)), classes.names)


def _zhou(root: Path, part: Part) -> tuple[tuple[str, ...], Listed]:
    """{"train" | "val" | "test": [[path, class number, class name], ...]}."""
    path = root / part.options["list"]
    text = _read(path)
    try:
        table = json.loads(text)
        images = {name: [(str(place), int(label)) for place, label, _ in rows] for name, rows in table.items()}
        named = {(int(label), str(called)) for rows in table.values() for _, label, called in rows}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a list of [path, class number, class name] for train, val and test ({error}).") from error
    if sorted(label for label, _ in named) != list(range(len(named))):
        raise DataError(f"{path} does not give each class number from 0 on one name.")
    return tuple(called for _, called in sorted(named)), _inside(path, images)


def _variants(root: Path, part: Part) -> tuple[tuple[str, ...], Listed]:
    """variants.txt, and images_variant_{train,val,test}.txt with a number and a variant a line."""
    labels = tuple(line.strip() for line in _read(root / "variants.txt").splitlines() if line.strip())
    row = {label: number for number, label in enumerate(labels)}
    images: dict[str, list[tuple[str, int]]] = {}
    for name in ("train", "val", "test"):
        path = root / f"images_variant_{name}.txt"
        pairs = [line.strip().partition(" ") for line in _read(path).splitlines() if line.strip()]
        if strange := [variant for _, _, variant in pairs if variant not in row]:
            raise DataError(f"{path} names variants that variants.txt does not: {listed(sorted(set(strange)))}.")
        images[name] = [(f"{number}.jpg", row[variant]) for number, _, variant in pairs]
    return labels, _inside(root, images)


def _read(path: Path) -> str:
    if not path.is_file():
        raise MissingDataError(f"There is no file {path}.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}).") from error


def _inside(path: Path, images: Listed) -> Listed:
    """The images themselves, if none lies outside the folder that the list is for."""
    for rows in images.values():
        for name, _ in rows:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
                raise DataError(f"{path} names an image outside its folder: {name}. Get the list anew.")
    return images


LISTS: dict[str, Callable[[Path, Part], tuple[tuple[str, ...], Listed]]] = {"zhou": _zhou, "variants": _variants}
"""How a list is read, by the `reading` of the first part."""
