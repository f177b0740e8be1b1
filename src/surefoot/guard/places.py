"""Where paths lead to: what a list or a link names lies inside the folder that the user gave, unless the user allows more."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from surefoot.errors import DataError

ALLOW = "--allow-outside"
_SHOWN = 3


def check_inside(root: Path, paths: Iterable[Path], what: str) -> None:
    """Every path lies in a folder, links followed.

    Args:
        root: the folder.
        paths: of files.
        what: that which names them, such as the manifest, for the message.

    Raises:
        DataError: some do not; the first are named.
    """
    base, folders = os.path.realpath(root), dict[str, str]()
    wrong = [path for path in paths if not _is_inside(base, path, folders)]
    if wrong:
        named = ", ".join(f"{path} -> {os.path.realpath(path)}" if path.is_symlink() else str(path) for path in wrong[:_SHOWN])
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise DataError(
            f"{what} leads to {len(wrong)} {'file' if len(wrong) == 1 else 'files'} outside of {root}: {named}{more}. Data from elsewhere "
            f"could reach any picture on this machine so. If you know these files, allow it by {ALLOW} (allow_outside=True in Python)."
        )


def _is_inside(base: str, path: Path, folders: dict[str, str]) -> bool:
    """Whether one path lies below `base`; `folders` remembers where folders are in truth, as most files share theirs."""
    parent = str(path.parent)
    try:
        if parent not in folders:
            folders[parent] = os.path.realpath(parent)
        real = os.path.realpath(path) if path.name == ".." or os.path.islink(path) else os.path.join(folders[parent], path.name)  # noqa: PTH114, PTH118
        return os.path.commonpath([base, real]) == base
    except ValueError:  # a NUL in the name, or another drive
        return False
