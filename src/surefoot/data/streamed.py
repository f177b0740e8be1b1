"""Which shards a folder holds: the tar files in it, or those that a list of addresses and paths names, each downloaded once."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from surefoot.data import shard_cache
from surefoot.data.downloads import download, is_remote, name_of, place_of, told_of
from surefoot.data.embedded import cache_folder
from surefoot.data.layout import SUFFIXES, listed
from surefoot.data.pictures import look
from surefoot.data.shards import COMPRESSED, comes_from, index, is_streamed, lies_at
from surefoot.errors import DataError, MissingDataError, SettingError
from surefoot.guard.texts import SMALL, read_bytes, read_text

log = logging.getLogger(__name__)

LIST = "shards.txt"
NUM_SHARDS = "nshards.txt"
MOST_SHARDS = 1_000_000  # of one pattern: more is a slip of the keyboard
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


def shards_of(folder: Path) -> list[Path]:
    """The tars of a set: in the order of its list if it has one, else those in the folder in natural order.

    Listed shards are called FOLDER/<name>.tar wherever they lie, so that names in records and draws are the same on every machine.

    Raises:
        MissingDataError: no shard, fewer than nshards.txt counts, or one that is not where the list says.
        DataError: more than nshards.txt counts or than the list names, a compressed one, a broken list or transfer.
    """
    tars = local_shards(folder)
    if (folder / LIST).is_file():
        addresses, tars = shards_named(folder), []
        for number, (name, address) in enumerate(addresses.items(), start=1):
            away = is_remote(address) and told_of(place_of(address, cache_folder() / "shards")) is None
            log.log(logging.INFO if away else logging.DEBUG, "Shard %d of %d: %s", number, len(addresses), address)
            tars.append(_listed(folder / LIST, name, address))
    _check_number(folder, tars)
    if not tars:
        raise MissingDataError(f"{folder} holds no .tar file. Put its shards there, or their addresses into {folder / LIST}.")
    return tars


def shards_named(folder: Path) -> dict[str, str]:
    """{name of the shard: its address or path} as the list of a folder has them; one that lies there under its name is not fetched.

    Raises:
        DataError: a broken list, or a tar in the folder that it does not name.
    """
    addresses, local = read_list(folder / LIST), {tar.name for tar in local_shards(folder)}
    if strange := sorted(local.difference(addresses), key=natural):
        raise DataError(
            f"{folder} holds {listed(strange)}, which {LIST} beside it does not name. Add a line for each, or move them away; without "
            f"{LIST} all tars in the folder are read."
        )
    return {name: name if name in local else address for name, address in addresses.items()}


def local_places(folder: Path) -> list[Path]:
    """Where the shards of a set lie on this machine, those that are named by an address left out."""
    named = [folder / address for address in shards_named(folder).values() if not is_remote(address)] if (folder / LIST).is_file() else []
    return [*named, *local_shards(folder)]


def local_shards(folder: Path) -> list[Path]:
    """The tar files in a folder, in natural order; hidden ones, such as macOS leaves, are none.

    Raises:
        DataError: one that is compressed, or whose ending is written in capitals.
    """
    visible = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: natural(path.name))
    if packed := [path for path in visible if path.name.lower().endswith(COMPRESSED)]:
        raise DataError(
            f"{packed[0]} is compressed, so that no image in it can be read without all before it. Unpack it by gunzip or alike."
        )
    tars = [path for path in visible if path.suffix.lower() == ".tar"]
    if loud := [path for path in tars if path.suffix != ".tar"]:
        raise DataError(f"{loud[0]} is a shard only under a name that ends in .tar, in small letters. Rename it: {loud[0].stem}.tar")
    return tars


def read_list(path: Path) -> dict[str, str]:
    """{name of the shard: its address or path} as a list has them, one or a pattern in each line; a path is relative to the list's folder.

    Raises:
        DataError: no text, no shard in it, two of one name, or what is no tar.
    """
    try:
        lines = [line.strip() for line in read_text(path, "utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    called: dict[str, str] = {}
    for address in (address for line in lines if line and not line.startswith("#") for address in expanded(line)):
        try:
            name = tar_name(address)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        if name in called:
            raise DataError(f"{path} lists two shards called {name}: {called[name]} and {address}. Give each its own name.")
        called[name] = address
    if not called:
        raise DataError(f"{path} lists no shard. Write one address in each line, or a pattern such as http://host/{{000..127}}.tar.")
    return called


def tar_name(address: str) -> str:
    """The name of the tar file that an address or a path leads to.

    Raises:
        DataError: it leads to none.
    """
    name = name_of(address)
    if not name.endswith(".tar"):
        small = " The ending is written in small letters." if name.lower().endswith(".tar") else ""
        raise DataError(f"{address} is no .tar file. Only uncompressed tar files are read.{small}")
    return name


def folders_listed(folder: Path) -> set[str]:
    """The folders beside a list that its paths lead into."""
    return {PurePosixPath(address).parts[0] for address in read_list(folder / LIST).values() if not is_remote(address)}


def fetched(address: str, beside: Path) -> Path:
    """The file of an address or a path: downloaded, if it is not in the cache, or where it lies.

    With $SUREFOOT_SHARD_CACHE a shard is downloaded again whenever it is read and not in the cache any more.

    Raises:
        MissingDataError: there is none.
        DataError: see `download`.
    """
    if is_remote(address):
        cache, most = cache_folder() / "shards", shard_cache.limit()
        if most is None:
            return download(address, cache)
        remote = shard_cache.Remote(address, cache, most)
        if not remote.known:
            os.close(remote.open())
        comes_from(remote.file, remote)
        return remote.file
    if not (beside / address).is_file():
        raise MissingDataError(f"There is no shard {beside / address}. Put it there, or correct the path {address}.")
    return beside / address


def _listed(path: Path, name: str, address: str) -> Path:
    """What a shard of the list is called; from now on it is read from where it lies.

    What is to be known of the images of a shard that may not stay is found out now, while it is there.
    """
    called = path.parent / name
    try:
        lies_at(called, file := fetched(address, path.parent))
        if is_streamed(file):
            (shard,) = index([called])
            look([called / member.name for member in shard.members if PurePosixPath(member.name).suffix.lower() in SUFFIXES])
    except DataError as error:
        raise type(error)(f"{path}: {error}") from error
    return called


def _check_number(folder: Path, tars: Sequence[Path]) -> None:
    """There are as many shards as nshards.txt says, and they are numbered without a gap if they are numbered."""
    path = folder / NUM_SHARDS
    if not path.is_file():
        return
    text = read_bytes(path, most=SMALL).decode("utf-8", "replace").strip()
    if not re.fullmatch(r"[0-9]{1,7}", text):
        raise DataError(f"{path} holds {text[:20]!r}. Write the number of .tar files in {folder}, or remove the file.")
    names, count = [tar.name for tar in tars], int(text)
    (before, after), numbers = _numbered(names, count)
    if names and not numbers:
        if len(names) != count:
            raise DataError(f"{path} counts {text} shards, and {len(tars)} were found. Get the missing ones, or correct the number.")
        return
    first_number = int(0 not in numbers and count in numbers)
    wanted = range(first_number, first_number + count)
    if gaps := [number for number in wanted if number not in numbers]:
        width = len(min(numbers.values(), default=f"{before}0{after}")) - len(before) - len(after)
        first = f"{before}{gaps[0]:0{width}d}{after}"
        raise MissingDataError(
            f"{folder / first} is not there: {path} counts {text} shards, and {len(tars)} were found. Get the "
            "missing ones, or run 'surefoot shards' again if it was interrupted."
        )
    if extra := sorted(set(names) - {numbers[number] for number in wanted}, key=natural):
        raise DataError(f"{path} counts {text} shards, and {folder} also holds {listed(extra)}. Remove what does not belong to it.")


def _numbered(names: Sequence[str], count: int) -> tuple[tuple[str, str], dict[int, str]]:
    """What stands before and behind the number in the names of shards, and {number: name}; the way that fits most names.

    Examples:
        >>> _numbered(["a2-0.tar", "a2-1.tar"], 2)
        (('a2-', '.tar'), {0: 'a2-0.tar', 1: 'a2-1.tar'})
    """
    ways: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for name in names:
        for found in re.finditer("[0-9]+", name):
            ways[name[: found.start()], name[found.end() :]].setdefault(int(found[0]), name)
    return max(ways.items(), key=lambda way: (set(range(1, count)) <= way[1].keys(), len(way[1])), default=(("", ".tar"), {}))


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts numbers in names by their value.

    Examples:
        >>> sorted(["10.tar", "2.tar", "a.tar"], key=natural)
        ['2.tar', '10.tar', 'a.tar']
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return (*((int(part), "") if part.isdecimal() else (1 << 63, part) for part in parts), (0, name))
