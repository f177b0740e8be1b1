"""Captions that are there already: in a CSV file, or in the data's own manifest."""

from __future__ import annotations

import csv
import io
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from surefoot.data.layout import Dataset, listed
from surefoot.errors import DataError, MissingDataError
from surefoot.guard import read_text

log = logging.getLogger(__name__)

COLUMNS = ("path", "caption")
_MOST_NAMED = 3


def captions_of_data(dataset: Dataset) -> list[str]:
    """The captions of the training images that the data's own manifest holds.

    Raises:
        DataError: it has none, or not one for each image.
    """
    train = dataset.split("train")
    if not train.captions:
        raise DataError(f"{dataset.name} has no captions. Fill the column 'caption' of a manifest, or use another --captioner.")
    _check_all(train.paths, train.captions, "the data")
    return list(train.captions)


def captions_of_csv(file: Path, dataset: Dataset) -> list[str]:
    """The captions of the training images in a CSV file with the columns path and caption; further columns are not read.

    A path is relative to the file's folder or to the data's root, or absolute; or it is a file name that only one image has.
    Rows for images of other splits are passed over; rows for no image at all are told of in a warning.

    Args:
        file: the CSV.
        dataset: with train.

    Returns:
        N captions, in the order of the training images.

    Raises:
        MissingDataError: no such file.
        DataError: not such a CSV, images without a caption, two captions for one image, a file name that several images have.
    """
    known, by_name = _images(dataset)
    found: dict[Path, tuple[int, str]] = {}
    unknown: list[str] = []
    for line, given, caption in _rows(file):
        places = [place for folder in (file.parent, dataset.root) if (place := (folder / given).absolute().resolve()) in known]
        if not places and Path(given).name == given:
            places = by_name.get(given, [])
            if len(places) > 1:
                raise DataError(
                    f"{file}, line {line}: {len(places)} images are called {given}: {listed(places, _MOST_NAMED)}. "
                    "Write their paths, relative to the CSV or to the data's folder."
                )
        if not places:
            unknown.append(f"{given} (line {line})")
            continue
        other = found.setdefault(places[0], (line, caption))
        if other[1] != caption:
            raise DataError(f"{file}: {given} has two captions, in lines {other[0]} and {line}. Keep one of the two rows.")
    if unknown:
        log.warning("%d rows of %s belong to no image of %s: %s.", len(unknown), file.name, dataset.name, listed(unknown, _MOST_NAMED))
    train = dataset.split("train").paths
    captions = [found.get(path.absolute().resolve(), (0, ""))[1] for path in train]
    _check_all(train, captions, str(file))
    return captions


def _images(dataset: Dataset) -> tuple[set[Path], dict[str, list[Path]]]:
    """Every image of the data by its place, and places by file name."""
    known = {path.absolute().resolve() for split in dataset.splits.values() for path in split.paths}
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(known):
        by_name[path.name].append(path)
    return known, by_name


def _check_all(paths: Sequence[Path], captions: Sequence[str], source: str) -> None:
    missing = [path for path, caption in zip(paths, captions, strict=True) if not caption]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} training images have no caption in {source}, such as {listed(missing, _MOST_NAMED)}. "
            "Add their captions, or use another --captioner."
        )


def _rows(file: Path) -> Iterator[tuple[int, str, str]]:
    """(line, path, caption) of every row with a path."""
    if not file.is_file():
        raise MissingDataError(f"There is no file {file}. Give a CSV with the columns path and caption.")
    try:
        text = read_text(file, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in reader.fieldnames or ()]
        for wanted in COLUMNS:
            if wanted not in header:
                raise DataError(f"{file}, line 1: no column '{wanted}'. Found: {', '.join(header) or 'none'}; needed are path and caption.")
        reader.fieldnames = header
        for row in reader:
            if None in row:
                raise DataError(
                    f"{file}, line {reader.line_num} has more cells than the header. Put captions with commas in double quotes."
                )
            if path := (row["path"] or "").strip():
                yield reader.line_num, path, " ".join((row["caption"] or "").split())
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num} is not valid CSV: {error}. Put cells with quotes in double quotes.") from error
