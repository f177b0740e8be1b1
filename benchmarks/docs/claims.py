"""Which of the papers' claims hold on IconShift, each with a paired bootstrap 95% interval; writes docs/claims.md.

    python benchmarks/docs/claims.py

The claims stand in claims.toml beside this file, with the folders of the runs that they are read from. A line whose run is not there,
or not finished, stays as the page has it.

A row is RUN:METHOD@ALPHA, as `surefoot diff` takes it, or RUN:METHOD@CURVE/ALPHA: a point of a curve beside the frontier that keeps its
answers, such as curves:clip_cite@visual/0.5.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from run_results import label, split_row

from surefoot.cli.diff import Rows, compare_rows, rows_of
from surefoot.errors import MissingDataError, SurefootError
from surefoot.records import FILE, Difference, load_answers, read
from surefoot.report.frontier_lines import NAMES
from surefoot.report.runs import collect, display_name
from surefoot.report.table import header

ROOT = Path(__file__).parents[2]
STORED = tomllib.loads((Path(__file__).parent / "claims.toml").read_text(encoding="utf-8"))
PAGE = ROOT / "docs" / "claims.md"
OPEN, NOT_YET = "–", "not measured yet"


def column_of(rows: Rows, name: str) -> str:
    """The column that a short name means: "unseen" and "hm" stand for that of the one unseen set."""
    found = [column for column in rows.evaluations[0].accuracy if column == name or column.startswith(f"{name}/")]
    return found[0] if len(found) == 1 or name in found[:1] else name


def measured(test: dict[str, Any], runs: dict[str, str]) -> Difference | str:
    """The difference, or why there is none yet."""
    rows = []
    for row in (test["a"], test["b"]):
        run, _, rest = row.partition(":")
        try:
            rows.append(points_of(Path(runs[run]), rest) if "/" in split_row(rest)[1] else rows_of(f"{runs[run]}:{rest}"))
        except SurefootError:
            return NOT_YET
    try:
        return compare_rows(*in_common(*rows), [column_of(rows[0], test["on"])])[0]
    except SurefootError as error:
        return str(error)


def points_of(folder: Path, row: str) -> Rows:
    """The points of METHOD@CURVE/ALPHA, one a seed, as evaluations: those of the run, with what the point answered in place of theirs.

    Raises:
        MissingDataError: none there, or without their answers.
    """
    method, place = split_row(row)
    along, _, at = place.partition("/")
    runs = collect(read(folder))
    found = []
    for seed in runs.seeds(method):
        point = runs.curves.get((method, seed, along), {}).get(float(at))
        if point and point.answers:
            numbers = {name: len(given.label) for name, given in load_answers(folder, point.answers).items()}
            tuned = runs.runs[method, seed].points[1.0]  # its alpha stays: a point at 0 is no zero-shot model
            found.append(replace(tuned, accuracy=point.accuracy, answers=point.answers, num_images=numbers, metrics={}))
    if not found:
        raise MissingDataError(f"{folder} holds no {row} with answers. Run surefoot compare with --curves {along} into it.")
    return Rows(f"{folder}:{row}", folder, found)


def in_common(a: Rows, b: Rows) -> tuple[Rows, Rows]:
    """The rows at the seeds that both have; a zero-shot model and a soup stand against all."""
    if any(len(rows.evaluations) == 1 and (rows.evaluations[0].alpha == 0 or "soup" in rows.evaluations[0].method) for rows in (a, b)):
        return a, b
    seeds = {e.seed for e in a.evaluations} & {e.seed for e in b.evaluations}
    return (
        replace(a, evaluations=[e for e in a.evaluations if e.seed in seeds]),
        replace(b, evaluations=[e for e in b.evaluations if e.seed in seeds]),
    )


def verdict(found: Difference, expect: int) -> str:
    """Whether the claim holds: the whole interval on the side that the paper says."""
    if found.undecided:
        return "undecided"
    return "holds" if (found.mean > 0) == (expect > 0) else "**does not hold**"


def name_of(text: str) -> str:
    """A row, RUN:METHOD@ALPHA or RUN:METHOD@CURVE/ALPHA, as a reader sees it.

    Examples:
        >>> name_of("curves:clip_cite@visual/0.5"), name_of("main:flyp@0.5")
        ('CLIP-CITE, image tower alone, 0.5', 'FLYP + WiSE-FT 0.5')
        >>> name_of("without:arf")
        'ARF, pool without the unseen classes'
    """
    run, _, row = text.partition(":")
    method, place = split_row(row)
    along, slash, at = place.partition("/")
    named = f"{display_name(method)}, {NAMES.get(along, along)}, {at}" if slash else label(row)
    return ", ".join([named, *([STORED["called"][run]] if run in STORED["called"] else [])])


def standing(page: str) -> dict[tuple[str, str, str, str], tuple[str, str, str]]:
    """{(claim, what a line says, column, runs): its cells} of the lines that the page holds, as measured before.

    Examples:
        >>> standing("| C | P | A more than B | Unseen | +1.0 [+0.5, +1.5] | holds, 3 seeds (table) |")
        {('C', 'A more than B', 'Unseen', 'table'): ('Unseen', '+1.0 [+0.5, +1.5]', 'holds, 3 seeds (table)')}
    """
    found, claim = {}, ""
    for line in page.splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(row) == 6:
            claim = row[0] or claim
            if row[4] != OPEN:
                found[claim, row[2], row[3], row[5].rpartition("(")[2].rstrip(")")] = (row[3], row[4], row[5])
    return found


def below_runs(folder: Path) -> str:
    """A run's folder as the page names it.

    Examples:
        >>> below_runs(Path("/data/runs/losses/iconshift")), below_runs(Path("/elsewhere/table"))
        ('losses/iconshift', 'table')
    """
    beyond = folder.as_posix().rpartition("/runs/")[2]
    return folder.name if beyond.startswith("/") else beyond


def lines(claims: list[dict[str, Any]], runs: dict[str, str], before: str = "") -> list[str]:
    """The table: one line a test; one that cannot be measured now stays as it stands `before`."""
    known = standing(before)
    made = ["| claim | paper | here | on | difference in points, 95% interval | |", "|---|---|---|---|---|---|"]
    for claim in claims:
        for number, test in enumerate(claim["tests"]):
            found = measured(test, runs)
            sign = "more" if test["expect"] > 0 else "less"
            what = f"{name_of(test['a'])} {sign} than {name_of(test['b'])}"
            of = " and ".join(dict.fromkeys(below_runs(Path(runs[test[row].partition(":")[0]])) for row in "ab"))
            if isinstance(found, str):
                cells = (header(test["on"]), OPEN, found)
                if found == NOT_YET:
                    cells = known.get((claim["says"], what, header(test["on"]), of), cells)
            else:
                count = f"{found.num_seeds} seed{'s' * (found.num_seeds > 1)}"
                cells = (header(found.on), found.points, f"{verdict(found, test['expect'])}, {count} ({of})")
            first = (claim["says"], claim["paper"]) if number == 0 else ("", "")
            made.append("| " + " | ".join((*first, what, *cells)) + " |")
    return made


def curves(folder: Path) -> str | None:
    """A table of the curves beside the frontiers of a run: one line each, its points as "ID / avg. shifts"; None where there is no run."""
    if not (folder / FILE).is_file():
        return None
    runs = collect(read(folder))
    alphas = {method: {e.alpha for seed in runs.seeds(method) for e in runs.runs[method, seed].points.values()} for method in runs.methods}
    made = ["| | curve | points: ID / avg. shifts |", "|---|---|---|"]
    for method in (method for method in runs.methods if any(key[0] == method for key in runs.curves)):
        kinds = dict.fromkeys(key[2] for key in runs.curves if key[0] == method)
        seeds = [seed for seed in runs.seeds(method) if all((method, seed, kind) in runs.curves for kind in kinds)]
        if not seeds:
            continue
        name = f"{display_name(method)}, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
        points = {alpha: [e for e in runs.at(method, alpha) if e.seed in seeds] for alpha in sorted(alphas[method] - {0.0})}
        made.append(f"| {name} | weights interpolated, alpha | {_points(points)} |")
        for along in kinds:
            of = [runs.curves[method, seed, along] for seed in seeds]
            places = sorted({at for one in of for at in one if at or along == "visual"})
            points = {at: [one[at] for one in of] for at in places if all(at in one for one in of)}
            made.append(f"| {name} | {NAMES.get(along, along)} | {_points(points)} |")
    return "\n".join(made)


def _points(points: Mapping[float, Sequence[Any]]) -> str:
    """Means over seeds.

    Examples:
        >>> from types import SimpleNamespace
        >>> seeds = [SimpleNamespace(accuracy={"test": test, "avg_shifts": 0.5}) for test in (0.7, 0.8)]
        >>> _points({0.5: seeds})
        '0.5: 75.0 / 50.0'
    """
    cells = []
    for at, found in points.items():
        levels = [100 * sum(one.accuracy[column] for one in found) / len(found) for column in ("test", "avg_shifts")]
        cells.append(f"{at:g}: " + " / ".join(f"{level:.1f}" for level in levels))
    return "; ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    text = PAGE.read_text()
    table = "\n".join(lines(STORED["claim"], {name: str(ROOT / folder) for name, folder in STORED["runs"].items()}, text))
    print(table)
    for name, block in {"claims": table, "curves": curves(ROOT / STORED["runs"]["curves"])}.items():
        if block is not None:
            text = re.sub(
                rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.S
            )
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
