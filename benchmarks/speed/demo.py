"""How much faster `make demo` got: its command at two commits of this repository, one after the other.

    python benchmarks/speed/demo.py --before v0.0.1
    python benchmarks/speed/demo.py --before HEAD~50 --command "compare iconshift --methods tp_ft --seeds 0 --set steps=2" --out demo.json

Each commit is checked out into a worktree of its own, which goes away again; uncommitted changes do not count. Both run in the Python
that runs this script, with the same cache of unpacked data, which a first, short command of each fills (`surefoot check`). A repeat runs
both, the order turns from repeat to repeat, and every run writes into an empty folder. The ratio is of the same repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from steps import machine, spread

ROOT = Path(__file__).parents[2]
OUT = Path(__file__).parents[1] / "docs" / "speed_demo.json"
DEMO = "compare iconshift"
ENTRY = "from surefoot.cli import main; main()"  # as the console script does; the oldest commits have no `python -m surefoot`
KINDS = ("before", "now")


def git(*words: str) -> str:
    """What git says."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"git {' '.join(words)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """The repository as it was at a commit."""
    git("worktree", "add", "--quiet", "--detach", str(folder), commit)
    try:
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))


def run(tree: Path, words: list[str]) -> float:
    """Seconds of a command of the library as it stands in a worktree."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", ENTRY, *words], capture_output=True, text=True, env=environment, cwd=tree, check=False)
    if done.returncode:
        sys.exit(f"surefoot {' '.join(words)} failed at {tree.name}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - began


def measured(commits: dict[str, str], words: list[str], repeats: int) -> dict[str, list[float]]:
    """Seconds of the command at each commit."""
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with checked_out(commits["before"], folder / "before") as before, checked_out(commits["now"], folder / "now") as now:
            trees = {"before": before, "now": now}
            for tree in trees.values():
                run(tree, ["check", words[1]])
            for repeat in range(repeats):
                for kind in KINDS if repeat % 2 == 0 else reversed(KINDS):
                    seconds[kind].append(run(trees[kind], [*words, "--out", str(folder / f"{kind}-{repeat}")]))
                print(f"repeat {repeat + 1}: " + ", ".join(f"{kind} {seconds[kind][-1]:.1f} s" for kind in KINDS), flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="The older commit.")
    parser.add_argument("--now", default="HEAD")
    parser.add_argument("--command", default=DEMO, help="What `make demo` types behind surefoot, without --out; both commits must know it.")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    words, named = shlex.split(given.command), {"before": given.before, "now": given.now}
    if len(words) < 2:
        sys.exit(f"--command is '{given.command}'; it must be a command and its data, such as '{DEMO}'.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # the worktrees go away then too
    commits = {kind: git("rev-parse", "--verify", f"{commit}^{{commit}}") for kind, commit in named.items()}
    seconds = measured(commits, words, given.repeats)
    ratios = [a / b for a, b in zip(seconds["before"], seconds["now"], strict=True)]
    made = {"command": f"surefoot {given.command}", "commits": {kind: commit[:7] for kind, commit in commits.items()}, "each": seconds}
    made |= {"seconds": {kind: statistics.median(taken) for kind, taken in seconds.items()}, "faster": spread(ratios)}
    made |= {"repeats": given.repeats, "machine": machine(torch.device("cpu"))}
    given.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{made['seconds']}; {made['faster']} times faster")


if __name__ == "__main__":
    main()
