"""Answers of a finished classifier to images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from surefoot.bundle import Classifier
from surefoot.data.images import read_image
from surefoot.data.layout import SUFFIXES
from surefoot.data.shards import index, is_there
from surefoot.errors import DataError, MissingDataError

BATCH = 32


@dataclass(frozen=True)
class Answer:
    """The probability of every name for one image, the names in the order of the classifier; or why it could not be read."""

    path: Path
    probability: Sequence[float]
    error: str = ""


def find_images(places: Sequence[Path]) -> list[Path]:
    """Files as they are, all images below folders, and all in tar files, in order.

    Raises:
        MissingDataError: a place that is not there, or no image in all of them.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        elif place.suffix == ".tar" and place.is_file():
            found += [place / member.name for member in index([place])[0].members if Path(member.name).suffix.lower() in SUFFIXES]
        elif is_there(place):
            found.append(place)
        else:
            raise MissingDataError(f"There is no file or folder {place}.")
    if not found:
        raise MissingDataError(f"{', '.join(map(str, places))} holds no images. Read are {', '.join(sorted(SUFFIXES))}.")
    return found


def predict(classifier: Classifier, paths: Sequence[Path], *, skip_unreadable: bool = False) -> Iterator[Answer]:
    """An answer for each image, in order, as soon as its batch is done.

    Args:
        classifier: what answers, from `Bundle.classifier`.
        paths: the images.
        skip_unreadable: yield an answer without probabilities for an image that cannot be read, instead of stopping.

    Raises:
        DataError: an image cannot be read.
    """
    for begin in range(0, len(paths), BATCH):
        part = paths[begin : begin + BATCH]
        ready, failed = {}, {}
        for path in part:
            try:
                ready[path] = classifier.model.preprocess(read_image(path))
            except DataError as error:
                if not skip_unreadable:
                    raise
                failed[path] = str(error)
        given = dict(zip(ready, classifier.stack(list(ready.values())), strict=True))
        for path in part:
            yield Answer(path, given.get(path, ()), failed.get(path, ""))
