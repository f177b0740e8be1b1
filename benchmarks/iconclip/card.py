"""Write the model card of IconCLIP: architecture, training curve, and zero-shot numbers measured now.

python benchmarks/iconclip/card.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from surefoot.data import load
from surefoot.methods import get
from surefoot.model import EMBEDDED, load_model
from surefoot.protocols import Judge
from surefoot.train import start_state

HERE = Path(__file__).parent
GOALS = {"test": ("ID", 68), "unseen/outline": ("unseen classes", 62), "avg_shifts": ("mean of shifts", 45), "context": ("context", 60)}
LOWEST_SHIFT = 25
CORPUS = {"icons": 153_187, "screened": 15_865, "repeats": 11_986, "held_out": 2000, "epochs": 24, "per_epoch": 295}


def table(head: list[str], rows: list[list[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def main() -> None:
    model, dataset = load_model("iconclip"), load("iconshift")
    start = start_state(model, dataset)
    accuracy = {name: 100 * value for name, value in Judge(model, dataset, start).judge(get("zero_shot"), start).accuracy.items()}
    shifts = [name for name in accuracy if name.startswith("shifts/")]
    rows: list[list[object]] = [[label, f"{accuracy[key]:.1f}", goal] for key, (label, goal) in GOALS.items()]
    rows += [[name.removeprefix("shifts/"), f"{accuracy[name]:.1f}", LOWEST_SHIFT] for name in shifts]
    short = [f"{label} by {float(goal) - float(value):.1f} points" for label, value, goal in rows if float(value) < float(goal)]  # type: ignore[arg-type]
    config = json.loads((HERE / "config.json").read_text())["model_cfg"]
    vision, text = config["vision_cfg"], config["text_cfg"]
    curve = [json.loads(line) for line in (HERE / "curve.jsonl").read_text().splitlines()]
    epochs = [[line["epoch"], f"{100 * line['held_out_names_at_1']:.1f}"] for line in curve if "epoch" in line]
    folder = EMBEDDED / "iconclip"
    contexts = [[name.removeprefix("context/"), f"{value:.1f}"] for name, value in accuracy.items() if name.startswith("context/")]
    filled = (HERE / "card.md").read_text().format(
        layers=vision["layers"],
        width=vision["width"],
        size=vision["image_size"],
        patch=vision["patch_size"],
        text_layers=text["layers"],
        text_width=text["width"],
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        mega=sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
        curve=table(["epoch", *(str(e) for e, _ in epochs)], [["%", *(v for _, v in epochs)]]),
        results=table(["", "IconCLIP", "goal"], rows),
        missed=f"Missed: {'; '.join(short)}." if short else "All goals are met.",
        contexts=table([name for name, _ in contexts], [[value for _, value in contexts]]),
        tried=(HERE / "tried.md").read_text().strip(),
        **CORPUS,
    )  # fmt: skip
    (EMBEDDED / "iconclip.md").write_text(filled)
    print(EMBEDDED / "iconclip.md", "on torch", torch.__version__)


if __name__ == "__main__":
    main()
