"""Retrieved image-text pairs as `surefoot retrieve` leaves them, and how training reads them.

ANCHORS/
├── pairs.jsonl     what retrieved them, then one line for each training image: its digest and the names of its pairs, the nearest first
├── pairs.csv       name,text: one row for each distinct pair
└── pairs/NAME.*    its image
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from surefoot.errors import DataError, MissingDataError

FILE, TEXTS, IMAGES = "pairs.jsonl", "pairs.csv", "pairs"
AGAIN = "Run 'surefoot retrieve DATA --candidates POOL' again."


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What was retrieved.

    Attributes:
        weights: hash of the weights that embedded images and texts.
        model: its name.
        pool: what was retrieved from.
        k: pairs for each image.
        names: of the distinct pairs.
        images: their images.
        texts: their texts.
        of: {digest of a training image: rows of `images` and `texts`, the nearest first}.
    """

    weights: str
    model: str
    pool: str
    k: int
    names: tuple[str, ...]
    images: tuple[Path, ...]
    texts: tuple[str, ...]
    of: Mapping[str, tuple[int, ...]]


def read_pairs(folder: Path) -> Pairs:
    """The pairs of an anchors folder.

    Raises:
        MissingDataError: none there.
        DataError: damaged files, or images that are gone; the first is named.
    """
    if not (folder / FILE).is_file():
        raise MissingDataError(f"There are no retrieved pairs in {folder}. Make them by 'surefoot retrieve DATA --candidates POOL'.")
    texts = _texts(folder / TEXTS)
    files = {path.stem: path for path in (folder / IMAGES).glob("*")} if (folder / IMAGES).is_dir() else {}
    for name in texts:
        if name not in files:
            raise DataError(f"The image of the pair {name} is not in {folder / IMAGES}. {AGAIN}")
    place = {name: row for row, name in enumerate(texts)}
    header, *lines = (folder / FILE).read_text(encoding="utf-8").splitlines() or [""]
    of: dict[str, tuple[int, ...]] = {}
    number = 1
    try:
        about = json.loads(header)
        known = {key: about[key] for key in ("weights", "model", "pool", "k")}
        for number, line in enumerate(lines, start=2):  # noqa: B007
            entry = json.loads(line)
            of[entry["image"]] = tuple(place[name] for name in entry["pairs"])
            if len(entry["pairs"]) != known["k"]:
                raise ValueError(f"{len(entry['pairs'])} pairs instead of {known['k']}")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / FILE}, line {number} is damaged ({error!r}). {AGAIN}") from error
    return Pairs(**known, names=tuple(texts), images=tuple(files[name] for name in texts), texts=tuple(texts.values()), of=of)


def _texts(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["name"]: row["text"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error!r}). {AGAIN}") from error
