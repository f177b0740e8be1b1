"""Compiled kernels and layouts of the image tower: the same loss and gradients, chosen in long runs alone, refused where they cannot be."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
import torch.multiprocessing
from conftest import fresh, with_resnet
from test_chunked import assert_close
from test_distributed import first_gradients, free_port
from test_resume import assert_same, interrupted, runner
from torch import Tensor, nn

from surefoot import distributed
from surefoot.data import Dataset
from surefoot.errors import SettingError
from surefoot.layers import encoding_by, image_tower
from surefoot.methods import get
from surefoot.model import ImageTextModel, load_model
from surefoot.train import Training, fit, kernels
from surefoot.train.settings import settings_of

SHORT = Training(epochs=1, batch_size=8, learning_rate=1e-3)
WAYS: dict[str, dict[str, Any]] = {"in chunks": {"chunk_size": 3}, "checkpointing": {"checkpointing": True}}


def run_of(
    name: str, model: ImageTextModel, data: Dataset, training: Training, settings: Mapping[str, Any] | None = None
) -> tuple[list[Tensor], list[float]]:
    """The gradients of the first step, and all losses."""
    losses: list[float] = []

    def run() -> None:
        fit(get(name, settings), fresh(model), data, training, on_step=lambda step: losses.append(step.loss))

    return first_gradients(run), losses


@pytest.mark.slow
@pytest.mark.parametrize(("tower", "way", "backend"), [
    ("vit", "whole", "inductor"), ("vit", "in chunks", "aot_eager"), ("vit", "checkpointing", "aot_eager"),
    ("resnet", "whole", "aot_eager"), ("vit", "low rank", "aot_eager"),
])  # fmt: skip
def test_compiled_tower_gives_the_same_losses_and_gradients(
    tower: str, way: str, backend: str, tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs are captured alike by both backends; "inductor", the real one, calls the C++ compiler, which takes a minute."""
    model, training = with_resnet(tiny_model) if tower == "resnet" else tiny_model, replace(SHORT, **WAYS.get(way, {}))
    if backend != "inductor":
        real = torch.compile
        monkeypatch.setattr(torch, "compile", lambda encode: real(encode, backend=backend))
    settings = {"lora_rank": 2} if way == "low rank" else {}
    gradients, losses = run_of("flyp", model, tiny_data, training, settings)
    counters = torch._dynamo.utils.counters
    counters.clear()
    on = replace(training, compile="on", channels_last="on" if tower == "resnet" else "off")
    compiled, theirs = run_of("flyp", model, tiny_data, on, settings)
    assert counters["stats"]["unique_graphs"] >= 1, "something was compiled"
    assert not counters["graph_break"]
    assert not counters["recompile_limit"]
    assert_close(gradients, compiled)
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(losses), rtol=1e-5, atol=1e-5)


def work(number: int, port: int, folder: str, data: Dataset, out: str) -> None:
    """One of two processes, which trains compiled."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.start(torch.device("cpu"))
    real = torch.compile
    torch.compile = lambda encode: real(encode, backend="aot_eager")  # type: ignore[assignment]
    training = replace(SHORT, batch_size=9, compile="on", channels_last="on")
    torch.save(run_of("flyp", load_model(f"local-dir:{folder}"), data, training), f"{out}/{number}.pt")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    distributed.wait()
    distributed.end()


@pytest.mark.distributed
def test_compiled_on_two_processes_gives_the_gradients_of_one(
    tiny_model: ImageTextModel, tiny_folder: Path, tiny_data: Dataset, tmp_path: Path
) -> None:
    gradients, losses = run_of("flyp", tiny_model, tiny_data, replace(SHORT, batch_size=9))
    torch.multiprocessing.spawn(work, (free_port(), str(tiny_folder), tiny_data, str(tmp_path)), nprocs=2)
    for number in range(2):
        theirs, said = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert_close(gradients, theirs)
        torch.testing.assert_close(torch.tensor(said), torch.tensor(losses), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_channels_last_gives_the_same_losses_and_gradients_and_is_put_back(
    tower: str, tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path
) -> None:
    model = with_resnet(tiny_model) if tower == "resnet" else tiny_model
    layouts: list[bool] = []
    conv = "visual.conv1.weight"

    class Watched(ImageTextModel):
        def encode_image(self, image: Tensor) -> Tensor:
            if self.training:
                weight = self.clip.get_parameter(conv)
                layouts.append(weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous())
            return super().encode_image(image)

    gradients, losses = run_of("tp_ft", model, tiny_data, SHORT)
    model.__class__ = Watched
    on = replace(SHORT, channels_last="on")
    innermost, theirs = run_of("tp_ft", model, tiny_data, on)
    assert layouts and all(layouts)
    assert_close(gradients, innermost)
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(losses), rtol=1e-5, atol=1e-5)
    run = runner(model, tiny_data, get("tp_ft"), replace(on, epochs=2))
    interrupted(run, tmp_path / "run.resume", 3)
    assert_same(run(resume=tmp_path / "run.resume"), run())
    fit(get("tp_ft"), model, tiny_data, on)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_another_way_to_encode_counts_for_its_model_alone(tiny_model: ImageTextModel) -> None:
    image, other = torch.randn(2, 3, 32, 32), tiny_model.frozen_copy()
    usual = tiny_model.encode_image(image)
    turned = lambda given: tiny_model.clip.encode_image(given.flip(-1))  # noqa: E731
    with encoding_by(tiny_model.clip, turned):
        assert torch.equal(tiny_model.encode_image(image), tiny_model.encode_image(image)) and image_tower(tiny_model.clip) is turned
        assert not torch.equal(tiny_model.encode_image(image), usual)
        assert torch.equal(other.encode_image(image), usual)
        with encoding_by(other.clip, None):
            assert image_tower(tiny_model.clip) is turned
    assert torch.equal(tiny_model.encode_image(image), usual)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is measured, where nothing is compiled and every measurement says that the other way is faster."""
    found: list[str] = []
    monkeypatch.setattr(kernels, "fastest_attention", lambda *_: (found.append("attention"), "math")[1])
    monkeypatch.setattr(kernels, "channels_last_is_faster", lambda *_: bool(found.append("channels-last") or True))
    monkeypatch.setattr(kernels, "compiled_is_faster", lambda *_: bool(found.append("compiled") or True))
    monkeypatch.setattr(kernels, "compiled", lambda encode: lambda image: encode(image))
    return found


def pick(choices: dict[str, Any], model: ImageTextModel, training: Training, *, measure: bool = True) -> kernels.Kernels:
    return kernels.pick_kernels(choices, 0, model, training, num_images=1000, measure=measure)


@pytest.mark.parametrize("training", [Training(steps=kernels.LONG - 1), Training(steps=kernels.LONG, compile="off", channels_last="off")])
def test_short_runs_measure_nothing_and_compute_as_ever(training: Training, tiny_model: ImageTextModel, measured: list[str]) -> None:
    found = pick(choices := {}, tiny_model, replace(training, attention="math"))
    assert (found, choices, measured) == (kernels.Kernels("math", None), {}, [])
    assert tiny_model.clip.visual.conv1.weight.is_contiguous()


def test_a_long_run_takes_what_is_faster_and_keeps_it(
    tiny_model: ImageTextModel, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, long = pick(choices := {}, tiny_model, Training(steps=kernels.LONG)), Training(steps=kernels.LONG)
    assert measured == ["attention", "channels-last", "compiled"]
    assert choices == {"attention, stage 1": "math", "channels-last, stage 1": "on", "compiled, stage 1": "on"}
    assert all(name.startswith(kernels.KERNEL) for name in choices), "what a run that is trained again takes over"
    assert found.encode is not None and not tiny_model.clip.visual.conv1.weight.is_contiguous()
    assert pick(choices, tiny_model, long, measure=False).encode is not None, "kept on a resume"
    assert pick(before := {"attention, stage 1": "math"}, tiny_model, long, measure=False).encode is None, "begun without"
    assert len(before) == 1
    monkeypatch.setattr(kernels, "num_processes", lambda: 2)
    assert pick({}, tiny_model, long).encode is None
    assert measured == ["attention", "channels-last", "compiled"]


def test_statistics_that_passes_would_move_are_not_measured(tiny_model: ImageTextModel, measured: list[str]) -> None:
    model = with_resnet(tiny_model)
    model.train()
    assert pick({}, model, Training(steps=kernels.LONG)) == kernels.Kernels()
    kernels_of_run = pick({}, model.eval(), Training(steps=kernels.LONG))
    assert measured == ["channels-last", "compiled"]
    assert kernels_of_run.encode is not None


@pytest.mark.parametrize(("pace", "compiles", "faster"), [(3.0, True, True), (1.9, False, False)])
def test_only_a_tower_that_takes_long_is_compiled_for_a_trial(
    pace: float, compiles: bool, faster: bool, tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, asked = [0.0], list[str]()

    def taken(model: ImageTextModel, _: Tensor) -> None:
        now[0] += pace if image_tower(model.clip) is plain else pace / 2

    plain, quick = kernels._encoder(tiny_model, False), lambda image: image
    monkeypatch.setattr(kernels, "forward_and_backward", taken)
    monkeypatch.setattr(kernels, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(kernels, "compiled", lambda _: (asked.append("compiled"), quick)[1])
    assert kernels.compiled_is_faster(tiny_model, 2, plain, lambda: kernels.compiled(plain), 300) == faster
    assert bool(asked) == compiles


def trial(model: ImageTextModel) -> bool:
    plain = kernels._encoder(model, False)
    return kernels.compiled_is_faster(model, 2, plain, lambda: kernels.compiled(plain), 300)


@contextmanager
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(_: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def encode(image: Tensor) -> Tensor:
            raise RuntimeError("No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')\n\nmore")

        return encode

    monkeypatch.setattr(kernels, "compiled", fail)
    yield


def test_no_compiler_is_told_and_the_run_goes_on(
    tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "WORTH", 0.0)
    with without_compiler(monkeypatch), caplog.at_level(logging.WARNING):
        assert not trial(tiny_model)
    assert "cannot be compiled here (No working C++ compiler found" in caplog.text
    assert "the run goes on uncompiled. torch.compile needs a C++ compiler that works, such as g++." in caplog.text


def test_no_compiler_is_an_error_where_compiling_was_asked_for(
    tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with without_compiler(monkeypatch), pytest.raises(SettingError, match=r"compile is on.*No working C\+\+ compiler.*set compile=off"):
        fit(get("tp_ft"), tiny_model, tiny_data, replace(SHORT, compile="on"))
    assert not any(parameter.grad is not None for parameter in tiny_model.parameters())


def test_a_resume_where_nothing_can_be_compiled_goes_on_uncompiled(
    tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with without_compiler(monkeypatch), caplog.at_level(logging.WARNING):
        found = pick({"compiled, stage 1": "on"}, tiny_model, Training(steps=kernels.LONG), measure=False)
    assert found == kernels.Kernels()
    assert "the run goes on uncompiled" in caplog.text


@pytest.mark.slow
def test_a_compiler_that_is_missing_is_found_out(tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._functorch.config
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(torch._inductor.config, "fx_graph_cache", False)  # nothing that was compiled before
    monkeypatch.setattr(torch._functorch.config, "enable_autograd_cache", False)
    assert "no-such-compiler" in kernels.broken(tiny_model, 2, kernels.compiled(kernels._encoder(tiny_model, False)))
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


def test_towers_that_draw_are_not_compiled_for_a_trial(tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "WORTH", 0.0)
    monkeypatch.setattr(kernels, "compiled", lambda _: pytest.fail("compiled"))
    assert not kernels.draws(tiny_model)
    tiny_model.clip.visual.transformer.resblocks[0].mlp.gelu = nn.Sequential(nn.GELU(), nn.Dropout(0.3))
    assert kernels.draws(tiny_model)
    assert not trial(tiny_model)
    tiny_model.clip.visual.transformer.resblocks[0].mlp.gelu = nn.GELU()
    tiny_model.clip.visual.patch_dropout = open_clip.transformer.PatchDropout(0.5)
    assert kernels.draws(tiny_model)


def test_a_trial_leaves_layout_weights_and_gradients_as_they_were(tiny_model: ImageTextModel) -> None:
    before = tiny_model.weights()
    assert kernels.channels_last_is_faster(tiny_model, 2) in (True, False)
    assert tiny_model.clip.visual.conv1.weight.is_contiguous()
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_model.weights().items())
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


def test_settings_are_checked_and_older_hashes_stay(tiny_model: ImageTextModel) -> None:
    with pytest.raises(SettingError, match=r"channels_last is yes; it must be one of auto, on, off; compile is true; it must be one of"):
        Training(channels_last="yes", compile="true")  # type: ignore[arg-type]
    assert not {"compile", "channels_last", "sharding"} & set(settings_of(get("tp_ft"), Training(), tiny_model))
    assert settings_of(get("tp_ft"), Training(compile="on"), tiny_model)["compile"] == "on"
