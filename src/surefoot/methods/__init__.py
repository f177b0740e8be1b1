"""The methods: one file each, one line each in the table."""

from __future__ import annotations

from collections.abc import Callable

from surefoot.errors import unknown_name
from surefoot.methods.flyp import flyp
from surefoot.methods.tp_ft import tp_ft
from surefoot.methods.wise_ft import wise_ft
from surefoot.methods.zero_shot import zero_shot
from surefoot.objective import Method

METHODS: dict[str, Callable[[], Method]] = {
    "zero_shot": zero_shot,
    "tp_ft": tp_ft,
    "flyp": flyp,
}


def get(name: str) -> Method:
    """The method of that name.

    Raises:
        UnknownNameError: no such method; the nearest match is named.

    Examples:
        >>> get("flyp").predict
        'text'
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]()


__all__ = ["METHODS", "flyp", "get", "tp_ft", "wise_ft", "zero_shot"]
