"""A data set of the catalogue as its TOML file declares it: where it lies, what its classes are called, how many images it holds.

See the head of `surefoot.data.catalog` for what a file looks like.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from surefoot.errors import DataError, SettingError, UnknownNameError, unknown_name
from surefoot.guard.texts import SMALL, parse_toml, read_text
from surefoot.prompts import check_template

CATALOG = Path(__file__).parents[2] / "catalog"
METRICS = ("accuracy", "mean_per_class", "macro_f1", "worst_group")
IMAGENET = "imagenet"
"""As `labels`: the 1000 folders of ImageNet, called as CLIP calls them."""
_SETS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split as it lies on disk.

    Attributes:
        name: train, val, test, shifts/<name> or unseen/<name>; of a set of domains, the domain.
        place: its folder below the root; further ones are other places where people put it.
        holds: what lies in it, to be shown.
        reading: how its loader reads it; "" is the loader's usual way.
        options: what that way needs to know besides.
        images: how many the papers count.
        classes: how many of the data set's classes have images here; all of them if None.
        optional: whether the rest can be used without it.
        source: where people get it; where they get the data set if empty.
    """

    name: str
    place: tuple[str, ...]
    holds: str = "<class>/*"
    reading: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    images: int | None = None
    classes: int | None = None
    optional: bool = False
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A data set of the catalogue.

    Attributes:
        name: what commands call it.
        title: what people call it.
        paper: who made it, and where it was published.
        loader: which of `loaders.LOADERS` opens it.
        source: where people get it.
        classes: how many there are.
        parts: its splits, or its domains, train first.
        home: folders below the root that may hold all parts, as archives unpack.
        labels: folders of the classes in their order; "imagenet"; in the file also the name of a set that has the same; or empty, what is
            found in train (in any domain) in sorted order.
        class_names: what a folder's class is called where `_` read as a space is not enough.
        templates: prompts, or the name of a set of them ("openai80"); the prompts of `contexts` if empty.
        clip_templates: CLIP's own prompts for the set, from data/prompts.md of https://github.com/openai/CLIP, where they are others: taken
            instead by the setting templates=clip.
        contexts: a prompt for each context, as `Dataset.contexts`.
        id_context: the context of train, val and test.
        metric: what the papers report beside accuracy.
        val_share: of train, where the set has no validation images; None is the command's own.
        package: what must be installed to read it, and
        extra: the extra of Surefoot that brings it.
        notes: what somebody who compares with the papers should know.
        names: what the classes are called, in their order, where the data only number them.
        marks: files that only this layout has, below the folder that holds its parts.
        layout: who lays the data out in this way, of one of `layouts`.
        layouts: other layouts that people have, in the order in which they are looked for; in the file [layouts.NAME], where every key that
            is not given is that of the data set.
    """

    name: str
    title: str
    paper: str
    loader: str
    source: str
    classes: int
    parts: tuple[Part, ...]
    home: tuple[str, ...] = ()
    labels: tuple[str, ...] | str = ()
    class_names: Mapping[str, str] = field(default_factory=dict)
    templates: tuple[str, ...] | str = ()
    clip_templates: tuple[str, ...] = ()
    contexts: Mapping[str, str] = field(default_factory=dict)
    id_context: str | None = None
    metric: str = "accuracy"
    val_share: float | None = None
    package: str = ""
    extra: str = ""
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    layout: str = ""
    layouts: tuple[Declaration, ...] = ()

    @property
    def splits(self) -> tuple[Part, ...]:
        """The parts under the names of their splits: of a set of domains, the first is train and the others are shifts."""
        if self.loader != "domains":
            return self.parts
        first, *others = self.parts
        return (replace(first, name="train"), *(replace(part, name=f"shifts/{part.name}") for part in others))

    def source_of(self, part: Part) -> str:
        """Where people get a part."""
        return part.source or self.source

    @property
    def sources(self) -> tuple[str, ...]:
        """Where people get the parts of any layout."""
        every = [one.source_of(part) for one in (self, *self.layouts) for part in one.parts]
        return tuple(dict.fromkeys(every))


def names() -> list[str]:
    """The data sets of the catalogue."""
    return sorted(path.stem for path in CATALOG.glob("*.toml"))


@cache
def declared(name: str) -> Declaration:
    """What the catalogue says of a data set.

    Raises:
        UnknownNameError: it holds none of that name.
        DataError: its file is not what it must be.
    """
    if name not in names():
        raise unknown_name("data set of the catalogue", name, names())
    return read_declaration(CATALOG / f"{name}.toml")


def read_declaration(path: Path) -> Declaration:
    """The declaration in a TOML file, called after it.

    Raises:
        DataError: no valid TOML, a key without meaning, one that is missing, or a value of another kind than it must be.
    """
    try:
        table = parse_toml(read_text(path, most=SMALL))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path} is not valid TOML: {error}. Write it as the head of surefoot.data.catalog shows.") from error
    others = table.pop("layouts", {})
    if not isinstance(others, dict) or not all(isinstance(own, dict) for own in others.values()):
        raise DataError(f"{path}: layouts is {others!r}. Write a table for each other layout, such as [layouts.torchvision].")
    common = {key: value for key, value in table.items() if key not in ("parts", "marks")}
    layouts = [_declaration(path, {**common, **own, "layout": name}) for name, own in others.items()]
    return _declaration(path, {**table, "layouts": layouts})


def _declaration(path: Path, table: dict[str, Any]) -> Declaration:
    """The declaration of one layout."""
    parts = table.pop("parts", {})
    if not isinstance(parts, dict) or not parts:
        raise DataError(f"{path} declares no parts. Write a table for each split, such as [parts.train].")
    if table.get("labels", IMAGENET) != IMAGENET and isinstance(table["labels"], str):
        table["labels"] = list(declared(table["labels"]).labels)
    made = tuple(_part(path, name, own) for name, own in parts.items())
    checked = _checked(path, "a declaration", Declaration, {"name": path.stem, "parts": made, **table})
    return _consistent(path, Declaration(**checked))


def _part(path: Path, name: str, table: Mapping[str, Any]) -> Part:
    if not isinstance(table, dict):
        raise DataError(f"{path}: parts.{name} is {table!r}. Write a table, [parts.{name}].")
    if isinstance(table.get("place"), str):
        table = {**table, "place": [table["place"]]}
    return Part(**_checked(path, f"[parts.{name}]", Part, {"name": name, **table}))


def _checked(path: Path, what: str, kind: type, table: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a table as the fields of a dataclass take them: every key is one, none is missing, and each has its type."""
    known = {one.name: one for one in fields(kind)}
    for key in table:
        if key not in known:
            raise DataError(f"{path}: {unknown_name(f'key of {what}', key, known)}")
    for key, one in known.items():
        if key not in table and one.default is MISSING and one.default_factory is MISSING:
            raise DataError(f"{path}: {what} has no {key}. Add it.")
    made = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    for key, value in made.items():
        if not _fits(value, str(known[key].type)):
            raise DataError(f"{path}: {key} of {what} is {value!r}; it must be of the type {known[key].type}.")
    return made


def _fits(value: object, kind: str) -> bool:
    kinds = {"str": str, "int": int, "float": float, "bool": bool} | {f"tuple[{one}, ...]": tuple for one in ("str", "Part", "Declaration")}
    if kind.startswith("Mapping"):
        return isinstance(value, dict) and ("Any" in kind or all(isinstance(own, str) for own in value.values()))
    wanted = tuple(kinds[one] for one in kind.split(" | ") if one != "None")
    if isinstance(value, tuple) and "str" in kind and not all(isinstance(one, str) for one in value):
        return False
    return isinstance(value, wanted) and (not isinstance(value, bool) or bool in wanted)


def _consistent(path: Path, made: Declaration) -> Declaration:
    """The declaration itself if its values agree with each other."""
    problems = []
    if made.metric not in METRICS:
        problems.append(str(unknown_name("metric", made.metric, METRICS)))
    if isinstance(made.labels, tuple) and made.labels and len(set(made.labels)) != made.classes:
        problems.append(f"labels names {len(set(made.labels))} folders, and classes is {made.classes}.")
    if made.names and len(made.names) != made.classes:
        problems.append(f"names holds {len(made.names)} names, and classes is {made.classes}.")
    if made.id_context is not None and made.id_context not in made.contexts:
        problems.append(f"id_context is '{made.id_context}', which [contexts] does not hold.")
    if bool(made.package) != bool(made.extra):
        problems.append("package and extra go together.")
    for part in made.parts:
        if made.loader != "domains" and part.name not in _SETS and not part.name.startswith(("shifts/", "unseen/")):
            problems.append(f"a part is called '{part.name}'; write train, val, test, shifts/<name> or unseen/<name>.")
    for template in (*made.contexts.values(), *made.clip_templates, *(made.templates if isinstance(made.templates, tuple) else ())):
        try:
            check_template(template)
        except (SettingError, UnknownNameError) as error:
            problems.append(str(error))
    if problems:
        raise DataError(f"{path}: {' '.join(problems)}")
    return made
