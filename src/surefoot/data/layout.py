"""The standard layout of a data set in folders.

    DATA/
    ├── dataset.toml                    optional
    ├── train/<class>/*.jpg             what the model is fine-tuned on
    ├── val/<class>/*                   ID validation: every choice is made here; optional, see below
    ├── test/<class>/*                  ID test; optional, see below
    ├── shifts/<name>/<class>/*         the same classes (or some of them) under a shift
    └── unseen/<name>/<class>/*         other classes

Webdataset shards may stand where the class folders stand: `surefoot.data.sharded` tells how.
`surefoot.data.load` splits a missing val or test off train. A folder of nothing but class folders, DATA/<class>/*, is read as train.
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
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import features

from surefoot.data.anchors import Anchors
from surefoot.data.dataset_toml import check_class_names, class_name, read_config
from surefoot.data.digest import digests
from surefoot.errors import DataError, MissingDataError, unknown_name
from surefoot.guard.places import check_inside

_AVIF = {".avif"} if "avif" in features.modules and features.check("avif") else set()
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"} | _AVIF
)
HEIC = frozenset({".heic", ".heif"})
READ = f"Files that are read: {', '.join(sorted(SUFFIXES))}; convert HEIC photographs to JPEG."
SPLITS = ("train", "val", "test")
DEFAULT_TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.", "a {}.")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_OTHER_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "shift": "shifts", "shifts": "shifts", "unseen": "unseen",
}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Images of one evaluation or training set: `labels[i]` is the row of image i's class in `class_names`.

    Attributes:
        name: train, val, test, shifts/<name> or unseen/<name>.
        paths: the images.
        labels: one for each image.
        class_names: what the labels mean.
        captions: empty, or one text for each image, "" where there is none.
        templates: prompts of its own, for unseen classes of another data set; the data set's if empty.
        mapped: for a shift with class names of its own (ObjectNet): row c lists the training classes that count as its class c. Its logit
            is the largest of theirs.
        groups: empty, or one text for each image, such as its region, "" where it is in none: accuracy in the worst group is reported.
        accepted: empty, or for each image the classes besides its label that are right too (a frame of a video that shows several).
        together: of a shift: the images of a group (a video) count as one, which is right only if all of them are.
        border: pixels that are cut off each side of an image before anything else (ObjectNet: 2).
        declared: the classes that the set was published with (ImageNet-R: 200), whether all of them are on disk or not; empty if unknown.
        file: the user's file of arrays, or folder of such files, that the images were unpacked from; empty where they are files themselves.
    """

    name: str
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    captions: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    mapped: tuple[tuple[int, ...], ...] = ()
    groups: tuple[str, ...] = ()
    border: int = 0
    declared: tuple[int, ...] = ()
    file: str = ""
    accepted: tuple[tuple[int, ...], ...] = ()
    together: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def own_classes(self) -> list[int]:
        """The classes that it holds: those that it was published with, or where that is not known, those that have images."""
        return sorted({*(self.declared or self.labels)})


@dataclass(frozen=True)
class Dataset:
    """A data set in the standard layout, its images found but not yet read.

    `notes` are sentences for the report, such as how the splits were made. `anchors` are generated beside the data and no part of them.
    With `fewer_shots` a class that has fewer images than a few-shot draw asks for gives all it has, as CoOp's code does; else that is an
    error.
    `metric` is what the papers report beside accuracy: mean_per_class, macro_f1 or worst_group; accuracy itself where they report no other.
    `places` are pairs (a folder that images lie in, the folder that they usually lie in), both below the root, for `key`.
    `val_draw` is (share, seed) where every run draws validation images of its own out of train and val: see `surefoot.data.draws`.
    `source` is the user's folder where the images were unpacked from arrays in it, and `root` holds them.
    `id_domain` is what train, val and test are called as a domain where `id_context` does not tell.
    """

    root: Path
    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    contexts: Mapping[str, str] = field(default_factory=dict)
    id_context: str | None = None
    notes: tuple[str, ...] = ()
    anchors: Anchors = field(default_factory=Anchors)
    metric: str = "accuracy"
    fewer_shots: bool = False
    id_domain: str | None = None
    places: tuple[tuple[str, str], ...] = ()
    source: Path | None = None
    val_draw: tuple[float, int] | None = None

    def split(self, name: str) -> Split:
        """The split of that name: train, val, test, shifts/<name> or unseen/<name>."""
        if name not in self.splits:
            raise unknown_name(f"split of {self.folder}", name, self.splits)
        return self.splits[name]

    @property
    def folder(self) -> Path:
        """The folder that the user knows."""
        return self.source or self.root

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

    def written(self, path: Path) -> str:
        """The path of an image as records and hashes know it: from the root where it lies in it, with `/` on every platform."""
        return (path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix()

    def key(self, path: Path) -> str:
        """What draws know an image by: its written path, as if its part lay in its usual place, so that another place draws the same."""
        written = self.written(path)
        usual = (first + written.removeprefix(there) for there, first in self.places if written.startswith(f"{there}/"))
        return next(usual, written)

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits over class names, prompts, splits, captions, and every image's path and bytes."""
        total = hashlib.sha256(repr((self.class_names, self.templates, sorted(self.contexts.items()), self.id_context)).encode())
        if self.metric != "accuracy":
            total.update(self.metric.encode())
        for name, split in sorted(self.splits.items()):
            images = [(self.written(path), digest) for path, digest in zip(split.paths, digests(split.paths), strict=True)]
            total.update(repr((name, split.class_names, split.labels, split.captions, images)).encode())
            if any(more := (split.templates, split.mapped, split.groups, split.border)):
                total.update(repr(more).encode())
            total.update(repr(split.accepted).encode() * bool(split.accepted) + b"together" * split.together)
            if split.own_classes != sorted({*split.labels}):
                total.update(repr(split.declared).encode())
        return total.hexdigest()[:16]


def open_dataset(root: Path, *, allow_outside: bool = False) -> Dataset:
    """The images of a folder as it stands; nothing is decoded, and a missing val or test stays missing (`load` splits them off).

    Args:
        root: the folder that holds train/<class>/ (and val/, test/, shifts/, unseen/), or the class folders themselves.
        allow_outside: let links and lists of shards in it lead out of it, as people share images among data sets.

    Raises:
        MissingDataError: no such folder, or no train in it.
        DataError: an empty split, fewer than two classes, a shift with a class that is not in train, a folder that is named almost like
            a split, a broken dataset.toml, a link that leads out of the folder.
    """
    from surefoot.data.sharded import is_sharded, open_shards  # here, because sharded -> layout would be a circle

    root = Path(root)
    if not root.is_dir():
        raise MissingDataError(f"There is no folder {root}. Give the folder that holds train/<class>/.")
    if is_sharded(root):
        return open_shards(root, allow_outside=allow_outside)
    config = read_config(root / "dataset.toml")
    train, folders, notes = _training_folders(root)
    known = tuple(folder.name for folder in folders)
    called = tuple(class_name(config, folder) for folder in known)
    passed_over: list[Path] = []
    classes = set(known)
    splits = {"train": _collect("train", list(enumerate(folders)), called, passed_over)}
    present = set(splits["train"].labels)
    for label, folder in enumerate(folders):
        if label not in present:
            raise DataError(f"{folder} holds no images that can be read. Add some, or remove the folder. {READ}")
    for split in (*(name for name in SPLITS[1:] if (root / name).is_dir()), *_children(root, "shifts")):
        splits[split] = _seen_split(root, split, known, called, passed_over)
    for split in _children(root, "unseen"):
        own = _folders(root / split)
        classes |= {folder.name for folder in own}
        splits[split] = _collect(split, list(enumerate(own)), tuple(class_name(config, folder.name) for folder in own), passed_over)
    if not allow_outside:
        check_inside(root, (path for split in splits.values() for path in split.paths), f"A link in {root}")
    check_class_names(root / "dataset.toml", config, classes)
    beside = [folder.name for folder in _folders(root) if folder.name not in _OTHER_NAMES and (train != root or folder not in folders)]
    if beside:
        notes.append(f"Folders in {root} that are no part of the layout were not read: {listed(beside)}.")
    return dataset_of(root, root.resolve().name, config, called, splits, (*notes, *_passed_over(root, passed_over)))


def dataset_of(
    root: Path, name: str, config: Mapping[str, Any], class_names: tuple[str, ...], splits: Mapping[str, Split], notes: Iterable[str]
) -> Dataset:
    """A data set with what its dataset.toml says; `name` is used where that says none.

    Raises:
        DataError: a class whose name holds control characters, with which a terminal can be steered.
    """
    for called in {*class_names, *(one for split in splits.values() for one in split.class_names)}:
        if _CONTROLS.search(called):
            raise DataError(f"{root} has a class called {called!r}, which holds control characters. Rename it.")
    return Dataset(
        root=root,
        name=config.get("name") or name,
        class_names=class_names,
        splits=splits,
        templates=tuple(config.get("templates", DEFAULT_TEMPLATES)),
        contexts=dict(config.get("contexts", {})),
        id_context=config.get("id_context"),
        notes=tuple(notes),
    )


def listed(names: Iterable[object], most: int = 5) -> str:
    """The first few names, and how many more there are.

    Examples:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    every = [str(name) for name in names]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def split_meant(name: str) -> str | None:
    """The split that a name such as "Train" or "validation" means, if it means one."""
    return _OTHER_NAMES.get(name.lower())


def _children(root: Path, kind: str) -> list[str]:
    return [f"{kind}/{folder.name}" for folder in _folders(root / kind)] if (root / kind).is_dir() else []


def _folders(parent: Path) -> list[Path]:
    """The visible folders in a folder, in an order that is the same on every platform."""
    return sorted((child for child in parent.iterdir() if child.is_dir() and not child.name.startswith(".")), key=lambda f: f.name)


def _training_folders(root: Path) -> tuple[Path, list[Path], list[str]]:
    """Where the class folders of the training images lie, these folders, and what there is to say about it.

    Raises:
        MissingDataError: there are none.
        DataError: fewer than two, or a folder that is named almost like a split.
    """
    children = _folders(root)
    for folder in children:
        meant = split_meant(folder.name)
        if meant and meant != folder.name:
            raise DataError(
                f"{folder} is named almost like the split {meant}. Rename it: {folder.name} -> {meant}"
                f" (if it is a class, move the class folders into {root / 'train'})."
            )
    train, notes = root / "train", []
    if not any(split_meant(folder.name) for folder in children):
        with_images = [folder for folder in children if any(_is_image(path, folder) for path in folder.iterdir())]
        if with_images:
            train, children = root, with_images
            notes.append(f"{root} has no train/: its {len(with_images)} folders of images were read as the classes of train.")
    if not train.is_dir():
        manifests = sorted(path.name for path in root.iterdir() if path.suffix.lower() in (".csv", ".jsonl"))
        hint = f" If {manifests[0]} lists the images, give that file instead." if manifests else ""
        raise MissingDataError(f"There is no folder {train}. Put the images into train/<class>/, one folder for each class.{hint}")
    folders = children if train == root else _folders(train)
    if len(folders) < 2:
        raise DataError(f"{train} holds {len(folders)} class folders; classification needs at least two. Put each class in its own.")
    return train, folders, notes


def _seen_split(root: Path, split: str, known: tuple[str, ...], called: tuple[str, ...], passed_over: list[Path]) -> Split:
    place = {name: label for label, name in enumerate(known)}
    for folder in (folders := _folders(root / split)):
        if folder.name not in place:
            raise DataError(f"{folder} is a class that train/ does not have. Rename it, or move it to unseen/<name>/.")
    return _collect(split, [(place[folder.name], folder) for folder in folders], called, passed_over)


def _is_image(path: Path, folder: Path) -> bool:
    """A file with an image's suffix that is not hidden and lies in no hidden folder below `folder`."""
    return path.suffix.lower() in SUFFIXES and _is_visible_file(path, folder)


def _is_visible_file(path: Path, folder: Path) -> bool:
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)


def _collect(split: str, folders: Iterable[tuple[int, Path]], class_names: tuple[str, ...], passed_over: list[Path]) -> Split:
    """The images below some class folders; files that have no image's suffix are added to `passed_over`."""
    found: list[tuple[Path, int]] = []
    for label, folder in folders:
        for path in sorted(folder.rglob("*"), key=lambda p: p.parts):
            if _is_image(path, folder):
                found.append((path, label))
            elif _is_visible_file(path, folder):
                passed_over.append(path)
    if not found:
        raise DataError(f"The split {split} holds no images. Put them into {split}/<class>/. {READ}")
    return Split(split, tuple(path for path, _ in found), tuple(label for _, label in found), class_names)


def _passed_over(root: Path, paths: list[Path]) -> list[str]:
    if not paths:
        return []
    example = paths[0].relative_to(root).as_posix()
    one = len(paths) == 1
    note = f"{len(paths)} {'file' if one else 'files'} without an image suffix {'was' if one else 'were'} passed over, e.g. {example}."
    if any(path.suffix.lower() in HEIC for path in paths):
        note += " HEIC photographs are not supported: convert them to JPEG."
    return [note]
