"""What a finished run says, as Markdown: levels, and differences with paired bootstrap intervals. Reads records and answers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surefoot import records
from surefoot.compare import difference
from surefoot.data.subsets import NEW
from surefoot.errors import DataError, MissingDataError
from surefoot.methods import METHODS, base_of
from surefoot.records import Evaluation
from surefoot.report.runs import CHOSEN, HALF, ZERO_SHOT, Runs, collect, display_name
from surefoot.report.table import cell, header
from surefoot.soup import NAMES

RHO = "rho/"
"""How a column of effective robustness begins."""
BASELINE = "tp_ft"
BOTH = ("tp_ft", "flyp")
"""Of which methods the page of WiSE-FT shows alpha 0.5 too."""


@dataclass(frozen=True)
class Kind:
    """What a run was made on; a figure is taken only from a run of the kind that its command makes."""

    data: str
    shots: int | None
    base_to_new: bool


@dataclass(frozen=True)
class Run:
    """A folder that `surefoot compare` wrote."""

    folder: Path
    runs: Runs
    kind: Kind

    def evaluations(self, row: str) -> list[Evaluation]:
        """Those of a row METHOD@ALPHA, one a seed; ALPHA is 1 if it is left out, "val" the one that ID validation chose."""
        method, alpha = split_row(row)
        if method == ZERO_SHOT:
            return [self.runs.zero_shot] if self.runs.zero_shot else []
        return self.runs.chosen(method) if alpha == "val" else self.runs.at(method, float(alpha))

    def difference(self, a: str, b: str, on: str) -> records.Difference | None:
        """Row `a` minus row `b` over the seeds that both have, as recorded or computed now; None where the run has not both, or no such
        column."""
        if recorded := self.runs.differences.get((row_name(a), row_name(b), on)):
            return recorded
        first, second = self.evaluations(a), self.evaluations(b)
        if ZERO_SHOT not in (split_row(a)[0], split_row(b)[0]):
            common = {e.seed for e in first} & {e.seed for e in second}
            first, second = [e for e in first if e.seed in common], [e for e in second if e.seed in common]
        if not first or not second or not all(on in e.accuracy for e in (*first, *second)):
            return None
        return difference(a, first, b, second, on, (self.folder, self.folder))

    def level(self, row: str, column: str) -> float | None:
        """The mean over seeds of a column, or of the effective robustness on it."""
        if column.startswith(RHO):
            found = self.runs.robustness.get((row_name(row), column.removeprefix(RHO)))
            return found.rho if found else None
        mean = cell(self.evaluations(row), column)
        return mean.mean if mean else None

    @property
    def mixed(self) -> tuple[str, ...]:
        """The methods whose runs are in its soups; none without one."""
        parts = [part for e in self.runs.evaluations() for part in e.settings.get("ingredients", ())]
        return tuple(dict.fromkeys(part.partition(",")[0] for part in parts))

    def seeds(self, row: str) -> int:
        """How many seeds stand behind a row."""
        return len(self.evaluations(row))


def open_run(folder: Path) -> Run:
    """A finished run.

    Raises:
        MissingDataError: no records there.
        DataError: runs of several kinds in one folder.
    """
    if not (folder / records.FILE).is_file():
        raise MissingDataError(f"There are no results in {folder}. Give a folder that 'surefoot compare' wrote.")
    runs = collect(records.read(folder))
    kinds = {kind_of(e) for e in runs.evaluations() if e.method != ZERO_SHOT}
    if len(kinds) != 1:
        raise DataError(f"{folder} holds runs of {len(kinds)} kinds of data; give a folder with the runs of one.")
    return Run(folder, runs, kinds.pop())


def kind_of(evaluation: Evaluation) -> Kind:
    """Data set, shots, and whether half of the classes were held out."""
    return Kind(evaluation.dataset, evaluation.settings.get("shots"), NEW in evaluation.num_images)


def split_row(row: str) -> tuple[str, str]:
    """Method and alpha of a row.

    Examples:
        >>> split_row("flyp"), split_row("clip_cite+frozen=text@0.5")
        (('flyp', '1'), ('clip_cite+frozen=text', '0.5'))
    """
    method, _, alpha = row.partition("@")
    return method, alpha or "1"


def row_name(row: str) -> str:
    """What conclusions among the records call a row.

    Examples:
        >>> row_name("flyp"), row_name("flyp@val"), row_name("flyp@0.7")
        ('flyp', 'flyp + WiSE-FT (ID val.)', 'flyp@0.7')
    """
    method, alpha = split_row(row)
    return method + {"1": "", "0.5": HALF, "val": CHOSEN}.get(alpha, f"@{alpha}")


def label(row: str) -> str:
    """A row as a reader sees it.

    Examples:
        >>> label("flyp@val"), label("clip_cite+frozen=text@0.5")
        ('FLYP + WiSE-FT (ID val.)', 'CLIP-CITE (frozen=text) + WiSE-FT 0.5')
    """
    method, alpha = split_row(row)
    return display_name(method) + {"1": "", "val": CHOSEN}.get(alpha, f" + WiSE-FT {alpha}")


def title(column: str, among: Sequence[str] = ()) -> str:
    """The heading of a column."""
    if column.startswith(RHO):
        return f"Effective robustness, {header(column.removeprefix(RHO))}"
    return header(column, among)


def results_of(run: Run, name: str, finish: float | None) -> str:
    """The table of one method's page, and where it comes from; "" if the run has nothing of it.

    Args:
        run: of all training images.
        name: of the page: a method, "wise_ft" or "soups".
        finish: the alpha that belongs to the method.
    """
    levels, pairs = rows_of(run, name, finish)
    if not any(run.evaluations(row) for row in (*levels, *(a for a, _ in pairs))):
        return ""
    columns = columns_of(run)
    lines = ["| | " + " | ".join(title(column, columns) for column in columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {label(row)} | " + " | ".join(_level(run, row, column) for column in columns) + " |" for row in levels]
    for a, b in pairs:
        found = [run.difference(a, b, column) for column in columns]
        if any(found):
            lines.append(f"| {label(a)} minus {label(b)} | " + " | ".join(written(one) for one in found) + " |")
    rows = [row for row in (*levels, *(a for a, _ in pairs)) if split_row(row)[0] != ZERO_SHOT]
    return "\n".join(lines) + "\n\n" + origin(run, rows)


def rows_of(run: Run, name: str, finish: float | None) -> tuple[list[str], list[tuple[str, str]]]:
    """The rows of a page whose levels are shown, and the pairs whose differences are: of a method, all its variants in the run."""
    if name == "wise_ft":
        plain = [method for method in run.runs.methods if method in METHODS]
        return [], [(f"{method}@{alpha}", method) for method in plain for alpha in ("0.5", "val") if alpha == "val" or method in BOTH]
    if name == "soups":
        own = [method for method in run.runs.methods if method in NAMES.values()]
    else:
        own = [method for method in (ZERO_SHOT, *run.runs.methods) if base_of(method) == name]
    shown = [method if finish is None else f"{method}@{finish:g}" for method in own]
    return shown, [pair for row in shown for pair in against(row, baseline=name != BASELINE)]


def against(row: str, *, baseline: bool) -> list[tuple[str, str]]:
    """What a row is compared with: zero-shot, TP-FT, and both with the alpha that validation chose."""
    method, _ = split_row(row)
    if method == ZERO_SHOT:
        return []
    pairs = [(row, ZERO_SHOT), *([(row, BASELINE)] if baseline else [])]
    return [*pairs, *([(f"{method}@val", f"{BASELINE}@val")] if baseline else [])]


def columns_of(run: Run) -> list[str]:
    """ID, mean of shifts, unseen classes, contexts: those that the run has."""
    present = next(run.runs.evaluations()).accuracy
    return [column for column in present if column == "test"] + [
        column for wanted in ("avg_shifts", "unseen/", "context") for column in present
        if column == wanted or (wanted.endswith("/") and column.startswith(wanted))
    ]  # fmt: skip


def differences(run: Run, measures: Sequence[Mapping[str, str]]) -> list[str]:
    """One line each for the differences that the run has."""
    found = [(one, run.difference(one["a"], one["b"], one["on"])) for one in measures]
    return [f"{difference_label(one)}{written(value)}" for one, value in found if value]


def difference_label(one: Mapping[str, str]) -> str:
    """How the line of a difference begins."""
    return f"{label(one['a'])} minus {label(one['b'])}, {title(one['on'])}: "


def written(found: records.Difference | None) -> str:
    """A difference in points with its interval, in brackets if it is undecided."""
    if found is None:
        return "–"
    return f"({found.points})" if found.undecided else found.points


def levels(run: Run, rows: Sequence[str], columns: Sequence[str], settings: Mapping[str, Any]) -> list[str] | None:
    """ "LABEL: value / value" for each row; None unless the run has all of them, made with these settings."""
    counts = [run.seeds(row) for row in rows]
    found = [[run.level(row, column) for column in columns] for row in rows]
    used = [e.settings for row in rows for e in run.evaluations(row)]
    if any(value is None for line in found for value in line) or any(one.get(k) != v for one in used for k, v in settings.items()):
        return None
    most = max(counts)
    few = ["" if split_row(row)[0] == ZERO_SHOT or n == most else f" ({n} of {most} seeds)" for row, n in zip(rows, counts, strict=True)]
    texts = [" / ".join(f"{100 * value:.1f}" for value in line if value is not None) for line in found]
    return [f"{label(row)}: {text}{note}" for row, text, note in zip(rows, texts, few, strict=True)]


def origin(run: Run, rows: Sequence[str]) -> str:
    """Seeds, precision, data and weights behind a table."""
    used = [e for row in rows for e in run.evaluations(row)] or list(run.runs.evaluations())
    counts = sorted({run.seeds(row) for row in rows if run.seeds(row)})
    seeds = "" if not counts else "1 seed; " if counts == [1] else f"{' to '.join(map(str, (counts[:1] + counts[1:][-1:])))} seeds each; "
    made, origin_of = used[0], used[0].provenance
    where = f"data `{origin_of.get('data', '?')}`, weights `{origin_of.get('weights', '?')}`, {made.settings.get('precision', '?')}"
    mixed = f"mixed are runs of {' and '.join(map(display_name, run.mixed))}; " if run.mixed else ""
    return f"{seeds}{mixed}run `{run.folder.name}` ({where})."


def _level(run: Run, row: str, column: str) -> str:
    found = cell(run.evaluations(row), column)
    return str(found) if found else "–"
