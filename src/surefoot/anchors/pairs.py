"""Retrieved image-text pairs: how `surefoot retrieve` leaves them, and how training reads them.

ANCHORS/
├── pairs.jsonl     what retrieved them, then one line for each training image: its digest and the names of its pairs, the nearest first
├── pairs.csv       name,text: one row for each distinct pair
└── pairs/NAME.*    its image, byte for byte as it is in the pool

A name is made of the candidate's row in the pool and a hash of its image, so that old and new pairs may stand side by side: while new ones
are written, and after an interruption at any moment, what `pairs.jsonl` refers to is there.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from surefoot.anchors.pool import Pool
from surefoot.data.writing import writing
from surefoot.errors import DataError, MissingDataError
from surefoot.guard import parse_json, read_text
from surefoot.guard.places import check_inside

FILE, TEXTS, IMAGES = "pairs.jsonl", "pairs.csv", "pairs"
KEPT = "pairs that lay there are as they were, and embeddings are kept"
AGAIN = "Run 'surefoot retrieve DATA --candidates POOL' again."
_OURS = re.compile(r"\d{8,}-[0-9a-f]{8}(\.\w+)*")


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
    files = {path.stem: path for path in (folder / IMAGES).glob("*") if path.is_file()} if (folder / IMAGES).is_dir() else {}
    check_inside(folder, files.values(), f"A link in {folder / IMAGES}")
    for name in texts:
        if name not in files:
            raise DataError(f"The image of the pair {name} is not in {folder / IMAGES}. {AGAIN}")
    place = {name: row for row, name in enumerate(texts)}
    of: dict[str, tuple[int, ...]] = {}
    number = 1
    try:
        header, *lines = read_text(folder / FILE).splitlines() or [""]
        about = parse_json(header)
        known = {key: about[key] for key in ("weights", "model", "pool", "k")}
        for number, line in enumerate(lines, start=2):  # noqa: B007
            entry = parse_json(line)
            of[entry["image"]] = tuple(place[name] for name in entry["pairs"])
            if len(entry["pairs"]) != known["k"]:
                raise ValueError(f"{len(entry['pairs'])} pairs instead of {known['k']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / FILE}, line {number} is damaged ({error!r}). {AGAIN}") from error
    return Pairs(**known, names=tuple(texts), images=tuple(files[name] for name in texts), texts=tuple(texts.values()), of=of)


def _texts(path: Path) -> dict[str, str]:
    try:
        with io.StringIO(read_text(path), newline="") as file:
            found = {row["name"]: row["text"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error!r}). {AGAIN}") from error
    if cut := [name for name, text in found.items() if text is None]:
        raise DataError(f"{path} is damaged: the pair {cut[0]} has no text. {AGAIN}")
    return found


def write_pairs(
    folder: Path,
    pool: Pool,
    keys: Sequence[str],
    rows: Sequence[Sequence[int]],
    scores: Sequence[Sequence[float]],
    about: Mapping[str, object],
) -> int:
    """Write the pairs of N training images into an anchors folder, in place of others that are there.

    Args:
        folder: of the anchors; made if it is not there.
        pool: where the pairs come from.
        keys: N SHA-256 of the training images' bytes.
        rows: for each the rows of its k pairs in the pool, the nearest first.
        scores: their similarities.
        about: the first line: weights, model, pool, k, and what else is to be known.

    Returns:
        How many of the distinct pairs have an image that is, byte for byte, one of the training images.

    Raises:
        DataError: an image of the pool that cannot be read any more, or a disk that refuses.
    """
    distinct, known, own = sorted({row for wanted in rows for row in wanted}), set(keys), 0
    names: dict[int, str] = {}
    with writing(folder, "--anchors", KEPT):
        (folder / IMAGES).mkdir(exist_ok=True)
        for row in distinct:
            content = pool.places[row].read()
            digest = hashlib.sha256(content).hexdigest()
            own += digest in known
            names[row] = f"{pool.rows[row]:08d}-{digest[:8]}"
            _replace(folder / IMAGES / f"{names[row]}{pool.places[row].suffix}", content)
        texts = {names[row]: pool.texts[row] for row in distinct}
        found = {key: (wanted, values) for key, wanted, values in zip(keys, rows, scores, strict=True)}
        lines: list[Mapping[str, object]] = [about]
        for key, (wanted, values) in found.items():
            lines.append({"image": key, "pairs": [names[row] for row in wanted], "scores": [round(value, 6) for value in values]})
        _replace(folder / TEXTS, _table({**_old(folder), **texts}))
        _replace(folder / FILE, "".join(json.dumps(line) + "\n" for line in lines).encode())
        _replace(folder / TEXTS, _table(texts))  # from here on the old ones are superfluous
        for path in (folder / IMAGES).iterdir():
            if path.stem not in texts and _OURS.fullmatch(path.name):
                path.unlink()
    return own


def _old(folder: Path) -> dict[str, str]:
    """The texts of the pairs that are about to be replaced; none if they cannot be read anyway."""
    try:
        return _texts(folder / TEXTS)
    except DataError:
        return {}


def _table(texts: Mapping[str, str]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("name", "text"), *texts.items()])
    return file.getvalue().encode()


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that its name stands for the old or the new content, never for half of it."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
