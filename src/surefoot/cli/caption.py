"""`surefoot caption`: a text for each training image, for ARF's text-compensated anchors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from surefoot.anchors.captioners import MAX_NEW_TOKENS, load_captioner
from surefoot.anchors.captions import FILE, KEPT, Captioner, cache_path, caption_images, rewrite_captions, write_captions
from surefoot.anchors.given import captions_of_csv, captions_of_data
from surefoot.anchors.rewriting import TransformersRewriter
from surefoot.cli import console as shared
from surefoot.cli.compare import BaseToNew
from surefoot.data import Dataset
from surefoot.data.digest import digests
from surefoot.data.embedded import names
from surefoot.data.writing import alone
from surefoot.errors import MissingDataError, SettingError, unknown_name
from surefoot.job import DataOptions
from surefoot.model import pick_device

HUB_DEFAULT = "hf:Salesforce/blip-image-captioning-base"
KINDS = ("iconcap", "data", "csv:FILE", "hf:FOLDER", "hf:NAME")
NUM_SHOWN = 5

CaptionerName = Annotated[
    str | None,
    typer.Option(
        help="iconcap, hf:FOLDER or hf:NAME (BLIP, BLIP-2, GIT, a chat model that sees), csv:FILE (columns path, caption), or data "
        f"(the manifest's own captions). Default: iconcap for embedded data, else {HUB_DEFAULT}.",
        show_default=False,
    ),
]
Rewrite = Annotated[str | None, typer.Option(help="hf:FOLDER or hf:NAME of a language model that says each caption in other words.")]
Prompt = Annotated[str | None, typer.Option(help="What a chat model is asked, or what another captioner's texts begin with.")]
BatchSize = Annotated[int, typer.Option(help="Images, or captions to rewrite, at a time.")]
MaxNewTokens = Annotated[int, typer.Option(help="The longest caption, in tokens.")]
NumBeams = Annotated[int, typer.Option(help="Beams of the search for a caption; 1 is greedy.")]


def caption(
    data: shared.Data,
    root: shared.Root = None,
    captioner: CaptionerName = None,
    rewrite: Rewrite = None,
    prompt: Prompt = None,
    batch_size: BatchSize = 8,
    max_new_tokens: MaxNewTokens = MAX_NEW_TOKENS,
    num_beams: NumBeams = 1,
    anchors: shared.Anchors = None,
    device: shared.Device = "auto",
    base_to_new: BaseToNew = False,
    split_seed: shared.SplitSeed = 0,
    val_share: shared.ValShare = None,
    test_share: shared.TestShare = 0.15,
    skip_unreadable: shared.SkipUnreadable = False,
    allow_outside: shared.AllowOutside = False,
) -> None:
    """Caption every training image once, for ARF. Captions are cached as they arise: an interrupted run goes on, nothing is said twice."""
    if batch_size < 1:
        raise SettingError(f"--batch-size is {batch_size}; it must be 1 or more.")
    name, on = captioner or ("iconcap" if data in names() else HUB_DEFAULT), pick_device(device)
    chosen = _captioner(name, prompt, on, max_new_tokens, num_beams)
    rewriter = None if rewrite is None else TransformersRewriter(rewrite, device=on)
    options = DataOptions(
        data=data, split_seed=split_seed, val_share=val_share, test_share=test_share, skip_unreadable=skip_unreadable,
        base_to_new=base_to_new, anchors=anchors, root=root, allow_outside=allow_outside,
    )  # fmt: skip
    dataset = shared.opened(options, anchors=False)
    folder = options.anchors_folder
    with alone(folder, "caption", "--anchors", KEPT):  # asked before hours are spent on what would go there
        identity, captions = _caption(dataset, name, chosen, batch_size)
        if rewriter is not None:
            captions = _rewrite(captions, rewriter, batch_size)
            identity += f"; rewritten by {rewriter.identity}"
        write_captions(folder, identity, digests(dataset.split("train").paths), captions)
    _show(dataset, captions)
    shared.console.print(f"Captions of {escape(identity)} lie in {escape(str(folder / FILE))}.", soft_wrap=True, highlight=False)
    shared.console.print(f"Next: {escape(shared.next_comparison(options))}", soft_wrap=True, highlight=False)


def _captioner(name: str, prompt: str | None, device: torch.device, max_new_tokens: int, num_beams: int) -> Captioner | None:
    """The captioner that looks at the images; None where the captions are there already."""
    kind, _, given = name.partition(":")
    if name == "data" or (kind == "csv" and given):
        if prompt is not None:
            raise SettingError(f"--captioner {name} takes no --prompt: its captions are written already. Leave the prompt out.")
        if kind == "csv" and not Path(given).is_file():
            raise MissingDataError(f"There is no file {given}. Give a CSV with the columns path and caption.")
        return None
    if name != "iconcap" and not (kind == "hf" and given):
        looks = f"csv:{name}" if name.lower().endswith(".csv") else f"hf:{name}" if "/" in name or Path(name).is_dir() else None
        raise unknown_name("captioner", name, [*KINDS, *([looks] if looks else [])])
    return load_captioner(name, prompt=prompt, device=device, max_new_tokens=max_new_tokens, num_beams=num_beams)


def _caption(dataset: Dataset, name: str, captioner: Captioner | None, batch_size: int) -> tuple[str, list[str]]:
    """Who speaks, and a caption for each training image."""
    paths = dataset.split("train").paths
    if captioner is None:
        file = Path(name.partition(":")[2])
        captions = captions_of_data(dataset) if name == "data" else captions_of_csv(file, dataset)
        shared.console.print(f"{len(captions)} captions were read from {escape(name)}.", soft_wrap=True, highlight=False)
        return ("data" if name == "data" else f"csv:{file.name}, content {digests([file])[0][:12]}"), captions
    with _watched("captions", "images captioned") as on_done:
        captions = caption_images(paths, captioner, cache_path(captioner.identity), batch_size=batch_size, on_done=on_done)
    return captioner.identity, captions


def _rewrite(captions: Sequence[str], rewriter: TransformersRewriter, batch_size: int) -> list[str]:
    with _watched("rewriting", "captions rewritten") as on_done:
        found, kept = rewrite_captions(captions, rewriter, cache_path(rewriter.identity), batch_size=batch_size, on_done=on_done)
    if kept:
        shared.errors.print(f"{kept} captions stayed as they were: the language model gave no answer.")
    return found


@contextmanager
def _watched(what: str, done_what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar, and in the end how many were made and how many the cache held."""
    seen: list[tuple[int, int]] = []
    with shared.counting(what) as on_count:

        def on_done(done: int, total: int) -> None:
            seen.append((done, total))
            on_count(done, total)

        yield on_done
    cached, total = seen[0]
    shared.console.print(f"{total - cached} {done_what}, {cached} taken from the cache.", highlight=False)


def _show(dataset: Dataset, captions: Sequence[str]) -> None:
    paths = dataset.split("train").paths
    table = Table(Column("image", overflow="fold"), "caption", box=box.SIMPLE_HEAD)
    for row in dict.fromkeys(place * len(paths) // NUM_SHOWN for place in range(NUM_SHOWN)):
        table.add_row(escape(dataset.written(paths[row]).encode("utf-8", "replace").decode()), escape(captions[row]))
    shared.console.print(table)
