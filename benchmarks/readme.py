"""Put the table, the picture and the differences of a finished run into the README (short) and docs/iconshift.md (whole); of one on the
second benchmark into the README of benchmarks/iconshift.

python benchmarks/readme.py runs/iconshift
python benchmarks/readme.py runs/solid
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "docs"))
from run_results import label, open_run, written

from surefoot import records
from surefoot.report import markdown, rows
from surefoot.report.table import columns, header

ROOT = Path(__file__).parents[1]
SHORT = ("test", "avg_shifts", "shifts/emoji", "shifts/3d-emoji", "unseen/outline", "joint_hm/outline", "context", "agreement")
DIFFERENCES = ("test", "avg_shifts", "shifts/emoji", "shifts/3d-emoji", "shifts/hand-drawn", "unseen/outline", "context", "agreement")
MAIN = ("tp_ft", "flyp")  # of the others the README shows less
VALIDATED = " + WiSE-FT (ID val.)"


def differences(folder: Path, pairs: list[tuple[str, str]], shown: tuple[str, ...], labels: dict[str, str]) -> str:
    """A table of differences in points, with 95% intervals; those that hold 0 in brackets."""
    found = {(d.a, d.b, d.on): d for d in records.read(folder) if isinstance(d, records.Difference)}
    lines = ["| " + " | ".join(["", *(header(column) for column in shown)]) + " |", "|" + "---|" * (len(shown) + 1)]
    for a, b in pairs:
        cells = []
        for column in shown:
            if (d := found.get((a, b, column))) is None:
                cells.append("–")
                continue
            cells.append(f"({d.points})" if d.undecided else d.points)
        lines.append(f"| {labels[a]} minus {labels[b]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fill(text: str, name: str, content: str) -> str:
    pattern = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.S)
    return pattern.sub(lambda match: f"{match[1]}{unbroken(content.strip())}\n{match[2]}", text)


def unbroken(text: str) -> str:
    """The same with spaces at which no line breaks: a figure stays beside its spread, and an interval is not torn."""
    return re.sub(
        r"(?<= \[)([+-][\d.]+), (?=[+-][\d.]+\])", "\\1,\N{NO-BREAK SPACE}", text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
    )


def paired(folder: Path, methods: list[str], shown: tuple[str, ...]) -> str:
    """Every method minus zero-shot and minus TP-FT, and with validated alpha minus itself, in points; those that hold 0 in brackets."""
    run = open_run(folder)
    lines = ["| " + " | ".join(["", *(header(column) for column in shown)]) + " |", "|" + "---|" * (len(shown) + 1)]
    for a, b in (pair for name in methods for pair in ((name, "zero_shot"), (name, "tp_ft"), (f"{name}@val", name)) if pair[0] != pair[1]):
        lines.append(f"| {label(a)} minus {label(b)} | " + " | ".join(written(run.difference(a, b, column)) for column in shown) + " |")
    return "\n".join(lines)


def second(folder: Path) -> None:
    """The table of the second benchmark, its differences, and the learning rates that ID validation chose."""
    found = list(records.read(folder))
    table = rows(found)
    labels = {row.name: row.label for row in table}
    methods = [row.name for row in table if " + " not in row.name and row.name != "zero_shot"]
    each = tuple(column for column in columns(table) if not column.startswith("context_own"))
    rates: dict[str, set[str]] = {}
    for one in found:
        if isinstance(one, records.Evaluation) and one.alpha == 1 and one.method != "lp":  # whose rate is its head's own
            rates.setdefault(labels[one.method], set()).add(f"{one.settings['learning_rate']:g}")
    chosen = ", ".join(f"{name} {' or '.join(sorted(of))}" for name, of in rates.items())
    begin = f"Learning rates that ID validation chose: {chosen}."
    content = "\n\n".join([begin, markdown(table), "Differences:", paired(folder, methods, each)])
    page = ROOT / "benchmarks" / "iconshift" / "README.md"
    page.write_text(fill(page.read_text(), "solid-table", content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    found = list(records.read(given.run))
    if any(isinstance(one, records.Evaluation) and one.dataset == "solid" for one in found):
        second(given.run)
        return
    table = rows(found)
    labels = {row.name: row.label for row in table}
    methods = [row.name for row in table if " + " not in row.name and row.name != "zero_shot"]
    short = [row for row in table if row.method in MAIN or "0.5" not in row.name]
    whole = [pair for name in methods for pair in ((name, "zero_shot"), (f"{name} + WiSE-FT 0.5", name), (name + VALIDATED, name))]
    pairs = [(a, b) for a, b in whole if b == "zero_shot" or b in MAIN]
    readme, page = ROOT / "README.md", ROOT / "docs" / "iconshift.md"
    text = fill(readme.read_text(), "table", markdown(short, [column for column in columns(table) if column in SHORT]))
    readme.write_text(fill(text, "claims", differences(given.run, pairs, DIFFERENCES, labels)))
    text = fill(page.read_text(), "table", markdown(table))
    each = tuple(column for column in columns(table) if column != "agreement")
    page.write_text(fill(text, "claims", differences(given.run, whole, each, labels)))
    shutil.copy(given.run / "report" / "frontier.svg", ROOT / "docs" / "frontier.svg")


if __name__ == "__main__":
    main()
