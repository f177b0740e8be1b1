"""Data sets of WILDS, by the package `wilds`: its own reading of the metadata, its official splits, its classes' numbers.

iwildcam_v2.0/train/*.jpg            the images of all splits, beside metadata.csv and RELEASE_v2.0.txt
fmow_v1.1/images/rgb_img_N.png       beside rgb_metadata.csv, country_code_mapping.csv and RELEASE_v1.1.txt
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.data.catalog.declaration import Declaration, Part
from surefoot.data.catalog.loaders.found import Classes, Found, missing, not_there, place_of
from surefoot.data.findings import Finding
from surefoot.data.layout import Split, listed

_NO_REGION = "Other"  # WILDS' own evaluation leaves these images out of the worst region


def load_wilds(declaration: Declaration, root: Path) -> Found:
    """The splits of WILDS that the parts name by their option `split`; images of one region or the like are a group.

    References:
        Koh et al., WILDS: A Benchmark of in-the-Wild Distribution Shifts, ICML 2021.
    """
    labels = tuple(declaration.labels) or tuple(str(number) for number in range(len(declaration.names)))
    classes = Classes(labels, declaration.names or tuple(label.replace("_", " ") for label in labels))
    if gone := [missing(declaration, root, part) for part in declaration.parts if place_of(root, part) is None]:
        return Found(root, classes, {}, tuple(gone[:1]))  # all splits share one folder
    if absent := [str(root / name) for name in declaration.parts[0].options["files"] if not (root / name).is_file()]:
        text = f"{declaration.name} is not complete: there is no {listed(absent)}. Get it from: {declaration.source}."
        return Found(root, classes, {}, (Finding("error", text),))
    name = declaration.parts[0].options["set"]
    try:
        data = _opened(name, root.parent)
        images, groups = READINGS[name](data, root)
        number = np.asarray(data.y_array)
        if number.min() < 0 or number.max() >= len(labels):
            raise ValueError(f"classes {number.min()} to {number.max()}, not 0 to {len(labels) - 1}")
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, AssertionError) as error:
        folder = f"wilds reads the folder {name}_v{declaration.parts[0].options['version']}; this is {root.name}."
        text = f"{declaration.name} cannot be read by wilds ({type(error).__name__}: {error}). {folder}"
        return Found(root, classes, {}, (Finding("error", text),))
    splits: dict[str, Split] = {}
    findings: list[Finding] = []
    for part in declaration.parts:
        rows = np.flatnonzero(np.asarray(data.split_array) == data.split_dict[part.options["split"]])
        splits[part.name] = split = _split(part, rows.tolist(), images, number.tolist(), classes, groups)
        findings += not_there(part, split.paths)
    return Found(root, classes, splits, tuple(findings))


def _split(
    part: Part, rows: Sequence[int], images: Sequence[Path], number: Sequence[int], classes: Classes, groups: Sequence[str]
) -> Split:
    return Split(
        part.name,
        tuple(images[row] for row in rows),
        tuple(int(number[row]) for row in rows),
        classes.names,
        groups=tuple(groups[row] for row in rows) if groups else (),
    )


def _opened(name: str, root: Path) -> Any:  # noqa: ANN401 - a data set of wilds
    """The data set as wilds reads it. Importing wilds asks the network for a newer release unless `outdated` cannot be imported."""
    before = sys.modules.get("outdated")
    sys.modules["outdated"] = None  # type: ignore[assignment]
    try:
        from wilds import get_dataset
    finally:
        del sys.modules["outdated"]
        if before is not None:
            sys.modules["outdated"] = before
    return get_dataset(dataset=name, root_dir=str(root), download=False)


def _iwildcam(data: Any, root: Path) -> tuple[list[Path], list[str]]:  # noqa: ANN401
    return [root / "train" / str(name) for name in data._input_array], []


def _fmow(data: Any, root: Path) -> tuple[list[Path], list[str]]:  # noqa: ANN401
    images = [root / "images" / f"rgb_img_{number}.png" for number in data.full_idxs]
    regions: Sequence[str] = data.metadata_map["region"]
    column = data.metadata_array[:, data.metadata_fields.index("region")].tolist()
    return images, ["" if regions[number] == _NO_REGION else regions[number] for number in column]


READINGS: Mapping[str, Callable[[Any, Path], tuple[list[Path], list[str]]]] = {"iwildcam": _iwildcam, "fmow": _fmow}
"""The image and the group ("" for none) of each row of WILDS' metadata; no groups at all where it measures none."""
