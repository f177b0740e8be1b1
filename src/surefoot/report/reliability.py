"""Reliability in distribution and under each shift, before and after fine-tuning, of the method that is best on validation."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from surefoot.metrics import expected_calibration_error, overconfidence
from surefoot.records import Answers
from surefoot.report import marks
from surefoot.report.answers import Stored
from surefoot.report.before_after import BeforeAfter, Version, before_after
from surefoot.report.calibration import line_of, panel
from surefoot.report.runs import Runs, display_name
from surefoot.report.table import header

PLACES = {"shifts/": "shifts", "corruptions/": "corruptions"}
"""Where a model is judged beside ID, by how the names of the sets begin; the first that the data have is shown."""


def section(runs: Runs, stored: Stored) -> dict[str, object] | None:
    """What the section shows, or None without answers beyond ID: a panel for ID and each shift, and the errors in words."""
    shown = before_after(runs)
    return section_of(shown, runs, stored) if shown else None


def section_of(shown: BeforeAfter, runs: Runs, stored: Stored) -> dict[str, object] | None:
    """The same for one method and seed; None too where nothing but the zero-shot model was judged."""
    if not shown.others or not (panels := panels_of(shown, stored, marks.css_class(runs.methods.index(shown.method)))):
        return None
    return {
        "method": display_name(shown.method),
        "seed": shown.others[0].evaluation.seed,
        "panels": panels,
        "legend": [(version.kind, version.label) for version in shown.versions],
        "sentences": sentences(shown, stored),
        "merged": next((version.label for version in shown.versions if version.kind == "merged"), ""),
        "note": shown.note,
        "best": shown.best,
    }


def panels_of(shown: BeforeAfter, stored: Stored, css: str) -> list[dict[str, object]]:
    """A reliability diagram of all versions for ID and for every set beside it; nothing where there is no set beside it."""
    given = {version.label: stored.all(version.evaluation) for version in shown.versions}
    kinds = {version.label: version.kind for version in shown.versions}
    names, _ = beside([sets for sets in given.values() if sets])
    made = []
    for name in ["test", *names] if names else []:
        lines = [line_of(label, kinds[label], sets[name]) for label, sets in given.items() if name in sets]
        made.append(panel(header(name), css, lines, every=True))
    return made


def sentences(shown: BeforeAfter, stored: Stored) -> list[str]:
    """How sure each version is against how often it is right, and its ECE, on ID and as a mean over the sets beside it."""
    return [said for version in shown.versions if (said := _sentence(version, stored.all(version.evaluation)))]


def beside(given: Sequence[Mapping[str, Answers]]) -> tuple[list[str], str]:
    """The sets beside ID that all models have answered, and what they are called together; shifts, or else corruptions."""
    for start, called in PLACES.items():
        if names := [name for name in (given[0] if given else ()) if name.startswith(start) and all(name in one for one in given)]:
            return names, called
    return [], ""


def _sentence(version: Version, given: Mapping[str, Answers]) -> str:
    names, called = beside([given])
    if "test" not in given:
        return ""
    parts = [f"on ID test {_told([given['test']])}"]
    if names:
        over = f"over the {len(names)} {called}, on average," if len(names) > 1 else f"under {header(names[0])}"
        parts.append(f"{over} {_told([given[name] for name in names])}")
    return f"{version.label[:1].upper()}{version.label[1:]}: {'; '.join(parts)}."


def _told(answers: Sequence[Answers]) -> str:
    """Plain means over sets."""
    said = statistics.fmean(float(one.confidence.mean(dtype=float)) for one in answers)
    above = statistics.fmean(overconfidence(one.confidence, one.correct) for one in answers)
    error = statistics.fmean(expected_calibration_error(one.confidence, one.correct) for one in answers)
    how = "too sure by" if above >= 0 else "not sure enough by"
    return (
        f"sure of {100 * said:.1f}% and right in {100 * (said - above):.1f}%, {how} {100 * abs(above):.1f} points (ECE {100 * error:.1f}%)"
    )
