"""Validation and test images split off train, for a data set that brings none.

Class by class, the distinct images are ordered by a hash of the seed and their path, and the first ones go. Nothing else enters, so that
the same seed makes the same splits on every platform, and a new image moves few of the others. Images of a class that are byte for byte
the same go together: a copy of a training image would make validation look better than it is.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from surefoot.data.digest import digests
from surefoot.data.layout import SPLITS, Dataset, Split, listed
from surefoot.data.subsets import take
from surefoot.errors import DataError, SettingError

VAL_SHARE = TEST_SHARE = 0.15
SMALLEST = 3  # distinct images of a class that is split: one for each of train, val and test


def complete(dataset: Dataset, *, seed: int = 0, val_share: float = VAL_SHARE, test_share: float = TEST_SHARE) -> Dataset:
    """The data set with val and test: those that it has not are split off train, and a note says so.

    Args:
        dataset: at least its train split.
        seed: of the draw.
        val_share: of each class's distinct training images, in (0, 1).
        test_share: the same.

    Raises:
        SettingError: a share out of range, or shares that leave nothing for train.
        DataError: no class has three distinct images.
    """
    given = {"val": val_share, "test": test_share}
    for name, share in given.items():
        if not 0 < share < 1:
            raise SettingError(f"{name}_share is {share}; it must lie between 0 and 1. Around 0.15 suits most data.")
    if sum(given.values()) >= 1:
        raise SettingError(f"val_share {val_share} and test_share {test_share} leave nothing for train. Their sum must be below 1.")
    shares = {name: share for name, share in given.items() if name not in dataset.splits}
    if not shares:
        return dataset
    train = dataset.split("train")
    own = digests(train.paths)
    went = assign([key_of(dataset.key(path)) for path in train.paths], train.labels, own, shares, seed)
    missing = " and ".join(shares)
    if set(went) == {"train"}:
        raise DataError(
            f"{dataset.folder} has no {missing}, and no class has {SMALLEST} different images to split it off. "
            f"Add images, or give {missing} yourself."
        )
    parts = {name: replace(take(train, [row for row, split in enumerate(went) if split == name]), name=name) for name in ("train", *shares)}
    splits = {**dataset.splits, **parts}
    ordered = {name: splits[name] for name in (*SPLITS, *(name for name in splits if name not in SPLITS))}
    return replace(dataset, splits=ordered, notes=(*dataset.notes, *_notes(parts, shares, seed, _small(train, own))))


def assign(keys: Sequence[str], labels: Sequence[int], contents: Sequence[str], shares: Mapping[str, float], seed: int) -> list[str]:
    """Which split each training image goes to.

    A class of g >= 3 distinct images gives max(1, round(share * g)) of them to each split and keeps at least one; a smaller one keeps all.

    Args:
        keys: N names of the images, the same on every machine.
        labels: N classes.
        contents: N digests; images of one class and digest go together.
        shares: {split: share of each class's distinct images}, in the order in which the splits draw.
        seed: of the draw.

    Returns:
        N names: of a split in `shares`, or "train".

    Examples:
        >>> assign(["cat/1", "cat/2", "cat/3", "dog/1"], [0, 0, 0, 1], ["a", "b", "c", "d"], {"val": 0.15, "test": 0.15}, seed=0)
        ['train', 'test', 'val', 'train']
    """
    groups: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, (label, content) in enumerate(zip(labels, contents, strict=True)):
        groups[label][content].append(row)
    went = ["train"] * len(keys)
    for group in groups.values():
        if len(group) < SMALLEST:
            continue
        ordered = sorted(group.values(), key=lambda rows: _draw(seed, min(keys[row] for row in rows)))
        taken = 0
        for place, (split, share) in enumerate(shares.items()):
            still_to_come = len(shares) - place  # one for each split after this one, and one for train
            count = min(max(1, math.floor(share * len(ordered) + 0.5)), len(ordered) - taken - still_to_come)
            for rows in ordered[taken : taken + count]:
                for row in rows:
                    went[row] = split
            taken += count
    return went


def key_of(written: str) -> str:
    """The name that the draw sees, from what `Dataset.key` gives: the same for train/a/1.jpg in a folder, for a/1.jpg without train/,
    and for a manifest of either.

    File systems differ in how they spell accented letters, hence the normal form.
    """
    return unicodedata.normalize("NFC", written).removeprefix("train/")


def _draw(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}:{key}".encode(errors="surrogateescape")).hexdigest()


def _small(train: Split, contents: Sequence[str]) -> list[str]:
    """The classes that are too small to be split."""
    distinct = Counter(label for label, _ in set(zip(train.labels, contents, strict=True)))
    return [name for label, name in enumerate(train.class_names) if distinct[label] < SMALLEST]


def _notes(parts: Mapping[str, Split], shares: Mapping[str, float], seed: int, small: Sequence[str]) -> list[str]:
    portions = " and ".join(f"{name} ({100 * share:g}%)" for name, share in shares.items())
    counts = " and ".join(", ".join(f"{len(split)} {name}" for name, split in parts.items()).rsplit(", ", 1))
    verb = "were" if len(shares) > 1 else "was"
    notes = [f"{portions} {verb} split off train, class by class, with seed {seed}: {counts} images."]
    if small:
        classes = "1 class has" if len(small) == 1 else f"{len(small)} classes have"
        notes.append(f"{classes} fewer than {SMALLEST} different images, all of which stay in train: {listed(small)}.")
    return notes
