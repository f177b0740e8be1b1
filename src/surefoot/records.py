"""Results as JSON lines: written as they arise, read by tables, plots and the report, and by nothing else.

One line is one evaluation of one set of weights (`Evaluation`), one run of training (`Trained`), one choice, one paired difference,
one point of a curve beside a run's frontier (`Curve`), one reference model (`Reference`) and what follows from them (`Robustness`), one
image of the gallery (`Example`), one that `explain` shows (`Explained`) or what the data are (`Described`). What was answered to every
image stands beside the evaluation in a compressed array (`answers`), so that any two records can be compared image by image later.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from surefoot.answers import Answers as Answers
from surefoot.answers import file_name as file_name
from surefoot.answers import load_answers as load_answers
from surefoot.answers import save_answers as save_answers
from surefoot.distributed import is_first
from surefoot.errors import DataError
from surefoot.folders import told
from surefoot.guard import made, parse_json, read_bytes

FILE = "records.jsonl"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One set of weights, evaluated on everything.

    `accuracy` maps a column of the table to its value in 0..1:

        "val", "test"                   top-1 on ID
        "shifts/<name>", "avg_shifts"   under shift, all training classes competing
        "restricted/<name>", "avg_restricted"   under shift, only the classes that the shift holds competing
        "corruptions/<name>", "avg_corruptions" on the test images, corrupted
        "unseen/<name>"                 other classes among their own names
        "joint_seen/<name>", "joint_unseen/<name>"  test and unseen images, all names competing
        "hm/<name>", "joint_hm/<name>"  harmonic means of test and unseen, and of the two joint ones
        "context", "context_own"        context recognition: image tower against the pre-trained context head, or the model's own
        "agreement"                     share of test images for which a probe vocabulary gives the zero-shot model's answer

    `metrics` maps an evaluation set to {"mean_per_class", "macro_f1", "ece"}, and "worst_group" where its images have groups. `alpha` is
    the weight of the fine-tuned model: 0 zero-shot, 1 fine-tuned. `answers` is the path of the array file, relative to the records'
    folder.
    """

    method: str
    seed: int
    alpha: float
    dataset: str
    accuracy: Mapping[str, float]
    num_images: Mapping[str, int]
    answers: str
    settings: Mapping[str, Any]
    settings_hash: str
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    train_seconds: float = 0.0
    kind: str = "evaluation"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One finished run of training: what ID validation said after each epoch, and which epoch's weights were kept.

    `history` holds {"stage", "epoch", "loss", "val"} for each validated epoch, `choices` what ID validation chose on the way (LP's l2).
    """

    method: str
    seed: int
    settings_hash: str
    history: Sequence[Mapping[str, float]]
    kept_epoch: int
    select_by: str
    num_steps: int
    seconds: float
    choices: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "trained"


@dataclass(frozen=True, kw_only=True)
class Described:
    """What the data are: class names by group ("seen", "unseen/<name>"), images by split, prompts of contexts, notes on the splits."""

    dataset: str
    class_names: Mapping[str, Sequence[str]]
    num_images: Mapping[str, int]
    templates: Sequence[str]
    notes: Sequence[str] = ()
    contexts: Mapping[str, str] = field(default_factory=dict)
    kind: str = "data"


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image that model `a` and model `b` answer differently: `change` is "gained" (a right, b wrong) or "lost"; or "context", where
    fine-tuning lost the context that `b` recognises.

    `image` is a small picture, relative to the records' folder. `a`, `b` and `tuned`, the fine-tuned model that `a` is merged from ("" if
    it is `a` itself), name rows of the table; `runs` as in `Difference`. `context` is the one that the image is drawn in, and
    `context_a` and so on the ones that the models see; "" where the data name none.
    """

    a: str
    b: str
    on: str
    change: str
    image: str
    label: str
    answer_a: str
    answer_b: str
    confidence_a: float
    confidence_b: float
    path: str = ""
    tuned: str = ""
    answer_tuned: str = ""
    confidence_tuned: float = 0.0
    context: str = ""
    context_a: str = ""
    context_b: str = ""
    context_tuned: str = ""
    runs: str = ""
    kind: str = "example"


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One image as several models see it, which `explain` wrote.

    `image` is the picture as the model gets it, relative to the folder of the records; `why` it is shown: "drawn" by the seed, "changed"
    (its answer), or "given". `of` is the class whose score the maps explain. `views` holds for each model {"row", "label", "answer",
    "confidence", "context", "heat"}: the context prompt that it sees, and the picture of its map, "" without maps. `label` and `context`
    are what the data say, "" where they say nothing. `method`, `seed` and `settings_hash` name the run that is explained.
    """

    image: str
    on: str
    why: str
    of: str
    views: Sequence[Mapping[str, Any]]
    label: str = ""
    context: str = ""
    path: str = ""
    method: str = ""
    seed: int = 0
    settings_hash: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "explained"


@dataclass(frozen=True, kw_only=True)
class Anchored:
    """One training image with its anchors: a generated caption, a retrieved image-text pair, or both; "" for what it has not.

    `image` and `pair_image` are small pictures, relative to the records' folder; `runs` as in `Difference`.
    """

    image: str
    label: str
    caption: str = ""
    captioner: str = ""
    pair_image: str = ""
    pair_text: str = ""
    pool: str = ""
    path: str = ""
    runs: str = ""
    kind: str = "anchored"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Accuracy of `a` minus that of `b` on one evaluation set, with a paired bootstrap interval; `undecided` when it holds 0.

    `a` and `b` name rows of the table, such as "tp_ft" or "tp_ft + WiSE-FT 0.5". `runs` is a hash of all evaluations it was drawn from
    (settings, data, weights, seeds): records of one conclusion share it.
    """

    a: str
    b: str
    on: str
    mean: float
    low: float
    high: float
    num_seeds: int
    num_images: int
    runs: str = ""
    kind: str = "difference"

    @property
    def undecided(self) -> bool:
        return self.low <= 0 <= self.high

    @property
    def points(self) -> str:
        """The difference and its interval in points, such as "+1.0 [+0.2, +2.2]"."""
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One point of a curve beside a run's frontier: what would have come of another way from the zero-shot model to the fine-tuned one.

    `along` is "outputs" (an ensemble of the outputs of both models), "epochs" (the weights after an epoch of the last stage), "fisher"
    (the Fisher-weighted merge of both) or "visual" (WiSE-FT of the image tower alone); `at` is alpha, as in `Evaluation`, or the epoch.
    `accuracy` and `provenance` as in `Evaluation`, and so are `answers`, "" for a curve that keeps none; `settings_hash` is that of the
    run, `made_with` what else the curve depends on.
    """

    method: str
    seed: int
    settings_hash: str
    along: str
    at: float
    dataset: str
    accuracy: Mapping[str, float]
    answers: str = ""
    made_with: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "curve"


@dataclass(frozen=True, kw_only=True)
class Series:
    """What a protocol runs and shows: its parts, each of which has the records of a comparison in a folder of its name beside this file.

    `columns` holds (group, name) of each column in the order of the table, the group "" for none; `along` what the columns of a group are
    points along, such as "images a class", or "". `datasets` and `notes` say what the parts were cut from, and how.
    """

    protocol: str
    parts: Sequence[str]
    columns: Sequence[Sequence[str]]
    datasets: Sequence[str]
    along: str = ""
    notes: Sequence[str] = ()
    runs: str = ""
    kind: str = "series"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One cell of a protocol's table: `values` in 0..1, one for each of `seeds`, of `row` in the column (group, name).

    `row` names a row of the table as in `Difference`, whose `on` is "group/name" for such a column, or "name" without a group; `runs` as
    there. `num_images` counts the images behind it, of all parts together.
    """

    row: str
    group: str
    column: str
    values: Sequence[float]
    seeds: Sequence[int]
    num_images: int
    runs: str = ""
    kind: str = "summary"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The alpha that ID validation chose for one run, and the plain argmax beside it; `runs` as in `Difference`."""

    method: str
    seed: int
    alpha: float
    argmax: float
    runs: str = ""
    rule: str = "smallest alpha within one standard error of the best ID validation accuracy"
    kind: str = "choice"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A model without zero-shot ability: trained from random weights on `share` of the training images, `num_train` of them.

    `accuracy`, `num_images` and `answers` as in `Evaluation`, for ID, shifts and corruptions alone.
    """

    share: float
    seed: int
    num_train: int
    dataset: str
    accuracy: Mapping[str, float]
    num_images: Mapping[str, int]
    answers: str
    settings: Mapping[str, Any]
    settings_hash: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    train_seconds: float = 0.0
    kind: str = "reference"


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Effective robustness of one row of the table on one column: `rho` is `ood_accuracy` minus `expected`, all of them means over seeds.

    `expected` is what the line `baseline` (the parameters of `robustness.Baseline`, fit to `num_references` models) gives at each seed's
    own ID accuracy. `spread` is rho's standard deviation over seeds with n - 1, None for one seed; the line's own uncertainty is not in
    it. `extrapolates` says that some seed is more or less accurate on ID than every reference. `row` and `runs` as in `Difference`.
    """

    row: str
    on: str
    rho: float
    spread: float | None
    id_accuracy: float
    ood_accuracy: float
    expected: float
    num_seeds: int
    num_references: int
    extrapolates: bool
    baseline: Mapping[str, float]
    runs: str = ""
    kind: str = "robustness"


_OfRuns = Evaluation | Trained | Described | Difference | Choice | Example | Explained
Record = _OfRuns | Anchored | Reference | Robustness | Curve | Series | Summary
_KINDS: dict[str, type[Record]] = {
    "evaluation": Evaluation,
    "trained": Trained,
    "data": Described,
    "difference": Difference,
    "choice": Choice,
    "example": Example,
    "explained": Explained,
    "anchored": Anchored,
    "reference": Reference,
    "robustness": Robustness,
    "curve": Curve,
    "series": Series,
    "summary": Summary,
}


def append(folder: Path, record: Record) -> None:
    """Add one line to the folder's records; a last line that an interruption cut off is taken away first. The first process writes."""
    if not is_first():
        return
    append_line(folder / FILE, json.dumps(asdict(record), sort_keys=True))


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; a last one that an interruption cut off is taken away first.

    Raises:
        DataError: the disk is full or refuses; what stood in the file still does.
    """
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as lines:
            lines.seek(0)
            written = lines.read()
            lines.truncate(written.rfind(b"\n") + 1)
            lines.write(line.encode() + b"\n")


def read(folder: Path) -> Iterator[Record]:
    """All records of a folder, in the order written.

    A last line that was cut off by an interruption is left out; any other broken line is an error.

    Raises:
        DataError: a line that is not a record, named by its number.
    """
    path = folder / FILE
    lines = read_bytes(path).split(b"\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
            yield made(_KINDS[row["kind"]], row)
        except (ValueError, KeyError, TypeError) as error:  # ValueError: no JSON, or no UTF-8
            raise DataError(f"{path}, line {number} is not a record ({error}). Remove the line, or start with a new folder.") from error


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits over all settings.

    Examples:
        >>> settings_hash({"lr": 1e-5, "epochs": 10}) == settings_hash({"epochs": 10, "lr": 1e-5})
        True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


def provenance() -> dict[str, str]:
    """Versions and machine, for every result line."""
    packages = {name: version(name) for name in ("surefoot", "torch", "open_clip_torch")}
    return packages | {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
