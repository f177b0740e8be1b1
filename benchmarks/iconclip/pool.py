"""A pool of image-text pairs for retrieval: a seeded sample of IconCLIP's pre-training icons with one caption each.

    python benchmarks/iconclip/pool.py --cache CACHE --out FOLDER

Writes images/<set>/<icon>.webp and manifest.csv (path, caption, set, style). Every pair is screened against the benchmark as the
pre-training corpus is.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

import numpy as np
from PIL import Image

import corpus as corpora

NUM_PAIRS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-pairs", type=int, default=NUM_PAIRS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    corpus = corpora.build(given.cache)
    chosen = np.random.default_rng(given.seed).choice(len(corpus.icons), given.num_pairs, replace=False)
    rng = random.Random(given.seed)
    rows = []
    for r in sorted(chosen):
        icon = corpus.icons[r]
        path = Path("images") / icon.set_name / f"{icon.name}.webp"
        (given.out / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(corpus.pictures[r]).save(given.out / path, lossless=True, quality=100, method=6)
        rows.append((path.as_posix(), corpora.caption(icon, bool(corpus.coloured[r]), False, rng), icon.set_name, icon.style))
    with (given.out / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "caption", "set", "style"), *rows])
    print(len(rows), "pairs")


if __name__ == "__main__":
    main()
