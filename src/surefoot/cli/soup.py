"""`surefoot soup`: one model from several finished runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from surefoot import records
from surefoot import soup as soups
from surefoot.bundle import CARD, Card, read_card, save_bundle
from surefoot.cli import console as shared
from surefoot.cli.report import COMMAND, write_report
from surefoot.compare import choices, description, differences, evaluation
from surefoot.data import Dataset
from surefoot.data.draws import of_seed
from surefoot.data.writing import alone
from surefoot.errors import DataError, MissingDataError, SettingError, unknown_name
from surefoot.folders import put_text
from surefoot.identity import weights_hash
from surefoot.job import FILE as JOB
from surefoot.job import Job
from surefoot.methods import get, wise_ft
from surefoot.model import ImageTextModel, pick_device
from surefoot.objective import Method
from surefoot.protocols import Judge, Member, Outcome
from surefoot.report.runs import Runs, collect
from surefoot.soup import Ingredient
from surefoot.train import State, start_state
from surefoot.watching import LOCK

Given = Annotated[
    list[str],
    typer.Argument(metavar="RUNS", help="FOLDER (all runs of its report), FOLDER:METHOD, FOLDER:METHOD@seed1, or a weights file."),
]
Greedy = Annotated[bool, typer.Option("--greedy", help="Add a run only if ID validation does not get worse; all runs otherwise.")]
Alphas = Annotated[str, typer.Option(help="WiSE-FT's coefficients on top of the soup; 0 and 1 are added.")]
Conclusion = records.Choice | records.Difference | records.Example | records.Anchored | records.Robustness


def soup(
    runs: Given,
    out: shared.Out = Path("runs/soup"),
    greedy: Greedy = False,
    alphas: Alphas = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1",
    device: shared.Device = "auto",
) -> None:
    """Average the weights of finished runs, and judge the soup on everything; OUT/model is the classifier."""
    shared.check_folder(out)
    pick_device(device)
    coefficients = sorted({0.0, 1.0, *shared.fractions(alphas, "--alphas")})
    if not 0 <= coefficients[0] <= coefficients[-1] <= 1:
        raise SettingError(f"--alphas is '{alphas}'; every one must be in 0..1.")
    ingredients = list({one.path.name: one for text in runs for one in ingredients_of(text)}.values())  # a run given twice counts once
    soups.check(ingredients)
    first = ingredients[0]
    _check_out(out, first)
    if not _is_finished(out, soups.settings_of(ingredients, ingredients, is_greedy=greedy), coefficients):
        job = replace(Job.of(first.folder), model=first.settings["model"], precision=first.settings["precision"], device=device)
        dataset, model = _opened(job, first)
        start = start_state(model, dataset)
        with alone(out, LOCK, "--out", "what is finished is kept", doing="soup"):
            state, kept = _made(ingredients, model, dataset, is_greedy=greedy)
            method, settings = soups.method_of(kept, is_greedy=greedy), soups.settings_of(ingredients, kept, is_greedy=greedy)
            outcomes = _judged(model, dataset, start, method, state, coefficients, job.plan.corruptions)
            rows = soups.validation_rows(dataset, ingredients)
            _record(out, dataset, settings, {alpha: _with_val(outcome, rows) for alpha, outcome in outcomes.items()}, first.origin)
            save_bundle(
                out / "model", model, state, dataset, method, 1.0, seed=0, settings=settings, **records.provenance(), **first.origin
            )
            if not (out / JOB).is_file():  # the command of a comparison that stands there is the one to repeat
                put_text(out / COMMAND, "surefoot " + shlex.join(sys.argv[1:]) + "\n")
    write_report(out)


def ingredients_of(text: str) -> list[Ingredient]:
    """The finished runs that FOLDER, FOLDER:METHOD, FOLDER:METHOD@seedN or the path of a weights file names.

    Of a folder they are the runs that its report shows; an earlier one, under other settings, is named by its file.

    Raises:
        MissingDataError: no results there, or no weights of a run.
        UnknownNameError: no such method.
        SettingError: no such seed, or a soup.
    """
    if text.endswith(".safetensors") and Path(text).is_file():
        return [_of_file(Path(text))]
    folder, row = _split(text)
    found = collect(records.read(folder))
    name, _, seed = row.partition("@seed")
    if name in soups.NAMES.values():
        raise SettingError(f"'{text}' is a soup, a mean already. Name the runs that it was made of.")
    known = [method for method in found.methods if method not in soups.NAMES.values()]
    if name and name not in known:
        raise unknown_name(f"method in {folder}", name, known)
    wanted = [(method, number) for method, number in found.runs if method in ([name] if name else known)]
    chosen = [key for key in wanted if not seed or seed == str(key[1])]
    points = [found.runs[key].points[1.0] for key in chosen if 1.0 in found.runs[key].points]
    if not points:
        there = ", ".join(f"{method}@seed{number}" for method, number in wanted) or "none that is finished"
        raise SettingError(f"'{text}' names no run. Runs in {folder}: {there}.")
    names = found.described.class_names["seen"] if found.described else ()
    return [Ingredient.of(folder, point, names) for point in points]


def _split(text: str) -> tuple[Path, str]:
    """The folder of results, and what stands behind its colon; both may hold colons themselves."""
    for place in [len(text), *(place for place, letter in enumerate(text) if letter == ":")]:
        if (Path(text[:place]) / records.FILE).is_file():
            return Path(text[:place]), text[place + 1 :]
    named = text if Path(text).exists() else text.rpartition(":")[0] or text
    raise MissingDataError(f"There are no results in {named}. Give a folder that 'surefoot compare' or 'surefoot fit' wrote.")


def _of_file(path: Path) -> Ingredient:
    """The run whose weights a file holds, also one whose place in the report another run has taken."""
    folder = path.parent.parent
    stored = list(records.read(folder))
    for record in stored:
        if isinstance(record, records.Evaluation) and soups.weights_of(folder, record).name == path.name:
            described = [r for r in stored if isinstance(r, records.Described) and r.dataset == record.dataset]
            return Ingredient.of(folder, record, described[-1].class_names["seen"] if described else ())
    raise MissingDataError(f"{folder} has no record of a run whose weights are {path}. Give a file that 'surefoot compare' wrote.")


def _standing(out: Path) -> Runs | None:
    """What the report of a folder shows; None where nothing was evaluated yet."""
    stored = list(records.read(out))
    return collect(stored) if any(isinstance(record, records.Evaluation) for record in stored) else None


def _card(out: Path) -> Card | None:
    return read_card(out / "model") if (out / "model" / CARD).is_file() else None


def _check_out(out: Path, first: Ingredient) -> None:
    """Whether the soup can stand in a folder without taking the place of something else.

    Raises:
        SettingError: a classifier that is no soup is there.
        DataError: results on other data or of another pre-trained model are there.
    """
    card, standing = _card(out), _standing(out)
    if card and card.method not in soups.NAMES.values():
        raise SettingError(f"{out / 'model'} holds a classifier of {card.method}, which stays. Give another folder by --out.")
    for record in standing.evaluations() if standing else ():
        if any(record.provenance.get(key) != value for key, value in first.origin.items()):
            raise DataError(f"{out} holds results on other data than {first.name}, or of another model. Give another folder by --out.")


def _is_finished(out: Path, settings: Mapping[str, Any], alphas: Sequence[float]) -> bool:
    """Whether the same soup was judged at all these alphas, and is the classifier that stands there."""
    standing = _standing(out)
    run = standing.runs.get((settings["method"], 0)) if standing else None
    if run is None or not set(alphas) <= run.points.keys():
        return False
    whole = all((out / point.answers).is_file() for point in run.points.values())
    made = run.points[1.0].settings
    same = all(made.get(key) == value for key, value in settings.items() if key != "ingredients")  # a greedy soup keeps some
    card = _card(out)
    return whole and same and card is not None and card.origin.get("settings") == made


def _opened(job: Job, first: Ingredient) -> tuple[Dataset, ImageTextModel]:
    """Data and pre-trained model of the runs, as they were.

    Raises:
        DataError: one of them has changed.
    """
    dataset, model = shared.opened(job.data), job.load_model()
    for what, now, then in (("data", dataset.fingerprint(), first.origin["data"]), ("model", weights_hash(model), first.origin["weights"])):
        if now != then:
            raise DataError(f"The {what} of {first.name} changed since it was trained ({then} then, {now} now). Run its comparison again.")
    return of_seed(dataset, first.seed), model


def _made(ingredients: Sequence[Ingredient], model: ImageTextModel, dataset: Dataset, *, is_greedy: bool) -> tuple[State, list[Ingredient]]:
    """The soup and what is in it, which is told."""
    if is_greedy:
        with shared.counting("tasting soups") as on_done:
            state, kept = soups.greedy(ingredients, soups.scorer(model, dataset, ingredients), on_done)
    else:
        state, kept = soups.uniform(ingredients), list(ingredients)
    left = [one.name for one in ingredients if one not in kept]
    shared.console.print(f"In the soup: {escape('; '.join(one.name for one in kept))}.", soft_wrap=True, highlight=False)
    if left:
        shared.console.print(f"Left out, since ID validation got worse: {escape('; '.join(left))}.", soft_wrap=True, highlight=False)
    return state, kept


def _judged(
    model: ImageTextModel, dataset: Dataset, start: State, method: Method, state: State, alphas: Sequence[float], corruptions: bool | None
) -> dict[float, Outcome]:
    """The soup at every alpha, in one pass over the images; 0 is the zero-shot model."""
    above = [alpha for alpha in alphas if alpha > 0]
    with shared.bar() as progress:
        task = progress.add_task("images", total=None)
        judge = Judge(model, dataset, start, None, corruptions, on_images=lambda number: progress.advance(task, number))
        progress.update(task, total=(1 + len(above) * ("visual" in method.trains)) * judge.num_images)
        members = [Member(method, lambda alpha=alpha: wise_ft(start, state, alpha)) for alpha in above]  # type: ignore[misc]
        zero, *others = judge.judge_all([Member.of(get("zero_shot"), start), *members])
    return {0.0: zero, **dict(zip(above, others, strict=True))}


def _with_val(outcome: Outcome, rows: Sequence[int]) -> Outcome:
    """Of few-shot runs only the validation images of their own draws may choose alpha."""
    return Outcome({**outcome.answers, "val": outcome.answers["val"].rows(rows)})


def _record(out: Path, dataset: Dataset, settings: Mapping[str, Any], outcomes: Mapping[float, Outcome], origin: Mapping[str, str]) -> None:
    """Evaluations of the zero-shot model and of the soup, and what follows from them and from what else stands in the folder."""
    before = _standing(out)
    name, provenance = before.dataset if before else dataset.name, records.provenance() | dict(origin)
    if before is None or before.described is None:
        records.append(out, description(dataset, name))
    zero = {"method": "zero_shot", "model": settings["model"], "precision": settings["precision"]}
    rows = [(settings["method"], alpha, settings) for alpha in outcomes]
    if before is None or ("zero_shot", 0) not in before.runs:
        rows = [("zero_shot", 0.0, zero), *rows]
    for method, alpha, given in rows:
        records.append(out, evaluation(out, name, method, 0, alpha, given, outcomes[alpha], provenance))
    _conclude(out, before)


def _conclude(out: Path, before: Runs | None) -> None:
    """Choices and differences of all that stands in the folder; what a comparison showed there besides is kept beside them."""
    found = list(collect(records.read(out)).evaluations())
    chosen = choices(found, out)
    made: list[Conclusion] = [*chosen, *differences(found, out, chosen)]
    made += [*before.examples, *before.anchored, *before.robustness.values()] if before else []
    runs = records.settings_hash({"runs": sorted((r.method, r.seed, r.alpha, r.settings_hash, str(r.provenance)) for r in found)})
    for conclusion in made:
        records.append(out, replace(conclusion, runs=runs))
