"""The recipes that come with Surefoot: their names, their files, and what stands at the head of each."""

from __future__ import annotations

import difflib
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

from surefoot.errors import MissingDataError

RECIPES = Path(__file__).parent / "recipes"
TYPED = "surefoot "


def names() -> list[str]:
    """The names, such as "clip" and "flyp/imagenet": paths below the folder of recipes.

    Examples:
        >>> [name for name in names() if name.startswith("wise_ft")]
        ['wise_ft/imagenet']
    """
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.toml"))


def find(name_or_path: str) -> Path:
    """The file of a recipe: one that comes with Surefoot, or a TOML file.

    Raises:
        MissingDataError: neither; the nearest name is given.
    """
    known = names()
    path = RECIPES / f"{name_or_path}.toml" if name_or_path in known else Path(name_or_path)
    if path.is_file():
        return path
    near = difflib.get_close_matches(name_or_path, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise MissingDataError(f"There is no recipe '{name_or_path}'.{hint} Give a TOML file, or one of: {', '.join(known)}.")


@dataclass(frozen=True)
class Head:
    """What a recipe says of itself.

    Attributes:
        name: as `--recipe` takes it.
        reproduces: the tables and figures it is made for; empty for none.
        lines: the comment at its head, without the signs of a comment.
    """

    name: str
    reproduces: str
    lines: tuple[str, ...]

    @property
    def commands(self) -> list[str]:
        """What to type, each with this recipe."""
        return [line for line in self.lines if line.startswith(TYPED)]

    @property
    def data(self) -> list[str]:
        """The data sets that the commands name, each once.

        Examples:
            >>> head("arf/domainnet").data
            ['domainnet_real']
        """
        words = [shlex.split(command)[2:] for command in self.commands]
        ends = [next((place for place, word in enumerate(each) if word.startswith("--")), len(each)) for each in words]
        return list(dict.fromkeys(word for each, end in zip(words, ends, strict=True) for word in each[:end]))


def head(name: str) -> Head:
    """The head of a recipe that comes with Surefoot.

    Raises:
        MissingDataError: no such recipe.
    """
    text = find(name).read_text(encoding="utf-8")
    lines = text.splitlines()
    end = next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))
    said = tuple(line[2:].rstrip() for line in lines[:end])
    return Head(name, tomllib.loads(text).get("reproduces", ""), said)


def markdown() -> str:
    """The recipes of the papers as a table for the docs."""
    lines = ["| recipe | reproduces | what to type |", "|---|---|---|"]
    for one in (head(name) for name in names() if "/" in name):
        lines.append(f"| `{one.name}` | {one.reproduces} | {'<br>'.join(f'`{command}`' for command in one.commands)} |")
    return "\n".join(lines) + "\n"
