"""What a model answered, image by image, and the compressed arrays that it is kept in beside the records."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surefoot.distributed import is_first
from surefoot.errors import DataError, SettingError
from surefoot.folders import whole_file
from surefoot.guard.arrays import load_arrays
from surefoot.guard.places import check_inside

_PARTS = ("prediction", "label", "confidence", "group")


@dataclass(frozen=True)
class Answers:
    """What a model answered to the images of one set: class numbers `prediction` and `label` [N], and its `confidence` [N] in 0..1.

    `group` [N] numbers what the data group their images by (a region), -1 for an image in none; None where they do not.
    """

    prediction: NDArray[np.int32]
    label: NDArray[np.int32]
    confidence: NDArray[np.float32]
    group: NDArray[np.int32] | None = None

    def check(self) -> None:
        """Whether these are the answers of some images.

        Raises:
            ValueError: the arrays are of different lengths, or hold something else.
        """
        arrays = [array for array in (self.prediction, self.label, self.group) if array is not None]
        if any(array.dtype.kind not in "iu" for array in arrays) or self.confidence.dtype.kind != "f":
            raise ValueError("they are not numbers of classes with a confidence each")
        if any(array.shape != (len(self.label),) for array in (*arrays, self.confidence)) or (self.label < 0).any():
            raise ValueError("there is not one for each image")

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which were right, [N]."""
        found: NDArray[np.bool_] = self.prediction == self.label
        return found

    def rows(self, rows: Sequence[int]) -> Answers:
        """Those of some images."""
        keep = list(rows)
        group = None if self.group is None else self.group[keep]
        return Answers(self.prediction[keep], self.label[keep], self.confidence[keep], group)

    def by_group(self) -> Answers:
        """One answer for each group, which is right only if all of its images are; an image in none counts by itself.

        The first wrong answer of a group stands for it, or its first one where all are right. The groups keep their order whatever was
        answered, so that two models can be compared group by group.

        Raises:
            SettingError: the images have no groups.

        References:
            Shankar et al., "Do image classifiers generalize across time?", ICCV 2021: pm-k, where a video's frames are a group.
        """
        if self.group is None:
            raise SettingError("These images have no groups that could count as one. Give each image its group.")
        place = np.arange(len(self.group))
        own = np.where(self.group < 0, -1 - place, self.group)
        order = np.lexsort((place, self.correct, own))  # by group, wrong before right, in the order of the images
        first = np.unique(own[order], return_index=True)[1]
        return replace(self.rows(order[first].tolist()), group=None)

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """Those of some images, then those of others."""
        groups = [part.group for part in parts if part.group is not None]
        return cls(
            np.concatenate([part.prediction for part in parts]),
            np.concatenate([part.label for part in parts]),
            np.concatenate([part.confidence for part in parts]),
            np.concatenate(groups) if groups and len(groups) == len(parts) else None,
        )


def save_answers(folder: Path, name: str, answers: Mapping[str, Answers]) -> str:
    """Write what was answered, {evaluation set: Answers}, and return the path relative to the folder. The first process writes."""
    path = folder / "answers" / f"{file_name(name)}.npz"
    if not is_first():
        return path.relative_to(folder).as_posix()
    arrays: dict[str, Any] = {"names": np.array(list(answers))}
    for number, one in enumerate(answers.values()):
        arrays |= {f"{number}.prediction": one.prediction, f"{number}.label": one.label, f"{number}.confidence": one.confidence}
        arrays |= {} if one.group is None else {f"{number}.group": one.group}
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return path.relative_to(folder).as_posix()


def load_answers(folder: Path, relative: str) -> dict[str, Answers]:
    """What `save_answers` wrote.

    Raises:
        DataError: the file is not there, or is not one of these.
    """
    try:
        check_inside(folder, [folder / relative], "a record")
        stored = load_arrays(folder / relative)
        found = {
            str(name): Answers(**{part: stored[key] for part in _PARTS if (key := f"{number}.{part}") in stored})
            for number, name in enumerate(stored["names"])
        }
        for answers in found.values():
            answers.check()
        return found
    except (OSError, EOFError, KeyError, TypeError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{folder / relative} does not hold the answers of an evaluation ({error}). Run the evaluation again.") from error


def file_name(name: str) -> str:
    """The name of a method or variant as every file system takes it.

    Examples:
        >>> file_name("tp_ft+layers=visual[-3:]"), file_name("flyp")
        ('tp_ft+layers=visual[-3_]', 'flyp')
    """
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", name)
