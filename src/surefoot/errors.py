"""Every error that Surefoot raises on purpose.

    SurefootError
    ├── DataError (ValueError)              a folder, an image or a dataset.toml is not what it must be
    │   └── MissingDataError (FileNotFoundError)    something that should be on disk is not
    ├── SettingError (ValueError)           a value that is out of its range, or settings that contradict each other
    │   └── UnknownNameError (KeyError)     a method, term, group or split of that name does not exist
    ├── ModelError (RuntimeError)           a model could not be loaded, or cannot do what was asked
    └── TrainingError (ArithmeticError)     training cannot go on, such as a loss that is not finite

A message says what was given, what is allowed and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SurefootError(Exception):
    """The root of all of them."""


class DataError(SurefootError, ValueError):
    """A folder, an image or a dataset.toml is not what it must be."""


class MissingDataError(DataError, FileNotFoundError):
    """Something that should be on disk is not."""

    def __str__(self) -> str:
        return str(self.args[0])


class SettingError(SurefootError, ValueError):
    """A value is out of its range, or settings contradict each other."""


class UnknownNameError(SettingError, KeyError):
    """A name that does not exist; the message holds the nearest match and the full list."""

    def __str__(self) -> str:
        return str(self.args[0])


class ResourceError(SurefootError, MemoryError):
    """The machine has not what something takes."""


class ModelError(SurefootError, RuntimeError):
    """A model could not be loaded, or cannot do what was asked of it."""


class TrainingError(SurefootError, ArithmeticError):
    """Training cannot go on."""


def unknown_name(kind: str, given: str, allowed: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not among `allowed`, with the nearest match.

    Examples:
        >>> str(unknown_name("method", "flip", ["flyp", "tp_ft"]))
        "Unknown method 'flip'. Did you mean 'flyp'? Known: flyp, tp_ft."
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UnknownNameError(f"Unknown {kind} '{given}'.{hint} Known: {', '.join(names) or 'none'}.")
