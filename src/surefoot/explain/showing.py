"""Images picked, looked at by several models, and written as pictures and records that a report reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surefoot import records
from surefoot.data.images import Images
from surefoot.data.layout import Dataset
from surefoot.errors import SettingError
from surefoot.explain.choice import Why, chosen
from surefoot.explain.pictures import as_seen, overlaid, save
from surefoot.explain.views import Question, Version, View, views
from surefoot.folders import put_text
from surefoot.model import ImageTextModel

FOLDER = "explain"
"""Where a run keeps what is explained of it, below its own folder; its report shows what lies there."""
PAGE, PICTURES = "index.html", "pictures"
_OWN = re.compile(r"\d{3,}(-\d+)?\.webp")


@dataclass(frozen=True)
class Pick:
    """An image that is shown: the set that it is of, why it was picked, and what the data say of it, "" where they say nothing.

    `of` is the class whose score is explained, None for the one that is answered; `border` is cut off each side. An image of a set with
    classes of its own is asked for these: `names`, each of which the training classes of a row of `mapped` count as.
    """

    path: Path
    on: str = ""
    why: Why = "given"
    label: str = ""
    of: int | None = None
    context: str = ""
    written: str = ""
    border: int = 0
    names: Sequence[str] = ()
    mapped: Sequence[Sequence[int]] = ()


def picks(dataset: Dataset, changed: Mapping[str, NDArray[np.bool_]], count: int, seed: int) -> list[Pick]:
    """Images of ID test and of each shift by the rule of `chosen`; sets in which several images count as one are left out.

    Args:
        dataset: where they lie.
        changed: {set: which answers changed, [N]}, of the sets of which that is known.
        count: how many are drawn of a set, and how many of those that changed.
        seed: of the draw.
    """
    found = []
    for name, split in dataset.splits.items():
        if split.together or not (name == "test" or name.startswith("shifts/")):
            continue
        own = changed.get(name)
        for row, why in chosen(name, len(split), own if own is not None and len(own) == len(split) else None, count, seed):
            label = split.labels[row]
            pick = Pick(
                path=split.paths[row], on=name, why=why, of=None if split.mapped else label, context=dataset.context_of(name) or "",
                label=(split.class_names if split.mapped else dataset.class_names)[label], written=dataset.written(split.paths[row]),
                border=split.border, names=split.class_names if split.mapped else (), mapped=split.mapped,
            )  # fmt: skip
            found.append(pick)
    return found


def show(
    folder: Path,
    model: ImageTextModel,
    picked: Sequence[Pick],
    versions: Sequence[Version],
    question: Question,
    *,
    maps: bool = True,
    on_done: Callable[[int, int], None] | None = None,
    **origin: Any,  # noqa: ANN401
) -> list[records.Explained]:
    """Look at every picked image by every version, and write pictures and records into a folder, in place of those before.

    Args:
        folder: gets pictures/ and records.jsonl.
        model: as in `views`.
        picked: the images.
        versions: the zero-shot model first.
        question: what is asked of them.
        maps: as in `views`.
        on_done: as in `views`.
        origin: fields of `records.Explained` that name the run.

    Raises:
        SettingError: the folder holds other records.
        DataError: an image that cannot be read.
        ModelError: a tower without maps.
    """
    check_folder(folder)
    image = torch.cat([Images([one.path], model.preprocess, border=one.border).batch([0]) for one in picked])
    of, mapped = [one.of for one in picked], [one.mapped for one in picked]
    seen, wanted = views(model, image, versions, question, of, mapped=mapped, maps=maps, on_done=on_done)
    names = [*question.names, question.added]
    made = []
    for number, (one, own, row) in enumerate(zip(picked, seen, wanted, strict=True)):
        files = _write(folder, model, image[number], own, number)
        told = [
            _told(view, version, one.names or question.names, list(question.contexts), heat)
            for view, version, heat in zip(own, versions, files[1:], strict=True)
        ]
        record = records.Explained(
            image=files[0], on=one.on, why=one.why, of=names[row], views=told, label=one.label, context=one.context,
            path=one.written or one.path.name, **origin,
        )  # fmt: skip
        made.append(record)
    put_text(folder / records.FILE, "".join(json.dumps(asdict(record), sort_keys=True) + "\n" for record in made))
    _clear(folder, made)
    return made


def check_folder(folder: Path) -> None:
    """Whether a folder may be written into: what is explained of a run lies beside no other records, and takes no other page's place.

    Raises:
        SettingError: it holds records of a comparison, or a page that was not written here.
    """
    found = list(records.read(folder))
    if any(not isinstance(record, records.Explained) for record in found):
        raise SettingError(f"{folder} holds the records of a comparison, which stay. Give a folder of its own by --out.")
    if not found and (folder / PAGE).exists():
        raise SettingError(f"{folder / PAGE} is a page of something else, which stays. Give a folder of its own by --out.")


def _write(folder: Path, model: ImageTextModel, image: Tensor, own: Sequence[View], number: int) -> list[str]:
    """The picture of an image and those of its maps, "" for a view without one, relative to the folder."""
    picture = as_seen(model, image)
    drawn = [picture, *(None if view.heat is None else overlaid(picture, view.heat) for view in own)]
    names = [f"{PICTURES}/{number:03d}{f'-{place}' if place else ''}.webp" for place in range(len(drawn))]
    for name, one in zip(names, drawn, strict=True):
        if one is not None:
            save(one, folder / name)
    return [name if one is not None else "" for name, one in zip(names, drawn, strict=True)]


def _clear(folder: Path, made: Sequence[records.Explained]) -> None:
    """Take away pictures of an earlier time that no record names any more, and nothing else."""
    named = {name for record in made for name in (record.image, *(view["heat"] for view in record.views))}
    for path in (folder / PICTURES).glob("*.webp"):
        if _OWN.fullmatch(path.name) and f"{PICTURES}/{path.name}" not in named:
            path.unlink()


def _told(view: View, version: Version, names: Sequence[str], contexts: Sequence[str], heat: str) -> dict[str, Any]:
    return {
        "row": version.row,
        "label": version.label,
        "answer": names[view.answer],
        "confidence": round(view.confidence, 6),
        "context": contexts[view.context],
        "heat": heat,
    }
