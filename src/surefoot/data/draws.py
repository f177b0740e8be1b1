"""What the run of a seed trains and validates on, where the data set says that each draws validation images of its own.

DomainBed splits every training domain anew for each trial, so that a choice does not hang on one lucky draw. No run may then choose on
images that another seed validated on: it was trained on them. References: Gulrajani & Lopez-Paz, ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from surefoot.data.digest import digests
from surefoot.data.layout import Dataset, Split
from surefoot.data.splits import assign, key_of
from surefoot.data.subsets import joined, take


def with_val(dataset: Dataset, pool: Split, contents: Mapping[Path, str], val_share: float, seed: int) -> dict[str, Split]:
    """Train and val out of the images of several domains: of each class of each domain a share is validated on.

    A validation image whose bytes are those of a training image of another domain is trained on as well.
    """
    own, went = [contents[path] for path in pool.paths], ["train"] * len(pool)
    for name in dict.fromkeys(pool.groups):
        rows = [row for row, group in enumerate(pool.groups) if group == name]
        keys, labels = [key_of(dataset.key(pool.paths[row])) for row in rows], [pool.labels[row] for row in rows]
        for row, split in zip(rows, assign(keys, labels, [own[row] for row in rows], {"val": val_share}, seed), strict=True):
            went[row] = split
    trained = {content for content, split in zip(own, went, strict=True) if split == "train"}
    val = {row for row, split in enumerate(went) if split == "val" and own[row] not in trained}
    parts = {"train": [row for row in range(len(pool)) if row not in val], "val": sorted(val)}
    return {name: replace(take(pool, rows), name=name) for name, rows in parts.items()}


def of_seed(dataset: Dataset, seed: int) -> Dataset:
    """The data set as the run of a seed sees it: with its own train and val if `Dataset.val_draw` says so.

    The draw has the number `val_draw[1] + seed`. Seed 0 keeps the splits as they stand.
    """
    if dataset.val_draw is None or not seed:
        return dataset
    share, first = dataset.val_draw
    both = joined([dataset.split("train"), dataset.split("val")])
    place = {group: number for number, group in enumerate(dict.fromkeys(both.groups))}
    rows = sorted(range(len(both)), key=lambda row: (place[both.groups[row]], both.labels[row], key_of(dataset.key(both.paths[row]))))
    pool = take(both, rows)
    contents = dict(zip(pool.paths, digests(pool.paths), strict=True))
    return replace(dataset, splits={**dataset.splits, **with_val(dataset, pool, contents, share, first + seed)})


def together(dataset: Dataset, runs: Mapping[int, Dataset]) -> Dataset:
    """The data set with the validation images of several seeds in one val, each once: all of them are judged in one pass.

    Args:
        dataset: as it stands.
        runs: {seed: what `of_seed` gives}.
    """
    if dataset.val_draw is None:
        return dataset
    every = joined([runs[seed].split("val") for seed in sorted(runs)])
    first = {path: row for row, path in reversed(list(enumerate(every.paths)))}
    return replace(dataset, splits={**dataset.splits, "val": take(every, sorted(first.values()))})


def named(dataset: Dataset, seeds: Sequence[int]) -> dict[str, object]:
    """What settings say of the draws of some seeds; nothing of seed 0 alone, whose splits are those of the data set."""
    if dataset.val_draw is None or set(seeds) == {0}:
        return {}
    return {"val_draws": [dataset.val_draw[1] + seed for seed in sorted(set(seeds))]}
