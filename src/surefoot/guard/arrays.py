"""NumPy's files of strangers: never unpickled, and no array is larger than what its file holds, or unpacks to more than is allowed."""

from __future__ import annotations

import io
import math
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

MOST_MAT = 1_000_000_000  # bytes that the variables of a .mat file unpack to
MOST = 16_000_000_000  # bytes that the arrays of one .npz unpack to


def load_array(path: Path) -> NDArray[Any]:
    """The array of a .npy file.

    Raises:
        ValueError: it is none, holds pickled objects, or claims more numbers than the file has.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        _check_header(file, os.fstat(file.fileno()).st_size)
        file.seek(0)
        return np.asarray(np.load(file, allow_pickle=False))


def load_arrays(path: Path, names: Collection[str] | None = None, most: int = MOST) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz file by name, all of them or those of some names.

    Raises:
        ValueError: it is none, holds pickled objects, claims more numbers than it has, or unpacks to more than `most` bytes.
        zipfile.BadZipFile, EOFError, zlib.error: it is damaged.
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    found = {}
    with zipfile.ZipFile(path) as archive:
        parts = [part for part in archive.infolist() if names is None or part.filename.removesuffix(".npy") in names]
        if (total := sum(part.file_size for part in parts)) > most:
            raise ValueError(f"it unpacks to {total} bytes; {most} are allowed")
        for part in parts:
            content = io.BytesIO(archive.read(part))
            _check_header(content, len(content.getbuffer()))
            content.seek(0)
            found[part.filename.removesuffix(".npy")] = np.asarray(np.load(content, allow_pickle=False))
    return found


def _check_header(file: BinaryIO | io.BytesIO, size: int) -> None:
    """The shape that a .npy header claims is that of the bytes behind it."""
    version = npy.read_magic(file)
    reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"it is of the version {version}, which is not read")
    shape, _, dtype = reader(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are not opened")
    if math.prod(shape) * dtype.itemsize > size - file.tell() or max(shape, default=0) > 1 << 48:
        raise ValueError(f"its header claims the shape {shape}; the file has {size} bytes")


def check_mat(path: Path) -> None:
    """The compressed variables of a MATLAB file (version 5) unpack to no more than is allowed; its other parts are left to its reader.

    Raises:
        ValueError: they do.
        OSError, zlib.error: it cannot be read.
    """
    total = 0
    with path.open("rb") as file:
        head = file.read(128)
        order = "<" if head[126:128] == b"IM" else ">"
        while len(tag := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}2I", tag)
            if kind != 15:  # miCOMPRESSED
                file.seek(size, os.SEEK_CUR)
                continue
            packed, left = zlib.decompressobj(), size
            while left > 0 and (part := file.read(min(left, 1 << 16))):
                left -= len(part)
                while part:
                    total += len(packed.decompress(part, 1 << 20))
                    part = packed.unconsumed_tail
                    if total > MOST_MAT:
                        raise ValueError(f"it unpacks to more than {MOST_MAT} bytes")
