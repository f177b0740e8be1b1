"""`surefoot soup`: one model from several finished runs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from safetensors import safe_open
from torch import Tensor

from surefoot import records
from surefoot import soup as soups
from surefoot.bundle import save_bundle
from surefoot.cli import console as shared
from surefoot.cli.report import COMMAND, write_report
from surefoot.compare import choices, differences, evaluation
from surefoot.data import Dataset
from surefoot.errors import DataError, MissingDataError, SettingError, unknown_name
from surefoot.heads import LinearHead
from surefoot.identity import weights_hash
from surefoot.job import Job
from surefoot.methods import get, wise_ft
from surefoot.model import ImageTextModel
from surefoot.objective import Method
from surefoot.protocols import Judge, Member, Outcome
from surefoot.report.runs import collect
from surefoot.soup import Ingredient
from surefoot.train import State, part, start_state, text_head
from surefoot.train.validate import Validation

Runs = Annotated[list[str], typer.Argument(help="Folders of runs: FOLDER for all, FOLDER:METHOD for its seeds, FOLDER:METHOD@seed1.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Add a run only if ID validation does not get worse; all runs otherwise.")]
Alphas = Annotated[str, typer.Option(help="WiSE-FT's coefficients on top of the soup; 0 and 1 are added.")]


def soup(
    runs: Runs,
    out: shared.Out = Path("runs/soup"),
    greedy: Greedy = False,
    alphas: Alphas = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1",
    device: shared.Device = "auto",
) -> None:
    """Average the weights of finished runs, and judge the soup on everything; OUT/model is the classifier."""
    shared.check_folder(out)
    coefficients = sorted({0.0, 1.0, *shared.fractions(alphas, "--alphas")})
    if not 0 <= coefficients[0] <= coefficients[-1] <= 1:
        raise SettingError(f"--alphas is '{alphas}'; every one must be in 0..1.")
    ingredients = [one for text in runs for one in ingredients_of(text)]
    ingredients = list({one.path.absolute(): one for one in ingredients}.values())  # a run named twice counts once
    soups.check(ingredients)
    job = replace(Job.of(Path(runs[0].partition(":")[0])), device=device)
    dataset, model = shared.opened(job.data), job.load_model()
    origin = {"data": dataset.fingerprint(), "weights": weights_hash(model)}
    if (origin["data"], origin["weights"]) != ingredients[0].origin:
        raise DataError(
            f"The data or the model of {ingredients[0].name} have changed since it was trained. Compare again, then make the soup."
        )
    start = start_state(model, dataset)
    state, kept = _made(ingredients, model, dataset, greedy=greedy)
    method = soups.method_of(kept, is_greedy=greedy)
    settings = soups.settings_of(ingredients, kept, is_greedy=greedy) | {"model": model.name, "precision": model.precision}
    shared.console.print(f"In the soup: {escape('; '.join(one.name for one in kept))}.", soft_wrap=True, highlight=False)
    _record(out, dataset, method, settings, _judged(model, dataset, start, method, state, coefficients), records.provenance() | origin)
    save_bundle(out / "model", model, state, dataset, method, 1.0, settings=settings, seed=0, **origin)
    (out / COMMAND).write_text("surefoot " + shlex.join(sys.argv[1:]) + "\n", encoding="utf-8")
    write_report(out)


def ingredients_of(text: str) -> list[Ingredient]:
    """The finished runs that FOLDER, FOLDER:METHOD or FOLDER:METHOD@seedN names.

    Raises:
        MissingDataError: no results there, or no weights of a run.
        UnknownNameError: no such method.
        SettingError: no such seed.
    """
    place, _, row = (text, "", "") if Path(text).is_dir() else text.rpartition(":")
    folder, (name, _, seed) = Path(place), row.partition("@")
    if not (folder / records.FILE).is_file():
        raise MissingDataError(f"There are no results in {folder}. Give a folder that 'surefoot compare' or 'surefoot fit' wrote.")
    found, plan = collect(records.read(folder)), Job.of(folder).plan
    if name and name not in found.methods:
        raise unknown_name(f"method in {folder}", name, found.methods)
    made = []
    for (method, number), run in found.runs.items():
        if method == "zero_shot" or (name and name != method) or (seed and seed != f"seed{number}"):
            continue
        end = run.points.get(1.0)
        paths = [path for path in (folder / "weights").glob(f"{method}-seed{number}-*.safetensors") if _settings(path) == run.settings_hash]
        if end is None or not paths:
            raise MissingDataError(f"{folder} has no weights of {method}, seed {number}, any more. Run its comparison again.")
        origin = (str(end.provenance.get("data")), str(end.provenance.get("weights")))
        one = Ingredient(
            name=f"{folder}:{method}, seed {number}", method=plan.method_of(method), seed=number, settings_hash=run.settings_hash,
            path=paths[0], val=end.accuracy["val"], origin=origin,
        )  # fmt: skip
        made.append(one)
    if not made:
        raise SettingError(f"'{text}' names no run. {folder} has the methods {', '.join(found.methods)}.")
    return made


def _settings(path: Path) -> str:
    """The hash of the settings that stand in a weights file."""
    with safe_open(path, framework="pt") as stored:
        return records.settings_hash(json.loads((stored.metadata() or {}).get("settings", "null")))


def _made(ingredients: Sequence[Ingredient], model: ImageTextModel, dataset: Dataset, *, greedy: bool) -> tuple[State, list[Ingredient]]:
    """The soup and what is in it."""
    if not greedy:
        return soups.uniform(ingredients), list(ingredients)
    validation = Validation(model, dataset, "accuracy")
    device = next(model.parameters()).device

    def score(state: Mapping[str, Tensor]) -> float:
        model.load_weights(part(state, "model"))
        if ingredients[0].method.predict == "text":
            head = text_head(model, dataset)
        else:
            head = LinearHead(torch.zeros_like(state["head.weight"]), 1.0)
            head.load_state_dict(part(state, "head"))
        return validation.score(head.to(device), validation.features()).value

    with shared.counting("tasting runs") as on_done:
        return soups.greedy(ingredients, score, on_done)


def _judged(
    model: ImageTextModel, dataset: Dataset, start: State, method: Method, state: State, alphas: Sequence[float]
) -> dict[float, Outcome]:
    """The soup at every alpha; 0 is the zero-shot model."""
    with shared.bar() as progress:
        task = progress.add_task("images", total=None)
        judge = Judge(model, dataset, start, on_images=lambda number: progress.advance(task, number))
        progress.update(task, total=len(alphas) * judge.num_images)
        above = [alpha for alpha in alphas if alpha > 0]
        members = [Member(method, lambda alpha=alpha: wise_ft(start, state, alpha)) for alpha in above]  # type: ignore[misc]
        zero, *others = judge.judge_all([Member.of(get("zero_shot"), start), *members])
    return {0.0: zero, **dict(zip(above, others, strict=True))}


def _record(
    out: Path, dataset: Dataset, method: Method, settings: Mapping[str, Any], outcomes: Mapping[float, Outcome], origin: Mapping[str, Any]
) -> None:
    """Evaluations of the zero-shot model and of the soup, and what follows from them."""
    names = {"seen": dataset.class_names} | {split.name: split.class_names for split in dataset.unseen}
    sizes = {name: len(split) for name, split in dataset.splits.items()}
    records.append(
        out, records.Described(dataset=dataset.name, class_names=names, num_images=sizes, templates=dataset.templates, notes=dataset.notes)
    )
    zero = {key: settings[key] for key in ("model", "precision")} | {"method": "zero_shot"}
    rows = [("zero_shot", 0.0, zero), *((method.name, alpha, dict(settings)) for alpha in outcomes)]
    found = [evaluation(out, dataset.name, name, 0, alpha, given, outcomes[alpha], origin) for name, alpha, given in rows]
    for record in found:
        records.append(out, record)
    chosen = choices(found, out)
    mark = found[-1].settings_hash
    for choice in chosen:
        records.append(out, replace(choice, runs=mark))
    for difference in differences(found, out, chosen):
        records.append(out, replace(difference, runs=mark))
