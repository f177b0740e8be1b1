"""What one reading of an image file tells: whether it can be read, its form, and digests that find the same picture again."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from surefoot.data.digest import digests, remember
from surefoot.data.images import _DAMAGED, _quiet, _upright, open_image, read_image
from surefoot.errors import DataError

REDUCED_SIDE = 256
_KIND = f"picture-1-pillow-{PIL.__version__}"
_TONE_TOLERANCE = 2


@dataclass(frozen=True)
class Picture:
    """One image file.

    Args:
        error: what is wrong with it, to be read after its path ("cannot be read as ..."); "" if it can be read.
        width: in pixels, turned as its EXIF data says.
        height: in pixels.
        format: Pillow's name of the file format, such as JPEG.
        mode: Pillow's name of the pixel format, such as RGB or CMYK.
        animated: whether it holds several frames or pages.
        pixels: digest of the size and the decoded pixels, so that a lossless copy in another format has the same.
        reduced: whether `pixels` was taken from a JPEG decoded at a fraction of its size.
        tone: the mean colour, red, green, blue in 0..255.
        file: SHA-256 of the bytes; "" if not asked for.
    """

    error: str = ""
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    animated: bool = False
    pixels: str = ""
    reduced: bool = False
    tone: tuple[int, int, int] = (0, 0, 0)
    file: str = ""


def look(paths: Sequence[Path], on_done: Callable[[int], None] | None = None, workers: int | None = None) -> list[Picture]:
    """Read every file once, in threads (Pillow decodes without Python's lock), or take what was found the last time.

    A large JPEG is decoded at a half to an eighth of its size, which takes a sixth of the time for a photograph; the decoder still walks
    through all of its data, so that a truncated file is found. Where a picture in another format could be the same, by size
    and mean colour, the JPEG is decoded in full after all.

    Args:
        paths: the files; each may be named several times.
        on_done: told how many are done.
        workers: threads.

    Returns:
        One for each path, in order.
    """
    facts = remember(_KIND, paths, _look_at, on_done, workers=workers, lasting=lambda fact: not _picture(fact).error)
    pictures = [_picture(fact) for fact in facts]
    exact = dict(_decoded_in_full(paths, pictures, workers))
    readable = [path for path, picture in zip(paths, pictures, strict=True) if not picture.error]
    of_bytes = dict(zip(readable, digests(readable), strict=True))
    return [
        replace(picture, pixels=exact.get(picture.pixels, picture.pixels), file=of_bytes.get(path, ""))
        for path, picture in zip(paths, pictures, strict=True)
    ]


def _picture(fact: str) -> Picture:
    values = json.loads(fact)
    return Picture(**(values | {"tone": tuple(values["tone"])}))


def _look_at(path: Path) -> str:
    """A `Picture` without the digest of its bytes, as JSON."""
    form, reduced, size = _open(path)
    try:
        image = reduced or read_image(path)
    except DataError as error:
        return json.dumps(asdict(Picture(error=str(error).removeprefix(f"{path} "), **form)))
    width, height = size if reduced else image.size
    found = Picture(width=width, height=height, pixels=_digest(image), reduced=reduced is not None, tone=_tone(image), **form)
    return json.dumps(asdict(found))


def _open(path: Path) -> tuple[dict[str, Any], Image.Image | None, tuple[int, int]]:
    """Format, mode and frames; a large JPEG decoded at a fraction of its size; the full size, turned as its EXIF data says.

    What fails here is left to `read_image`, whose verdict and words count.
    """
    form: dict[str, Any] = {}
    try:
        with _quiet, open_image(path) as opened:
            photograph = opened.format in ("JPEG", "MPO")  # MPO: a JPEG with further pictures behind it, as telephones write
            form = {"format": opened.format or "", "mode": opened.mode}
            form["animated"] = bool(getattr(opened, "is_animated", False)) and not photograph
            width, height = opened.size
            if not photograph or opened.draft(None, (REDUCED_SIDE, REDUCED_SIDE)) is None or opened.size == (width, height):
                return form, None, (width, height)
            small = opened.size
            opened.load()
            image = _upright(opened)
            return form, image, (width, height) if image.size == small else (height, width)
    except (*_DAMAGED, DataError, Image.DecompressionBombError):
        return form, None, (0, 0)


def _digest(image: Image.Image) -> str:
    """Of size, mode and pixels."""
    return hashlib.sha256(repr((image.size, image.mode)).encode() + image.tobytes()).hexdigest()


def _tone(image: Image.Image) -> tuple[int, int, int]:
    red, green, blue = np.asarray(image.convert("RGB").resize((1, 1), Image.Resampling.BOX))[0, 0].tolist()
    return red, green, blue


def _decoded_in_full(paths: Sequence[Path], pictures: Sequence[Picture], workers: int | None) -> Iterable[tuple[str, str]]:
    """(digest of the reduced pixels, digest of all pixels) for those that could be a picture in another format."""
    tones: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
    for picture in pictures:
        if not picture.error and not picture.reduced:
            tones[picture.width, picture.height].append(picture.tone)
    others = {size: np.array(found) for size, found in tones.items()}
    rows: dict[str, Path] = {}
    for path, picture in zip(paths, pictures, strict=True):
        near = others.get((picture.width, picture.height))
        if picture.reduced and near is not None and (np.abs(near - picture.tone).max(1) <= _TONE_TOLERANCE).any():
            rows.setdefault(picture.pixels, path)
    found = remember(f"{_KIND}-in-full", list(rows.values()), _all_pixels, workers=workers)
    return ((reduced, full) for reduced, full in zip(rows, found, strict=True) if full)


def _all_pixels(path: Path) -> str:
    try:
        return _digest(read_image(path))
    except DataError:  # cannot be: the reduced decoding walked through the same data
        return ""
