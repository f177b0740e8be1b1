"""`surefoot diff`: is one row of results better than another? Paired by image and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from surefoot import soup as soups
from surefoot.cli import console as shared
from surefoot.compare import difference
from surefoot.errors import DataError, MissingDataError, SettingError, unknown_name
from surefoot.records import FILE, Difference, Evaluation, read
from surefoot.report.runs import collect


@dataclass(frozen=True)
class Rows:
    """Evaluations of one method at one alpha, one for each seed, and where they lie."""

    name: str
    folder: Path
    evaluations: Sequence[Evaluation]


def diff(
    a: Annotated[str, typer.Argument(help="FOLDER:METHOD@ALPHA, such as runs/a:flyp@0.5; ALPHA may be 'val' (chosen on ID validation).")],
    b: Annotated[str, typer.Argument(help="The same for the other row; runs/a:zero_shot for the zero-shot model.")],
    on: Annotated[str | None, typer.Option(help="Comma-separated columns, such as test,avg_shifts. Default: all that both have.")] = None,
) -> None:
    """Differences between two rows of any comparisons on the same data, with paired bootstrap 95% intervals over images and seeds."""
    first, second = rows_of(a), rows_of(b)
    made = compare_rows(first, second, shared.names(on))
    table = Table("", "difference", "95% interval", "", box=box.SIMPLE_HEAD)
    for one in made:
        verdict = "undecided" if one.undecided else "higher" if one.mean > 0 else "lower"
        table.add_row(one.on, f"{100 * one.mean:+.1f}", f"{100 * one.low:+.1f} to {100 * one.high:+.1f}", verdict)
    shared.console.print(f"{first.name} minus {second.name}, in points, {made[0].num_seeds} seed(s)")
    shared.console.print(table)


def rows_of(text: str) -> Rows:
    """The evaluations that FOLDER:METHOD@ALPHA names; ALPHA is 1 if it is left out.

    Raises:
        DataError: no such folder of records.
        UnknownNameError: no such method in it.
        SettingError: no such alpha.
    """
    place, colon, row = _split(text)
    if not colon:
        raise SettingError(f"'{text}' names no method. Write FOLDER:METHOD@ALPHA, such as runs/mine:flyp@0.5 or runs/mine:zero_shot.")
    folder, (method, _, alpha) = Path(place), row.partition("@")
    if not (folder / FILE).is_file():
        raise MissingDataError(f"There are no results in {folder}. Give a folder that 'surefoot compare' or 'surefoot fit' wrote.")
    if method == "zero_shot" and alpha:
        raise SettingError(f"'{text}' gives zero_shot an alpha, and it has none. Write {place}:zero_shot.")
    runs = collect(read(folder))
    if method == "zero_shot":
        found = [runs.zero_shot] if runs.zero_shot else []
    elif method not in runs.methods:
        raise unknown_name(f"method in {folder}", method, ["zero_shot", *runs.methods])
    else:
        found = runs.chosen(method) if alpha == "val" else runs.at(method, _number(alpha or "1"))
    if not found:
        raise SettingError(f"{folder} holds no {row}. Its alphas: {', '.join(f'{x:g}' for x in runs.alphas(method))}.")
    return Rows(text, folder, found)


def _split(text: str) -> tuple[str, str, str]:
    """The folder, a colon, and the row: at the first colon that a folder of records stands before, else at the last."""
    for place, letter in enumerate(text):
        if letter == ":" and (Path(text[:place]) / FILE).is_file():
            return text[:place], ":", text[place + 1 :]
    return text.rpartition(":")


def compare_rows(a: Rows, b: Rows, columns: Sequence[str] | None) -> list[Difference]:
    """One difference for each column.

    Raises:
        DataError: the rows were measured on other data, or with other seeds.
        UnknownNameError: a column that one of them does not have.
    """
    data = {e.provenance.get("data") for rows in (a, b) for e in rows.evaluations}
    if len(data) > 1:
        raise DataError(f"{a.name} and {b.name} were measured on different data, so they cannot be paired image by image.")
    seeds = [sorted(e.seed for e in rows.evaluations) for rows in (a, b)]
    zero_shot = any(e.alpha == 0 for rows in (a, b) for e in rows.evaluations)  # it stands against any seed
    soup = any(e.method in soups.NAMES.values() for rows in (a, b) for e in rows.evaluations)  # one model made of all seeds
    if seeds[0] != seeds[1] and not zero_shot and not soup:
        raise DataError(f"{a.name} has the seeds {seeds[0]} and {b.name} {seeds[1]}; run both with the same seeds.")
    common = [c for c in a.evaluations[0].accuracy if c in b.evaluations[0].accuracy]
    for column in columns or ():
        if column not in common:
            raise unknown_name("column", column, common)
    wanted = columns or [column for column in common if column != "val"]
    return [difference(a.name, a.evaluations, b.name, b.evaluations, column, (a.folder, b.folder)) for column in wanted]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise SettingError(f"The alpha '{text}' is no number. Write 0.5, or val for the one that ID validation chose.") from error
