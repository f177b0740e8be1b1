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


def chosen(declaration: Declaration, root: Path) -> tuple[Declaration, Path]:
    """The first of a data set's layouts that is under the root, and the folder that holds its parts; its own if none is whole.

    Raises:
        MissingDataError: no required part of any layout is there.
    """
    for one in (declaration, *declaration.layouts):
        marked = [place for place in _places(one, root) if all((place / mark).is_file() for mark in one.marks)]
        best = max(marked, key=lambda place: _number(one, place), default=None)
        if best is not None and _number(one, best):
            return one, best
    return declaration, located(declaration, root)


def about_layouts(declaration: Declaration, taken: Declaration, place: Path) -> list[Finding]:
    """Which of several layouts was taken, or that none of them is whole."""
    if taken.layout:
        gone = f", for there is no {listed(declaration.marks)}" if declaration.marks else ""
        text = f"{taken.name} was read as {taken.layout} lays it out{gone}: its splits are the official ones, or made where there are none."
        return [Finding("note", text)]
    if not declaration.layouts or all((place / mark).is_file() for mark in declaration.marks):
        return []
    places = {one.layout: [_shown(one, name) for name in one.marks or _wanted(one)] for one in declaration.layouts}
    wanted = "; or ".join(f"as {layout} lays it out, {listed(names)}" for layout, names in places.items())
    return [Finding("error", f"{declaration.name} can also lie there {wanted}; that was not found either.")]


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
    layouts = (declaration, *declaration.layouts)
    wanted = " or ".join(listed(_wanted(one) if one is declaration else [_shown(one, name) for name in _wanted(one)]) for one in layouts)
    there = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    near = next((at for at in _near(root) if any(_number(one, place) for one in layouts for place in _places(one, at))), None)
    hint = f"They are in {near}: give --root {near}." if near else f"Get it from: {declaration.source}."
    raise MissingDataError(
        f"{root} is not where {declaration.name} lies. It holds {listed(there) or 'nothing'}; wanted are {wanted}. {hint}"
    )


def _wanted(declaration: Declaration) -> list[str]:
    return list(dict.fromkeys(f"{part.place[0]}/" for part in declaration.parts if not part.optional))


def _shown(declaration: Declaration, name: str) -> str:
    """A place with the folder that usually holds it."""
    return f"{declaration.home[0]}/{name}" if declaration.home else name


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
