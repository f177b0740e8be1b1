"""A data set's dataset.toml, checked: `surefoot.data.layout` shows its form."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from surefoot.errors import DataError, SettingError, unknown_name
from surefoot.guard.texts import SMALL, parse_toml, read_text
from surefoot.prompts import check_template

_KEYS = ("name", "id_context", "templates", "contexts", "class_names")


def read_config(path: Path) -> dict[str, Any]:
    """The entries of a dataset.toml, checked; none if there is no such file.

    Raises:
        DataError: it is not TOML, or an entry has not the form that the head of `layout` shows.
        UnknownNameError: a key that has no meaning.
    """
    if not path.is_file():
        return {}
    try:
        config = parse_toml(read_text(path, most=SMALL))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not valid TOML: {error}. Texts stand in quotes, and one entry on each line.") from error
    for key in config:
        if key not in _KEYS:
            raise unknown_name(f"key of {path}", key, _KEYS)
    _check_types(path, config)
    for template in [*config.get("templates", []), *config.get("contexts", {}).values()]:
        try:
            check_template(template)
        except SettingError as error:
            raise DataError(f'{path}: {error} Write it as in "a photo of a {{}}."') from error
    if config.get("id_context") and config["id_context"] not in config.get("contexts", {}):
        raise DataError(f"{path}: id_context is '{config['id_context']}', which [contexts] does not hold. Add a prompt for it there.")
    return config


def _check_types(path: Path, config: Mapping[str, Any]) -> None:
    """Every entry has the form that it must have, or a DataError says which has not."""
    templates, tables = config.get("templates", ["{}"]), [config.get(key, {}) for key in ("contexts", "class_names")]
    if not isinstance(templates, list) or not templates or not all(isinstance(template, str) for template in templates):
        raise DataError(f'{path}: templates is {templates!r}. Write a list of texts, such as ["a photo of a {{}}."].')
    for table in tables:
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            raise DataError(f"{path}: {table!r} must be a table of texts under [contexts] or [class_names].")
    if empty := [label for label, called in tables[1].items() if not called.strip()]:
        raise DataError(f"{path}: the class '{empty[0]}' has an empty name under [class_names]. Write what is on its images.")
    for key in ("name", "id_context"):
        if not isinstance(config.get(key, ""), str):
            raise DataError(f"{path}: {key} is {config[key]!r}. Write a text in quotes.")


def class_name(config: Mapping[str, Any], label: str) -> str:
    """What a class is called in prompts, from its folder's name or its label in a manifest.

    Examples:
        >>> class_name({"class_names": {"granny": "granny smith apple"}}, "granny"), class_name({}, "red_delicious")
        ('granny smith apple', 'red delicious')
    """
    return str(config.get("class_names", {}).get(label, label.replace("_", " ")))


def check_class_names(path: Path, config: Mapping[str, Any], classes: Iterable[str]) -> None:
    """Every key of [class_names] is a class.

    Raises:
        UnknownNameError: one is not.
    """
    classes = set(classes)
    for label in config.get("class_names", {}):
        if label not in classes:
            raise unknown_name(f"class in [class_names] of {path}", label, classes)
