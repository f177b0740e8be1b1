"""What a step of every method costs in steps of TP-FT: all in one process, alternating.

    python benchmarks/speed/costs.py
    python benchmarks/speed/costs.py --models iconclip --methods car_ft,clip_cite --repeats 2 --out costs.json

A repeat takes one step of each method, the order turns from repeat to repeat; a ratio is of the same repeat, and the median counts. The
steps are the library's of steps.py: in float32 ("exact"), then in bfloat16 where the hardware has it ("all on"), with random images.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from library import Ours, batch_of, built
from page import between
from steps import METHODS, MODELS, kernel_of, machine, spread, timed

from surefoot.job import pick_precision
from surefoot.precision import Precision

OUT = Path(__file__).parents[1] / "docs" / "speed_costs.json"
BASE = "tp_ft"


def measured(model_name: str, names: list[str], size: int, precision: Precision, repeats: int) -> dict[str, Any]:
    """Seconds of a step of each method, and the ratios to TP-FT."""
    every = {name: Ours(name, built(model_name, precision)) for name in [BASE, *names]}
    batch = batch_of(every[BASE].model, size)
    for ours in every.values():
        ours.kernel = kernel_of(model_name, size, precision)
        ours.take(batch)  # what is computed once a run is there now
    seconds: dict[str, list[float]] = {name: [] for name in every}
    order = list(every)
    for repeat in range(repeats):
        turn = repeat % len(order)
        for name in order[turn:] + order[:turn]:
            seconds[name].append(timed(lambda name=name: every[name].take(batch)))  # type: ignore[misc]
    ratios = {name: spread([a / b for a, b in zip(seconds[name], seconds[BASE], strict=True)]) for name in names}
    return {"seconds": {name: statistics.median(taken) for name, taken in seconds.items()}, "ratios": ratios, "each": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="iconclip,ViT-B-32", help="Comma-separated.")
    parser.add_argument("--methods", default=",".join(name for name in METHODS if name != BASE), help="Comma-separated, beside TP-FT.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT, help="What is measured there already is kept.")
    given = parser.parse_args()
    made = json.loads(given.out.read_text()) if given.out.is_file() else {"models": {}}
    for model_name in given.models.split(","):
        found: dict[str, Any] = {}
        for kind, precision in (("exact", "fp32"), ("all on", pick_precision("auto", torch.device("cpu")))):
            found[kind] = measured(model_name, given.methods.split(","), MODELS.get(model_name, 32), precision, given.repeats)  # type: ignore[arg-type]
            told = ", ".join(f"{name} {between(one)}" for name, one in found[kind]["ratios"].items())
            print(f"{model_name}, {kind}, in steps of TP-FT: {told}", flush=True)
        made["models"][model_name] = found
        made |= {"machine": machine(torch.device("cpu")), "repeats": given.repeats}
        given.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
