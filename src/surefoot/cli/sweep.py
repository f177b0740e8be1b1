"""`surefoot sweep`: one setting at several values, as the papers draw their curves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from surefoot.cli import console as shared
from surefoot.cli.compare import Alphas, BaseToNew, Methods, Seeds
from surefoot.cli.protocols import Fewer, carry_through
from surefoot.cli.recipe import resolve
from surefoot.config import parse_assignments
from surefoot.errors import SettingError
from surefoot.job import DataOptions
from surefoot.model import pick_device
from surefoot.protocols import parts

SHOTS = "shots"
Over = Annotated[
    str, typer.Option(help="A setting and its values, such as contrastive_weight=0,0.3,0.7,1, batch_size=32,128 or shots=1,4,16.")
]


def sweep(
    data: shared.Data,
    over: Over,
    out: shared.Out = Path("runs/sweep"),
    root: shared.Root = None,
    recipe: shared.Recipe = None,
    model: shared.Model = None,
    methods: Methods = None,
    seeds: Seeds = None,
    shots: Annotated[int | None, typer.Option(help="Few-shot: images a class, at every value.", show_default=False)] = None,
    base_to_new: BaseToNew = False,
    fewer: Fewer = False,
    alphas: Alphas = None,
    anchors: shared.Anchors = None,
    watch: shared.Watch = None,
    precision: shared.PrecisionOption = None,
    device: shared.Device = "auto",
    split_seed: shared.SplitSeed = 0,
    val_share: shared.ValShare = None,
    test_share: shared.TestShare = 0.15,
    skip_unreadable: shared.SkipUnreadable = False,
    allow_outside: shared.AllowOutside = False,
    smoke: shared.Smoke = False,
    set_: shared.Set = None,
) -> None:
    """One setting at several values, every method and seed at each: curves with spreads for ID, shifts and unseen classes."""
    shared.check_folder(out)
    pick_device(device)
    given = {"model": model, "precision": precision, "methods": shared.names(methods), "seeds": shared.numbers(seeds, "--seeds")}
    settings = resolve(data, recipe, set_, **given, alphas=shared.given_fractions(alphas, "--alphas"), smoke=smoke)
    options = DataOptions(
        data=data, root=root, split_seed=split_seed, val_share=val_share, test_share=test_share, skip_unreadable=skip_unreadable,
        base_to_new=base_to_new, fewer=fewer, anchors=anchors, templates=settings.templates, allow_outside=allow_outside, smoke=smoke,
    )  # fmt: skip
    key, values = swept(over, settings.plan.tuned, lambda more: resolve(data, recipe, [*(set_ or ()), *more], **given))
    if key == SHOTS and shots is not None:
        raise SettingError(f"--over {over} sets the images a class, and so does --shots {shots}. Leave --shots out.")
    job, dataset = shared.job(options, settings, device, watch), shared.opened(options)
    swept_parts = (
        parts.few_shots(dataset, values) if key == SHOTS else parts.sweep(dataset, key, values).with_shots([shots] if shots else [])
    )
    carry_through(swept_parts, job, [options], out)


def swept(over: str, methods: list[str], check: Callable[[list[str]], object]) -> tuple[str, list[Any]]:
    """The setting and the values of "key=v1,v2,...".

    Args:
        over: what was typed.
        methods: those that must take the setting.
        check: resolves further settings, and raises for those that a method does not take.

    Raises:
        SettingError: another form, or a value that a method does not take.

    Examples:
        >>> swept("epochs=5,10", ["flyp"], lambda more: None)
        ('epochs', [5, 10])
    """
    key, equals, text = over.partition("=")
    typed = shared.names(text) or []
    if not equals or len(typed) < 2:
        raise SettingError(f"--over is '{over}'. Write a setting and two values or more, such as learning_rate=1e-5,1e-4.")
    if key == "alpha":
        raise SettingError(
            "WiSE-FT's alpha is no setting of a run: every command judges all of --alphas. CAR-FT's alpha is context_weight."
        )
    if held := [name for name in methods if any(part.partition("=")[0] == key for part in name.split("+")[1:])]:
        raise SettingError(f"{', '.join(held)} names {key} itself, which --over {over} would set. Leave it out of --methods.")
    if key == SHOTS:
        return key, list(shared.numbers(text, "--over shots") or ())
    for value in typed:
        check([f"{name}.{key}={value}" for name in methods])
    return key, [parse_assignments([f"{key}={value}"])[key] for value in typed]
