"""Everything that one reading of all images tells about a data set, before an hour is spent on training with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from surefoot.data.findings import Finding, find, squashed
from surefoot.data.layout import Dataset, Split, listed
from surefoot.data.pictures import Picture, look
from surefoot.data.subsets import take
from surefoot.errors import DataError

SMALL_SIDE = 32
_SHOWN = 10


@dataclass(frozen=True)
class Place:
    """Where an image stands: its split, the name of its class, its file."""

    split: str
    class_name: str
    path: Path


@dataclass(frozen=True)
class Copies:
    """One picture that is there several times, by the digest of its decoded pixels."""

    pixels: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Survey:
    """The facts about a data set.

    Args:
        root: its folder.
        class_names: of each split.
        counts: images of each class of each split, in the order of `class_names`; unreadable ones are counted.
        unreadable: file, and what is wrong with it, to be read after its path.
        across_splits: pictures that are in several splits.
        across_labels: pictures that carry several class names.
        within_splits: pictures that are several times in one split.
        collisions: class names that differ in case, spaces, `_` and `-` at most, each as "split: name".
        sizes: width and height of the smallest, the median and the largest image by area; empty if none can be read.
        formats: how many files of each format.
        modes: how many files of each pixel format.
        animated: files of several frames or pages, of which the first counts.
        small: images with a side below 32 pixels.
    """

    root: Path
    class_names: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, tuple[int, ...]]
    unreadable: tuple[tuple[Path, str], ...]
    across_splits: tuple[Copies, ...]
    across_labels: tuple[Copies, ...]
    within_splits: Mapping[str, tuple[Copies, ...]]
    collisions: tuple[tuple[str, ...], ...]
    sizes: tuple[tuple[int, int], ...]
    formats: Mapping[str, int]
    modes: Mapping[str, int]
    animated: tuple[Path, ...]
    small: tuple[Path, ...]

    @property
    def empty(self) -> Mapping[str, tuple[str, ...]]:
        """The classes without an image, by split; splits without such classes are left out."""
        return self._classes_with(0)

    @property
    def single(self) -> Mapping[str, tuple[str, ...]]:
        """The classes with one image, by split."""
        return self._classes_with(1)

    def _classes_with(self, number: int) -> Mapping[str, tuple[str, ...]]:
        named = {
            split: tuple(name for name, count in zip(self.class_names[split], counts, strict=True) if count == number)
            for split, counts in self.counts.items()
        }
        return {split: names for split, names in named.items() if names}

    @property
    def imbalance(self) -> float:
        """Images of the largest class of train over those of the smallest that has any."""
        filled = [count for count in self.counts["train"] if count]
        return max(filled) / min(filled)

    @property
    def findings(self) -> list[Finding]:
        """What somebody should know or mend, errors first."""
        return find(self)

    def facts(self) -> dict[str, object]:
        """All of it in plain lists, numbers and texts, for JSON."""
        return {
            "root": str(self.root),
            "splits": {
                split: [{"class": name, "images": count} for name, count in zip(self.class_names[split], counts, strict=True)]
                for split, counts in self.counts.items()
            },
            "imbalance": self.imbalance,
            "unreadable": [{"path": str(path), "reason": reason} for path, reason in self.unreadable],
            "across_splits": [_plain(copies) for copies in self.across_splits],
            "across_labels": [_plain(copies) for copies in self.across_labels],
            "within_splits": {split: [_plain(copies) for copies in found] for split, found in self.within_splits.items()},
            "collisions": [list(names) for names in self.collisions],
            "sizes": [list(size) for size in self.sizes],
            "formats": dict(self.formats),
            "modes": dict(self.modes),
            "animated": [str(path) for path in self.animated],
            "small": [str(path) for path in self.small],
            "findings": [
                {"level": found.level, "text": found.text, "paths": [str(path) for path in found.paths]} for found in self.findings
            ],
        }


def _plain(copies: Copies) -> dict[str, object]:
    places = [{"split": place.split, "class": place.class_name, "path": str(place.path)} for place in copies.places]
    return {"pixels": copies.pixels, "places": places}


def survey(dataset: Dataset, on_image: Callable[[int, int], None] | None = None, workers: int | None = None) -> Survey:
    """Read every image of every split once, in parallel. A second time nothing is read that has not changed.

    Args:
        dataset: as `open_dataset` found it.
        on_image: told how many files are done, of how many.
        workers: threads; as many as Python thinks right if None.
    """
    pictures = _pictures(dataset, on_image, workers)
    readable = {path: picture for path, picture in pictures.items() if not picture.error}
    by_area = sorted(((picture.width, picture.height) for picture in readable.values()), key=lambda size: (size[0] * size[1], size))
    copies = _copies(dataset, readable)
    return Survey(
        root=dataset.root,
        class_names={name: split.class_names for name, split in dataset.splits.items()},
        counts={name: _counts(split) for name, split in dataset.splits.items()},
        unreadable=tuple((path, picture.error) for path, picture in pictures.items() if picture.error),
        across_splits=tuple(found for found in copies if len({place.split for place in found.places}) > 1),
        across_labels=tuple(found for found in copies if len({place.class_name for place in found.places}) > 1),
        within_splits=_within(copies),
        collisions=_collisions(dataset),
        sizes=(by_area[0], by_area[len(by_area) // 2], by_area[-1]) if by_area else (),
        formats=dict(Counter(picture.format for picture in readable.values()).most_common()),
        modes=dict(Counter(picture.mode for picture in readable.values()).most_common()),
        animated=tuple(path for path, picture in readable.items() if picture.animated),
        small=tuple(path for path, picture in readable.items() if min(picture.width, picture.height) < SMALL_SIDE),
    )


def verified(dataset: Dataset, *, skip_unreadable: bool, on_image: Callable[[int, int], None] | None = None) -> Dataset:
    """The data set if every image can be read; else an error, or the data set without those that cannot.

    Args:
        dataset: as `open_dataset` found it.
        skip_unreadable: drop unreadable images, and say so in the notes, instead of raising.
        on_image: told how many files are done, of how many.

    Raises:
        DataError: unreadable images that may not be skipped; or skipping them leaves a split, or a class of train, without images.
    """
    bad = {path: picture.error for path, picture in _pictures(dataset, on_image, None).items() if picture.error}
    if not bad:
        return dataset
    lines = "".join(f"\n  {_of_user(dataset, path)} {reason}" for path, reason in list(bad.items())[:_SHOWN])
    more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    if not skip_unreadable:
        raise DataError(
            f"{_images(len(bad))} cannot be read. Repair or remove {(them := 'it' if len(bad) == 1 else 'them')}, "
            f"or go on without {them} by --skip-unreadable:{lines}{more}"
        )
    splits = {name: take(split, [row for row, path in enumerate(split.paths) if path not in bad]) for name, split in dataset.splits.items()}
    for name, split in splits.items():
        gone = set(dataset.splits[name].labels) - set(split.labels)
        if gone and (name == "train" or not split.paths):
            names = ", ".join(f"'{split.class_names[label]}'" for label in sorted(gone))
            raise DataError(
                f"Without the {_images(len(bad))} that cannot be read, {name} holds no image of {names}. Add some:{lines}{more}"
            )
    skipped = "1 unreadable image was skipped" if len(bad) == 1 else f"{len(bad)} unreadable images were skipped"
    note = f"{skipped}: {listed((dataset.written(path) for path in bad), _SHOWN)}."
    return replace(dataset, splits=splits, notes=(*dataset.notes, note))


def _pictures(dataset: Dataset, on_image: Callable[[int, int], None] | None, workers: int | None) -> dict[Path, Picture]:
    """Each file once, however many splits name it."""
    paths = list(dict.fromkeys(path for split in dataset.splits.values() for path in split.paths))
    told = None if on_image is None else lambda done: on_image(done, len(paths))
    return dict(zip(paths, look(paths, told, workers), strict=True))


def _of_user(dataset: Dataset, path: Path) -> str:
    """An image as the user can find it: its file, or of arrays the file that it was unpacked from, and what to remove."""
    file = next(split.file for split in dataset.splits.values() if path in split.paths)
    if not file:
        return str(path)
    return f"image {int(path.stem)} of {file} (unpacked as {path}; remove {path.parents[1]}, and it is unpacked again)"


def _counts(split: Split) -> tuple[int, ...]:
    found = Counter(split.labels)
    return tuple(found[label] for label in range(len(split.class_names)))


def _copies(dataset: Dataset, readable: Mapping[Path, Picture]) -> list[Copies]:
    """The pictures that stand in more than one place."""
    places: dict[str, list[Place]] = defaultdict(list)
    for name, split in dataset.splits.items():
        for path, label in zip(split.paths, split.labels, strict=True):
            if path in readable:
                places[readable[path].pixels].append(Place(name, split.class_names[label], path))
    return [Copies(pixels, tuple(found)) for pixels, found in places.items() if len(found) > 1]


def _within(copies: Iterable[Copies]) -> dict[str, tuple[Copies, ...]]:
    found: dict[str, list[Copies]] = defaultdict(list)
    for one in copies:
        for split, number in Counter(place.split for place in one.places).items():
            if number > 1:
                found[split].append(Copies(one.pixels, tuple(place for place in one.places if place.split == split)))
    return {split: tuple(several) for split, several in found.items()}


def _collisions(dataset: Dataset) -> tuple[tuple[str, ...], ...]:
    """Names that read the same; two unseen sets may share theirs."""
    seen = [("train", name) for name in dataset.class_names]
    found: dict[tuple[str, ...], None] = {}
    for split in dataset.unseen or (None,):
        groups: dict[str, list[str]] = defaultdict(list)
        for where, name in [*seen, *((split.name, name) for name in split.class_names)] if split else seen:
            groups[squashed(name)].append(f"{where}: {name}")
        found |= {tuple(names): None for names in groups.values() if len(names) > 1}
    return tuple(found)


def _images(number: int) -> str:
    return f"{number} image{'s' if number > 1 else ''}"
