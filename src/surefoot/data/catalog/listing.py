"""The catalogue as a table, and one data set as the tree that it must be on disk."""

from __future__ import annotations

from collections.abc import Iterator

from surefoot.data.catalog.declaration import Declaration, Part, declared, names

COLUMNS = ("name", "classes", "images", "trained on, and its shifts", "metric", "where it lies below the root", "where to get it")


def rows() -> Iterator[tuple[str, ...]]:
    """A row for each data set, in the order of `COLUMNS`."""
    for name in names():
        yield row(declared(name))


def row(declaration: Declaration) -> tuple[str, ...]:
    """One data set in the order of `COLUMNS`; `*` marks shifts that it can be used without."""
    images = sum(part.images or 0 for part in declaration.parts)
    first, *others = (
        part.name.removeprefix("shifts/") + "*" * part.optional for part in declaration.parts if part.name not in ("val", "test")
    )
    shifts = ": ".join([first, ", ".join(others)] if others else [first])
    lies = " or ".join(dict.fromkeys(_lies(one) for one in (declaration, *declaration.layouts)))
    return (
        declaration.name, str(declaration.classes), f"{images:,}", shifts, declaration.metric.replace("_", " "), lies,
        declaration.source,
    )  # fmt: skip


def _lies(declaration: Declaration) -> str:
    places = dict.fromkeys(part.place[0] for part in declaration.parts)
    home = f"{declaration.home[0]}/" if declaration.home else ""
    return home + (f"{{{','.join(places)}}}" if home or len(places) > 1 else next(iter(places)))


def tree(declaration: Declaration) -> list[str]:
    """What must lie below the root, part by part, in each layout that people have."""
    lines = _parts(declaration)
    for other in declaration.layouts:
        lines += [f"or, as {other.layout} lays it out:", *_parts(other)]
    return lines


def _parts(declaration: Declaration) -> list[str]:
    home = f"{declaration.home[0]}/" if declaration.home else ""
    return [f"ROOT/{home}{part.place[0]}/{part.holds}  {_about(declaration, part)}" for part in declaration.splits]


def _about(declaration: Declaration, part: Part) -> str:
    facts = [part.name, f"{part.images:,} images" if part.images else "", f"{part.classes or declaration.classes} classes"]
    facts += ["optional"] if part.optional else []
    if part.place[1:]:
        facts.append("or in " + ", ".join(part.place[1:]))
    return f"({', '.join(fact for fact in facts if fact)})"


def markdown() -> str:
    """The table of the catalogue for the documents."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *((f"`{name}`", *others[:4], f"`{others[4]}`", others[5]) for name, *others in rows())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
