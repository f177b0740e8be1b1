"""The class lists: well formed, and the second benchmark trains on no class that IconShift trains on."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest

LISTS = Path(__file__).parents[1] / "benchmarks" / "iconshift"
FIRST, SECOND = "classes.toml", "classes-solid.toml"


def table(name: str) -> dict:
    return tomllib.loads((LISTS / name).read_text())


def all_names(group: dict[str, list[str]]) -> set[str]:
    """The names of a group's classes, and the classes themselves spelt as names."""
    return {name for class_name, names in group.items() for name in (*names, class_name.lower().replace(" ", "-"))}


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_a_name_means_one_class_and_every_class_has_names(name: str) -> None:
    classes = table(name)
    owners = Counter(n for group in ("seen", "unseen") for names in classes[group].values() for n in set(names))
    assert [n for n, count in owners.items() if count > 1] == []
    assert all(names for group in ("seen", "unseen") for names in classes[group].values())
    assert not set(classes["seen"]) & set(classes["unseen"])


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_icons_assigned_by_hand_belong_to_listed_classes_and_to_one_each(name: str) -> None:
    classes = table(name)
    by_hand = classes["by_hand"]["icons"]
    assert set(by_hand) <= {*classes["seen"], *classes["unseen"]}
    owners = Counter(icon for icons in by_hand.values() for icon in set(icons.split()))
    assert [icon for icon, count in owners.items() if count > 1] == []


def test_training_classes_are_disjoint_from_those_of_iconshift_under_any_name() -> None:
    first, second = table(FIRST), table(SECOND)
    assert not all_names(first["seen"]) & all_names(second["seen"])
    assert set(second["unseen"]) <= set(first["seen"])


def test_the_same_words_leave_a_class_as_it_is() -> None:
    first, second = table(FIRST), table(SECOND)
    assert all(first[key] == second[key] for key in ("before", "after", "prefixes"))


def test_there_are_enough_classes() -> None:
    second = table(SECOND)
    assert len(second["seen"]) >= 80
    assert len(second["unseen"]) >= 40
