"""Writing into a folder on a disk that may be full or refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surefoot.errors import DataError


@contextmanager
def writing(folder: Path, option: str, kept: str) -> Iterator[None]:
    """The folder, made now; a disk that is full or refuses becomes a sentence that names where else to write.

    Args:
        folder: where is written.
        option: how another place is named.
        kept: what is not lost.

    Raises:
        DataError: it cannot be made, or what is done within cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be written ({error.strerror or error}). Make room, allow it to be written, or name another "
            f"place by {option}, and run the same command again; {kept}."
        ) from error
