"""Digests of files, and the small cache that remembers what was found out about a file.

Reading a data set twice for the same facts costs minutes on a laptop. A fact is kept under the file's absolute path together with its
size and its time of change, so that an edited file is read again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from surefoot.data.shards import content, member_of, stamp
from surefoot.errors import DataError

log = logging.getLogger(__name__)

CACHE_FILE = "files.sqlite3"
SETTLED_NS = 2_000_000_000  # the coarsest clock of a common file system (FAT) ticks every two seconds
_LOCK_SECONDS = 2.0
_BATCH = 256
_CREATE = """
    CREATE TABLE IF NOT EXISTS facts (
        path BLOB, kind TEXT, size INTEGER, changed INTEGER, fact TEXT, PRIMARY KEY (path, kind)
    ) WITHOUT ROWID
"""


def digests(paths: Sequence[Path], on_done: Callable[[int], None] | None = None) -> list[str]:
    """The SHA-256 of each file's bytes, in hexadecimal, in the order of `paths`.

    Args:
        paths: the files.
        on_done: told how many are done, after each.

    Raises:
        DataError: a file cannot be read.
    """
    return remember("sha256", paths, _sha256, on_done)


def remember(
    kind: str,
    paths: Sequence[Path],
    find_out: Callable[[Path], str],
    on_done: Callable[[int], None] | None = None,
    *,
    workers: int | None = None,
    lasting: Callable[[str], bool] = bool,
) -> list[str]:
    """One fact for each file: from the cache if the file has not changed since, else by `find_out`, in threads.

    The cache lies in the user's cache folder. One that cannot be opened or written costs time, never a result.

    Args:
        kind: which fact, with the version of the code that finds it: a part of the cache's key.
        paths: the files.
        find_out: path -> fact.
        on_done: told how many are done, after each.
        workers: threads; Python's default for file work if None.
        lasting: whether a fact may be kept; the empty one is not, unless told.

    Returns:
        The facts, in the order of `paths`.

    Raises:
        DataError: a file is not there any more.
    """
    cache = _Cache.open(kind)
    pool = ThreadPoolExecutor(workers)
    try:
        stamps = [_stamp(path) for path in paths]  # before the file is read: a change in between must not go unnoticed
        facts: dict[int, str] = {}
        for row, fact in cache.find(stamps):
            facts[row] = fact
            _tell(on_done, len(facts))
        missing = [row for row in range(len(paths)) if row not in facts]
        for start in range(0, len(missing), _BATCH):
            rows = missing[start : start + _BATCH]
            for row, fact in zip(rows, pool.map(find_out, [paths[row] for row in rows]), strict=True):
                facts[row] = fact
                _tell(on_done, len(facts))
            cache.keep([(stamps[row], facts[row]) for row in rows if lasting(facts[row])])
        return [facts[row] for row in range(len(paths))]
    finally:
        pool.shutdown(cancel_futures=True)
        cache.close()


_Stamp = tuple[bytes, int, int]
"""Absolute path (bytes, for a name need not be valid text), size, time of change in nanoseconds."""


def _stamp(path: Path) -> _Stamp:
    try:
        size, changed = stamp(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Put it back, or allow it to be read.") from error
    return os.fsencode(path.absolute()), size, changed


def _sha256(path: Path) -> str:
    try:
        if member_of(path) is not None:
            return hashlib.sha256(content(path)).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Allow it to be read, or remove it.") from error


def _tell(on_done: Callable[[int], None] | None, number: int) -> None:
    if on_done is not None:
        on_done(number)


class _Cache:
    """The facts of one kind in the sqlite file; without a connection it holds nothing and keeps nothing."""

    def __init__(self, kind: str, connection: sqlite3.Connection | None) -> None:
        self._kind, self._connection = kind, connection

    @classmethod
    def open(cls, kind: str) -> _Cache:
        from surefoot.data.embedded import cache_folder  # here, because embedded -> layout -> digest would be a circle

        try:
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(folder / CACHE_FILE, timeout=_LOCK_SECONDS)
        except (sqlite3.Error, OSError, RuntimeError) as error:  # RuntimeError: pathlib finds no home folder
            log.warning("What is found out about the files is not kept for the next time: %s.", error)
            return cls(kind, None)
        cache = cls(kind, connection)
        try:
            connection.execute(_CREATE)
        except sqlite3.Error as error:
            cache._give_up(error)
        return cache

    def find(self, stamps: Sequence[_Stamp]) -> Iterable[tuple[int, str]]:
        """(row of `stamps`, fact) of the files that have not changed."""
        if self._connection is None:
            return
        query = "SELECT fact FROM facts WHERE path = ? AND kind = ? AND size = ? AND changed = ?"
        try:
            for row, (path, size, changed) in enumerate(stamps):
                found = self._connection.execute(query, (path, self._kind, size, changed)).fetchone()
                if found is not None:
                    yield row, str(found[0])
        except sqlite3.Error as error:
            self._give_up(error)

    def keep(self, found: Sequence[tuple[_Stamp, str]]) -> None:
        """Write facts. A file changed a moment ago is left out: it could change again without a visible difference."""
        if self._connection is None:
            return
        before = time.time_ns() - SETTLED_NS
        rows = [(path, self._kind, size, changed, fact) for (path, size, changed), fact in found if changed < before]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _give_up(self, error: sqlite3.Error) -> None:
        log.warning("What is found out about the files is not kept for the next time: %s.", error)
        self.close()
        self._connection = None
