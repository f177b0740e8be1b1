"""Remote shards in a bounded place on the disk: fetched when they are read, and given up, the one used longest ago first, for others.

Without $SUREFOOT_SHARD_CACHE every shard is downloaded once and kept. With it, such as 20GB, no more than that lies in the cache at a
time. What was found out about a shard (its members, their digests, what their images are) is kept beside it under its size and its time
of change on the server, so that a shard that is gone from the disk is fetched again only when one of its images is wanted.

All that one process must know of another lies on the disk: who reads a shard holds a shared lock on its file, who gives it up needs the
exclusive one, and whoever makes room holds one on the folder. The system takes the locks of a process that is killed, and its half shard
is gone on with or given up like any other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from surefoot.data.downloads import alone_with, fill, place_of, settle, told_of, told_of_disk
from surefoot.data.shards import remote_of
from surefoot.errors import DataError, SettingError

log = logging.getLogger(__name__)

LIMIT = "SUREFOOT_SHARD_CACHE"
PATIENCE = 120.0  # seconds that room is waited for
_WAIT = 0.05
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)B?\s*", re.IGNORECASE)
_ROOM = ".room.lock"


def too_little(paths: Iterable[Path], at_a_time: int | None = None) -> str:
    """Why the cache is too small for images that are read in a random order; "" if it is not.

    Args:
        paths: of the images.
        at_a_time: how many of their shards are read in turns; all of them if None.
    """
    remotes = dict(found for path in {_tar(path): path for path in paths}.values() if (found := remote_of(path)))
    sizes = sorted((remote.stamp[0] for remote in remotes.values()), reverse=True)[:at_a_time]
    if not sizes or (most := limit()) is None or sum(sizes) <= most:
        return ""
    return f"{len(sizes)} shards of {sum(sizes)} bytes are read in turns, and {LIMIT} allows {most}"


def _tar(path: Path) -> str:
    return str(path).rpartition(f".tar{os.sep}")[0]


def limit() -> int | None:
    """How many bytes of remote shards may lie on the disk, as $SUREFOOT_SHARD_CACHE says; None for all of them.

    Raises:
        SettingError: it says something else, or files cannot be locked here.
    """
    text = os.environ.get(LIMIT, "").strip()
    if not text:
        return None
    found = _SIZE.fullmatch(text)
    if not found or not float(found[1]):
        raise SettingError(f"{LIMIT} is {text!r}. Write a size such as 20GB or 500MB, or leave it out to keep every shard.")
    if os.name == "nt":
        raise SettingError(f"{LIMIT} needs locks on files, which are not supported on Windows. Leave it out: every shard is kept then.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


@dataclass
class Remote:
    """A shard that lies at an address, and in the cache while it is used.

    `stamp` is its size and its time of change as the server tells them; all that is known of its members is kept under it.
    """

    address: str
    cache: Path
    most: int
    stamp: tuple[int, int] = (0, 0)
    known: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if (found := told_of(self.file)) is not None:
            self.stamp, self.known = found, True

    @property
    def file(self) -> Path:
        """Where it lies while it is in the cache."""
        return place_of(self.address, self.cache)

    def open(self) -> int:
        """The number of its open file, which is not given up before it is closed; fetched now if it is not in the cache.

        Raises:
            MissingDataError: the server says that there is none.
            DataError: the transfer breaks again and again; there is no room; or the shard on the server is another one by now.
        """
        number = _locked(self.file) if self.known else None
        if number is None:
            with told_of_disk(self.address, self.file):
                number = self._got()
        if not self._is_known(number):
            os.close(number)
            raise DataError(
                f"{self.address} has changed on its server since the data were opened, so that what is known of its images is of no use. "
                "Run the command again."
            )
        with contextlib.suppress(OSError):  # a folder that another process changes at this moment; the order of use is no matter of truth
            os.utime(self.file.parent)
        return number

    def _got(self) -> int:
        """The number of its open file, from the cache if another process was faster, else from the server."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with alone_with(self.file):
                if told_of(self.file) is None:  # nothing, or a file of an older version, which does not say what state of it this is
                    self.file.unlink(missing_ok=True)
                if not self.file.is_file():
                    return self._fetch()
            if (number := _locked(self.file)) is not None:
                return number

    def _fetch(self) -> int:
        """The number of its open file, locked before it has its name, so that nobody gives it up in between."""
        log.info("Fetching %s", self.address)
        partial, tag = self.file.with_name(self.file.name + ".part"), self.file.with_name(self.file.name + ".tag")
        fill(self.address, partial, tag, self._room)
        settle(partial, tag, self.file)
        number = os.open(partial, os.O_RDONLY)
        _flock(number, shared=True)
        partial.replace(self.file)
        tag.unlink(missing_ok=True)
        self._wanted.unlink(missing_ok=True)
        return number

    def _is_known(self, number: int) -> bool:
        """Whether an open file is the one that is known; the first one that comes is."""
        status = os.fstat(number)
        found = status.st_size, status.st_mtime_ns
        if not self.known:
            self.stamp, self.known = found, True
        return found == self.stamp

    @property
    def _wanted(self) -> Path:
        return self.file.with_name(self.file.name + ".want")

    def _room(self, size: int) -> None:
        """Room for all of the shard, of which `size` bytes are known to come; it is taken by being written down."""
        if size > self.most:
            raise DataError(f"{self.address} has {size} bytes, and {LIMIT} allows {self.most} for all shards. Allow more.")
        until = time.monotonic() + PATIENCE
        while True:
            with alone_with(self.cache / _ROOM):
                slots = sorted((one for one in _slots(self.cache) if one.folder != self.file.parent), key=lambda one: one.used)
                others = sum(one.size for one in slots)
                for slot in slots:
                    if others + size > self.most and slot.give_up():
                        others -= slot.size
                if others + size <= self.most:
                    self._wanted.write_text(str(size), encoding="utf-8")
                    return
            if time.monotonic() > until:
                raise DataError(
                    f"There is no room for {self.address} ({size} bytes): other processes read or fetch shards of {others} bytes, and "
                    f"{LIMIT} allows {self.most}. Allow more, or run fewer at a time."
                )
            time.sleep(_WAIT)


@dataclass(frozen=True)
class _Slot:
    """The folder of one shard in the cache: how many bytes it takes, or will, and when it was used last."""

    folder: Path
    size: int
    used: float

    def give_up(self) -> bool:
        """Whether its bytes are off the disk now: not if somebody reads or fetches it."""
        for path in self.folder.glob("*.tar"):
            number = _opened(path)
            if number is None:
                continue
            try:
                if not _flock(number, shared=False):
                    return False
                path.unlink()
            finally:
                os.close(number)
        for path in self.folder.glob("*.part"):
            with _free(path.with_suffix(".lock")) as free:
                if not free:
                    return False
                for left in (path, path.with_suffix(".tag"), path.with_suffix(".want")):
                    left.unlink(missing_ok=True)
        for path in self.folder.glob("*.want"):
            with _free(path.with_suffix(".lock")) as free:
                if not free:
                    return False
                path.unlink(missing_ok=True)
        return True


def _slots(cache: Path) -> list[_Slot]:
    """Every shard that takes room."""
    slots = [_slot(folder) for folder in cache.iterdir() if folder.is_dir()]
    return [slot for slot in slots if slot.size]


def _slot(folder: Path) -> _Slot:
    while True:
        size = 0
        try:
            for path in folder.iterdir():
                if path.suffix in (".tar", ".part"):
                    size = max(size, path.stat().st_size)
                elif path.suffix == ".want":
                    size = max(size, int(path.read_text(encoding="utf-8") or 0))
            return _Slot(folder, size, folder.stat().st_mtime)
        except FileNotFoundError:  # given up or finished at this moment: look again, since half of what is there would be too little
            continue


@contextlib.contextmanager
def _free(lock: Path) -> Iterator[bool]:
    """Whether nobody fetches the shard of this lock; nobody begins to before the end."""
    number = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield _flock(number, shared=False)
    finally:
        os.close(number)


def _opened(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None


def _locked(path: Path) -> int | None:
    """The number of an open file that is not given up before it is closed; None if it is not there, or is being given up."""
    number = _opened(path)
    if number is None:
        return None
    if _flock(number, shared=True) and os.fstat(number).st_nlink:
        return number
    os.close(number)
    return None


def _flock(number: int, *, shared: bool) -> bool:
    """Whether the lock on an open file is ours now; nobody waits for it.

    Raises:
        DataError: the file system has no locks.
    """
    import fcntl  # here, because Windows has none

    try:
        fcntl.flock(number, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise DataError(
            f"Shards in the cache cannot be locked ({error.strerror or error}), which {LIMIT} needs. Name a folder on another disk by "
            f"SUREFOOT_CACHE, or leave {LIMIT} out: every shard is kept then."
        ) from error
    return True
