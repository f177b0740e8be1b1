"""A folder that appears as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surefoot.errors import DataError, SettingError

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


@contextmanager
def whole_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` once all is in it. After an error nothing is left of it, and `out` is as it was.

    Args:
        out: where it shall be.
        overwrite: let it take the place of another model folder.

    Raises:
        SettingError: see `check_free`.
        DataError: the disk is full or refuses.
    """
    check_free(out, overwrite=overwrite)
    out = out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error}). Make room, or give another folder by --out.") from error
    try:
        partial = place / "new"
        partial.mkdir()
        yield partial
        if out.exists():
            out.replace(place / "old")
        try:
            partial.replace(out)
        except OSError:
            if (place / "old").exists():
                (place / "old").replace(out)
            raise
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{out} cannot be written ({error}). Make room, or give another folder by --out.") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
