"""What is on disk against what a declaration expects: the right folder, every part, the published numbers of images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from surefoot.data.catalog.declaration import Declaration
from surefoot.data.catalog.loaders import Found
from surefoot.data.catalog.loaders.found import folders_in, place_of
from surefoot.data.findings import Finding
from surefoot.data.layout import listed
from surefoot.errors import MissingDataError


def located(declaration: Declaration, root: Path) -> Path:
    """The folder that holds a data set's parts: the root itself, or one of its homes below.

    Raises:
        MissingDataError: no required part is there; the message says what is, what is wanted, and which folder near by has it.
    """
    if not root.is_dir():
        raise MissingDataError(f"There is no folder {root}. Give the folder that {declaration.title} lies in by --root.")
    best = max(_places(declaration, root), key=lambda place: _number(declaration, place))
    if _number(declaration, best):
        return best
    wanted = [f"{part.place[0]}/" for part in declaration.parts if not part.optional]
    there = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    near = next((place for place in _near(root) if any(_number(declaration, one) for one in _places(declaration, place))), None)
    hint = f"They are in {near}: give --root {near}." if near else f"Get it from: {declaration.source}."
    raise MissingDataError(
        f"{root} is not where {declaration.name} lies. It holds {listed(there) or 'nothing'}; wanted are {listed(wanted)}. {hint}"
    )


def _places(declaration: Declaration, root: Path) -> list[Path]:
    return [*(root / home for home in declaration.home), root]


def _number(declaration: Declaration, place: Path) -> int:
    """How many of the required parts are there."""
    return sum(place_of(place, part) is not None for part in declaration.parts if not part.optional)


def _near(root: Path) -> Iterable[Path]:
    """The folders above a root, then those in it."""
    yield from root.absolute().parents[:2]
    yield from folders_in(root)


def compared(declaration: Declaration, found: Found) -> list[Finding]:
    """Where the numbers of classes and images are not those that were published."""
    number, findings = len(found.classes.labels), list[Finding]()
    if number != declaration.classes:
        findings.append(Finding("warning", f"{declaration.name} has {declaration.classes} classes; {number} were found."))
    published = {part.name: part.images for part in declaration.splits}
    for name, split in found.splits.items():
        wanted = published[name]
        if wanted and len(split) < wanted:
            text = f"{name} holds {len(split):,} images; {wanted:,} were published. A half-extracted archive? Unpack it again."
            findings.append(Finding("warning", text))
        if wanted and len(split) > wanted:
            findings.append(Finding("note", f"{name} holds {len(split):,} images; {wanted:,} were published."))
    return findings
