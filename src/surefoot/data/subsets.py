"""Parts of a data set: a few images of each class, the base half of the classes with the new half held out."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from surefoot.data.layout import Dataset, Split
from surefoot.errors import DataError, SettingError

MAX_FEW_SHOT_VALIDATION = 4
NEW = "unseen/new"
SMOKE_CLASSES, SMOKE_IMAGES = 8, 4
SMOKE_NOTE = f"Smoke run: at most {SMOKE_CLASSES} classes with {SMOKE_IMAGES} images each, to try a command. Its figures mean nothing."


def take(split: Split, rows: Sequence[int]) -> Split:
    """The split with the images of `rows` only, in their order; labels, captions and the like go with them."""
    return replace(
        split,
        paths=tuple(split.paths[row] for row in rows),
        labels=tuple(split.labels[row] for row in rows),
        captions=tuple(split.captions[row] for row in rows) if split.captions else (),
        groups=tuple(split.groups[row] for row in rows) if split.groups else (),
        accepted=tuple(split.accepted[row] for row in rows) if split.accepted else (),
    )


def joined(parts: Sequence[Split]) -> Split:
    """The images of several splits of the same classes in one, called by the first; captions and groups are kept where any has them."""
    captions = [caption for part in parts for caption in (part.captions or ("",) * len(part))]
    groups = [group for part in parts for group in (part.groups or ("",) * len(part))]
    accepted = [own for part in parts for own in (part.accepted or ((),) * len(part))]
    return replace(
        parts[0],
        paths=tuple(path for part in parts for path in part.paths),
        labels=tuple(label for part in parts for label in part.labels),
        captions=tuple(captions) if any(captions) else (),
        groups=tuple(groups) if any(groups) else (),
        accepted=tuple(accepted) if any(accepted) else (),
    )


def few_shot(dataset: Dataset, shots: int, *, seed: int) -> Dataset:
    """The data set with `shots` training images of each class, and min(shots, 4) validation images of each, or as many as it has.

    That is the convention of CoOp, which CLIP-CITE follows; test, shifts and unseen classes stay whole. The images are drawn from the
    given train and val, in each class by the order of a hash of seed, class and file, so that neither the order of files nor another
    class has a say. With one seed, what each class gets at 1 shot is among what it gets at 2.

    Args:
        dataset: with train and val.
        shots: k; the papers use 1, 2, 4, 8 and 16.
        seed: which draw. Repeat over several and report the mean.

    Raises:
        SettingError: shots below 1.
        DataError: a class with too few training images (one is enough with `Dataset.fewer_shots`), or without a validation image.

    References:
        Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022. Liu et al., Fully Fine-tuned CLIP Models
        are Efficient Few-Shot Learners (CLIP-CITE).
    """
    if shots < 1:
        raise SettingError(f"shots is {shots}. Give 1 or more; usual are 1, 2, 4, 8 and 16.")
    most = min(shots, MAX_FEW_SHOT_VALIDATION)
    val = _draw(dataset, dataset.split("val"), most, seed, least=1)
    train = _draw(dataset, dataset.split("train"), shots, seed, least=1 if dataset.fewer_shots else shots)
    drawn = {"train": train, "val": val}
    words = ["" if len(one) == number * len(dataset.class_names) else "at most " for one, number in ((train, shots), (val, most))]
    note = f"{shots}-shot: {words[0]}{shots} training and {words[1]}{most} validation images of each class, drawn with seed {seed}."
    return replace(dataset, splits={**dataset.splits, **drawn}, notes=(*dataset.notes, note))


def _draw(dataset: Dataset, split: Split, number: int, seed: int, *, least: int) -> Split:
    rows: list[int] = []
    for label, name in enumerate(split.class_names):
        own = [row for row, other in enumerate(split.labels) if other == label]
        if len(own) < least:
            if not own:
                raise DataError(f"Class '{name}' has no image in {split.name}. Add one, or leave the class out of all splits.")
            raise DataError(
                f"{least} images of each class of {split.name} are asked for, and '{name}' has {len(own)}. Ask for fewer shots or add "
                "images; 'surefoot few-shot' and the other protocols let such classes give all they have by --fewer."
            )
        rows += sorted(own, key=lambda row: _ticket(dataset, split, row, seed))[:number]
    return take(split, sorted(rows))


def _ticket(dataset: Dataset, split: Split, row: int, seed: int) -> str:
    """A hash that orders the images of a class; it holds the place within the data set, so that a moved folder gives the same draw."""
    texts = (split.name, split.class_names[split.labels[row]], dataset.key(split.paths[row]))
    place = tuple(unicodedata.normalize("NFC", text) for text in texts)  # file systems differ in how they spell accented letters
    return hashlib.sha256(repr((seed, *place)).encode()).hexdigest()


def base_to_new(dataset: Dataset) -> Dataset:
    """The first half of the classes to learn, the other half to meet only by name.

    Of K classes the first ceil(K / 2), in the data set's order, are base: train, val, test and the shifts hold them alone, with labels
    counted anew. The test images of the others become `unseen/new`, among their own names. Both halves are so evaluated as CoCoOp and
    CLIP-CITE do, each among its own classes.

    Args:
        dataset: of four classes or more.

    Raises:
        DataError: fewer than four classes, so that a half would have nothing to choose from; a split without an image of its half;
            an unseen split that is already called new.

    References:
        Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022, section 4.1.
    """
    total = len(dataset.class_names)
    if total < 4:
        raise DataError(f"{dataset.folder} has {total} classes; base-to-new needs at least four, two to learn and two that are new.")
    if NEW in dataset.splits:
        raise DataError(f"{dataset.folder} already has a split {NEW}, which base-to-new makes. Rename it.")
    half = math.ceil(total / 2)
    base, new = range(half), range(half, total)
    held_out = replace(only_classes(dataset.split("test"), new), name=NEW)
    splits: dict[str, Split] = {}
    notes = [f"Base-to-new: the first {half} of {total} classes are learned, the test images of the other {total - half} are {NEW}."]
    for name, split in dataset.splits.items():
        if split.mapped:
            notes.append(f"{name} has class names of its own and was left out.")
            continue
        part = split if name.startswith("unseen/") else only_classes(split, base)
        if part.paths:
            splits[name] = part
        elif name.startswith("shifts/"):
            notes.append(f"{name} holds no image of the base classes and was left out.")
        else:
            raise DataError(f"{name} holds no image of the first {half} classes. Base-to-new needs some there.")
    if not held_out.paths:
        raise DataError(f"test holds no image of the last {total - half} classes. Base-to-new needs some there.")
    return replace(dataset, class_names=dataset.class_names[:half], splits={**splits, NEW: held_out}, notes=(*dataset.notes, *notes))


def smoke(dataset: Dataset) -> Dataset:
    """A few classes with a few images each in every split, to try a command on; no figure of it means anything.

    Kept are the SMOKE_CLASSES classes that most splits hold (of unseen classes the first ones), and of each the first SMOKE_IMAGES
    images. Classes with fewer images than a few-shot draw asks for give all they have. The name of the data says what they are, so that
    records can never be taken for those of the whole.

    Args:
        dataset: with train, val and test.
    """
    held = [set(split.labels) for split in dataset.splits.values() if not split.mapped and not split.name.startswith("unseen/")]
    order = sorted(range(len(dataset.class_names)), key=lambda label: -sum(label in own for own in held))
    seen, splits = sorted(order[:SMOKE_CLASSES]), dict[str, Split]()
    for name, split in dataset.splits.items():
        if split.mapped:  # class names of its own
            continue
        own = range(min(SMOKE_CLASSES, len(split.class_names))) if name.startswith("unseen/") else seen
        part = _first(only_classes(split, own), SMOKE_IMAGES)
        if part.paths:
            splits[name] = part
    left_out = [f"Left out: {', '.join(sorted(dataset.splits.keys() - splits.keys()))}."] if len(splits) < len(dataset.splits) else []
    names = tuple(dataset.class_names[label] for label in seen)
    notes = (SMOKE_NOTE, *left_out, *dataset.notes)
    return replace(dataset, name=f"{dataset.name}-smoke", class_names=names, splits=splits, notes=notes, fewer_shots=True)


def _first(split: Split, number: int) -> Split:
    """The first images of each class."""
    seen: Counter[int] = Counter()
    rows = []
    for row, label in enumerate(split.labels):
        seen[label] += 1
        rows += [row] if seen[label] <= number else []
    return take(split, rows)


def only_classes(split: Split, classes: Sequence[int]) -> Split:
    """The images of some classes, labels counted anew in the order of `classes`.

    Args:
        split: any.
        classes: labels of the split.
    """
    place = {label: number for number, label in enumerate(classes)}
    part = take(split, [row for row, label in enumerate(split.labels) if label in place])
    return replace(
        part,
        labels=tuple(place[label] for label in part.labels),
        class_names=tuple(split.class_names[label] for label in classes),
        accepted=tuple(tuple(place[label] for label in own if label in place) for own in part.accepted),
        declared=tuple(place[label] for label in split.declared if label in place),
    )


def whole(dataset: Dataset) -> Dataset:
    """The data set with train, val and test together as its test split, for judging a model that was trained on none of them.

    Train and val stay what they are, so that the data set is complete; no choice may be made on it any more.
    """
    parts = [dataset.split(name) for name in ("train", "val", "test")]
    everything = replace(joined(parts), name="test")
    note = f"Judged on all {len(everything)} images of train, val and test together."
    return replace(dataset, splits={**dataset.splits, "test": everything}, notes=(*dataset.notes, note))


def fraction(dataset: Dataset, share: float, *, seed: int) -> Dataset:
    """The data set with a part of its training images: of each class the nearest whole number to its share, and one at least.

    All other splits stay whole. The images are drawn as in `few_shot`, so that a smaller share is a part of a larger one.

    Args:
        dataset: with train.
        share: in 0..1, 0 left out; 1 is all of them.
        seed: which draw.

    Raises:
        SettingError: a share outside 0..1, or 0.
    """
    if not 0 < share <= 1:
        raise SettingError(f"A share of the training images is {share}. It must be above 0 and at most 1, such as 0.25.")
    split, rows = dataset.split("train"), list[int]()
    for label in range(len(split.class_names)):
        own = [row for row, other in enumerate(split.labels) if other == label]
        rows += sorted(own, key=lambda row: _ticket(dataset, split, row, seed))[: max(1, round(share * len(own)))]
    return replace(dataset, splits={**dataset.splits, "train": take(split, sorted(rows))})
