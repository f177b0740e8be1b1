"""The kernel of attention: set, or measured at the start of a long run; it changes the time of a step, and rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import fresh

from surefoot import precision
from surefoot.data import Dataset
from surefoot.errors import SettingError
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.objective import Batch, Forward
from surefoot.precision import ATTENTION, attention, usual_attention
from surefoot.train import Training, fit, kernels
from surefoot.train.settings import settings_of

SHORT = Training(epochs=1, batch_size=8, learning_rate=1e-3)


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows whenever attention is asked to be written out."""
    found, real = list[str](), precision.sdpa_kernel
    monkeypatch.setattr(precision, "sdpa_kernel", lambda backend: (found.append("math"), real(backend))[1])
    return found


@pytest.mark.parametrize(("kernel", "format", "asks"), [
    (None, "bf16", True), (None, "fp32", False), ("math", "fp32", True), ("fused", "bf16", False),
])  # fmt: skip
def test_the_kernel_that_is_named_computes(
    kernel: str | None, format: str, asks: bool, tiny_model: ImageTextModel, entered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, image = list[int](), torch.randn(2, 3, 32, 32)
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: (fused.append(1), real(*a, **k))[1])
    tiny_model.precision = format  # type: ignore[assignment]
    for encode in (lambda: tiny_model.encode_image(image), lambda: tiny_model.encode_text(tiny_model.tokenize(["a"]))):
        entered.clear(), fused.clear()
        with attention(kernel):
            encode()
        assert (bool(entered), bool(fused)) == (asks, not asks)
    entered.clear()
    tiny_model.encode_image(image)
    assert bool(entered) == (format == "bf16"), "afterwards the usual one is back"


def test_written_out_is_usual_on_a_cpu_in_bfloat16_alone() -> None:
    usual = {(kind, format): usual_attention(torch.device(kind), format) for kind in ("cpu", "cuda") for format in ("fp32", "tf32", "bf16")}  # type: ignore[arg-type]
    assert [key for key, kernel in usual.items() if kernel == "math"] == [("cpu", "bf16")]


@pytest.mark.parametrize(("name", "during"), [("fp32", "highest"), ("bf16", "highest"), ("tf32", "high")])
def test_tf32_counts_in_the_towers_both_ways_and_nowhere_else(name: str, during: str, tiny_model: ImageTextModel) -> None:
    tiny_model.precision, seen = name, list[str]()  # type: ignore[assignment]
    block = tiny_model.clip.visual.transformer.resblocks[0]
    block.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    block.register_full_backward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    batch = Batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), {}, torch.empty(0))
    forward = Forward(tiny_model, None, batch)
    forward.backward(forward.image.sum())
    assert seen == [during, during]
    assert torch.get_float32_matmul_precision() == "highest"


def test_both_kernels_give_the_same_gradients(tiny_model: ImageTextModel) -> None:
    image, found = torch.randn(4, 3, 32, 32), []
    for kernel in ATTENTION:
        model = fresh(tiny_model)
        with attention(kernel):
            (model.encode_image(image) * torch.arange(16.0)).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.linalg.vector_norm(found[0] - found[1]) <= 1e-5 * torch.linalg.vector_norm(found[0])


@pytest.mark.parametrize(("format", "times", "faster"), [
    ("bf16", {"math": 2.0, "fused": 1.0}, "fused"), ("bf16", {"math": 1.04, "fused": 1.0}, "math"),
    ("fp32", {"math": 1.0, "fused": 2.0}, "math"), ("fp32", {"math": 1.0, "fused": 1.04}, "fused"),
])  # fmt: skip
def test_the_faster_kernel_is_taken_where_it_is_clearly_faster(
    format: str, times: dict[str, float], faster: str, tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, seen = [0.0], list[int]()

    def taken(_: ImageTextModel, image: torch.Tensor) -> None:
        seen.append(len(image))
        now[0] += times[str(precision._chosen.get())]

    tiny_model.precision = format  # type: ignore[assignment]
    monkeypatch.setattr(kernels, "forward_and_backward", taken)
    monkeypatch.setattr(kernels, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert kernels.fastest_attention(tiny_model, 6) == faster
    assert set(seen) == {6}


def test_a_measurement_changes_no_weight_and_leaves_no_gradient(tiny_model: ImageTextModel) -> None:
    before = tiny_model.weights()
    assert kernels.fastest_attention(tiny_model, 2) in ATTENTION
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_model.weights().items())
    assert all(p.grad is None for p in tiny_model.parameters())


def pick(choices: dict[str, object], stage: int, model: ImageTextModel, training: Training, *, measure: bool = True) -> str | None:
    return kernels.pick_attention(choices, stage, model, training, num_images=1000, measure=measure)


def test_only_a_long_run_measures_and_what_it_found_stays(tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, long = list[int](), kernels.LONG
    monkeypatch.setattr(kernels, "fastest_attention", lambda _, size: (sizes.append(size), "fused")[1])
    choices = dict[str, object]()
    assert pick(choices, 0, tiny_model, Training(steps=long - 1)) is None
    assert pick(choices, 0, tiny_model, Training(steps=long, attention="math")) == "math"
    assert pick(choices, 0, tiny_model, Training(steps=long), measure=False) is None, "begun with the usual one"
    assert (choices, sizes) == ({}, [])
    assert pick(choices, 0, tiny_model, Training(steps=long, batch_size=64, chunk_size=16)) == "fused"
    assert pick(choices, 1, tiny_model, Training(steps=long, batch_size=64)) == "fused"
    assert pick(choices, 2, tiny_model, Training(steps=long, batch_size=2000)) == "fused"
    assert (list(choices.values()), sizes) == (["fused"] * 3, [16, 64, 1000])
    assert list(choices) == [f"attention, stage {number}" for number in (1, 2, 3)]
    monkeypatch.setattr(kernels, "num_processes", lambda: 2)
    assert pick(choices, 0, tiny_model, Training(steps=long), measure=False) == "fused"
    assert pick({}, 0, tiny_model, Training(steps=long)) is None
    monkeypatch.undo()
    assert len(sizes) == 3, "what was measured before a resume is taken"
    tiny_model.requires_grad_(False)
    assert pick({}, 0, tiny_model, Training(steps=long)) is None


def test_a_run_trains_with_its_kernel_and_says_so(
    tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch, entered: list[str]
) -> None:
    monkeypatch.setattr(kernels, "LONG", 1)
    monkeypatch.setattr(kernels, "fastest_attention", lambda *_: "fused")
    during = list[tuple[str | None, bool]]()
    encode = ImageTextModel.encode_image
    monkeypatch.setattr(
        ImageTextModel,
        "encode_image",
        lambda self, image: (during.append((precision._chosen.get(), self.training)), encode(self, image))[1],
    )
    alone = replace(SHORT, channels_last="off", compile="off")
    fitted = fit(get("tp_ft"), tiny_model, tiny_data, alone)
    assert fitted.choices == {"attention, stage 1": "fused"}
    assert {kernel for kernel, training in during if training} == {"fused"}
    assert {kernel for kernel, training in during if not training} == {None}, "validation keeps the usual one"
    for earlier, kernel in (({"attention, stage 1": "math", "stage 1": "l2"}, "math"), ({}, None)):
        during.clear()
        again = fit(get("tp_ft"), fresh(tiny_model), tiny_data, alone, kernels=earlier)
        assert {kernel for kernel, training in during if training} == {kernel}, "trained again, it is the same run"
        assert again.choices == ({"attention, stage 1": "math"} if earlier else {})


def test_the_setting_is_checked_and_older_hashes_stay(tiny_model: ImageTextModel, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="attention is flash; it must be one of auto, math, fused"):
        Training(attention="flash")  # type: ignore[arg-type]
    assert "attention" not in settings_of(get("tp_ft"), Training(), tiny_model)
    assert settings_of(get("tp_ft"), Training(attention="math"), tiny_model)["attention"] == "math"
