"""Texts of strangers: regular files of a bounded size, and JSON and TOML that are not nested without end."""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from surefoot.errors import DataError
from surefoot.guard.limits import TEXT, limit

DEEPEST = 64  # lists and tables within each other
SMALL = 16_000_000  # bytes of a settings file
_LONG_KEY = re.compile(rf"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{DEEPEST}}}""")


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        most: bytes that it may have; as many as a text may have if None.

    Raises:
        DataError: a FIFO or a device, on which a reader could wait for ever, or a file that is too large.
        OSError: it cannot be read.
    """
    allowed = limit(TEXT) if most is None else most
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(number, "rb") as file:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} is no regular file. Put the file itself there.")
        if status.st_size > allowed:
            more = "" if most is not None else f" Allow more by the environment variable {TEXT} where you trust it, such as {TEXT}=4GB."
            raise DataError(f"{path} has {status.st_size} bytes; {allowed} are read at most. Give a smaller file.{more}")
        return file.read(allowed)


def read_text(path: Path, encoding: str = "utf-8", most: int | None = None) -> str:
    """The content of a text file, with lines that end in a newline.

    Raises:
        DataError: as `read_bytes`; or it holds a NUL, as no text does.
        UnicodeDecodeError: it is not in that encoding.
        OSError: it cannot be read.
    """
    content = read_bytes(path, most)
    if b"\0" in content:
        raise DataError(f"{path} is no text: it holds NUL bytes. Save it as UTF-8 text.")
    return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401
    """What a JSON text says.

    Raises:
        ValueError: it is not JSON, or nested too deeply.

    Examples:
        >>> parse_json('{"a": [1]}')
        {'a': [1]}
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
        ValueError: it is nested deeper than 64
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {DEEPEST}") from error
    _check_depth(found)
    return found


def parse_toml(text: str) -> dict[str, Any]:
    """What a TOML text says.

    Raises:
        tomllib.TOMLDecodeError: it is not TOML, or nested too deeply.

    Examples:
        >>> parse_toml("a.b = 1")
        {'a': {'b': 1}}
    """
    if _LONG_KEY.search(text):  # tomllib takes the square of their number in time
        raise tomllib.TOMLDecodeError(f"it holds a key of more than {DEEPEST} parts")
    try:
        found = tomllib.loads(text)
        _check_depth(found)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise tomllib.TOMLDecodeError(f"it is nested deeper than {DEEPEST}") from error
    except ValueError as error:  # of a number with thousands of digits, and of `_check_depth`
        raise tomllib.TOMLDecodeError(str(error)) from error
    return found


def _check_depth(value: object) -> None:
    """Lists and tables lie in each other no deeper than they may; anything that writes them out would end in a RecursionError else."""
    level, depth = [value], 0
    while level := [inner for outer in level if isinstance(outer, dict | list) for inner in _inside(outer)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST}")


def _inside(value: dict[str, object] | list[object]) -> list[object]:
    return list(value.values()) if isinstance(value, dict) else value
