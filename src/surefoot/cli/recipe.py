"""The settings of a command: its recipe, or that of its model, and what the command line gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from surefoot import config
from surefoot.data import embedded

DEFAULT_MODEL = "ViT-B-32:laion2b_s34b_b79k"


def resolve(data: str, recipe: str | None, assignments: Sequence[str] | None, **given: Any) -> config.Settings:  # noqa: ANN401
    """The settings of a recipe with what the command line gives.

    Without a model the embedded data get the embedded one, and anybody's own images a CLIP that was pre-trained on photographs. Without
    a recipe the model's own is taken.
    """
    table = config.read_recipe(recipe) if recipe else {}
    model = given.get("model")
    if model is None:
        model = table.get("model", "iconclip" if data in embedded.names() else DEFAULT_MODEL)
    table = table or config.read_recipe("iconshift" if model == "iconclip" else "clip")
    return config.resolve(table, config.parse_assignments(assignments or []), **{**given, "model": model})
