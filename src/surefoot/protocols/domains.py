"""The domains of a data set, and the folds in which one of them is held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from surefoot.data.digest import digests
from surefoot.data.draws import with_val
from surefoot.data.layout import Dataset, Split, listed
from surefoot.data.subsets import joined, take
from surefoot.errors import DataError


def domains_of(dataset: Dataset) -> dict[str, Split]:
    """{domain: all its images}: train, val and test together, and each shift.

    Raises:
        DataError: there is no shift, two domains have one name, or a shift has class names of its own.
    """
    if not dataset.shifts:
        raise DataError(f"{dataset.folder} holds one domain. Put each of the others into shifts/<name>/<class>/.")
    own = [dataset.splits[name] for name in ("train", "val", "test") if name in dataset.splits]
    name = dataset.id_context or dataset.id_domain or "train"
    found = {name: replace(joined(own), name=name)}
    for split in dataset.shifts:
        domain = split.name.removeprefix("shifts/")
        if domain in found:
            raise DataError(f"{dataset.folder} has two domains called {domain}. Rename {split.name}, or id_context.")
        if split.mapped:
            raise DataError(f"{split.name} of {dataset.folder} has class names of its own and is no domain. Leave it out.")
        found[domain] = split
    return found


def contents_of(domains: Mapping[str, Split]) -> dict[Path, str]:
    """{image: digest of its bytes}, found once for all folds."""
    paths = [path for split in domains.values() for path in split.paths]
    return dict(zip(paths, digests(paths), strict=True))


def fold(
    dataset: Dataset, domains: Mapping[str, Split], contents: Mapping[Path, str], held_out: str, seed: int, val_share: float
) -> Dataset:
    """The data set in which one domain is the only shift and all others are train and val, each image grouped by its domain.

    The splits are those of seed 0; a run of another seed draws its own, see `surefoot.data.draws`. An image of the others that is byte
    for byte one of the held-out domain is left out, and so a note says.
    """
    held = replace(domains[held_out], name=f"shifts/{held_out}")
    known = {contents[path] for path in held.paths}
    others = {name: split for name, split in domains.items() if name != held_out}
    kept = {
        name: take(split, [row for row, path in enumerate(split.paths) if contents[path] not in known]) for name, split in others.items()
    }
    pool = joined([replace(split, groups=(name,) * len(split)) for name, split in kept.items()])
    splits = with_val(dataset, pool, contents, val_share, seed)
    if lacking := [name for label, name in enumerate(dataset.class_names) if label not in set(splits["train"].labels)]:
        raise DataError(
            f"Without {held_out} no domain of {dataset.folder} holds images of {listed(lacking)}. Add some, or leave the classes out."
        )
    notes = [f"Domain {held_out} is held out: {len(splits['train'])} training and {len(splits['val'])} validation images of the others."]
    if copies := sum(map(len, others.values())) - len(pool):
        words = "1 image of the other domains is a copy" if copies == 1 else f"{copies} images of the other domains are copies"
        notes.append(f"{words} of images of {held_out}, byte for byte, and left out of training and validation.")
    splits[held.name] = held
    return replace(dataset, splits=splits, id_context=None, notes=(*dataset.notes, *notes), val_draw=(val_share, seed))
