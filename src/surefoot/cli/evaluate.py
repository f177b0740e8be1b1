"""`surefoot evaluate`: a finished classifier, and the zero-shot model that it came from, on any data."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from surefoot import records
from surefoot import soup as soups
from surefoot.bundle import Bundle, load_bundle
from surefoot.cli import console as shared
from surefoot.cli.report import COMMAND, write_report
from surefoot.compare import Plan, evaluation
from surefoot.data import Dataset
from surefoot.data.subsets import whole
from surefoot.data.writing import alone
from surefoot.errors import DataError
from surefoot.folders import put_text
from surefoot.identity import weights_hash
from surefoot.job import DataOptions, pick_precision
from surefoot.methods import get
from surefoot.model import ImageTextModel, load_model, pick_device
from surefoot.protocols import Judge, Member, Outcome
from surefoot.train import State, start_state
from surefoot.watching import LOCK


def evaluate(
    model: Annotated[Path, typer.Argument(help="A folder that 'surefoot fit' wrote, or its model/.")],
    data: shared.Data,
    root: shared.Root = None,
    out: Annotated[Path, typer.Option(help="Folder for records and the report.")] = Path("runs/evaluate"),
    all_images: Annotated[bool, typer.Option("--all-images", help="Judge train, val and test together: data never trained on.")] = False,
    corruptions: shared.Corruptions = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, tf32 or bf16. Default: that of its training, but auto for bf16.")
    ] = None,
    device: shared.Device = "auto",
    split_seed: shared.SplitSeed = 0,
    val_share: shared.ValShare = None,
    test_share: shared.TestShare = 0.15,
    skip_unreadable: shared.SkipUnreadable = False,
    allow_outside: shared.AllowOutside = False,
) -> None:
    """Judge a fine-tuned model and its zero-shot start on a data set. Its own classes are answered by its head, others by their names."""
    shared.check_folder(out)
    bundle = load_bundle(model, device=device)
    trained_in = bundle.card.origin.get("settings", {}).get("precision")
    chosen = pick_precision(precision or (trained_in if trained_in in ("fp32", "tf32") else "auto"), pick_device(device))
    bundle.model.precision = chosen
    options = DataOptions(
        data=data, split_seed=split_seed, val_share=val_share, test_share=test_share, skip_unreadable=skip_unreadable, root=root,
        allow_outside=allow_outside,
    )  # fmt: skip
    with shared.counting("reading images") as on_image:
        dataset = options.open(on_image)
    dataset = whole(dataset) if all_images else dataset
    shared.tell_notes(dataset)
    _check_same_data(out, dataset)
    base = load_model(bundle.card.base, device=pick_device(device), precision=chosen)
    with alone(out, LOCK, "--out", "what is finished is kept", doing="evaluate"):
        outcomes = _judged(bundle, base, dataset, corruptions)
        _record(bundle, outcomes, out, dataset, records.provenance() | {"data": dataset.fingerprint(), "weights": weights_hash(base)})
        put_text(out / COMMAND, "surefoot " + shlex.join(sys.argv[1:]) + "\n")
        write_report(out)


def _check_same_data(out: Path, dataset: Dataset) -> None:
    before = [r.dataset for r in records.read(out) if isinstance(r, records.Evaluation)]
    if before and before[-1] != dataset.name:
        raise DataError(f"{out} holds the records of {before[-1]}, not of {dataset.name}. Give another folder by --out.")


def _judged(bundle: Bundle, base: ImageTextModel, dataset: Dataset, corruptions: bool | None) -> list[Outcome]:
    """The zero-shot model's outcome and the classifier's."""
    start = start_state(base, dataset)
    predict = bundle.card.predict if state_fits(bundle, dataset) else "text"
    with shared.bar() as progress:
        task = progress.add_task("images", total=None)
        judge = Judge(base, dataset, start, None, corruptions, on_images=lambda number: progress.advance(task, number))
        progress.update(task, total=2 * judge.num_images)
        # a soup is of no method: what moves all that any method moves stands for it
        method = Plan().method_of("flyp" if bundle.card.method in soups.NAMES.values() else bundle.card.method)
        own = Member.of(replace(method, name=bundle.card.method, predict=predict), state_on(bundle, dataset, start))
        return judge.judge_all([Member.of(get("zero_shot"), start), own])


def _record(bundle: Bundle, outcomes: Sequence[Outcome], out: Path, dataset: Dataset, provenance: Mapping[str, Any]) -> None:
    """A record of each, and the alpha that the classifier stands at as the choice that was made."""
    card, seed = bundle.card, int(bundle.card.origin.get("seed", 0))
    for name, alpha, outcome in zip(("zero_shot", card.method), (0.0, card.alpha), outcomes, strict=True):
        trained = dict(card.origin.get("settings", {})) if alpha else {}
        settings = {**trained, "method": name, "model": card.base, "precision": bundle.model.precision}
        records.append(out, evaluation(out, dataset.name, name, seed if alpha else 0, alpha, settings, outcome, provenance))
    records.append(out, records.Choice(method=card.method, seed=seed, alpha=card.alpha, argmax=card.alpha))


def state_fits(bundle: Bundle, dataset: Dataset) -> bool:
    """Whether the head was trained on all of the data's classes, in whatever order; then only these compete."""
    known = list(bundle.card.class_names)
    if known == list(dataset.class_names):  # two classes may share a name then, as "missile" does in ImageNet
        return True
    return set(dataset.class_names) <= set(known) and all(known.count(name) == 1 for name in dataset.class_names)


def state_on(bundle: Bundle, dataset: Dataset, start: State) -> State:
    """The classifier's weights, its head's rows in the order of the data's classes; the zero-shot head where classes differ."""
    state = {f"model.{name}": tensor for name, tensor in bundle.model.weights().items()}
    if not state_fits(bundle, dataset):
        return state | {name: start[name] for name in ("head.weight", "head.bias")}
    known = list(bundle.card.class_names)
    rows = list(range(len(known))) if known == list(dataset.class_names) else [known.index(name) for name in dataset.class_names]
    return state | {f"head.{name}": tensor[rows] for name, tensor in bundle.head.items()}
