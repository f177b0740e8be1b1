"""Run methods over seeds on one data set, evaluate each along alpha, write records; what is finished is never done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from surefoot import records
from surefoot.data.images import Budget, Images
from surefoot.data.layout import Dataset
from surefoot.methods import get, wise_ft
from surefoot.metrics import one_standard_error, paired_bootstrap
from surefoot.model import ImageTextModel
from surefoot.objective import Method
from surefoot.protocols import Judge, Outcome, members
from surefoot.train import State, Step, Training, fit, part, preflight, settings_of, start_state

Key = tuple[str, int, float, str, str, str]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `compare` runs: `methods` x `seeds`, each evaluated at `alphas` (0 and 1 are added)."""

    methods: tuple[str, ...] = ("tp_ft", "flyp")
    seeds: tuple[int, ...] = (0, 1, 2)
    alphas: tuple[float, ...] = tuple(k / 10 for k in range(11))
    training: Training = field(default_factory=Training)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def training_of(self, method: str, seed: int) -> Training:
        """The training settings of one run; `overrides` hold what differs for a method."""
        return replace(self.training, **{**self.overrides.get(method, {}), "seed": seed})


class Watcher:
    """What a front end may want to know while `compare` runs; this one ignores it."""

    def run(self, method: str, seed: int, number: int, total: int) -> None:
        """Run `number` of `total` begins."""

    def step(self, step: Step) -> None:
        """A training step is done."""

    def evaluated(self, record: records.Evaluation) -> None:
        """A record was written, or found from before."""


class Comparison:
    """One `compare` into one folder.

    Args:
        model: the pre-trained model.
        dataset: what it is fine-tuned and judged on.
        plan: methods, seeds, alphas and settings.
        folder: records.jsonl, correct/ and weights/ go here; runs that are finished there are not run again.
    """

    def __init__(self, model: ImageTextModel, dataset: Dataset, plan: Plan, folder: Path, watcher: Watcher | None = None) -> None:
        self.model, self.dataset, self.plan, self.folder = model, dataset, plan, folder
        self.watcher = watcher or Watcher()
        for name in plan.methods:
            preflight(get(name), model, dataset, plan.training_of(name, 0))
        self.provenance = records.provenance() | {"data": dataset.fingerprint(), "weights": weights_hash(model)}
        self.start = start_state(model, dataset)
        budget = Budget()
        self.judge = Judge(model, dataset, self.start, budget)
        self.train_images = Images(dataset.split("train").paths, model.preprocess_train, random=True, budget=budget)
        stored = [r for r in records.read(folder) if isinstance(r, records.Evaluation)]
        self.done = {_key_of(r): r for r in stored}
        self.standing = _Standing()
        for record in stored:
            self.standing.add(record)

    def run(self) -> list[records.Evaluation]:
        """All evaluations of the plan, then the choices and differences that follow from them; the model gets its first weights back."""
        self.zero = self._zero_shot()
        found = [self.zero]
        runs = [(name, seed) for name in self.plan.methods if name != "zero_shot" for seed in self.plan.seeds]
        for number, (name, seed) in enumerate(runs, start=1):
            self.watcher.run(name, seed, number, len(runs))
            found += self._one_run(get(name), seed)
        self.model.load_weights(part(self.start, "model"))
        self._conclude(found)
        return found

    def _zero_shot(self) -> records.Evaluation:
        settings = {"method": "zero_shot", "model": self.model.name, "precision": self.model.precision}
        key = self._key("zero_shot", 0, 0.0, settings)
        if key not in self.done:
            self._add(key, settings, self.judge.judge(get("zero_shot"), self.start), 0.0)
        return self._tell(key)

    def _one_run(self, method: Method, seed: int) -> list[records.Evaluation]:
        training = self.plan.training_of(method.name, seed)
        settings = settings_of(method, training, self.model)
        end: tuple[State, float] | None = None
        found = []
        for alpha in sorted({0.0, 1.0, *self.plan.alphas}):
            key = self._key(method.name, seed, alpha, settings)
            if key not in self.done:
                end = end or self._train(method, training, settings)
                # alpha = 0 is the zero-shot model with its text head for every method: nothing to compute again
                outcome = self._zero_outcome() if alpha == 0 else self.judge.judge(method, wise_ft(self.start, end[0], alpha))
                self._add(key, settings, outcome, end[1])
            found.append(self._tell(key))
        return found

    def _zero_outcome(self) -> Outcome:
        return Outcome(records.load_correct(self.folder, self.zero.correct))

    def _train(self, method: Method, training: Training, settings: Mapping[str, Any]) -> tuple[State, float]:
        """The weights of a run: from its file if it was finished, trained otherwise."""
        identity = records.settings_hash(
            {**settings, "seed": training.seed, "data": self.provenance["data"], "start": self.provenance["weights"]}
        )
        path = self.folder / "weights" / f"{method.name}-seed{training.seed}-{identity}.safetensors"
        if path.is_file():
            with safe_open(path, framework="pt") as stored:
                return {name: stored.get_tensor(name) for name in stored.keys()}, float(stored.metadata()["seconds"])  # noqa: SIM118
        seconds = [0.0]

        def on_step(step: Step) -> None:
            seconds[0] = step.seconds
            self.watcher.step(step)

        self.model.load_weights(part(self.start, "model"))
        state = fit(method, self.model, self.dataset, training, start=self.start, images=self.train_images, on_step=on_step)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        save_file(
            {name: t.contiguous() for name, t in state.items()}, partial, {"seconds": str(seconds[0]), "settings": json.dumps(settings)}
        )
        partial.replace(path)
        return state, seconds[0]

    def _key(self, method: str, seed: int, alpha: float, settings: Mapping[str, Any]) -> Key:
        return (method, seed, alpha, records.settings_hash(settings), self.provenance["data"], self.provenance["weights"])

    def _add(self, key: Key, settings: Mapping[str, Any], outcome: Outcome, seconds: float) -> None:
        """Keep what was measured; `_tell` writes it."""
        method, seed, alpha, settings_hash, *_ = key
        self.done[key] = records.Evaluation(
            method=method,
            seed=seed,
            alpha=alpha,
            dataset=self.dataset.name,
            accuracy=outcome.accuracy,
            num_images={name: len(right) for name, right in outcome.correct.items()},
            correct=records.save_correct(self.folder, f"{method}-{seed}-{alpha:.2f}-{_hash(key)}", outcome.correct),
            settings=dict(settings),
            settings_hash=settings_hash,
            provenance=self.provenance,
            train_seconds=seconds,
        )

    def _tell(self, key: Key) -> records.Evaluation:
        """The record of `key`, written if it is new, or if a run of other settings, data or weights stands behind it."""
        if not self.standing.holds(self.done[key]):
            records.append(self.folder, self.done[key])
            self.standing.add(self.done[key])
        self.watcher.evaluated(self.done[key])
        return self.done[key]

    def _conclude(self, found: Sequence[records.Evaluation]) -> None:
        """Write the choices and differences that follow from `found`, unless just these are what was written last."""
        runs = _hash(sorted(_key_of(record) for record in found))
        new: list[records.Record] = [replace(choice, runs=runs) for choice in choices(found)]
        new += [replace(difference, runs=runs) for difference in differences(found, self.folder)]
        if list(records.read(self.folder))[-len(new) :] != new:
            for record in new:
                records.append(self.folder, record)


class _Standing:
    """Which evaluations a reader of the records takes: other settings restart a run, other data or weights restart everything."""

    def __init__(self) -> None:
        self._origin: tuple[str, ...] = ()
        self._runs: dict[tuple[str, int], tuple[str, set[float]]] = {}

    def add(self, record: records.Evaluation) -> None:
        if (origin := _key_of(record)[4:]) != self._origin:
            self._origin, self._runs = origin, {}
        run = (record.method, record.seed)
        if self._runs.get(run, ("", set()))[0] != record.settings_hash:
            self._runs[run] = (record.settings_hash, set())
        self._runs[run][1].add(record.alpha)

    def holds(self, record: records.Evaluation) -> bool:
        settings_hash, alphas = self._runs.get((record.method, record.seed), ("", set()))
        return _key_of(record)[4:] == self._origin and settings_hash == record.settings_hash and record.alpha in alphas


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def _key_of(record: records.Evaluation) -> Key:
    origin = record.provenance
    return (record.method, record.seed, record.alpha, record.settings_hash, origin.get("data", ""), origin.get("weights", ""))


def weights_hash(model: ImageTextModel) -> str:
    """Sixteen hexadecimal digits over a model's configuration (architecture and preprocessing) and every weight."""
    total = hashlib.sha256(json.dumps(model.config(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.weights().items()):
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def choices(found: Sequence[records.Evaluation]) -> list[records.Choice]:
    """For every run the alpha that its ID validation accuracy chooses."""
    made = []
    for method, seed in sorted({(r.method, r.seed) for r in found if r.method != "zero_shot"}):
        run = sorted((r for r in found if (r.method, r.seed) == (method, seed)), key=lambda r: r.alpha)
        alpha, argmax = one_standard_error([r.alpha for r in run], [r.accuracy["val"] for r in run], run[0].num_images["val"])
        made.append(records.Choice(method=method, seed=seed, alpha=alpha, argmax=argmax))
    return made


def differences(found: Sequence[records.Evaluation], folder: Path) -> list[records.Difference]:
    """Each method against zero-shot, and its WiSE-FT (0.5, and chosen on validation) against it, on every column, with intervals."""
    chosen = {(c.method, c.seed): c.alpha for c in choices(found)}
    zero = [r for r in found if r.method == "zero_shot"]
    made = []
    for method in dict.fromkeys(r.method for r in found if r.method != "zero_shot"):
        own = [r for r in found if r.method == method]
        plain = [r for r in own if r.alpha == 1]
        half = [r for r in own if r.alpha == 0.5]
        picked = [r for r in own if r.alpha == chosen[r.method, r.seed]]
        pairs = [(method, plain, "zero_shot", zero)]
        pairs += [(f"{method} + WiSE-FT 0.5", half, other, rows) for other, rows in ((method, plain), ("zero_shot", zero)) if half]
        pairs += [(f"{method} + WiSE-FT (ID val.)", picked, other, rows) for other, rows in ((method, plain), ("zero_shot", zero))]
        for a, a_rows, b, b_rows in pairs:
            made += [_difference(a, a_rows, b, b_rows, column, folder) for column in sorted(plain[0].accuracy) if column != "val"]
    return made


def _difference(
    a: str, a_rows: Sequence[records.Evaluation], b: str, b_rows: Sequence[records.Evaluation], column: str, folder: Path
) -> records.Difference:
    sets = members(column, a_rows[0].num_images)
    interval = paired_bootstrap(_stack(a_rows, sets, folder), _stack(b_rows, sets, folder))
    num_images = sum(a_rows[0].num_images[name] for name in sets)
    return records.Difference(
        a=a, b=b, on=column, mean=interval.mean, low=interval.low, high=interval.high, num_seeds=len(a_rows), num_images=num_images
    )


def _stack(rows: Sequence[records.Evaluation], sets: Sequence[str], folder: Path) -> list[NDArray[np.bool_]]:
    """One array [seeds, images] for each set, seeds in order."""
    loaded = [records.load_correct(folder, row.correct) for row in sorted(rows, key=lambda r: r.seed)]
    return [np.stack([one[name] for one in loaded]) for name in sets]
