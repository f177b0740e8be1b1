"""Prompt templates and the texts that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surefoot.errors import SettingError


def check_template(template: str) -> str:
    """The template itself, if it holds exactly one `{}`.

    Raises:
        SettingError: no `{}`, or more than one.

    Examples:
        >>> check_template("a photo of a {}.")
        'a photo of a {}.'
    """
    if template.count("{}") != 1:
        raise SettingError(
            f"The template '{template}' holds {template.count('{}')} places '{{}}' for the class name; it must hold exactly one."
        )
    return template


@dataclass(frozen=True)
class PromptTable:
    """Distinct texts, and where the prompt of each class and template stands among them.

    `texts[index[c][p]]` is template p filled with class c. Two classes with one name share their texts.

    Examples:
        >>> table = PromptTable.build(["a {}.", "{} art"], ["cat", "dog"])
        >>> table.texts[table.index[1][0]]
        'a dog.'
    """

    texts: tuple[str, ...]
    index: tuple[tuple[int, ...], ...]

    @classmethod
    def build(cls, templates: Sequence[str], names: Sequence[str]) -> PromptTable:
        """All templates filled with all names: K names and P templates give an index of K rows and P columns."""
        place: dict[str, int] = {}
        index = tuple(
            tuple(place.setdefault(check_template(template).replace("{}", name), len(place)) for template in templates) for name in names
        )
        return cls(tuple(place), index)
