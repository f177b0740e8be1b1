"""Shards that lie elsewhere: a list of addresses, each downloaded once into the user's cache."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit

from surefoot.data.shards import lies_at
from surefoot.errors import DataError, MissingDataError, SettingError

log = logging.getLogger(__name__)

LIST = "shards.txt"
MOST_SHARDS = 1_000_000  # of one pattern: more is a slip of the keyboard
TRIES = 5
PAUSE = 2.0  # seconds before a broken transfer is taken up again
TIMEOUT = 60.0  # seconds without a byte
_CHUNK = 1 << 20
_NOWHERE = (http.client.UNAUTHORIZED, http.client.FORBIDDEN, http.client.NOT_FOUND, http.client.GONE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?://|(?=\w+ ))")
_TYPED = "%/:=&?~#+!$,;'@()*[]"
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expanded(pattern: str) -> list[str]:
    """Every {first..last} of a pattern in turn.

    Raises:
        SettingError: a range that is empty or absurd.

    Examples:
        >>> expanded("{08..10}.tar")
        ['08.tar', '09.tar', '10.tar']
    """
    found = _BRACES.search(pattern)
    if not found:
        return [pattern]
    first, last, width = int(found[1]), int(found[2]), len(found[1])
    rest = expanded(pattern[found.end() :])
    if not 0 < (last - first + 1) * len(rest) <= MOST_SHARDS:
        raise SettingError(f"{found[0]} in {pattern} is no range of shards. Write {{FIRST..LAST}}, {MOST_SHARDS} shards at most.")
    return [f"{pattern[: found.start()]}{number:0{width}d}{end}" for number in range(first, last + 1) for end in rest]


def listed_shards(folder: Path, cache: Path) -> list[Path]:
    """The shards that FOLDER/shards.txt lists, one address or pattern in each line, downloaded if they are not yet in the cache.

    They are called FOLDER/<name>.tar wherever they lie, so that names in records and draws are the same on every machine. A line that is
    no http address is a path, relative to the folder.

    Args:
        folder: of the list.
        cache: the folder that downloads go to.

    Raises:
        MissingDataError: an address or a file that is not there.
        DataError: an empty list, two shards of one name, a compressed one, a transfer that breaks again and again.
    """
    try:
        lines = [line.strip() for line in (folder / LIST).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{folder / LIST} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    called: dict[str, str] = {}
    for address in (address for line in lines if line and not line.startswith("#") for address in expanded(line)):
        name = _name(address)
        if not name.endswith(".tar"):
            raise DataError(f"{folder / LIST} lists {address}, which is no .tar file. List uncompressed tar files, one in each line.")
        if name in called:
            raise DataError(f"{folder / LIST} lists two shards called {name}: {called[name]} and {address}. Give each its own name.")
        called[name] = address
    if not called:
        raise DataError(
            f"{folder / LIST} lists no shard. Write one address in each line, or a pattern such as http://host/{{000..127}}.tar."
        )
    for number, (name, address) in enumerate(called.items(), start=1):
        remote = _is_remote(address)
        if remote:
            log.info("Shard %d of %d: %s", number, len(called), address)
        lies_at(folder / name, download(address, cache) if remote else folder / address)
    return [folder / name for name in called]


def _is_remote(address: str) -> bool:
    """Whether an address is one of the web; a path otherwise.

    Raises:
        DataError: an address of another kind.
    """
    scheme = _SCHEME.match(address)
    if scheme and scheme[1].lower() not in ("http", "https"):
        raise DataError(
            f"{address} in {LIST} is neither a path nor an http address. Give one of these, or copy the shards to a folder first."
        )
    return bool(scheme)


def _name(address: str) -> str:
    try:
        return PurePosixPath(unquote(urlsplit(address).path) if _is_remote(address) else address).name
    except ValueError as error:
        raise DataError(f"{address} in {LIST} is no address ({error}). Correct it.") from error


def download(address: str, cache: Path) -> Path:
    """The file of an address, from the cache if it is there; a transfer that broke goes on where it stopped.

    Raises:
        MissingDataError: the server says that there is none.
        DataError: the transfer breaks again and again; what came is kept.
    """
    target = cache / hashlib.sha256(address.encode()).hexdigest()[:16] / _name(address)
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, problem = target.with_name(target.name + ".part"), ""
    with _alone(target.with_name(target.name + ".lock")):
        if target.is_file():  # another process was faster
            return target
        with partial.open("ab") as file:
            for attempt in range(TRIES):
                if attempt:
                    time.sleep(PAUSE)
                if not (problem := _transfer(address, file)):
                    break
            kept = file.seek(0, os.SEEK_END)
        if problem:
            raise DataError(f"{address} could not be downloaded ({problem}). Run the same command again: {kept} bytes are kept.")
        partial.replace(target)  # before another process may begin
    return target


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


def _transfer(address: str, file: BinaryIO) -> str:
    """Append what is missing; what went wrong, "" if the file is whole."""
    have = file.seek(0, os.SEEK_END)
    try:
        typed = quote(address, safe=_TYPED)  # letters that an address may not hold
        request = urllib.request.Request(typed, headers={"Range": f"bytes={have}-"} if have else {})
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        return _refused(address, error, file, have)
    except ValueError as error:
        raise DataError(f"{address} in {LIST} is no address ({error}). Correct it.") from error
    except (OSError, http.client.HTTPException) as error:
        return str(error)
    with response:
        if have and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
            _empty(file)  # the server sends all of it
        length, start = response.headers.get("Content-Length"), file.tell()
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                return str(error)
            if not chunk:
                break
            file.write(chunk)
    got = file.tell() - start
    return "" if not str(length).isdigit() or got == int(length) else f"it broke after {got} of {length} bytes"


def _refused(address: str, error: urllib.error.HTTPError, file: BinaryIO, have: int) -> str:
    with error:
        if error.code in _NOWHERE:
            raise MissingDataError(f"{address} cannot be had (HTTP {error.code}). Check the address in {LIST}.") from error
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return ""  # it was whole, only not yet renamed
            _empty(file)
        return f"HTTP {error.code}"


def _empty(file: BinaryIO) -> None:
    file.truncate(0)
    file.seek(0)
