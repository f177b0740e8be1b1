"""The same run on one process or on two: the same global batch, the same gradients, the same weights."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.multiprocessing
from conftest import anchored, fresh, typed
from test_chunked import assert_close
from test_resume import CASES
from torch import Tensor

from surefoot import distributed, records
from surefoot.bundle import load_bundle
from surefoot.data import Dataset
from surefoot.distributed import share
from surefoot.methods import get
from surefoot.model import ImageTextModel, load_model
from surefoot.train import Training, fit

batches = importlib.import_module("surefoot.train.batches")  # the package has a function of that name
PROCESSES = 2
TRAINING = Training(steps=10, batch_size=9, learning_rate=1e-5)  # 9 images are shared as 5 and 4
Case = tuple[str, dict[str, Any], dict[str, Any]]
"""A method, its settings, and those of its training."""
VARIANTS: dict[str, Case] = {
    **{name: (method, settings, {k: v for k, v in how.items() if k != "steps"}) for name, (method, settings, how) in CASES.items()},
    "in chunks": ("flyp", {}, {"chunk_size": 2}),
    "anchors in chunks": ("arf", {}, {"chunk_size": 2}),
    "mirrored": ("tp_ft", {}, {"flip": True}),
    "fewer than processes": ("tp_ft", {}, {"batch_size": 2}),
    "by shards": ("flyp", {}, {"shuffle": "shards:2"}),
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


def all_runs(
    model: ImageTextModel,
    data: Dataset,
    cases: Mapping[str, Case] = VARIANTS,
    training: Training = TRAINING,
    gradients: Callable[[Callable[[], None]], list[Tensor]] = first_gradients,
) -> Found:
    """{case: gradients of its first step, its last weights, its losses}."""
    made: Found = {}
    for name, (method, settings, how) in cases.items():
        losses: list[float] = []
        weights: dict[str, Tensor] = {}

        def run() -> None:
            with mock.patch.object(batches, "PER_SHARD", 5):  # the images in folders count to shards of five
                own = replace(training, **how)  # noqa: B023
                fitted = fit(get(method, settings), fresh(model), data, own, on_step=lambda step: losses.append(step.loss))  # noqa: B023
            weights.update(fitted.state)  # noqa: B023

        made[name] = (gradients(run), weights, losses)
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


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in two processes."""
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES), "--master-port", str(free_port()), "-m", "surefoot"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run([sys.executable, *start, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False)


def test_compare_in_two_processes_writes_what_one_writes(
    tiny_root: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["--model", f"local-dir:{tiny_folder}", "--methods", "lp,tp_ft,flyp", "--seeds", "0", "--device", "cpu", "--precision", "fp32"]
    how += ["--set", "epochs=2", "--set", "batch_size=9", "--set", "learning_rate=1e-4", "--references", "0.5,1"]
    both = torchrun("compare", tiny_root, *how, "--out", tmp_path / "two")
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("Report:") == 1
    code, _ = typed(monkeypatch, capsys, "compare", tiny_root, *how, "--out", tmp_path / "one")
    assert code == 0
    one, two = (list(records.read(tmp_path / name)) for name in ("one", "two"))
    assert [type(record) for record in two] == [type(record) for record in one]
    for a, b in zip(one, two, strict=True):
        if isinstance(a, records.Evaluation | records.Reference):
            assert isinstance(b, records.Evaluation | records.Reference)
            assert list(b.accuracy) == list(a.accuracy)
            assert b.accuracy == pytest.approx(a.accuracy, abs=1e-9)
            first, second = (records.load_answers(tmp_path / name, r.answers) for name, r in (("one", a), ("two", b)))
            assert list(first) == list(second)
            assert all((given.prediction == second[key].prediction).all() for key, given in first.items())
    again = torchrun("compare", tiny_root, *how, "--out", tmp_path / "two")
    assert again.returncode == 0, again.stderr
    assert list(records.read(tmp_path / "two")) == two  # nothing finished is done again


def test_fit_in_two_processes_leaves_one_model(tiny_root: Path, tiny_folder: Path, tmp_path: Path) -> None:
    how = ["--model", f"local-dir:{tiny_folder}", "--device", "cpu", "--precision", "fp32", "--set", "epochs=1"]
    done = torchrun("fit", tiny_root, *how, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert load_bundle(tmp_path / "run/model").card.class_names == ["bar", "square box", "disc"]
    assert (tmp_path / "run/report/index.html").is_file()


@pytest.mark.parametrize(("arguments", "words"), [
    (["tune", "DATA", "--method", "flyp"], "surefoot tune runs in one process. Start it without torchrun."),
    (["compare", "DATA", "--trials", "2"], "Settings are searched by one process."),
    (["compare", "DATA", "--curves", "outputs"], "Curves are drawn by one process."),
])  # fmt: skip
def test_what_several_processes_cannot_share_is_refused(
    arguments: list[str], words: str, tiny_root: Path, tiny_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "start", lambda device: device)
    monkeypatch.setattr("surefoot.compare.comparison.num_processes", lambda: 2)
    given = [str(tiny_root) if word == "DATA" else word for word in arguments]
    code, said = typed(monkeypatch, capsys, *given, "--model", f"local-dir:{tiny_folder}", "--out", tmp_path / "run")
    assert code == 2
    assert words in said
    assert not (tmp_path / "run").exists()


def test_errors_of_a_run_in_two_processes_end_it(tiny_root: Path, tmp_path: Path) -> None:
    done = torchrun("fit", tiny_root, "--model", "iconclip", "--set", "epochs=0", "--out", tmp_path / "run")
    assert done.returncode != 0
    assert "epochs is 0; it must be 1 or more" in " ".join(done.stderr.split())
