"""What follows from the trials: the one that is chosen, and the recipe that holds its settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from surefoot.compare import Plan
from surefoot.errors import TrainingError
from surefoot.model import ImageTextModel
from surefoot.tune.trials import Trial

RULE = "the smallest learning rate within one standard error of the best"


def choose(trials: Sequence[Trial], size: Callable[[Trial], tuple[float, ...]]) -> tuple[Trial, Trial]:
    """The trial nearest to the pre-trained model among those that validation cannot tell from the best, and the best.

    The argmax over many trials on a small validation set is noise, as it is for alpha. With v the values and e the standard errors::

        chosen = min by size { trial : v(trial) >= v(best) - e(best) },   best = argmax v

    Args:
        trials: all of a search; those that failed are left out.
        size: how far a trial goes from the pre-trained model: its learning rate, then its length.

    Returns:
        (chosen, argmax); of several best ones the argmax is the first.

    Raises:
        TrainingError: every trial failed.
    """
    whole = [trial for trial in trials if not trial.failure]
    if not whole:
        raise TrainingError(
            f"All {len(trials)} trials failed, the first one so: {trials[0].failure} "
            "Search lower learning rates, such as --space learning_rate=1e-7..1e-5:log."
        )
    best = max(whole, key=lambda trial: trial.value)
    within = [trial for trial in whole if trial.value >= best.value - best.error]
    return min(within, key=lambda trial: (*size(trial), trial.number)), best


def recipe(plan: Plan, name: str, model: ImageTextModel, header: Sequence[str], settings: Mapping[str, Any]) -> str:
    """A TOML recipe of one method, for `surefoot compare --recipe` and `surefoot fit --recipe`.

    Args:
        plan: what the search was given.
        name: of the method.
        model: what it fine-tunes.
        header: lines of its comment.
        settings: the chosen ones.
    """
    top = {"model": model.name, "precision": model.precision, "methods": [name], "seeds": plan.seeds, "alphas": plan.alphas}
    top |= {key: value for key in ("shots", "corruptions") if (value := getattr(plan, key)) is not None}
    training = {key: value for key, value in asdict(plan.training).items() if key != "seed"}
    own = {**plan.overrides_of(name), **settings}
    key = json.dumps(name) if "+" in name else name
    lines = [f"# {' '.join(line.split())}".rstrip() for line in header]
    lines += [
        "",
        *_table(top),
        "",
        "[training]",
        *_table(training),
        "",
        f"[overrides.{key}]",
        *_table(own),
    ]
    return "\n".join(lines) + "\n"


def shown(settings: Mapping[str, Any]) -> str:
    """`learning_rate=0.0001, epochs=5`."""
    return ", ".join(f"{key}={'none' if value is None else value}" for key, value in settings.items())


def _table(values: Mapping[str, Any]) -> list[str]:
    # TOML knows no null: a recipe says "none" where a training setting may be switched off, and leaves out what is not given otherwise
    switches = ("steps", "clip_norm")
    given = {key: "none" if value is None and key in switches else value for key, value in values.items()}
    return [f"{key} = {_written(value)}" for key, value in given.items() if value is not None]


def _written(value: Any) -> str:  # noqa: ANN401
    """A value in TOML, whose texts and numbers are written as JSON's are."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
