"""Model soups: one model from several finished runs, by averaging their weights.

References:
    Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time",
    ICML 2022. Mao et al., "Context-aware robust fine-tuning", IJCV 2024, table 1, makes them of CAR-FT's runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from surefoot import records
from surefoot.compare import weights_file
from surefoot.compare.plan import TRAINING_NAMES
from surefoot.data.layout import Dataset
from surefoot.data.subsets import few_shot, take
from surefoot.errors import MissingDataError, SettingError, TrainingError
from surefoot.heads import LinearHead
from surefoot.methods import get, parameters, without
from surefoot.metrics import By
from surefoot.model import ImageTextModel
from surefoot.objective import Method
from surefoot.train import State, part, text_head
from surefoot.train.validate import Validation
from surefoot.weights import uniform_soup

NAMES = {False: "soup", True: "greedy_soup"}
"""What the records call a soup, by whether it is greedy."""
Scorer = Callable[[Mapping[str, Tensor]], float]


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """A finished run.

    Attributes:
        name: as a person sees it, such as "runs/a:flyp, seed 0".
        method: what trained it.
        seed: its seed.
        path: of its weights; the file's name holds all that determines them.
        settings: as its records have them.
        origin: hashes of the data ("data") and of the pre-trained weights ("weights").
        class_names: what its head's rows mean, where it is known.
    """

    name: str
    method: Method
    seed: int
    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path, record: records.Evaluation, class_names: Sequence[str] = ()) -> Ingredient:
        """The run that an evaluation in a folder of `compare` or `fit` is of.

        Raises:
            MissingDataError: its weights are not there.
        """
        path = weights_of(folder, record)
        origin = {key: str(record.provenance.get(key, "")) for key in ("data", "weights")}
        name = f"{folder}:{record.method}, seed {record.seed}"
        if not path.is_file():
            raise MissingDataError(f"The weights of {name} are not there any more ({path}). Run its comparison again.")
        known = parameters(record.method)
        own = {key: value for key, value in record.settings.items() if key in known}
        method = replace(get(without(record.method, TRAINING_NAMES), own), name=record.method)
        return cls(
            name=name, method=method, seed=record.seed, path=path, settings=record.settings, origin=origin, class_names=tuple(class_names)
        )

    @property
    def folder(self) -> Path:
        """Where its records lie."""
        return self.path.parent.parent

    @property
    def written(self) -> str:
        """What a soup's records call it."""
        return f"{self.method.name}, seed {self.seed}, {records.settings_hash(self.settings)}"

    def weights(self) -> Stored:
        """Its weights, read tensor by tensor.

        Raises:
            TrainingError: the file cannot be read.
        """
        return Stored(self.path, self.name)


def weights_of(folder: Path, record: records.Evaluation) -> Path:
    """Where `compare` put the weights that an evaluation is of."""
    return weights_file(folder, record.method, record.seed, record.settings, record.provenance)


class Stored(Mapping[str, Tensor]):
    """The tensors of a weights file, each read when it is asked for: of many runs only one tensor each is in memory.

    Raises:
        TrainingError: the file cannot be read.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._failure = f"{path} cannot be read ({{}}). Train {name} again, or leave it out."
        try:
            self._file: Any = safe_open(path, framework="pt")
            self._names = tuple(self._file.keys())  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError) as error:
            raise TrainingError(self._failure.format(error)) from error

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        try:
            return self._file.get_tensor(name)  # type: ignore[no-any-return]
        except (SafetensorError, OSError) as error:
            raise TrainingError(self._failure.format(error)) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def check(ingredients: Sequence[Ingredient]) -> None:
    """Whether some runs can be averaged, asked before any weight is read.

    Raises:
        SettingError: no run; other models, classes or data; heads that mean different things. Every kind of trouble is named, by the first
            pair that has it.
    """
    if not ingredients:
        raise SettingError("A soup needs runs, and none was found. Give folders that 'surefoot compare' or 'surefoot fit' wrote.")
    problems: dict[str, str] = {}
    for other in ingredients[1:]:
        for kind, text in _differences(ingredients[0], other):
            problems.setdefault(kind, f"{ingredients[0].name} and {other.name} {text}.")
    if problems:
        raise SettingError("\n".join([*problems.values(), "Leave one of them out, or make a soup of each kind."]))


def _differences(one: Ingredient, other: Ingredient) -> Iterator[tuple[str, str]]:
    first, second = one.origin, other.origin
    if first.get("weights") != second.get("weights"):
        models = " and ".join(f"{run.settings.get('model', '')} ({run.origin.get('weights')})" for run in (one, other))
        yield "model", f"did not start from the same pre-trained weights: {models}; the mean of two models or architectures means nothing"
    if one.class_names != other.class_names:
        names = sorted({*one.class_names} ^ {*other.class_names})[:3]
        yield "classes", f"were trained on other classes{', such as ' + ', '.join(names) if names else ', in another order'}"
    elif first.get("data") != second.get("data"):
        yield "data", f"were trained on other data ({first.get('data')} and {second.get('data')})"
    if one.settings.get("val_draws") != other.settings.get("val_draws"):
        yield "val", "drew their own validation images, and each was trained on some of the other's: none could judge their soup"
    if one.method.predict != other.method.predict:
        heads = {"head": "its trained head", "text": "its text tower"}
        yield "predict", f"do not answer alike: one by {heads[one.method.predict]}, the other by {heads[other.method.predict]}"


def uniform(ingredients: Sequence[Ingredient]) -> State:
    """The mean of all runs.

    Raises:
        SettingError: runs that do not fit together.
        TrainingError: weights that cannot be read.
    """
    check(ingredients)
    return uniform_soup([one.weights() for one in ingredients])


def greedy(
    ingredients: Sequence[Ingredient], score: Scorer, on_done: Callable[[int, int], None] | None = None
) -> tuple[State, list[Ingredient]]:
    """Runs in the order of their score on ID validation, each kept if the soup does not get worse with it.

    Args:
        ingredients: the runs; of equal ones the first given comes first.
        score: of weights, on ID validation; nothing else may choose.
        on_done: hears how many soups, of one run or several, were scored, and how many there are.

    Returns:
        The soup, and the runs that are in it, the best first.

    Raises:
        SettingError: runs that do not fit together.
        TrainingError: weights that cannot be read.

    Relations:
        The soup scores no lower than the best run. A run that changes nothing is kept ("not worse"), so that of identical runs all are, and
        the soup is any of them, bit for bit.

    References:
        Wortsman et al., ICML 2022, recipe 1.
    """
    check(ingredients)
    done, total = 0, 2 * len(ingredients) - 1

    def scored(runs: Sequence[Ingredient]) -> tuple[State, float]:
        nonlocal done
        state = uniform_soup([one.weights() for one in runs])
        value, done = score(state), done + 1
        if on_done:
            on_done(done, total)
        return state, value

    alone = {one.path: scored([one])[1] for one in ingredients}
    first, *others = sorted(ingredients, key=lambda one: -alone[one.path])
    kept, best = [first], alone[first.path]
    soup = uniform_soup([first.weights()])
    for one in others:
        state, value = scored([*kept, one])
        if value >= best:
            kept, soup, best = [*kept, one], state, value
    return soup, kept


def scorer(model: ImageTextModel, dataset: Dataset, ingredients: Sequence[Ingredient]) -> Scorer:
    """What says how good weights are on ID validation, by the measure that the runs were selected by.

    Args:
        model: its weights are replaced.
        dataset: its validation images count, or of few-shot runs those of their own draws, see `validation_rows`.
        ingredients: the runs of the soup, which answer all by their head or all by text.
    """
    rows = validation_rows(dataset, ingredients)
    own = replace(dataset, splits={**dataset.splits, "val": take(dataset.split("val"), rows)})
    validation = Validation(model, own, measure(ingredients))

    def score(state: Mapping[str, Tensor]) -> float:
        model.load_weights(part(state, "model"))
        if ingredients[0].method.predict == "text":  # the mean of text heads is not the text head of the mean weights
            head = text_head(model, dataset)
        else:
            head = LinearHead(torch.zeros_like(state["head.weight"]), 1.0)
            head.load_state_dict(part(state, "head"))
        return validation.score(head.to(next(model.parameters()).device), validation.features()).value

    return score


def validation_rows(dataset: Dataset, ingredients: Sequence[Ingredient]) -> list[int]:
    """The validation images that may choose: all, or where every run is few-shot those that any of their draws holds."""
    paths = dataset.split("val").paths
    draws = {(int(one.settings.get("shots") or 0), one.seed) for one in ingredients}
    if any(not shots for shots, _ in draws):
        return list(range(len(paths)))
    drawn = {path for shots, seed in draws for path in few_shot(dataset, shots, seed=seed).split("val").paths}
    return [row for row, path in enumerate(paths) if path in drawn]


def measure(ingredients: Sequence[Ingredient]) -> By:
    """What the runs were selected by; accuracy where they differ in it."""
    found: set[By] = {one.settings.get("select_by", "accuracy") for one in ingredients}
    return found.pop() if len(found) == 1 else "accuracy"


def method_of(ingredients: Sequence[Ingredient], *, is_greedy: bool) -> Method:
    """What the soup is to an evaluation: it moved what any of its runs moved, and answers as they do."""
    stages = tuple(stage for one in ingredients for stage in one.method.stages)
    return Method(name=NAMES[is_greedy], stages=stages, predict=ingredients[0].method.predict)


def settings_of(ingredients: Sequence[Ingredient], kept: Sequence[Ingredient], *, is_greedy: bool) -> dict[str, Any]:
    """What is written with the soup's records: which runs are in it, and which were offered."""
    return {
        "method": NAMES[is_greedy],
        "ingredients": sorted(one.written for one in kept),
        "offered": sorted(one.written for one in ingredients),
        "select_by": measure(ingredients),
        **{key: ingredients[0].settings.get(key) for key in ("model", "precision")},
    }
