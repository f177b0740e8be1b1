"""What loaders share: the classes of a data set, and what was found on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from surefoot.data.catalog.declaration import IMAGENET, Declaration, Part
from surefoot.data.findings import Finding
from surefoot.data.layout import SUFFIXES, Split, listed


@dataclass(frozen=True)
class Classes:
    """The classes of a data set: their folders (labels on disk) and what they are called, in one order."""

    labels: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def row(self) -> Mapping[str, int]:
        """{label: class number}."""
        return {label: number for number, label in enumerate(self.labels)}


@dataclass(frozen=True)
class Found:
    """What a loader found: an error among the findings says why the data cannot be used.

    Attributes:
        root: what the images' paths are written relative to.
        classes: of train.
        splits: those that are there.
        findings: what is missing or not as it should be.
        places: see `moved`.
        source: as `Dataset.source`.
    """

    root: Path
    classes: Classes
    splits: Mapping[str, Split]
    findings: tuple[Finding, ...] = ()
    places: tuple[tuple[str, str], ...] = ()
    source: Path | None = None


Loader = Callable[[Declaration, Path], Found]
"""Opens what a declaration says below a root folder. It raises nothing for what is missing on disk: it reports a finding."""


def classes_of(declaration: Declaration, found: Iterable[str] = ()) -> Classes:
    """The declared classes; where none are declared, the labels that were found, in sorted order."""
    if declaration.labels == IMAGENET:
        from surefoot.data.catalog.loaders.imagenet import wnids
        from surefoot.model import imagenet_class_names

        return Classes(wnids(), tuple(imagenet_class_names()))
    labels = tuple(declaration.labels) or tuple(sorted(found))
    return Classes(labels, tuple(declaration.class_names.get(label, label.replace("_", " ")) for label in labels))


def place_of(root: Path, part: Part) -> Path | None:
    """The folder of a part, the first of its places that is there."""
    return next((root / place for place in part.place if (root / place).is_dir()), None)


def moved(root: Path, declaration: Declaration) -> tuple[tuple[str, str], ...]:
    """(place, first declared place) of each part that lies in another of its places."""
    there = {place.relative_to(root).as_posix(): part.place[0] for part in declaration.parts if (place := place_of(root, part))}
    return tuple((place, first) for place, first in there.items() if place != first)


def missing(declaration: Declaration, root: Path, part: Part) -> Finding:
    """That a part is not there, where it belongs, and where people get it."""
    others = f" (or {', '.join(part.place[1:])})" if part.place[1:] else ""
    text = f"{part.name} was not found: there is no folder {root / part.place[0]}{others}. It holds {part.holds}"
    size = f", {part.images:,} images" if part.images else ""
    goes_on = " Without it the rest can be used." if part.optional else ""
    return Finding("note" if part.optional else "error", f"{text}{size}. Get it from: {declaration.source_of(part)}.{goes_on}")


def folders_in(place: Path) -> list[Path]:
    """The visible folders in a folder, in an order that is the same on every platform."""
    return sorted((child for child in place.iterdir() if child.is_dir() and not child.name.startswith(".")), key=lambda path: path.name)


def images_in(folder: Path) -> Iterator[Path]:
    """The visible images in a folder and below, in an order that is the same on every platform."""
    below = []
    for name, folders, files in os.walk(folder):
        folders[:] = [child for child in folders if not child.startswith(".")]
        below += [Path(name, file) for file in files if not file.startswith(".") and Path(file).suffix.lower() in SUFFIXES]
    yield from sorted(below, key=lambda path: path.parts)


def not_there(part: Part, paths: Sequence[Path]) -> list[Finding]:
    """That some of the images that a published list names are not on disk, or that it names none."""
    if not paths:
        return [Finding("error", f"{part.name}: the list of its images names none. A list that is cut off? Get it again.")]
    if not (gone := [path for path in paths if not path.is_file()]):
        return []
    text = f"{part.name}: {len(gone):,} of {len(paths):,} listed images are not there: {listed(gone, 3)}."
    return [Finding("error", f"{text} A half-extracted archive? Unpack it again.")]


def without_images(part: Part, split: Split, expected: Sequence[int], names: Sequence[str]) -> list[Finding]:
    """That some of the classes that the part must hold have no image there.

    Args:
        part: whose.
        split: as it was found.
        expected: the class numbers that must have images.
        names: of all classes.
    """
    present = set(split.labels)
    gone = [names[row] for row in expected if row not in present]
    if not gone:
        return []
    return [Finding("warning", f"{part.name} holds no image of {len(gone)} of its {len(expected)} classes: {listed(gone, 10)}.")]
