"""The standard layout of a data set in folders.

    DATA/
    ├── dataset.toml                    optional
    ├── train/<class>/*.jpg             what the model is fine-tuned on
    ├── val/<class>/*                   ID validation: every choice is made here
    ├── test/<class>/*                  ID test
    ├── shifts/<name>/<class>/*         the same classes (or some of them) under a shift
    └── unseen/<name>/<class>/*         other classes

A class is called by its folder's name with `_` read as a space, unless dataset.toml says otherwise:

    name = "fruit"
    id_context = "photo"                        # the context that train, val and test are drawn in
    templates = ["a photo of a {}.", "a {}."]

    [contexts]                                  # a prompt for each context; a shift of the same name is drawn in it
    photo = "a photo of a {}."
    sketch = "a sketch of a {}."

    [class_names]
    granny = "granny smith apple"
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surefoot.errors import DataError, MissingDataError, SettingError, unknown_name
from surefoot.prompts import check_template

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
DEFAULT_TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.", "a {}.")
_KEYS = ("name", "id_context", "templates", "contexts", "class_names")


@dataclass(frozen=True)
class Split:
    """Images of one evaluation or training set: `labels[i]` is the row of image i's class in `class_names`."""

    name: str
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Dataset:
    """A data set in the standard layout, its images found but not yet read."""

    root: Path
    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    contexts: Mapping[str, str] = field(default_factory=dict)
    id_context: str | None = None

    def split(self, name: str) -> Split:
        """The split of that name: train, val, test, shifts/<name> or unseen/<name>."""
        if name not in self.splits:
            raise unknown_name(f"split of {self.root}", name, self.splits)
        return self.splits[name]

    @property
    def shifts(self) -> tuple[Split, ...]:
        return tuple(split for name, split in self.splits.items() if name.startswith("shifts/"))

    @property
    def unseen(self) -> tuple[Split, ...]:
        return tuple(split for name, split in self.splits.items() if name.startswith("unseen/"))

    def context_of(self, split: str) -> str | None:
        """The context that a split is drawn in, if the data set names one for it."""
        context = self.id_context if split in ("train", "val", "test") else split.removeprefix("shifts/")
        return context if context in self.contexts else None

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits over class names, prompts, and every image's path and bytes."""
        total = hashlib.sha256(repr((self.class_names, self.templates, sorted(self.contexts.items()), self.id_context)).encode())
        total.update(repr([(name, split.class_names, split.labels) for name, split in self.splits.items()]).encode())
        for path in sorted(path for split in self.splits.values() for path in split.paths):
            total.update(path.relative_to(self.root).as_posix().encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()[:16]


def open_dataset(root: Path) -> Dataset:
    """Find the images of a folder in the standard layout; nothing is decoded.

    Args:
        root: the folder that holds train/, val/, test/ and optionally shifts/ and unseen/.

    Raises:
        MissingDataError: no such folder, or no train, val or test in it.
        DataError: an empty split, fewer than two classes, a shift with a class that is not in train, a broken dataset.toml.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingDataError(f"There is no folder {root}. Give the folder that holds train/<class>/, val/ and test/.")
    config = _read_config(root / "dataset.toml")
    folders = _class_folders(root / "train")
    if len(folders) < 2:
        raise DataError(f"{root / 'train'} holds {len(folders)} class folders; classification needs at least two.")
    names = config.get("class_names", {})
    known = tuple(folder.name for folder in folders)
    called = tuple(names.get(folder, folder.replace("_", " ")) for folder in known)
    splits: dict[str, Split] = {}
    for split in ("train", "val", "test", *_children(root, "shifts")):
        splits[split] = _seen_split(root, split, known, called)
    for split in _children(root, "unseen"):
        own = _class_folders(root / split)
        own_names = tuple(names.get(folder.name, folder.name.replace("_", " ")) for folder in own)
        splits[split] = _collect(split, [(label, folder) for label, folder in enumerate(own)], own_names)
    folder_names = {folder.name for split in ("train", *_children(root, "unseen")) for folder in _class_folders(root / split)}
    for folder in names:
        if folder not in folder_names:
            raise unknown_name(f"class folder in [class_names] of {root / 'dataset.toml'}", folder, folder_names)
    for label, folder in enumerate(folders):
        if label not in splits["train"].labels:
            raise DataError(f"{folder} holds no images that can be read. Add some, or remove the folder: {', '.join(sorted(SUFFIXES))}.")
    return Dataset(
        root=root,
        name=config.get("name", root.resolve().name),
        class_names=called,
        splits=splits,
        templates=tuple(config.get("templates", DEFAULT_TEMPLATES)),
        contexts=dict(config.get("contexts", {})),
        id_context=config.get("id_context"),
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid TOML: {error}.") from error
    for key in config:
        if key not in _KEYS:
            raise unknown_name(f"key of {path}", key, _KEYS)
    _check_types(path, config)
    for template in [*config.get("templates", []), *config.get("contexts", {}).values()]:
        try:
            check_template(template)
        except SettingError as error:
            raise DataError(f"{path}: {error}") from error
    if config.get("id_context") and config["id_context"] not in config.get("contexts", {}):
        raise DataError(f"{path}: id_context is '{config['id_context']}', which [contexts] does not hold. Add a prompt for it there.")
    return config


def _check_types(path: Path, config: Mapping[str, Any]) -> None:
    """Every entry has the form that the head of this module shows, or a DataError says which has not."""
    templates, tables = config.get("templates", ["{}"]), [config.get(key, {}) for key in ("contexts", "class_names")]
    if not isinstance(templates, list) or not templates or not all(isinstance(template, str) for template in templates):
        raise DataError(f'{path}: templates is {templates!r}. Write a list of texts, such as ["a photo of a {{}}."].')
    for table in tables:
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            raise DataError(f"{path}: {table!r} must be a table of texts under [contexts] or [class_names].")
    for key in ("name", "id_context"):
        if not isinstance(config.get(key, ""), str):
            raise DataError(f"{path}: {key} is {config[key]!r}. Write a text in quotes.")


def _children(root: Path, kind: str) -> list[str]:
    return [f"{kind}/{folder.name}" for folder in _folders(root / kind)] if (root / kind).is_dir() else []


def _folders(parent: Path) -> list[Path]:
    return sorted(child for child in parent.iterdir() if child.is_dir() and not child.name.startswith("."))


def _class_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise MissingDataError(f"There is no folder {folder}. The standard layout has train/<class>/, val/<class>/ and test/<class>/.")
    return _folders(folder)


def _seen_split(root: Path, split: str, known: tuple[str, ...], called: tuple[str, ...]) -> Split:
    place = {name: label for label, name in enumerate(known)}
    for folder in (folders := _class_folders(root / split)):
        if folder.name not in place:
            raise DataError(f"{folder} is a class that train/ does not have. Rename it, or move it to unseen/<name>/.")
    return _collect(split, [(place[folder.name], folder) for folder in folders], called)


def _is_image(path: Path, folder: Path) -> bool:
    """A file with an image's suffix that is not hidden and lies in no hidden folder below `folder`."""
    return path.suffix.lower() in SUFFIXES and path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)


def _collect(split: str, folders: Iterable[tuple[int, Path]], class_names: tuple[str, ...]) -> Split:
    found = [(path, label) for label, folder in folders for path in sorted(folder.rglob("*")) if _is_image(path, folder)]
    if not found:
        raise DataError(f"The split {split} holds no images. Put them into {split}/<class>/; read are {', '.join(sorted(SUFFIXES))}.")
    return Split(split, tuple(path for path, _ in found), tuple(label for _, label in found), class_names)
