"""`surefoot explain`: where a model looks, which context it sees, and how far its confidence can be trusted, before and after."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.markup import escape

from surefoot import explain as explaining
from surefoot import records
from surefoot import soup as soups
from surefoot.bundle import CARD, load_bundle
from surefoot.cli import console as shared
from surefoot.cli.report import command_of, delivered
from surefoot.data import Dataset
from surefoot.errors import DataError, MissingDataError, SettingError, unknown_name
from surefoot.explain import Pick, Question, Version
from surefoot.identity import weights_hash
from surefoot.job import FILE as JOB
from surefoot.job import DataOptions, Job, pick_precision
from surefoot.methods import wise_ft
from surefoot.model import ImageTextModel, load_model, pick_device
from surefoot.predict import find_images
from surefoot.report import contexts, reliability, write_explained_page, write_page
from surefoot.report.answers import Stored
from surefoot.report.before_after import BeforeAfter, before_after
from surefoot.report.runs import Runs, collect, display_name
from surefoot.soup import Ingredient
from surefoot.train import part
from surefoot.train.state import start_of

Source = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that 'surefoot compare', 'fit' or 'soup' wrote, or a model/ alone.")]
Given = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[IMAGES]...", help="Image files, or folders of them. Without any, images of the run's own test sets."),
]
DataOption = Annotated[
    str | None, typer.Option(help="Data to draw images from. Default: the run's own, which a soup or a model alone does not name.")
]
Method = Annotated[str | None, typer.Option(help="Which method of the run. Default: the best on ID validation.", show_default=False)]
Seed = Annotated[int | None, typer.Option(help="Which of its seeds. Default: the first.", show_default=False)]
Class = Annotated[
    str | None,
    typer.Option("--class", help="The class whose score is explained, any name. Default: the image's own, or what is answered."),
]
PerSet = Annotated[int, typer.Option(help="Images drawn from ID test and each shift, and as many of those whose answer changed.")]
Most = Annotated[int, typer.Option(help="Given images shown at most; of more, so many are drawn.")]
DrawSeed = Annotated[int, typer.Option(help="Seed of the draw.")]
NoMaps = Annotated[bool, typer.Option("--no-maps", help="Show classes and contexts alone, for towers that have no maps of attention.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for page and pictures. Default: RUN/explain, which the run's report shows too.")
]


def explain(
    run: Source,
    images: Given = None,
    data: DataOption = None,
    root: shared.Root = None,
    method: Method = None,
    seed: Seed = None,
    class_: Class = None,
    per_set: PerSet = 1,
    most: Most = 100,
    draw_seed: DrawSeed = 0,
    no_maps: NoMaps = False,
    out: OutOption = None,
    device: shared.Device = "auto",
) -> None:
    """Show where the zero-shot, the fine-tuned and the robust model look on the same images, and which contexts they see."""
    for flag, count in (("--per-set", per_set), ("--most", most)):
        if count < 1:
            raise SettingError(f"{flag} is {count}; it must be 1 or more.")
    if draw_seed < 0:
        raise SettingError(f"--draw-seed is {draw_seed}; it must be 0 or more.")
    if run.is_file():
        raise SettingError(f"{run} is a file. Give the folder of a run or a model first, images behind it.")
    if images and data is not None:
        raise SettingError("Give images, or data to draw them from by --data, not both.")
    folder = run / explaining.FOLDER if out is None else out
    shared.check_folder(folder)
    explaining.check_folder(folder)
    subject = _run(run, method, seed, device) if (run / JOB).is_file() else _model(run, method, device)
    dataset = None if images else _opened(subject, data, root)
    question = _question(subject, dataset, class_)
    given = _given(images, most, draw_seed) if images else []
    picked = _picked(subject, dataset, given, per_set, draw_seed, class_)
    with shared.counting("looking") as on_done:
        explaining.show(folder, subject.model, picked, subject.versions, question, maps=not no_maps, on_done=on_done, **subject.origin)
    _tell(run, folder, subject)


@dataclass(frozen=True)
class _Subject:
    """What is explained: a model with its versions, class names and prompts, where its records lie, and how its own data are opened."""

    model: ImageTextModel
    versions: Sequence[Version]
    names: Sequence[str]
    templates: Sequence[str]
    contexts: Mapping[str, str]
    folder: Path
    runs: Runs | None
    shown: BeforeAfter | None
    data: DataOptions | None
    origin: Mapping[str, Any] = field(default_factory=dict)


def _runs_of(folder: Path) -> Runs | None:
    found = list(records.read(folder))
    return collect(found) if any(isinstance(one, records.Evaluation) for one in found) else None


def _run(folder: Path, method: str | None, seed: int | None, device: str) -> _Subject:
    """The zero-shot model of a comparison, a fine-tuned one, and what WiSE-FT's alpha, chosen on validation, makes of both."""
    runs = _runs_of(folder)
    if runs is None or not runs.methods:
        raise MissingDataError(f"{folder} holds no fine-tuned model yet. Run 'surefoot compare' or 'surefoot fit' into it first.")
    if method is not None and method not in runs.methods:
        raise unknown_name(f"method in {folder}", method, runs.methods)
    shown = _shown(folder, runs, method or "", seed)
    if shown.method in soups.NAMES.values():  # a mean of runs, whose weights are its model's
        return replace(_model(folder, shown.method, device), data=Job.of(folder).data)
    described = runs.described
    if described is None:
        raise DataError(f"{folder / records.FILE} does not say what the classes are. Run the same 'surefoot compare' again, which adds it.")
    job = Job.of(folder)
    model = (job if device == "auto" else replace(job, device=device)).load_model()
    tuned = Ingredient.of(folder, next(one.evaluation for one in shown.others), described.class_names["seen"])
    _check_base(model, job.model, tuned.origin["weights"], folder)
    versions = _versions(model, tuned, shown, described)
    origin = {"method": tuned.method.name, "seed": tuned.seed, "settings_hash": records.settings_hash(tuned.settings)}
    return _Subject(
        model, versions, described.class_names["seen"], described.templates, described.contexts, folder, runs, shown, job.data,
        {**origin, "provenance": tuned.origin},
    )  # fmt: skip


def _shown(folder: Path, runs: Runs, method: str, seed: int | None) -> BeforeAfter:
    """What is shown of a run: one that was fine-tuned, not the zero-shot model alone."""

    def of(number: int | None) -> BeforeAfter | None:
        found = before_after(runs, method, number)
        return found if found and found.others else None

    if found := of(seed):
        return found
    own = before_after(runs, method)
    if own is None or not (seeds := [number for number in runs.seeds(own.method) if of(number)]):
        what = f"no finished run of {method}" if method else "no run that is finished"
        raise MissingDataError(f"{folder} holds {what} yet. Run the same 'surefoot compare' or 'surefoot fit' again, which goes on.")
    raise SettingError(
        f"--seed is {seed}, which {folder} does not hold of {own.method}. Seeds there: {', '.join(map(str, seeds))}. Give one of them."
        if seed is not None
        else f"{folder} does not hold the first seed of {own.method} in full. Give one by --seed: {', '.join(map(str, seeds))}."
    )


def _versions(model: ImageTextModel, tuned: Ingredient, shown: BeforeAfter, described: records.Described) -> list[Version]:
    """The zero-shot model, and the points between it and the run that are shown."""
    start = start_of(model, described.class_names["seen"], described.templates)
    end = tuned.weights()

    def version(row: str, label: str, alpha: float) -> Version:
        def state() -> dict[str, Any]:
            return dict(start) if alpha == 0 else wise_ft(start, end, alpha)

        head = None
        if alpha == 0 or tuned.method.predict == "head":
            first = {name: start[name] for name in ("head.weight", "head.bias")}
            own = first if alpha == 0 else wise_ft(first, {name: end[name] for name in first}, alpha)
            head = (own["head.weight"], own["head.bias"])
        return Version(row, label, lambda: part(state(), "model"), head)

    versions = [version(one.row, one.label, one.evaluation.alpha) for one in shown.versions]
    return versions if shown.zero else [version("zero_shot", "zero-shot", 0.0), *versions]


def _model(folder: Path, method: str | None, device: str) -> _Subject:
    """A classifier of `fit` or `soup`, and the pre-trained model that it came from."""
    if not any((place / CARD).is_file() for place in (folder, folder / "model")):
        raise MissingDataError(f"{folder} holds neither a run ({JOB}) nor a model ({CARD}). Give a folder that 'surefoot fit' wrote.")
    bundle = load_bundle(folder, device=device)
    card = bundle.card
    if method not in (None, card.method):
        raise unknown_name(f"method in {folder}", str(method), [card.method])
    target = pick_device(device)
    base = load_model(
        card.base, device=target, precision=pick_precision(str(card.origin.get("settings", {}).get("precision", "auto")), target)
    )
    _check_base(base, card.base, str(card.origin.get("weights", "")), folder)
    label = display_name(card.method) + (f", α = {card.alpha:g}" if card.alpha < 1 else "")
    start = start_of(base, card.class_names, card.templates)
    versions = [
        Version("zero_shot", "zero-shot", lambda: part(start, "model"), (start["head.weight"], start["head.bias"])),
        Version(card.method, label, bundle.model.weights, (bundle.head["weight"], bundle.head["bias"])),
    ]
    runs = _runs_of(folder)
    found = before_after(runs, card.method) if runs else None
    told = runs.described.contexts if runs and runs.described else {}
    origin: dict[str, Any] = {"method": card.method, "seed": int(card.origin.get("seed", 0))}
    if found and found.others:
        origin["settings_hash"] = found.others[0].evaluation.settings_hash
    return _Subject(base, versions, card.class_names, card.templates, told, folder, runs, found, None, origin)


def _check_base(model: ImageTextModel, name: str, weights: str, folder: Path) -> None:
    """Whether the pre-trained model is the one that a run or a classifier was trained from, as far as that one's hash is known."""
    if weights and weights_hash(model) != weights:
        raise DataError(f"{name} is not the model any more that {folder} was trained from. Give the model that it was, or train again.")


def _opened(subject: _Subject, data: str | None, root: str | None) -> Dataset:
    options = subject.data if data is None else DataOptions(data=data, root=root)
    if options is None:
        raise SettingError(f"{subject.folder} does not say which data it was made of. Give images, or --data with a data set to draw from.")
    with shared.counting("reading images") as on_image:
        dataset = options.open_plain(on_image)
    if list(dataset.class_names) != list(subject.names):
        raise SettingError(f"{dataset.name} has other classes than {subject.folder} was trained on. Give its images themselves instead.")
    return dataset


def _question(subject: _Subject, dataset: Dataset | None, class_: str | None) -> Question:
    told = dataset.contexts if dataset is not None else subject.contexts
    known = {name.casefold() for name in subject.names}
    added = class_.strip() if class_ is not None and class_.strip().casefold() not in known else ""
    if class_ is not None and not class_.strip():
        raise SettingError("--class is empty. Name the class whose score is to be explained.")
    return Question(subject.names, subject.templates, told or explaining.generic_contexts(), added)


def _given(images: list[Path], most: int, seed: int) -> list[Path]:
    """The images that were named, or as many of them as are shown, drawn by the seed."""
    found = find_images(images)
    if len(found) > most:
        shared.errors.print(f"{most} of {len(found)} images, drawn with --draw-seed {seed}; --most {len(found)} shows all of them.")
    return [found[row] for row in explaining.some(len(found), most, seed)]


def _picked(subject: _Subject, dataset: Dataset | None, images: list[Path], count: int, seed: int, class_: str | None) -> list[Pick]:
    """The images of a command; `class_` names a class for all of them."""
    if dataset is None:
        found = [Pick(path) for path in images]
    elif not (found := explaining.picks(dataset, _changed(subject, dataset), count, seed)):
        raise DataError(f"{dataset.name} has no test images to draw from. Give images instead.")
    if class_ is None:
        return found
    folded = [name.casefold() for name in subject.names]
    wanted = class_.strip().casefold()
    return [replace(one, of=folded.index(wanted) if wanted in folded else len(folded)) for one in found]


def _changed(subject: _Subject, dataset: Dataset) -> dict[str, NDArray[np.bool_]]:
    """{set: which answers the fine-tuned model changed}, by the answers beside the records, if they are of these data."""
    shown = subject.shown
    if shown is None or shown.zero is None or not shown.others:
        return {}
    if shown.others[0].evaluation.provenance.get("data") != dataset.fingerprint():
        if subject.data is not None:
            shared.errors.print("The data are not those of the records any more: only drawn images are shown.")
        return {}
    stored = Stored(subject.folder)
    before, after = (stored.all(one.evaluation) for one in (shown.zero, shown.others[0]))
    return {name: before[name].prediction != after[name].prediction for name in before.keys() & after.keys()}


def _tell(run: Path, folder: Path, subject: _Subject) -> None:
    """The page, what it says in words on the console, and the report of the run again where it shows these images too."""
    command = "surefoot " + shlex.join(sys.argv[1:])
    chosen = subject.shown.method if subject.shown else ""
    seed = subject.shown.others[0].evaluation.seed if subject.shown and subject.shown.others else None
    if folder.resolve() == (run / explaining.FOLDER).resolve() and subject.runs is not None:
        write_page(run, run / "report", command=command_of(run), notes=delivered(run, list(records.read(run))))
    if subject.shown is not None:
        stored = Stored(subject.folder)
        for sentence in [*contexts.sentences(subject.shown, stored), *reliability.sentences(subject.shown, stored)]:
            shared.console.print(escape(sentence), soft_wrap=True, highlight=False)
    page = write_explained_page(folder, subject.folder if subject.runs else None, command=command, method=chosen, seed=seed)
    shared.console.print(f"Explained: {escape(str(page))}", soft_wrap=True)
