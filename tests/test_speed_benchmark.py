"""What the benchmarks of speed measure is the same step twice: loss and gradients of the straightforward way and of the library's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from conftest import fresh

from surefoot.model import ImageTextModel

FOLDER = Path(__file__).parents[1] / "benchmarks" / "speed"
sys.path.append(str(FOLDER))
import library  # noqa: E402
import page  # noqa: E402
import steps  # noqa: E402
from straight import Straight  # noqa: E402


@pytest.mark.parametrize("name", steps.METHODS)
def test_both_ways_have_one_loss_and_one_gradient(name: str, tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "NUM_CLASSES", 5)
    monkeypatch.setattr(library, "templates_named", lambda _: ["a {}.", "a drawing of a {}."])
    ours, other = library.Ours(name, fresh(tiny_model)), fresh(tiny_model)
    contexts = ours.reference.context_head("openai80") if name == "car_ft" and ours.reference else torch.empty(0)
    straight = Straight(name, other.clip, ours.head.weight.detach().clone(), contexts)
    batch = library.batch_of(tiny_model, 6)
    for _ in range(2):  # after a step the reference differs from the model
        gap = steps.apart(straight, ours, batch)
        assert gap["loss"] < 1e-5
        assert gap["gradients"] < 1e-4
        for taker in (straight, ours):
            for group in taker.optimizer.param_groups:
                group["lr"] = 1e-3
            taker.take(batch)
    with torch.no_grad():
        next(iter(ours.moving.named.values())).mul_(1.5)
    assert steps.apart(straight, ours, batch)["gradients"] > 1e-3


def test_a_batch_has_as_many_distinct_texts_as_a_real_one(tiny_model: ImageTextModel) -> None:
    batch = library.batch_of(tiny_model, 8)
    assert {name: len(torch.unique(rows)) for name, rows in batch.text.items() if name != "prompt"} == {"caption": 8, "anchor_text": 8}
    assert batch.image is not None and batch.image.shape == (8, 3, 32, 32)
    assert batch.anchor_image is not None and not torch.equal(batch.image, batch.anchor_image)
    assert set(library.of_needs(batch, {"prompt"}).text) == {"prompt"}


def test_the_page_shows_medians_with_their_range() -> None:
    machine = {"cpu": "C", "threads": 2, "torch": "2"}
    one = {
        "batch_size": 32, "precision": "bf16", "attention": "math", "apart": {"loss": 0.0, "gradients": 2e-6}, "rate_share": 0.345,
        "seconds": {"straight": 4.0, "exact": 2.0, "all on": 1.0},
        "faster": {"exact": {"median": 2.0, "low": 1.9, "high": 2.1}, "all on": {"median": 4.0, "low": 3.5, "high": 4.5}},
    }  # fmt: skip
    slower = one | {"seconds": {"straight": 6.0, "exact": 3.0, "all on": 1.2}}
    text = page.steps({"models": {"ViT-B-32": {"tp_ft": one, "car_ft": slower}}, "repeats": 5, "machine": machine})
    assert "| ViT-B-32 | TP-FT | 32 | 4.00 | 2.00 | 1.00 | 2.00 [1.90, 2.10] | 4.00 [3.50, 4.50] | 34% |" in text
    assert "| ViT-B-32, exact | 1.50 |" in text
    assert "| ViT-B-32, all on | 1.20 |" in text
    rows = [{"method": "flyp", "kind": "ours", "batch_size": 512, "chunk_size": 64, "peak": 6.04e9}]
    assert "| FLYP | Surefoot | 512 | 64 | 6.0 |" in page.memory({"rows": rows, "model": "M", "machine": machine})
