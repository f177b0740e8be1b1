"""The same run on one process or on two: the same global batch, the same gradients, the same weights."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from conftest import anchored, fresh
from test_chunked import assert_close
from test_resume import CASES
from torch import Tensor

from surefoot import distributed
from surefoot.data import Dataset
from surefoot.distributed import share
from surefoot.methods import get
from surefoot.model import ImageTextModel, load_model
from surefoot.train import Training, fit

PROCESSES = 2
TRAINING = Training(steps=10, batch_size=9, learning_rate=1e-5)  # 9 images are shared as 5 and 4
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{name: (method, settings, {k: v for k, v in how.items() if k != "steps"}) for name, (method, settings, how) in CASES.items()},
    "in chunks": ("flyp", {}, {"chunk_size": 2}),
    "anchors in chunks": ("arf", {}, {"chunk_size": 2}),
    "mirrored": ("tp_ft", {}, {"flip": True}),
    "fewer than processes": ("tp_ft", {}, {"batch_size": 2}),
}
Found = dict[str, tuple[list[Tensor], dict[str, Tensor], list[float]]]


def first_gradients(run: Callable[[], None]) -> list[Tensor]:
    """Of the first step that moves a tower, while `run` goes on."""
    found: list[Tensor] = []
    step = torch.optim.AdamW.step

    def seen(self: torch.optim.AdamW) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        if len(parameters) > 2 and not found:
            found.extend(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters)
        step(self)

    torch.optim.AdamW.step = seen  # type: ignore[method-assign, assignment]
    try:
        run()
    finally:
        torch.optim.AdamW.step = step  # type: ignore[method-assign]
    return found


def all_runs(model: ImageTextModel, data: Dataset) -> Found:
    """{variant: gradients of its first step, its last weights, its losses}."""
    made: Found = {}
    for name, (method, settings, how) in VARIANTS.items():
        losses: list[float] = []
        weights: dict[str, Tensor] = {}

        def run() -> None:
            fitted = fit(
                get(method, settings), fresh(model), data, replace(TRAINING, **how), on_step=lambda step: losses.append(step.loss)  # noqa: B023
            )  # fmt: skip
            weights.update(fitted.state)  # noqa: B023

        made[name] = (first_gradients(run), weights, losses)
    return made


def work(number: int, port: int, folder: str, data: Dataset, out: str) -> None:
    """One of the processes."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.start(torch.device("cpu"))
    assert (distributed.rank(), distributed.num_processes(), distributed.is_first()) == (number, PROCESSES, number == 0)
    torch.save(all_runs(load_model(f"local-dir:{folder}"), data), f"{out}/{number}.pt")
    distributed.wait()
    distributed.end()
    assert distributed.num_processes() == 1


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def together(tiny_folder: Path, tiny_root: Path, tiny_pool: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of two processes found."""
    out = tmp_path_factory.mktemp("together")
    data = anchored(tiny_root, tiny_pool, load_model(f"local-dir:{tiny_folder}"))
    torch.multiprocessing.spawn(work, (free_port(), str(tiny_folder), data, str(out)), nprocs=PROCESSES)
    return [torch.load(out / f"{number}.pt", weights_only=True) for number in range(PROCESSES)]


@pytest.fixture(scope="module")
def alone(loaded_model: ImageTextModel, tiny_root: Path, tiny_pool: tuple[Path, ...]) -> Found:
    """What one process finds."""
    return all_runs(loaded_model, anchored(tiny_root, tiny_pool, loaded_model))


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_those_of_one_process(name: str, together: list[Found], alone: Found) -> None:
    for found in together:
        assert_close(alone[name][0], found[name][0])


def told(name: str, weight: Tensor) -> Tensor:
    """A weight without the bias of attention's keys: softmax does not see it, so its gradient is rounding, which AdamW makes steps of."""
    return torch.cat([part for number, part in enumerate(weight.chunk(3)) if number != 1]) if name.endswith("in_proj_bias") else weight


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_after_ten_steps_are_those_of_one_process(name: str, together: list[Found], alone: Found) -> None:
    _, one, losses = alone[name]
    assert len(losses) >= TRAINING.num_steps(24)
    for _, two, theirs in (found[name] for found in together):
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(losses), rtol=1e-4, atol=1e-5)
        assert list(one) == list(two)
        for key, weight in one.items():
            torch.testing.assert_close(told(key, two[key]), told(key, weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_processes_end_with_the_same_bits(name: str, together: list[Found]) -> None:
    first, second = (found[name][1] for found in together)
    assert all(torch.equal(weight, second[key]) for key, weight in first.items())


@pytest.mark.parametrize("total", [2, 3, 7, 8, 100])
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_shares_are_all_rows_once_and_differ_by_one_at_most(total: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "num_processes", lambda: processes)
    rows = [list(range(total))[share(total, of)] for of in range(processes)]
    if total < processes:
        assert rows == [list(range(total))] * processes
    else:
        assert [row for part in rows for row in part] == list(range(total))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_alone_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.start(torch.device("cpu")) == torch.device("cpu")
    assert distributed.num_processes() == 1
    assert distributed.merged({"a": 1}) == {"a": 1}
    distributed.end()
