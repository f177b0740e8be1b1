"""Downloading a tar file into the user's cache: once, whole, and from where a transfer broke."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from surefoot.data.shards import damage
from surefoot.errors import DataError, MissingDataError

TRIES = 5
PAUSE = 2.0  # seconds before a broken transfer is taken up again
TIMEOUT = 60.0  # seconds without a byte, or in which next to nothing comes
LEAST = 1 << 16  # bytes in that time
_CHUNK = 1 << 20
_NOWHERE = (http.client.UNAUTHORIZED, http.client.FORBIDDEN, http.client.NOT_FOUND, http.client.GONE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?://|(?=\w+ ))")
_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/(?:([0-9]+)|\*)")
_TYPED = "%/:=&?~#+!$,;'@()*[]"


def is_remote(address: str) -> bool:
    """Whether an address is one of the web; a path otherwise.

    Raises:
        DataError: an address of another kind.
    """
    scheme = _SCHEME.match(address)
    if scheme and scheme[1].lower() not in ("http", "https"):
        raise DataError(f"{address} is neither a path nor an http address. Give one of these, or copy the shards to a folder first.")
    return bool(scheme)


def name_of(address: str) -> str:
    """The name of the file that an address or a path leads to.

    Raises:
        DataError: it is none.

    Examples:
        >>> name_of("https://host/photos/0%201.tar?download=true"), name_of("parts/1.tar")
        ('0 1.tar', '1.tar')
    """
    try:
        return PurePosixPath(unquote(urlsplit(address).path) if is_remote(address) else address).name
    except ValueError as error:
        raise DataError(f"{address} is no address ({error}). Correct it.") from error


class _Answer(NamedTuple):
    """What came of a transfer: what went wrong, "" if nothing that can be seen; and whether the server said that this is all."""

    problem: str = ""
    whole: bool = False


def download(address: str, cache: Path) -> Path:
    """The tar file of an address, from the cache if it is there; a transfer that broke goes on where it stopped.

    It gets its place in the cache when it has been walked to its end mark: an answer that tells no length may be cut off anywhere. A
    transfer goes on only in the file that it began in, as told by its ETag or its time of change; else it begins anew.

    Raises:
        MissingDataError: the server says that there is none.
        DataError: the transfer breaks again and again, or the disk is full, and what came is kept; or the file there is no whole tar.
    """
    target = place_of(address, cache)
    if target.is_file():
        return target
    partial, tag = target.with_name(target.name + ".part"), target.with_name(target.name + ".tag")
    with told_of_disk(address, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with alone_with(target):
            if not target.is_file():  # else another process was faster
                fill(address, partial, tag)
                settle(partial, tag, target)
                partial.replace(target)  # before another process may begin
                tag.unlink(missing_ok=True)
    return target


def place_of(address: str, cache: Path) -> Path:
    """Where the file of an address lies in the cache."""
    return cache / hashlib.sha256(address.encode()).hexdigest()[:16] / name_of(address)


@contextmanager
def told_of_disk(address: str, target: Path) -> Iterator[None]:
    """What a disk refuses becomes a sentence; what went wrong in a transfer is none of its errors.

    Raises:
        DataError: it cannot be written, such as a full one.
    """
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        partial, tag = target.with_name(target.name + ".part"), target.with_name(target.name + ".tag")
        raise DataError(
            f"{error.filename or partial} cannot be written ({error.strerror or error}), which {address} is downloaded to. Make room "
            "there, or allow it to be written, or name another folder by SUREFOOT_CACHE, and run the same command again: "
            f"{kept(partial, tag)} bytes are kept."
        ) from error


def settle(partial: Path, tag: Path, target: Path) -> None:
    """Give a whole file the time of change that the server tells, or one made of its ETag, and write size and time down for `told_of`.

    So the same file has the same size and time whenever it is downloaded, and what is known of it stays known.
    """
    known = tag.read_text(encoding="latin-1") if tag.is_file() else ""
    seconds = int(hashlib.sha256(known.encode("latin-1")).hexdigest()[:7], 16) if known else 0
    with suppress(ValueError):
        seconds = int(parsedate_to_datetime(known).timestamp())
    os.utime(partial, (seconds, seconds))
    about = _about(target)
    written = about.with_name(about.name + ".new")
    written.write_text(json.dumps([partial.stat().st_size, seconds * 10**9]), encoding="utf-8")
    written.replace(about)


def told_of(target: Path) -> tuple[int, int] | None:
    """Size and time of change of a file that was downloaded, whether it is there or not any more; None if it never was."""
    try:
        size, changed = json.loads(_about(target).read_text(encoding="utf-8"))
        return int(size), int(changed)
    except (OSError, ValueError, TypeError):
        return None


def _about(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def kept(partial: Path, tag: Path) -> int:
    """How many bytes the next transfer need not get again."""
    return partial.stat().st_size if partial.is_file() and tag.is_file() and tag.stat().st_size else 0


def fill(address: str, partial: Path, tag: Path, room: Callable[[int], None] | None = None) -> None:
    """Fill a file with the whole tar of an address; `tag` tells which state of it the bytes are from.

    Args:
        address: where it lies.
        partial: the file.
        tag: a file of its own.
        room: called with the size that the file will have, or has by now where the server does not tell, before it grows.

    Raises:
        MissingDataError: the server says that there is none.
        DataError: as in `download`.
    """
    problem = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE)
        with partial.open("ab") as file:
            problem, whole = _transfer(address, file, tag, room)
        if problem:
            continue
        if not (problem := damage(partial)):
            return
        if whole:
            partial.unlink()
            tag.unlink(missing_ok=True)
            raise DataError(f"{address} is no whole tar file: {problem}. Put a whole one there, or leave it out of the list.")
    raise DataError(f"{address} could not be downloaded ({problem}). Run the same command again: {kept(partial, tag)} bytes are kept.")


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """One process, and one thread, at a time does what this surrounds with a file."""
    with path.with_name(path.name + ".lock").open("ab") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            pass
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _transfer(address: str, file: BinaryIO, tag: Path, room: Callable[[int], None] | None = None) -> _Answer:
    """Append what is missing, if the file there is still the one that the bytes are from, which `tag` tells; else get all of it."""
    known = tag.read_text(encoding="latin-1") if tag.is_file() else ""
    if not known:
        _empty(file)  # the server may have another file by now, and there is no telling
    have = file.seek(0, os.SEEK_END)
    try:
        typed = quote(address, safe=_TYPED)  # letters that an address may not hold
        request = urllib.request.Request(typed, headers={"Range": f"bytes={have}-", "If-Range": known} if have else {})
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        return _refused(address, error, file, have, known)
    except ValueError as error:
        raise DataError(f"{address} is no address ({error}). Correct it.") from error
    except (OSError, http.client.HTTPException) as error:
        return _Answer(str(error))
    with response:
        if response.status == http.client.PARTIAL_CONTENT:
            part = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if not part or int(part[1]) != have or _is_another(response.headers, known):
                _empty(file)
                return _Answer("the server sent another part than was asked for")
            return _received(response, file, int(part[2]) if part[2] else None, room)
        _empty(file)  # the server sends all of it
        _keep(tag, _tag(response.headers))
        length = response.headers.get("Content-Length", "")
        return _received(response, file, int(length) if length.isdecimal() else None, room)


def _received(response: http.client.HTTPResponse, file: BinaryIO, total: int | None, room: Callable[[int], None] | None = None) -> _Answer:
    """Append what a server sends, up to the size that the file is to have, if that is known."""
    if room and total is not None:
        room(total)
    since, before = time.monotonic(), file.tell()
    while total is None or file.tell() < total:
        try:
            chunk = response.read1(_CHUNK if total is None else min(_CHUNK, total - file.tell()))  # not `read`: it waits for all of them
        except (OSError, http.client.HTTPException) as error:
            return _Answer(str(error))
        if not chunk:
            break
        if room and total is None:
            room(file.tell() + len(chunk))
        file.write(chunk)
        file.flush()  # a process that is killed has not waited in vain
        if (now := time.monotonic()) - since > TIMEOUT:
            if file.tell() - before < LEAST:
                return _Answer(f"only {file.tell() - before} bytes came in {now - since:.0f} seconds")
            since, before = now, file.tell()
    if total is None or file.tell() == total:
        return _Answer(whole=total is not None)
    return _Answer(f"it broke after {file.tell()} of {total} bytes")


def _tag(headers: Message) -> str:
    """By what a server tells one state of a file from another: a strong ETag, or the time of change."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _is_another(headers: Message, known: str) -> bool:
    """Whether an answer says that the file is not the known one any more; some servers send a part of it all the same."""
    return headers.get("ETag" if known.startswith('"') else "Last-Modified", known) != known


def _keep(path: Path, tag: str) -> None:
    if tag:
        path.write_text(tag, encoding="latin-1")
    else:
        path.unlink(missing_ok=True)


def _refused(address: str, error: urllib.error.HTTPError, file: BinaryIO, have: int, known: str) -> _Answer:
    with error:
        if error.code in _NOWHERE:
            raise MissingDataError(f"{address} cannot be had (HTTP {error.code}). Check the address.") from error
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            if error.headers.get("Content-Range") == f"bytes */{have}" and not _is_another(error.headers, known):
                return _Answer(whole=True)  # all of it had come
            _empty(file)
        return _Answer(f"HTTP {error.code}")


def _empty(file: BinaryIO) -> None:
    file.truncate(0)
    file.seek(0)
