"""Effective robustness: each row against the line of the reference models, which have no zero-shot ability."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from surefoot.records import Reference, Robustness
from surefoot.report.contrasts import signed
from surefoot.report.curves import curves_of
from surefoot.report.frontier import NARROW, WIDE, Expected, cross, frontier_of, keys
from surefoot.report.runs import Runs
from surefoot.report.table import MISSING, Cell, Row, header, row_label
from surefoot.robustness import Baseline


@dataclass(frozen=True)
class Shown:
    """A cell of the table: rho in points, its spread over seeds, whether the line was extrapolated, and what it was measured against."""

    mean: str
    spread: str
    beyond: bool
    title: str


def section(runs: Runs, table: Sequence[Row]) -> dict[str, object] | None:
    """What the section shows, or None without reference models.

    A table of rho for every row and column, a picture of the first column with the references and their line, the references' own
    accuracies; or the reason why there is no line.
    """
    if not runs.references:
        return None
    columns = list(dict.fromkeys(on for _, on in runs.robustness))
    shown = columns or [name for name in ("avg_shifts", "avg_corruptions") if name in runs.references[0].accuracy]
    lines = [
        (row_label(row, table), "first" if row.name == row.method else "", [_shown(runs.robustness.get((row.name, on))) for on in columns])
        for row in table
        if any((row.name, on) in runs.robustness for on in columns)
    ]
    return {
        "why": "" if lines else why(runs.references),
        "headers": [header(on) for on in columns],
        "lines": lines,
        "beyond": _span(runs, columns[0]) if any(found.extrapolates for found in runs.robustness.values()) else "",
        "fit": _fit(runs, columns[0]) if columns else "",
        **(_picture(runs, columns[0]) if columns else {"picture": None, "legend": []}),
        "reference_headers": [header(on) for on in ("test", *shown)],
        "references": [(f"{share_of(one)}", str(one.num_train), _texts(one, ["test", *shown])) for one in runs.references],
        "num_references": next((found.num_references for found in runs.robustness.values()), 0),
    }


def why(references: Sequence[Reference]) -> str:
    """Why no line could be drawn through these references."""
    accuracies = sorted({reference.accuracy["test"] for reference in references})
    if len(accuracies) > 1:
        return "Effective robustness follows when all runs are finished."
    models = "is one reference model" if len(references) == 1 else f"are {len(references)} reference models of one ID accuracy"
    return (
        f"There {models} ({100 * accuracies[0]:.1f}%), and a line needs two that differ: no effective robustness can be told. "
        "Train some on other shares of the training images (--references 0.1,0.25,0.5,1), or longer (--set reference.epochs=50)."
    )


def share_of(reference: Reference) -> str:
    """The share of the training images in percent.

    Examples:
        >>> from types import SimpleNamespace
        >>> share_of(SimpleNamespace(share=0.125))
        '12.5%'
    """
    return f"{100 * reference.share:g}%"


def _shown(found: Robustness | None) -> Shown | None:
    if found is None:
        return None
    title = (
        f"{100 * found.ood_accuracy:.1f}% where {100 * found.expected:.1f}% is expected at an ID accuracy of {100 * found.id_accuracy:.1f}%"
        + ("; no reference has such an ID accuracy" if found.extrapolates else "")
    )
    return Shown(signed(found.rho), "" if found.spread is None else f"{100 * found.spread:.1f}", found.extrapolates, title)


def _fit(runs: Runs, on: str) -> str:
    """How well the line fits: what the references themselves are away from it."""
    if len(runs.references) < 3:
        return "Two references only: the line passes through both, so that nothing tells how well a line fits."
    line = _line_of(runs, on)
    away = [100 * (one.accuracy[on] - line.at(one.accuracy["test"])) for one in runs.references if on in one.accuracy]
    size = math.sqrt(statistics.fmean(value**2 for value in away))
    return f"The {len(away)} references themselves lie {size:.1f} points off their line of {header(on)} (root mean square)."


def _line_of(runs: Runs, on: str) -> Baseline:
    return Baseline(**next(found.baseline for (_, column), found in runs.robustness.items() if column == on))


def _span(runs: Runs, on: str) -> str:
    """The ID accuracies that the references cover."""
    line = _line_of(runs, on)
    return f"{100 * line.low:.1f}% to {100 * line.high:.1f}%"


def _picture(runs: Runs, on: str) -> dict[str, object]:
    """The frontier with the references and their line, wide and narrow, and its legend."""
    points = [one for one in runs.references if on in one.accuracy]
    pairs = {f"reference, {share_of(one)} of the training images, seed {one.seed}": (_cell(one, "test"), _cell(one, on)) for one in points}
    expected = Expected(_line_of(runs, on), pairs)
    drawn = [key for key in keys(list(curves_of(runs, on))) if key["kind"] != "chord"]
    more = {
        "cross": (cross(14, 8, 5), "reference model, from random weights"),
        "baseline": ("M1 12L27 4", "what the references let expect"),
        "beyond": ("M1 12L27 4", "the same, extrapolated"),
    }
    drawn += [{"kind": kind, "css": "", "path": path, "text": text} for kind, (path, text) in more.items()]
    wide, narrow = (Markup(frontier_of(runs, on, inline=layout, expected=expected)) for layout in (WIDE, NARROW))
    return {"picture": {"name": header(on), "wide": wide, "narrow": narrow}, "legend": drawn}


def _texts(reference: Reference, columns: Sequence[str]) -> list[str]:
    return [f"{100 * reference.accuracy[on]:.1f}" if on in reference.accuracy else MISSING for on in columns]


def _cell(reference: Reference, on: str) -> Cell:
    return Cell(reference.accuracy[on], None, 1)
