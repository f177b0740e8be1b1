"""The lists that data sets were published with, which torchvision reads too: text files, and MATLAB's .mat files.

    fgvc_aircraft    variants.txt, images_variant_{train,val,test}.txt       a number and a variant a line
    oxford_pets      annotations/{trainval,test}.txt                         an image, the number of its breed, and more a line
    food101, dtd     meta/{train,test}.txt, labels/{train,val,test}1.txt     <class>/<image> a line
    sun397           SUN397/ClassName.txt                                    /<letter>/<class> a line; no splits
    flowers102       imagelabels.mat, setid.mat                              class numbers from 1 on; the images of each split
    stanford_cars    devkit/{cars_meta,cars_train_annos}.mat, cars_test_annos_withlabels.mat

Each reader is given the folder of the data set and its first part, and gives the labels of the classes in their order (none where the data
only number them) and the images of each split.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from surefoot.data.catalog.declaration import Part
from surefoot.data.layout import listed
from surefoot.errors import DataError, MissingDataError
from surefoot.guard import read_text
from surefoot.guard.arrays import check_mat

Listed = Mapping[str, list[tuple[str, int]]]
"""{split: (path below the images' folder, class number) of each image}."""
Labelled = tuple[tuple[str, ...], Listed]


def read(path: Path) -> str:
    """The text of a file.

    Raises:
        MissingDataError: there is none.
        DataError: it is not UTF-8.
    """
    if not path.is_file():
        raise MissingDataError(f"There is no file {path}.")
    try:
        return read_text(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}).") from error


def inside(path: Path, images: Listed) -> Listed:
    """The images themselves, if none lies outside the folder that the list at `path` is for.

    Raises:
        DataError: one does.
    """
    for rows in images.values():
        for name, _ in rows:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
                raise DataError(f"{path} names an image outside its folder: {name}. Get the list anew.")
    return images


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read(path).splitlines() if line.strip()]


def _variants(root: Path, _: Part) -> Labelled:
    labels = tuple(_lines(root / "variants.txt"))
    row = {label: number for number, label in enumerate(labels)}
    images: dict[str, list[tuple[str, int]]] = {}
    for name in ("train", "val", "test"):
        path = root / f"images_variant_{name}.txt"
        pairs = [line.partition(" ") for line in _lines(path)]
        if strange := [variant for _, _, variant in pairs if variant not in row]:
            raise DataError(f"{path} names variants that variants.txt does not: {listed(sorted(set(strange)))}.")
        images[name] = [(f"{number}.jpg", row[variant]) for number, _, variant in pairs]
    return labels, inside(root, images)


def _pets(root: Path, _: Part) -> Labelled:
    images: dict[str, list[tuple[str, int]]] = {}
    called: dict[int, str] = {}
    for split, name in (("train", "trainval"), ("test", "test")):
        path = root / "annotations" / f"{name}.txt"
        try:
            rows = [(line.split()[0], int(line.split()[1]) - 1) for line in _lines(path)]
        except (ValueError, IndexError) as error:
            raise DataError(f"{path} does not hold an image and the number of its breed in each line ({error}).") from error
        images[split] = [(f"{image}.jpg", breed) for image, breed in rows]
        called |= {breed: image.rpartition("_")[0] for image, breed in rows}
    if sorted(called) != list(range(len(called))):
        raise DataError(f"{root / 'annotations'} does not number the breeds from 1 on without a gap.")
    return tuple(called[breed] for breed in range(len(called))), inside(root / "annotations", images)


def _paths(root: Path, part: Part) -> Labelled:
    """<class>/<image> a line, in the files that the option `lists` gives each split; `suffix` is what the lines leave out."""
    files, suffix = part.options["lists"], part.options.get("suffix", "")
    lines = {split: _lines(root / file) for split, file in files.items()}
    for split, file in files.items():
        if strange := [line for line in lines[split] if line.count("/") != 1]:
            raise DataError(f"{root / file} does not hold <class>/<image> in each line: {listed(strange, 3)}.")
    labels = tuple(sorted({line.partition("/")[0] for every in lines.values() for line in every}))
    row = {label: number for number, label in enumerate(labels)}
    images = {split: [(f"{line}{suffix}", row[line.partition("/")[0]]) for line in every] for split, every in lines.items()}
    return labels, inside(root / next(iter(files.values())), images)


def _sun(root: Path, part: Part) -> Labelled:
    """All images as train. A class such as /b/bakery/shop is called "shop bakery", as CoOp's list calls it."""
    path = root / part.place[0] / "ClassName.txt"
    folders = [line.removeprefix("/") for line in _lines(path)]
    inside(path, {"train": [(folder, 0) for folder in folders]})
    images = [
        (f"{folder}/{image.name}", number)
        for number, folder in enumerate(folders)
        for image in sorted((path.parent / folder).glob("sun_*.jpg"), key=lambda image: image.name)
    ]
    return tuple("_".join(reversed(folder.split("/")[1:])) for folder in folders), {"train": images}


def _flowers(root: Path, _: Part) -> Labelled:
    (labels,) = _mat(root / "imagelabels.mat", "labels")
    splits = dict(zip(("train", "val", "test"), _mat(root / "setid.mat", "trnid", "valid", "tstid"), strict=True))
    try:
        images = {
            split: [(f"image_{int(number):05d}.jpg", int(labels[int(number) - 1]) - 1) for number in numbers]
            for split, numbers in splits.items()
        }
    except (IndexError, TypeError, ValueError) as error:
        raise DataError(f"{root / 'setid.mat'} numbers images that imagelabels.mat does not know ({error}).") from error
    return (), images


def _cars(root: Path, _: Part) -> Labelled:
    (names,) = _mat(root / "devkit/cars_meta.mat", "class_names")
    images: dict[str, list[tuple[str, int]]] = {}
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        (rows,) = _mat(root / file, "annotations")
        try:
            images[split] = [(str(row["fname"]), int(row["class"]) - 1) for row in rows]
        except (ValueError, TypeError, IndexError) as error:
            raise DataError(f"{root / file} does not hold the fields fname and class ({error}).") from error
    return tuple(str(name) for name in names), inside(root / "devkit", images)


def _mat(path: Path, *keys: str) -> list[Any]:
    """Arrays [N] of a .mat file, which scipy reads without running anything."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise MissingDataError(f"There is no file {path}.")
    try:
        check_mat(path)
        found = loadmat(str(path), squeeze_me=True, variable_names=keys)
        return [np.atleast_1d(found[key]) for key in keys]
    except (  # what scipy raises for a file that was cut off or damaged, depending on where
        MatReadError, ValueError, TypeError, LookupError, NameError, NotImplementedError, OSError, EOFError, MemoryError, zlib.error,
    ) as error:  # fmt: skip
        raise DataError(f"{path} cannot be read as a MATLAB file with {listed(keys)} ({error}).") from error


LISTS: dict[str, Callable[[Path, Part], Labelled]] = {
    "variants": _variants, "pets": _pets, "paths": _paths, "sun": _sun, "flowers": _flowers, "cars": _cars,
}  # fmt: skip
"""By the `reading` of the first part."""
