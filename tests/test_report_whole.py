"""The records of a whole comparison that never ran, for the tests of the page, and which of them count."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from surefoot import records
from surefoot.metrics import accuracy, expected_calibration_error, macro_f1, mean_per_class
from surefoot.records import Answers, Choice, Described, Difference, Evaluation, Example, Record, Trained
from surefoot.report import write_page
from surefoot.report.runs import collect

METHODS = {
    "lp": (6, 1),
    "ft": (7, -14),
    "tp_ft": (9, -7),
    "lp_ft": (9.5, -4),
    "l2_sp": (8, -1),
    "flyp": (11, -3),
    "flyp_ce": (10, -5),
    "car_ft": (10.5, 2),
}
SHIFTS = ("emoji", "solid", "outline", "sketch", "pixel art", "duotone", "flat colour", "hand-drawn with a long name")
CORRUPTIONS = ("gaussian_noise", "defocus_blur", "jpeg", "contrast", "snow")
NAMES = ("arrow", "bell", "calendar", "camera", "cloud", "folder", "heart", "house with a garden", "key", "lock", "map", "moon")
SEEDS = (0, 1, 2)
NUM = 480


def accuracies(method: str, seed: int, alpha: float) -> dict[str, float]:
    """Curves that bend above the chord, differently for each method, and seeds that lie apart."""
    gain, loss = METHODS.get(method, (0.0, 0.0))
    noise = np.random.default_rng(abs(hash_of(method)) + seed).normal(0, 0.4, 40) * alpha
    bend = 4 * alpha * (1 - alpha)
    found = {"val": 71 + gain * alpha + bend + noise[0], "test": 70 + gain * alpha + bend + noise[1]}
    for number, name in enumerate(SHIFTS):
        base = 62 - 5 * number
        found[f"shifts/{name}"] = base + loss * alpha * (0.4 + number / 5) + 1.5 * bend + noise[2 + number]
        found[f"restricted/{name}"] = found[f"shifts/{name}"] + 6
    for number, name in enumerate(CORRUPTIONS):
        found[f"corruptions/{name}"] = 55 - 3 * number + 0.4 * gain * alpha + bend + noise[12 + number]
    for mean, prefix in {"avg_shifts": "shifts/", "avg_restricted": "restricted/", "avg_corruptions": "corruptions/"}.items():
        found[mean] = float(np.mean([value for name, value in found.items() if name.startswith(prefix)]))
    found["unseen/icons"] = 64 + loss * alpha + bend + noise[20]
    found["hm/icons"], found["joint_hm/icons"] = 66 + loss * alpha / 2 + bend, 58 + loss * alpha / 2 + bend
    found["context"], found["context_own"] = 60 + 2 * loss * alpha + noise[21], 60 + 1.2 * loss * alpha + noise[22]
    found["agreement"] = 100 - 2.2 * abs(loss) * alpha - 3 * alpha
    return {name: float(value) / 100 for name, value in found.items()}


def hash_of(text: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(text)) % 10007


@functools.cache
def answers(share: float) -> Answers:
    """Answers of which about `share` are right; mistakes go to a neighbouring class, and the confidence is a little too high."""
    rng = np.random.default_rng(0)
    label = np.arange(NUM, dtype=np.int32) % len(NAMES)
    right = rng.random(NUM) < share
    prediction = np.where(right, label, (label + rng.integers(1, 4, NUM)) % len(NAMES)).astype(np.int32)
    confidence = np.clip(rng.beta(5, 2, NUM) + 0.15 * right, 0.05, 1.0).astype(np.float32)
    return Answers(prediction, label, confidence)


def evaluation(folder: Path, method: str, seed: int, alpha: float) -> Evaluation:
    found = accuracies(method, seed, alpha)
    stored = answers(round(found["test"], 4))
    measured = {
        "mean_per_class": mean_per_class(stored.correct, stored.label),
        "macro_f1": macro_f1(stored.prediction, stored.label),
        "ece": expected_calibration_error(stored.confidence, stored.correct),
    }
    return Evaluation(
        method=method,
        seed=seed,
        alpha=alpha,
        dataset="iconshift",
        accuracy=found | {"test": accuracy(stored.correct)},
        num_images=dict.fromkeys([name for name in found if not name.startswith(("avg", "hm", "joint"))], NUM),
        answers=records.save_answers(folder, f"{method}-{seed}-{alpha}", {"test": stored})
        if alpha in (0.0, 0.6, 1.0)
        else "answers/none.npz",
        settings={
            "method": method,
            "epochs": 8,
            "learning_rate": 1e-5 if method == "flyp" else 3e-5,
            "batch_size": 128,
            "model": "iconclip",
        },
        settings_hash=f"hash of {method}",
        metrics={"test": measured},
        provenance={"surefoot": "0.1.0", "torch": "2.9.0", "data": "1234567890abcdef", "weights": "fedcba0987654321"},
        train_seconds=320.0,
    )


def trained(method: str, seed: int) -> Trained:
    epochs = range(1, 9)
    values = [0.66 + 0.12 * (1 - 0.6**epoch) - 0.004 * max(0, epoch - 5) + 0.003 * seed for epoch in epochs]
    history = [{"stage": 1, "epoch": epoch, "loss": 2 / epoch, "val": value} for epoch, value in zip(epochs, values, strict=True)]
    if method == "lp_ft":
        history = [{"stage": 0, "epoch": epoch, "loss": 2.0, "val": 0.6 + 0.01 * epoch} for epoch in (1, 2, 3)] + history
    choices = {"l2": 0.1} if method == "lp" else {}
    return Trained(
        method=method, seed=seed, settings_hash=f"hash of {method}", history=[] if method == "lp" else history, kept_epoch=5 + seed // 2,
        select_by="accuracy", num_steps=800, seconds=100.0 * (seed + 1), choices=choices,
    )  # fmt: skip


def picture(folder: Path, number: int) -> str:
    """A small photograph-like picture, written beside the records."""
    path = folder / "examples" / f"{number}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.effect_noise((160, 120 + number % 3 * 40), 40).convert("RGB")
    ImageDraw.Draw(image).ellipse((30, 20, 120, 100), fill=(40 * (number % 6), 90, 160))
    image.save(path, quality=80)
    return path.relative_to(folder).as_posix()


def whole(folder: Path, num_examples: int = 24) -> Iterator[Record]:
    """Eight methods, three seeds, eleven alphas, eight shifts, and all that is drawn from them."""
    yield Described(
        dataset="iconshift",
        class_names={"seen": list(NAMES), "unseen/icons": ["anchor"]},
        num_images={"train": 4000, "val": 750, "test": NUM},
        templates=["a photo of a {}."],
        notes=[
            "Validation and test were split off from the training images (10% each, stratified, seed 0).",
            "2 unreadable images were skipped.",
        ],
    )
    yield evaluation(folder, "zero_shot", 0, 0.0)
    for method in METHODS:
        for seed in SEEDS:
            yield trained(method, seed)
            yield from (evaluation(folder, method, seed, step / 10) for step in range(11))
    for method in METHODS:
        yield from (Choice(method=method, seed=seed, alpha=0.6 if seed < 2 else 0.7, argmax=0.8, runs="all") for seed in SEEDS)
        for a, b in ((method, "zero_shot"), (f"{method} + WiSE-FT (ID val.)", "zero_shot"), (f"{method} + WiSE-FT (ID val.)", method)):
            for on, value in accuracies(method, 0, 1.0).items():
                mean = value - accuracies("zero_shot", 0, 0.0)[on]
                yield Difference(a=a, b=b, on=on, mean=mean, low=mean - 0.011, high=mean + 0.012, num_seeds=3, num_images=NUM, runs="all")
    for number in range(num_examples):
        gained = number % 2 == 0
        label, wrong = NAMES[number % 12], NAMES[(number + 5) % 12]
        yield Example(
            a="flyp + WiSE-FT (ID val.)", b="zero_shot", on="test" if number % 3 else "shifts/emoji", change="gained" if gained else "lost",
            image=picture(folder, number), label=label, answer_a=label if gained else wrong, answer_b=wrong if gained else label,
            confidence_a=0.91, confidence_b=0.4 + number / 100, path=f"test/{label}/{number}.png", runs="all",
        )  # fmt: skip


def save_whole(folder: Path) -> Path:
    """Write all of it into `folder`, the records at once."""
    lines = [json.dumps(asdict(record), sort_keys=True) for record in whole(folder)]
    (folder / records.FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of the whole comparison, with everything that lies beside them."""
    return save_whole(tmp_path_factory.mktemp("whole"))


def test_only_what_belongs_to_the_standing_runs_counts(folder: Path) -> None:
    lines = list(records.read(folder))
    stale = Trained(method="flyp", seed=0, settings_hash="other", history=[], kept_epoch=1, select_by="accuracy", num_steps=1, seconds=1)
    other = Described(dataset="birds", class_names={}, num_images={}, templates=[], notes=["not ours"])
    found = collect([*lines, stale])
    assert found.trained["flyp", 0].settings_hash == "hash of flyp"
    assert len(found.trained) == len(METHODS) * len(SEEDS)
    assert len(found.examples) == 24
    assert collect([*lines, other]).described is None
    again = collect([*lines, Choice(method="flyp", seed=0, alpha=0.5, argmax=0.5, runs="newer")])
    assert (again.examples, again.differences, len(again.choices)) == ([], {}, 1)


@pytest.mark.parametrize(
    "keep",
    [
        lambda record: not isinstance(record, Trained | Described | Example),
        lambda record: isinstance(record, Evaluation) and record.method == "zero_shot",
        lambda record: isinstance(record, Evaluation) and record.method == "flyp" and record.seed == 1 and record.alpha == 1.0,
        lambda record: isinstance(record, Described | Trained | Example) or (isinstance(record, Evaluation) and record.alpha == 0.0),
    ],
    ids=["old run", "zero-shot only", "one model", "nothing evaluated but alpha 0"],
)
def test_part_of_the_records_gives_part_of_the_page(folder: Path, tmp_path: Path, keep: Callable[[Record], bool]) -> None:
    for record in filter(keep, records.read(folder)):
        records.append(tmp_path, record)
    text = write_page(tmp_path, tmp_path / "page", command="").read_text(encoding="utf-8")
    assert text.rstrip().endswith("</html>")
    assert "Without the answers that lie beside the records this part is incomplete. Not readable: answers/" in text
    assert "The diagrams appear where the answers of an evaluation lie beside the records." in text


def test_damaged_answers_are_named_and_the_rest_is_shown(folder: Path, tmp_path: Path) -> None:
    for record in records.read(folder):
        records.append(tmp_path, record)
    for name in ("zero_shot-0-0.0", "flyp-0-1.0"):
        path = tmp_path / "answers" / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((folder / "answers" / f"{name}.npz").read_bytes())
    path.write_bytes(b"PK damaged")
    text = write_page(tmp_path, tmp_path / "page", command="").read_text(encoding="utf-8")
    assert "answers/flyp-0-1.0.npz" in text or "more. Evaluate again" in text
    assert text.count('class="chart reliability') == 1, "zero-shot alone"
