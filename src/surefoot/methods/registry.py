"""The table of methods, and how settings reach their factories."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

from surefoot.errors import SettingError, unknown_name
from surefoot.methods.flyp import flyp, flyp_ce
from surefoot.methods.l2_sp import l2_sp
from surefoot.methods.lp import lp, lp_ft
from surefoot.methods.tp_ft import ft, tp_ft
from surefoot.methods.zero_shot import zero_shot
from surefoot.objective import Adapter, Method, Stage, group_of

METHODS: dict[str, Callable[..., Method]] = {
    "zero_shot": zero_shot,
    "lp": lp,
    "ft": ft,
    "tp_ft": tp_ft,
    "lp_ft": lp_ft,
    "l2_sp": l2_sp,
    "flyp": flyp,
    "flyp_ce": flyp_ce,
}


def get(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method of that name, made with `settings` of its factory or of `adapted`.

    Raises:
        UnknownNameError: no such method; the nearest match is named.
        SettingError: settings that the method does not have or that are out of range, all of them together.

    Examples:
        >>> get("flyp").predict
        'text'
        >>> get("tp_ft", {"layers": "visual[-3:]"}).stages[0].trains
        ('visual[-3:]', 'head')
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    given = dict(settings or {})
    if problems := setting_problems(name, given):
        raise SettingError("\n".join(problems))
    common = {key: given.pop(key) for key in _COMMON if key in given}
    schema = parameters(name)
    bound = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    method = METHODS[name](**bound)
    shown = {key: schema[key].default for key in schema if key not in _COMMON} | bound
    return replace(adapted(method, **common), settings={**shown, **common})


def adapted(method: Method, *, layers: str = "", lora_rank: int = 0, lora_alpha: float | None = None) -> Method:
    """Any method for small devices: only a range of blocks moves, or low-rank updates instead of whole towers.

    Args:
        method: what to adapt; stages that train no tower stay as they are.
        layers: comma-separated ranges such as "visual[-3:]"; the towers they name are restricted to them.
        lora_rank: r of LoRA (Hu et al., ICLR 2022); 0 trains the weights themselves.
        lora_alpha: the numerator of its scale alpha / r; the rank if None.

    Raises:
        SettingError: a range that is none, or of a tower that the method does not train; a rank below 0, an alpha of 0 or less; LoRA with a
            method that pulls weights to their start.
    """
    specs = [text.strip() for text in layers.split(",") if text.strip()]
    for spec in specs:
        if group_of(spec) not in method.trains:
            raise SettingError(f"layers names '{spec}', but {method.name} trains {', '.join(sorted(method.trains)) or 'nothing'}.")
    if lora_rank < 0:
        raise SettingError(f"lora_rank is {lora_rank}; it must be 0 (off) or more, such as 8.")
    if lora_alpha is not None and lora_alpha <= 0:
        raise SettingError(f"lora_alpha is {lora_alpha}; it must be above 0. Leave it out for the rank itself.")
    if lora_rank and any("start" in stage.needs for stage in method.stages):
        raise SettingError(f"{method.name} pulls the weights to their start, which low-rank updates do not have. Set lora_rank=0.")
    adapter = Adapter(rank=lora_rank, alpha=lora_alpha) if lora_rank else None
    return replace(method, stages=tuple(_adapted(stage, specs, adapter) for stage in method.stages))


def _adapted(stage: Stage, specs: list[str], adapter: Adapter | None) -> Stage:
    restricted = {group_of(spec) for spec in specs}
    trains: list[str] = []
    for entry in stage.trains:
        trains += [spec for spec in specs if group_of(spec) == entry] if entry in restricted else [entry]
    return replace(stage, trains=tuple(trains), adapter=adapter if stage.groups & {"visual", "text"} else None)


_COMMON = tuple(name for name in inspect.signature(adapted).parameters if name != "method")


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The settings of a method: those of its factory, then those that every trained method has; annotations are types."""
    found = dict(inspect.signature(METHODS[name], eval_str=True).parameters)
    if name != "zero_shot":
        found |= {key: p for key, p in inspect.signature(adapted, eval_str=True).parameters.items() if key != "method"}
    return found


def setting_problems(name: str, settings: Mapping[str, Any]) -> list[str]:
    """What is wrong with `settings` of a method, each as a sentence; names, types, then what the factory itself refuses."""
    known = parameters(name)
    problems = [str(unknown_name(f"setting of {name}", key, known)) for key in settings if key not in known]
    problems += [
        f"{name}.{key} is {value!r}; it must be {_wanted(known[key].annotation)}."
        for key, value in settings.items()
        if key in known and not _fits(value, known[key].annotation)
    ]
    if not problems:
        bound: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        common = {key: bound.pop(key) for key in _COMMON if key in bound}
        try:
            adapted(METHODS[name](**bound), **common)
        except SettingError as error:
            problems.append(f"{name}: {error}")
    return problems


def _fits(value: Any, annotation: Any) -> bool:  # noqa: ANN401
    origin = get_origin(annotation)
    if origin is Literal:
        return value in get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in get_args(annotation))
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(part, get_args(annotation)[0]) for part in value)
    if annotation in (None, types.NoneType):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, annotation) and (annotation is bool or not isinstance(value, bool))


def _wanted(annotation: Any) -> str:  # noqa: ANN401
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return "a list of numbers, such as [1e-4, 1e-5]"
    if get_origin(annotation) in (types.UnionType, typing.Union):
        return " or ".join(_wanted(part) for part in get_args(annotation))
    return {float: "a number", int: "a whole number", str: "a text", bool: "true or false", types.NoneType: "left out"}[annotation]
