"""ObjectNet: 313 folders of which 113 are classes of ImageNet, some of them several at once, by the maps in its own folder.

objectnet-1.0/images/<folder>/*.png
objectnet-1.0/mappings/folder_to_objectnet_label.json      {folder: what its object is called}
objectnet-1.0/mappings/objectnet_to_imagenet_1k.json       {what it is called: ImageNet's labels, separated by "; "}
objectnet-1.0/mappings/imagenet_to_label_2012_v2           a label in each line, in the order of ILSVRC 2012
objectnet-1.0/mappings/pytorch_to_imagenet_2012_id.json    {class number: place in that order}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surefoot.data.catalog.declaration import Part
from surefoot.data.catalog.loaders.found import Classes, images_in, without_images
from surefoot.data.findings import Finding
from surefoot.data.layout import Split, listed
from surefoot.guard import parse_json, read_text

MAPPINGS = (
    "folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json", "imagenet_to_label_2012_v2", "pytorch_to_imagenet_2012_id.json",
)  # fmt: skip
BORDER = 2  # every picture has a red frame of two pixels, so that it is not trained on by mistake


def read(part: Part, place: Path, classes: Classes) -> tuple[Split, list[Finding]]:
    """The images of the 113 folders, with the classes of ImageNet that each stands for; the others are left out.

    Class order is that of the folders; a class is called as ObjectNet calls it, in lower case.
    """
    nothing = Split(part.name, (), (), ())
    mappings, images = place / "mappings", place / "images"
    if gone := [str(path) for path in (images, *(mappings / name for name in MAPPINGS)) if not path.exists()]:
        return nothing, [Finding("warning", f"{part.name} is not complete and was left out: there is no {listed(gone)}. Unpack it again.")]
    try:
        rows, called = _maps(mappings, len(classes.labels))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return nothing, [Finding("warning", f"{part.name} was left out: {mappings} is not ObjectNet's ({error!r}). Unpack it again.")]
    folders = sorted(rows)
    found = [(path, number) for number, name in enumerate(folders) if (images / name).is_dir() for path in images_in(images / name)]
    split = Split(
        part.name,
        tuple(path for path, _ in found),
        tuple(number for _, number in found),
        tuple(called[name] for name in folders),
        mapped=tuple(rows[name] for name in folders),
        border=BORDER,
    )
    return split, without_images(part, split, range(len(folders)), folders)


def _maps(mappings: Path, num_classes: int) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """{folder: the class numbers of ImageNet that it stands for} and {folder: what it is called}."""
    folder_of = {label: folder for folder, label in _json(mappings / MAPPINGS[0]).items()}
    lines = [line.strip() for line in read_text(mappings / MAPPINGS[2]).splitlines()]
    number_at = {int(place): int(number) for number, place in _json(mappings / MAPPINGS[3]).items()}
    rows, called = {}, {}
    for label, joined in _json(mappings / MAPPINGS[1]).items():
        wanted = [_place(lines, one) for one in joined.split("; ")]
        numbers = tuple(number_at[place] for place in wanted)
        if not all(0 <= number < num_classes for number in numbers):
            raise ValueError(f"'{label}' stands for classes that ImageNet does not have: {numbers}")
        rows[folder_of[label]], called[folder_of[label]] = numbers, label.lower()
    return rows, called


def _place(lines: list[str], label: str) -> int:
    """Where a label stands; "crane" stands there twice, and none of the 113 is called so."""
    if lines.count(label) != 1:
        raise ValueError(f"'{label}' stands {lines.count(label)} times in {MAPPINGS[2]}")
    return lines.index(label)


def _json(path: Path) -> dict[str, Any]:
    return dict(parse_json(read_text(path)))
