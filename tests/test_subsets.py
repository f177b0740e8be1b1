"""Few-shot draws and base-to-new halves: no image where it must not be."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from surefoot.data import Dataset, Split
from surefoot.data.subsets import base_to_new, few_shot, only_classes, take
from surefoot.errors import DataError, SettingError

NAMES = ("ant", "bee", "cow", "dog", "emu")
ROOT = Path("/data")


def split(name: str, counts: dict[str, int], names: tuple[str, ...] = NAMES) -> Split:
    """Each path and each caption says which class it is of: planted markers."""
    images = [(label, number) for label, called in enumerate(names) for number in range(counts.get(called, 0))]
    return Split(
        name,
        tuple(ROOT / name / names[label] / f"{number}.png" for label, number in images),
        tuple(label for label, _ in images),
        names,
        tuple(f"{names[label]} {number}" for label, number in images),
    )


@pytest.fixture
def data() -> Dataset:
    splits = [
        split("train", dict.fromkeys(NAMES, 20)),
        split("val", dict.fromkeys(NAMES, 6)),
        split("test", dict.fromkeys(NAMES, 5)),
        split("shifts/all", dict.fromkeys(NAMES, 3)),
        split("shifts/late", {"dog": 2, "emu": 2}),
        split("unseen/fish", {"eel": 3, "cod": 2}, ("eel", "cod")),
    ]
    return Dataset(ROOT, "animals", NAMES, {part.name: part for part in splits}, notes=("as given",))


def markers(part: Split) -> list[str]:
    """The class that each path names; label and caption must say the same."""
    named = [path.parent.name for path in part.paths]
    assert named == [part.class_names[label] for label in part.labels]
    assert [f"{path.parent.name} {path.stem}" for path in part.paths] == list(part.captions)
    return named


@pytest.mark.parametrize(("shots", "validation"), [(1, 1), (2, 2), (4, 4), (16, 4)])
def test_exactly_k_training_and_at_most_four_validation_images_a_class(data: Dataset, shots: int, validation: int) -> None:
    drawn = few_shot(data, shots, seed=0)
    assert Counter(markers(drawn.split("train"))) == dict.fromkeys(NAMES, shots)
    assert Counter(markers(drawn.split("val"))) == dict.fromkeys(NAMES, validation)
    for name in ("train", "val"):
        assert set(drawn.split(name).paths) <= set(data.split(name).paths) and len(set(drawn.split(name).paths)) == len(drawn.split(name))
    assert all(drawn.splits[name] is data.splits[name] for name in data.splits if name not in ("train", "val"))
    assert drawn.notes[0] == "as given" and f"{shots}-shot" in drawn.notes[1]


def test_the_draw_depends_on_the_seed_alone(data: Dataset) -> None:
    first = few_shot(data, 4, seed=0)
    assert few_shot(data, 4, seed=0) == first
    assert few_shot(data, 4, seed=1).split("train") != first.split("train") and few_shot(data, 4, seed=1).split("val") != first.split("val")
    train = data.split("train")
    turned = replace(data, splits={**data.splits, "train": take(train, range(len(train))[::-1])})
    assert set(few_shot(turned, 4, seed=0).split("train").paths) == set(first.split("train").paths)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_draw_does_not_depend_on_how_a_file_system_spells_accents(form: Literal["NFC", "NFD"], data: Dataset) -> None:
    def spelt(form: Literal["NFC", "NFD"]) -> Dataset:
        named = {
            name: replace(part, paths=tuple(path.with_name(unicodedata.normalize(form, f"é{path.name}")) for path in part.paths))
            for name, part in data.splits.items()
        }
        return replace(data, splits=named)

    assert few_shot(spelt(form), 4, seed=0).split("train").captions == few_shot(spelt("NFC"), 4, seed=0).split("train").captions


def test_what_is_drawn_at_one_shot_is_drawn_at_two(data: Dataset) -> None:
    one, two = (set(few_shot(data, shots, seed=3).split("train").paths) for shots in (1, 2))
    assert one < two


def test_the_draw_does_not_depend_on_where_the_folder_lies_or_on_other_classes(data: Dataset) -> None:
    def moved(part: Split) -> Split:
        return replace(part, paths=tuple(Path("/elsewhere") / path.relative_to(ROOT) for path in part.paths))

    first = few_shot(data, 4, seed=0).split("train")
    elsewhere = replace(data, root=Path("/elsewhere"), splits={name: moved(part) for name, part in data.splits.items()})
    assert few_shot(elsewhere, 4, seed=0).split("train").captions == first.captions
    fewer = replace(
        data,
        class_names=NAMES[1:],
        splits={name: only_classes(part, range(1, 5)) for name, part in data.splits.items() if not name.startswith("unseen/")},
    )
    assert few_shot(fewer, 4, seed=0).split("train").paths == first.paths[4:]


def test_each_class_is_drawn_on_its_own(data: Dataset) -> None:
    """The same numbers for each class would make one draw look like five."""
    train = few_shot(data, 4, seed=0).split("train")
    assert len({tuple(path.name for path in train.paths[start : start + 4]) for start in range(0, 20, 4)}) > 1


def test_a_class_with_too_few_images_is_named(data: Dataset) -> None:
    data = replace(data, splits={**data.splits, "train": split("train", {**dict.fromkeys(NAMES, 20), "cow": 3})})
    with pytest.raises(DataError, match="4 images of each class of train are asked for, and 'cow' has 3"):
        few_shot(data, 4, seed=0)
    with pytest.raises(SettingError, match="shots is 0"):
        few_shot(data, 0, seed=0)


def test_no_image_of_a_new_class_is_left_among_the_base(data: Dataset) -> None:
    halves = base_to_new(data)
    base, new = {"ant", "bee", "cow"}, {"dog", "emu"}
    assert halves.class_names == ("ant", "bee", "cow")
    for name in ("train", "val", "test", "shifts/all"):
        assert set(markers(halves.split(name))) == base and halves.split(name).class_names == halves.class_names
        assert Counter(markers(halves.split(name))) == {c: n for c, n in Counter(markers(data.split(name))).items() if c in base}
    held_out = halves.split("unseen/new")
    assert set(markers(held_out)) == new and held_out.class_names == ("dog", "emu") and held_out.name == "unseen/new"
    assert set(held_out.paths) == {path for path in data.split("test").paths if path.parent.name in new}
    assert halves.splits["unseen/fish"] is data.splits["unseen/fish"]


def test_a_shift_without_base_classes_is_dropped_with_a_note(data: Dataset) -> None:
    halves = base_to_new(data)
    assert "shifts/late" not in halves.splits
    assert halves.notes[0] == "as given" and any("shifts/late" in note for note in halves.notes[1:])


def test_the_larger_half_of_an_odd_number_is_base(data: Dataset) -> None:
    even = replace(
        data,
        class_names=NAMES[:4],
        splits={name: only_classes(part, range(4)) for name, part in data.splits.items() if name in ("train", "val", "test")},
    )
    assert [len(base_to_new(given).class_names) for given in (data, even)] == [3, 2]


def test_base_to_new_needs_four_classes_test_images_and_a_free_name(data: Dataset) -> None:
    two = {name: only_classes(part, range(3)) for name, part in data.splits.items() if name in ("train", "val", "test")}
    with pytest.raises(DataError, match="has 3 classes"):
        base_to_new(replace(data, class_names=NAMES[:3], splits=two))
    with pytest.raises(DataError, match="already has a split unseen/new"):
        base_to_new(base_to_new(replace(data, splits={**data.splits, "unseen/new": data.split("unseen/fish")})))
    with pytest.raises(DataError, match="test holds no image of the last 2 classes"):
        base_to_new(replace(data, splits={**data.splits, "test": split("test", dict.fromkeys(NAMES[:3], 2))}))
    with pytest.raises(DataError, match="val holds no image of the first 3 classes"):
        base_to_new(replace(data, splits={**data.splits, "val": split("val", dict.fromkeys(NAMES[3:], 2))}))


def test_few_shot_of_the_base_half_holds_base_classes_alone(data: Dataset) -> None:
    assert Counter(markers(few_shot(base_to_new(data), 4, seed=0).split("train"))) == {"ant": 4, "bee": 4, "cow": 4}


def test_only_classes_counts_labels_in_the_order_asked_for(data: Dataset) -> None:
    part = only_classes(data.split("test"), [4, 1])
    assert part.class_names == ("emu", "bee") and Counter(markers(part)) == {"emu": 5, "bee": 5}


def test_take_without_captions_has_none(data: Dataset) -> None:
    bare = replace(data.split("train"), captions=())
    assert take(bare, [0, 3]).captions == () and take(bare, [3, 0]).paths == (bare.paths[3], bare.paths[0])


def test_a_class_with_few_validation_images_gives_all_of_them(data: Dataset) -> None:
    val = data.split("val")
    first = [row for row, label in enumerate(val.labels) if label == 0]
    fewer = replace(data, splits={**data.splits, "val": take(val, [row for row in range(len(val)) if row not in first[1:]])})
    drawn = few_shot(fewer, 4, seed=0)
    counts = [drawn.split("val").labels.count(label) for label in range(len(data.class_names))]
    assert counts[0] == 1
    assert set(counts[1:]) == {4}
    assert "at most 4 validation images" in drawn.notes[-1]
    assert "at most" not in few_shot(data, 4, seed=0).notes[-1]
    none = replace(data, splits={**data.splits, "val": take(val, [row for row in range(len(val)) if row not in first])})
    with pytest.raises(DataError, match="no image in val"):
        few_shot(none, 4, seed=0)


def test_a_class_with_fewer_images_gives_all_it_has_only_where_that_is_asked_for(tiny_data: Dataset) -> None:
    with pytest.raises(DataError, match="--fewer"):
        few_shot(tiny_data, 9, seed=0)
    drawn = few_shot(replace(tiny_data, fewer_shots=True), 9, seed=0)
    assert drawn.split("train").paths == tiny_data.split("train").paths
    assert "at most 9 training" in drawn.notes[-1]
    assert few_shot(replace(tiny_data, fewer_shots=True), 2, seed=0).split("train") == few_shot(tiny_data, 2, seed=0).split("train")
