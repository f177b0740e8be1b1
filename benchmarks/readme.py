"""Put the table, the picture and the differences of a finished run into the README.

python benchmarks/readme.py runs/iconshift
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from surefoot import records

ROOT = Path(__file__).parents[1]
COLUMNS = ("test", "avg_shifts", "shifts/emoji", "shifts/3d-emoji", "shifts/hand-drawn", "unseen/outline", "context", "context_own")
PAIRS = (
    ("tp_ft", "zero_shot"),
    ("tp_ft + WiSE-FT 0.5", "tp_ft"),
    ("tp_ft + WiSE-FT (ID val.)", "tp_ft"),
    ("flyp", "zero_shot"),
    ("flyp + WiSE-FT 0.5", "flyp"),
    ("flyp + WiSE-FT (ID val.)", "flyp"),
)
NAMES = {"tp_ft": "TP-FT", "flyp": "FLYP", "zero_shot": "zero-shot"}


def called(row: str) -> str:
    method, plus, finish = row.partition(" + ")
    return NAMES[method] + plus + finish


def differences(folder: Path) -> str:
    """A table of differences in points, with 95% intervals; those that hold 0 in brackets."""
    found = {(d.a, d.b, d.on): d for d in records.read(folder) if isinstance(d, records.Difference)}
    head = ["", *(c.rpartition("/")[2].replace("test", "ID").replace("outline", "unseen").replace("_", " ") for c in COLUMNS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for a, b in PAIRS:
        cells = []
        for column in COLUMNS:
            d = found[a, b, column]
            text = f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
            cells.append(f"({text})" if d.undecided else text)
        lines.append(f"| {called(a)} minus {called(b)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fill(text: str, name: str, content: str) -> str:
    pattern = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.S)
    return pattern.sub(lambda match: f"{match[1]}{content.strip()}\n{match[2]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    readme = ROOT / "README.md"
    text = fill(readme.read_text(), "table", (given.run / "report" / "table.md").read_text())
    intro = (
        "Differences in points with paired bootstrap 95% intervals over images and seeds; those that hold 0 are undecided, in brackets:\n\n"
    )
    readme.write_text(fill(text, "claims", intro + differences(given.run)))
    shutil.copy(given.run / "report" / "frontier.svg", ROOT / "docs" / "frontier.svg")
    print(differences(given.run))


if __name__ == "__main__":
    main()
