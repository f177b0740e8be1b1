"""What fuzzing found, and what is said of it now: a table in docs/security.md, from the cases that are kept in tests/corpus.

python benchmarks/fuzz/found.py
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from readers import READERS

from surefoot.errors import SurefootError

ROOT = Path(__file__).parents[2]
CORPUS, PAGE = ROOT / "tests" / "corpus", ROOT / "docs" / "security.md"
HEAD = ["| reader | file | what came before | cases kept | said now of the first |", "|---|---|---|---:|---|"]
LONGEST, LONGEST_WORD = 170, 60  # letters of a message that are shown


def said_of(path: Path) -> str:
    """The error's text without the folder that the case was put into; that it is read, where nothing is wrong with it."""
    with tempfile.TemporaryDirectory() as place:
        try:
            READERS[path.parent.name][1](path.name.partition("--")[2], path.read_bytes(), Path(place))
        except SurefootError as error:
            words = str(error).replace(f"{place}/", "").replace(place, "The folder").split()
            text = " ".join(word if len(word) <= LONGEST_WORD else word[:20] + "…" for word in words)
            return text if len(text) <= LONGEST else text[:LONGEST] + "…"
    return "(it is read, where the memory of a process is not bounded)" if "MemoryError" in path.name else "(it is read)"


def table(corpus: Path = CORPUS) -> str:
    """A row for each kind of finding in each file."""
    cases: dict[tuple[str, str, str], list[Path]] = {}
    for path in sorted(corpus.glob("*/*")):
        kind, _, name = path.name.partition("--")
        cases.setdefault((path.parent.name, name, kind.rpartition("-")[0]), []).append(path)
    lines = []
    for (reader, name, kind), paths in cases.items():
        said = re.sub(r"([|`<>*_\\\[\]])", r"\\\1", said_of(paths[0]))
        lines.append(f"| {reader} | {name} | {kind} | {len(paths)} | {said} |")
    return "\n".join([*HEAD, *lines])


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    filled = re.sub(r"(<!-- found: begin -->\n).*?(<!-- found: end -->)", lambda m: f"{m[1]}{table()}\n{m[2]}", text, flags=re.S)
    PAGE.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
