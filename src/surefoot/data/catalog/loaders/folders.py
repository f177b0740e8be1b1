"""Images in class folders: a train folder and shifts beside it, or a set of domains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from surefoot.data.catalog.declaration import Declaration, Part
from surefoot.data.catalog.loaders import imagenet, objectnet, video
from surefoot.data.catalog.loaders.found import Classes, Found, classes_of, folders_in, images_in, missing, place_of, without_images
from surefoot.data.findings import Finding
from surefoot.data.layout import Split, listed
from surefoot.errors import unknown_name

Reading = Callable[[Part, Path, Classes], tuple[Split, list[Finding]]]


def load_folders(declaration: Declaration, root: Path) -> Found:
    """Each part read in its own way; what classes there are is declared, or what train holds."""
    train = place_of(root, declaration.parts[0])
    found = [] if declaration.labels or train is None else [folder.name for folder in folders_in(train)]
    return _read(declaration, root, classes_of(declaration, found))


def load_domains(declaration: Declaration, root: Path) -> Found:
    """The first domain as train, the others as shifts; what classes there are is declared, or what any domain holds."""
    places = [place for part in declaration.parts if (place := place_of(root, part))]
    found = {folder.name for place in places for folder in folders_in(place)} if not declaration.labels else set()
    return _read(declaration, root, classes_of(declaration, found))


def _read(declaration: Declaration, root: Path, classes: Classes) -> Found:
    splits: dict[str, Split] = {}
    findings: list[Finding] = []
    for part in declaration.splits:
        place = place_of(root, part)
        if place is None:
            findings.append(missing(declaration, root, part))
            continue
        if part.reading not in READINGS:
            raise unknown_name(f"reading of {part.name} of {declaration.name}", part.reading, READINGS)
        split, own = READINGS[part.reading](part, place, classes)
        findings += own or _empty(part, place, split)
        if split.paths:
            splits[part.name] = split
    return Found(root, classes, splits, tuple(findings))


def _empty(part: Part, place: Path, split: Split) -> list[Finding]:
    return [] if split.paths else [Finding(_level(part), f"{place} holds no images. {part.name} must hold {part.holds}.")]


def _level(part: Part) -> str:
    return "warning" if part.optional else "error"


def class_folders(part: Part, place: Path, classes: Classes) -> tuple[Split, list[Finding]]:
    """<class>/* in any depth. Options: `subset`, the classes of ImageNet that must be there; `without`, folders that are no classes."""
    chosen = imagenet.subset(part.options["subset"]) if "subset" in part.options else range(len(classes.labels))
    row = classes.row
    there = [folder for folder in folders_in(place) if folder.name not in part.options.get("without", ())]
    folders = [(row[folder.name], folder) for folder in there if folder.name in row]
    strange = [folder.name for folder in there if folder.name not in row]
    split, findings = _collected(part, place, classes, folders, chosen, strange=strange)
    return (replace(split, declared=tuple(chosen)) if "subset" in part.options else split), findings


def numbered(part: Part, place: Path, classes: Classes) -> tuple[Split, list[Finding]]:
    """Folders that are called by class numbers: 2 stands before 10."""
    folders, strange = [], []
    for folder in folders_in(place):
        if folder.name.isdecimal() and int(folder.name) < len(classes.labels):
            folders.append((int(folder.name), folder))
        else:
            strange.append(folder.name)
    return _collected(part, place, classes, folders, range(len(classes.labels)), strange=strange)


def _collected(
    part: Part, place: Path, classes: Classes, folders: list[tuple[int, Path]], expected: Iterable[int], *, strange: list[str]
) -> tuple[Split, list[Finding]]:
    """The images of class folders, in the order of classes, and what is wrong with the folders."""
    found = [(path, row) for row, folder in sorted(folders) for path in images_in(folder)]
    split = Split(part.name, tuple(path for path, _ in found), tuple(row for _, row in found), classes.names)
    if not found:
        return split, _no_classes(part, place, classes)
    wanted = list(expected)
    findings = without_images(part, split, wanted, classes.names)
    if strange:
        findings.append(Finding("warning", f"{place} holds folders that are no class of {part.name}, not read: {listed(strange)}."))
    if extra := [classes.labels[row] for row in sorted(set(split.labels) - set(wanted))]:
        findings.append(Finding("warning", f"{place} holds {len(extra)} classes that {part.name} does not have: {listed(extra)}."))
    return split, findings


def _no_classes(part: Part, place: Path, classes: Classes) -> list[Finding]:
    """That none of the class folders is there, and what is there instead."""
    there = sorted(path.name for path in place.iterdir())
    loose = next(images_in(place), None)
    hint = "The images lie there without class folders: sort them into these." if loose and loose.parent == place else ""
    wants = f"It must hold {part.holds}, with class folders such as {listed(classes.labels, 3)}." if classes.labels else ""
    text = f"{part.name}: {place} holds no images in class folders, only {listed(there, 3) or 'nothing'}. {wants} {hint}"
    return [Finding(_level(part), text.strip())]


READINGS: dict[str, Reading] = {
    "": class_folders,
    "numbered": numbered,
    "objectnet": objectnet.read,
    "imagenet_vid_robust": video.read_vid_robust,
    "ytbb_robust": video.read_ytbb_robust,
}
"""How a part is read, by its declaration's `reading`."""
