"""Writing into a folder on a disk that may be full or refuse, by one command at a time."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from surefoot.errors import DataError
from surefoot.folders import runs
from surefoot.guard.texts import SMALL, parse_json, read_bytes

log = logging.getLogger(__name__)


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


@contextmanager
def alone(folder: Path, command: str, option: str, kept: str, *, doing: str | None = None) -> Iterator[None]:
    """The folder, made now, for this process alone among those of the same command; other commands write other files there.

    A file that names process and machine stands for it, and is taken away in the end. One that a process of this machine left behind, such
    as one that was killed, is taken over, which the log says.

    Args:
        folder: where is written.
        command: such as "caption", of which only one runs at a time.
        option: how another place is named.
        kept: what is not lost.
        doing: what others are told that is done, where one lock serves several commands; `command` otherwise.

    Raises:
        DataError: another process is at it, or may be; or the folder cannot be written.
    """
    lock = folder / f".{command}.lock"
    own = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), **({"doing": doing} if doing else {})})
    with writing(folder, option, kept):
        while not _made(lock, own):
            _take_away(lock, command, option)
    try:
        yield
    finally:
        if _text(lock) == own:
            lock.unlink(missing_ok=True)


@dataclass(frozen=True)
class Holder:
    """The process that a lock names: its number, its machine, and whether it runs, None if this machine cannot know."""

    pid: int
    host: str
    runs: bool | None


def holder(folder: Path, command: str) -> Holder | None:
    """Who holds a folder for a command by `alone`; None if nobody does, or nobody that says its name."""
    try:
        owner = parse_json(_text(folder / f".{command}.lock") or "")
        pid, host = int(owner["pid"]), str(owner["host"])
    except (ValueError, TypeError, KeyError):
        return None
    return Holder(pid, host, pid == os.getpid() or runs(pid) if host == socket.gethostname() else None)


def _made(lock: Path, own: str) -> bool:
    """Whether the lock was not there, and is now ours."""
    try:
        file = lock.open("x", encoding="utf-8")  # O_EXCL: of several processes one makes it
    except FileExistsError:
        return False
    try:
        with file:
            file.write(own)
    except OSError:  # a full disk: an empty file would keep everybody out
        lock.unlink(missing_ok=True)
        raise
    return True


def _take_away(lock: Path, command: str, option: str) -> None:
    """Take away a lock whose process is gone; to one that may still be at it the folder is left."""
    text = _text(lock)
    if text is None:
        return
    try:
        owner = parse_json(text)
        pid, host, doing = int(owner["pid"]), str(owner["host"]), str(owner.get("doing", command))
    except (ValueError, TypeError, KeyError):
        pid, host, doing = 0, "", command
    if pid > 0 and host == socket.gethostname() and not runs(pid):
        if _moved_aside(lock, text):
            log.warning("%s was left behind by process %d, which is gone; it is taken over.", lock, pid)
        return
    who = f"process {pid} on {host}" if pid > 0 else "a process that does not say its name"
    raise DataError(
        f"{lock.parent} is being written by another 'surefoot {doing}': {who}. Wait until it ends, or name another place by {option}; "
        f"if it does not run any more, delete {lock}."
    )


def _moved_aside(lock: Path, text: str) -> bool:
    """Whether the lock that says `text` is gone by our doing; one that another process made in its place meanwhile is put back."""
    aside = lock.with_name(f"{lock.name}.{os.getpid()}")
    try:
        lock.rename(aside)
    except FileNotFoundError:
        return False
    if _text(aside) != text:
        aside.rename(lock)
        return False
    aside.unlink()
    return True


def _text(path: Path) -> str | None:
    try:
        return read_bytes(path, most=SMALL).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
