"""Members of uncompressed tar files as images: `Path("train/000000.tar/cat-1.jpg")` is an image like any other.

A tar file has no table of contents. Its headers are walked once, and where each member's bytes lie is kept: in memory, and in the user's
cache under the tar's size and time of change. From then on any member is read at random by one system call, from as many threads as there
are, so that splits, draws, shuffling and resuming know nothing of shards. Shards come from strangers: nothing is ever written under a
member's name, and no size that a header claims is believed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tarfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, Protocol

from surefoot.errors import DataError, MissingDataError
from surefoot.guard.limits import check_image_size

MOST_OPEN = 64  # files kept open at a time
MOST_TEXT = 1 << 16  # bytes of a caption's or a label's file: what is longer is neither
MOST_IMAGE = 1 << 28  # bytes of an image's file
TEXTS = (".cls", ".json", ".txt")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
# What tarfile raises for damaged bytes, in a header or in what a header points to, and json for a text in them.
BROKEN = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, LookupError, RecursionError)
_MAGIC = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\x00": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_MOST_HEADER = 1 << 20
_KIND = "shard-1"  # of the fact in the cache: another number for another form
_Stamp = tuple[int, int]
"""Size and time of change in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its bytes' place, and its text if it is a short one that may hold a label or a caption."""

    name: str
    offset: int
    size: int
    text: str | None = None


@dataclass(frozen=True)
class Shard:
    """A tar file: `path` is what it is called in the paths of its members, `file` where it lies; the two differ for a downloaded one."""

    path: Path
    file: Path
    stamp: _Stamp
    members: tuple[Member, ...]


class Remote(Protocol):
    """A shard that is on the disk only while it is used, such as `surefoot.data.shard_cache.Remote`."""

    stamp: _Stamp

    def open(self) -> int:
        """The number of its open file, to be closed; it is got now if it is not there."""


class _Descriptor:
    """An open file that is closed when nobody holds it any more, so that no thread reads from a number that means another file now."""

    def __init__(self, file: Path, expected: _Stamp) -> None:
        self.number = os.open(file, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number)
        if _stamp_of(self.number) != expected:
            raise OSError("it changed while it was opened")


class _Places(NamedTuple):
    """Where the images of a tar lie, image -> offset and size; `mark` is a digest of all that is known of the tar, labels among it."""

    stamp: _Stamp
    images: dict[str, tuple[int, int]]
    mark: str


_lock, _indexing = threading.Lock(), threading.Lock()
_places: dict[str, _Places] = {}  # of each tar, by its path
_elsewhere: dict[str, Path] = {}  # where a tar lies that is called otherwise
_remote: dict[str, Remote] = {}  # what gets a tar, by the file that it lies in while it is there
_open: OrderedDict[tuple[str, _Stamp], _Descriptor] = OrderedDict()  # the one used last stands last


def member_of(path: Path) -> tuple[Path, str] | None:
    """The tar file and the member's name, if a path leads into a tar file. A folder that is called like one is a folder.

    Examples:
        >>> member_of(Path("train/000000.tar/cats/1.jpg"))[1], member_of(Path("train/cats/1.jpg"))
        ('cats/1.jpg', None)
    """
    text, end = str(path), 0
    while (found := text.find(f".tar{os.sep}", end)) >= 0:
        end = found + len(".tar")
        if text[:end] in _places or text[:end] in _elsewhere or not os.path.isdir(text[:end]):  # noqa: PTH112 - a Path costs ten times as much
            return Path(text[:end]), text[end + 1 :].replace(os.sep, "/")
    return None


def content(path: Path, most: int = -1) -> bytes:
    """The bytes of an image, a file or a member of a tar; the first `most` of them, all if it is negative.

    Raises:
        OSError: a file that cannot be read.
        DataError: a member that cannot, or a tar that has changed since it was opened; tar and member are named.
    """
    if (found := member_of(path)) is None:
        with path.open("rb") as file:
            return file.read(most)
    tar, name = found
    stamp, (offset, size) = _place(path, tar, name)
    size = min(size, most) if most >= 0 else size
    check_image_size(path, size)
    try:
        read = _pread(_file(tar), stamp, offset, size)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}). Put {tar} back, or allow it to be read.") from error
    if len(read) < size:
        raise DataError(f"{path} cannot be read: {tar} ends before it. Get the shard again.")
    return read


def source(path: Path) -> Path | io.BytesIO:
    """What Pillow opens: the path of a file, or the bytes of a member."""
    return path if member_of(path) is None else io.BytesIO(content(path))


def stamp(path: Path) -> _Stamp:
    """Size and time of change; a member has its own size and its tar's time, so that the tar need not be read for it.

    Raises:
        OSError: there is no such file.
        DataError: there is no such tar, or no such member in it.
    """
    if (found := member_of(path)) is None:
        return _stamp_of(path)
    (_, changed), (_, size) = _place(path, *found)
    return size, changed


def is_there(path: Path) -> bool:
    """Whether a path names a file, or a member of a tar as it is now.

    Raises:
        DataError: the tar is broken.
    """
    try:
        if (found := member_of(path)) is None or not _is_had(_file(found[0])):
            return found is None and path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise
    return found[1] in _placed(found[0], anew=True).images


def lies_at(path: Path, file: Path) -> None:
    """From now on the tar called `path` is read from `file`, such as a downloaded shard, whose own place is different on each machine."""
    _elsewhere[str(path)] = file


def comes_from(file: Path, remote: Remote) -> None:
    """From now on a tar is got by `remote` whenever it is read, and need not be on the disk in between."""
    _remote[str(file)] = remote


def is_streamed(file: Path) -> bool:
    """Whether a tar need not be on the disk while it is not read."""
    return str(file) in _remote


def remote_of(path: Path) -> tuple[str, Remote] | None:
    """The file and what gets it, of an image in a shard that is not kept on the disk; None for any other."""
    found = member_of(path)
    file = str(_file(found[0])) if found else ""
    return (file, _remote[file]) if file in _remote else None


def open_tar(file: Path) -> BinaryIO:
    """A tar file, open; it is not given up while it is."""
    return os.fdopen(_remote[str(file)].open(), "rb") if str(file) in _remote else file.open("rb")


def index(paths: Sequence[Path], on_done: Callable[[int], None] | None = None) -> list[Shard]:
    """What some tar files hold. Headers are walked in threads, and only where the cache does not know the file.

    Args:
        paths: the tars, as members' paths begin.
        on_done: told how many are done.

    Raises:
        MissingDataError: one is not there.
        DataError: one that is truncated, damaged, compressed, or holds names that lead out of it, links or two members of one name.
    """
    from surefoot.data.digest import remember  # here, because digest reads members

    for path in paths:
        if not _is_had(_file(path)):
            raise MissingDataError(f"There is no shard {path}. Put it back, or give the folder without it.")
    stamps = [_stamp_of(_file(path)) for path in paths]  # before they are read, as in `remember`
    facts = remember(_KIND, [_file(path) for path in paths], _walked, on_done)
    found = []
    for path, one, fact in zip(paths, stamps, facts, strict=True):
        members = tuple(Member(*fields) for fields in json.loads(fact))
        images = {member.name: (member.offset, member.size) for member in members if member.text is None}
        _places[str(path)] = _Places(one, images, hashlib.sha256(fact.encode()).hexdigest())
        found.append(Shard(path, _file(path), one, members))
    return found


def walk(path: Path) -> Iterator[tuple[tarfile.TarInfo, BinaryIO]]:
    """Every member of a tar, and the open file to read it from, up to the end mark.

    Raises:
        tarfile.TarError, EOFError and others of `BROKEN`: it is truncated, damaged or compressed, or goes on behind its end mark.
    """
    with open_tar(path) as file:
        head = file.read(6)
        for magic, tool in _MAGIC.items():
            if head.startswith(magic):
                raise tarfile.ReadError(f"it is compressed; unpack it by {tool}")
        file.seek(0)
        opened = tarfile.open(fileobj=_Bounded(file), mode="r:")  # type: ignore[call-overload]  # noqa: SIM115 - `file` is closed
        while (member := opened.next()) is not None:
            if member.size < 0:  # else tarfile goes back, and round and round
                raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
            yield member, file
            opened.members.clear()  # else each stays in memory
        size = os.fstat(file.fileno()).st_size
        file.seek(opened.offset)  # tarfile takes a header that is cut off or damaged for the end
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise EOFError(f"there is neither a header nor an end mark at byte {opened.offset} of {size}")
        while rest := file.read(_MOST_HEADER):
            if rest.strip(tarfile.NUL):
                raise EOFError("it goes on behind its end mark, as joined archives do; keep them apart")


def damage(path: Path) -> str:
    """What is wrong with a tar file, walked to its end mark; "" if it is whole."""
    try:
        for member, file in walk(path):
            check_member(member, file, 1 << 62, "a file")
    except BROKEN as error:
        return str(error) or type(error).__name__
    return ""


def check_member(member: tarfile.TarInfo, file: BinaryIO, most: int, what: str) -> None:
    """The member's bytes lie in the file, and are not too many.

    Raises:
        ValueError, EOFError: they do not, or are.
    """
    if member.issparse():
        raise ValueError(f"{member.name} is a sparse file")
    if not 0 <= member.size <= most:
        raise ValueError(f"{member.name} has {member.size} bytes, too many for {what}")
    if member.offset_data + member.size > os.fstat(file.fileno()).st_size:
        raise EOFError(f"it ends in the middle of {member.name}")


def text_of(member: tarfile.TarInfo, file: BinaryIO) -> str:
    """The member's bytes as text.

    Raises:
        UnicodeDecodeError: they are not UTF-8.
    """
    file.seek(member.offset_data)
    return file.read(member.size).decode("utf-8")


class _Bounded:
    """A file as tarfile sees it: a header that claims petabytes makes nobody ask for so much memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise ValueError(f"a header claims {size} bytes")
        return self._read(size)


def _walked(path: Path) -> str:
    """The members of a tar as JSON: name, offset, size, text. Hidden files, which macOS adds, are left out."""
    found: dict[str, Member] = {}
    try:
        for member, file in walk(path):
            name = _checked(path, member)
            if member.isdir() or any(part.startswith(".") for part in name.split("/")):
                continue
            if not member.isreg():
                raise DataError(f"The shard {path} holds {name}, which is a link or a device. Pack the files themselves.")
            if name in found:
                raise DataError(f"The shard {path} holds {name} twice. Pack it again with each name once.")
            check_member(member, file, 1 << 62, "a file")
            found[name] = Member(name, member.offset_data, member.size, _short_text(member, file))
    except DataError:
        raise
    except BROKEN as error:
        raise DataError(f"The shard {path} is broken: {error}. Get or pack it again.") from error
    return json.dumps([[one.name, one.offset, one.size, one.text] for one in found.values()])


def _checked(path: Path, member: tarfile.TarInfo) -> str:
    """The member's name as paths have it, without `./`."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or "\0" in member.name:
        raise DataError(f"The shard {path} holds {member.name!r}, a name that leads out of it. Pack it again with relative names.")
    return name.as_posix()


def _short_text(member: tarfile.TarInfo, file: BinaryIO) -> str | None:
    if not member.name.lower().endswith(TEXTS) or member.size > MOST_TEXT:
        return None
    try:
        return text_of(member, file)
    except UnicodeDecodeError:
        return None


def _file(tar: Path) -> Path:
    return _elsewhere.get(str(tar), tar)


def _is_had(file: Path) -> bool:
    return is_streamed(file) or file.is_file()


def _stamp_of(file: Path | int) -> _Stamp:
    if str(file) in _remote:
        return _remote[str(file)].stamp
    status = os.stat(file)  # noqa: PTH116 - of a descriptor too
    return status.st_size, status.st_mtime_ns


def _place(path: Path, tar: Path, name: str) -> tuple[_Stamp, tuple[int, int]]:
    """The tar's stamp, and where the member lies."""
    found = _placed(tar)
    if name not in found.images:
        raise MissingDataError(f"{path} is not there: the shard {tar} holds no {name}. Open the data set again, or put the shard back.")
    return found.stamp, found.images[name]


def _placed(tar: Path, *, anew: bool = False) -> _Places:
    """The index of a tar; of one that has changed since only to open data with it `anew`: the known labels are those of the old one.

    Raises:
        DataError: it has changed. One that was only copied or touched has not.
    """
    try:
        now = _stamp_of(_file(tar))
    except OSError as error:
        raise MissingDataError(f"The shard {tar} cannot be read ({error.strerror}). Put it back, or allow it to be read.") from error
    known = _places.get(str(tar))
    if known is not None and known.stamp == now:
        return known
    with _indexing:  # threads that come together wait for the first
        known = _places.get(str(tar))
        if known is None or known.stamp != now:
            index([tar])
            if known is not None and not anew and _places[str(tar)].mark != known.mark:
                _places[str(tar)] = known  # whoever comes next is told too
                raise DataError(
                    f"The shard {tar} has changed since the data set was opened: its labels are of no use. Run the command again."
                )
        return _places[str(tar)]


def _pread(file: Path, expected: _Stamp, offset: int, size: int) -> bytes:
    """Bytes of a file that stays open; the number of open files is bounded."""
    if str(file) in _remote:  # not kept open, so that it can be given up for others
        with open_tar(file) as tar:
            return os.pread(tar.fileno(), size, offset)
    if not hasattr(os, "pread"):  # Windows
        with file.open("rb") as opened:
            opened.seek(offset)
            return opened.read(size)
    with _lock:
        held = _open.pop((str(file), expected), None) or _Descriptor(file, expected)
        _open[str(file), expected] = held
        while len(_open) > MOST_OPEN:
            _open.popitem(last=False)
    parts: list[bytes] = []
    while size > 0 and (part := os.pread(held.number, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)
