"""Arrays in HDF5 files that are larger than memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surefoot.errors import DataError, MissingDataError

_MOST_PACKED = 1100  # bytes that deflate makes of one at the most


@dataclass(frozen=True)
class Stored:
    """An array of an HDF5 file, of which only the rows that are asked for are read.

    Attributes:
        path: the file.
        key: what the array is called in it.
        shape: of the array.
        dtype: of its numbers.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def open(cls, path: Path, key: str) -> Stored:
        """The array that a file holds.

        Raises:
            MissingDataError: there is no such file.
            DataError: it is not HDF5, or holds no such array.
        """
        import h5py

        if not path.is_file():
            packed = path.with_name(f"{path.name}.gz").is_file()
            raise MissingDataError(f"There is no file {path}." + f" Unpack it: gunzip {path.name}.gz" * packed)
        try:
            with h5py.File(path, "r") as file:
                _check(file, key)
                return cls(path, key, tuple(file[key].shape), np.dtype(file[key].dtype))
        except (OSError, KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{path} cannot be read as an HDF5 file with the array '{key}' ({error}).") from error

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        import h5py

        try:
            with h5py.File(self.path, "r") as file:
                return np.asarray(file[self.key][rows])
        except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.path} cannot be read to its end ({error}). Get it again.") from error


def _check(file: Any, key: str) -> None:  # noqa: ANN401 - a file of h5py
    """The array's numbers lie in this file, and are not many more than it can hold.

    Raises:
        ValueError: they lie elsewhere, or are.
    """
    import h5py

    array, link = file[key], file.get(key, getlink=True)
    if isinstance(link, h5py.ExternalLink) or array.external or array.is_virtual:
        raise ValueError(f"'{key}' lies in another file")
    if array.nbytes > _MOST_PACKED * array.id.get_storage_size():
        raise ValueError(f"'{key}' claims {array.nbytes} bytes, of which {array.id.get_storage_size()} are stored")
