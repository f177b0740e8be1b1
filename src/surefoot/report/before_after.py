"""One method before and after: the zero-shot model, the fine-tuned one, and what WiSE-FT's alpha, chosen on validation, makes of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surefoot.records import Evaluation
from surefoot.report.confusion import best_on_validation
from surefoot.report.runs import CHOSEN, ZERO_SHOT, Runs


@dataclass(frozen=True)
class Version:
    """One of them: the row of the table that it stands in, what it is called beside the others, and how it is drawn.

    `kind` is "zero", "tuned" or "merged".
    """

    row: str
    label: str
    kind: str
    evaluation: Evaluation


@dataclass(frozen=True)
class BeforeAfter:
    """A method's versions, zero-shot first where there is one, and `note` on one that is left out, since it is another one of them.

    `best` says that no method does better on ID validation.
    """

    method: str
    versions: Sequence[Version]
    note: str = ""
    best: bool = False

    @property
    def zero(self) -> Version | None:
        """The zero-shot model."""
        return next((one for one in self.versions if one.kind == "zero"), None)

    @property
    def others(self) -> list[Version]:
        """The fine-tuned model and the merged one."""
        return [one for one in self.versions if one.kind != "zero"]


def before_after(runs: Runs, method: str = "", seed: int | None = None) -> BeforeAfter | None:
    """The versions of a method with one seed; None if nothing of it was evaluated.

    Args:
        runs: the collected records.
        method: which one; the best on ID validation if empty.
        seed: which seed; the method's first if None.
    """
    winner = best_on_validation(runs)[1]
    best = winner.method if winner else ""
    method = method or best
    seeds = [number for number in runs.seeds(method) if seed in (None, number)]
    if not seeds or method == ZERO_SHOT:
        return None
    own = runs.runs[method, seeds[0]].points
    choice = runs.choices.get((method, seeds[0]))
    found = [Version(ZERO_SHOT, "zero-shot", "zero", runs.zero_shot)] if runs.zero_shot else []
    if tuned := own.get(1.0):
        found.append(Version(method, "fine-tuned", "tuned", tuned))
    if choice is None:
        return BeforeAfter(method, found, best=method == best)
    merged = min(own.values(), key=lambda one: (round(abs(one.alpha - choice.alpha), 6), one.alpha))
    if merged.alpha in (0.0, 1.0):
        same = "the fine-tuned" if merged.alpha else "the zero-shot"
        note = f"ID validation chose α = {merged.alpha:g} for WiSE-FT, which is {same} model itself."
        return BeforeAfter(method, found, note, method == best)
    found.append(Version(method + CHOSEN, f"WiSE-FT (α\u00a0=\u00a0{merged.alpha:g})", "merged", merged))
    return BeforeAfter(method, found, best=method == best)
