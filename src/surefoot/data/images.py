"""Reading images, and handing them out in batches."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from surefoot.data.crops import RandomCrop
from surefoot.data.shards import content, source
from surefoot.errors import DataError, MissingDataError, ResourceError, SurefootError
from surefoot.guard.limits import PIXELS, USUAL, check_regular, limit

KEEP_BYTES = 1 << 30
AGAIN = "run the same command again; what is finished is kept."
MOST_WORKERS = 8
_AVIF = ("AVIF",) if "avif" in features.modules and features.check("avif") else ()
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *_AVIF)
"""What is opened, whatever a file is called: no format whose reader starts another program (EPS), is rarely used, or reads other files."""
SIDE = 1 << 16  # pixels of width or height, what JPEG can hold; a thin strip of millions takes long to decode
LARGE = 1 << 25  # pixels; images beyond are decoded one at a time, however many threads read
_ORIENTATION = 0x0112
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
# What Pillow raises for damaged bytes, in the image or in its EXIF data, depending on where the damage is.
_DAMAGED = (
    UnidentifiedImageError, OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Quiet:
    """Pillow's warnings about a file are silent while any thread reads one: what cannot be read raises, the rest is fine.

    `warnings.catch_warnings` replaces the filters of the whole process, so threads must not enter and leave it in turns.
    """

    def __init__(self) -> None:
        self._lock, self._readers, self._caught = threading.Lock(), 0, warnings.catch_warnings()
        self._pixels: int | None = None

    def __enter__(self) -> None:
        most = limit(PIXELS)  # raises before anything is counted
        with self._lock:
            self._readers += 1
            if self._readers == 1:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._pixels = Image.MAX_IMAGE_PIXELS
                if most != USUAL[PIXELS]:
                    Image.MAX_IMAGE_PIXELS = most // 2  # Pillow warns from there on, and raises at twice as many

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._caught.__exit__(kind, error, trace)
                Image.MAX_IMAGE_PIXELS = self._pixels


_quiet = _Quiet()
_alone = threading.Lock()
_no_lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()


def read_image(path: Path, least: int | None = None) -> Image.Image:
    """One image as RGB, as a viewer would show it: a file, or a member of a tar file (`surefoot.data.shards`).

    Turned as its EXIF data says; transparent parts on white; 16-bit grey scaled to 8; the first frame or page of several. Safe in threads.

    Args:
        path: the file.
        least: decode a JPEG at a half, a quarter or an eighth of its width and height, as long as both stay this many pixels; None
            decodes in full.

    Raises:
        DataError: the file cannot be read as an image, or holds values that have no fixed range.
        MissingDataError: it is not there any more.
        ResourceError: no memory is left for it.
    """
    try:
        with _quiet, open_image(path) as opened:
            if least is not None:
                opened.draft(None, (least, least))
            with _alone if opened.width * opened.height > LARGE else _no_lock:
                opened.load()
                return _rgb(_upright(opened), path)
    except SurefootError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} is too large to be read ({error}). Save it with fewer pixels, as models see far fewer; or allow more by the "
            f"environment variable {PIXELS}, such as {PIXELS}=400M."
        ) from error
    except FileNotFoundError as error:
        raise MissingDataError(f"{path} is not there any more. Put it back, and {AGAIN}") from error
    except MemoryError as error:  # a damaged PNG, too, may claim a part of gigabytes; nothing that is skipped as damaged follows from it
        raise ResourceError(
            f"{path} cannot be read: no memory is left for it. Repair or remove it if it is small; else end other programs, and {AGAIN}"
        ) from error
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, not of the image
            raise DataError(f"{path} cannot be read ({error.strerror}). Allow it to be read, or see to its disk, and {AGAIN}") from error
        if _is_heic(path):
            raise DataError(f"{path} is a HEIC image, which is not supported. Convert it to JPEG.") from error
        reason = "no image format that is known" if isinstance(error, UnidentifiedImageError) else error  # its text repeats the path
        raise DataError(f"{path} cannot be read as an image ({reason}). Repair or remove the file.") from error


def open_image(path: Path) -> Image.Image:
    """A file, or a member of a tar file, as Pillow opens it: its head alone is read, and only formats of `FORMATS` are tried.

    Raises:
        DataError: it is no regular file, a member of too many bytes, or has a side of too many pixels.
        UnidentifiedImageError, OSError and others of Pillow: it is no image that can be read, or one of too many pixels.
    """
    found = source(path)
    if isinstance(found, Path):
        check_regular(found)
    opened = Image.open(found, formats=FORMATS)
    if max(opened.size) > SIDE:
        width, height = opened.size
        opened.close()
        raise DataError(f"{path} is {width} x {height} pixels, and a side has {SIDE} at most. Repair or remove it, or save a part of it.")
    if (pixels := opened.width * opened.height) > (most := limit(PIXELS)):  # other packages, such as wilds, turn Pillow's own limit off
        opened.close()
        raise Image.DecompressionBombError(f"{pixels} pixels, and {most} are allowed")
    return opened


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF data says; as it is if they are damaged."""
    try:
        turn = _TURN.get(int(image.getexif().get(_ORIENTATION, 1)))
    except _DAMAGED:
        return image
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I"):
        return _eight_bits(image, path).convert("RGB")
    if image.mode.startswith("F"):
        raise DataError(f"{path} holds floating-point values, which have no fixed range. Save it as 8- or 16-bit.")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """A grey image of 16 or 32 bits (Pillow's modes I;16 and I) as 8-bit grey, 65535 becoming white.

    Mode I has no fixed range: values up to 255 are taken as 8-bit, up to 65535 as 16-bit.
    """
    values = np.asarray(image).astype(np.int32)  # holds all that both modes do
    lowest, highest = values.min(initial=0), values.max(initial=0)
    if lowest < 0 or highest > 65535:
        raise DataError(f"{path} holds values from {lowest} to {highest}, which have no fixed range. Save it as 8- or 16-bit.")
    grey = values if image.mode == "I" and highest <= 255 else (values + 128) // 257
    if isinstance(transparent := image.info.get("transparency"), int):
        grey = np.where(values == transparent, 255, grey)
    return Image.fromarray(grey.astype(np.uint8))


def _is_heic(path: Path) -> bool:
    """Whether the file is a HEIC image, whatever its name: phones' photographs are often renamed to .jpg."""
    try:
        head = content(path, most=12)
    except (OSError, DataError):
        return False
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS


@dataclass
class Budget:
    """How many bytes of images may be kept in memory, by all `Images` that share it."""

    left: int = KEEP_BYTES
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def take(self, size: int) -> bool:
        """Whether that many bytes may be kept; they are taken off then."""
        with self._lock:
            fits = size <= self.left
            self.left -= size if fits else 0
        return fits


class Images:
    """The images of some paths, preprocessed on demand.

    Files are read and preprocessed in threads. What is drawn for an image depends on the seed that it is given alone, not on the images
    beside it; a random transform that `crops.RandomCrop` does not know runs in the calling thread and draws from torch's global generator,
    seeded for each image. Preprocessed images are kept while the budget lasts; decoded ones if the transform is random.

    Args:
        paths: the files.
        transform: PIL image -> tensor [3, H, W].
        random: whether the transform draws random numbers, so that its results must not be kept.
        budget: what may be kept; its own if none is given.
        workers: threads that read; as many as there are processors, at most eight, if None.
        border: pixels that are cut off each side of an image before anything else.
        least: see `read_image`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        transform: Callable[[Image.Image], Tensor],
        *,
        random: bool = False,
        budget: Budget | None = None,
        workers: int | None = None,
        border: int = 0,
        least: int | None = None,
    ) -> None:
        self.paths, self._transform, self._random, self._border, self._least = tuple(paths), transform, random, border, least
        self._budget = budget or Budget()
        self._workers = workers or min(MOST_WORKERS, os.cpu_count() or 1)
        self._crop = RandomCrop.of(transform) if random else None
        self._decoded: dict[int, Image.Image] = {}
        self._ready: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def draws_globally(self) -> bool:
        """Whether preprocessing draws from torch's global generator, seeded or not."""
        return self._random and self._crop is None

    def batch(self, rows: Sequence[int], seeds: Sequence[int] | None = None) -> Tensor:
        """The preprocessed images of `rows`, [B, 3, H, W].

        Args:
            rows: which of the paths.
            seeds: one for each image, of what is drawn for it; None draws from torch's global generator as it stands.
        """
        return torch.stack(list(self._drawn(rows, seeds) if self._random else self._fixed(rows)))

    def batches(self, size: int, part: slice = slice(None)) -> Iterator[Tensor]:
        """All images in order, or a part of them, [<= size, 3, H, W] each."""
        rows = range(len(self))[part]
        for start in range(0, len(rows), size):
            yield self.batch(rows[start : start + size])

    def _fixed(self, rows: Sequence[int]) -> Iterator[Tensor]:
        fresh = [row for row in rows if row not in self._ready]
        results = _ahead(lambda row: self._transform(self._read(row)), fresh, self._workers)
        for row, is_ready in [(row, row in self._ready) for row in rows]:
            result = self._ready[row] if is_ready else next(results)
            if row not in self._ready and self._budget.take(result.numel() * result.element_size()):
                self._ready[row] = result
            yield result

    def _drawn(self, rows: Sequence[int], seeds: Sequence[int] | None) -> Iterator[Tensor]:
        crop, images = self._crop, self._images(rows)
        if crop is None:
            with torch.random.fork_rng(devices=[], enabled=seeds is not None):
                for place, image in enumerate(images):
                    _seeded(torch.default_generator, seeds, place)
                    yield self._transform(image)
            return
        generator = torch.default_generator if seeds is None else torch.Generator()
        drawn = ((image, crop.draw(image, _seeded(generator, seeds, place))) for place, image in enumerate(images))
        yield from _ahead(lambda one: crop.finish(*one), drawn, self._workers)

    def _images(self, rows: Sequence[int]) -> Iterator[Image.Image]:
        """The decoded images of `rows`, in their order."""
        fresh = [row for row in rows if row not in self._decoded]
        images = _ahead(self._read, fresh, self._workers)
        for row, is_decoded in [(row, row in self._decoded) for row in rows]:
            image = self._decoded[row] if is_decoded else next(images)
            if row not in self._decoded and self._budget.take(image.width * image.height * 4):
                self._decoded[row] = image
            yield image

    def _read(self, row: int) -> Image.Image:
        image = read_image(self.paths[row], self._least)
        return cropped(image, self._border, self.paths[row]) if self._border else image


def _seeded(generator: torch.Generator, seeds: Sequence[int] | None, place: int) -> torch.Generator:
    """The generator, made ready for the image at `place`."""
    return generator if seeds is None else generator.manual_seed(seeds[place])


def cropped(image: Image.Image, border: int, path: Path) -> Image.Image:
    """An image without `border` pixels on each side.

    Raises:
        DataError: nothing would be left; `path` is named.
    """
    if min(image.size) <= 2 * border:
        raise DataError(f"{path} has {image.width} x {image.height} pixels; nothing is left without its border of {border}. Replace it.")
    return image.crop((border, border, image.width - border, image.height - border))


def _ahead(work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int) -> Iterator[_Result]:
    """work(item) of every item in order, computed in threads; at most `workers` results wait, since a photograph fills 50 MB."""
    if workers < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
