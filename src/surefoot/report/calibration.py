"""Calibration on the ID test set: how often a model is right when it says that it is right with probability p."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from surefoot.metrics import expected_calibration_error, reliability
from surefoot.records import Answers, Evaluation
from surefoot.report import marks
from surefoot.report.answers import Stored
from surefoot.report.runs import Runs, display_name
from surefoot.report.templates import render

SIZE, LEFT, TOP, RIGHT, BOTTOM = (208, 200), 36.0, 8.0, 194.0, 166.0


@dataclass(frozen=True)
class Line:
    """The reliability of one model: its points, and its expected calibration error."""

    label: str
    kind: str  # "zero", "tuned" or "merged"
    points: list[dict[str, object]]
    path: str
    error: float


def section(runs: Runs, stored: Stored) -> dict[str, object] | None:
    """What the section shows, or None where no answers are stored: a panel for each method, zero-shot in each of them."""
    zero = _line("zero-shot", "zero", runs.zero_shot, stored)
    panels = []
    for index, method in enumerate(runs.methods):
        merged = next(iter(runs.chosen(method)), None)
        lines = [
            _line("fine-tuned", "tuned", next(iter(runs.at(method, 1.0)), None), stored),
            _line(f"α = {merged.alpha:g}" if merged else "", "merged", merged, stored),
        ]
        if shown := [line for line in lines if line]:
            panels.append(panel(display_name(method), marks.css_class(index), ([zero] if zero else []) + shown))
    if zero and not panels:
        panels.append(panel("zero-shot", "plain", [zero]))
    return {"panels": panels, "zero": f"{100 * zero.error:.1f}" if zero else ""} if panels else None


def _line(label: str, kind: str, evaluation: Evaluation | None, stored: Stored) -> Line | None:
    answers = stored.test(evaluation) if evaluation else None
    return line_of(label, kind, answers) if answers else None


def line_of(label: str, kind: str, answers: Answers) -> Line:
    """The reliability of a model by its answers; `kind` is "zero", "tuned" or "merged"."""
    points = [
        _point(bin_.confidence, bin_.accuracy, bin_.count, len(answers.label)) for bin_ in reliability(answers.confidence, answers.correct)
    ]
    path = "M" + "L".join(f"{point['x']:.1f} {point['y']:.1f}" for point in points)
    return Line(label, kind, points, path, _error(answers))


def _point(confidence: float, accuracy: float, count: int, total: int) -> dict[str, object]:
    """A bin as a dot, whose area grows with its share of the images."""
    return {
        "x": LEFT + (RIGHT - LEFT) * confidence,
        "y": BOTTOM - (BOTTOM - TOP) * accuracy,
        "radius": 1.4 + 4.6 * math.sqrt(count / total),
        "title": f"said {100 * confidence:.0f}%, right {100 * accuracy:.0f}% of {count} image{'s'[: count != 1]}",
    }


def _error(answers: Answers) -> float:
    return expected_calibration_error(answers.confidence, answers.correct)


def panel(name: str, css: str, lines: Sequence[Line], *, every: bool = False) -> dict[str, object]:
    """A picture with its heading and the errors of its models; `every` names that of zero-shot too where there are others."""
    errors = [(line.label, f"{100 * line.error:.1f}") for line in lines if every or line.kind != "zero" or len(lines) == 1]
    summary = f"Reliability of {name}. " + "; ".join(f"{line.label}: calibration error {100 * line.error:.1f}%" for line in lines) + "."
    picture = render("calibration.svg.j2", size=SIZE, bounds=(LEFT, TOP, RIGHT, BOTTOM), css=css, lines=lines, summary=summary)
    return {"name": name, "errors": errors, "picture": Markup(picture)}
