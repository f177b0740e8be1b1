"""Model soups: one model from several finished runs, by averaging their weights.

References:
    Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time",
    ICML 2022. Mao et al., "Context-aware robust fine-tuning", IJCV 2024, table 1, makes them of CAR-FT's runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from surefoot.errors import SettingError, TrainingError
from surefoot.objective import Method
from surefoot.train import State
from surefoot.weights import uniform_soup

NAMES = {False: "soup", True: "greedy_soup"}
"""What the records call a soup, by whether it is greedy."""


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """A finished run.

    Attributes:
        name: as a person sees it, such as "runs/a:flyp, seed 0".
        method: what trained it.
        seed: its seed.
        settings_hash: of its settings.
        path: of its weights.
        val: its accuracy on ID validation.
        origin: hashes of the data and of the pre-trained weights.
    """

    name: str
    method: Method
    seed: int
    settings_hash: str
    path: Path
    val: float
    origin: tuple[str, str]

    def load(self) -> State:
        """Its weights.

        Raises:
            TrainingError: the file cannot be read.
        """
        try:
            return load_file(self.path)
        except (SafetensorError, OSError) as error:
            raise TrainingError(f"{self.path} cannot be read ({error}). Train {self.name} again, or leave it out.") from error


def check(ingredients: Sequence[Ingredient]) -> None:
    """Whether some runs can be averaged.

    Raises:
        SettingError: no run; other data or pre-trained weights; heads that mean different things. The first pair is named.
    """
    if not ingredients:
        raise SettingError("A soup needs runs, and none was found. Give folders that 'surefoot compare' or 'surefoot fit' wrote.")
    first = ingredients[0]
    for other in ingredients[1:]:
        both = f"{first.name} and {other.name}"
        if other.origin[0] != first.origin[0]:
            raise SettingError(f"{both} were trained on different data, so that their heads name other classes. Leave one of them out.")
        if other.origin[1] != first.origin[1]:
            raise SettingError(f"{both} started from different weights, whose mean means nothing. Leave one of them out.")
        if other.method.predict != first.method.predict:
            raise SettingError(f"{both} cannot be averaged: one answers by its trained head, the other by text. Leave one of them out.")


def uniform(ingredients: Sequence[Ingredient]) -> State:
    """The mean of all runs, each loaded when its turn comes.

    Raises:
        SettingError: runs that do not fit together.
        TrainingError: weights that cannot be read.
    """
    check(ingredients)
    return uniform_soup([one.load() for one in ingredients])


def greedy(
    ingredients: Sequence[Ingredient], score: Callable[[Mapping[str, Tensor]], float], on_done: Callable[[int, int], None] | None = None
) -> tuple[State, list[Ingredient]]:
    """Runs in the order of their ID validation accuracy, each kept if the soup does not get worse with it.

    Args:
        ingredients: the runs; of equal ones the first given comes first.
        score: accuracy of weights on ID validation; nothing else may choose.
        on_done: hears how many runs were tried, and how many there are.

    Returns:
        The soup, and the runs that are in it, the best first.

    Raises:
        SettingError: runs that do not fit together.
        TrainingError: weights that cannot be read.
    """
    check(ingredients)
    ordered = sorted(ingredients, key=lambda one: -one.val)
    kept, states = [ordered[0]], [ordered[0].load()]
    soup = uniform_soup(states)
    best = score(soup)
    for number, one in enumerate(ordered[1:], start=2):
        state = one.load()
        tried = uniform_soup([*states, state])
        if (value := score(tried)) >= best:
            kept, states, soup, best = [*kept, one], [*states, state], tried, value
        if on_done:
            on_done(number, len(ordered))
    return soup, kept


def method_of(ingredients: Sequence[Ingredient], *, is_greedy: bool) -> Method:
    """What the soup is to an evaluation: it moved what any of its runs moved, and answers as they do."""
    stages = tuple(stage for one in ingredients for stage in one.method.stages)
    return Method(name=NAMES[is_greedy], stages=stages, predict=ingredients[0].method.predict)


def settings_of(ingredients: Sequence[Ingredient], kept: Sequence[Ingredient], *, is_greedy: bool) -> dict[str, Any]:
    """What is written with the soup's records: its runs, and which of them it kept."""
    described = [f"{one.method.name}, seed {one.seed}, {one.settings_hash}" for one in kept]
    return {"method": NAMES[is_greedy], "num_tried": len(ingredients), "ingredients": sorted(described)}
