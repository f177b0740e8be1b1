"""The classes that the best model confuses most often, and how often the zero-shot model did."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from surefoot.metrics import confusions
from surefoot.records import Evaluation
from surefoot.report.answers import Stored
from surefoot.report.runs import CHOSEN, Runs, display_name

MOST = 12  # pairs


def section(runs: Runs, stored: Stored) -> dict[str, object] | None:
    """What the section shows, or None where no answers of the best method's first seed are stored."""
    name, evaluation = best_on_validation(runs)
    answers = stored.test(evaluation) if evaluation else None
    if evaluation is None or answers is None:
        return None
    zero = stored.test(runs.zero_shot) if runs.zero_shot else None
    if zero is not None and not np.array_equal(zero.label, answers.label):
        zero = None
    classes = runs.described.class_names.get("seen", ()) if runs.described else ()
    lines = []
    for label, prediction, count, share in confusions(answers.prediction, answers.label, MOST):
        before = "" if zero is None else str(int(np.sum((zero.label == label) & (zero.prediction == prediction))))
        lines.append((_class(classes, label), _class(classes, prediction), str(count), f"{100 * share:.0f}%", before))
    return {"name": display_name(name), "alpha": f"{evaluation.alpha:g}", "seed": evaluation.seed, "lines": lines, "zero": zero is not None}


def best_on_validation(runs: Runs) -> tuple[str, Evaluation | None]:
    """The row with the best mean accuracy on ID validation, and its first seed's evaluation.

    Each method stands with the alphas that ID validation chose for it, or as fine-tuned while nothing was chosen. The test set has no say.
    """
    found: list[tuple[float, str, Evaluation]] = []
    for method in runs.methods:
        chosen = runs.chosen(method)
        evaluations = [evaluation for evaluation in chosen or runs.at(method, 1.0) if "val" in evaluation.accuracy]
        if evaluations:
            value = statistics.fmean(evaluation.accuracy["val"] for evaluation in evaluations)
            found.append((value, method + CHOSEN if chosen else method, evaluations[0]))
    if not found:
        return "", None
    _, name, evaluation = max(found, key=lambda one: one[0])
    return name, evaluation


def _class(names: Sequence[str], number: int) -> str:
    return names[number] if 0 <= number < len(names) else f"class {number}"
