"""What follows from evaluations: the alphas that ID validation chooses, and differences with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from surefoot import records
from surefoot.errors import DataError
from surefoot.intervals import Answered, Interval, paired_bootstrap, paired_bootstrap_of
from surefoot.metrics import harmonic_mean, one_standard_error, score
from surefoot.protocols import members

Rows = Sequence[records.Evaluation]


def choices(found: Rows, folder: Path) -> list[records.Choice]:
    """For every run the alpha that its ID validation chooses, by the measure that its `select_by` names.

    Args:
        found: evaluations of runs, at several alphas each.
        folder: where their answers lie; only those to "val" are read.
    """
    made = []
    for method, seed in sorted({(r.method, r.seed) for r in found if r.method != "zero_shot"}):
        run = sorted((r for r in found if (r.method, r.seed) == (method, seed)), key=lambda r: r.alpha)
        by = run[0].settings.get("select_by", "accuracy")
        given = [answers_of(folder, r.answers)["val"] for r in run]
        scores = [score(one.prediction, one.label, by) for one in given]
        alpha, argmax = one_standard_error([r.alpha for r in run], [s.value for s in scores], [s.error for s in scores])
        rule = f"smallest alpha within one standard error of the best ID validation {by.replace('_', ' ')}"
        made.append(records.Choice(method=method, seed=seed, alpha=alpha, argmax=argmax, rule=rule))
    return made


def best(found: Rows, chosen: Sequence[records.Choice]) -> records.Evaluation | None:
    """The evaluation at its chosen alpha whose ID validation accuracy is highest; the first of equals, None without a run."""
    alpha = {(choice.method, choice.seed): choice.alpha for choice in chosen}
    picked = [r for r in found if alpha.get((r.method, r.seed)) == r.alpha]
    return max(picked, key=lambda r: r.accuracy["val"]) if picked else None


def rows_of(found: Sequence[records.Evaluation], chosen: Sequence[records.Choice]) -> dict[str, list[records.Evaluation]]:
    """{row of the table: its evaluations, one a seed}: zero-shot, then each method as it is, with WiSE-FT 0.5, and as validation chose."""
    alpha = {(choice.method, choice.seed): choice.alpha for choice in chosen}
    rows = {"zero_shot": [r for r in found if r.method == "zero_shot"]}
    for method in dict.fromkeys(r.method for r in found if r.method != "zero_shot"):
        own = sorted((r for r in found if r.method == method), key=lambda r: r.seed)
        rows[method] = [r for r in own if r.alpha == 1]
        rows[f"{method} + WiSE-FT 0.5"] = [r for r in own if r.alpha == 0.5]
        rows[f"{method} + WiSE-FT (ID val.)"] = [r for r in own if alpha.get((r.method, r.seed)) == r.alpha]
    return {name: evaluations for name, evaluations in rows.items() if evaluations}


def differences(found: Rows, folder: Path, chosen: Sequence[records.Choice]) -> list[records.Difference]:
    """Each method against zero-shot, and its WiSE-FT (0.5, and chosen on validation) against it, on every column, with intervals."""
    rows, made = rows_of(found, chosen), []
    for method in dict.fromkeys(r.method for r in found if r.method != "zero_shot"):
        finished = (f"{method} + WiSE-FT 0.5", f"{method} + WiSE-FT (ID val.)")
        pairs = [(method, "zero_shot"), *((a, b) for a in finished if a in rows for b in (method, "zero_shot"))]
        for a, b in pairs:
            b_rows = rows[b]
            if b != "zero_shot":  # runs of one method may have been evaluated at different alphas
                b_rows = [r for r in b_rows if r.seed in {own.seed for own in rows[a]}]
            common = set[str].intersection(*(set(r.accuracy) for r in (*rows[a], *b_rows))) - {"val"}
            made += [difference(a, rows[a], b, b_rows, column, (folder, folder)) for column in sorted(common)]
    return made


def difference(a: str, a_rows: Rows, b: str, b_rows: Rows, column: str, folders: tuple[Path, Path]) -> records.Difference:
    """Accuracy of `a` minus that of `b` on one column, paired by image and seed.

    Args:
        a: name of the first row.
        a_rows: its evaluations, one a seed.
        b: name of the second row.
        b_rows: its evaluations; a single one stands against all seeds of the other.
        column: a name of `Evaluation.accuracy`.
        folders: where the answers of `a` and of `b` lie.

    Raises:
        DataError: a row without this column, or measured on other images.
    """
    sets = members(column, a_rows[0].num_images)
    for name in sets:
        if len(sizes := {r.num_images.get(name, 0) for r in (*a_rows, *b_rows)}) > 1:
            numbers = " and ".join(map(str, sorted(sizes)))
            raise DataError(f"{a} and {b} were measured on {numbers} images of {name}, which cannot be paired. Name other columns by --on.")
    interval = _interval(column, _loaded(a_rows, sets, folders[0]), _loaded(b_rows, sets, folders[1]))
    return records.Difference(
        a=a, b=b, on=column, mean=interval.mean, low=interval.low, high=interval.high,
        num_seeds=max(len(a_rows), len(b_rows)), num_images=sum(a_rows[0].num_images[name] for name in sets),
    )  # fmt: skip


def _interval(column: str, a: list[list[records.Answers]], b: list[list[records.Answers]]) -> Interval:
    if "hm/" not in column:
        return paired_bootstrap([np.stack([s.correct for s in one]) for one in a], [np.stack([s.correct for s in one]) for one in b])
    return paired_bootstrap_of(_harmonic, [_stack(one) for one in a], [_stack(one) for one in b])


def _stack(seeds: Sequence[records.Answers]) -> Answered:
    """(predictions [S, N], labels [N]) of one set."""
    return np.stack([one.prediction for one in seeds]), seeds[0].label


def _harmonic(sets: list[Answered]) -> float:
    first, second = (float((prediction == label).mean()) for prediction, label in sets)
    return harmonic_mean(first, second)


def _loaded(rows: Rows, sets: Sequence[str], folder: Path) -> list[list[records.Answers]]:
    """For each set the answers of every row, seeds in order."""
    loaded = [answers_of(folder, row.answers) for row in sorted(rows, key=lambda r: r.seed)]
    return [[one[name] for one in loaded] for name in sets]


def answers_of(folder: Path, relative: str) -> dict[str, records.Answers]:
    """The answers of an evaluation in `folder`; those that were read last are kept."""
    path = folder / relative
    return _of_file(folder.absolute(), relative, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=256)
def _of_file(folder: Path, relative: str, changed: int) -> dict[str, records.Answers]:
    """`changed` is the file's time of change: one that was written anew is read anew."""
    del changed
    return records.load_answers(folder, relative)
