"""`surefoot shards`: a data set as webdataset shards, for disks and servers that do not like a million small files."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from surefoot.cli import console as shared
from surefoot.data import load
from surefoot.data.packing import PER_SHARD, pack


def shards(
    data: shared.Data,
    out: Annotated[Path, typer.Option(help="Folder for the shards. Those that are finished there are not written again.")],
    root: shared.Root = None,
    images_per_shard: Annotated[int, typer.Option(help="Images in each .tar file.")] = PER_SHARD,
    split_seed: shared.SplitSeed = 0,
    val_share: shared.ValShare = None,
    test_share: shared.TestShare = 0.15,
    allow_outside: shared.AllowOutside = False,
) -> None:
    """Write a data set as webdataset shards, images as they are and in the same order; --out can be given wherever DATA can."""
    shared.check_folder(out)
    dataset = load(data, root=root, seed=split_seed, val_share=val_share, test_share=test_share, allow_outside=allow_outside)
    shared.tell_notes(dataset)
    with shared.counting("packing images") as on_image:
        number = pack(dataset, out, per_shard=images_per_shard, on_image=on_image)
    images = sum(len(split) for split in dataset.splits.values())
    where = shlex.join(["surefoot", "check", str(out)])
    shared.console.print(f"{images} images in {number} shards: {escape(str(out))}. Next: {escape(where)}", soft_wrap=True, highlight=False)
