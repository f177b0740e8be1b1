"""kill -9 at random moments of training, writes of checkpoints included: does every resume succeed, and end at the same bits?

    python benchmarks/survival/kills.py --kills 200

Trains FLYP on two images of each class of IconShift, a checkpoint after every step, once undisturbed, and then again and again in a
process that is killed at a moment drawn at random; the next process goes on. After each kill the checkpoint must open, and what
a finished run leaves must equal the undisturbed one bit for bit. Writes nothing; the table is what it prints.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from safetensors import safe_open

METHODS = ("flyp", "lp_ft")  # one stage, and two of which the first leaves no checkpoint


def child(arguments: argparse.Namespace) -> None:
    """One process: train, or go on with it, and leave the final weights."""
    from surefoot.data import load
    from surefoot.data.subsets import few_shot
    from surefoot.methods import get
    from surefoot.model import load_model
    from surefoot.train import Training, fit
    from surefoot.train.checkpoint import write

    data = few_shot(load(arguments.data), arguments.shots, seed=0)
    training = Training(steps=arguments.steps, batch_size=arguments.batch_size, learning_rate=1e-3)
    print("training", flush=True)
    fitted = fit(
        get(arguments.method), load_model(arguments.model), data, training, resume=arguments.child / "run.resume", checkpoint_seconds=0
    )
    write(arguments.child / "weights.safetensors", fitted.state, {})


def digest(path: Path) -> str:
    """Over names, shapes and bits of all tensors."""
    found = hashlib.sha256()
    with safe_open(path, framework="pt") as stored:
        for name in sorted(stored.keys()):
            tensor = stored.get_tensor(name)
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def started(arguments: argparse.Namespace, folder: Path) -> subprocess.Popen[str]:
    """A child in a folder, as soon as it is about to train."""
    own = ["--data", arguments.data, "--model", arguments.model, "--shots", str(arguments.shots), "--steps", str(arguments.steps)]
    own += ["--batch-size", str(arguments.batch_size), "--method", arguments.method, "--child", str(folder)]
    process = subprocess.Popen([sys.executable, __file__, *own], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while (line := process.stdout.readline()) and line.strip() != "training":
        pass
    return process


def undisturbed(arguments: argparse.Namespace, folder: Path) -> tuple[str, float]:
    """The digest of the final weights, and the seconds from the beginning of training."""
    process = started(arguments, folder)
    since = time.monotonic()
    if process.wait():
        raise SystemExit("The undisturbed run failed.")
    return digest(folder / "weights.safetensors"), time.monotonic() - since


def killed(process: subprocess.Popen[str], folder: Path, seconds: float) -> str | None:
    """In the middle of what the process was killed after so many seconds; None if it had ended before."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        half = [path.name for path in folder.glob("*.part")]
        return "the write of a checkpoint" if "run.resume.part" in half else "the write of the weights" if half else "anything else"
    if process.returncode:
        raise SystemExit(f"A resume failed with code {process.returncode}.")
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="iconshift")
    parser.add_argument("--model", default="iconclip")
    parser.add_argument("--method", choices=METHODS, default="flyp")
    parser.add_argument("--shots", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    draw, during, finished = random.Random(arguments.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as work:
        (first := Path(work) / "undisturbed").mkdir()
        wanted, seconds = undisturbed(arguments, first)
        while during.total() < arguments.kills:
            (folder := Path(work) / f"run-{finished}").mkdir(exist_ok=True)
            state = killed(started(arguments, folder), folder, draw.uniform(0, seconds))
            if state is not None:
                during[state] += 1
                if (folder / "run.resume").is_file():
                    digest(folder / "run.resume")  # what is there opens
                continue
            if digest(folder / "weights.safetensors") != wanted:
                raise SystemExit(f"Run {finished}, resumed after kills, ended at other weights.")
            finished += 1
    print(f"{during.total()} kills: " + ", ".join(f"{number} in the middle of {what}" for what, number in during.most_common()))
    print(f"{finished} runs ended, all of them at the bits of the undisturbed run; every checkpoint opened, every resume succeeded")


if __name__ == "__main__":
    main()
