"""Contexts of the images before and after fine-tuning: which were recognised and still are, which are lost, which are new."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from surefoot.metrics import Change, change
from surefoot.records import Answers
from surefoot.report.answers import Stored
from surefoot.report.before_after import BeforeAfter, Version, before_after
from surefoot.report.runs import Runs, display_name

PREFIX = "context/"


def section(runs: Runs, stored: Stored) -> dict[str, object] | None:
    """What the section shows, or None without answers on contexts: the best method, context by context, and all methods' means."""
    shown = before_after(runs)
    return section_of(shown, runs, stored) if shown else None


def section_of(shown: BeforeAfter, runs: Runs, stored: Stored) -> dict[str, object] | None:
    """The same for one method and seed."""
    if not (lines := lines_of(shown, stored)):
        return None
    return {
        "method": display_name(shown.method),
        "seed": shown.others[0].evaluation.seed,
        "labels": [version.label for version in shown.others],
        "lines": lines,
        "sentences": sentences(shown, stored),
        "methods": _of_methods(runs, stored),
        "note": shown.note,
        "best": shown.best,
    }


def changes(zero: Version, after: Version, stored: Stored) -> dict[str, Change]:
    """{context: what became of its images}, of contexts that both models were asked for on the same images."""
    found = {}
    first, second = (_contexts(stored.all(one.evaluation)) for one in (zero, after))
    for name in first.keys() & second.keys():
        if np.array_equal(first[name].label, second[name].label):
            found[name] = change(first[name].correct, second[name].correct)
    return {name: found[name] for name in first if name in found}


def mean(found: Mapping[str, Change]) -> Change:
    """The plain mean over contexts, as the column of the table is."""
    return Change(*(statistics.fmean(getattr(one, part) for one in found.values()) for part in ("kept", "lost", "gained", "missed")))


def lines_of(shown: BeforeAfter, stored: Stored) -> list[dict[str, object]]:
    """A line for each context and one for their mean: images, shares in percent of each version, and what lost images are taken for."""
    if shown.zero is None or not shown.others:
        return []
    each = [changes(shown.zero, version, stored) for version in shown.others]
    names = [name for name in each[0] if all(name in one for one in each)]
    if not names:
        return []
    before, after = (_contexts(stored.all(one.evaluation)) for one in (shown.zero, shown.others[0]))
    numbers = numbers_of(before)
    made = [
        {
            "name": name,
            "images": len(before[name].label),
            "zero": f"{100 * (each[0][name].kept + each[0][name].lost):.1f}",
            "cells": [_cell(one[name]) for one in each],
            "instead": _instead(before[name], after[name], numbers),
        }
        for name in names
    ]
    means = [mean({name: one[name] for name in names}) for one in each]
    zero = f"{100 * (means[0].kept + means[0].lost):.1f}"
    return [*made, {"name": "Mean", "images": "", "zero": zero, "cells": [_cell(one) for one in means], "instead": ""}]


def sentences(shown: BeforeAfter, stored: Stored) -> list[str]:
    """What became of the contexts, in words: one sentence for each version after the zero-shot model."""
    said = []
    for version in shown.others if shown.zero else ():
        if found := changes(shown.zero, version, stored):  # type: ignore[arg-type]
            own = mean(found)
            said.append(
                f"{display_name(shown.method)}, {version.label}: of all images (mean of {len(found)} contexts) "
                f"{100 * own.kept:.1f}% keep their context, {100 * own.lost:.1f}% lose it, {100 * own.gained:.1f}% gain it."
            )
    return said


def numbers_of(given: Mapping[str, Answers]) -> dict[int, str]:
    """{number of a context: its name}, of {context: answers to its images}."""
    return {int(answers.label[0]): name for name, answers in given.items()}


def _contexts(given: Mapping[str, Answers]) -> dict[str, Answers]:
    return {name.removeprefix(PREFIX): answers for name, answers in given.items() if name.startswith(PREFIX)}


def _cell(one: Change) -> dict[str, object]:
    return {"parts": [(part, f"{100 * getattr(one, part):.1f}") for part in ("kept", "gained", "lost")]}


def _instead(before: Answers, after: Answers, names: Mapping[int, str]) -> str:
    """What the images whose context is lost are mostly taken for, with its share of them."""
    lost = after.prediction[before.correct & ~after.correct].tolist()
    if not lost:
        return ""
    number, count = min(Counter(lost).items(), key=lambda one: (-one[1], one[0]))
    return f"{names.get(number, f'context {number}')} ({100 * count / len(lost):.0f}%)"


def _of_methods(runs: Runs, stored: Stored) -> list[tuple[str, list[str]]]:
    """(row, [zero-shot, kept, lost, gained, recognised]) for each version of each method, means over contexts, first seeds."""
    rows: list[tuple[str, list[str]]] = []
    for method in runs.methods:
        shown = before_after(runs, method)
        for version in shown.others if shown and shown.zero else ():
            if found := changes(shown.zero, version, stored):  # type: ignore[union-attr, arg-type]
                own = mean(found)
                numbers: Sequence[float] = (own.kept + own.lost, own.kept, own.lost, own.gained, own.kept + own.gained)
                rows.append((display_name(version.row), [f"{100 * number:.1f}" for number in numbers]))
    return rows
