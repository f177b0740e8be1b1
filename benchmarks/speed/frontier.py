"""A frontier of 11 alphas over six sets in one pass over the images, against one pass for each alpha.

    python benchmarks/speed/frontier.py
    python benchmarks/speed/frontier.py --images 20 --repeats 1 --out frontier.json

The images are JPEG files of some megapixels, written anew from the embedded benchmark's, so that reading them takes most of a pass;
IconCLIP judges them. Weights theta_1 are the model's own with a little noise. Both ways alternate; the ratio is of the same repeat. The
answers of both must be the same, image by image.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from steps import machine, spread

from surefoot.data import Dataset, load
from surefoot.data.images import Budget
from surefoot.data.layout import Split
from surefoot.methods import get
from surefoot.model import load_model
from surefoot.protocols.judge import Judge, Member
from surefoot.train import start_state
from surefoot.weights import interpolate

OUT = Path(__file__).parents[1] / "docs" / "speed_frontier.json"
ALPHAS = tuple(step / 10 for step in range(11))
SETS = ("val", "test", "shifts/emoji", "shifts/flat", "shifts/pixel", "shifts/solid")
SIDE = 1600


def photographs(folder: Path, count: int) -> Dataset:
    """`count` images of each of six sets as large JPEG files."""
    found, splits = load("iconshift"), {}
    for name in SETS:
        split, paths = found.split(name), []
        rows = np.linspace(0, len(split) - 1, count).astype(int).tolist()
        for row in rows:
            path = folder / f"{name.replace('/', '-')}-{row}.jpg"
            with Image.open(split.paths[row]) as image:
                image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=92)
            paths.append(path)
        splits[name] = replace(split, paths=tuple(paths), labels=tuple(split.labels[row] for row in rows))
    train: Split = found.split("train")
    return replace(found, splits={"train": train, **splits})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="Of each set.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    model, method = load_model("iconclip"), get("tp_ft")
    with tempfile.TemporaryDirectory() as folder:
        data = photographs(Path(folder), given.images)
        start = start_state(model, data)
        generator = torch.Generator().manual_seed(0)
        tuned = {name: t + 0.02 * t.std() * torch.randn(t.shape, generator=generator) if t.numel() > 1 else t for name, t in start.items()}
        members = [Member(method, lambda alpha=alpha: interpolate(start, tuned, alpha)) for alpha in ALPHAS]  # type: ignore[misc]
        seconds: dict[str, list[float]] = {"one pass": [], "11 passes": []}
        before: list[dict[str, list[int]]] = []
        for repeat in range(given.repeats):
            for kind in sorted(seconds, reverse=bool(repeat % 2)):
                judge = Judge(model, data, start, Budget(0))  # keeps no image; theta_0, which is alpha 0, is encoded once in both ways
                began = time.perf_counter()
                groups = [[one] for one in members] if kind == "11 passes" else [members]
                found = [one for group in groups for one in judge.judge_all(group)]
                seconds[kind].append(time.perf_counter() - began)
                answers = [{name: one.prediction.tolist() for name, one in outcome.answers.items()} for outcome in found]
                if before and answers != before:
                    sys.exit("The two ways give different answers.")
                before = answers
    ratios = [a / b for a, b in zip(seconds["11 passes"], seconds["one pass"], strict=True)]
    made = {"images": given.images * len(SETS), "side": SIDE, "seconds": {k: statistics.median(v) for k, v in seconds.items()}}
    made |= {"faster": spread(ratios), "repeats": given.repeats, "machine": machine(torch.device("cpu"))}
    given.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{made['seconds']}; {made['faster']} times faster, answers identical")


if __name__ == "__main__":
    main()
