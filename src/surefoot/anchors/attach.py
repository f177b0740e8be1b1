"""Where the anchors of a data set lie, and how they come to its training images."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from surefoot.anchors import captions as texts
from surefoot.anchors import pairs as retrieved
from surefoot.data import catalog
from surefoot.data.anchors import Anchors
from surefoot.data.digest import digests
from surefoot.data.embedded import cache_folder, names
from surefoot.data.layout import Dataset


def default_folder(data: str, root: str | None = None) -> Path:
    """The anchors folder of a data set, named as the commands take it: in the user's cache, one for each place of data."""
    folder = cache_folder() / "anchors"
    if root is not None and data in catalog.names():
        place = Path(root).absolute() / data
    elif data in names():
        return folder / data
    else:
        place = Path(data).absolute()
    word = re.sub(r"[^\w.-]+", "-", place.name) or "data"
    return folder / f"{word}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"


def attach(dataset: Dataset, folder: Path) -> Dataset:
    """The data set with what the folder holds for its training images; images are known by their content.

    Captions that came with the data (a manifest's) stand for the images that the folder holds none for.

    Raises:
        DataError: damaged files in the folder.
    """
    if "train" not in dataset.splits:
        return dataset
    train = dataset.split("train")
    captions = {path: text for path, text in zip(train.paths, train.captions, strict=bool(train.captions)) if text}
    made = Anchors(captions=captions, captioner="data" if captions else "")
    if any((folder / name).is_file() for name in (texts.FILE, retrieved.FILE)):
        digest = dict(zip(train.paths, digests(train.paths), strict=True))
        if (folder / texts.FILE).is_file():
            found = texts.read_captions(folder)
            own = {path: found.by_digest[key] for path, key in digest.items() if found.by_digest.get(key)}
            made = replace(made, captions=captions | own, captioner=found.captioner)
        if (folder / retrieved.FILE).is_file():
            pairs = retrieved.read_pairs(folder)
            of = {path: pairs.of[key] for path, key in digest.items() if key in pairs.of}
            made = replace(made, pairs=of, images=pairs.images, texts=pairs.texts, weights=pairs.weights, pool=pairs.pool)
    return replace(dataset, anchors=made)
