"""The settings of a command: its recipe, or that of its model, and what the command line gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from surefoot import config
from surefoot.compare.plan import named_training
from surefoot.data import embedded

DEFAULT_MODEL = "ViT-B-32:laion2b_s34b_b79k"
LENGTH = {"epochs", "steps"}
SMOKE: dict[str, Any] = {"steps": 2, "batch_size": 8}
"""The length of a run that only tries a command."""


def resolve(data: str, recipe: str | None, assignments: Sequence[str] | None, **given: Any) -> config.Settings:  # noqa: ANN401
    """The settings of a recipe with what the command line gives.

    Without a model the embedded data get the embedded one, and anybody's own images a CLIP that was pre-trained on photographs. Without
    a recipe the model's own is taken. `usual` are the seeds and the steps of a benchmark, for what neither the user nor the user's recipe
    says: the same for all data and models, IconCLIP among them, whose own recipe counts only if it is asked for. With
    `smoke` all of it is cut down to try a command.
    """
    usual, smoke = given.pop("usual", None), given.pop("smoke", False)
    said = config.read_recipe(recipe) if recipe else {}
    model = given.get("model")
    if model is None:
        model = said.get("model", "iconclip" if data in embedded.names() else DEFAULT_MODEL)
    table = said or config.read_recipe("iconshift" if model == "iconclip" else "clip")
    assigned = config.parse_assignments(assignments or [])
    if usual:
        table = {**table, "seeds": said.get("seeds", usual["seeds"])}
        if not _length_said({**said, **{key: value for key, value in given.items() if value is not None}}, assigned):
            table["training"] = {**table.get("training", {}), "steps": usual["steps"]}
    settings = config.resolve(table, assigned, **{**given, "model": model})
    return smoked(settings) if smoke else settings


def smoked(settings: config.Settings) -> config.Settings:
    """The settings with two steps a run, the first seed and one coefficient: as little as goes through all of a command."""
    plan = settings.plan
    own = {name: {key: value for key, value in values.items() if key not in {*SMOKE, "epochs"}} for name, values in plan.overrides.items()}
    cut = replace(plan, seeds=plan.seeds[:1], alphas=(0.5,), training=replace(plan.training, **SMOKE), overrides=own, corruptions=False)
    return replace(settings, plan=cut)


def _length_said(table: Mapping[str, Any], assigned: Mapping[str, Any]) -> bool:
    """Whether a recipe, a setting or the name of a variant says for how long to train, for all methods or for one."""
    tables = [table.get("training", {}), *dict(table.get("overrides", {})).values(), *map(named_training, table.get("methods", ()))]
    return bool(LENGTH & {*(key for one in tables for key in one), *(key.rpartition(".")[2] for key in assigned)})
