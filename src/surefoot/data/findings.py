"""What a survey's facts mean: each finding says what is there, why it matters and what to do."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from surefoot.data.layout import listed

if TYPE_CHECKING:
    from surefoot.data.survey import Survey

LEVELS = ("error", "warning", "note")
IMBALANCED = 5
FEW_VALIDATION = 100
_CODE = re.compile(r"n\d{8}|(class|cls|label|category|cat|id|c)?[ _-]?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """One thing to know. An `error` forbids training, a `warning` makes numbers wrong or weak, a `note` is for information."""

    level: str
    text: str
    paths: tuple[Path, ...] = ()


def find(survey: Survey) -> list[Finding]:
    """All findings, errors first."""
    rules = (_unreadable, _leaks, _two_labels, _collisions, _codes, _few_images, _imbalance, _few_validation, _doubles, _form)
    found = [finding for rule in rules for finding in rule(survey)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def squashed(name: str) -> str:
    """A class name without case, spaces, `_` and `-`.

    Examples:
        >>> squashed("Granny-Smith apple")
        'grannysmithapple'
    """
    return re.sub(r"[\s_-]+", "", name.casefold())


def is_code(name: str) -> bool:
    """Whether a class name is a number or a code that no text tower has read.

    Examples:
        >>> [name for name in ("n01440764", "0", "class_3", "id-17", "Boeing 747", "A380", "cat") if is_code(name)]
        ['n01440764', '0', 'class_3', 'id-17']
    """
    return _CODE.fullmatch(name) is not None


def _unreadable(survey: Survey) -> Iterator[Finding]:
    if survey.unreadable:
        first = " ".join(map(str, survey.unreadable[0]))
        yield Finding(
            "error",
            f"{_images(len(survey.unreadable))} cannot be used. {first} Mend or remove them all, "
            "or train without them by --skip-unreadable.",
            tuple(path for path, _ in survey.unreadable),
        )


def _leaks(survey: Survey) -> Iterator[Finding]:
    """One finding for each set of splits that share pictures."""
    shared: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for copies in survey.across_splits:
        shared[tuple(dict.fromkeys(place.split for place in copies.places))] += [place.path for place in copies.places]
    pictures = Counter(tuple(dict.fromkeys(place.split for place in copies.places)) for copies in survey.across_splits)
    for splits, number in pictures.items():
        learned = [split for split in splits if split in ("train", "val")]
        harm = (
            f"What was in {' and '.join(learned)} measures nothing elsewhere: keep each"
            if learned
            else "Their accuracies are not independent: keep each"
        )
        yield Finding(
            "warning" if learned else "note",
            f"{_pictures(number)} in several splits: {', '.join(splits)}. {harm} in one of them.",
            tuple(shared[splits]),
        )


def _two_labels(survey: Survey) -> Iterator[Finding]:
    if survey.across_labels:
        names = sorted({place.class_name for place in survey.across_labels[0].places})
        yield Finding(
            "warning",
            f"{_pictures(len(survey.across_labels))} under several class names (the first: {', '.join(names)}). Decide for one; "
            "data with several labels an image is not supported.",
            tuple(place.path for copies in survey.across_labels for place in copies.places),
        )


def _doubles(survey: Survey) -> Iterator[Finding]:
    for split, copies in survey.within_splits.items():
        extra = sum(len(one.places) - 1 for one in copies)
        harm = "they count twice there" if split != "train" else "they weigh more there"
        yield Finding(
            "note",
            f"{_images(extra)} of {split} repeat a picture that {split} already holds: {harm}.",
            tuple(place.path for one in copies for place in one.places),
        )


def _collisions(survey: Survey) -> Iterator[Finding]:
    for names in survey.collisions:
        yield Finding(
            "warning",
            f"Class names that read the same: {'; '.join(names)}. A text head cannot tell them apart: give them different names in "
            "[class_names] of dataset.toml, or make them one class.",
        )


def _codes(survey: Survey) -> Iterator[Finding]:
    named = dict.fromkeys(name for names in survey.class_names.values() for name in names)
    if codes := [name for name in named if is_code(name)]:
        yield Finding(
            "warning",
            f"{_classes(len(codes))} called by a number or a code ({listed(codes)}). Prompts made of them mean nothing to a "
            "text tower, so that zero-shot accuracy is that of guessing: write what they are under [class_names] in dataset.toml.",
        )


def _few_images(survey: Survey) -> Iterator[Finding]:
    """Classes without or with one image, where that matters."""
    advice = {
        "train": "They cannot be learned: add images, or remove the classes.",
        "val": "Choices are made without them: add images.",
        "test": "Their accuracy is not measured: add images.",
    }
    for split, names in survey.empty.items():
        if split in advice:
            yield Finding("warning", f"{split} holds no image of {_classes_called(names)}. {advice[split]}")
    if partly := [f"{split} of {len(names)}" for split, names in survey.empty.items() if split not in advice]:
        yield Finding("note", f"No image of some classes: {listed(partly)}. They compete there as wrong answers all the same.")
    for split, names in survey.single.items():
        if split == "train":
            yield Finding("warning", f"{split} holds a single image of {_classes_called(names)}: expect little there, and add images.")
        elif split in advice:
            yield Finding("note", f"{split} holds a single image of {_classes_called(names)}: their accuracy is 0 or 100 %.")


def _imbalance(survey: Survey) -> Iterator[Finding]:
    if survey.imbalance > IMBALANCED:
        counts = sorted((count, name) for count, name in zip(survey.counts["train"], survey.class_names["train"], strict=True) if count)
        (few, rare), (many, common) = counts[0], counts[-1]
        yield Finding(
            "warning",
            f"The largest class of train has {survey.imbalance:.0f} times the images of the smallest ('{common}' {many}, '{rare}' {few}). "
            "If rare classes matter as much: sampling=balanced or logit_adjustment=1, and select_by=mean_per_class.",
        )


def _few_validation(survey: Survey) -> Iterator[Finding]:
    number = sum(survey.counts.get("val", ()))
    if 0 < number < FEW_VALIDATION:
        points = 100 * math.sqrt(0.8 * 0.2 / number)
        yield Finding(
            "warning",
            f"val holds {_images(number)}: the standard error of an accuracy near 80 % is {points:.1f} points, and a choice made "
            f"on a smaller difference is noise. Move images from train to val, {FEW_VALIDATION} or more.",
        )


def _form(survey: Survey) -> Iterator[Finding]:
    if survey.small:
        yield Finding(
            "note", f"{_images(len(survey.small))} with a side below 32 pixels: enlarged for the model, they stay blurred.", survey.small
        )
    if survey.animated:
        yield Finding("note", f"{len(survey.animated)} files of several frames or pages: only the first is used.", survey.animated)


def _images(number: int) -> str:
    return f"{number} image{'s' if number != 1 else ''}"


def _pictures(number: int) -> str:
    return "1 picture is" if number == 1 else f"{number} pictures are"


def _classes(number: int) -> str:
    return "1 class is" if number == 1 else f"{number} classes are"


def _classes_called(names: Sequence[str]) -> str:
    return f"'{names[0]}'" if len(names) == 1 else f"{len(names)} classes ({listed(names)})"
