"""`surefoot evaluate`: a finished classifier, and the zero-shot model that it came from, on any data."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from surefoot import records
from surefoot.bundle import Bundle, load_bundle
from surefoot.cli import console as shared
from surefoot.cli.report import COMMAND, write_report
from surefoot.compare import evaluation, weights_hash
from surefoot.data import Dataset
from surefoot.data.subsets import whole
from surefoot.job import DataOptions, pick_precision
from surefoot.methods import get
from surefoot.model import load_model, pick_device
from surefoot.protocols import Judge, Member
from surefoot.train import State, start_state


def evaluate(
    model: Annotated[Path, typer.Argument(help="A folder that 'surefoot fit' wrote, or its model/.")],
    data: shared.Data,
    out: Annotated[Path, typer.Option(help="Folder for records and the report.")] = Path("runs/evaluate"),
    all_images: Annotated[bool, typer.Option("--all-images", help="Judge train, val and test together: data never trained on.")] = False,
    corruptions: shared.Corruptions = None,
    precision: shared.PrecisionOption = None,
    device: shared.Device = "auto",
    split_seed: shared.SplitSeed = 0,
    val_share: shared.ValShare = 0.15,
    test_share: shared.TestShare = 0.15,
    skip_unreadable: shared.SkipUnreadable = False,
) -> None:
    """Judge a fine-tuned model and its zero-shot start on a data set. Its own classes are answered by its head, others by their names."""
    options = DataOptions(
        data=data, split_seed=split_seed, val_share=val_share, test_share=test_share, skip_unreadable=skip_unreadable
    )  # fmt: skip
    with shared.counting("reading images") as on_image:
        dataset = options.open(on_image)
    dataset = whole(dataset) if all_images else dataset
    chosen = pick_precision(precision or "auto", pick_device(device))
    bundle = load_bundle(model, device=device, precision=chosen)
    base = load_model(bundle.card.base, device=pick_device(device), precision=chosen)
    start = start_state(base, dataset)
    with shared.bar() as progress:
        task = progress.add_task("images", total=None)
        judge = Judge(base, dataset, start, None, corruptions, on_images=lambda number: progress.advance(task, number))
        progress.update(task, total=2 * judge.num_images)
        own = get(bundle.card.method)
        predict = bundle.card.predict if state_fits(bundle, dataset) else "text"
        members = [Member.of(get("zero_shot"), start), Member.of(replace(own, predict=predict), state_on(bundle, dataset, start))]
        outcomes = judge.judge_all(members)
    provenance = records.provenance() | {"data": dataset.fingerprint(), "weights": weights_hash(base), "model": str(model)}
    for name, alpha, outcome in zip(("zero_shot", own.name), (0.0, bundle.card.alpha), outcomes, strict=True):
        settings = {"method": name, "model": bundle.card.base, "precision": chosen} | dict(bundle.card.origin.get("settings", {}))
        seed = int(bundle.card.origin.get("seed", 0)) if alpha else 0
        records.append(out, evaluation(out, dataset.name, name, seed, alpha, settings, outcome, provenance))
    records.append(out, records.Choice(method=own.name, seed=seed, alpha=bundle.card.alpha, argmax=bundle.card.alpha))
    (out / COMMAND).write_text("surefoot " + shlex.join(sys.argv[1:]) + "\n", encoding="utf-8")
    write_report(out)


def state_fits(bundle: Bundle, dataset: Dataset) -> bool:
    """Whether the data's classes are those that the head was trained on, in whatever order."""
    return sorted(bundle.card.class_names) == sorted(dataset.class_names) and len(set(dataset.class_names)) == len(dataset.class_names)


def state_on(bundle: Bundle, dataset: Dataset, start: State) -> State:
    """The classifier's weights, its head's rows in the order of the data's classes; the zero-shot head where classes differ."""
    state = {f"model.{name}": tensor for name, tensor in bundle.model.weights().items()}
    if not state_fits(bundle, dataset):
        return state | {name: start[name] for name in ("head.weight", "head.bias")}
    rows = [list(bundle.card.class_names).index(name) for name in dataset.class_names]
    return state | {f"head.{name}": tensor[rows] for name, tensor in bundle.head.items()}
