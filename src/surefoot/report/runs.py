"""Records sorted by run: who was evaluated, at which alpha, with which seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from surefoot.errors import DataError
from surefoot.records import (
    Anchored,
    Choice,
    Curve,
    Described,
    Difference,
    Evaluation,
    Example,
    Explained,
    Record,
    Reference,
    Robustness,
    Series,
    Summary,
    Trained,
)

ZERO_SHOT = "zero_shot"
HALF, CHOSEN = " + WiSE-FT 0.5", " + WiSE-FT (ID val.)"  # how the names of a method's other rows end
NAMES = {
    ZERO_SHOT: "zero-shot",
    "lp": "LP",
    "ft": "FT",
    "tp_ft": "TP-FT",
    "lp_ft": "LP-FT",
    "l2_sp": "L2-SP",
    "flyp": "FLYP",
    "flyp_ce": "FLYP-CE",
    "car_ft": "CAR-FT",
    "arf": "ARF",
    "clip_cite": "CLIP-CITE",
    "soup": "Soup (uniform)",
    "greedy_soup": "Soup (greedy)",
}


@dataclass(frozen=True)
class Run:
    """One method with one seed: {alpha: evaluation}, all under the same settings."""

    settings_hash: str
    points: dict[float, Evaluation] = field(default_factory=dict)


@dataclass(frozen=True)
class Runs:
    """Everything a report shows: runs, choices and trainings by method and seed, differences by what is compared and on which set,
    effective robustness by row and column, reference models in the order of their shares, and curves beside the frontiers by method,
    seed and what they go along, {alpha or epoch: point}."""

    runs: dict[tuple[str, int], Run] = field(default_factory=dict)
    choices: dict[tuple[str, int], Choice] = field(default_factory=dict)
    differences: dict[tuple[str, str, str], Difference] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    anchored: list[Anchored] = field(default_factory=list)
    robustness: dict[tuple[str, str], Robustness] = field(default_factory=dict)
    references: list[Reference] = field(default_factory=list)
    trained: dict[tuple[str, int], Trained] = field(default_factory=dict)
    described: Described | None = None
    curves: dict[tuple[str, int, str], dict[float, Curve]] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """The name of the one dataset."""
        return next(self.evaluations()).dataset

    @property
    def methods(self) -> list[str]:
        """The methods that fine-tune, in the order they were first evaluated."""
        return list(dict.fromkeys(method for method, _ in self.runs if method != ZERO_SHOT))

    @property
    def zero_shot(self) -> Evaluation | None:
        """The zero-shot model: its own record, or else alpha 0 of any run, which is the same model."""
        own = [run for (method, _), run in self.runs.items() if method == ZERO_SHOT]
        at_zero = [run.points[0.0] for run in (*own, *self.runs.values()) if 0.0 in run.points]
        return at_zero[0] if at_zero else None

    def seeds(self, method: str) -> list[int]:
        """The seeds of a method, in ascending order."""
        return sorted(seed for name, seed in self.runs if name == method)

    def alphas(self, method: str) -> list[float]:
        """Every alpha at which at least one seed of the method was evaluated, in ascending order."""
        return sorted({alpha for (name, _), run in self.runs.items() if name == method for alpha in run.points})

    def at(self, method: str, alpha: float) -> list[Evaluation]:
        """The evaluations of a method at one alpha, one for each seed that has it."""
        points = (self.runs[method, seed].points for seed in self.seeds(method))
        return [run[_key(alpha)] for run in points if _key(alpha) in run]

    def chosen(self, method: str) -> list[Evaluation]:
        """For each seed with a choice, the evaluation nearest to the alpha that ID validation chose; a tie goes to the smaller alpha.

        The zero-shot model stands in at alpha 0 where the run has no evaluation of its own there.
        """
        zero = {0.0: self.zero_shot} if self.zero_shot else {}
        pairs = ((zero | self.runs[method, seed].points, self.choices.get((method, seed))) for seed in self.seeds(method))
        return [points[min(points, key=lambda alpha: (_key(abs(alpha - choice.alpha)), alpha))] for points, choice in pairs if choice]

    def evaluations(self) -> Iterator[Evaluation]:
        """All evaluations that count."""
        for run in self.runs.values():
            yield from run.points.values()


def collect(records: Iterable[Record]) -> Runs:
    """Sort records by run.

    What was written later counts. An alpha evaluated twice is taken once; the first evaluation under other settings starts its run anew,
    so that no curve joins points of two settings; and the first one on other data or from other weights starts everything anew.

    Choices, differences, robustness and examples count as far as they were drawn together, from the runs that stand; a training counts
    if its settings are those of the run that stands, the last description of the data if it names the data set of the evaluations. A
    reference model counts if it was trained on the data that stand; it depends on no run. A curve beside a frontier counts if settings,
    data and weights are those of the run that stands.

    Raises:
        DataError: no evaluation among the records, or evaluations of several datasets.
    """
    found, concluded = Runs(), ""
    origin: tuple[object, ...] = ()
    trained: dict[tuple[str, int, str], Trained] = {}
    described: Described | None = None
    references: dict[tuple[float, int], Reference] = {}
    curves: list[Curve] = []
    for record in records:
        if isinstance(record, Difference | Choice | Example | Anchored | Robustness):
            if record.runs != concluded:
                _drop_conclusions(found)
                concluded = record.runs
            _conclude(found, record)
        elif isinstance(record, Trained):
            trained[record.method, record.seed, record.settings_hash] = record
        elif isinstance(record, Reference):
            references[record.share, record.seed] = record
        elif isinstance(record, Curve):
            curves.append(record)
        elif isinstance(record, Described):
            described = record
        elif isinstance(record, Series | Summary | Explained):
            continue  # a protocol's table has a page of its own, and what explain shows lies in a folder of its own
        else:
            if found.runs and _origin(record) != origin:
                _require_same_dataset(found, record)
                found = Runs()
            origin = _origin(record)
            _add(found, record)
    if not found.runs:
        raise DataError("There are no evaluations among the records. A report needs at least one: run `surefoot compare` first.")
    keys = {(method, seed): (method, seed, run.settings_hash) for (method, seed), run in found.runs.items()}
    standing = {run: trained[key] for run, key in keys.items() if key in trained}
    shown = described if described and described.dataset == found.dataset else None
    own = [references[key] for key in sorted(references) if _origin(references[key]) == origin]
    return replace(found, trained=standing, described=shown, references=own, curves=_standing_curves(found, curves, origin))


def _standing_curves(found: Runs, curves: Iterable[Curve], origin: tuple[object, ...]) -> dict[tuple[str, int, str], dict[float, Curve]]:
    standing: dict[tuple[str, int, str], dict[float, Curve]] = {}
    for one in curves:
        run = found.runs.get((one.method, one.seed))
        if run and run.settings_hash == one.settings_hash and _origin(one) == origin:
            standing.setdefault((one.method, one.seed, one.along), {})[_key(one.at)] = one
    return standing


def _conclude(found: Runs, record: Difference | Choice | Example | Anchored | Robustness) -> None:
    if isinstance(record, Difference):
        found.differences[record.a, record.b, record.on] = record
    elif isinstance(record, Choice):
        found.choices[record.method, record.seed] = record
    elif isinstance(record, Robustness):
        found.robustness[record.row, record.on] = record
    elif isinstance(record, Anchored):
        found.anchored.append(record)
    elif record not in found.examples:
        found.examples.append(record)


def _drop_conclusions(found: Runs) -> None:
    for drawn in (found.choices, found.differences, found.examples, found.anchored, found.robustness):
        drawn.clear()


def _add(found: Runs, record: Evaluation) -> None:
    key = (record.method, record.seed)
    if key in found.runs and found.runs[key].settings_hash != record.settings_hash:
        del found.runs[key]
        _drop_conclusions(found)
    found.runs.setdefault(key, Run(record.settings_hash)).points[_key(record.alpha)] = record


def _origin(record: Evaluation | Reference | Curve) -> tuple[object, ...]:
    """What must be the same in everything that is compared."""
    return (record.dataset, record.provenance.get("data"), record.provenance.get("weights"))


def _require_same_dataset(found: Runs, record: Evaluation) -> None:
    if found.dataset != record.dataset:
        names = f"'{found.dataset}' and '{record.dataset}'"
        raise DataError(f"The records hold several datasets: {names}. A report shows one: keep the records of each in a folder of its own.")


def display_name(name: str) -> str:
    """A row's name in the records as a reader sees it; unknown methods keep theirs, a variant's settings follow in brackets.

    Examples:
        >>> display_name("tp_ft + WiSE-FT 0.5"), display_name("mine"), display_name("car_ft+contexts=own")
        ('TP-FT + WiSE-FT 0.5', 'mine', 'CAR-FT (contexts=own)')
    """
    label, joint, rest = name.partition(" + ")
    method, plus, settings = label.partition("+")
    shown = f" ({settings.replace('+', ', ')})" if plus else ""
    return NAMES.get(method, method) + shown + joint + rest


def _key(alpha: float) -> float:
    """An alpha without the noise of floating-point grids: 0.1 + 0.2 is 0.3."""
    return round(alpha, 6) + 0.0
