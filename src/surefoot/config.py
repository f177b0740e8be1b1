"""Settings of a comparison: a TOML recipe, then `key=value` from the command line, checked together."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from surefoot.compare import Plan
from surefoot.errors import MissingDataError, SettingError, unknown_name
from surefoot.methods import METHODS
from surefoot.model import Precision
from surefoot.train import Training

RECIPES = Path(__file__).parent / "recipes"
_TOP = ("model", "precision", "methods", "seeds", "alphas", "training", "overrides")
_TRAINING = {f.name: f.type for f in dataclasses.fields(Training) if f.name != "seed"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A recipe, read: which model in which precision, and the plan."""

    model: str
    precision: Precision
    plan: Plan


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """The tables of a recipe: one that comes with Surefoot (`iconshift`), or a TOML file.

    Raises:
        MissingDataError: neither a recipe's name nor a file.
        SettingError: not valid TOML.
    """
    path = RECIPES / f"{name_or_path}.toml"
    path = path if path.is_file() else Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
        raise MissingDataError(f"There is no recipe '{name_or_path}'. Give a TOML file, or one of: {known}.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{path} is not valid TOML: {error}.") from error


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`learning_rate=1e-4` -> {"learning_rate": 0.0001}; `flyp.epochs=5` sets it for one method only.

    Raises:
        SettingError: no `=` in it.

    Examples:
        >>> parse_assignments(["epochs=5", "flyp.learning_rate=1e-4"])
        {'epochs': 5, 'flyp.learning_rate': 0.0001}
    """
    found = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"'{text}' sets nothing. Write key=value, such as learning_rate=1e-4.")
        try:
            found[key.strip()] = tomllib.loads(f"value = {value.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = value.strip()
    return found


def resolve(recipe: Mapping[str, Any], assignments: Mapping[str, Any], **given: Any) -> Settings:  # noqa: ANN401
    """One frozen value from a recipe, `key=value` settings and the command line's own options; `None` options are not given.

    Raises:
        SettingError: every problem at once.
    """
    tables = {**recipe, **{key: value for key, value in given.items() if value is not None}}
    training = dict(tables.get("training", {}))
    overrides = {name: dict(values) for name, values in tables.get("overrides", {}).items()}
    for key, value in assignments.items():
        method, dot, setting = key.rpartition(".")
        (overrides.setdefault(method, {}) if dot else training)[setting] = value
    problems = _problems(tables, training, overrides)
    if problems:
        raise SettingError("\n".join(problems))
    for settings in (training, *overrides.values()):
        if settings.get("clip_norm") == "none":
            settings["clip_norm"] = None
    plan = Plan(
        methods=tuple(tables.get("methods", Plan.methods)),
        seeds=tuple(tables.get("seeds", Plan.seeds)),
        alphas=tuple(tables.get("alphas", Plan.alphas)),
        training=Training(**training),
        overrides=overrides,
    )
    for name in plan.methods:
        plan.training_of(name, 0)
    return Settings(model=tables.get("model", "iconclip"), precision=tables.get("precision", "fp32"), plan=plan)


def _problems(tables: Mapping[str, Any], training: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names: list[tuple[str, str, tuple[str, ...]]] = [("setting of a recipe", key, _TOP) for key in tables]
    names += [("training setting", key, tuple(_TRAINING)) for values in (training, *overrides.values()) for key in values]
    names += [("method", name, tuple(METHODS)) for name in (*tables.get("methods", ()), *overrides)]
    found = [str(unknown_name(kind, key, allowed)) for kind, key, allowed in names if key not in allowed]
    for values in (training, *overrides.values()):
        found += [
            f"{key} is '{value}'; it must be a number."
            for key, value in values.items()
            if key in _TRAINING
            and (key, value) != ("clip_norm", "none")
            and (isinstance(value, bool) or not isinstance(value, int | float))
        ]
        found += [
            f"{key} is {values[key]}; it must be a whole number." for key in ("epochs", "batch_size") if isinstance(values.get(key), float)
        ]
    if tables.get("precision", "fp32") not in get_args(Precision):
        found.append(f"precision is '{tables['precision']}'; it must be one of {', '.join(get_args(Precision))}.")
    found += [f"alpha {alpha} is not in 0..1." for alpha in tables.get("alphas", ()) if not 0 <= alpha <= 1]
    for name in ("seeds", "methods"):
        if len(set(listed := list(tables.get(name, ())))) < len(listed):
            found.append(f"{name} holds {listed}; each may stand there once.")
    if not tables.get("seeds", (0,)):
        found.append("There is no seed. Give at least one, such as --seeds 0.")
    return found
