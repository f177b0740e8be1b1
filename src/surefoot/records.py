"""Results as JSON lines: written as they arise, read by tables, plots and the report, and by nothing else.

One line is one evaluation of one set of weights (`Evaluation`) or one paired difference (`Difference`). Which images were right
stands beside it in a compressed array (`correct`), so that any two records can be compared image by image later.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surefoot.errors import DataError

FILE = "records.jsonl"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One set of weights, evaluated on everything.

    `accuracy` maps an evaluation set to its top-1 accuracy in 0..1: "val" and "test" (ID), "shifts/<name>", "avg_shifts",
    "unseen/<name>", "context" (image tower against the pre-trained context head), "context_own" (against the context head of the
    model's own text tower). `alpha` is the weight of the fine-tuned model: 0 zero-shot, 1 fine-tuned. `correct` is the path of the
    array file, relative to the records' folder.
    """

    method: str
    seed: int
    alpha: float
    dataset: str
    accuracy: Mapping[str, float]
    num_images: Mapping[str, int]
    correct: str
    settings: Mapping[str, Any]
    settings_hash: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    train_seconds: float = 0.0
    kind: str = "evaluation"


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


Record = Evaluation | Difference | Choice
_KINDS: dict[str, type[Record]] = {"evaluation": Evaluation, "difference": Difference, "choice": Choice}


def append(folder: Path, record: Record) -> None:
    """Add one line to the folder's records; a last line that an interruption cut off is taken away first."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("ab+") as lines:
        lines.seek(0)
        written = lines.read()
        lines.truncate(written.rfind(b"\n") + 1)
        lines.write(json.dumps(asdict(record), sort_keys=True).encode() + b"\n")


def read(folder: Path) -> Iterator[Record]:
    """All records of a folder, in the order written.

    A last line that was cut off by an interruption is left out; any other broken line is an error.

    Raises:
        DataError: a line that is not a record, named by its number.
    """
    path = folder / FILE
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            yield _KINDS[row["kind"]](**row)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number} is not a record ({error}). Remove the line, or start with a new folder.") from error


def save_correct(folder: Path, name: str, correct: Mapping[str, NDArray[np.bool_]]) -> str:
    """Write which images were right, {evaluation set: bool [N]}, and return the path relative to the folder."""
    path = folder / "correct" / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {str(number): np.packbits(value) for number, value in enumerate(correct.values())}
    arrays |= {"names": np.array(list(correct)), "lengths": np.array([len(value) for value in correct.values()])}
    np.savez_compressed(path, **arrays)
    return path.relative_to(folder).as_posix()


def load_correct(folder: Path, relative: str) -> dict[str, NDArray[np.bool_]]:
    """What `save_correct` wrote."""
    with np.load(folder / relative) as stored:
        return {
            str(name): np.unpackbits(stored[str(number)], count=int(length)).astype(bool)
            for number, (name, length) in enumerate(zip(stored["names"], stored["lengths"], strict=True))
        }


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
