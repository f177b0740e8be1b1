"""kill -9 at random moments of training, writes of checkpoints included: does every resume succeed, and end at the same bits?

    python benchmarks/survival/kills.py --kills 200

Trains on two images of each class of IconShift, a checkpoint after every step and the last weights kept, once undisturbed, and then
again and again in a process that is killed at a moment drawn at random; the next process goes on. After each kill the checkpoint must
open, the first step of the next process must be the one after it, and what a run leaves in the end must equal the undisturbed one bit for
bit: the bits alone would not show a resume that begins anew. Processes are forked from one that has read model and
data, which needs a system that can. Keeps no file; the figures are what it prints.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
from safetensors import safe_open

from surefoot.data import Dataset, load
from surefoot.data.subsets import few_shot
from surefoot.methods import get
from surefoot.model import ImageTextModel, load_model
from surefoot.train import Step, Training, fit
from surefoot.train.checkpoint import write

RESUME, WEIGHTS, BEGAN = "run.resume", "weights.safetensors", "began"


def train(model: ImageTextModel, data: Dataset, training: Training, method: str, folder: Path) -> None:
    """One process: train, or go on with it, note the first step, and leave the final weights."""

    def note(step: Step) -> None:
        if not (folder / BEGAN).is_file():
            (folder / BEGAN).write_bytes(bytes([step.number]))  # one byte: whole or not there, whenever the process is killed

    fitted = fit(get(method), model, data, training, resume=folder / RESUME, checkpoint_seconds=0, on_step=note)
    write(folder / WEIGHTS, fitted.state, {})


def digest(path: Path) -> str:
    """Over names, shapes and bits of all tensors."""
    found = hashlib.sha256()
    with safe_open(path, framework="pt") as stored:
        for name in sorted(stored.keys()):
            tensor = stored.get_tensor(name)
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def steps_done(path: Path) -> int:
    """How many steps a checkpoint holds; none where there is no file."""
    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as stored:
        return int(json.loads(stored.metadata()["progress"])["done"])


def check_first_step(folder: Path, done: int) -> None:
    """Whether the process that ran last went on after `done` steps; one that was killed before its first step said nothing."""
    began = (folder / BEGAN).read_bytes() if (folder / BEGAN).is_file() else b""
    if began and began[0] != done + 1:
        raise SystemExit(f"The checkpoint held {done} steps, and the next process began with step {began[0]}.")
    (folder / BEGAN).unlink(missing_ok=True)


def killed(work: Callable[[Path], None], folder: Path, seconds: float | None) -> str | None:
    """In the middle of what a process was killed after so many seconds; None if it had ended before, or was to be left alone."""
    process: ForkProcess = multiprocessing.get_context("fork").Process(target=work, args=(folder,))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        half = {path.name for path in folder.glob("*.part")}
        return {f"{RESUME}.part": "the write of a checkpoint", f"{WEIGHTS}.part": "the write of the weights"}.get(
            next(iter(half), ""), "anything else"
        )
    if process.exitcode:
        raise SystemExit(f"A resume failed with code {process.exitcode}.")
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="iconshift")
    parser.add_argument("--model", default="iconclip")
    parser.add_argument("--method", default="flyp")
    parser.add_argument("--shots", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=16)
    given = parser.parse_args()
    if not 0 < given.steps < 256:
        parser.error("--steps must be from 1 to 255")
    torch.set_num_threads(1)  # a fork has none of the threads that its parent had
    training = Training(steps=given.steps, batch_size=given.batch_size, learning_rate=1e-3, keep="last")
    data = few_shot(load(given.data), given.shots, seed=0)
    work = partial(train, load_model(given.model), data, training, given.method)
    draw, during, finished, resumed, done = random.Random(given.seed), Counter[str](), 0, 0, False
    with tempfile.TemporaryDirectory() as place:
        (first := Path(place) / "undisturbed").mkdir()
        began = time.monotonic()
        killed(work, first, None)
        wanted, seconds = digest(first / WEIGHTS), time.monotonic() - began
        while not done:  # the run that the last kill hit goes on to its end too
            (folder := Path(place) / f"run-{finished}").mkdir(exist_ok=True)
            left = during.total() < given.kills
            before = steps_done(folder / RESUME)
            state = killed(work, folder, draw.uniform(0, seconds) if left else None)
            check_first_step(folder, before)
            if state is not None:
                during[state] += 1
                if (folder / RESUME).is_file():
                    digest(folder / RESUME)  # what is there opens
                    resumed += 1
                continue
            if digest(folder / WEIGHTS) != wanted:
                raise SystemExit(f"Run {finished}, resumed after kills, ended at other weights.")
            finished, done = finished + 1, not left
    print(f"{during.total()} kills: " + ", ".join(f"{number} in the middle of {what}" for what, number in during.most_common()))
    print(f"{resumed} of them left a checkpoint; each opened, and the next process went on from it")
    print(f"{finished} runs ended, all of them at the bits of the undisturbed run")


if __name__ == "__main__":
    main()
