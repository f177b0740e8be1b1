"""The table of a protocol, from the evaluations of its parts: means and harmonic means over parts, and differences with intervals."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surefoot import records
from surefoot.compare import conclusions
from surefoot.errors import DataError
from surefoot.intervals import Answered, Interval, paired_bootstrap, paired_bootstrap_of
from surefoot.metrics import harmonic_mean, macro_f1, mean_per_class, worst_group
from surefoot.protocols.parts import Column, Protocol

Evaluations = Sequence[records.Evaluation]
Rows = Mapping[str, Mapping[str, Evaluations]]
"""{row of the table: {part: its evaluations, one a seed}}."""
WISE = (" + WiSE-FT 0.5", " + WiSE-FT (ID val.)")


def write(protocol: Protocol, found: Mapping[str, Evaluations], folder: Path, datasets: Sequence[str]) -> None:
    """Add the table of a protocol to the records of its folder, unless just this is what was written last.

    Args:
        protocol: which parts and columns.
        found: {part: its evaluations}, whose answers lie in the folder of that name.
        folder: of the protocol.
        datasets: what the parts were cut from.

    Raises:
        DataError: a part without evaluations.
    """
    new = table(protocol, found, folder, datasets)
    if list(records.read(folder))[-len(new) :] != new:
        for record in new:
            records.append(folder, record)


def table(protocol: Protocol, found: Mapping[str, Evaluations], folder: Path, datasets: Sequence[str]) -> list[records.Record]:
    """The records of a protocol's table: what it is, its cells, and differences between rows.

    Every row stands against zero-shot, a method with WiSE-FT against the same without it, and every method against the first one.
    """
    if empty := [part.name for part in protocol.parts if not found.get(part.name)]:
        raise DataError(f"There are no evaluations of {', '.join(empty)} in {folder}. Run the protocol's command again into this folder.")
    rows, runs = rows_of(protocol, found, folder), _identity(found)
    made: list[records.Record] = [
        records.Series(
            protocol=protocol.name, parts=[part.name for part in protocol.parts], datasets=list(datasets), along=protocol.along,
            columns=[[column.group, column.name] for column in protocol.columns], notes=list(protocol.notes), runs=runs,
        )
    ]  # fmt: skip
    for name, row in rows.items():
        made += [_summary(name, row, column, runs) for column in protocol.columns if _has(row, column)]
    for a, b in _pairs(list(rows)):
        both = [
            column for column in protocol.columns if _has(rows[a], column) and _has(rows[b], column) and _paired(rows[a], rows[b], column)
        ]
        made += [difference(a, b, rows, column, folder, runs) for column in both]
    return made


def rows_of(protocol: Protocol, found: Mapping[str, Evaluations], folder: Path) -> dict[str, dict[str, Evaluations]]:
    """The rows that every part has: zero-shot, and each method as it is, with WiSE-FT 0.5, and as each part's ID validation chose."""
    parts = {}
    for part in protocol.parts:
        evaluations = found[part.name]
        parts[part.name] = conclusions.rows_of(evaluations, conclusions.choices(evaluations, folder / part.name))
    common = [name for name in next(iter(parts.values())) if all(name in rows for rows in parts.values())]
    return {name: {part: rows[name] for part, rows in parts.items()} for name in common}


def difference(a: str, b: str, rows: Rows, column: Column, folder: Path, runs: str = "") -> records.Difference:
    """`a` minus `b` on a column, paired by image and seed, as `conclusions.difference` has it; the sets of a mean count alike."""
    with_seeds = [rows[row] for row in (a, b) if not _without_seeds(rows[row])] or [rows[a]]
    seeds = sorted(set[int].intersection(*(set(_seeds(row, column)) for row in with_seeds)))
    answers = [[_answers(rows[row], column, seeds, folder) for row in (a, b)] for column in _one_by_one(column)]
    interval = _interval(column, [one[0] for one in answers], [one[1] for one in answers])
    num_images = sum(len(one[0][0].label) for one in answers)
    return records.Difference(
        a=a, b=b, on=on(column), mean=interval.mean, low=interval.low, high=interval.high,
        num_seeds=len(seeds), num_images=num_images, runs=runs,
    )  # fmt: skip


def on(column: Column) -> str:
    """How differences call a column.

    Examples:
        >>> on(Column("New", (), "pets")), on(Column("Avg.", ()))
        ('pets/New', 'Avg.')
    """
    return f"{column.group}/{column.name}" if column.group else column.name


def value(column: Column, evaluations: Mapping[str, records.Evaluation]) -> float:
    """A column's accuracy from one evaluation of each part: a mean within each tuple of sources, the harmonic mean over two."""
    if column.measure != "accuracy":
        ((part, name),) = column.sources[0]
        return float(evaluations[part].metrics[name][column.measure])
    means = [float(np.mean([evaluations[part].accuracy[name] for part, name in sources])) for sources in column.sources]
    return means[0] if len(means) == 1 else harmonic_mean(*means)


def _summary(name: str, row: Mapping[str, Evaluations], column: Column, runs: str) -> records.Summary:
    seeds = _seeds(row, column)
    used = {part for sources in column.sources for part, _ in sources}
    values = [value(column, {part: _of_seed(row[part], seed) for part in used}) for seed in seeds]
    num_images = sum(row[part][0].num_images[source] for sources in column.sources for part, source in sources)
    return records.Summary(
        row=name, group=column.group, column=column.name, values=values, seeds=seeds, num_images=num_images, runs=runs
    )  # fmt: skip


def _seeds(row: Mapping[str, Evaluations], column: Column) -> list[int]:
    """The seeds that every part of a column has; zero-shot's one evaluation stands for all."""
    parts = {part for sources in column.sources for part, _ in sources}
    return sorted(set[int].intersection(*(({one.seed for one in row[part]}) for part in parts)))


def _of_seed(evaluations: Evaluations, seed: int) -> records.Evaluation:
    """The evaluation of a seed; the single one of the zero-shot model stands for every seed."""
    if evaluations[0].method == "zero_shot":
        return evaluations[0]
    return next(one for one in evaluations if one.seed == seed)


def _without_seeds(row: Mapping[str, Evaluations]) -> bool:
    """Whether a row is the zero-shot model, which is the same for every seed."""
    return all(one.method == "zero_shot" for evaluations in row.values() for one in evaluations)


def _has(row: Mapping[str, Evaluations], column: Column) -> bool:
    """Whether a row was measured on everything that a column needs, on common seeds."""
    each = [(one, name) for sources in column.sources for part, name in sources for one in row[part]]
    if column.measure != "accuracy":
        return all(column.measure in one.metrics.get(name, {}) for one, name in each) and bool(_seeds(row, column))
    return all(name in one.accuracy for one, name in each) and bool(_seeds(row, column))


def _paired(a: Mapping[str, Evaluations], b: Mapping[str, Evaluations], column: Column) -> bool:
    """Whether two rows have a seed in common, or one of them is the same for all seeds."""
    return _without_seeds(a) or _without_seeds(b) or bool(set(_seeds(a, column)) & set(_seeds(b, column)))


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Which rows are set against which."""
    methods = [name for name in names if name != "zero_shot" and not name.endswith(WISE)]
    found = [(name, "zero_shot") for name in names if name != "zero_shot" and "zero_shot" in names]
    found += [(method + wise, method) for method in methods for wise in WISE if method + wise in names]
    for wise in ("", *WISE):
        found += [(method + wise, methods[0] + wise) for method in methods[1:] if {method + wise, methods[0] + wise} <= set(names)]
    return found


def _one_by_one(column: Column) -> list[Column]:
    """A column for each source."""
    return [Column(column.name, ((source,),)) for sources in column.sources for source in sources]


def _answers(row: Mapping[str, Evaluations], column: Column, seeds: Sequence[int], folder: Path) -> list[records.Answers]:
    """What a row answered on the one source of a column: an answer for each seed, or one for a model without seeds."""
    ((part, name),) = column.sources[0]
    found = row[part] if row[part][0].method == "zero_shot" else [_of_seed(row[part], seed) for seed in seeds]
    return [conclusions.answers_of(folder / part, one.answers)[name] for one in found]


def _interval(column: Column, a: list[list[records.Answers]], b: list[list[records.Answers]]) -> Interval:
    if column.measure != "accuracy":
        most = 1 + max(int(ids.max(initial=0)) for seeds in (*a, *b) for one in seeds for ids in (one.prediction, one.label))
        return paired_bootstrap_of(_measure(column.measure, most), [_grouped(one, most) for one in a], [_grouped(one, most) for one in b])
    if len(column.sources) == 1:
        return paired_bootstrap([np.stack([s.correct for s in one]) for one in a], [np.stack([s.correct for s in one]) for one in b])
    first = len(column.sources[0])

    def harmonic(sets: list[Answered]) -> float:
        each = [float((prediction == label).mean()) for prediction, label in sets]
        return harmonic_mean(float(np.mean(each[:first])), float(np.mean(each[first:])))

    return paired_bootstrap_of(harmonic, [_stack(one) for one in a], [_stack(one) for one in b])


def _stack(seeds: Sequence[records.Answers]) -> Answered:
    return np.stack([one.prediction for one in seeds]), seeds[0].label


def _grouped(seeds: Sequence[records.Answers], most: int) -> Answered:
    """Answers whose class numbers, below `most`, hold the group of each image too, so that a resample keeps both together."""
    group = seeds[0].group
    above = 0 if group is None else (most * (group.astype(np.int64) + 1))  # group -1 is none
    return np.stack([one.prediction.astype(np.int64) + above for one in seeds]), seeds[0].label.astype(np.int64) + above


def _measure(name: str, most: int) -> Callable[[list[Answered]], float]:
    """A metric of answers as `_grouped` gives them."""

    def measured(sets: list[Answered]) -> float:
        ((prediction, label),) = sets
        if name != "worst_group":
            return {"macro_f1": macro_f1, "mean_per_class": _mean_per_class}[name](prediction % most, label % most)
        inside = label >= most  # in a group
        return worst_group((prediction == label)[inside], label[inside] // most) if inside.any() else float("nan")

    return measured


def _mean_per_class(prediction: NDArray[Any], label: NDArray[Any]) -> float:
    return mean_per_class(prediction == label, label)


def _identity(found: Mapping[str, Evaluations]) -> str:
    """A hash of all evaluations that the table is drawn from."""
    keys = sorted(
        (part, one.method, one.seed, one.alpha, one.settings_hash, str(one.provenance.get("data")), str(one.provenance.get("weights")))
        for part, evaluations in found.items()
        for one in evaluations
    )
    return hashlib.sha256(repr(keys).encode()).hexdigest()[:12]
