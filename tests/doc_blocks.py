"""The fenced blocks of the documents, and a small world to type them in: tiny data and a tiny model under the names of the documents."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import fakes
import released
import typer.main

from surefoot import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"sh", "python", "toml", "text"}
_FENCE = re.compile(r"^[ ]*```[ ]*(\S*)[ ]*$")
_VARIABLE = re.compile(r"[A-Z_]+=.*")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line of its fence, its language, and what stands in it."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Typed:
    """A line of a shell block: what is set before it, whether torchrun starts it, and its words."""

    where: str
    text: str
    variables: tuple[str, ...]
    torchrun: tuple[str, ...]
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def blocks() -> list[Block]:
    """All fenced blocks of README.md and docs/."""
    found = []
    for page in PAGES:
        begun: tuple[int, str] | None = None
        inside: list[str] = []
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
            fence = _FENCE.match(line)
            if fence and begun is None:
                begun, inside = (number, fence[1]), []
            elif fence and begun is not None:
                found.append(Block(page, *begun, "\n".join(inside) + "\n"))
                begun = None
            else:
                inside.append(line)
        assert begun is None, f"{page.name}: the block that begins in line {begun} does not end"
    return found


def typed_in(block: Block) -> Iterator[Typed]:
    """The commands of a shell block."""
    for text in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(text, comments=True):
            variables = list(takewhile(_VARIABLE.fullmatch, words))
            words = words[len(variables) :]
            start: list[str] = []
            if words[0] == "torchrun":
                at = words.index("-m")
                start, words = words[: at + 2], words[at + 1 :]
            yield Typed(str(block), text.partition("  #")[0].strip(), tuple(variables), tuple(start), tuple(words))


@cache
def commands() -> dict[str, Any]:
    """The commands as the command line's parser holds them."""
    group: Any = typer.main.get_command(cli.app)
    return dict(group.commands)


def parsed(words: tuple[str, ...]) -> dict[str, Any]:
    """What the command line makes of a command's words, which must be whole and of the right kinds; nothing is run."""
    _, command, *arguments = words
    return dict(commands()[command].make_context(command, list(arguments)).params)


def options_of(command: str) -> set[str]:
    """The options of a command."""
    return {option for parameter in commands()[command].params for option in parameter.opts}


CLASSES = ("anchor", "bell", "cat", "door", "eye", "fish")
UNSEEN = ("gate", "hat", "ink", "jug")


def make_world(folder: Path, model: Path) -> Path:
    """The folder that the documents' commands are typed in, and beside it what is embedded in Surefoot.

    Args:
        folder: is filled.
        model: a tiny checkpoint folder, which stands for IconCLIP too.
    """
    here = folder / "here"
    for name in ("iconshift", "solid"):
        _whole(folder / name, name)
    _pairs(folder / "iconpool")
    (folder / "embedded").mkdir()
    shutil.copytree(model, folder / "embedded" / "iconclip")
    here.mkdir()
    _split(here / "photos/train", CLASSES, 8)
    _split(here / "photos/shifts/night", CLASSES, 3)
    _split(here / "other-photos", CLASSES, 4)
    shutil.copytree(folder / "solid", here / "solid")
    fakes.picture(here / "new-photos/1.png", side=16)
    fakes.picture(here / "new-photos/2.png", side=16)
    rows = [f"{path.relative_to(here)},{path.parent.name}" for path in sorted((here / "photos/train").rglob("*.png"))]
    (here / "photos.csv").write_text("\n".join(["path,class", *rows]) + "\n")
    _pairs(here / "my-pool")
    for name in ("imagenet", "pacs"):
        fakes.make(name, folder / "data")
    for place in ("DATA", "data"):
        (here / place).symlink_to(folder / "data")
    released.save(here / "checkpoint_10.pt", released.flyp())
    released.save(here / "state_dict.pt", released.flyp().model.state_dict())
    (here / "benchmarks").symlink_to(ROOT / "benchmarks")
    return here


def _split(folder: Path, classes: tuple[str, ...], each: int) -> None:
    for name in classes:
        for number in range(each):
            fakes.picture(folder / name / f"{number}.png", side=16)


def _whole(folder: Path, name: str) -> None:
    for split, each in (("train", 6), ("val", 3), ("test", 3), ("shifts/emoji", 3), ("shifts/solid", 3)):
        _split(folder / split, CLASSES, each)
    _split(folder / "unseen/outline", UNSEEN, 6)
    contexts = "".join(f'{context} = "a {context} icon of a {{}}."\n' for context in ("outline", "emoji", "solid"))
    (folder / "dataset.toml").write_text(f'name = "{name}"\nid_context = "outline"\n[contexts]\n{contexts}')


def _pairs(folder: Path) -> None:
    rows = ["path,caption"]
    for number, name in enumerate((*CLASSES, *UNSEEN)):
        fakes.picture(folder / f"{number}.png", side=16)
        rows.append(f"{number}.png,a drawing of a {name}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
