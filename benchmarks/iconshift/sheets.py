"""Contact sheets of a built benchmark: one picture a split, one row a class, to be looked at before the class list is frozen.

    python benchmarks/iconshift/sheets.py BENCHMARK SHEETS [--per-class 24] [--sample 300]

With --sample N also `sample.png` and `sample.json`: N images drawn at random over all splits, numbered, for judging labels by eye.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

CELL, LABEL = 50, 120


def sheet(rows: list[tuple[str, list[Path]]], per_class: int) -> Image.Image:
    canvas = Image.new("RGB", (LABEL + per_class * CELL, len(rows) * CELL), "white")
    draw = ImageDraw.Draw(canvas)
    for y, (name, paths) in enumerate(rows):
        draw.text((3, y * CELL + 18), name, fill="black")
        for x, path in enumerate(paths[:per_class]):
            canvas.paste(Image.open(path).convert("RGB"), (LABEL + x * CELL, y * CELL))
    return canvas


def sample_sheet(paths: list[Path], columns: int = 15) -> Image.Image:
    width, height = 100, 74
    canvas = Image.new("RGB", (columns * width, -(-len(paths) // columns) * height), "white")
    draw = ImageDraw.Draw(canvas)
    for k, path in enumerate(paths):
        x, y = k % columns * width, k // columns * height
        canvas.paste(Image.open(path).convert("RGB"), (x + 24, y))
        draw.text((x + 2, y + 2), str(k), fill="red")
        draw.text((x + 2, y + 52), path.parent.name[:16], fill="black")
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path)
    parser.add_argument("sheets", type=Path)
    parser.add_argument("--per-class", type=int, default=24)
    parser.add_argument("--sample", type=int, default=0)
    given = parser.parse_args()
    given.sheets.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for split in sorted({path.parent.parent for path in given.benchmark.rglob("*.webp")}):
        rows = [(c.name, rng.sample(files, len(files))) for c in sorted(split.iterdir()) if (files := sorted(c.glob("*.webp")))]
        for part in range(0, len(rows), 34):
            name = f"{split.relative_to(given.benchmark).as_posix().replace('/', '-')}-{part // 34}.png"
            sheet(rows[part : part + 34], given.per_class).save(given.sheets / name)
    if given.sample:
        chosen = rng.sample(sorted(given.benchmark.rglob("*.webp")), given.sample)
        for part in range(0, len(chosen), 150):
            sample_sheet(chosen[part : part + 150]).save(given.sheets / f"sample-{part // 150}.png")
        (given.sheets / "sample.json").write_text(json.dumps([p.relative_to(given.benchmark).as_posix() for p in chosen], indent=0))


if __name__ == "__main__":
    main()
