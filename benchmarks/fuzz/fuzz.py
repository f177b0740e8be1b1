"""Damaged files against a reader: nothing but success or an error of Surefoot's own may come of them.

    python benchmarks/fuzz/fuzz.py manifest --minutes 30
    python benchmarks/fuzz/fuzz.py config --minutes 30
    python benchmarks/fuzz/fuzz.py model --minutes 30
    python benchmarks/fuzz/fuzz.py image --minutes 30

Cases are damaged copies of good files (readers.py), by a seed (mutate.py), read by a process of its own. Another exception, a warning, a
case that takes longer than --seconds or more memory than --megabytes, or a process that dies, is a finding: the file is kept in
tests/corpus/<reader>/, whose cases a test reads again. What comes out is printed; a run without findings prints how many cases it read,
and ends with code 0. The memory of a process is bounded by setrlimit, which a system must have.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

from mutate import mutated
from readers import READERS

from surefoot.errors import SurefootError

CORPUS = Path(__file__).parents[2] / "tests" / "corpus"
MOST_KEPT = 20_000  # bytes of a case that is kept


def outcome(reader: str, name: str, content: bytes) -> tuple[str, str]:
    """What comes of one case: "read", "refused" or the name of an exception that is a finding; and its text."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            READERS[reader][1](name, content, Path(place))
        except SurefootError as error:
            return "refused", str(error)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            return type(error).__name__, repr(error)[:300]
    return "read", ""


def worker(reader: str, pipe: Connection, megabytes: int) -> None:
    """Reads cases until the pipe closes."""
    outcome(reader, *next(iter(READERS[reader][0]().items())))  # what is imported late counts as no case's memory
    with open("/proc/self/statm") as file:  # noqa: PTH123 - a file of the kernel
        own = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + megabytes * 10**6,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    while True:
        try:
            name, content = pipe.recv()
        except EOFError:
            return
        pipe.send(outcome(reader, name, content))


class Worker:
    """A process that reads cases, started anew when one was too much for it."""

    def __init__(self, reader: str, megabytes: int) -> None:
        self.reader, self.megabytes = reader, megabytes
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=worker, args=(self.reader, other, self.megabytes), daemon=True)
        self.process.start()
        other.close()
        self.pipe.recv()

    def ask(self, name: str, content: bytes, seconds: float) -> tuple[str, str]:
        self.pipe.send((name, content))
        try:
            if self.pipe.poll(seconds):
                return self.pipe.recv()  # type: ignore[no-any-return]
            found = ("hang", f"more than {seconds:g} seconds")
        except EOFError:
            found = ("died", "the process ended")
        self.process.kill()
        self.process.join()
        if found[0] == "died":
            found = ("died", f"exit code {self.process.exitcode}")
        self.start()
        return found


def keep(reader: str, kind: str, name: str, content: bytes, folder: Path) -> Path | None:
    """Write a finding into the corpus."""
    if len(content) > MOST_KEPT:
        return None
    path = folder / reader / f"{kind}-{hashlib.sha256(content).hexdigest()[:8]}--{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def run(reader: str, minutes: float, seed: int, seconds: float, megabytes: int, out: Path) -> Counter[str]:
    """Fuzz one reader for a time; how often each outcome came."""
    draw, seeds, counts = random.Random(seed), dict(READERS[reader][0]()), Counter[str]()
    asked, told = Worker(reader, megabytes), Counter[str]()
    others, end = list(seeds.values()), time.monotonic() + 60 * minutes
    for name, content in seeds.items():
        if (found := asked.ask(name, content, 60))[0] not in ("read", "refused"):
            raise SystemExit(f"The good file {name} is not read: {found}")
    while time.monotonic() < end:
        name = draw.choice(list(seeds))
        content = mutated(draw, name, seeds[name], others)
        kind, text = asked.ask(name, content, seconds)
        counts[kind] += 1
        if kind in ("read", "refused"):
            continue
        told[alike := f"{kind} {name} {text[:60]}"] += 1
        if told[alike] <= 3:  # of findings that read alike
            path = keep(reader, kind, name, content, out)
            print(json.dumps({"finding": kind, "text": text, "file": str(path), "bytes": len(content)}), flush=True)
    return counts


def main() -> None:
    """Fuzz the reader that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=sorted(READERS))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10, help="that a case may take")
    parser.add_argument("--megabytes", type=int, default=2000, help="that a case may take")
    parser.add_argument("--out", type=Path, default=CORPUS, help="folder of findings")
    given = parser.parse_args()
    counts = run(given.reader, given.minutes, given.seed, given.seconds, given.megabytes, given.out)
    print(json.dumps({"reader": given.reader, "cases": counts.total(), **counts}))
    sys.exit(any(kind not in ("read", "refused") for kind in counts))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
