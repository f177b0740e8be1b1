"""Settings of a comparison: a TOML recipe, then `key=value` from the command line, checked together."""

from __future__ import annotations

import dataclasses
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surefoot import cookbook
from surefoot.compare import Plan
from surefoot.compare.plan import named_training, reference_problems
from surefoot.data.embedded import TEMPLATES
from surefoot.errors import DataError, SettingError, unknown_name
from surefoot.guard.texts import SMALL, parse_toml, read_text
from surefoot.job import PRECISIONS
from surefoot.methods import ALL, METHODS, base_of, parameters, setting_problems, variant_settings, without
from surefoot.methods.reference import REFERENCE
from surefoot.train import Training

_TOP = (
    "reproduces",
    "model",
    "precision",
    "templates",
    "methods",
    "seeds",
    "alphas",
    "training",
    "overrides",
    "shots",
    "corruptions",
    "references",
)
LARGEST_SEED = 2**32 - 1
_OF_A_VARIANT = re.compile(r"([a-z_]\w*(?:\+[a-z_]\w*=[^=]*?)+\.[a-z_]\w*)=(.*)")
_OPTIONAL = {"clip_norm", "steps"}
_TRAINING = {f.name: f.type for f in dataclasses.fields(Training) if f.name != "seed"}


def _all(kind: type, value: object) -> bool:
    """A list of values of one kind; true is no number."""
    return isinstance(value, list | tuple) and all(_one(kind, one) for one in value)


def _one(kind: type, value: object) -> bool:
    return isinstance(value, int | float if kind is float else kind) and isinstance(value, bool) == (kind is bool)


def _are_tables(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(own, Mapping) for own in value.values())


_SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "reproduces": (lambda value: _one(str, value), 'a text, such as "FLYP, table 2"'),
    "model": (lambda value: _one(str, value) and bool(value), 'a name, such as "iconclip"'),
    "precision": (lambda value: _one(str, value), f"one of {', '.join(PRECISIONS)}"),
    "templates": (lambda value: value in TEMPLATES, f"one of {', '.join(TEMPLATES)}"),
    "methods": (lambda value: _all(str, value) and bool(value), 'a list of methods, such as ["tp_ft", "flyp"]'),
    "seeds": (
        lambda value: _all(int, value) and all(0 <= seed <= LARGEST_SEED for seed in value),
        f"a list of whole numbers in 0..{LARGEST_SEED}, such as [0, 1, 2]",
    ),
    "alphas": (lambda value: _all(float, value), "a list of numbers in 0..1, such as [0, 0.5, 1]"),
    "training": (lambda value: isinstance(value, Mapping), "a table, [training]"),
    "overrides": (_are_tables, "a table for each method, such as [overrides.flyp]"),
    "corruptions": (lambda value: value is None or _one(bool, value), "true or false"),
    "references": (lambda value: _all(float, value), "a list of shares of the training images, such as [0.1, 0.25, 0.5, 1]"),
}
"""What each entry of a recipe must look like before anything looks into it, and how that is said."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A recipe, read: which model in which precision, the plan, and whose prompts data of the catalogue get."""

    model: str
    precision: str
    plan: Plan
    templates: str = "own"


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """The tables of a recipe: one that comes with Surefoot (`iconshift`, `flyp/imagenet`), or a TOML file.

    Raises:
        MissingDataError: neither a recipe's name nor a file.
        SettingError: not valid TOML, or not UTF-8.
    """
    path = cookbook.find(name_or_path)
    try:
        return parse_toml(read_text(path, most=SMALL))
    except DataError as error:
        raise SettingError(str(error)) from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{path} is not valid TOML: {error}.") from error


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`learning_rate=1e-4` -> {"learning_rate": 0.0001}; `flyp.epochs=5` sets it for one method only, or for one variant.

    Raises:
        SettingError: no `=` in it.

    Examples:
        >>> parse_assignments(["epochs=5", "flyp.learning_rate=1e-4"])
        {'epochs': 5, 'flyp.learning_rate': 0.0001}
    """
    found = {}
    for text in assignments:
        variant = _OF_A_VARIANT.fullmatch(text)
        key, equals, value = (variant[1], "=", variant[2]) if variant else text.partition("=")
        if not equals:
            raise SettingError(f"'{text}' sets nothing. Write key=value, such as learning_rate=1e-4.")
        try:
            found[key.strip()] = parse_toml(f"value = {value.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = value.strip()
    return found


def resolve(recipe: Mapping[str, Any], assignments: Mapping[str, Any], **given: Any) -> Settings:  # noqa: ANN401
    """One frozen value from a recipe, `key=value` settings and the command line's own options; `None` options are not given.

    A setting without a method's name is a training setting, but for `templates=clip`; with one (`l2_sp.pull=0.1`) it may be a training
    setting or one of the method's own.

    Raises:
        SettingError: every problem at once.
    """
    tables = {**recipe, **{key: value for key, value in given.items() if value is not None}}
    if "templates" in assignments:
        tables["templates"] = assignments["templates"]
    misshapen = [
        f"{key} is {tables[key]!r}; it must be {wanted}."
        for key, (fits, wanted) in _SHAPES.items()
        if key in tables and not fits(tables[key])
    ]
    tables = {key: value for key, value in tables.items() if key not in _SHAPES or _SHAPES[key][0](value)}
    if tables.get("methods") == ["all"]:
        tables["methods"] = list(ALL)
    training = dict(tables.get("training", {}))
    overrides = {name: dict(values) for name, values in tables.get("overrides", {}).items()}
    for key, value in assignments.items():
        method, dot, setting = key.rpartition(".")
        if key != "templates":
            (overrides.setdefault(method, {}) if dot else training)[setting] = value
    for settings in (training, *overrides.values()):
        for key in _OPTIONAL & settings.keys():
            settings[key] = None if settings[key] == "none" else settings[key]
    if problems := misshapen + _problems(tables, training, overrides):
        raise SettingError("\n".join(problems))
    plan = Plan(
        methods=tuple(tables.get("methods", Plan.methods)),
        seeds=tuple(tables.get("seeds", Plan.seeds)),
        alphas=tuple(tables.get("alphas", Plan.alphas)),
        training=Training(**training),
        overrides=overrides,
        shots=tables.get("shots"),
        corruptions=tables.get("corruptions"),
        references=tuple(tables.get("references", ())),
    )
    own = {key: tables.get(key, usual) for key, usual in {"model": "iconclip", "precision": "auto", "templates": "own"}.items()}
    return Settings(plan=plan, **own)


def _problems(tables: Mapping[str, Any], training: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = [str(unknown_name("setting of a recipe", key, _TOP)) for key in tables if key not in _TOP]
    named = (*tables.get("methods", ()), *(name for name in overrides if name != REFERENCE))
    found += [str(unknown_name("method", base_of(name), METHODS)) for name in named if base_of(name) not in METHODS]
    found += _training_problems(training)
    given = {name: overrides.get(name, {}) for name in dict.fromkeys(named) if base_of(name) in METHODS}
    for name in given:
        own = {key: value for key, value in given[name].items() if key not in _TRAINING}
        known = [*parameters(name), *_TRAINING]
        found += [str(unknown_name(f"setting of {name}", key, known)) for key in own if key not in known]
        found += setting_problems(without(name, _TRAINING), {key: value for key, value in own.items() if key in known})
        shared = {key: value for key, value in given[name].items() if key in _TRAINING} | named_training(name)
        found += [f"{name}: {problem}" for problem in _training_problems({**training, **shared})] if shared else []
    if REFERENCE in overrides:
        found += [f"{REFERENCE}: {problem}" for problem in _training_problems({**training, **overrides[REFERENCE]})]
    found += reference_problems(tables.get("references", ()))
    if tables.get("precision", "auto") not in PRECISIONS:
        found.append(f"precision is '{tables['precision']}'; it must be one of {', '.join(PRECISIONS)}.")
    found += [f"alpha {alpha} is not in 0..1." for alpha in tables.get("alphas", ()) if not 0 <= alpha <= 1]
    meant = {"seeds": list(tables.get("seeds", ())), "methods": [_meant(name) for name in tables.get("methods", ())]}
    for name, each in meant.items():
        if len({repr(one) for one in each}) < len(each):
            found.append(f"{name} holds {list(tables[name])}; each may stand there once.")
    if not tables.get("seeds", (0,)):
        found.append("There is no seed. Give at least one, such as --seeds 0.")
    if (shots := tables.get("shots")) is not None and (isinstance(shots, bool) or not isinstance(shots, int) or shots < 1):
        found.append(f"shots is {shots}; it must be a whole number of images a class, 1 or more.")
    return found


def _meant(name: str) -> tuple[str, list[tuple[str, Any]]]:
    """A method and the settings in its name, however they are written."""
    return base_of(name), sorted(variant_settings(name).items())


def _training_problems(training: Mapping[str, Any]) -> list[str]:
    """Unknown names, wrong types, then what `Training` itself refuses."""
    found = [str(unknown_name("training setting", key, _TRAINING)) for key in training if key not in _TRAINING]
    found += [
        f"{key} is {value!r}; it must be {_wanted(str(_TRAINING[key]))}."
        for key, value in training.items()
        if key in _TRAINING and not _fits(value, str(_TRAINING[key]))
    ]
    if not found:
        try:
            Training(**training)
        except SettingError as error:
            found.append(str(error))
    return found


def _fits(value: object, kind: str) -> bool:
    if value is None:
        return "None" in kind
    if isinstance(value, bool) or kind == "bool":
        return isinstance(value, bool) and kind == "bool"
    if kind.startswith("float"):
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, int if kind.startswith("int") else str)


def _wanted(kind: str) -> str:
    if kind == "bool":
        return "true or false"
    word = "a finite number" if kind.startswith("float") else "a whole number" if kind.startswith("int") else "a text"
    return word + (" or none" if "None" in kind else "")
