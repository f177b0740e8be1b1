"""A folder, or a file, that appears as a whole or not at all."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from surefoot.errors import DataError, SettingError

log = logging.getLogger(__name__)
SUFFIX = ".part"
OWN = ("surefoot.json", "open_clip_config.json")  # one of them is in every model folder; a folder without them is not ours to replace


def check_free(out: Path, *, overwrite: bool) -> None:
    """Whether a folder may be written, or written anew.

    Raises:
        SettingError: something is there that was not to be replaced, or that is no model folder.
    """
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise SettingError(f"{out} is there already. Give another folder by --out, or --overwrite to have this one replaced.")
    if out.is_symlink() or not any((out / name).is_file() for name in OWN):
        raise SettingError(
            f"{out} is no model folder that Surefoot wrote (no {' or '.join(OWN)} in it), and stays. Give another one by --out."
        )


def check_apart(out: Path, *sources: Path) -> None:
    """Whether a folder that is written holds nothing of what is read for it, which it would take the place of.

    Raises:
        SettingError: it does.
    """
    for source in sources:
        if source.exists() and source.resolve().is_relative_to(out.resolve()):
            raise SettingError(f"{source} is what is read, and {out} would take its place. Give another folder by --out.")


@contextmanager
def whole_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` once all is in it. After an error nothing is left of it, and `out` is as it was.

    It is filled beside `out`, in a hidden folder; what a process that was killed left there is cleared away by the next one, which the log
    says, and where `out` was taken away already it is put back.

    Args:
        out: where it shall be.
        overwrite: let it take the place of another model folder.

    Raises:
        SettingError: see `check_free`.
        DataError: the disk is full or refuses.
    """
    try:
        _clear_up(out.absolute())
        check_free(out, overwrite=overwrite)
        out = out.absolute()
        out.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=_prefix(out), suffix=SUFFIX, dir=out.parent))
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error}). Make room, or give another folder by --out.") from error
    try:
        partial = place / "new"
        partial.mkdir()
        yield partial
        if out.exists():
            out.replace(place / "old")
        partial.replace(out)
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{out} cannot be written ({error}). Make room, or give another folder by --out.") from error
    finally:
        _put_back(place, out)
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """A disk that is full or refuses while `path` is written becomes a sentence that names it: the system often does not.

    Raises:
        DataError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} cannot be written ({error.strerror or error}). Make room or give another folder by --out, and run the same command "
            "again; what is finished is kept."
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` once it is written. After an error it is gone, and `path` is as it was.

    Raises:
        DataError: the disk is full or refuses.
    """
    partial = path.with_name(path.name + SUFFIX)
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise


def put_text(path: Path, text: str) -> None:
    """Write a text file in one piece; names of files that are no Unicode stay as they are.

    Raises:
        DataError: the disk is full or refuses.
    """
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def _prefix(out: Path) -> str:
    """How the hidden folders that are filled for `out` begin; what follows says whose they are."""
    return f".{out.name}.{socket.gethostname()}-{os.getpid()}."


def _put_back(place: Path, out: Path) -> bool:
    """Whether the folder that was to be replaced stood in a hidden one, and is back: neither error nor signal may take both away."""
    if not (place / "old").is_dir() or os.path.lexists(out):
        return False
    (place / "old").replace(out)
    return True


def _clear_up(out: Path) -> None:
    """Clear away what processes of this machine that are gone left beside `out`."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.{re.escape(socket.gethostname())}-(\d+)\..*{re.escape(SUFFIX)}")
    for place in sorted(out.parent.iterdir()) if out.parent.is_dir() else ():
        found = pattern.fullmatch(place.name)
        if found is None or place.is_symlink() or runs(int(found[1])):
            continue
        back = ", and what stood there before is back" if _put_back(place, out) else ""
        shutil.rmtree(place, ignore_errors=True)
        log.warning("%s was being written by process %s, which is gone; the half of it is cleared away%s.", out, found[1], back)


def runs(pid: int) -> bool:
    """Whether another process of this machine may be at work; one with this process's own number is none, it had the number before."""
    if os.name == "nt" or pid == os.getpid():  # on Windows signal 0 would end it
        return pid != os.getpid()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
