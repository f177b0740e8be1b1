"""The standard layout with webdataset shards in place of class folders, and clip_benchmark's layout, which is nearly the same.

    DATA/
    ├── classnames.txt                  one name a line; the class with number n stands in line n, counted from 0
    ├── dataset.toml                    optional, as for folders
    ├── zeroshot_classification_templates.txt   optional: one prompt a line, {c} for the class name
    ├── train/*.tar                     or train/shards.txt with an address or a path a line; nshards.txt, if there, says how many
    ├── val/*.tar, test/*.tar           optional, as for folders
    ├── shifts/<name>/*.tar
    └── unseen/<name>/*.tar             with a classnames.txt of its own

A sample is what a tar holds under one name without its ending: an image (KEY.jpg, .png, .webp, ...), its class as KEY.cls (the number) or
KEY.json ("label" or "class": the number or the name), optionally a caption (KEY.txt, or "caption" in KEY.json) and a "group" in KEY.json.
A set with a classnames.txt of its own numbers its classes by it; but for unseen sets all must be classes of train. A set.toml beside the
tars may hold prompts of the set's own (templates), the training classes that count as each of its own (mapped) and the pixels that are cut
off each side (border), the classes that it was published with (declared), and whether the images of a group are right only
together (together); one beside train/ may hold the metric that counts besides accuracy (metric), what train is called as a domain
(id_domain) and whether small classes give few-shot draws all they have (fewer_shots). Classes besides its own that are right for a sample
may stand in KEY.json as "accepted", a list of numbers or names. Shards are read in natural order
(2.tar before 10.tar), samples in their order in the tar.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from surefoot.data.dataset_toml import check_class_names, read_config
from surefoot.data.layout import (
    SPLITS,
    SUFFIXES,
    Dataset,
    Split,
    _children,
    _folders,
    dataset_of,
    listed,
    split_meant,
)  # fmt: skip
from surefoot.data.shards import COMPRESSED, Member, Shard, index
from surefoot.data.streamed import LIST, NUM_SHARDS, folders_listed, local_places, shards_of
from surefoot.errors import DataError, MissingDataError, SettingError, unknown_name
from surefoot.guard.places import check_inside
from surefoot.guard.texts import SMALL, parse_json, parse_toml, read_text
from surefoot.prompts import check_template

NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
SET = "set.toml"
METRICS = ("accuracy", "mean_per_class", "macro_f1", "worst_group")
_SET_KEYS = ("templates", "mapped", "border", "declared", "together")
_WHOLE_KEYS = ("metric", "id_domain", "fewer_shots")  # of the one beside train
_LABELS = ("label", "class")
_AT_A_TIME = 32  # shards whose labels and captions are in memory


@dataclass(slots=True)
class _Sample:
    """What a shard holds under one key."""

    image: Member | None = None
    fields: dict[str, Member] = field(default_factory=dict)


def is_sharded(root: Path) -> bool:
    """Whether a folder holds shards where the standard layout has class folders.

    Raises:
        DataError: both stand in it, as in an archive of archives that is half unpacked.
    """
    for place in (root / name for name in SPLITS if (root / name).is_dir()):
        names = [path.name for path in place.iterdir() if not path.name.startswith(".")]
        tars = [name for name in names if name.lower().endswith((".tar", *COMPRESSED)) or name in (LIST, NUM_SHARDS)]
        if not tars:
            continue
        apart = folders_listed(place) if LIST in names else set()
        if folders := [folder for folder in _folders(place) if folder.name not in apart]:
            raise DataError(
                f"{place} holds both folders ({listed(folder.name for folder in folders)}) and archives ({listed(sorted(tars))}). If the "
                "archives are being unpacked, finish that and move them away; if they are shards, move the folders away."
            )
        return True
    return False


def open_shards(root: Path, *, allow_outside: bool = False) -> Dataset:
    """The images of shards as they stand; nothing is decoded, and every tar is walked to its end mark.

    Args:
        root: the folder that holds train/*.tar.
        allow_outside: let links and lists in it lead to shards elsewhere on this machine.

    Raises:
        MissingDataError: no train, no classnames.txt, a shard that nshards.txt counts and that is not there.
        DataError: a broken or compressed shard; a sample without image or class, or with two; a class number out of range; a class of
            train without an image.
    """
    config = _config(root)
    known = _class_names(root / NAMES, config)
    if len(known) < 2:
        raise DataError(f"{root / NAMES} names {len(known)} classes; classification needs at least two. Write one name in each line.")
    splits: dict[str, Split] = {}
    unread: dict[str, None] = {}
    for name in _names(root):
        if not allow_outside:
            check_inside(root, local_places(root / name), f"{root / name}")
        splits[name] = _set(root / name, name, config, known, unread)
    present = set(splits["train"].labels)
    if lacking := [called for label, called in enumerate(known) if label not in present]:
        raise DataError(
            f"{root / 'train'} holds no image of {len(lacking)} of the {len(known)} classes in {NAMES}: {listed(lacking)}. Add some, or "
            "remove the names and number the classes anew."
        )
    check_class_names(root / "dataset.toml", config, {line for split in ("", *splits) for line in _lines(root / split / NAMES)})
    notes = [f"Fields of the samples that have no meaning here were not read: {listed(unread)}."] if unread else []
    return replace(dataset_of(root, root.resolve().name, config, known, splits, notes), **_whole(root / SET))


def _config(root: Path) -> dict[str, Any]:
    """What dataset.toml says, with the prompts of clip_benchmark's file where it says none."""
    config = read_config(root / "dataset.toml")
    templates = _templates(root / TEMPLATES)
    return {"templates": templates, **config} if templates else config


def _templates(path: Path) -> list[str]:
    return [_template(path, line.replace("{c}", "{}")) for line in _lines(path) if line]


def _template(path: Path, template: str) -> str:
    try:
        return check_template(template)
    except SettingError as error:
        raise DataError(f"{path}: {error}") from error


def _names(root: Path) -> list[str]:
    """The sets that are there, train first."""
    for folder in _folders(root):
        meant = split_meant(folder.name)
        if meant and meant != folder.name:
            raise DataError(f"{folder} is named almost like the split {meant}. Rename it: {folder.name} -> {meant}.")
    if not (root / "train").is_dir():
        raise MissingDataError(f"There is no folder {root / 'train'}. Put the shards of the training images into it.")
    return [*(name for name in SPLITS if (root / name).is_dir()), *_children(root, "shifts"), *_children(root, "unseen")]


def _lines(path: Path) -> list[str]:
    """The lines of a text file without the empty ones at its end; none if there is no such file."""
    if not path.is_file():
        return []
    try:
        return [line.strip() for line in read_text(path, "utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error


def _class_names(path: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes by number; [class_names] of dataset.toml may rename them."""
    lines = _lines(path)
    if not path.is_file():
        raise MissingDataError(
            f"There is no {path}, which names the classes of the shards. Write one name in each line, in the order of the class numbers "
            "(if each tar holds the images of one class, unpack it into a folder of its own instead)."
        )
    if "" in lines:
        raise DataError(
            f"{path}: line {lines.index('') + 1} is empty. The class with number n stands in line n, counted from 0; name each."
        )
    renamed = config.get("class_names", {})
    return tuple(str(renamed.get(line, line)) for line in lines)


def _numbers(path: Path, class_names: Sequence[str]) -> dict[str, int]:
    """{name: number} of the classes, by what they are called and, which counts more, by what classnames.txt calls them."""
    every = [*enumerate(_lines(path)), *enumerate(class_names)]
    return {called: label for label, called in reversed(every)}


def _set(folder: Path, name: str, config: Mapping[str, Any], known: tuple[str, ...], unread: dict[str, None]) -> Split:
    """The images of one set; fields that have no meaning are added to `unread`."""
    about = _about(folder / SET, len(known))
    mapped, apart = about.get("mapped", ()), name.startswith("unseen/") or "mapped" in about
    class_names = _class_names(folder / NAMES, config) if apart or (folder / NAMES).is_file() else known
    if mapped and len(mapped) != len(class_names):
        raise DataError(f"{folder / SET}: mapped has {len(mapped)} rows; {NAMES} beside it names {len(class_names)} classes.")
    tars = shards_of(folder)
    parts = (index(tars[start : start + _AT_A_TIME]) for start in range(0, len(tars), _AT_A_TIME))
    place = _numbers((folder if class_names is not known else folder.parents[name.count("/")]) / NAMES, class_names)
    rows = [row for part in parts for shard in part for row in _rows(shard, place, len(class_names), unread)]
    if not rows:
        raise DataError(f"The shards of {folder} hold no images. Fill them, or remove the folder.")
    paths, labels, captions, groups, accepted = zip(*rows, strict=True)
    if about.get("together") and not any(groups):
        raise DataError(f'{folder / SET}: together is true, and no sample has a group. Give each a "group" in its KEY.json.')
    declared = _declared(folder / SET, about, len(class_names))
    if not apart and class_names is not known:
        place_of, class_names = _renumbered(folder / NAMES, class_names, known), known
        labels, declared = tuple(place_of[label] for label in labels), [place_of[label] for label in declared]
        accepted = tuple(tuple(place_of[label] for label in own) for own in accepted)
    templates = about.get("templates") or (_templates(folder / TEMPLATES) if apart else ())
    return Split(
        name, paths, labels, class_names, captions if any(captions) else (), tuple(templates), tuple(map(tuple, mapped)),
        groups if any(groups) else (), about.get("border", 0), tuple(declared),
        accepted=accepted if any(accepted) else (), together=about.get("together", False),
    )  # fmt: skip


_Row = tuple[Path, int, str, str, tuple[int, ...]]


def _rows(shard: Shard, place: Mapping[str, int], num_classes: int, unread: dict[str, None]) -> Iterator[_Row]:
    """(path, label, caption, group, other classes that are right) of each sample of a shard."""
    for key, sample in _samples(shard, unread).items():
        image, more = _image(shard, key, sample), _json(shard, sample)
        label = _label(shard, key, _class(shard, sample, more), place, num_classes)
        caption = _text(shard, sample, ".txt") or _told(shard, key, more, "caption")
        others = more.get("accepted") or []
        if not isinstance(others, list):
            raise DataError(f"{shard.path}: accepted of {key}.json is {others!r}; it must be a list of classes. Pack the shard again.")
        accepted = tuple(_label(shard, key, one, place, num_classes) for one in others)
        yield shard.path / image.name, label, caption.strip(), _told(shard, key, more, "group"), accepted


def _told(shard: Shard, key: str, more: Mapping[str, Any], name: str) -> str:
    """A text of KEY.json; "" for none, or null."""
    found = more.get(name)
    if found is not None and not isinstance(found, str):
        raise DataError(f"{shard.path}: {name} of {key}.json is {found!r}; it must be one text. Pack the shard again.")
    return found or ""


def _renumbered(path: Path, own: Sequence[str], known: Sequence[str]) -> list[int]:
    """The number in train of each class of a set that names some of the same classes in an order of its own, as ImageNet-R does."""
    place = {key: label for label, key in enumerate(_counted(known))}
    keys = _counted(own)
    if strange := [called for called, number in keys if (called, number) not in place]:
        raise DataError(
            f"{path} names classes that train does not have: {listed(strange)}. Rename them, or move the set to unseen/<name>/."
        )
    return [place[key] for key in keys]


def _counted(names: Sequence[str]) -> list[tuple[str, int]]:
    """Each name with how often it stood before: ImageNet has two classes called missile, the first and the second of which stay apart."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        found.append((name, seen[name]))
        seen[name] += 1
    return found


def _toml(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = parse_toml(read_text(path, most=SMALL))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path} is not valid TOML: {error}.") from error
    for key in found:
        if key not in keys:
            raise unknown_name(f"key of {path}", key, keys)
    return found


def _whole(path: Path) -> dict[str, Any]:
    """The entries of the set.toml beside train, checked; none if there is no such file."""
    about = _toml(path, _WHOLE_KEYS)
    if (metric := about.get("metric", METRICS[0])) not in METRICS:
        raise DataError(f"{path}: metric is {metric!r}. Allowed are {', '.join(METRICS)}.")
    for key, kind, wanted in (("id_domain", str, "a text in quotes"), ("fewer_shots", bool, "true or false")):
        if key in about and type(about[key]) is not kind:
            raise DataError(f"{path}: {key} is {about[key]!r}. Write {wanted}.")
    return about


def _declared(path: Path, about: Mapping[str, Any], num_classes: int) -> list[int]:
    """The classes that a set was published with, by its own numbers."""
    declared = about.get("declared", [])
    if not isinstance(declared, list) or not all(type(label) is int and 0 <= label < num_classes for label in declared):
        raise DataError(f"{path}: declared is {declared!r}. Write a list of class numbers from 0 to {num_classes - 1}.")
    return declared


def _about(path: Path, num_classes: int) -> dict[str, Any]:
    """The entries of a set.toml, checked; none if there is no such file."""
    about = _toml(path, _SET_KEYS)
    templates, mapped, border = about.get("templates", []), about.get("mapped", []), about.get("border", 0)
    if not isinstance(templates, list) or not all(isinstance(template, str) for template in templates):
        raise DataError(f'{path}: templates is {templates!r}. Write a list of texts, such as ["a photo of a {{}}."].')
    for template in templates:
        _template(path, template)
    rows = mapped if isinstance(mapped, list) else [None]
    if not all(isinstance(row, list) and row and all(type(c) is int and 0 <= c < num_classes for c in row) for row in rows):
        raise DataError(f"{path}: mapped is {mapped!r}. Write a list of class numbers from 0 to {num_classes - 1} for each class.")
    if type(border) is not int or border < 0:
        raise DataError(f"{path}: border is {border!r}. Write a number of pixels, 0 or more.")
    if type(about.get("together", False)) is not bool:
        raise DataError(f"{path}: together is {about['together']!r}. Write true or false.")
    return about


def _samples(shard: Shard, unread: dict[str, None]) -> dict[str, _Sample]:
    """The samples of a shard by key, in their order; a key is a member's name up to the first dot of its last part."""
    samples: dict[str, _Sample] = {}
    for member in shard.members:
        folder, slash, file = member.name.rpartition("/")
        stem, _, ending = file.partition(".")
        key, suffix = folder + slash + stem, "." + ending.lower()
        sample = samples.setdefault(key, _Sample())
        if suffix in SUFFIXES:
            if sample.image:
                raise DataError(f"{shard.path}: the sample {key} has two images, {sample.image.name} and {member.name}. Pack it again.")
            sample.image = member
        elif suffix in (".cls", ".json", ".txt"):
            if suffix in sample.fields:
                raise DataError(f"{shard.path}: the sample {key} has two files {suffix}. Pack it again with each name once.")
            sample.fields[suffix] = member
        else:
            unread[suffix] = None
    return samples


def _image(shard: Shard, key: str, sample: _Sample) -> Member:
    if sample.image is None:
        raise DataError(
            f"{shard.path}: the sample {key} has no image. Name its files KEY.jpg, KEY.cls and so on, with no dot in KEY. Images end in "
            f"{', '.join(sorted(SUFFIXES))}."
        )
    return sample.image


def _text(shard: Shard, sample: _Sample, suffix: str) -> str:
    if (member := sample.fields.get(suffix)) is None:
        return ""
    if member.text is None:
        raise DataError(f"{shard.path / member.name} is no short text in UTF-8. Write the class or the caption of the image into it.")
    return member.text


def _json(shard: Shard, sample: _Sample) -> Mapping[str, Any]:
    if not (text := _text(shard, sample, ".json")):
        return {}
    try:
        found = parse_json(text)
    except ValueError as error:
        raise DataError(f"{shard.path / sample.fields['.json'].name} is not valid JSON: {error}. Pack it again.") from error
    return found if isinstance(found, dict) else {}


def _class(shard: Shard, sample: _Sample, more: Mapping[str, Any]) -> object:
    """The class as the sample states it, None if it does not."""
    stated: Iterable[object] = (_text(shard, sample, ".cls").strip() or None, *(more.get(key) for key in _LABELS))
    return next((one for one in stated if one is not None), None)


def _label(shard: Shard, key: str, stated: object, place: Mapping[str, int], num_classes: int) -> int:
    """The number of a class from its number, as a number or a text, or from its name."""
    where = f"{shard.path}: the sample {key}"
    if stated is None:
        raise DataError(f'{where} has no class. Add {key}.cls with its number, or {key}.json with "label".')
    number = stated if type(stated) is int else None
    if isinstance(stated, str):
        number = int(stated) if re.fullmatch(r"-?[0-9]{1,9}", stated) else place.get(stated)
    if number is None:
        raise DataError(f"{where} has the class {stated!r}, which is neither a number nor a name in {NAMES}. Mend the one or the other.")
    if not 0 <= number < num_classes:
        raise DataError(f"{where} has class {number}; {NAMES} names the classes 0 to {num_classes - 1}. Mend the one or the other.")
    return number
