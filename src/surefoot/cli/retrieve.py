"""`surefoot retrieve`: image-text pairs of a pool for each training image, for ARF's image-text-pair anchors."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from surefoot.anchors.attach import default_folder
from surefoot.anchors.pool import Pool, open_pool
from surefoot.anchors.retrieval import Index, Retrieved, embed_images, embed_texts, retrieve_pairs, write_pairs
from surefoot.cli import console as shared
from surefoot.cli.compare import BaseToNew
from surefoot.cli.recipe import resolve
from surefoot.data import Dataset
from surefoot.data.digest import digests
from surefoot.errors import SettingError
from surefoot.identity import weights_hash
from surefoot.job import DataOptions, pick_precision
from surefoot.model import ImageTextModel, load_model, pick_device

NUM_SHOWN = 5
Candidates = Annotated[
    str,
    typer.Option(
        help="The pool: a folder with manifest.csv (path, caption), webdataset shards such as 'pool/{000..099}.tar', or iconpool."
    ),
]
K = Annotated[int, typer.Option("--k", help="Pairs for each image; 1 in the paper.")]
IndexName = Annotated[str, typer.Option("--index", help="exact, or ivf (approximate, for millions; needs faiss).")]
Without = Annotated[
    str | None,
    typer.Option(help="Leave out candidates whose text names a class: 'unseen' for the data's unseen classes, or names with commas."),
]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Take what a broken shard still gives, and count the rest.")]


def retrieve(
    data: shared.Data,
    candidates: Candidates,
    k: K = 1,
    index: IndexName = "exact",
    without: Without = None,
    skip_broken: SkipBroken = False,
    model: shared.Model = None,
    anchors: shared.Anchors = None,
    precision: shared.PrecisionOption = None,
    device: shared.Device = "auto",
    base_to_new: BaseToNew = False,
    split_seed: shared.SplitSeed = 0,
    val_share: shared.ValShare = 0.15,
    test_share: shared.TestShare = 0.15,
    skip_unreadable: shared.SkipUnreadable = False,
) -> None:
    """Find the image-text pairs of a pool whose texts are nearest to each training image. Embeddings are cached as they arise."""
    if index not in ("exact", "ivf") or k < 1:
        raise SettingError(f"--index is '{index}' and --k is {k}; they must be exact or ivf, and 1 or more.")
    kind: Index = "ivf" if index == "ivf" else "exact"
    folder = default_folder(data) if anchors is None else Path(anchors)
    shared.check_folder(folder)
    settings = resolve(data, None, None, model=model, precision=precision)
    place = pick_device(device)
    options = DataOptions(
        data=data, split_seed=split_seed, val_share=val_share, test_share=test_share, skip_unreadable=skip_unreadable,
        base_to_new=base_to_new,
    )  # fmt: skip
    with shared.counting("reading images") as on_image:
        dataset = options.open_plain(on_image)
    shared.tell_notes(dataset)
    pool = _pool(candidates, skip_broken, without, dataset)
    pre_trained = load_model(settings.model, device=place, precision=pick_precision(settings.precision, place))
    found = _found(pre_trained, dataset, pool, k, kind)
    about = {"pool": pool.name, "weights": weights_hash(pre_trained), "model": settings.model, "k": k, "num_candidates": len(pool)}
    about |= {"index": kind, "precision": pre_trained.precision}
    write_pairs(folder, pool, found, digests(dataset.split("train").paths), about)
    _show(dataset, pool, found)
    command = shlex.join(["surefoot", "compare", data, "--methods", "flyp,arf", *([] if anchors is None else ["--anchors", anchors])])
    for line in (f"The pairs lie in {folder}.", f"Next: {command}"):
        shared.console.print(escape(line), soft_wrap=True, highlight=False)


def _pool(candidates: str, skip_broken: bool, without: str | None, dataset: Dataset) -> Pool:
    with shared.counting("reading shards") as on_shard:
        pool = open_pool(candidates, skip_broken=skip_broken, on_shard=on_shard)
    pool = pool if without is None else pool.without(_left_out(without, dataset))
    for note in pool.notes:
        shared.errors.print(escape(note), soft_wrap=True, highlight=False)
    return pool


def _found(model: ImageTextModel, dataset: Dataset, pool: Pool, k: int, index: Index) -> Retrieved:
    with shared.counting("embedding texts") as on_done:
        keys = embed_texts(model, pool.texts, on_done)
    with shared.counting("embedding images") as on_done:
        query = embed_images(model, dataset.split("train").paths, on_done)
    return retrieve_pairs(pool, query, keys, k, index)


def _left_out(without: str, dataset: Dataset) -> tuple[str, ...]:
    if without != "unseen":
        return tuple(shared.names(without) or ())
    if not dataset.unseen:
        raise SettingError(f"--without is 'unseen', and {dataset.name} has no unseen classes. Name classes, or leave it out.")
    return tuple(dict.fromkeys(name for split in dataset.unseen for name in split.class_names))


def _show(dataset: Dataset, pool: Pool, found: Retrieved) -> None:
    train = dataset.split("train")
    every = [score for scores in found.scores for score in scores]
    shared.console.print(
        f"{len(train)} training images retrieved {len(found.images)} distinct pairs of {len(pool)} candidates; "
        f"mean similarity {sum(every) / len(every):.3f}.", highlight=False,
    )  # fmt: skip
    if found.num_unreadable:
        shared.errors.print(f"{found.num_unreadable} candidates gave way to the next: their images cannot be read.")
    table = Table(Column("class", overflow="fold"), "retrieved text", "similarity", box=box.SIMPLE_HEAD)
    for row in dict.fromkeys(place * len(train) // NUM_SHOWN for place in range(NUM_SHOWN)):
        label = dataset.class_names[train.labels[row]]
        table.add_row(escape(label), escape(pool.texts[found.rows[row][0]]), f"{found.scores[row][0]:.3f}")
    shared.console.print(table)
