"""What is searched: for each setting a range, or the values that it may take."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from surefoot.compare import Plan
from surefoot.compare.plan import TRAINING_NAMES
from surefoot.errors import SettingError, unknown_name
from surefoot.methods import parameters
from surefoot.objective import Method
from surefoot.train import Training

Settings = dict[str, Any]


@dataclass(frozen=True)
class Between:
    """Every number from `low` to `high`: drawn evenly, or evenly on a logarithmic scale.

    `whole` leaves whole numbers only; a search sets it where the setting is one.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise SettingError(f"{self.low}..{self.high} is no range; write the smaller number first, such as 1e-5..1e-3.")
        if self.log and self.low <= 0:
            raise SettingError(f"{self.low}..{self.high} cannot be logarithmic; its lower end must be above 0.")

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    @property
    def ends(self) -> tuple[Any, ...]:
        """What must be valid so that everything in it is."""
        return self.low, self.high


@dataclass(frozen=True)
class OneOf:
    """The values that a setting may take, without an order."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) < len(self.values):
            raise SettingError(f"{list(self.values)} must hold at least one value, and each once.")

    def __contains__(self, value: object) -> bool:
        return value in self.values

    @property
    def ends(self) -> tuple[Any, ...]:
        """What must be valid so that everything in it is."""
        return self.values


Range = Between | OneOf


def parse_space(entries: Sequence[str]) -> dict[str, Range]:
    """`learning_rate=1e-5..1e-3:log` is a range, `epochs=5,10,20` are values.

    Raises:
        SettingError: every entry that is neither, named.

    Examples:
        >>> parse_space(["learning_rate=1e-5..1e-3:log", "epochs=5,10"])
        {'learning_rate': Between(low=1e-05, high=0.001, log=True, whole=False), 'epochs': OneOf(values=(5, 10))}
    """
    found: dict[str, Range] = {}
    problems = []
    for entry in entries:
        key, _, text = (part.strip() for part in entry.partition("="))
        try:
            if not key or not text:
                raise SettingError("nothing to search. Write NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=VALUE,VALUE.")
            if key in found:
                raise SettingError("the setting stands there twice. Write it once.")
            found[key] = _range(text)
        except SettingError as error:
            problems.append(f"--space {entry}: {error}")
    if problems:
        raise SettingError("\n".join(problems))
    return found


def _range(text: str) -> Range:
    bounds, colon, scale = text.partition(":")
    low, dots, high = bounds.partition("..")
    if colon and (scale.strip() != "log" or not dots):
        raise SettingError(f"':{scale}' means nothing here. Only ':log' may follow, and only after a range, such as 1e-5..1e-3:log.")
    if not dots:
        return OneOf(tuple(_value(part.strip()) for part in text.split(",")))
    ends = _value(low.strip()), _value(high.strip())
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        raise SettingError(f"'{bounds}' is no range of numbers. Write LOW..HIGH, such as 1e-5..1e-3.")
    return Between(*ends, log=bool(colon))


def _value(text: str) -> Any:  # noqa: ANN401
    if text in (words := {"none": None, "true": True, "false": False}):
        return words[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _around(value: float) -> Range:
    """A tenth to ten times as much, on a logarithmic scale."""
    return Between(float(f"{value / 10:.3g}"), float(f"{value * 10:.3g}"), log=True)


# a method's own settings that matter, by name, so that a new method needs no code here
OWN: dict[str, Callable[[Any], Range]] = {
    "pull": lambda _: Between(1e-4, 1.0, log=True),
    "label_smoothing": lambda _: OneOf((0.0, 0.1)),
    "head_learning_rate": _around,
}


def default_space(plan: Plan, name: str) -> dict[str, Range]:
    """The learning rate, the length, and those of the method's own settings that matter; small, since a trial is a whole run.

    Args:
        plan: the middle of every range.
        name: of the method.
    """
    method, training = plan.method_of(name), plan.training_of(name, plan.seeds[0])
    length = "epochs" if training.steps is None else "steps"
    middle = getattr(training, length)
    found: dict[str, Range] = {"learning_rate": _around(training.learning_rate)}
    found[length] = OneOf(tuple(sorted({max(1, middle // 2), middle, 2 * middle})))
    found = {key: what for key, what in found.items() if key not in _fixed(method)}
    return found | {key: OWN[key](value) for key, value in method.settings.items() if key in OWN}


def with_settings(plan: Plan, name: str, settings: Mapping[str, Any]) -> Plan:
    """The plan with settings of one method, training settings among them."""
    return replace(plan, overrides={**plan.overrides, name: {**plan.overrides.get(name, {}), **settings}})


def settings_of_plan(plan: Plan, name: str, keys: Sequence[str]) -> Settings:
    """What the plan itself gives those settings."""
    method, training = plan.method_of(name), plan.training_of(name, plan.seeds[0])
    defaults = {key: parameter.default for key, parameter in parameters(name).items()} | dict(method.settings)
    return {key: getattr(training, key) if key in TRAINING_NAMES else defaults[key] for key in keys}


def checked_space(plan: Plan, name: str, space: Mapping[str, Range]) -> dict[str, Range]:
    """The space, if the method has these settings and takes these values.

    Raises:
        SettingError: every problem at once; the nearest match of an unknown name is given.
    """
    known: dict[str, Any] = {key: kind for key, kind in get_type_hints(Training).items() if key != "seed"}
    known |= {key: parameter.annotation for key, parameter in parameters(name).items()}
    fixed = _fixed(plan.method_of(name))
    problems = [] if space else ["There is no setting to search. Give at least one, such as --space learning_rate=1e-5..1e-3:log."]
    if "steps" in space or plan.training_of(name, plan.seeds[0]).steps is not None:
        fixed = fixed | {"epochs"}
    found: dict[str, Range] = {}
    for key, what in space.items():
        if key not in known:
            problems.append(str(unknown_name(f"setting of {name}", key, known)))
        elif key == "select_by":
            problems.append("select_by is what trials are judged by, so it cannot be searched. Set it for all of them.")
        elif key in fixed:
            problems.append(f"{key} changes nothing for {name} with these settings, so there is nothing to search in it. Leave it out.")
        elif not _fits(what, known[key]):
            problems.append(f"{key}: {what} holds what {name} does not take there. It takes {_wanted(known[key])}.")
        else:
            found[key] = replace(what, whole=float not in _kinds(known[key])) if isinstance(what, Between) else what
            problems += _refused(plan, name, key, what)
    if problems:
        raise SettingError("\n".join(problems))
    return found


def searchable(plan: Plan, name: str) -> frozenset[str]:
    """The settings of a method that change something for it."""
    return (TRAINING_NAMES | parameters(name).keys()) - _fixed(plan.method_of(name))


def untried(space: Mapping[str, Range], tried: Sequence[Mapping[str, Any]]) -> Settings | None:
    """The first settings of a finite space that are not among `tried`; None if there are none, or if the space is not finite."""
    every = (dict(zip(space, values, strict=True)) for values in itertools.product(*map(_members, space.values())))
    return next((settings for settings in every if settings not in tried), None)


def _members(what: Range) -> Sequence[Any]:
    if isinstance(what, OneOf):
        return what.values
    return range(int(what.low), int(what.high) + 1) if what.whole else ()


def _fixed(method: Method) -> frozenset[str]:
    """Training settings that every stage of the method sets for itself."""
    sets = [frozenset(stage.training) for stage in method.stages]
    return sets[0].intersection(*sets[1:]) if sets else frozenset()


def _refused(plan: Plan, name: str, key: str, what: Range) -> Iterator[str]:
    for value in what.ends:
        own = with_settings(plan, name, {key: value})
        try:
            own.training_of(name, plan.seeds[0])
            own.method_of(name)
        except SettingError as error:
            yield f"{key}={value}: {error}"


def _kinds(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401
    if get_origin(annotation) in (Literal, tuple):
        return ()
    return get_args(annotation) or (annotation,)


def _fits(what: Range, annotation: Any) -> bool:  # noqa: ANN401
    kinds = _kinds(annotation)
    if isinstance(what, Between):
        return float in kinds or (int in kinds and all(isinstance(end, int) for end in what.ends))
    literals = get_args(annotation) if get_origin(annotation) is Literal else ()
    return all(value in literals or type(value) in kinds or (type(value) is int and float in kinds) for value in what.values)


def _wanted(annotation: Any) -> str:  # noqa: ANN401
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    words = {float: "numbers", int: "whole numbers", str: "texts", bool: "true or false", NoneType: "none"}
    return " or ".join(words[kind] for kind in _kinds(annotation)) or "a list, which cannot be searched"
