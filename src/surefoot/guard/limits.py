"""How much is read of one file; each limit can be raised by an environment variable."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from surefoot.errors import DataError, SettingError

TEXT, PIXELS, FILE = "SUREFOOT_MAX_TEXT", "SUREFOOT_MAX_PIXELS", "SUREFOOT_MAX_FILE"
USUAL = {TEXT: 256_000_000, PIXELS: 178_956_970, FILE: 268_435_456}
"""Bytes of a text (manifest, records, list), pixels of an image (Pillow's own limit), bytes of an image's file."""
_WORDS = {TEXT: "bytes of a text, such as 1GB", PIXELS: "pixels of an image, such as 400M", FILE: "bytes of an image's file, such as 1GB"}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def limit(name: str) -> int:
    """A limit: what the environment says, or the usual one.

    Raises:
        SettingError: the variable holds no number.

    Examples:
        >>> limit(PIXELS)
        178956970
    """
    if not (said := os.environ.get(name)):
        return USUAL[name]
    found = re.fullmatch(r"([0-9]{1,15})([KMG]?)B?", said.strip(), re.IGNORECASE)
    if not found or not int(found[1]):
        raise SettingError(f"{name} is '{said}'. Write the {_WORDS[name]}; without it the limit is {USUAL[name]}.")
    return int(found[1]) * _UNITS[found[2].upper()]


def check_image_size(path: Path, size: int) -> None:
    """A file that is read into memory as an image is not absurdly large.

    Raises:
        DataError: it is.
    """
    if size > (most := limit(FILE)):
        raise DataError(
            f"{path} has {size} bytes, too many for an image; {most} are read at most. Repair or remove it, or allow more by the "
            f"environment variable {FILE}."
        )


def check_regular(path: Path) -> None:
    """A path leads to a regular file, on which nobody waits for ever.

    Raises:
        DataError: it leads to a folder, a FIFO or a device.
        OSError: it leads to nothing.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path} is no regular file but a folder, a FIFO or a device. Remove it.")
