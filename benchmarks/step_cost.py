"""What an optimizer step of every method costs beside one of TP-FT: seconds and memory, on IconShift with IconCLIP.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --repeats 1 --steps 2 --methods tp_ft,flyp --out cost.json

A repeat runs every method once, one after the other, each in a process of its own, so that whatever else the machine does falls on all
of them; the order turns by one from repeat to repeat. A step is the library's own: a batch read and cropped, forward, objective, backward,
AdamW. The median of a process's steps counts, after some to warm up. A method's cost is the median over repeats of its ratio to TP-FT in
the same repeat; the lowest and the highest ratio stand beside it. Two batches of images serve over and over, as if read before: a run
decodes each image once, in its first epoch. Memory is the peak of the process less that of one that loads the same
and takes no step.

ARF is given anchors that no captioner and no pool made: a distinct prompt for each image, and as its pair the next training image, so that
as many texts and images are encoded as with distinct captions and pairs. LP's step is one on cached features; the frozen reference of
CLIP-CITE knows all texts already.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parent / "speed"))
from library import Ours

from surefoot.bench import peak_bytes
from surefoot.data import Dataset, Images, load
from surefoot.data.anchors import Anchors
from surefoot.data.subsets import take
from surefoot.methods import METHODS
from surefoot.model import ImageTextModel, load_model, pick_device
from surefoot.objective import Batch
from surefoot.train import Training, batches
from surefoot.train.parameters import TOWERS, train_mode
from surefoot.train.validate import encode_all

OUT = Path(__file__).parent / "docs" / "step_cost.json"
BASELINE, NOTHING = "tp_ft", "zero_shot"


class Steps:
    """The optimizer steps of a method's last stage, on images that are read and cropped.

    Args:
        name: the method.
        model: the pre-trained model.
        dataset: with anchors, if the method needs some.
        batch_size: images a step.
        num_steps: how many will be taken at most.
    """

    def __init__(self, name: str, model: ImageTextModel, dataset: Dataset, batch_size: int, num_steps: int) -> None:
        self.ours, self.model, self.dataset, self.known = Ours(name, model, dataset), model, dataset, False
        self.batches = self._batches(Training(batch_size=batch_size, steps=num_steps))
        train_mode(model)

    def take(self) -> float:
        """One step; the loss."""
        batch = next(self.batches)
        if self.ours.reference and batch.text and not self.known:
            self.remember(batch)
        return self.ours.take(batch)

    def remember(self, batch: Batch) -> None:
        """Let the reference encode every text, as it has after an epoch or two of a run."""
        assert self.ours.reference is not None
        for rows in torch.arange(len(batch.tokens), device=batch.tokens.device).split(len(batch.label)):
            self.ours.reference.text(rows, batch.tokens)
        self.known = True

    def _batches(self, training: Training) -> Iterator[Batch]:
        paths, model, stage = self.dataset.split("train").paths, self.model, self.ours.stage
        pairs = self.dataset.anchors.images if "anchor_image" in stage.needs else ()
        pair_images = Images(pairs, model.preprocess_train, random=True) if pairs else None
        if stage.groups & TOWERS:
            source: Any = Images(paths, model.preprocess_train, random=True)
        else:
            source = encode_all(model, Images(paths, model.preprocess))
        return batches(self.dataset, source, model, training, needs=stage.needs, pair_images=pair_images)


def of_images(dataset: Dataset, count: int) -> Dataset:
    """The data set with `count` of its training images at most, spread over the classes."""
    train = dataset.split("train")
    rows = list(range(0, len(train), max(1, len(train) // count)))[:count]
    return replace(dataset, splits={**dataset.splits, "train": take(train, rows)})


def with_anchors(dataset: Dataset) -> Dataset:
    """A caption and a pair for each training image that nobody made, all of them distinct; only what they cost is true of them."""
    train, count = dataset.split("train"), len(dataset.templates)
    names = [dataset.class_names[label] for label in train.labels]
    texts = [f"{dataset.templates[n % count].format(name)[:-1]} number {n}" for n, name in enumerate(names)]
    total = len(train)
    pairs = {path: ((n + 1) % total,) for n, path in enumerate(train.paths)}
    captions = dict(zip(train.paths, texts, strict=True))
    made = Anchors(captions=captions, captioner="nobody", pairs=pairs, images=train.paths, texts=tuple(f"{text}." for text in texts))
    return replace(dataset, anchors=made)


def measured(name: str, model: ImageTextModel, dataset: Dataset, *, batch_size: int, num_steps: int, warmup: int) -> dict[str, float]:
    """{"seconds": the median of a step, "peak": the most bytes that the process took}."""
    seconds = []
    if name != NOTHING:
        steps = Steps(name, model, with_anchors(of_images(dataset, 2 * batch_size)), batch_size, warmup + num_steps)
        for _ in range(warmup + num_steps):
            began = time.perf_counter()
            steps.take()  # reads the loss, so that a GPU has finished
            seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds[warmup:]) if seconds else 0.0, "peak": peak_bytes(next(model.parameters()).device)}


def summary(found: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """{method: {"seconds", "time", "memory"}} of {method: what was measured} for each repeat; the last two as ratios to TP-FT."""
    made: dict[str, dict[str, Any]] = {}
    for name in (name for name in found[0] if name != NOTHING):
        base = [one[BASELINE]["peak"] - one[NOTHING]["peak"] for one in found]
        added = [one[name]["peak"] - one[NOTHING]["peak"] for one in found]
        told = all(b > 0 for b in base) and not any(a != a for a in added)
        made[name] = {
            "seconds": statistics.median(one[name]["seconds"] for one in found),
            "time": _spread([one[name]["seconds"] / one[BASELINE]["seconds"] for one in found]),
            "memory": _spread([a / b for a, b in zip(added, base, strict=True)]) if told else None,
        }
    return made


def _spread(ratios: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures are true of."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    cpu = torch.cuda.get_device_name(device) if device.type == "cuda" else model
    return {"platform": platform.platform(), "cpu": cpu, "threads": torch.get_num_threads(), "torch": torch.__version__}


def apart(name: str, given: argparse.Namespace) -> dict[str, float]:
    """What `measured` gives in a process of its own."""
    options = {"--data": given.data, "--model": given.model, "--device": given.device, "--precision": given.precision}
    options |= {"--batch-size": given.batch_size, "--steps": given.steps, "--warmup": given.warmup}
    words = [str(word) for option in options.items() for word in option]
    done = subprocess.run([sys.executable, __file__, "--worker", name, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help="Comma-separated; TP-FT is always measured.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="That count, in each process.")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--data", default="iconshift")
    parser.add_argument("--model", default="iconclip")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    device = pick_device(given.device)
    if given.worker:
        model = load_model(given.model, device=device, precision=given.precision)
        sizes = {"batch_size": given.batch_size, "num_steps": given.steps, "warmup": given.warmup}
        print(json.dumps(measured(given.worker, model, load(given.data), **sizes)))
        return
    names = list(dict.fromkeys([NOTHING, BASELINE, *given.methods.split(",")]))
    found = []
    for repeat in range(given.repeats):
        turned = names[repeat % len(names) :] + names[: repeat % len(names)]
        one = {name: apart(name, given) for name in turned}
        found.append({name: one[name] for name in names})
        print(f"repeat {repeat + 1}: " + ", ".join(f"{name} {found[-1][name]['seconds']:.3f} s" for name in names[1:]), flush=True)
    about = {"data": given.data, "model": given.model, "batch_size": given.batch_size, "precision": given.precision}
    about |= {"repeats": given.repeats, "steps": given.steps, "machine": machine(device), "methods": summary(found)}
    given.out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
