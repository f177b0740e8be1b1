"""Render docs/methods/*.md, docs/choosing.md and docs/papers.md from one template each.

    python benchmarks/docs/build.py
    python benchmarks/docs/build.py --run runs/iconshift

What is said of a method comes from its factory and its Method value, what a step costs from step_cost.json, the papers' figures from
papers.toml. Our results stand between markers: `--run` (more than one may be given) writes those that the run holds anew, all others
stay as they are.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from method_facts import facts, names, stored
from run_results import Kind, Run, difference_label, differences, label, levels, open_run, results_of, title

from surefoot.report.runs import display_name

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
IMAGES = 3053
"""Training images of IconShift."""
OPEN, NOTHING = "not measured yet", "Not measured yet."
BLOCK = re.compile(r"<!-- results: begin -->\n(.*?)\n<!-- results: end -->", re.S)
CELL = "<!-- {key}: begin -->{text}<!-- {key}: end -->"
WHOLE = Kind("iconshift", None, False)
"""What the pages of the methods and the choice show: all of IconShift's training images."""
STATES = {"data": "needs data that are not shipped", "open": "not built yet", "drawing": "nothing to measure"}


def pages(runs: Sequence[Run] = (), docs: Path = DOCS) -> dict[Path, str]:
    """{file: its text}, with the results of `runs`, and of the files as they stand for what no run has."""
    given, cost = stored()["page"], costs()
    every = {name: facts(name) for name in names()}
    made = {docs / "methods" / f"{name}.md": method_page(fact, given[name], cost, runs, docs) for name, fact in every.items()}
    titles = {name: fact["title"] for name, fact in every.items()}
    return made | {docs / "choosing.md": choosing(titles, runs, docs), docs / "papers.md": papers(runs, docs), **table_page(cost, docs)}


def table_page(cost: Mapping[str, Any], docs: Path) -> dict[Path, str]:
    """docs/iconshift.md with what an epoch takes by each method, from step_cost.json."""
    path = docs / "iconshift.md"
    if not cost or not path.is_file():
        return {}
    steps = IMAGES // cost["batch_size"]
    names = [name for name in cost["methods"] if name != "lp"]
    lines = [
        "| " + " | ".join(display_name(name) for name in names) + " |", "|" + "---:|" * len(names),
        "| " + " | ".join(f"{steps * cost['methods'][name]['seconds']:.1f}" for name in names) + " |", "",
        f"{steps} steps of {cost['batch_size']}, {cost['precision']}, {cost['machine']['cpu']}, {cost['machine']['threads']} threads; "
        "validation not counted.",
    ]  # fmt: skip
    block = "<!-- epoch: begin -->\n{}\n<!-- epoch: end -->"
    begin, end = (re.escape(part) for part in block.split("{}"))
    text = path.read_text(encoding="utf-8")
    return {path: re.sub(f"{begin}.*?{end}", lambda _: block.format("\n".join(lines)), text, flags=re.S)}


def method_page(fact: Mapping[str, Any], page: Mapping[str, Any], cost: Mapping[str, Any], runs: Sequence[Run], docs: Path) -> str:
    """The page of one method."""
    found = [text for run in runs if run.kind == WHOLE and (text := results_of(run, fact["name"], fact["finish"]))]
    given = [(tables()[one["table"]], one["rows"]) for one in page["shown"]]
    return render(
        "method.md.j2",
        **fact,
        cost=page.get("cost") or spent(fact["name"], cost),
        results=found[-1] if found else kept(docs / "methods" / f"{fact['name']}.md"),
        shown=[{"title": table["title"], "markdown": markdown(table, rows)} for table, rows in given],
        says=page.get("says"),
    )


def choosing(titles: Mapping[str, str], runs: Sequence[Run], docs: Path) -> str:
    """docs/choosing.md."""
    rows = tomllib.loads((HERE / "choosing.toml").read_text(encoding="utf-8"))["row"]
    before = dict(re.findall(r"^\| (.*?) \| (.*) \|$", kept(docs / "choosing.md"), re.M))
    shown = [(row["have"], text) for row in rows if (text := row_differences(row, runs, before))]
    table = "\n".join(["| you have | measured here |", "|---|---|", *(f"| {have} | {text} |" for have, text in shown)])
    return render("choosing.md.j2", rows=rows, titles=titles, results=table if shown else NOTHING)


def row_differences(row: Mapping[str, Any], runs: Sequence[Run], before: Mapping[str, str]) -> str:
    """The differences of one row: of the last run that has one, else as they stand if they are of what is asked for now; "" for none."""
    found = [lines for run in runs if run.kind == WHOLE and (lines := differences(run, row["measure"]))]
    if found:
        return "<br>".join(found[-1])
    stand = before.get(row["have"], "")
    wanted = tuple(difference_label(one) for one in row["measure"])
    return stand if stand and all(line.startswith(wanted) for line in stand.split("<br>")) else ""


def papers(runs: Sequence[Run], docs: Path) -> str:
    """docs/papers.md."""
    path = docs / "papers.md"
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    shown = []
    for paper in paper_map()["paper"]:
        items = [item_row(key_of(paper["name"], item), item, runs, before) for item in paper["item"]]
        shown.append({"name": paper["name"], "title": paper["title"], "note": paper["note"], "rows": items})
    return render("papers.md.j2", papers=shown)


def key_of(paper: str, item: Mapping[str, Any]) -> str:
    """What marks an item's cell, wherever in the table it stands.

    Examples:
        >>> key_of("FLYP", {"number": "fig. 3", "shows": "few-shot ImageNet (4, 16, 32), ensembled"})
        'FLYP fig 3 few shot ImageNet 4 16 32 ensembled'
    """
    return " ".join(re.findall(r"\w+", f"{paper} {item['number']} {item['shows']}"))[:60]


def item_row(key: str, item: Mapping[str, Any], runs: Sequence[Run], before: str) -> dict[str, str]:
    """The cells of one table or figure of a paper."""
    state = STATES.get(item["state"], "")
    ours = "–"
    if "ours" in item:
        text = our_figures(item, runs) or kept_cell(key, item, before)
        ours, state = CELL.format(key=key, text=text), "measured here" if text != OPEN else f"runs, {OPEN}"
    elif not state:
        ours, state = (OPEN, f"runs, {OPEN}") if item.get("figure", True) else ("–", "runs; no figure to compare")
    if "elsewhere" in item and OPEN in ours:
        ours, state = f"[our figures]({item['elsewhere']})", "measured elsewhere"
    note = f" ({item['note']})" if "note" in item else ""
    command = f"`{item['command']}`" if "command" in item else "–"
    return {
        "number": item["number"],
        "shows": item["shows"],
        "command": command,
        "state": state + note,
        "theirs": theirs(item),
        "ours": ours,
    }


def theirs(item: Mapping[str, Any]) -> str:
    """Their figures: the rows of a table, columns in italics, or what the text says."""
    if "theirs" not in item:
        return str(item["says"])
    table, rows = tables()[item["theirs"]["table"]], item["theirs"]["rows"]
    columns = item["theirs"].get("columns", table["columns"])
    place = [table["columns"].index(column) for column in columns]
    lines = [f"{row}: " + " / ".join(_number(table["rows"][row][n], table) for n in place) for row in rows]
    return "<br>".join([f"_{' / '.join(columns)}_", *lines])


def our_figures(item: Mapping[str, Any], runs: Sequence[Run]) -> str:
    """Our figures from the last run of each kind that the item's command makes and that holds all of its rows; "" without one."""
    ours, lines = item["ours"], list[str]()
    fit = [run for run in runs if run.mixed in ((), mixed_by(item["command"]))]
    for kind in kinds_of(item["command"]):
        found = [made for run in fit if run.kind == kind and (made := levels(run, ours["rows"], ours["columns"], ours.get("settings", {})))]
        lines += [_of_shots(line, kind) for line in (found[-1] if found else [])]
    return "<br>".join([heading(ours["columns"]), *lines]) if lines else ""


def kept_cell(key: str, item: Mapping[str, Any], before: str) -> str:
    """Our figures as they stand, if they are of the rows and columns that are asked for now."""
    begin, end = (re.escape(part) for part in CELL.format(key=key, text="\0").split("\0"))
    found = re.search(f"{begin}(.*?){end}", before)
    first, *lines = found[1].split("<br>") if found else [""]
    ours, kinds = item["ours"], kinds_of(item["command"])
    wanted = {_of_shots(f"{line}: ", kind).rpartition(": ")[0] for kind in kinds for line in map(label, ours["rows"])}
    fits = first == heading(ours["columns"]) and lines and {line.rpartition(": ")[0] for line in lines} <= wanted
    return found[1] if found and fits else OPEN


def kinds_of(command: str) -> list[Kind]:
    """What a `surefoot compare` trains on; of a command that works on a finished run all of IconShift.

    Examples:
        >>> kinds_of("surefoot compare iconshift --methods flyp --shots 1,2")
        [Kind(data='iconshift', shots=1, base_to_new=False), Kind(data='iconshift', shots=2, base_to_new=False)]
    """
    _, name, data, *rest = shlex.split(command)
    if name != "compare":
        return [WHOLE]
    shots = [int(text) for text in rest[rest.index("--shots") + 1].split(",")] if "--shots" in rest else [None]
    return [Kind(data, count, "--base-to-new" in rest) for count in shots]


def mixed_by(command: str) -> tuple[str, ...]:
    """The methods whose runs a `surefoot soup` mixes.

    Examples:
        >>> mixed_by("surefoot soup runs/car:car_ft --out runs/soups"), mixed_by("surefoot compare iconshift")
        (('car_ft',), ())
    """
    _, name, *sources = shlex.split(command)
    return tuple(source.partition(":")[2] for source in sources if ":" in source) if name == "soup" else ()


def heading(columns: Sequence[str]) -> str:
    """The first line of our figures."""
    return f"_{' / '.join(title(column, columns) for column in columns)}_"


def kept(path: Path) -> str:
    """The results of a page as they stand."""
    found = BLOCK.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found[1] if found else NOTHING


def markdown(table: Mapping[str, Any], rows: Sequence[str]) -> str:
    """Some rows of a paper's table."""
    lines = ["| | " + " | ".join(table["columns"]) + " |", "|---|" + "---:|" * len(table["columns"])]
    return "\n".join([*lines, *(f"| {row} | " + " | ".join(_number(value, table) for value in table["rows"][row]) + " |" for row in rows)])


def spent(name: str, cost: Mapping[str, Any]) -> str:
    """What a step costs beside TP-FT's, and where that was measured."""
    if name == "zero_shot":
        return "No step is taken."
    if name not in cost.get("methods", {}):
        return f"{NOTHING[:-1]}: `python benchmarks/step_cost.py` measures it."
    one, machine = cost["methods"][name], cost["machine"]
    time, memory = one["time"], one["memory"]
    ratio = f"{time['median']:.2f} times the time of a TP-FT step ({time['low']:.2f} to {time['high']:.2f} in {cost['repeats']} repeats)"
    added = "" if memory is None else f", and {memory['median']:.2f} times the memory that such a run adds"
    where = f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}"
    what = f"{cost['data']}, {cost['model']}, batch {cost['batch_size']}, {cost['precision']}, {where}"
    return f"{ratio}{added}: {what}; steps of all methods in turns: [speed](../speed.md)."


def costs() -> dict[str, Any]:
    """What benchmarks/step_cost.py wrote, if it ran."""
    path = HERE / "step_cost.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


@cache
def paper_map() -> dict[str, Any]:
    """papers.toml."""
    return tomllib.loads((HERE / "papers.toml").read_text(encoding="utf-8"))


def tables() -> dict[str, Any]:
    """The papers' tables."""
    return dict(paper_map()["table"])


def render(template: str, **values: object) -> str:
    """Fill one of the templates that lie beside this file; Markdown, so nothing is escaped."""
    loader = FileSystemLoader(HERE)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return environment.get_template(template).render(values)


def _of_shots(line: str, kind: Kind) -> str:
    """A line that names its shots."""
    name, colon, value = line.rpartition(": ")  # a name may hold a colon, as "layers=visual[:3]" does
    return line if kind.shots is None else f"{name}, {kind.shots} shot{'s' if kind.shots > 1 else ''}{colon}{value}"


def _number(value: float, table: Mapping[str, Any]) -> str:
    """As printed: with two decimals where any figure of its table has two."""
    fine = any(round(one, 1) != one for row in table["rows"].values() for one in row)
    return f"{value:.{2 if fine else 1}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, action="append", default=[], help="A folder that 'surefoot compare' wrote.")
    given = parser.parse_args()
    for path, text in pages([open_run(folder) for folder in given.run]).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
