"""What the benchmarks of speed measure is the same step twice: loss and gradients of the straightforward way and of the library's."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import fresh
from torch.utils.flop_counter import FlopCounterMode

from surefoot.data import Dataset
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.prefixes import planted
from surefoot.train import Training, fit

FOLDER = Path(__file__).parents[1] / "benchmarks" / "speed"
sys.path.append(str(FOLDER))
sys.path.append(str(FOLDER.parent))
import costs  # noqa: E402
import demo  # noqa: E402
import library  # noqa: E402
import page  # noqa: E402
import parts  # noqa: E402
import step_cost  # noqa: E402
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
        "batch_size": 32, "precision": "bf16", "attention": {"exact": "math", "all on": "math"},
        "apart": {"loss": 0.0, "gradients": 2e-6}, "rate_share": 0.345,
        "operations": {"straight": 300, "exact": 200},
        "seconds": {"straight": 4.0, "exact": 2.0, "all on": 1.0},
        "faster": {"exact": {"median": 2.0, "low": 1.9, "high": 2.1}, "all on": {"median": 4.0, "low": 3.5, "high": 4.5}},
    }  # fmt: skip
    slower = one | {"seconds": {"straight": 6.0, "exact": 3.0, "all on": 1.2}}
    plain = page.kernels({"models": {"M": {"flyp": one, "arf": one}}})
    assert plain == "Attention is computed as measured at the start: exact, by matrix products; all on, by matrix products."
    fused = one | {"attention": {"exact": "fused", "all on": "math"}}
    told = page.kernels({"models": {"M": {"flyp": fused, "tp_ft": one, "arf": fused}}})
    assert "exact, by a fused kernel (M FLYP, M ARF) and by matrix products (M TP-FT); all on, by matrix products." in told
    text = page.steps({"models": {"ViT-B-32": {"tp_ft": one, "car_ft": slower}}, "repeats": 5, "machine": machine})
    assert "| ViT-B-32 | TP-FT | 32 | 4.00 | 2.00 | 1.00 | 1.50 | 2.00 [1.90, 2.10] | 4.00 [3.50, 4.50] | 34% |" in text
    ratios = {"car_ft": {"median": 1.5, "low": 1.4, "high": 1.6}}
    shown = page.costs({"models": {"M": {"exact": {"ratios": ratios}, "all on": {"ratios": {}}}}, "repeats": 5, "machine": machine})
    assert "| in steps of TP-FT | CAR-FT |" in shown and "| M, exact | 1.50 [1.40, 1.60] |\n| M, all on | – |" in shown
    rows = [{"method": "flyp", "kind": "ours", "batch_size": 512, "chunk_size": 64, "peak": 6.04e9}]
    assert "| FLYP | Surefoot | 512 | 64 | 6.0 |" in page.memory({"rows": rows, "model": "M", "machine": machine})


def test_a_profile_adds_up_to_the_step_and_counts_every_operation(tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "NUM_CLASSES", 5)
    monkeypatch.setattr(library, "templates_named", lambda _: ["a {}."])
    ours, batch = library.Ours("flyp", tiny_model), library.batch_of(tiny_model, 4)
    found = parts.parts_of(ours, batch, 2)
    assert set(found) == set(parts.PARTS) - {"reference"}
    assert all(one["seconds"] > 0 for one in found.values())
    assert ours.kernel is None
    ours.kernel = "math"
    with FlopCounterMode(display=False) as counter:
        ours.take(batch)
    assert sum(one["flops"] for one in found.values()) == counter.get_total_flops()
    straight = Straight("flyp", fresh(tiny_model).clip, ours.head.weight.detach().clone(), torch.empty(0))
    counted = steps.operations(straight, ours, batch)
    assert counted["exact"] == counter.get_total_flops()
    width, tokens, images = 32, 5, 4
    texts = torch.unique(batch.text["prompt"])
    laid = planted(batch.tokens[texts], batch.tokens[texts].argmax(dim=1))
    assert laid is not None
    (trees, nodes), ends = laid.place.shape, laid.ends.shape[1]
    rows = images * (tokens + 1) + trees * nodes + len(texts)
    assert found["MLP"]["flops"] == 3 * 2 * 8 * width**2 * rows, "two blocks each, the last of one token; twice back"

    def block(many: int, long: int) -> int:
        return 3 * 2 * many * (12 * long * width**2 + 2 * long**2 * width)

    straight_blocks = 2 * block(4, 77) + 2 * block(images, tokens)
    last_of_images = 3 * 2 * images * (12 * width**2 + 2 * 2 * tokens * width)  # two heads
    last_of_texts = 3 * 2 * trees * ((2 * nodes + 10 * ends) * width**2 + 2 * ends * nodes * width)
    ours_blocks = block(images, tokens) + block(trees, nodes) + last_of_images + last_of_texts
    assert counted["straight"] - counted["exact"] == pytest.approx(straight_blocks - ours_blocks, rel=0.01), "of the blocks"
    assert found["layer norm"]["flops"] == found["optimizer"]["flops"] == 0
    assert not any(module._forward_hooks or module._backward_hooks for module in tiny_model.modules())


def test_the_frozen_models_operations_are_counted_in_both_ways(tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "NUM_CLASSES", 5)
    monkeypatch.setattr(library, "templates_named", lambda _: ["a {}."])

    def counted(name: str) -> dict[str, int]:
        ours = library.Ours(name, fresh(tiny_model))
        contexts = ours.reference.context_head("openai80") if ours.reference else torch.empty(0)
        straight = Straight(name, fresh(tiny_model).clip, ours.head.weight.detach().clone(), contexts)
        return steps.operations(straight, ours, library.batch_of(ours.model, 4))

    alone, compared = counted("tp_ft"), counted("car_ft")
    width, tokens, images, patches = 32, 5, 4, 4
    block = images * 2 * tokens * (12 * width**2 + 2 * tokens * width)
    forward = 2 * block + images * 2 * (patches * width * 3 * 16**2 + width * 16)
    assert compared["straight"] - alone["straight"] == pytest.approx(forward, rel=0.1), "and the contexts' logits"
    assert torch.backends.mha.get_fastpath_enabled()


def test_costs_are_ratios_of_the_same_repeat(tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "NUM_CLASSES", 3)
    monkeypatch.setattr(costs, "built", lambda *_: fresh(tiny_model))
    monkeypatch.setattr(costs, "kernel_of", lambda *_: "math")
    taken = iter([2.0, 3.0, 10.0, 4.0])  # TP-FT and CAR-FT, then in turn
    monkeypatch.setattr(costs, "timed", lambda step: (step(), next(taken))[1])
    found = costs.measured("tiny", ["car_ft"], 2, "fp32", 2)
    assert found["each"] == {"tp_ft": [2.0, 4.0], "car_ft": [3.0, 10.0]}
    assert found["ratios"] == {"car_ft": {"median": 2.0, "low": 1.5, "high": 2.5}}


def test_the_price_of_half_the_rate_names_what_loses_most() -> None:
    found = {"attention": {"seconds": 4.0, "flops": 3.0}, "MLP": {"seconds": 2.0, "flops": 2.0}, "loss": {"seconds": 6.0, "flops": 0.0}}
    assert parts.rows(found, 1.0)[0] == ("attention", 4 / 12, 0.75, 1.0)
    assert parts.price(found, 1.0) == (
        "A step reaches 42% of the rate. Half would take a step of 10.00 s, 2.00 s less: as much as loss loses (6.00 s of 7.00 s)."
    )
    assert "80% would take a step of 6.25 s, 5.75 s less: as much as loss loses" in parts.price(found, 1.0, 0.8)
    assert "as much as loss and attention lose (7.00 s of 7.00 s)" in parts.price(found, 1.0, 0.99)
    assert parts.price(found, 2.0, 0.2) == "A step reaches 21% of the rate."
    machine = {"cpu": "C", "threads": 2, "torch": "2"}
    text = page.profile({"models": {"M": {"flyp": {"parts": found, "matmul_gflops": 1e-9}, "arf": {}}}, "machine": machine})
    assert "| M | FLYP | 33% (75%) | 17% (100%) | – | – | – | 50% (0%) | – |" in text
    assert page.profile({"models": {"M": {"arf": {}}}, "machine": machine}) == page.OPEN


@pytest.mark.parametrize("name", ["tp_ft", "l2_sp", "clip_cite"])
def test_the_cost_of_a_step_is_that_of_the_same_step(name: str, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    taken = step_cost.Steps(name, fresh(tiny_model), tiny_data, 6, 2)
    losses = [taken.take(), taken.take()]
    found: list[float] = []
    training = Training(batch_size=6, steps=2, learning_rate=1e-5, warmup_share=0.0)
    method = get(name)
    fit(replace(method, stages=method.stages[-1:]), fresh(tiny_model), tiny_data, training, on_step=lambda step: found.append(step.loss))
    assert losses == pytest.approx(found, rel=1e-4)


def test_the_demo_is_timed_at_two_commits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[tuple[str, ...]] = []
    seconds = iter([0.0, 0.0, 8.0, 2.0, 2.0, 8.0])
    monkeypatch.setattr(demo, "git", lambda *words: (said.append(words), f"{words[-1][:4]}0123456")[1])
    monkeypatch.setattr(demo, "run", lambda tree, words: (said.append((tree.name, *words[:2])), next(seconds))[1])
    out = tmp_path / "demo.json"
    monkeypatch.setattr(sys, "argv", ["demo.py", "--before", "then", "--repeats", "2", "--out", str(out)])
    demo.main()
    runs = [words for words in said if words[0] in demo.KINDS]
    assert runs == [(kind, "check", "iconshift") for kind in demo.KINDS] + [
        (kind, "compare", "iconshift") for kind in ("before", "now", "now", "before")
    ]
    trees = [words[1] for words in said if words[0] == "worktree"]
    assert trees == ["add", "add", "remove", "remove"]
    text = page.demo(json.loads(out.read_text()))
    assert text.startswith("`surefoot compare iconshift`: 8 s at then012, 2 s at HEAD012, 4.00 [4.00, 4.00] times faster. 2 repeats;")
