"""Curves beside a run's frontier: other ways from the zero-shot to the fine-tuned model, judged on the same images.

What WiSE-FT is compared with: an ensemble of the outputs of both models, and the weights after each epoch of the run. The Fisher-weighted
merge is a mean of the same weights in which each counts by how much it matters to its model. The image tower alone may be interpolated too,
of methods that train both towers: what the text tower's part in the ensemble adds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from surefoot import records
from surefoot.compare.plan import Plan, Watcher
from surefoot.data.images import Budget, Images
from surefoot.data.layout import Dataset
from surefoot.errors import TrainingError, unknown_name
from surefoot.guard import parse_json
from surefoot.heads import LinearHead
from surefoot.methods.wise_ft import wise_ft
from surefoot.objective import Method
from surefoot.prompts import PromptTable
from surefoot.protocols import Judge, Member, Outcome
from surefoot.train import State, Training, part
from surefoot.train.checkpoint import write
from surefoot.train.fisher import diagonal_fisher
from surefoot.train.loop import OnEpoch
from surefoot.weights import fisher_merge

KINDS = ("outputs", "epochs", "fisher", "visual")
KEPT = ("visual",)
"""The curves whose points keep their answers, so that they can be compared with other rows image by image."""
FISHER_IMAGES = 1000
"""Training images, at most, that the diagonals of the Fisher matrices are estimated on."""
_FISHER = f".fisher-{FISHER_IMAGES}.safetensors"
_BATCH = 64


def kinds_of(names: Iterable[str]) -> tuple[str, ...]:
    """The kinds of curves that are asked for, each once; "all" for all of them.

    Raises:
        UnknownNameError: a name that is none.

    Examples:
        >>> kinds_of(["epochs", "outputs"]), kinds_of(["all"])
        (('outputs', 'epochs'), ('outputs', 'epochs', 'fisher', 'visual'))
    """
    given = list(names)
    if wrong := [name for name in given if name not in (*KINDS, "all")]:
        raise unknown_name("curve", wrong[0], (*KINDS, "all"))
    return tuple(kind for kind in KINDS if kind in given or "all" in given)


@dataclass(frozen=True)
class Run:
    """A run of a comparison: how it is trained, on which data, and where its weights lie."""

    method: Method
    training: Training
    settings_hash: str
    data: Dataset
    weights: Path

    @property
    def epochs(self) -> Path:
        """The folder that holds the weights of each epoch while its curve is not judged."""
        return self.weights.with_suffix(".epochs")

    @property
    def fisher(self) -> Path:
        """Where the diagonal of the Fisher matrix of its weights lies."""
        return self.weights.with_suffix(_FISHER)


@dataclass(frozen=True)
class Source:
    """Where a curve finds what it needs of a run.

    Attributes:
        state: gives theta_1, trained if it is not stored.
        again: trains the run once more, with the `recorder` of its epochs.
        own: an outcome with the validation images of this run alone.
        ends: the evaluations of alpha 0 and alpha 1, which come before any curve.
    """

    state: Callable[[], State]
    again: Callable[[], object]
    own: Callable[[Outcome], Outcome]
    ends: Mapping[float, records.Evaluation]


Judged = Outcome | records.Evaluation
"""What a point is made of: judged for the curve, or an end that was evaluated before it."""


@dataclass(frozen=True)
class Curves:
    """The curves of a comparison; what is recorded is not judged again.

    Args:
        kinds: which, of `KINDS`.
        plan: its alphas.
        dataset: its name stands in the records.
        folder: of the records; weights of epochs and diagonals of Fisher matrices go into weights/.
        provenance: versions and hashes, as in every record of the comparison.
    """

    kinds: tuple[str, ...]
    plan: Plan
    dataset: str
    folder: Path
    provenance: Mapping[str, Any]
    _done: dict[tuple[str, int, str, str], set[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for record in records.read(self.folder) if self.kinds else ():
            if isinstance(record, records.Curve) and self._counts(record):
                self._points(record.method, record.seed, record.settings_hash, record.along).add(record.at)

    def missing(self, run: Run, kind: str) -> list[float]:
        """The points of a curve that are not recorded yet, alphas or epochs; of a run that is not trained at least its first epoch.

        None of a curve that is not asked for, or that does not exist for the run's method.
        """
        if kind not in self.kinds or not applies(kind, run.method):
            return []
        done = self._points(run.method.name, run.training.seed, run.settings_hash, kind)
        wanted = self.plan.all_alphas if kind != "epochs" else _epochs_of(run.weights) or sorted(done) or [1.0]
        return [at for at in wanted if at not in done]

    def recorder(self, run: Run, start: State) -> OnEpoch | None:
        """What the training calls after each epoch to store the weights that differ from `start`; None where nobody asks for them."""
        return partial(_store, run.epochs, start) if self.missing(run, "epochs") else None

    def room(self, runs: Sequence[Run], size: int) -> int:
        """Bytes that the curves may take, with weights of `size` bytes: two diagonals for each run, and the epochs of one run at a time."""
        lengths = (
            (run.training.num_steps(count), run.training.per_epoch(count))
            for run in runs
            if self.missing(run, "epochs") and (count := len(run.data.split("train")))
        )
        fishers = 2 * sum(bool(self.missing(run, "fisher")) for run in runs)
        return size * (fishers + max((-(-steps // per_epoch) for steps, per_epoch in lengths), default=0))

    def draw(self, run: Run, judge: Judge, source: Source, watcher: Watcher) -> None:
        """Judge and record every point of the run's curves that is missing."""
        drawn = {"outputs": self._outputs, "epochs": self._epochs, "fisher": self._fisher, "visual": self._visual}
        for kind, judged in drawn.items():
            if self.missing(run, kind):
                for at, found in judged(run, judge, source, watcher).items():
                    self._add(run, kind, at, found)
        if "epochs" in self.kinds:
            shutil.rmtree(run.epochs, ignore_errors=True)

    def _outputs(self, run: Run, judge: Judge, source: Source, watcher: Watcher) -> dict[float, Judged]:
        """All ensembles from one pass over the images."""
        alphas = self.missing(run, "outputs")
        _tell(watcher, run, "outputs", judge, passes=1)
        outcomes = judge.ensembles(run.method, source.state(), alphas)
        return {alpha: source.own(outcome) for alpha, outcome in zip(alphas, outcomes, strict=True)}

    def _epochs(self, run: Run, judge: Judge, source: Source, watcher: Watcher) -> dict[float, Judged]:
        """A run whose epochs were not stored is trained again, to the same weights by its seed."""
        epochs = self.missing(run, "epochs")
        _tell(watcher, run, "epochs", judge, passes=len(epochs), training=not _stored(run, epochs))
        source.state()  # trained now, if its weights were taken away
        if not _stored(run, epochs := self.missing(run, "epochs")):
            source.again()
        members = [Member(run.method, partial(_load, judge.start, _file(run.epochs, epoch))) for epoch in epochs]
        outcomes = judge.judge_all(members)
        return {epoch: source.own(outcome) for epoch, outcome in zip(epochs, outcomes, strict=True)}

    def _visual(self, run: Run, judge: Judge, source: Source, watcher: Watcher) -> dict[float, Judged]:
        """All alphas in one pass over the images; alpha 1 is the run itself, which is evaluated already."""
        alphas, end = self.missing(run, "visual"), source.state()
        judged = [alpha for alpha in alphas if alpha != 1]
        _tell(watcher, run, "visual", judge, passes=len(judged))
        members = [Member(run.method, partial(image_tower_alone, run.method, judge.start, end, alpha)) for alpha in judged]
        outcomes = zip(judged, judge.judge_all(members) if judged else [], strict=True)
        found: dict[float, Judged] = {alpha: source.own(outcome) for alpha, outcome in outcomes}
        return {alpha: found.get(alpha, source.ends[1.0]) for alpha in alphas}

    def _fisher(self, run: Run, judge: Judge, source: Source, watcher: Watcher) -> dict[float, Judged]:
        """Both diagonals, of the weights that moved, then all merges in one pass over the images."""
        alphas, end = self.missing(run, "fisher"), source.state()
        between = [alpha for alpha in alphas if alpha not in source.ends]
        names = _moved_parameters(run.method, judge, end)
        sides = [(self._start_fisher(run, names), judge.start), (run.fisher, end)]
        rows = _fisher_rows(run.data)
        _tell(watcher, run, "fisher", judge, passes=len(between), more=len(rows) * sum(not path.is_file() for path, _ in sides))
        for path, state in sides:
            if not path.is_file():
                write(path, _diagonal(run, judge, state, names, rows, watcher), {})
        first, second = (_read(path, "it is computed again") for path, _ in sides)
        members = [Member(run.method, partial(fisher_merge, judge.start, end, first, second, alpha)) for alpha in between]
        outcomes = zip(between, judge.judge_all(members) if between else [], strict=True)
        judged: dict[float, Judged] = {alpha: source.own(outcome) for alpha, outcome in outcomes}
        return {alpha: judged[alpha] if alpha in judged else source.ends[alpha] for alpha in alphas}

    def _start_fisher(self, run: Run, names: Sequence[str]) -> Path:
        """Where the diagonal of theta_0 lies, which runs share that train on the same images and move the same weights."""
        images = [run.data.written(path) for path in run.data.split("train").paths]
        origin = {key: self.provenance[key] for key in ("data", "weights")}
        identity = records.settings_hash({"images": images, "names": names, "predict": run.method.predict, **origin})
        return run.weights.with_name(f"zero_shot-{identity}{_FISHER}")

    def _counts(self, record: records.Curve) -> bool:
        """Whether a point is one of these data and weights, made as it would be today, with its answers where they are kept."""
        same = all(record.provenance.get(key) == self.provenance[key] for key in ("data", "weights"))
        whole = record.along not in KEPT or (self.folder / record.answers).is_file()
        return same and whole and record.made_with == _made_with(record.along)

    def _points(self, method: str, seed: int, settings_hash: str, kind: str) -> set[float]:
        return self._done.setdefault((method, seed, settings_hash, kind), set())

    def _add(self, run: Run, kind: str, at: float, found: Judged) -> None:
        record = records.Curve(
            method=run.method.name, seed=run.training.seed, settings_hash=run.settings_hash, along=kind, at=float(at),
            dataset=self.dataset, accuracy=found.accuracy, answers=self._answers(run, kind, at, found), made_with=_made_with(kind),
            provenance=self.provenance,
        )  # fmt: skip
        records.append(self.folder, record)
        self._points(record.method, record.seed, record.settings_hash, kind).add(record.at)

    def _answers(self, run: Run, kind: str, at: float, found: Judged) -> str:
        """Where the answers of a point lie, written now unless they are those of an end; "" for a curve that keeps none."""
        if kind not in KEPT:
            return ""
        if isinstance(found, records.Evaluation):
            return found.answers
        origin = {key: self.provenance[key] for key in ("data", "weights")}
        identity = records.settings_hash({"run": run.settings_hash, "at": at, **origin})
        return records.save_answers(self.folder, f"{run.method.name}-{run.training.seed}-{kind}-{at:.2f}-{identity}", found.answers)


def applies(kind: str, method: Method) -> bool:
    """Whether a method has a curve of a kind: the image tower can be interpolated alone only where both towers trained.

    Examples:
        >>> from surefoot.methods import get
        >>> applies("visual", get("flyp")), applies("visual", get("tp_ft")), applies("outputs", get("tp_ft"))
        (True, False, True)
    """
    return kind != "visual" or method.trains >= {"visual", "text"}


def image_tower_alone(method: Method, start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> State:
    """WiSE-FT of the image tower alone: what the text modality's part in an ensemble of both towers is measured against.

    With theta = (v, w, h) for the image tower, the text tower with the scale, and the trained head::

        theta_alpha = ((1 - alpha) v_0 + alpha v_1, w_1, (1 - alpha) h_0 + alpha h_1)

    Args:
        method: whose trained head h is interpolated if it answers by it, and stays h_1, without a say in the answers, if it predicts
            from text.
        start: theta_0, the zero-shot model with its text-prompt head, as `train.start_state` gives it.
        end: theta_1, the fine-tuned model: the same names, shapes and dtypes.
        alpha: weight of the fine-tuned image tower, in 0..1.

    Returns:
        theta_alpha under the names of `end`.

    Relations: alpha 1 is `end`, bit for bit; alpha 0 is the zero-shot image tower beside the tuned text tower, not the zero-shot model.
        Where neither the text tower nor the scale moved it answers as `wise_ft` does.

    References:
        Liu, Li, Yu, "Fully fine-tuned CLIP models are efficient few-shot learners", arXiv 2024, eq. 7: "different from" WiSE-FT, "that only
        considers the ensemble in the visual modality", both towers are ensembled.
    """
    moving = ("model.visual.", "head.") if method.predict == "head" else ("model.visual.",)
    names = [name for name in end if name.startswith(moving)]
    return {**end, **wise_ft({name: start[name] for name in names}, {name: end[name] for name in names}, alpha)}


def _made_with(kind: str) -> dict[str, object]:
    return {"num_images": FISHER_IMAGES} if kind == "fisher" else {}


def _moved_parameters(method: Method, judge: Judge, end: State) -> list[str]:
    """The parameters that differ between theta_0 and theta_1 and have a part in the answers; a head made from text is none of them."""
    parameters = {f"model.{name}" for name, _ in judge.model.clip.named_parameters()}
    parameters |= {"head.weight", "head.bias"} if method.predict == "head" else set()
    return [name for name, tensor in end.items() if name in parameters and not torch.equal(tensor, judge.start[name])]


def _fisher_rows(data: Dataset) -> list[int]:
    """The training images that the Fisher matrices are estimated on: all, or `FISHER_IMAGES` drawn from them, the same for every run."""
    count = len(data.split("train"))
    return sorted(torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()[:FISHER_IMAGES])


def _diagonal(run: Run, judge: Judge, state: Mapping[str, Tensor], names: Sequence[str], rows: Sequence[int], watcher: Watcher) -> State:
    """The diagonal at `state`, which answers as the method predicts.

    Where the text tower moved each image's gradient runs through the texts of all classes; they are of the first template alone then.
    """
    model, data = judge.model, run.data
    model.load_weights(part(state, "model"))
    head: LinearHead | PromptTable
    if run.method.predict == "head":
        head = LinearHead(torch.zeros_like(state["head.weight"]), 1.0)
        head.load_state_dict(part(state, "head"))
        head.to(judge.device)
    else:
        through_text = any(name.startswith("model.") and not name.startswith("model.visual.") for name in names)
        head = PromptTable.build(data.templates[:1] if through_text else data.templates, data.class_names)
    split = data.split("train")
    images = Images([split.paths[row] for row in rows], model.preprocess, budget=Budget(0))
    labels = torch.tensor([split.labels[row] for row in rows], device=judge.device)
    given = zip(images.batches(_BATCH), torch.split(labels, _BATCH), strict=True)
    batches = ((batch.to(judge.device), label) for batch, label in given)
    return diagonal_fisher(model, head, batches, names, on_images=watcher.judged)


def _tell(watcher: Watcher, run: Run, kind: str, judge: Judge, *, passes: int, training: bool = False, more: int = 0) -> None:
    images = judge.num_images * passes * ("visual" in run.method.trains) + more
    watcher.curve(run.method.name, run.training.seed, kind, training=training, images=images)


def _file(folder: Path, epoch: float) -> Path:
    return folder / f"{epoch:g}.safetensors"


def _stored(run: Run, epochs: Iterable[float]) -> bool:
    return all(_file(run.epochs, epoch).is_file() for epoch in epochs)


def _store(folder: Path, start: State, epoch: int, weights: Callable[[], State]) -> None:
    moved = {name: tensor for name, tensor in weights().items() if not torch.equal(tensor, start[name])}
    write(_file(folder, epoch), moved, {})


def _load(start: Mapping[str, Tensor], path: Path) -> State:
    return {**start, **_read(path, "the run is trained again for it")}


def _read(path: Path, what_follows: str) -> State:
    try:
        return load_file(path)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise TrainingError(f"{path} cannot be read ({error}). Delete the file, and {what_follows}.") from error


def _epochs_of(weights: Path) -> list[float]:
    """The validated epochs of the last stage of a run that is stored; none where it is not, or cannot be read."""
    try:
        with safe_open(weights, framework="pt") as stored:
            history: Sequence[Mapping[str, float]] = parse_json((stored.metadata() or {})["trained"])["history"]
        return [float(row["epoch"]) for row in history if row["stage"] == history[-1]["stage"]]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError):
        return []
