"""`surefoot fit`: one good model from a folder of images, with an honest report beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from surefoot import config, records
from surefoot.advise import Advice, advise, duration, judging_seconds, with_method
from surefoot.bundle import save_bundle
from surefoot.cli import console as shared
from surefoot.cli.compare import carry_out
from surefoot.cli.recipe import SMOKE, resolve
from surefoot.cli.report import write_report
from surefoot.compare import Comparison, Plan
from surefoot.data import Dataset
from surefoot.distributed import is_first
from surefoot.errors import SettingError
from surefoot.guard import parse_json, read_text
from surefoot.job import DataOptions, Job
from surefoot.methods import wise_ft
from surefoot.model import pick_device
from surefoot.train import start_state

ADVICE = "advice.json"


Method = Annotated[str | None, typer.Option(help="See 'surefoot methods'. Default: chosen for the data and the machine.")]
Alpha = Annotated[
    str | None,
    typer.Option(
        help="WiSE-FT's coefficient: 'val' (chosen on ID validation) or a number in 0..1. Default: val; CLIP-CITE: 0.5.",
        show_default=False,
    ),
]
Minutes = Annotated[float, typer.Option(help="How long training may take; a cheaper method is taken where one does not fit.")]
Seed = Annotated[int, typer.Option(help="Of order, crops and prompts.")]


def fit(
    data: shared.Data,
    root: shared.Root = None,
    out: shared.Out = Path("runs/fit"),
    method: Method = None,
    model: shared.Model = None,
    alpha: Alpha = None,
    anchors: shared.Anchors = None,
    minutes: Minutes = 120,
    seed: Seed = 0,
    recipe: shared.Recipe = None,
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
    """Fine-tune on a folder of images. OUT/model is the classifier, OUT/report what it gained and what it cost."""
    coefficient = _alpha(alpha, method)
    _check(out, minutes, device)
    chosen = None if method is None else [method]
    settings = resolve(data, recipe, set_, model=model, methods=chosen, seeds=[seed], precision=precision, smoke=smoke)
    options = DataOptions(
        data=data, split_seed=split_seed, val_share=val_share, test_share=test_share, skip_unreadable=skip_unreadable,
        anchors=anchors, root=root, templates=settings.templates, allow_outside=allow_outside, smoke=smoke,
    )  # fmt: skip
    if method is not None and not settings.plan.tuned:
        raise SettingError(f"{method} trains nothing, so there is nothing to fit. Give another --method, or leave it out.")
    job = _at(coefficient, shared.job(options, settings, device, watch))
    dataset = shared.opened(options)
    own = _given(set_ or [], recipe, smoke)
    asked = {"data": dataset.fingerprint(), "method": method, "minutes": minutes, "given": own, "job": _asked(job)}
    advice = _advice(job, dataset, out, asked)
    _tell(advice, len(job.plan.all_alphas))
    files = {ADVICE: json.dumps({"asked": asked, **advice}, indent=1) + "\n"}
    carry_out(_with(job, advice), dataset, out, files, then=lambda comparison: _write_model(comparison, out, coefficient))
    write_report(out)
    shared.console.print(f"Try: surefoot predict {escape(str(out))} IMAGE", soft_wrap=True)


def _given(assignments: list[str], recipe: str | None, smoke: bool) -> list[str]:
    """The settings that are not to be advised."""
    of_recipe = config.read_recipe(recipe).get("training", {}) if recipe else ()
    return sorted({*config.parse_assignments(assignments), *of_recipe, *(SMOKE if smoke else ())})


def _tell(advice: Mapping[str, Any], alphas: int) -> None:
    """Why the method was chosen, and how long it takes."""
    for sentence in advice["reasons"]:
        shared.console.print(f"- {escape(sentence)}", soft_wrap=True)
    times = f"Training takes about {duration(advice['seconds'])} and {advice['bytes'] / 1e9:.1f} GB of memory"
    shared.console.print(f"- {times}, judging {alphas} alphas about {duration(advice.get('judging', 0.0))}.")


def _at(coefficient: float | None, job: Job) -> Job:
    """The job with a coefficient among those that are judged."""
    return job if coefficient is None else job.at(tuple(sorted({*job.plan.alphas, coefficient})))


def _asked(job: Job) -> dict[str, Any]:
    """The job as it is compared with the one before; what was not known then is named where it is not as it was."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(job)))
    del found["watch"]
    for later, usual in (("templates", "own"), ("allow_outside", False), ("smoke", False)):
        if found["data"][later] == usual:
            del found["data"][later]
    return found


def _check(out: Path, minutes: float, device: str) -> None:
    """What can be wrong before anything is read."""
    if not minutes > 0:
        raise SettingError(f"--minutes is {minutes:g}; it must be above 0, such as 120.")
    shared.check_folder(out)
    pick_device(device)


def _with(job: Job, advice: Mapping[str, Any]) -> Job:
    """The job with the method and the training that were advised; what the user set stays."""
    plan = with_method(job.plan, advice["method"], advice["settings"])
    return replace(job, plan=replace(plan, training=replace(plan.training, **advice["training"])))


def _alpha(text: str | None, method: str | None) -> float | None:
    """The coefficient that was asked for, or the method's own; None for the one that ID validation chooses."""
    if text is None:
        return Plan().method_of(method).finish if method is not None else None
    try:
        value = None if text == "val" else float(text)
    except ValueError as error:
        raise SettingError(f"--alpha is '{text}'; it must be 'val' or a number in 0..1.") from error
    if value is not None and not 0 <= value <= 1:
        raise SettingError(f"--alpha is {value}; it must be 'val' or a number in 0..1.")
    return value


def _advice(job: Job, dataset: Dataset, out: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was advised for the same question before, so that an interrupted run goes on; measured now otherwise."""
    path = out / ADVICE
    try:
        stored = parse_json(read_text(path))
    except (FileNotFoundError, ValueError):  # none yet, or one that was cut off
        stored = None
    if isinstance(stored, dict) and stored.get("asked") == asked:
        return stored
    shared.console.print("Measuring a few steps...")
    model = job.load_model()
    advice: Advice = advise(
        model, dataset, job.plan, start_state(model, dataset), method=asked["method"], minutes=asked["minutes"], given=asked["given"]
    )  # fmt: skip
    changed = {k: v for k, v in asdict(advice.training).items() if v != asdict(job.plan.training)[k]}
    judges = "visual" in job.plan.method_of(advice.method).trains
    return {
        "method": advice.method,
        "settings": dict(advice.settings),
        "training": changed,
        "reasons": list(advice.reasons),
        "seconds": advice.cost.seconds,
        "bytes": advice.cost.num_bytes,
        "judging": judging_seconds(model, dataset, len(job.plan.all_alphas) - 1) if judges else 0.0,
    }


def _write_model(comparison: Comparison, out: Path, coefficient: float | None) -> None:
    """The classifier at the coefficient that was asked for, or that ID validation chose."""
    name, seed = comparison.plan.methods[0], comparison.plan.seeds[0]
    method = comparison.plan.method_of(name)
    choice = [r for r in records.read(out) if isinstance(r, records.Choice) and (r.method, r.seed) == (name, seed)][-1]
    alpha = choice.alpha if coefficient is None else coefficient
    end, _ = comparison.trained(method, comparison.plan.training_of(name, seed))
    if is_first():
        save_bundle(
            out / "model", comparison.model, wise_ft(comparison.start, end, alpha), comparison.dataset, method, alpha,
            seed=seed, settings=comparison.settings(method, comparison.plan.training_of(name, seed)), **comparison.provenance,
        )  # fmt: skip
    how = "chosen on ID validation" if coefficient is None else "as asked"
    shared.console.print(f"Model: {escape(str(out / 'model'))} (alpha {alpha:g}, {how})", soft_wrap=True)
    if coefficient is None and alpha == 0:
        number = len(comparison.dataset.split("val"))
        shared.console.print(
            f"alpha 0 is the zero-shot model: {number} validation images show no gain from fine-tuning that is larger than chance. "
            "Add images, or take the fine-tuned weights all the same by --alpha 1.", soft_wrap=True, highlight=False,
        )  # fmt: skip
