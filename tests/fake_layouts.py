"""Tiny copies of data sets as torchvision lays them out: `make_torchvision("dtd", folder)`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from fakes import picture

from surefoot.data.catalog import declared

CLASSES = ["abbey", "b_c", "cat", "dog", "eel"]


def make_torchvision(name: str, root: Path) -> Path:
    """A tiny copy below `root`, which is given back."""
    MAKERS[name](root)
    return root


def _lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _flowers(root: Path) -> None:
    """Of five of the 102 classes; image n has the class of `labels[n - 1]`, counted from 1."""
    from scipy.io import savemat

    home, labels = root / "flowers-102", np.array([1, 2, 77, 102, 40] * 6)
    numbers = np.arange(1, len(labels) + 1)
    for number in numbers:
        picture(home / "jpg" / f"image_{number:05d}.jpg")
    savemat(home / "imagelabels.mat", {"labels": labels.reshape(1, -1).astype(np.uint8)})
    splits = {"trnid": numbers[5:20][::-1], "valid": numbers[20:25], "tstid": np.r_[numbers[:5], numbers[25:]]}
    savemat(home / "setid.mat", {key: own.reshape(1, -1).astype(np.uint16) for key, own in splits.items()})


def _pets(root: Path) -> None:
    home, breeds = root / "oxford-iiit-pet", ["Abyssinian", "american_bulldog", "Bengal"]  # capitals sort before the others: not by name
    for file, each in (("trainval", 4), ("test", 2)):
        lines = [f"{breed}_{file}{one} {number + 1} 1 1" for number, breed in enumerate(breeds) for one in range(each)]
        _lines(home / f"annotations/{file}.txt", lines)
        for line in lines:
            picture(home / "images" / f"{line.split()[0]}.jpg")


def _cars(root: Path) -> None:
    from scipy.io import savemat

    home, names = root / "stanford_cars", ["BMW M3 Coupe 2012", "Audi TT RS Coupe 2012", "Acura TL Sedan 2012"]
    (home / "devkit").mkdir(parents=True)
    savemat(home / "devkit/cars_meta.mat", {"class_names": np.array([names], dtype=object)})
    for folder, file, each in (("cars_train", "devkit/cars_train_annos.mat", 4), ("cars_test", "cars_test_annos_withlabels.mat", 1)):
        rows = np.zeros((1, 3 * each), dtype=[("class", object), ("fname", object)])
        for place in range(3 * each):
            rows[0, place] = (place % 3 + 1, f"{place + 1:05d}.jpg")
            picture(home / folder / f"{place + 1:05d}.jpg")
        savemat(home / file, {"annotations": rows})


def _paths(home: str, lists: dict[str, tuple[str, int]], suffix: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for split, (file, each) in lists.items():
            names = [f"{label}/{split}{one}" for label in CLASSES[::-1] for one in range(each)]
            _lines(root / home / file, [name if suffix else f"{name}.jpg" for name in names])
            for name in names:
                picture(root / home / "images" / f"{name}.jpg")

    return write


def _sun(root: Path) -> None:
    folders = ["a/abbey", "a/apartment_building/outdoor", "b/bakery/shop", "z/zoo"]
    _lines(root / "SUN397/ClassName.txt", [f"/{folder}" for folder in folders])
    for folder in folders:
        for one in range(8):
            picture(root / "SUN397" / folder / f"sun_{one}.jpg")
        picture(root / "SUN397" / folder / "thumbnail.jpg")


def _folders(name: str, home: str, more: str = "") -> Callable[[Path], None]:
    def write(root: Path) -> None:
        (layout,) = declared(name).layouts
        place = root / home / layout.parts[0].place[0]
        for label in (*layout.labels, *([more] if more else [])):
            for one in range(4):
                picture(place / label / f"image_{one:04d}.jpg")

    return write


MAKERS: dict[str, Callable[[Path], None]] = {
    "caltech101": _folders("caltech101", "caltech101", "BACKGROUND_Google"),
    "dtd": _paths("dtd/dtd", {split: (f"labels/{split}1.txt", 3) for split in ("train", "val", "test")}, ""),
    "eurosat": _folders("eurosat", "eurosat"),
    "flowers102": _flowers,
    "food101": _paths("food-101", {"train": ("meta/train.txt", 4), "test": ("meta/test.txt", 2)}, ".jpg"),
    "oxford_pets": _pets,
    "stanford_cars": _cars,
    "sun397": _sun,
}
