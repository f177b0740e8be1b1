"""Docstrings as the source has them, told to Sphinx: indented formulas and tables stand as they are, marks in prose mean themselves."""

from __future__ import annotations

import re

SECTIONS = {"Args", "Returns", "Raises", "Yields", "Examples", "References", "Attributes"}
_IN_A_LINE = re.compile(r"(Needs|Relations|Differences): (.*)")
_MARKS = re.compile(r"(`[^`]*`)|([*|])")


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring, in the order of the house, as reStructuredText.

    Examples:
        >>> as_rst(["Sum.", "", "    L = a * b", "", "Needs: image,", "    prompt."])
        ['Sum.', '', '::', '', '    L = a * b', '', '**Needs**: image,', 'prompt.']
    """
    made: list[str] = []
    section, inside = "", ""  # inside: a literal block, or a paragraph that goes on indented
    for number, line in enumerate(lines):
        before = lines[number - 1] if number else ""
        if line and not line.startswith(" "):
            section, inside = line.removesuffix(":") if line.removesuffix(":") in SECTIONS and line.endswith(":") else "", ""
            if told := _IN_A_LINE.fullmatch(line):
                inside, line = "paragraph", f"**{told[1]}**: {_escaped(told[2])}"
                made += [""] * bool(before)
            else:
                line = _escaped(line)
        elif line and not section and not inside and not before:
            inside = "literal"
            if not _said(made).endswith("::"):
                made += ["::", ""]
        elif line and inside == "paragraph":
            line = _escaped(line.strip())
        elif line and section and section != "Examples":
            line = _escaped(line)
        made.append(line)
    return made


def _said(made: list[str]) -> str:
    return next((line for line in reversed(made) if line), "")


def _escaped(text: str) -> str:
    return _MARKS.sub(lambda found: found[1] or f"\\{found[2]}", text)
