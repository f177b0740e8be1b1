"""Run methods over seeds on one data set, evaluate each along alpha, write records; what is finished is never done again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from surefoot import records
from surefoot.compare import conclusions, gallery
from surefoot.compare.curves import Curves, Run, Source, kinds_of
from surefoot.compare.plan import Plan, Watcher, reference_problems
from surefoot.compare.references import References, robustness
from surefoot.data.draws import named, of_seed, together
from surefoot.data.images import Budget, Images
from surefoot.data.layout import Dataset
from surefoot.data.subsets import few_shot
from surefoot.distributed import is_first, num_processes, wait
from surefoot.errors import DataError, SettingError, TrainingError
from surefoot.guard import made, parse_json
from surefoot.identity import weights_hash
from surefoot.methods import get, wise_ft
from surefoot.methods.reference import REFERENCE, reference
from surefoot.model import ImageTextModel
from surefoot.objective import Method
from surefoot.protocols import Judge, Member, Outcome
from surefoot.train import Fitted, State, Training, fit, part, preflight, settings_of, start_state, training_images
from surefoot.train.checkpoint import write

Key = tuple[str, int, float, str, str, str]


class Comparison:
    """One `compare` into one folder.

    Args:
        model: the pre-trained model.
        dataset: what it is fine-tuned and judged on.
        plan: methods, seeds, alphas and settings.
        folder: records.jsonl, answers/, weights/ and gallery/ go here; runs that are finished there are not run again.
        watcher: hears of the progress.
        curves: which curves are drawn beside each frontier, of `curves.KINDS`; each costs time.

    Raises:
        SettingError: settings that do not fit method, model or data, all of them together; nothing is written.
        DataError: the folder holds the records of another data set; nothing is written.
        TrainingError: no room on the disk; nothing is written.
    """

    def __init__(
        self,
        model: ImageTextModel,
        dataset: Dataset,
        plan: Plan,
        folder: Path,
        watcher: Watcher | None = None,
        *,
        curves: Sequence[str] = (),
    ) -> None:
        if curves and num_processes() > 1:
            raise SettingError(
                "Curves are drawn by one process. Run without --curves first, then the same command with them and no torchrun."
            )
        self.model, self.plan, self.folder = model, plan, folder
        self.watcher = watcher or Watcher()
        own = {seed: of_seed(dataset, seed) for seed in plan.seeds}
        self.data_of = {seed: data if plan.shots is None else few_shot(data, plan.shots, seed=seed) for seed, data in own.items()}
        _check(plan, model, next(iter(self.data_of.values())))
        self.provenance = records.provenance() | {"data": dataset.fingerprint(), "weights": weights_hash(model)}
        stored = [r for r in records.read(folder) if isinstance(r, records.Evaluation)]
        self.dataset = _called_as_before(dataset, self.provenance["data"], stored, folder)
        first = replace(own[plan.seeds[0]], name=self.dataset.name)
        self.references = References(model, first, plan, folder, self.provenance)
        self.curves = Curves(kinds_of(curves), plan, self.dataset.name, folder, self.provenance)
        self._check_room()
        self.start = start_state(model, dataset)
        self.budget = Budget()
        judged = together(dataset, own)
        self.judge = Judge(model, judged, self.start, self.budget, plan.corruptions, on_images=self.watcher.judged)
        whole = [r for r in stored if self.judge.splits.keys() <= r.num_images.keys() and (folder / r.answers).is_file()]
        self.done = {_key_of(r): r for r in whole}
        self.standing = _Standing()
        for record in whole:
            self.standing.add(record)
        self.images: dict[tuple[tuple[Path, ...], str], Images] = {}

    def run(self) -> list[records.Evaluation]:
        """All evaluations of the plan; the choices and differences that follow from them and from all other runs that stand in the folder
        are written too. The model gets its first weights back."""
        wait()  # until all processes have read what stands in the folder
        self._describe()
        try:
            self.zero = self._zero_shot()
            found = [self.zero]
            runs = [(name, seed) for name in self.plan.tuned for seed in self.plan.seeds]
            for number, (name, seed) in enumerate(runs, start=1):
                found += self._one_run(self.plan.method_of(name), seed, number, len(runs))
            self.references.run(self.judge, self.start, self.budget, self.watcher)
        finally:  # whoever goes on with the model after an interruption must not take tuned weights for the pre-trained ones
            self.model.load_weights(part(self.start, "model"))
        if is_first():
            self._conclude([record for record in self.done.values() if self.standing.holds(record)])
        wait()
        return found

    def missing(self, name: str, seed: int) -> list[float]:
        """The alphas at which a run has not been evaluated yet."""
        method = self.plan.method_of(name)
        settings = self.settings(method, self.plan.training_of(name, seed))
        return [alpha for alpha in self.plan.all_alphas if self._key(name, seed, alpha, settings) not in self.done]

    def settings(self, method: Method, training: Training) -> dict[str, object]:
        """What is written with every record of a run."""
        found = settings_of(method, training, self.model, self.dataset) | named(self.dataset, [training.seed])
        return found | ({} if self.plan.shots is None else {"shots": self.plan.shots})

    def weights_path(self, method: Method, training: Training) -> Path:
        """Where the weights of a run lie; the name holds all that determines them."""
        return weights_file(self.folder, method.name, training.seed, self.settings(method, training), self.provenance)

    def _describe(self) -> None:
        described = description(self.dataset, self.dataset.name)
        written = [r for r in records.read(self.folder) if isinstance(r, records.Described)]
        if not written or records.settings_hash(vars(written[-1])) != records.settings_hash(vars(described)):
            records.append(self.folder, described)

    def _zero_shot(self) -> records.Evaluation:
        settings: dict[str, object] = {"method": "zero_shot", "model": self.model.name, "precision": self.model.precision}
        settings |= named(self.dataset, self.plan.seeds)
        key = self._key("zero_shot", 0, 0.0, settings)
        if key not in self.done:
            self._add(key, settings, self.judge.judge(get("zero_shot"), self.start), 0.0)
        return self._tell(key)

    def _one_run(self, method: Method, seed: int, number: int, total: int) -> list[records.Evaluation]:
        training = self.plan.training_of(method.name, seed)
        settings = self.settings(method, training)
        missing = self.missing(method.name, seed)
        judged = [alpha for alpha in missing if alpha > 0]
        trained = self.weights_path(method, training).is_file()
        images = self.judge.num_images * len(judged) * ("visual" in method.trains)
        self.watcher.run(method.name, seed, number, total, training=bool(missing) and not trained, images=images)
        if missing:
            end, seconds = self.trained(method, training)
            # alpha = 0 is the zero-shot model with its text head for every method: nothing to compute again
            outcomes = dict(zip(judged, self._judge(method, end, judged), strict=True)) | {0.0: self._zero_outcome()}
            for alpha in missing:
                outcome = self._with_val_of(seed, outcomes[alpha])
                self._add(self._key(method.name, seed, alpha, settings), settings, outcome, seconds)
        found = [self._tell(self._key(method.name, seed, alpha, settings)) for alpha in self.plan.all_alphas]
        self._draw(self._run_of(method, training), found)
        return found

    def _draw(self, run: Run, found: Sequence[records.Evaluation]) -> None:
        """The curves beside the frontier of a run; `found` are its evaluations, from alpha 0 to alpha 1."""
        method, training, resume = run.method, run.training, run.weights.with_suffix(".again.resume")
        source = Source(
            state=lambda: self.trained(method, training)[0],
            again=lambda: self._fit(run, resume),
            own=lambda outcome: self._with_val_of(training.seed, outcome),
            ends={0.0: found[0], 1.0: found[-1]},
        )
        self.curves.draw(run, self.judge, source, self.watcher)
        resume.unlink(missing_ok=True)

    def _run_of(self, method: Method, training: Training) -> Run:
        settings_hash = records.settings_hash(self.settings(method, training))
        return Run(method, training, settings_hash, self.data_of[training.seed], self.weights_path(method, training))

    def _judge(self, method: Method, end: State, alphas: Sequence[float]) -> list[Outcome]:
        """One pass over the images for all alphas."""
        return self.judge.judge_all([Member(method, lambda alpha=alpha: wise_ft(self.start, end, alpha)) for alpha in alphas])  # type: ignore[misc]

    def _zero_outcome(self) -> Outcome:
        return Outcome(records.load_answers(self.folder, self.zero.answers))

    def _with_val_of(self, seed: int, outcome: Outcome) -> Outcome:
        """Only the validation images of this seed's draw may choose anything."""
        return outcome.with_val(self.judge.dataset.split("val"), self.data_of[seed].split("val"))

    def trained(self, method: Method, training: Training) -> tuple[State, float]:
        """The weights of a run and its seconds: from its file if it was finished, trained otherwise, from a checkpoint if there is one."""
        settings = self.settings(method, training)
        path = self.weights_path(method, training)
        if not path.is_file():
            fitted = self._fit(self._run_of(method, training), path.with_suffix(".resume"))
            record = _trained_record(method, training, settings, fitted)
            write(path, fitted.state, {"settings": json.dumps(settings), "trained": json.dumps(vars(record))})
        wait()
        if is_first():
            path.with_suffix(".resume").unlink(missing_ok=True)  # also that of a run that was killed after its weights were written
        try:
            with safe_open(path, framework="pt") as stored:
                record = made(records.Trained, parse_json((stored.metadata() or {})["trained"]))
                state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(f"{path} cannot be read ({error}). Delete the file, and the run is trained again.") from error
        if not any(r == record for r in records.read(self.folder)):
            records.append(self.folder, record)
        self.watcher.trained(record)
        return state, record.seconds

    def _fit(self, run: Run, resume: Path) -> Fitted:
        self.model.load_weights(part(self.start, "model"))
        paths = run.data.split("train").paths
        images = self.images.setdefault((paths, run.training.reading), training_images(paths, self.model, run.training, self.budget))
        return fit(
            run.method, self.model, run.data, run.training, start=self.start, images=images, budget=self.budget,
            on_step=self.watcher.step, on_epoch=self.curves.recorder(run, self.start), resume=resume, kernels=self._kernels(run),
        )  # fmt: skip

    def _kernels(self, run: Run) -> Mapping[str, Any] | None:
        """What a run chose when it was trained before, so that trained again it is the same run; None if it never was."""
        of = (run.method.name, run.training.seed, run.settings_hash)
        trained = [record for record in records.read(self.folder) if isinstance(record, records.Trained)]
        return next((record.choices for record in trained if (record.method, record.seed, record.settings_hash) == of), None)

    def _check_room(self) -> None:
        """Weights of every run that is not trained yet, and a checkpoint with the optimizer's moments beside them."""
        runs = [(self.plan.method_of(name), self.plan.training_of(name, seed)) for name in self.plan.tuned for seed in self.plan.seeds]
        untrained = sum(not self.weights_path(*run).is_file() for run in runs)
        size = sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())
        epochs = self.curves.room([self._run_of(*run) for run in runs], size)
        anew = untrained or epochs or self.references.missing(self.dataset.splits)
        check_room(self.folder, size * (untrained + 5) + epochs if anew else 0)

    def _key(self, method: str, seed: int, alpha: float, settings: Mapping[str, Any]) -> Key:
        return (method, seed, alpha, records.settings_hash(settings), self.provenance["data"], self.provenance["weights"])

    def _add(self, key: Key, settings: Mapping[str, Any], outcome: Outcome, seconds: float) -> None:
        """Keep what was measured; `_tell` writes it."""
        method, seed, alpha, *_ = key
        self.done[key] = evaluation(
            self.folder, self.dataset.name, method, seed, alpha, settings, outcome, self.provenance, train_seconds=seconds
        )
        wait()  # until the answers are on disk

    def _tell(self, key: Key) -> records.Evaluation:
        """The record of `key`, written if it is new, or if a run of other settings, data or weights stands behind it."""
        if not self.standing.holds(self.done[key]):
            records.append(self.folder, self.done[key])
            self.standing.add(self.done[key])
        self.watcher.evaluated(self.done[key])
        return self.done[key]

    def _conclude(self, found: Sequence[records.Evaluation]) -> None:
        """Write the choices and differences that follow from `found`, unless just these are what was written last."""
        references = self.references.standing()
        models = [(r.share, r.seed, r.settings_hash) for r in references]
        runs = _hash([*sorted(_key_of(record) for record in found), *models, gallery.FORM])
        chosen = conclusions.choices(found, self.folder)
        new: list[records.Record] = [replace(choice, runs=runs) for choice in chosen]
        new += [replace(difference, runs=runs) for difference in conclusions.differences(found, self.folder, chosen)]
        new += [replace(one, runs=runs) for one in robustness(found, chosen, references)]
        if best := conclusions.best(found, chosen):
            new += gallery.examples(self.folder, self.dataset, f"{best.method} + WiSE-FT (ID val.)", best, self.zero, runs, found)
        if any({"captions", "pairs"} & record.settings.keys() for record in found):  # also runs from before, of other methods
            new += gallery.anchored(self.folder, self.dataset, runs)
        if list(records.read(self.folder))[-len(new) :] != new:
            for record in new:
                records.append(self.folder, record)


def _check(plan: Plan, model: ImageTextModel, dataset: Dataset) -> None:
    """Every method's problems together."""
    problems = []
    for name in plan.methods:
        try:
            preflight(plan.method_of(name), model, dataset, plan.training_of(name, 0))
        except SettingError as error:
            problems.append(str(error))
    problems += reference_problems(plan.references)
    if plan.references:
        try:
            preflight(reference(), model, dataset, plan.training_of(REFERENCE, 0))
        except SettingError as error:
            problems.append(str(error))
    if problems:
        raise SettingError("\n".join(problems))


def _called_as_before(dataset: Dataset, data: str, stored: Sequence[records.Evaluation], folder: Path) -> Dataset:
    """The data set, by the name that the folder's records give to the same data: renaming it does not make it another one."""
    names = {r.dataset for r in stored}
    if not names or dataset.name in names:
        return dataset
    if same := [r.dataset for r in stored if r.provenance.get("data") == data]:
        return replace(dataset, name=same[-1])
    raise DataError(f"{folder} holds the records of {', '.join(sorted(names))}, not of {dataset.name}. Give another folder by --out.")


def check_room(folder: Path, num_bytes: int) -> None:
    """Whether the disk of a folder can take so many bytes.

    Raises:
        TrainingError: it cannot.
    """
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        raise TrainingError(
            f"{folder} needs about {num_bytes / 1e9:.1f} GB for weights and checkpoints, and {free / 1e9:.1f} GB are free. "
            "Make room, or give another folder by --out."
        )


def description(dataset: Dataset, name: str) -> records.Described:
    """What the data are, under the name that their records have."""
    names = {"seen": dataset.class_names} | {split.name: split.class_names for split in dataset.unseen}
    sizes = {split: len(images) for split, images in dataset.splits.items()}
    return records.Described(
        dataset=name, class_names=names, num_images=sizes, templates=dataset.templates, notes=dataset.notes, contexts=dataset.contexts
    )


def weights_file(folder: Path, method: str, seed: int, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> Path:
    """Where the weights of a run lie; the name holds all that determines them: settings, seed, and hashes of data and first weights."""
    origin = {"data": provenance.get("data"), "start": provenance.get("weights")}
    identity = records.settings_hash({**settings, "seed": seed, **origin})
    return folder / "weights" / f"{records.file_name(method)}-seed{seed}-{identity}.safetensors"


def _trained_record(method: Method, training: Training, settings: Mapping[str, Any], fitted: Fitted) -> records.Trained:
    return records.Trained(
        method=method.name,
        seed=training.seed,
        settings_hash=records.settings_hash(settings),
        history=fitted.history,
        kept_epoch=fitted.kept_epoch,
        select_by=training.select_by,
        num_steps=fitted.num_steps,
        seconds=fitted.seconds,
        choices=fitted.choices,
    )


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


def evaluation(
    folder: Path,
    dataset: str,
    method: str,
    seed: int,
    alpha: float,
    settings: Mapping[str, Any],
    outcome: Outcome,
    provenance: Mapping[str, Any],
    *,
    train_seconds: float = 0.0,
) -> records.Evaluation:
    """The record of an outcome, whose answers are written into the folder now; the record itself is not."""
    settings_hash = records.settings_hash(settings)
    identity = _hash((method, seed, alpha, settings_hash, provenance.get("data", ""), provenance.get("weights", "")))
    return records.Evaluation(
        method=method,
        seed=seed,
        alpha=alpha,
        dataset=dataset,
        accuracy=outcome.accuracy,
        num_images={name: len(given.label) for name, given in outcome.answers.items()},
        answers=records.save_answers(folder, f"{method}-{seed}-{alpha:.2f}-{identity}", outcome.answers),
        settings=dict(settings),
        settings_hash=settings_hash,
        metrics=outcome.metrics,
        provenance=provenance,
        train_seconds=train_seconds,
    )
