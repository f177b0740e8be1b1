"""Records read from JSON: every field is there, known, and of the kind that its dataclass says."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_Made = TypeVar("_Made")


def made(kind: type[_Made], row: Any) -> _Made:  # noqa: ANN401
    """A dataclass from what JSON says of it.

    Raises:
        TypeError: it is no table, lacks a field, has one that is unknown, or one of another kind.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Point:
        ...     x: float
        ...     names: Sequence[str] = ()
        >>> made(Point, {"x": 1})
        Point(x=1, names=())
        >>> made(Point, {"x": 1, "names": [None]})
        Traceback (most recent call last):
        TypeError: names is [None]
    """
    if not isinstance(row, dict):
        raise TypeError(f"it is {str(row)[:60]}, no table")
    for name, wanted in _hints(kind).items():  # type: ignore[arg-type]
        if name in row and not _fits(row[name], wanted):
            raise TypeError(f"{name} is {str(row[name])[:60]}")
    return kind(**row)


@cache
def _hints(kind: Any) -> dict[str, Any]:  # noqa: ANN401
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _fits(value: object, kind: Any) -> bool:  # noqa: ANN401
    """Whether a value that JSON can hold is one of a type."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if kind is type(None):
        return value is None
    if kind in (int, float):
        return isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(_fits(key, inner[0]) and _fits(one, inner[1]) for key, one in value.items())
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_fits(one, inner[0]) for one in value)
    return isinstance(value, kind)
