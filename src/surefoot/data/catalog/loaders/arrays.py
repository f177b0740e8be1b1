"""Pictures that are published as arrays: CIFAR's pickles, read by torchvision, NumPy's .npy and .npz files, never unpickled, and HDF5.

They are written once, without loss, as PNG files into class folders in the user's cache, named by the digest of the arrays, and opened
from there like any other data.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from surefoot.data.catalog.declaration import Declaration, Part
from surefoot.data.catalog.loaders.found import Classes, Found, classes_of, missing, place_of, without_images
from surefoot.data.catalog.loaders.stored import Stored
from surefoot.data.digest import digests
from surefoot.data.embedded import cache_folder
from surefoot.data.findings import Finding
from surefoot.data.layout import Split, listed
from surefoot.errors import DataError, MissingDataError, unknown_name
from surefoot.guard import arrays

log = logging.getLogger(__name__)

Images = NDArray[np.uint8] | Stored
"""[N, H, W, 3], in memory or in a file."""
Pictures = tuple[Images, NDArray[np.int64]]
"""Images [N, H, W, 3] and class numbers [N]."""
CHUNK = 1024  # images in memory at a time


def load_arrays(declaration: Declaration, root: Path) -> Found:
    """Each part's arrays as pictures in the cache; the images' paths are relative to the data set's folder there."""
    classes, cache = classes_of(declaration), cache_folder() / "arrays" / declaration.name
    splits: dict[str, Split] = {}
    findings: list[Finding] = []
    for part in declaration.parts:
        if (place := place_of(root, part)) is None:
            findings.append(missing(declaration, root, part))
            continue
        if part.reading not in READINGS:
            raise unknown_name(f"reading of {part.name} of {declaration.name}", part.reading, READINGS)
        try:
            images, label = _checked(READINGS[part.reading](part, place, classes), len(classes.labels), _named(part, place))
        except (DataError, MissingDataError) as error:
            level = "warning" if part.optional else "error"
            findings.append(Finding(level, f"{part.name} cannot be read. {error} Get it from: {declaration.source_of(part)}."))
            continue
        paths = written(images, label, classes.labels, cache, part.name)
        file = _named(part, place)[0]
        splits[part.name] = split = Split(part.name, tuple(paths), tuple(sorted(label.tolist())), classes.names, file=file)
        findings += without_images(part, split, range(len(classes.labels)), classes.names)
    return Found(cache, classes, splits, tuple(findings), source=root)


def written(images: Images, label: NDArray[np.int64], labels: Sequence[str], cache: Path, name: str) -> list[Path]:
    """The pictures as PNG files in class folders, class by class; written now if they were not yet, whole or not at all.

    Args:
        images: [N, H, W, 3].
        label: [N].
        labels: folders of the classes.
        cache: where the folder of these arrays lies.
        name: what it begins with.
    """
    digest = hashlib.sha256(repr((images.shape, tuple(labels))).encode())
    digest.update(digests([images.path])[0].encode() if isinstance(images, Stored) else np.ascontiguousarray(images).tobytes())
    digest.update(np.ascontiguousarray(label).tobytes())
    target = cache / f"{name.replace('/', '-')}-{digest.hexdigest()[:12]}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        log.info("Writing %d pictures into %s, once.", len(label), target)
        partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.part-", dir=target.parent))
        try:
            for start in range(0, len(label), CHUNK):
                for row, image in enumerate(images[start : start + CHUNK], start):
                    path = partial / _file(labels, label, row)
                    path.parent.mkdir(exist_ok=True)
                    Image.fromarray(image).save(path, compress_level=1)
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return [target / _file(labels, label, row) for row in sorted(range(len(label)), key=lambda row: (label[row], row))]


def _file(labels: Sequence[str], label: NDArray[np.int64], row: int) -> str:
    return f"{labels[label[row]]}/{row:05d}.png"


def _named(part: Part, place: Path) -> list[str]:
    """The files of a part, images first; its folder, where the images lie in several."""
    files = [part.options[key] for key in ("file", "images", "labels") if key in part.options]
    return [str(place / file) for file in files] or [str(place)]


def _checked(pictures: Pictures, num_classes: int, files: Sequence[str]) -> Pictures:
    """The pictures themselves, if they are colour pictures with a class each; `files` are what they were read from."""
    images, label = pictures
    if images.dtype != np.uint8 or len(images.shape) != 4 or images.shape[-1] != 3 or label.shape != images.shape[:1] or not len(label):
        what = f"{images.dtype} images of the shape {images.shape} and labels of the shape {label.shape}"
        raise DataError(f"{' and '.join(files)}: {what}; wanted are bytes, [N, height, width, 3] and [N].")
    if label.dtype.kind not in "biuf" or not (label == np.floor(label)).all():
        raise DataError(f"{files[-1]} holds labels of the kind {label.dtype}, such as {label[0]}, not whole class numbers.")
    if label.min() < 0 or label.max() >= num_classes:
        raise DataError(f"{files[-1]} holds classes {label.min()} to {label.max()}, not 0 to {num_classes - 1}.")
    return images, label.astype(np.int64)


def _cifar(part: Part, place: Path, classes: Classes) -> Pictures:
    """CIFAR-10 or CIFAR-100 by torchvision, which compares every file with its official digest before it unpickles it."""
    from torchvision import datasets

    kind: Any = getattr(datasets, part.options["set"])
    try:
        found = kind(place.parent, train=part.name == "train", download=False)
    except RuntimeError as error:
        files = [name for name, _ in (*kind.train_list, *kind.test_list)] + [kind.meta["filename"]]
        gone = [name for name in files if not (place / name).is_file()]
        what = f"{place} has no {listed(gone)}." if gone else f"A file in {place} is not the official one (its digest differs)."
        raise MissingDataError(f"{what} Unpack the archive again.") from error
    if tuple(found.classes) != classes.labels:
        raise DataError(f"{place} names the classes {listed(found.classes)}, not {listed(classes.labels)}.")
    return found.data, np.array(found.targets)


def _npy(part: Part, place: Path, _: Classes) -> Pictures:
    """Two .npy files, images and labels."""
    return _array(place / part.options["images"]), _array(place / part.options["labels"])


def _npz(part: Part, place: Path, _: Classes) -> Pictures:
    """One .npz file with the arrays `images` and `labels`."""
    path = place / part.options["file"]
    return _array(path, "images"), _array(path, "labels")


def _array(path: Path, key: str | None = None) -> NDArray[Any]:
    if not path.is_file():
        other = sorted(one.name for one in path.parent.glob(f"{path.stem}.*"))
        instead = f" It holds {listed(other)}, pickled objects, which are not opened." if other else ""
        raise MissingDataError(f"There is no file {path}.{instead}")
    try:
        return arrays.load_array(path) if key is None else arrays.load_arrays(path, [key])[key]
    except (ValueError, KeyError, EOFError, OSError, AttributeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as NumPy's arrays ({error}).") from error


def _h5(part: Part, place: Path, _: Classes) -> Pictures:
    """Two HDF5 files, as PatchCamelyon's: the images under "x", read piece by piece, and their class numbers under "y"."""
    y = Stored.open(place / part.options["labels"], "y")
    if not y.shape:
        raise DataError(f"{y.path} holds one {y.dtype} under 'y', not a class number for each image.")
    return Stored.open(place / part.options["images"], "x"), y[:].reshape(-1)


READINGS: dict[str, Callable[[Part, Path, Classes], Pictures]] = {"cifar": _cifar, "npy": _npy, "npz": _npz, "h5": _h5}
"""How a part's arrays are read, by its declaration's `reading`."""
