"""How a run was made: settings, versions, seeds, images, and the alphas that were chosen."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from surefoot.report.runs import Runs, display_name
from surefoot.report.table import MISSING

TABLED = ("method", "seed")  # settings that the page shows elsewhere
AGAIN = ("context", "restricted/", "corruptions/", "joint_", "hm/", "avg_", "agreement")
ORIGINS = {"data": "data (hash)", "weights": "pre-trained weights (hash)"}


@dataclass(frozen=True)
class Made:
    """One method's runs: seeds, what ID validation chose, and the mean time to train."""

    label: str
    seeds: str
    chosen: str
    argmax: str
    train_time: str


def made(runs: Runs) -> list[Made]:
    """A line for each method that fine-tunes."""
    return [_made(runs, method) for method in runs.methods]


def settings(runs: Runs) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The settings that all methods share, and {setting: {method: value}} for the others.

    Seeds of one method that were run under different settings show all their values.
    """
    given = {method: _values([e.settings for e in runs.evaluations() if e.method == method], TABLED) for method in runs.methods}
    names = sorted({name for values in given.values() for name in values})
    table = {name: {method: values.get(name, MISSING) for method, values in given.items()} for name in names}
    shared = {name: next(iter(row.values())) for name, row in table.items() if len(set(row.values())) == 1}
    return shared, {name: row for name, row in table.items() if name not in shared}


def origins(runs: Runs) -> dict[str, str]:
    """Versions, machine and hashes; where records differ, all values."""
    found = _values([evaluation.provenance for evaluation in runs.evaluations()])
    return {ORIGINS.get(name, name): value for name, value in found.items()}


def num_images(runs: Runs) -> dict[str, str]:
    """The images of each set; what looks at the same images again, such as context recognition and corruptions, is left out."""
    split = {name: count for name, count in runs.described.num_images.items() if name == "train"} if runs.described else {}
    found = _values([split, *(evaluation.num_images for evaluation in runs.evaluations())])
    names = ["train", "val", "test", *found]
    return {_set_name(name): found[name] for name in dict.fromkeys(names) if name in found and not name.startswith(AGAIN)}


def duration(seconds: float) -> str:
    """A duration for reading; a dash where nothing was trained.

    Examples:
        >>> duration(320.0), duration(0.4), duration(7500.0)
        ('5 min 20 s', '0.4 s', '2 h 5 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    if not seconds:
        return MISSING
    return f"{minutes} min {rest} s" if minutes else f"{rest} s" if seconds >= 10 else f"{seconds:.1f} s"


def text(value: object) -> str:
    """A setting's value for reading.

    Examples:
        >>> text((1, "a")), text(None), text(1e-05)
        ('1, a', 'null', '1e-05')
    """
    if isinstance(value, (list, tuple)):
        return ", ".join(text(part) for part in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _made(runs: Runs, method: str) -> Made:
    seeds = runs.seeds(method)
    choices = [runs.choices.get((method, seed)) for seed in seeds]
    times = [_seconds(runs, method, seed) for seed in seeds]
    return Made(
        label=display_name(method),
        seeds=", ".join(map(str, seeds)),
        chosen=", ".join(f"{choice.alpha:g}" if choice else MISSING for choice in choices),
        argmax=", ".join(f"{choice.argmax:g}" if choice else MISSING for choice in choices),
        train_time=duration(statistics.fmean(times)),
    )


def _seconds(runs: Runs, method: str, seed: int) -> float:
    """How long the run trained, from its own record or else from its evaluations."""
    trained = runs.trained.get((method, seed))
    return trained.seconds if trained else max(e.train_seconds for e in runs.runs[method, seed].points.values())


def _values(mappings: Iterable[Mapping[str, object]], without: Sequence[str] = ()) -> dict[str, str]:
    """{name: value} as text; different values of one name are joined."""
    found: dict[str, dict[str, None]] = {}
    for mapping in mappings:
        for name, value in mapping.items():
            if name not in without:
                found.setdefault(name, {})[text(value)] = None
    return {name: " / ".join(values) for name, values in found.items()}


def _set_name(name: str) -> str:
    return {"train": "training", "val": "ID validation", "test": "ID test"}.get(
        name, name.replace("shifts/", "shift: ").replace("unseen/", "unseen: ")
    )
