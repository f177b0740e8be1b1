"""`surefoot check`: everything that can be wrong with a data set, before training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from surefoot.cli import console as shared
from surefoot.data import load
from surefoot.data.findings import Finding
from surefoot.data.survey import Survey, survey

MOST_PATHS = 5
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def check(
    data: shared.Data,
    as_json: Annotated[bool, typer.Option("--json", help="Write all facts as JSON instead, every path named.")] = False,
    split_seed: shared.SplitSeed = 0,
    val_share: shared.ValShare = 0.15,
    test_share: shared.TestShare = 0.15,
) -> None:
    """Read every image once: counts, unreadable files, leaks between splits, class names, imbalance. Code 2 if training cannot start."""
    dataset = load(data, seed=split_seed, val_share=val_share, test_share=test_share)
    with shared.counting("reading images") as on_image:
        found = survey(dataset, on_image)
    if as_json:
        typer.echo(json.dumps({"name": dataset.name, "notes": dataset.notes, **found.facts()}, indent=1))
    else:
        shared.console.print(counts_table(found))
        shared.console.print(_forms(found), highlight=False)
        _tell([*found.findings, *(Finding("note", note) for note in dataset.notes)])
    if any(finding.level == "error" for finding in found.findings):
        raise typer.Exit(2)


def counts_table(found: Survey) -> Table:
    """Images and classes of each split, with its smallest and its largest class."""
    table = Table("split", box=box.SIMPLE_HEAD)
    for column in ("images", "classes", "smallest class", "largest class"):
        table.add_column(column, justify="right")
    for split, counts in found.counts.items():
        filled = sorted((count, name) for count, name in zip(counts, found.class_names[split], strict=True) if count)
        (few, rare), (many, common) = filled[0], filled[-1]
        table.add_row(split, str(sum(counts)), str(len(filled)), f"{few} ({_plain(rare)})", f"{many} ({_plain(common)})")
    return table


def _forms(found: Survey) -> str:
    formats = ", ".join(f"{name} {number}" for name, number in found.formats.items())
    modes = ", ".join(f"{name} {number}" for name, number in found.modes.items())
    if not found.sizes:
        return "No image can be read."
    smallest, median, largest = (f"{width} x {height}" for width, height in found.sizes)
    return f"Sizes {smallest} to {largest}, median {median}. Formats: {formats}. Modes: {modes}."


def _tell(findings: Sequence[Finding]) -> None:
    for finding in findings:
        colour = _COLOURS[finding.level]
        shared.console.print(f"[{colour}]{finding.level}[/{colour}] {_plain(finding.text)}", highlight=False, soft_wrap=True)
        for path in finding.paths[:MOST_PATHS]:
            shared.console.print(f"  {_plain(path)}", highlight=False, soft_wrap=True)
        if len(finding.paths) > MOST_PATHS:
            shared.console.print(f"  and {len(finding.paths) - MOST_PATHS} more (all with --json)", highlight=False)
    if not findings:
        shared.console.print("[green]nothing to mend[/green]")


def _plain(text: str | Path) -> str:
    """As text that any terminal can show: a file's name need not be valid Unicode, and its brackets are no markup."""
    return escape(str(text).encode("utf-8", "replace").decode())
