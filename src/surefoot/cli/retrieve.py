"""`surefoot retrieve`: image-text pairs of a pool for each training image, for ARF's image-text-pair anchors."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from surefoot import records
from surefoot.anchors.pairs import KEPT, write_pairs
from surefoot.anchors.pool import Pool, open_pool
from surefoot.anchors.retrieval import BATCH, Retrieved, check, embed_images, embed_texts, retrieve_pairs
from surefoot.cli import console as shared
from surefoot.cli.compare import BaseToNew
from surefoot.cli.recipe import resolve
from surefoot.data import Dataset
from surefoot.data.digest import digests
from surefoot.data.writing import alone
from surefoot.errors import SettingError
from surefoot.identity import weights_hash
from surefoot.job import DataOptions, pick_precision
from surefoot.model import ImageTextModel, load_model, pick_device

NUM_SHOWN = 5
UNSEEN = "unseen"
Candidates = Annotated[
    str,
    typer.Option(
        help="The pool: a folder with manifest.csv (path, caption), webdataset shards such as 'pool/{000..099}.tar' or their address, a "
        "list of these (shards.txt), or iconpool."
    ),
]
K = Annotated[int, typer.Option("--k", help="Pairs for each image; 1 in the paper.")]
IndexName = Annotated[str, typer.Option("--index", help="exact, or ivf (approximate, for millions; needs faiss).")]
Without = Annotated[
    str | None,
    typer.Option(
        help="Leave out candidates whose text names a class: 'unseen' or 'unseen/NAME' for the data's own, or names with commas.",
        show_default=False,
    ),
]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Take what a broken shard still gives, and count the rest.")]
BatchSize = Annotated[int, typer.Option(help="Texts, or images, embedded at a time.")]


def retrieve(
    data: shared.Data,
    candidates: Candidates,
    root: shared.Root = None,
    k: K = 1,
    index: IndexName = "exact",
    without: Without = None,
    skip_broken: SkipBroken = False,
    batch_size: BatchSize = BATCH,
    model: shared.Model = None,
    anchors: shared.Anchors = None,
    precision: shared.PrecisionOption = None,
    device: shared.Device = "auto",
    base_to_new: BaseToNew = False,
    split_seed: shared.SplitSeed = 0,
    val_share: shared.ValShare = None,
    test_share: shared.TestShare = 0.15,
    skip_unreadable: shared.SkipUnreadable = False,
    allow_outside: shared.AllowOutside = False,
) -> None:
    """Find the image-text pairs of a pool whose texts are nearest to each training image. Embeddings are cached as they arise."""
    if batch_size < 1:
        raise SettingError(f"--batch-size is {batch_size}; it must be 1 or more.")
    check(k, max(k, 1), index)
    settings, place = resolve(data, None, None, model=model, precision=precision), pick_device(device)
    options = DataOptions(
        data=data, split_seed=split_seed, val_share=val_share, test_share=test_share, skip_unreadable=skip_unreadable,
        base_to_new=base_to_new, anchors=anchors, root=root, allow_outside=allow_outside,
    )  # fmt: skip
    folder = options.anchors_folder
    with alone(folder, "retrieve", "--anchors", KEPT):  # asked before hours are spent on what would go there
        dataset = shared.opened(options, anchors=False)
        left_out = () if without is None else _left_out(without, dataset)
        whole, pool = _pools(candidates, skip_broken, allow_outside, None if without is None else left_out)
        check(k, len(pool), index)
        pre_trained = load_model(settings.model, device=place, precision=pick_precision(settings.precision, place))
        found = _found(pre_trained, dataset, whole, pool, k, index, batch_size)
        about = {"pool": pool.name, "weights": weights_hash(pre_trained), "model": settings.model, "k": k, "num_candidates": len(pool)}
        about |= {"index": index, "precision": pre_trained.precision, "without": list(left_out), **records.provenance()}
        own = write_pairs(folder, pool, digests(dataset.split("train").paths), found.rows, found.scores, about)
    _show(dataset, pool, found, own)
    shared.console.print(f"The pairs lie in {escape(str(folder))}.", soft_wrap=True, highlight=False)
    shared.console.print(f"Next: {escape(shared.next_comparison(options, model))}", soft_wrap=True, highlight=False)


def _pools(candidates: str, skip_broken: bool, allow_outside: bool, left_out: tuple[str, ...] | None) -> tuple[Pool, Pool]:
    """The pool as it is, and without what is left out."""
    with shared.counting("reading shards") as on_shard:
        whole = open_pool(candidates, skip_broken=skip_broken, allow_outside=allow_outside, on_shard=on_shard)
    pool = whole if left_out is None else whole.without(left_out)
    _tell(*pool.notes)
    return whole, pool


def _left_out(without: str, dataset: Dataset) -> tuple[str, ...]:
    if without != UNSEEN and without not in dataset.splits:
        return tuple(shared.names(without) or ())
    chosen = dataset.unseen if without == UNSEEN else (dataset.split(without),)
    if not chosen:
        raise SettingError(f"--without is '{UNSEEN}', and {dataset.name} has no unseen classes. Name classes, or leave it out.")
    return tuple(dict.fromkeys(name for split in chosen for name in split.class_names))


def _found(model: ImageTextModel, dataset: Dataset, whole: Pool, pool: Pool, k: int, index: str, batch_size: int) -> Retrieved:
    """The pairs of `pool`; the texts of the whole pool are embedded, so that what is left out costs nothing anew."""
    with shared.counting("embedding texts") as on_done:
        keys = embed_texts(model, whole.texts, on_done, batch_size=batch_size)
    with shared.counting("embedding images") as on_done:
        query = embed_images(model, dataset.split("train").paths, on_done, batch_size=batch_size)
    with shared.counting("retrieving pairs") as on_done:
        kept = keys if len(pool) == len(whole) else keys[torch.tensor(pool.rows)]
        return retrieve_pairs(pool, query, kept, k, index, on_done)


def _show(dataset: Dataset, pool: Pool, found: Retrieved, own: int) -> None:
    train, distinct = dataset.split("train"), found.distinct()
    every = [score for scores in found.scores for score in scores]
    shared.console.print(
        f"{len(train)} training images retrieved {len(distinct)} distinct pairs of {len(pool)} candidates; "
        f"mean similarity {sum(every) / len(every):.3f}.", soft_wrap=True, highlight=False,
    )  # fmt: skip
    if found.recall is not None:
        _tell(f"The index found {found.recall:.1%} of the nearest pairs, measured against exact search on a sample of the images.")
    if found.num_unreadable:
        _tell(f"{found.num_unreadable} candidates gave way to the next: their images cannot be read.")
    if own:
        _tell(f"{own} of the retrieved pairs hold a training image itself, byte for byte. They stay: their texts say more than its class.")
    table = Table(Column("class", overflow="fold"), "retrieved text", "similarity", box=box.SIMPLE_HEAD)
    for row in dict.fromkeys(place * len(train) // NUM_SHOWN for place in range(NUM_SHOWN)):
        label = dataset.class_names[train.labels[row]]
        table.add_row(escape(label), escape(pool.texts[found.rows[row][0]]), f"{found.scores[row][0]:.3f}")
    shared.console.print(table)


def _tell(*notes: str) -> None:
    for note in notes:
        shared.errors.print(escape(note.encode("utf-8", "replace").decode()), soft_wrap=True, highlight=False)
