"""Shards that lie elsewhere: a list of addresses, each downloaded once into the user's cache."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from surefoot.data.downloads import download, is_remote, name_of
from surefoot.data.shards import lies_at
from surefoot.errors import DataError, SettingError

log = logging.getLogger(__name__)

LIST = "shards.txt"
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
        name = name_of(address)
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
        remote = is_remote(address)
        if remote:
            log.info("Shard %d of %d: %s", number, len(called), address)
        lies_at(folder / name, download(address, cache) if remote else folder / address)
    return [folder / name for name in called]
