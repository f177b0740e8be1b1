"""Images whose answer or context changed between the zero-shot model and the best fine-tuned one, for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
FORM = 2  # of the examples; those of the first form, without contexts, give way where a finished run is gone through again


def examples(
    folder: Path,
    dataset: Dataset,
    name: str,
    a: records.Evaluation,
    b: records.Evaluation,
    runs: str,
    found: Sequence[records.Evaluation] = (),
) -> list[records.Example]:
    """Up to twelve images that `a` answers rightly and `b` wrongly, twelve the other way round, and twelve whose context is lost, of ID
    test and shifts.

    The most confident answers of `a` come first, or for contexts those of `b`; no class more than twice, all sets in turn. Small copies
    go to the folder's gallery/.

    Args:
        folder: of the records.
        dataset: where the images lie.
        name: what the records call the row of `a`.
        a: the fine-tuned model, or what it is merged to.
        b: the zero-shot model.
        runs: as in `records.Difference`.
        found: evaluations among which the fine-tuned model is that `a` is merged from; its answers are shown too, and it is the one that
            loses contexts.
    """
    tuned = next((r for r in found if (r.method, r.seed, r.alpha) == (a.method, a.seed, 1.0) and a.alpha < 1), None)
    answers = [records.load_answers(folder, one.answers) for one in (a, b, *([tuned] if tuned else []))]
    made: list[records.Example] = []
    for change in ("gained", "lost", "context"):
        queues = []
        shown = (split for name, split in dataset.splits.items() if name == "test" or name.startswith("shifts/"))
        for split in (split for split in shown if not split.together):  # else a row is a group, not an image
            seen = _seen(answers, dataset, split)
            queues.append(iter([(split, row, seen) for row in _rows(change, seen)]))  # a list: the names are bound anew in each round
        taken: Counter[int] = Counter()
        for split, row, seen in _in_turn(queues):
            if len([e for e in made if e.change == change]) == PER_CHANGE:
                break
            label = int(seen[0].classes.label[row])
            if taken[label] < PER_CLASS and (image := _small(folder, split, row, a.provenance.get("data", ""))):
                taken[label] += 1
                made.append(_example(name, split, row, seen, change, image, dataset, runs))
    return made


@dataclass(frozen=True)
class _Seen:
    """What a model answers to the images of a set: their classes, and their contexts where the data name one."""

    classes: records.Answers
    contexts: records.Answers | None


def _seen(answers: Sequence[Mapping[str, records.Answers]], dataset: Dataset, split: Split) -> list[_Seen]:
    key = f"context/{dataset.context_of(split.name)}"
    own = [(one[split.name], one.get(key)) for one in answers]
    known = all(contexts is not None and len(contexts.label) == len(classes.label) for classes, contexts in own)
    return [_Seen(classes, contexts if known else None) for classes, contexts in own]


def _rows(change: str, seen: Sequence[_Seen]) -> list[int]:
    """The images of a set that changed in this way, the surest first; `seen` is of `a`, `b` and, if it is another one, the fine-tuned."""
    if change == "context":
        after, before = seen[-1 if len(seen) == 3 else 0].contexts, seen[1].contexts
        if after is None or before is None:
            return []
        rows, sure = np.flatnonzero(before.correct & ~after.correct), before.confidence
    else:
        right, wrong = (0, 1) if change == "gained" else (1, 0)
        rows, sure = np.flatnonzero(seen[right].classes.correct & ~seen[wrong].classes.correct), seen[0].classes.confidence
    ordered: list[int] = rows[np.argsort(-sure[rows], kind="stable")].tolist()
    return ordered


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


def _in_turn(queues: Sequence[Iterator[tuple[Split, int, list[_Seen]]]]) -> Iterator[tuple[Split, int, list[_Seen]]]:
    left = list(queues)
    while left:
        for queue in list(left):
            if (item := next(queue, None)) is None:
                left.remove(queue)
            else:
                yield item


def _example(
    name: str, split: Split, row: int, seen: Sequence[_Seen], change: str, image: str, dataset: Dataset, runs: str
) -> records.Example:
    names, contexts = dataset.class_names, list(dataset.contexts)
    a, b, *others = seen

    def of(one: _Seen, key: str) -> dict[str, Any]:
        context = "" if one.contexts is None else contexts[one.contexts.prediction[row]]
        answer, confidence = names[one.classes.prediction[row]], float(one.classes.confidence[row])
        return {f"answer_{key}": answer, f"confidence_{key}": confidence, f"context_{key}": context}

    tuned = {} if not others else {"tuned": name.partition(" + ")[0], **of(others[0], "tuned")}
    return records.Example(
        a=name, b="zero_shot", on=split.name, change=change, image=image, label=names[a.classes.label[row]],
        path=_shown(split.paths[row], dataset.root), runs=runs, context="" if a.contexts is None else dataset.context_of(split.name) or "",
        **of(a, "a"), **of(b, "b"), **tuned,
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
