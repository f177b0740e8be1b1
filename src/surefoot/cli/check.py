"""`surefoot check`: everything that can be wrong with a data set, before training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from surefoot.cli import console as shared
from surefoot.data import catalog, load
from surefoot.data.findings import Finding
from surefoot.data.survey import Survey, survey

MOST_PATHS = 5
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def check(
    data: shared.Data,
    root: shared.Root = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write all facts as JSON instead, every path named.")] = False,
    split_seed: shared.SplitSeed = 0,
    val_share: shared.ValShare = None,
    test_share: shared.TestShare = 0.15,
    allow_outside: shared.AllowOutside = False,
) -> None:
    """Read every image once: counts, unreadable files, leaks between splits, class names, imbalance. Code 2 if training cannot start.

    With --root, first what differs from the published form of a data set of the catalogue: what is missing, and where people get it.
    """
    declared = _declared(data, root, as_json)
    dataset = load(data, root=root, seed=split_seed, val_share=val_share, test_share=test_share, allow_outside=allow_outside)
    with shared.counting("reading images") as on_image:
        found = survey(dataset, on_image)
    if as_json:
        facts = found.facts() | ({"catalog": [_plain_finding(finding) for finding in declared]} if declared is not None else {})
        typer.echo(json.dumps({"name": dataset.name, "notes": dataset.notes, **facts}, indent=1))
    else:
        shared.console.print(counts_table(found))
        shared.console.print(_forms(found), highlight=False)
        told = {finding.text for finding in declared or ()}
        _tell([*found.findings, *(Finding("note", note) for note in dataset.notes if note not in told)])
    if any(finding.level == "error" for finding in found.findings):
        raise typer.Exit(2)


def _declared(data: str, root: str | None, as_json: bool) -> list[Finding] | None:
    """What differs from the catalogue, told before any image is read; None for other data. An error among it ends the command."""
    if root is None or data not in catalog.names():
        return None
    found = catalog.check(data, Path(root))
    stops = any(finding.level == "error" for finding in found)
    if as_json and stops:
        typer.echo(json.dumps({"name": data, "catalog": [_plain_finding(finding) for finding in found]}, indent=1))
    if not as_json:
        _tell(found or [Finding("note", f"All that was published of {data} is there.")])
    if stops:
        raise typer.Exit(2)
    return found


def _plain_finding(finding: Finding) -> dict[str, str]:
    return {"level": finding.level, "text": finding.text}


def counts_table(found: Survey) -> Table:
    """Images and classes of each split, with its smallest and its largest class."""
    table = Table("split", box=box.SIMPLE_HEAD)
    for column in ("images", "classes", "smallest class", "largest class"):
        table.add_column(column, justify="right")
    for split, counts in found.counts.items():
        filled = sorted((count, name) for count, name in zip(counts, found.class_names[split], strict=True) if count)
        (few, rare), (many, common) = filled[0], filled[-1]
        table.add_row(split, str(sum(counts)), str(len(filled)), f"{few} ({shared.plain(rare)})", f"{many} ({shared.plain(common)})")
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
        shared.console.print(f"[{colour}]{finding.level}[/{colour}] {shared.plain(finding.text)}", highlight=False, soft_wrap=True)
        for path in finding.paths[:MOST_PATHS]:
            shared.console.print(f"  {shared.plain(path)}", highlight=False, soft_wrap=True)
        if len(finding.paths) > MOST_PATHS:
            shared.console.print(f"  and {len(finding.paths) - MOST_PATHS} more (all with --json)", highlight=False)
    if not findings:
        shared.console.print("[green]nothing to mend[/green]")
