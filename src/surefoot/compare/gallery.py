"""Images whose answer changed between the zero-shot model and the best fine-tuned one, for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from surefoot import records
from surefoot.data.digest import digests
from surefoot.data.images import read_image
from surefoot.data.layout import Dataset, Split
from surefoot.errors import DataError
from surefoot.folders import whole_file

FOLDER = "gallery"
SIDE = 160
PER_CHANGE = 12
PER_CLASS = 2


def examples(folder: Path, dataset: Dataset, name: str, a: records.Evaluation, b: records.Evaluation, runs: str) -> list[records.Example]:
    """Up to twelve images that `a` answers rightly and `b` wrongly, and twelve the other way round, of ID test and shifts.

    The most confident answers of `a` come first, no class more than twice, all sets in turn. Small copies go to the folder's gallery/.

    Args:
        folder: of the records.
        dataset: where the images lie.
        name: what the records call the row of `a`.
        a: the fine-tuned model.
        b: the zero-shot model.
        runs: as in `records.Difference`.
    """
    answers = [records.load_answers(folder, one.answers) for one in (a, b)]
    made: list[records.Example] = []
    for change, right, wrong in (("gained", 0, 1), ("lost", 1, 0)):
        queues = []
        shown = (split for name, split in dataset.splits.items() if name == "test" or name.startswith("shifts/"))
        for split in (split for split in shown if not split.together):  # else a row is a group, not an image
            own, other = answers[0][split.name], answers[1][split.name]
            rows = np.flatnonzero(answers[right][split.name].correct & ~answers[wrong][split.name].correct)
            ordered = rows[np.argsort(-own.confidence[rows], kind="stable")]
            queues.append(iter([(split, int(row), own, other) for row in ordered]))  # a list: the names are bound anew in each round
        taken: Counter[int] = Counter()
        for split, row, own, other in _in_turn(queues):
            if len([e for e in made if e.change == change]) == PER_CHANGE:
                break
            if taken[int(own.label[row])] < PER_CLASS and (image := _small(folder, split, row, a.provenance.get("data", ""))):
                taken[int(own.label[row])] += 1
                made.append(_example(name, split, row, own, other, change, image, dataset, runs))
    return made


def anchored(folder: Path, dataset: Dataset, runs: str) -> list[records.Anchored]:
    """Up to twelve training images, classes in turn, with the caption and the nearest retrieved pair that ARF trains with (its fig. 5).

    Args:
        folder: of the records; small copies go to its gallery/.
        dataset: with its anchors.
        runs: as in `records.Difference`.
    """
    anchors, train = dataset.anchors, dataset.split("train")
    known = anchors.captions.keys() | anchors.pairs.keys()
    first = {label: row for row, label in reversed(list(enumerate(train.labels))) if train.paths[row] in known}
    step = max(1, len(first) // PER_CHANGE)
    made = []
    for row in [first[label] for label in sorted(first)][::step][:PER_CHANGE]:
        path, nearest = train.paths[row], next(iter(anchors.pairs.get(train.paths[row], ())), None)
        image = _copy(folder, path, f"train-{row}-{digests([path])[0][:12]}")
        pair = None if nearest is None else anchors.images[nearest]
        shown = records.Anchored(
            image=image or "", label=dataset.class_names[train.labels[row]], caption=anchors.captions.get(path, ""),
            captioner=anchors.captioner, pair_image=(_copy(folder, pair, f"pair-{digests([pair])[0][:12]}") or "") if pair else "",
            pair_text=anchors.texts[nearest] if nearest is not None else "", pool=anchors.pool if pair else "",
            path=_shown(path, dataset.root), runs=runs,
        )  # fmt: skip
        made.append(shown)
    return made


def _in_turn(
    queues: Sequence[Iterator[tuple[Split, int, records.Answers, records.Answers]]],
) -> Iterator[tuple[Split, int, records.Answers, records.Answers]]:
    left = list(queues)
    while left:
        for queue in list(left):
            if (item := next(queue, None)) is None:
                left.remove(queue)
            else:
                yield item


def _example(
    name: str, split: Split, row: int, own: records.Answers, other: records.Answers, change: str, image: str, dataset: Dataset, runs: str
) -> records.Example:
    names = dataset.class_names
    return records.Example(
        a=name, b="zero_shot", on=split.name, change=change, image=image, label=names[own.label[row]],
        answer_a=names[own.prediction[row]], answer_b=names[other.prediction[row]],
        confidence_a=float(own.confidence[row]), confidence_b=float(other.confidence[row]),
        path=_shown(split.paths[row], dataset.root), runs=runs,
    )  # fmt: skip


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _small(folder: Path, split: Split, row: int, data: str) -> str | None:
    """A small copy of an image, or nothing if it cannot be read any more; `data` is the hash of the data, since rows move with them."""
    return _copy(folder, split.paths[row], f"{split.name.replace('/', '-')}-{row}-{data}")


def _copy(folder: Path, source: Path, name: str) -> str | None:
    path = folder / FOLDER / f"{name}.webp"
    if not path.is_file():
        try:
            image = read_image(source)
        except DataError:
            return None
        image.thumbnail((SIDE, SIDE))
        with whole_file(path) as partial:
            image.save(partial, format="WEBP", quality=80)
    return path.relative_to(folder).as_posix()
