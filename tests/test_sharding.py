"""Two processes that hold the towers together (FSDP2): the gradients and the weights of one process, in parts of half the size."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from conftest import anchored, fresh, typed
from test_chunked import assert_close
from test_distributed import PROCESSES, TRAINING, VARIANTS, Found, all_runs, free_port, told, torchrun
from test_resume import StoppedError, Watch
from torch import Tensor

from surefoot import distributed, records
from surefoot.data import Dataset
from surefoot.data.subsets import take
from surefoot.distributed import whole
from surefoot.errors import SettingError
from surefoot.methods import get
from surefoot.model import ImageTextModel, load_model
from surefoot.train import Training, fit, sharding, validate
from surefoot.train.loop import _Run
from surefoot.train.settings import settings_of

SHARED = replace(TRAINING, sharding="fsdp")
CASES = {name: case for name, case in VARIANTS.items() if not name.startswith("lora")} | {
    "activations again": ("flyp", {}, {"checkpointing": True}),
    "all at once": ("arf", {}, {"chunk_size": 4, "checkpointing": True, "clip_norm": 0.1}),  # shares of 5 and 4 are 2 chunks and 1
}
NUM_VAL, BATCH = 11, 5  # shares of 6 and 5 are 2 batches and 1


def first_gradients(run: Callable[[], None]) -> list[Tensor]:
    """Of the first step that moves a tower, by name, as the optimizer uses them."""
    found: dict[str, Tensor] = {}
    step = _Run.step

    def seen(self: _Run, *given: Any) -> float:  # noqa: ANN401
        loss, moving = step(self, *given), given[4]
        if len(moving.named) > 2 and not found:
            found.update({name: whole(torch.zeros_like(p) if p.grad is None else p.grad).clone() for name, p in moving.named.items()})
        return loss

    _Run.step = seen  # type: ignore[method-assign]
    try:
        run()
    finally:
        _Run.step = step  # type: ignore[method-assign]
    return [found[name] for name in sorted(found)]


def parts(model: ImageTextModel, data: Dataset) -> tuple[float, float, list[str]]:
    """The share of the towers' weights and of their moments that lies here while FLYP trains, and what is left behind afterwards."""
    model, held = fresh(model), list[float]()
    towers = ("visual.", "transformer.")

    def size(tensor: Tensor) -> int:
        return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).numel()

    def seen(_: object) -> None:
        held.append(sum(size(p) for name, p in model.clip.named_parameters() if name.startswith(towers)))

    moments: list[int] = []
    step = torch.optim.AdamW.step

    def counted(self: torch.optim.AdamW) -> None:
        step(self)
        moments.append(sum(size(state["exp_avg"]) for state in self.state.values()))

    torch.optim.AdamW.step = counted  # type: ignore[method-assign, assignment]
    plain = model.clip
    fit(get("flyp"), model, data, replace(SHARED, steps=2), on_step=seen)
    torch.optim.AdamW.step = step  # type: ignore[method-assign]
    every = {name: p.numel() for name, p in model.clip.named_parameters()}
    of_towers = sum(number for name, number in every.items() if name.startswith(towers))
    left = [name for name, p in model.named_parameters() if type(p) is not torch.nn.Parameter or p.grad is not None]
    left += [] if model.clip is plain else ["another module"]
    outside = sum(every.values()) - of_towers
    return max(held) / of_towers, (max(moments) - outside) / of_towers, left


def stopped(model: ImageTextModel, data: Dataset, path: Path, method: str = "clip_cite") -> None:
    """A run that ends after its sixth step, of which the fifth is on disk."""
    with pytest.raises(StoppedError):
        fit(get(method), model, data, SHARED, resume=path, checkpoint_seconds=0, on_step=Watch(6))


def work(number: int, port: int, folder: str, data: Dataset, out: str) -> None:
    """One of the processes."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    validate.BATCH = BATCH
    distributed.start(torch.device("cpu"))
    model = load_model(f"local-dir:{folder}")
    found: dict[str, Any] = {"runs": all_runs(model, data, CASES, SHARED, first_gradients), "parts": parts(model, data)}
    start = model.weights()
    stopped(ended := fresh(model), data, Path(out) / "run.resume")
    found["after an error"] = all(torch.equal(start[name], tensor) for name, tensor in ended.weights().items())
    distributed.wait()
    if number == 0:
        (Path(out) / "copy.resume").write_bytes((Path(out) / "run.resume").read_bytes())
    distributed.wait()
    found["resumed"] = fit(get("clip_cite"), fresh(model), data, SHARED, resume=Path(out) / "run.resume", on_step=(watch := Watch())).state
    found["from"] = watch.steps[0].number
    torch.save(found, f"{out}/{number}.pt")
    distributed.wait()
    distributed.end()


@pytest.fixture(scope="module")
def data(loaded_model: ImageTextModel, tiny_root: Path, tiny_pool: tuple[Path, ...]) -> Dataset:
    every = anchored(tiny_root, tiny_pool, loaded_model)
    return replace(every, splits={**every.splits, "val": take(every.split("val"), range(NUM_VAL))})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def together(tiny_folder: Path, data: Dataset, folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found."""
    torch.multiprocessing.spawn(work, (free_port(), str(tiny_folder), data, str(folder)), nprocs=PROCESSES)
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(PROCESSES)]


@pytest.fixture(scope="module")
def alone(loaded_model: ImageTextModel, data: Dataset) -> Found:
    """What one process finds."""
    return all_runs(loaded_model, data, CASES, SHARED, first_gradients)


def assert_near(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> None:
    assert list(one) == list(two)
    for key, weight in one.items():
        torch.testing.assert_close(told(key, two[key]), told(key, weight), rtol=1e-5, atol=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize("name", CASES)
def test_gradients_and_weights_are_those_of_one_process(name: str, together: list[dict[str, Any]], alone: Found) -> None:
    gradients, weights, losses = alone[name]
    for found in together:
        theirs, two, said = found["runs"][name]
        assert_close(gradients, theirs)
        torch.testing.assert_close(torch.tensor(said), torch.tensor(losses), rtol=1e-4, atol=1e-5)
        assert_near(weights, two)
    first, second = (found["runs"][name][1] for found in together)
    assert all(torch.equal(weight, second[key]) for key, weight in first.items())


@pytest.mark.distributed
def test_each_process_holds_half_and_nothing_is_left_of_it(together: list[dict[str, Any]]) -> None:
    for found in together:
        weights, moments, left = found["parts"]
        assert 0.4 < weights < 0.6
        assert 0.4 < moments < 0.6
        assert left == []
        assert found["after an error"], "the weights that training began with"


@pytest.mark.distributed
def test_a_run_goes_on_on_as_many_processes_or_on_one(
    together: list[dict[str, Any]], loaded_model: ImageTextModel, data: Dataset, folder: Path
) -> None:
    whole_run = together[0]["runs"]["clip_cite"][1]
    for found in together:
        assert found["from"] == 6
        assert [name for name, tensor in found["resumed"].items() if not torch.equal(tensor, whole_run[name])] == []
    watch = Watch()
    one = fit(get("clip_cite"), fresh(loaded_model), data, SHARED, resume=folder / "copy.resume", on_step=watch)
    assert watch.steps[0].number == 6
    assert_near(one.state, whole_run)


@pytest.mark.distributed
def test_compare_with_shared_weights_writes_what_one_process_writes(
    tiny_root: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["--model", f"local-dir:{tiny_folder}", "--methods", "flyp", "--seeds", "0", "--device", "cpu", "--precision", "fp32"]
    how += ["--set", "epochs=2", "--set", "batch_size=9", "--set", "learning_rate=1e-4", "--set", "sharding=fsdp"]
    both = torchrun("compare", tiny_root, *how, "--out", tmp_path / "two")
    assert both.returncode == 0, both.stderr
    assert typed(monkeypatch, capsys, "compare", tiny_root, *how, "--out", tmp_path / "one")[0] == 0
    one, two = ([r for r in records.read(tmp_path / name) if isinstance(r, records.Evaluation)] for name in ("one", "two"))
    assert [(r.method, r.alpha, r.settings_hash) for r in two] == [(r.method, r.alpha, r.settings_hash) for r in one]
    for a, b in zip(one, two, strict=True):
        assert b.accuracy == pytest.approx(a.accuracy, abs=1e-9)


@pytest.mark.parametrize(("method", "how", "words"), [
    (get("tp_ft", {"lora_rank": 2}), {}, "leave lora_rank or sharding out"),
    (get("tp_ft"), {"compile": "on"}, "leave compile and channels_last, or sharding, out"),
    (get("tp_ft"), {"channels_last": "on"}, "leave compile and channels_last, or sharding, out"),
])  # fmt: skip
def test_what_cannot_share_its_weights_is_refused(
    method: Any, how: dict[str, Any], words: str, tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch  # noqa: ANN401
) -> None:  # fmt: skip
    monkeypatch.setattr(sharding, "num_processes", lambda: 2)
    with pytest.raises(SettingError, match=f"tp_ft cannot run: sharding=fsdp .*{words}"):
        fit(method, tiny_model, tiny_data, replace(SHARED, **how))
    assert not sharding.sharding_problems(method, replace(TRAINING, **how))


def test_one_process_holds_all(tiny_model: ImageTextModel) -> None:
    assert not sharding.shares_weights(SHARED)
    assert settings_of(get("flyp"), SHARED, tiny_model)["sharding"] == "fsdp"
    with pytest.raises(SettingError, match="sharding is zero3; it must be one of none, fsdp"):
        Training(sharding="zero3")  # type: ignore[arg-type]


def test_shorter_shares_are_filled_up_where_all_must_call_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "num_processes", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 2)
    seen: list[Tensor] = []
    rows = torch.arange(20.0).reshape(10, 2)[distributed.share(10)]

    def encode(given: Tensor) -> Tensor:
        seen.append(given)
        return 2 * given

    assert torch.equal(distributed.evened(encode, rows, 10), 2 * rows)
    with distributed.calls_alike():
        assert torch.equal(distributed.evened(encode, rows, 10), 2 * rows)
        assert torch.equal(distributed.evened(encode, rows[:2], 2), 2 * rows[:2])
    assert [len(given) for given in seen] == [3, 4, 2]
