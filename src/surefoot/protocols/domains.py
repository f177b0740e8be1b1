"""The domains of a data set, and the folds in which one of them is held out."""

from __future__ import annotations

from dataclasses import replace

from surefoot.data.digest import digests
from surefoot.data.layout import Dataset, Split, listed
from surefoot.data.splits import assign, key_of
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


def fold(dataset: Dataset, domains: dict[str, Split], held_out: str, seed: int, val_share: float) -> Dataset:
    """The data set in which one domain is the only shift and all others are train and val, each image grouped by its domain."""
    parts: dict[str, list[Split]] = {"train": [], "val": []}
    for name, domain in domains.items():
        if name == held_out:
            continue
        keys = [key_of(dataset.key(path)) for path in domain.paths]
        went = assign(keys, domain.labels, digests(domain.paths), {"val": val_share}, seed)
        for split, own in parts.items():
            part = take(domain, [row for row, of in enumerate(went) if of == split])
            own.append(replace(part, groups=(name,) * len(part)))
    splits = {name: replace(joined(own), name=name) for name, own in parts.items()}
    if lacking := [name for label, name in enumerate(dataset.class_names) if label not in set(splits["train"].labels)]:
        raise DataError(
            f"Without {held_out} no domain of {dataset.folder} holds images of {listed(lacking)}. Add some, or leave the classes out."
        )
    held = replace(domains[held_out], name=f"shifts/{held_out}")
    note = f"Domain {held_out} is held out: {len(splits['train'])} training and {len(splits['val'])} validation images of the others."
    return replace(dataset, splits={**splits, held.name: held}, id_context=None, notes=(*dataset.notes, note))
