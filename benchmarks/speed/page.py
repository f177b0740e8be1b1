"""Write docs/speed.md's tables from what steps.py, frontier.py, memory.py and demo.py measured.

python benchmarks/speed/page.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parts import PARTS, price, rows

from surefoot.report.runs import display_name

DOCS = Path(__file__).parents[2] / "docs"
FOUND = Path(__file__).parents[1] / "docs"
OPEN = "Not measured yet."
KERNELS = {"math": "matrix products", "fused": "a fused kernel"}


def between(ratios: Mapping[str, float]) -> str:
    """A median ratio with the lowest and highest.

    Examples:
        >>> between({"median": 1.234, "low": 1.2, "high": 1.3})
        '1.23 [1.20, 1.30]'
    """
    return f"{ratios['median']:.2f} [{ratios['low']:.2f}, {ratios['high']:.2f}]"


def steps(made: Mapping[str, Any]) -> str:
    """One row a model and method."""
    lines = [
        "| model | method | batch | straightforward, s | exact, s | all on, s | exact: times fewer operations | exact: times faster "
        "| all on: times faster | of a matrix product's rate |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model, methods in made["models"].items():
        for name, one in methods.items():
            seconds = " | ".join(f"{one['seconds'][kind]:.2f}" for kind in ("straight", "exact", "all on"))
            ratios = " | ".join(between(one["faster"][kind]) for kind in ("exact", "all on"))
            fewer = one["operations"]["straight"] / one["operations"]["exact"]
            end = f"{fewer:.2f} | {ratios} | {one['rate_share']:.0%}"
            lines.append(f"| {model} | {display_name(name)} | {one['batch_size']} | {seconds} | {end} |")
    gaps = [one["apart"]["gradients"] for methods in made["models"].values() for one in methods.values()]
    formats = sorted({one["precision"] for methods in made["models"].values() for one in methods.values()})
    lines += [
        "",
        f"The gradients of both ways are apart by {max(gaps):.0e} at most, relative to their length. "
        f'"All on" is {" and ".join(formats)}. {kernels(made)} {made["repeats"]} repeats; {machine(made)}.',
    ]
    return "\n".join(lines)


def kernels(made: Mapping[str, Any]) -> str:
    """By which kernel attention was computed, a sentence."""
    taken: dict[str, dict[str, list[str]]] = {}
    for model, methods in made["models"].items():
        for name, one in methods.items():
            for kind, kernel in one["attention"].items():
                taken.setdefault(kind, {}).setdefault(kernel, []).append(f"{model} {display_name(name)}")
    said = []
    for kind, by in taken.items():
        where = {kernel: f" ({', '.join(rows)})" if len(by) > 1 else "" for kernel, rows in by.items()}
        said.append(f"{kind}, by {' and by '.join(KERNELS[kernel] + where[kernel] for kernel in sorted(by))}")
    return f"Attention is computed as measured at the start: {'; '.join(said)}."


def profile(made: Mapping[str, Any]) -> str:
    """The share of a step with all on by part, each with the share of a matrix product's rate that it reaches, and what half would take."""
    found = [(model, name, one) for model, methods in made["models"].items() for name, one in methods.items() if "parts" in one]
    if not found:
        return OPEN
    lines = ["| model | method | " + " | ".join(PARTS) + " |", "|---|---|" + "---:|" * len(PARTS)]
    prices = []
    for model, name, one in found:
        rate = 1e9 * one["matmul_gflops"]
        cells = {part: f"{share:.0%} ({of_rate:.0%})" for part, share, of_rate, _ in rows(one["parts"], rate)}
        lines.append(f"| {model} | {display_name(name)} | " + " | ".join(cells.get(part, "–") for part in PARTS) + " |")
        prices.append(f"- {model}, {display_name(name)}: {price(one['parts'], rate)}")
    return "\n".join([*lines, "", *prices, "", f"{machine(made)}."])


def costs(made: Mapping[str, Any]) -> str:
    """What a step costs in steps of TP-FT."""
    names = list(dict.fromkeys(name for kinds in made["models"].values() for one in kinds.values() for name in one["ratios"]))
    lines = ["| in steps of TP-FT | " + " | ".join(map(display_name, names)) + " |", "|---|" + "---:|" * len(names)]
    for model, kinds in made["models"].items():
        for kind, one in kinds.items():
            row = (between(one["ratios"][name]) if name in one["ratios"] else "–" for name in names)
            lines.append(f"| {model}, {kind} | " + " | ".join(row) + " |")
    return "\n".join([*lines, "", f"{made['repeats']} repeats; {machine(made)}."])


def frontier(made: Mapping[str, Any]) -> str:
    """One sentence."""
    one, many = made["seconds"]["one pass"], made["seconds"]["11 passes"]
    return (
        f"11 alphas over six sets, {made['images']} JPEG files of {made['side']} x {made['side']} pixels: {one:.1f} s in one pass, "
        f"{many:.1f} s in 11 passes, {between(made['faster'])} times faster, every answer the same. "
        f"{made['repeats']} repeats; {machine(made)}."
    )


def demo(made: Mapping[str, Any]) -> str:
    """One sentence."""
    before, now = (made["commits"][kind] for kind in ("before", "now"))
    return (
        f"`{made['command']}`: {made['seconds']['before']:.0f} s at {before}, {made['seconds']['now']:.0f} s at {now}, "
        f"{between(made['faster'])} times faster. {made['repeats']} repeats; {machine(made)}."
    )


def memory(made: Mapping[str, Any]) -> str:
    """One row a case."""
    lines = ["| method | step | batch | chunks of | peak of the process, GB |", "|---|---|---:|---:|---:|"]
    for row in made["rows"]:
        kind = "straightforward" if row["kind"] == "straight" else "Surefoot"
        chunk = row["chunk_size"] or "–"
        lines.append(f"| {display_name(row['method'])} | {kind} | {row['batch_size']} | {chunk} | {row['peak'] / 1e9:.1f} |")
    return "\n".join([*lines, "", f"{made['model']}, float32; {machine(made)}."])


def machine(made: Mapping[str, Any]) -> str:
    """What the figures are true of."""
    about = made["machine"]
    return f"{about['cpu']}, {about['threads']} threads, PyTorch {about['torch']}"


def main() -> None:
    path = DOCS / "speed.md"
    text = path.read_text(encoding="utf-8")
    renders = {"steps": steps, "costs": costs, "profile": profile, "frontier": frontier, "memory": memory, "demo": demo}
    for name, render in renders.items():
        source = FOUND / f"speed_{'steps' if name == 'profile' else name}.json"
        table = render(json.loads(source.read_text(encoding="utf-8"))) if source.is_file() else OPEN
        text = re.sub(
            rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text, flags=re.S
        )
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
