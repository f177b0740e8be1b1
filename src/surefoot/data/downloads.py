"""Downloading a tar file into the user's cache: once, whole, and from where a transfer broke."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from surefoot.data.shards import damage
from surefoot.errors import DataError, MissingDataError

TRIES = 5
PAUSE = 2.0  # seconds before a broken transfer is taken up again
TIMEOUT = 60.0  # seconds without a byte
_CHUNK = 1 << 20
_NOWHERE = (http.client.UNAUTHORIZED, http.client.FORBIDDEN, http.client.NOT_FOUND, http.client.GONE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?://|(?=\w+ ))")
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

    It gets its place in the cache when it has been walked to its end mark: an answer that tells no length may be cut off anywhere.

    Raises:
        MissingDataError: the server says that there is none.
        DataError: the transfer breaks again and again, and what came is kept; or the file there is no whole tar.
    """
    target = cache / hashlib.sha256(address.encode()).hexdigest()[:16] / name_of(address)
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    with _alone(target.with_name(target.name + ".lock")):
        if not target.is_file():  # else another process was faster
            _get(address, partial)
            partial.replace(target)  # before another process may begin
    return target


def _get(address: str, partial: Path) -> None:
    """Fill a file with the whole tar of an address."""
    problem = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE)
        with partial.open("ab") as file:
            problem, whole = _transfer(address, file)
        if problem:
            continue
        if not (problem := damage(partial)):
            return
        if whole:
            partial.unlink()
            raise DataError(f"{address} is no whole tar file: {problem}. Put a whole one there, or leave it out of the list.")
    kept = partial.stat().st_size
    raise DataError(f"{address} could not be downloaded ({problem}). Run the same command again: {kept} bytes are kept.")


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time does what this surrounds."""
    with lock.open("ab") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            pass
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _transfer(address: str, file: BinaryIO) -> _Answer:
    """Append what is missing."""
    have = file.seek(0, os.SEEK_END)
    try:
        typed = quote(address, safe=_TYPED)  # letters that an address may not hold
        request = urllib.request.Request(typed, headers={"Range": f"bytes={have}-"} if have else {})
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        return _refused(address, error, file, have)
    except ValueError as error:
        raise DataError(f"{address} is no address ({error}). Correct it.") from error
    except (OSError, http.client.HTTPException) as error:
        return _Answer(str(error))
    with response:
        if have and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
            _empty(file)  # the server sends all of it
        length, start = response.headers.get("Content-Length"), file.tell()
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                return _Answer(str(error))
            if not chunk:
                break
            file.write(chunk)
    got = file.tell() - start
    if not str(length).isdigit():
        return _Answer()
    return _Answer(whole=True) if got == int(length) else _Answer(f"it broke after {got} of {length} bytes")


def _refused(address: str, error: urllib.error.HTTPError, file: BinaryIO, have: int) -> _Answer:
    with error:
        if error.code in _NOWHERE:
            raise MissingDataError(f"{address} cannot be had (HTTP {error.code}). Check the address.") from error
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return _Answer(whole=True)  # all of it had come
            _empty(file)
        return _Answer(f"HTTP {error.code}")


def _empty(file: BinaryIO) -> None:
    file.truncate(0)
    file.seek(0)
