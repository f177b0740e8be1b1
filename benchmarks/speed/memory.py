"""The most memory that steps of FLYP take, at batch 512 in chunks beside the straightforward step; each in a process of its own.

    python benchmarks/speed/memory.py
    python benchmarks/speed/memory.py --methods flyp,arf --batch-sizes 64 --out memory.json

ViT-B/32 with random weights in float32, one step after one to warm up. The straightforward step is measured at the first, small batch
alone. Peak of the process, the weights, moments and Python itself included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from library import Ours, batch_of, built
from steps import machine, straight_of

from surefoot.bench import peak_bytes

OUT = Path(__file__).parents[1] / "docs" / "speed_memory.json"
MODEL = "ViT-B-32"


def peak_of(kind: str, name: str, size: int, chunk_size: int | None) -> float:
    """Bytes at the peak of this process after two steps."""
    if kind == "straight":
        steps: Any = straight_of(name, MODEL)
        batch = batch_of(built(MODEL), size)
    else:
        model = built(MODEL)
        steps, batch = Ours(name, model, chunk_size=chunk_size), batch_of(model, size)
    for _ in range(2):
        steps.take(batch)
    return peak_bytes(torch.device("cpu"))


def apart(kind: str, name: str, size: int, chunk_size: int | None) -> float:
    """The same of a process of its own."""
    words = ["--worker", kind, "--methods", name, "--batch-sizes", str(size), "--chunk-size", str(chunk_size or 0)]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{kind} {name} {size} failed:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="flyp")
    parser.add_argument("--batch-sizes", default="64,512", help="Comma-separated; the straightforward step is measured at the first.")
    parser.add_argument("--chunk-size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=OUT, help="What was measured there of other cases is kept.")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes, methods = [int(size) for size in given.batch_sizes.split(",")], given.methods.split(",")
    if given.worker:
        print(peak_of(given.worker, methods[0], sizes[0], given.chunk_size or None))
        return
    rows = json.loads(given.out.read_text(encoding="utf-8"))["rows"] if given.out.is_file() else []
    for name in methods:
        cases = [("straight", sizes[0], None), ("ours", sizes[0], None), *(("ours", size, given.chunk_size) for size in sizes)]
        for kind, size, chunk in cases:
            case = {"method": name, "kind": kind, "batch_size": size, "chunk_size": chunk}
            peak = apart(kind, name, size, chunk)
            rows = [row for row in rows if any(row[key] != case[key] for key in case)] + [case | {"peak": peak}]
            print(f"{name} {kind} batch {size} chunks of {chunk}: {peak / 1e9:.2f} GB", flush=True)
    given.out.write_text(
        json.dumps({"model": MODEL, "rows": rows, "machine": machine(torch.device("cpu"))}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
