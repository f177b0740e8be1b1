"""A data set of the catalogue as an ordinary `Dataset`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from surefoot.data.catalog.checking import about_layouts, chosen, compared
from surefoot.data.catalog.declaration import Declaration, declared
from surefoot.data.catalog.loaders import LOADERS, Found
from surefoot.data.catalog.loaders.found import moved
from surefoot.data.findings import LEVELS, Finding
from surefoot.data.layout import DEFAULT_TEMPLATES, Dataset
from surefoot.errors import DataError, SettingError, unknown_name


def open_declared(name: str, root: Path, templates: str = "own") -> Dataset:
    """A data set of the catalogue as it lies on disk; what it lacks but can do without, and what else to know, is in the notes.

    Args:
        name: in the catalogue.
        root: the folder that it lies in.
        templates: "own", its usual prompts, or "clip", those of CLIP's authors where they have others for it; a note says which.

    Raises:
        UnknownNameError: the catalogue holds none of that name.
        MissingDataError: the root is not where it lies.
        DataError: a part is missing or cannot be used; all of them are named.
        SettingError: a package is not installed; the extra is named.
    """
    declaration = declared(name)
    found = dataset_of(declaration, look(declaration, root))
    if templates != "clip":
        return found
    if not declaration.clip_templates:
        return replace(found, notes=(*found.notes, f"CLIP has no prompts of its own for {name} that are others: the usual ones are taken."))
    note = f"Prompts are CLIP's own for {name}, {len(declaration.clip_templates)} of them."
    return replace(found, templates=declaration.clip_templates, notes=(*found.notes, note))


def check(name: str, root: Path) -> list[Finding]:
    """What differs from the declaration, errors first; nothing is decoded.

    Raises:
        UnknownNameError: the catalogue holds none of that name.
        MissingDataError: the root is not where the data set lies.
        SettingError: a package is not installed; the extra is named.
    """
    return list(look(declared(name), root).findings)


def look(declaration: Declaration, root: Path) -> Found:
    """What is on disk of a data set, with all findings, errors first."""
    taken, place = chosen(declaration, Path(root).expanduser())
    require(taken)
    if taken.loader not in LOADERS:
        raise unknown_name(f"loader of {taken.name}", taken.loader, LOADERS)
    found = LOADERS[taken.loader](taken, place)
    findings = [*found.findings, *about_layouts(declaration, taken, place), *compared(taken, found)]
    findings += [Finding("note", note) for note in taken.notes]
    found = replace(found, places=moved(found.root, taken))
    return replace(found, findings=tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level))))


def require(declaration: Declaration) -> None:
    """The package that reads the data set is installed.

    Raises:
        SettingError: it is not.
    """
    if declaration.package and find_spec(declaration.package) is None:
        raise SettingError(
            f"{declaration.name} is read by the package {declaration.package}, which is not installed. "
            f"Run: pip install 'surefoot[{declaration.extra}]'"
        )


def dataset_of(declaration: Declaration, found: Found) -> Dataset:
    """What was found as a data set.

    Raises:
        DataError: an error among the findings.
    """
    if errors := [finding.text for finding in found.findings if finding.level == "error"]:
        raise DataError("\n".join(errors))
    _check_paths(declaration, found)
    return Dataset(
        root=found.root,
        name=declaration.name,
        class_names=found.classes.names,
        splits=found.splits,
        templates=tuple(_templates(declaration)),
        contexts=dict(declaration.contexts),
        id_context=declaration.id_context,
        metric=declaration.metric,
        places=found.places,
        source=found.source,
        id_domain=declaration.parts[0].name if declaration.loader == "domains" else None,
        notes=tuple(finding.text for finding in found.findings),
    )


def _check_paths(declaration: Declaration, found: Found) -> None:
    """No list of a data set names an image that is elsewhere; folders in it may be links, as people share them.

    Raises:
        DataError: one does.
    """
    for split in found.splits.values():
        for path in split.paths:
            if ".." in path.parts or not path.is_relative_to(found.root):
                raise DataError(f"{split.name} of {declaration.name} names an image outside of {found.root}: {path}. Get its lists anew.")


def _templates(declaration: Declaration) -> Iterable[str]:
    """The declared prompts; where none are declared, those of the contexts, as CAR-FT takes one set for both."""
    if isinstance(declaration.templates, str):
        from surefoot.model import templates_named  # here, because the data are read without open_clip

        return templates_named(declaration.templates)
    return declaration.templates or tuple(declaration.contexts.values()) or DEFAULT_TEMPLATES
