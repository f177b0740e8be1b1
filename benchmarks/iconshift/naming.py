"""From the words of an icon's name to a class of classes.toml, or to none."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from source import Icon

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Classes:
    """A class list: `groups` maps "seen" and "unseen" to {class: names}; words before and after a name that leave the class as it is."""

    groups: dict[str, dict[str, list[str]]]
    before: frozenset[str]
    after: frozenset[str]
    prefixes: dict[str, frozenset[str]]
    dropped: frozenset[str]
    by_hand: dict[str, str]

    @classmethod
    def load(cls, path: Path = HERE / "classes.toml") -> Classes:
        table = tomllib.loads(path.read_text())
        return cls(
            groups={group: table[group] for group in ("seen", "unseen")},
            before=frozenset(table["before"].split()),
            after=frozenset(table["after"].split()),
            prefixes={family: frozenset(words.split()) for family, words in table["prefixes"].items()},
            dropped=frozenset(line.split("\t")[0] for line in (HERE / "dropped.tsv").read_text().splitlines()[1:]),
            by_hand={
                f"{set_name}:{icon}": class_name
                for set_name in table["by_hand"]["sets"]
                for class_name, icons in table["by_hand"]["icons"].items()
                for icon in icons.split()
            },
        )

    @cached_property
    def names(self) -> dict[tuple[str, ...], str]:
        """{words of a name: class}; a name that two classes claim is an error of the list."""
        found: dict[tuple[str, ...], str] = {}
        for group in self.groups.values():
            for class_name, names in group.items():
                for name in names:
                    words = tuple(name.split("-"))
                    if found.setdefault(words, class_name) != class_name:
                        raise ValueError(f"classes.toml: '{name}' means both '{found[words]}' and '{class_name}'.")
        return found

    def group_of(self, class_name: str) -> str:
        return "seen" if class_name in self.groups["seen"] else "unseen"

    def class_of(self, icon: Icon) -> str | None:
        """The class an icon shows: the list made by hand first, then the words of its name."""
        key = f"{icon.set_name}:{icon.name}"
        return None if key in self.dropped else self.by_hand.get(key) or self.class_of_words(icon.words, icon.family)

    def class_of_words(self, words: tuple[str, ...], family: str) -> str | None:
        """The class that `words` name: the longest name, the first of equally long ones, with only harmless words around it."""
        prefixes = self.prefixes.get(family, frozenset())
        matches = [
            (end - start, -start, self.names[words[start:end]])
            for start in range(len(words))
            for end in range(start + 1, len(words) + 1)
            if words[start:end] in self.names
        ]
        for length, negative_start, class_name in sorted(matches, reverse=True, key=lambda match: match[:2]):
            ahead, behind = words[: -negative_start or 0], words[-negative_start + length :]
            if set(ahead) <= self.before | prefixes and set(behind) <= self.after:
                return class_name
        return None
