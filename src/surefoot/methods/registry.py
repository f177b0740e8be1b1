"""The table of methods, and how settings reach their factories."""

from __future__ import annotations

import inspect
import re
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

from surefoot.errors import SettingError, unknown_name
from surefoot.guard import parse_toml
from surefoot.methods.arf import arf
from surefoot.methods.car_ft import car_ft
from surefoot.methods.clip_cite import clip_cite
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
    "car_ft": car_ft,
    "arf": arf,
    "clip_cite": clip_cite,
}
ALL = (*METHODS, "car_ft+contexts=own")
"""What `--methods all` means: the methods, and CAR-FT with the data's own contexts beside the generic ones."""
_SETTING = re.compile(r"\+(?=[a-z_]\w*=)")


def base_of(name: str) -> str:
    """The method that a variant is of: what stands before its settings.

    Examples:
        >>> base_of("clip_cite+contrastive_weight=0+distillation_weight=0"), base_of("lp")
        ('clip_cite', 'lp')
    """
    return _SETTING.split(name)[0]


def variant_settings(name: str) -> dict[str, Any]:
    """The settings that a variant's name holds, as TOML reads them.

    Raises:
        SettingError: a setting that stands there twice.

    Examples:
        >>> variant_settings("car_ft+contexts=own+context_weight=0.5"), variant_settings("lp")
        ({'contexts': 'own', 'context_weight': 0.5}, {})
    """
    found = {}
    for text in _SETTING.split(name)[1:]:
        key, _, value = text.partition("=")
        if key in found:
            raise SettingError(f"'{name}' sets {key} twice. Write it once.")
        try:
            found[key] = parse_toml(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value
    return found


def without(name: str, keys: Collection[str]) -> str:
    """A variant's name without some of the settings that it holds.

    Examples:
        >>> without("flyp+batch_size=32+frozen_text=true", ["batch_size"]), without("lp", ["l2"])
        ('flyp+frozen_text=true', 'lp')
    """
    base, *settings = _SETTING.split(name)
    return "+".join([base, *(text for text in settings if text.partition("=")[0] not in keys)])


def get(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method of that name, made with `settings` of its factory or of `adapted`.

    A variant is named by its method and settings, `car_ft+contexts=own`; they count before those of `settings`.

    Raises:
        UnknownNameError: no such method; the nearest match is named.
        SettingError: settings that the method does not have or that are out of range, all of them together.

    Examples:
        >>> get("flyp").predict
        'text'
        >>> get("tp_ft", {"layers": "visual[-3:]"}).stages[0].trains
        ('visual[-3:]', 'head')
    """
    base = base_of(name)
    if base not in METHODS:
        raise unknown_name("method", base, METHODS)
    given = {**(settings or {}), **variant_settings(name)}
    if problems := setting_problems(name, given):
        raise SettingError("\n".join(problems))
    common = {key: given.pop(key) for key in _COMMON if key in given}
    schema = parameters(name)
    bound = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    method = replace(METHODS[base](**bound), name=name)
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
    found = dict(inspect.signature(METHODS[base_of(name)], eval_str=True).parameters)
    if base_of(name) != "zero_shot":
        found |= {key: p for key, p in inspect.signature(adapted, eval_str=True).parameters.items() if key != "method"}
    return found


def setting_problems(name: str, settings: Mapping[str, Any]) -> list[str]:
    """What is wrong with `settings` of a method, each as a sentence; names, types, then what the factory itself refuses."""
    known, base = parameters(name), base_of(name)
    settings = {**settings, **variant_settings(name)}
    problems = [str(unknown_name(f"setting of {base}", key, known)) for key in settings if key not in known]
    problems += [
        f"{name}.{key} is {value!r}; it must be {_wanted(known[key].annotation)}."
        for key, value in settings.items()
        if key in known and not _fits(value, known[key].annotation)
    ]
    if not problems:
        bound: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        common = {key: bound.pop(key) for key in _COMMON if key in bound}
        try:
            adapted(METHODS[base](**bound), **common)
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
