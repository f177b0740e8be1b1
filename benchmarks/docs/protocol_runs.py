"""Put finished protocols into docs/protocol-results.md: seeds, table, picture and differences between the methods.

    python benchmarks/docs/protocol_runs.py
    python benchmarks/docs/protocol_runs.py --runs runs

The sections stand in protocol_runs.toml beside this file, each with the folder of its run below `--runs`. A section whose run is not
there, or not finished, stays as the page has it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

from surefoot import records
from surefoot.errors import DataError, SurefootError
from surefoot.report import series_markdown
from surefoot.report.runs import ZERO_SHOT, display_name
from surefoot.report.series import PICTURE
from surefoot.report.series_rows import Standing, sentences, standing_of, telling

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTHING = "Not run yet."
BLOCK = "<!-- {name}: begin -->\n{text}\n<!-- {name}: end -->"
HEAD = """# Protocols on IconShift

The [protocols](protocols.md) with IconCLIP, at full size. A section comes from its command, which goes on where it was interrupted, and
`python benchmarks/docs/protocol_runs.py` writes this page from the runs. Settings are those of the embedded recipe but for what a command
says; nothing was tuned. All were made in bfloat16 on an AMD EPYC, one thread each, before towers left out what their last block need
not compute and took texts as trees ([speed](speed.md)), which rounds otherwise (zero-shot is 60.3 / 45.8 now, 60.2 / 45.7 here). Cells
are top-1 accuracy in percent, mean ± standard deviation over seeds; differences are in points with paired bootstrap 95% intervals over
images and seeds, in brackets where undecided."""


def body(folder: Path, docs: Path) -> str:
    """What the page says of a run.

    Raises:
        DataError: it is not finished.
    """
    found = list(records.read(folder))
    table = standing_of(found)
    picture = Path("pictures") / f"{folder.name}.svg"
    (docs / picture).parent.mkdir(exist_ok=True)
    shutil.copy(folder / "report" / PICTURE, docs / picture)
    seeds = sorted({seed for own in table.seeds.values() for seed in own})
    lines = [
        f"Seeds {', '.join(map(str, seeds))}; {made_by(folder)}. " + " ".join(table.series.notes),
        "\n".join(f"- {sentence}" for sentence in sentences(table)),
        series_markdown(found).strip(),
        f"![{table.series.protocol}]({picture.as_posix()})",
        differences(table),
    ]
    return "\n\n".join(line.strip("\n") for line in lines if line.strip())


def made_by(folder: Path) -> str:
    """Precision and versions of the runs of all parts.

    Raises:
        DataError: no part is finished.
    """
    each = (record for part in sorted(folder.glob(f"*/{records.FILE}")) for record in records.read(part.parent))
    of = {
        f"{one.settings['precision']}, torch {one.provenance['torch']}, {one.provenance['machine']}"
        for one in each
        if isinstance(one, records.Evaluation) and one.method != ZERO_SHOT
    }
    if not of:
        raise DataError(f"{folder} holds no run of a method. Let its command go on.")
    return " and ".join(sorted(of))


def differences(table: Standing) -> str:
    """Differences between rows that fine-tune, on the columns that sum the table up."""
    shown = telling(table)
    rows = dict.fromkeys((a, b) for a, b, _ in table.differences if b != ZERO_SHOT)
    lines = ["| | " + " | ".join(table.headings[column] for column in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for a, b in rows:
        found = [table.differences.get((a, b, column)) for column in shown]
        cells = ["–" if one is None else f"({one.points})" if one.undecided else one.points for one in found]
        lines.append(f"| {display_name(a)} minus {display_name(b)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def page(sections: list[dict[str, Any]], runs: Path, docs: Path, text: str) -> str:
    """The page, with what the runs hold; of the others what `text`, the page as it was, says."""
    parts = [HEAD]
    for section in sections:
        name = section["run"]
        try:
            _same(section["command"], runs / name)
            made = body(runs / name, docs)
        except SurefootError:
            before = re.search(BLOCK.format(name=re.escape(name), text="(.*?)"), text, re.S)
            made = before[1] if before else NOTHING
        heading, typed = f"## {section['title']}", f"```sh\n{section['command']}\n```"
        parts += [heading, section["says"].strip(), typed, BLOCK.format(name=name, text=made)]
    return "\n\n".join(parts) + "\n"


def _same(command: str, folder: Path) -> None:
    """Refuse a run that another command made."""
    path = folder / "command.txt"
    if path.is_file() and (made := path.read_text(encoding="utf-8").strip()) != command:
        raise SystemExit(f"{path} says '{made}', and protocol_runs.toml '{command}'. Run that one, or write down this one.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="the folder of the runs")
    given = parser.parse_args()
    path = DOCS / "protocol-results.md"
    stored = tomllib.loads((Path(__file__).parent / "protocol_runs.toml").read_text(encoding="utf-8"))
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    path.write_text(page(stored["section"], given.runs, DOCS, before), encoding="utf-8")


if __name__ == "__main__":
    main()
