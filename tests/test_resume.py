"""Interrupted anywhere and resumed, a run ends with the very same weights; nothing bad is ever written over what is good."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fresh
from open_clip.transformer import PatchDropout
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from surefoot.data import Dataset
from surefoot.errors import TrainingError
from surefoot.methods import METHODS, adapted, get, l2_sp, tp_ft
from surefoot.model import ImageTextModel
from surefoot.objective import Forward, Method, Objective, Stage, Term
from surefoot.train import Fitted, Step, Training, checkpoint, fit

TRAINING = Training(epochs=2, batch_size=8, learning_rate=1e-2)  # 3 steps an epoch, 6 in all
PROBE = {"l2": (1e-3, 0.0), "head_epochs": 2}  # 2 candidates of 6 steps
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ft": ("ft", {}, {}),
    "tp_ft": ("tp_ft", {}, {"clip_norm": 0.5}),
    "lp_ft": ("lp_ft", PROBE, {}),
    "l2_sp": ("l2_sp", {"pull": 0.1}, {}),
    "flyp": ("flyp", {}, {}),
    "flyp_ce": ("flyp_ce", {}, {}),
    "car_ft": ("car_ft", {"contexts": "own"}, {}),
    "arf": ("arf", {}, {}),
    "clip_cite": ("clip_cite", {}, {}),
    "lora": ("tp_ft", {"lora_rank": 2}, {}),
    "lora in both towers": ("flyp", {"lora_rank": 2, "lora_alpha": 4.0}, {}),
    "layers": ("tp_ft", {"layers": "visual[-1:]"}, {}),
    "one standard error": ("tp_ft", {}, {"keep": "one_standard_error"}),
    "last": ("tp_ft", {}, {"keep": "last"}),
    "steps": ("tp_ft", {}, {"steps": 7}),
    "balanced": ("flyp_ce", {}, {"sampling": "balanced"}),
}


class StoppedError(Exception):
    """Stands for whatever ends a run from outside."""


@dataclass
class Watch:
    """Remembers the steps that a run tells, and stops it after step `stop`."""

    stop: int = 10**9
    steps: list[Step] = field(default_factory=list)

    def __call__(self, step: Step) -> None:
        self.steps.append(step)
        torch.rand(7)  # what others draw must not matter
        if step.number >= self.stop:
            raise StoppedError


def interrupted(run: Callable[..., Fitted], path: Path, stop: int) -> None:
    with pytest.raises(StoppedError):
        run(resume=path, checkpoint_seconds=0, on_step=Watch(stop))


def assert_same(one: Fitted, other: Fitted) -> None:
    assert list(one.state) == list(other.state)
    assert [name for name in one.state if not torch.equal(one.state[name], other.state[name])] == []
    assert one.history == other.history
    assert (one.kept_epoch, one.choices, one.num_steps) == (other.kept_epoch, other.choices, other.num_steps)


def runner(model: ImageTextModel, data: Dataset, method: Method, training: Training) -> Callable[..., Fitted]:
    """A function that makes the same run again and again, each from its own copy of the model."""
    return lambda **how: fit(method, fresh(model), data, training, **how)


@pytest.fixture
def run(tiny_model: ImageTextModel, tiny_data: Dataset) -> Callable[..., Fitted]:
    return runner(tiny_model, tiny_data, get("tp_ft"), TRAINING)


def test_every_method_is_among_the_cases() -> None:
    assert {method for method, *_ in CASES.values()} == set(METHODS) - {"zero_shot", "lp"}  # lp has no step worth a checkpoint


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_ends_as_the_uninterrupted_one(case: str, tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    method, settings, training = CASES[case]
    run = runner(tiny_model, tiny_data, get(method, settings), replace(TRAINING, **training))
    before, path, first = (whole := Watch()), tmp_path / "run.resume", 12 if method == "lp_ft" else 0
    expected = run(on_step=whole)
    interrupted(run, path, first + 5)
    resumed = Watch()
    assert_same(run(resume=path, on_step=resumed), expected)
    assert [step.number for step in resumed.steps] == [step.number for step in before.steps if step.number >= first + 5]
    assert [(s.loss, s.total, s.cached) for s in resumed.steps] == [(s.loss, s.total, s.cached) for s in before.steps[first + 4 :]]


@pytest.mark.parametrize("rank", [0, 2])
def test_what_an_earlier_stage_made_of_another_tower_is_not_lost(
    rank: int, tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path
) -> None:
    first, second = get("flyp").stages[0], get("tp_ft", {"lora_rank": rank}).stages[0]
    run = runner(tiny_model, tiny_data, Method(name="both", stages=(first, replace(second, head="keep")), predict="head"), TRAINING)
    interrupted(run, tmp_path / "both", 9)  # in the middle of the second stage
    resumed = run(resume=tmp_path / "both", on_step=(watch := Watch()))
    assert watch.steps[0].number == 9
    assert_same(resumed, run())


def test_interrupted_after_any_step(run: Callable[..., Fitted], tmp_path: Path) -> None:
    expected, path = run(), tmp_path / "run.resume"
    for stop in range(1, 7):  # one run, killed after each of its steps
        interrupted(run, path, stop)
        assert path.is_file() == (stop > 1)
    assert_same(run(resume=path), expected)


def test_run_that_had_only_to_be_returned_is_not_trained_again(run: Callable[..., Fitted], tmp_path: Path) -> None:
    expected, watch = run(resume=tmp_path / "run.resume", checkpoint_seconds=0), Watch()
    assert_same(run(resume=tmp_path / "run.resume", on_step=watch), expected)
    assert not watch.steps


def test_stage_on_cached_features_starts_again(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    run, path = runner(tiny_model, tiny_data, get("lp_ft", PROBE), TRAINING), tmp_path / "run.resume"
    interrupted(run, path, 8)
    assert not path.exists()
    assert_same(run(resume=path), run())


def test_bfloat16_is_resumed_to_the_same_bits(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    tiny_model.precision = "bf16"
    run, path = runner(tiny_model, tiny_data, get("flyp", {"lora_rank": 2}), TRAINING), tmp_path / "run.resume"
    interrupted(run, path, 5)
    assert_same(run(resume=path), run())


SCRIPT = """
import sys, time, torch
from pathlib import Path
from surefoot.data import open_dataset
from surefoot.methods import get
from surefoot.model import load_model
from surefoot.train import Training, fit
model, data, path, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
def tell(step):
    print(step.number, flush=True)
    time.sleep(0.1 if step.number > 7 else 0)
training = Training(epochs=6, batch_size=8, learning_rate=1e-2)
fit(get("flyp"), load_model(model), open_dataset(Path(data)), training, resume=Path(path), checkpoint_seconds=0, on_step=tell)
"""


def test_killed_process_is_resumed_to_the_same_bits(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    run = runner(tiny_model, tiny_data, get("flyp"), replace(TRAINING, epochs=6))
    command = [sys.executable, "-c", SCRIPT, tiny_model.name, str(tiny_data.root), str(tmp_path / "a"), str(torch.get_num_threads())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 7:
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    watch = Watch()
    resumed = run(resume=tmp_path / "a", on_step=watch)
    assert 7 <= watch.steps[0].number < 18
    assert_same(resumed, run())


@pytest.mark.parametrize("where", ["dropout", "patches"])
def test_dropout_goes_on_where_it_stood(where: str, tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    plain = runner(fresh(tiny_model), tiny_data, get("tp_ft"), TRAINING)()
    visual = tiny_model.clip.visual
    if where == "patches":
        visual.patch_dropout = PatchDropout(0.5)
    else:
        visual.transformer.resblocks[0].mlp.gelu = nn.Sequential(nn.GELU(), nn.Dropout(0.3))
    run, path = runner(tiny_model, tiny_data, get("tp_ft"), TRAINING), tmp_path / "run.resume"
    expected = run()
    assert not torch.equal(expected.state["model.visual.proj"], plain.state["model.visual.proj"])  # it does drop
    interrupted(run, path, 5)
    assert_same(run(resume=path), expected)


def other_data(data: Dataset) -> Dataset:
    train = data.split("train")
    return replace(data, splits={**data.splits, "train": replace(train, paths=train.paths[1:], labels=train.labels[1:])})


@pytest.mark.parametrize("what", ["settings", "method", "method's settings", "layers", "seed", "data", "templates", "weights"])
def test_checkpoint_of_another_run_is_not_taken_up(what: str, tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    path, watch, method = tmp_path / "run.resume", Watch(1), l2_sp(pull=0.1)
    interrupted(runner(tiny_model, tiny_data, method, TRAINING), path, 5)
    training = replace(TRAINING, **{"settings": {"learning_rate": 2e-2}, "seed": {"seed": 1}}.get(what, {}))
    method = {"method": tp_ft(), "method's settings": l2_sp(pull=0.2), "layers": adapted(method, layers="visual[-1:]")}.get(what, method)
    data = {"data": other_data(tiny_data), "templates": replace(tiny_data, templates=("an {}.",))}.get(what, tiny_data)
    if what == "weights":
        with torch.no_grad():
            tiny_model.clip.visual.proj[0, 0] += 1e-6
    with pytest.raises(StoppedError):
        runner(tiny_model, data, method, training)(resume=path, on_step=watch)
    assert watch.steps[0].number == 1


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "progress":
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata()
        save_file(load_file(path), path, {**metadata, "progress": metadata["progress"][:-9]})
    else:
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "header": whole[:100], "noise": os.urandom(5000)}[how])


@pytest.mark.parametrize("how", ["empty", "half", "header", "noise", "progress"])
def test_damaged_checkpoint_is_told_and_the_run_starts_again(
    how: str, run: Callable[..., Fitted], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, watch = tmp_path / "run.resume", Watch(10**9 if how == "half" else 1)
    interrupted(run, path, 5)
    damage(path, how)
    with caplog.at_level(logging.WARNING):
        if how == "half":
            assert_same(run(resume=path, on_step=watch), run())
        else:
            with pytest.raises(StoppedError):
                run(resume=path, on_step=watch)
    assert watch.steps[0].number == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(path) in caplog.text
    assert "from its beginning" in caplog.text


def spoilt(from_step: int, spoil: Callable[[Tensor], Tensor]) -> Method:
    """Trains the image tower well for a while; `spoil` of the mean feature is added to the loss from one step on."""
    calls: list[int] = []

    def value(forward: Forward) -> Tensor:
        calls.append(1)
        good = forward.image.square().mean() + forward.image.mean()
        return good + spoil(forward.image.mean()) if len(calls) >= from_step else good

    stage = Stage(objective=Objective((Term("spoilt", value, frozenset({"image"})),)), trains=("visual",), head="from_text")
    return Method(name="spoilt", stages=(stage,), predict="text")


def bad_gradient(x: Tensor) -> Tensor:
    return (0 * x).sqrt()  # 0, with a gradient that is no number


def test_loss_that_is_not_finite_leaves_the_last_good_checkpoint(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "run.resume"
    run = runner(tiny_model, tiny_data, spoilt(5, lambda x: x * math.nan), TRAINING)
    with pytest.raises(TrainingError, match="The loss is nan at step 5") as error:
        run(resume=path, checkpoint_seconds=0)
    assert f"The last good checkpoint is {path}." in str(error.value)
    with safe_open(path, framework="pt") as stored:
        progress, tensors = checkpoint.load(path, stored.metadata()["identity"]) or (None, {})
    assert progress is not None
    assert (progress.step, progress.done, len(progress.history), len(progress.epoch_losses)) == (4, 4, 1, 1)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    assert {name for name in tensors if name.startswith("model.")} == {f"model.{name}" for name in tiny_model.groups()["visual"]}


def test_weight_that_is_not_finite_is_never_written(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    path, seen = tmp_path / "run.resume", []
    run = runner(tiny_model, tiny_data, spoilt(5, bad_gradient), TRAINING)
    with pytest.raises(TrainingError, match=r"not finite after step 5.*The last good checkpoint is"):
        run(resume=path, checkpoint_seconds=0, on_step=lambda step: seen.append(path.read_bytes() if path.is_file() else b""))
    assert path.read_bytes() == seen[4]  # as it was when step 5 was told
    assert [file.name for file in tmp_path.iterdir()] == ["run.resume"]


def test_weight_that_is_not_finite_in_the_end_is_not_returned(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    run = runner(tiny_model, tiny_data, spoilt(6, bad_gradient), replace(TRAINING, keep="last"))
    with pytest.raises(TrainingError, match="not finite after the last step"):
        run()


def test_checkpoint_of_another_run_is_not_called_the_last_good_one(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "run.resume").write_bytes(b"something else")
    with pytest.raises(TrainingError) as error:
        runner(tiny_model, tiny_data, spoilt(1, lambda x: x * math.inf), TRAINING)(resume=tmp_path / "run.resume")
    assert "checkpoint" not in str(error.value)


def test_full_disk_keeps_what_was_written_before(run: Callable[..., Fitted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, written, real = tmp_path / "run.resume", [], checkpoint.save_file

    def full(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        written.append(file)
        if len(written) == 4:
            file.write_bytes(b"the part that still had room")
            raise OSError(28, "No space left on device")
        real(tensors, file, metadata)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(TrainingError, match=r"No space left on device.*Make room"):
        run(resume=path, checkpoint_seconds=0)
    assert [file.name for file in tmp_path.iterdir()] == ["run.resume"]
    watch = Watch()
    assert_same(run(resume=path, on_step=watch), run())
    assert watch.steps[0].number == 4


def test_folder_that_cannot_be_made_is_said(run: Callable[..., Fitted], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="could not be written"):
        run(resume=tmp_path / "file" / "run.resume", checkpoint_seconds=0)


@pytest.mark.parametrize(("name", "rank"), [("tp_ft", 0), ("tp_ft", 2), ("lp_ft", 0)])
def test_interrupted_model_is_left_without_adapters_gradients_or_training_mode(
    name: str, rank: int, tiny_model: ImageTextModel, tiny_data: Dataset
) -> None:
    names = [name for name, _ in tiny_model.named_parameters()]
    with pytest.raises(StoppedError):
        fit(get(name, {"lora_rank": rank}), tiny_model, tiny_data, TRAINING, on_step=Watch(2))
    assert sorted(name for name, _ in tiny_model.named_parameters()) == sorted(names)
    assert not any(module.training for module in tiny_model.modules())
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


def test_checkpoints_are_written_no_more_often_than_asked(run: Callable[..., Fitted], tmp_path: Path) -> None:
    run(resume=tmp_path / "new" / "run.resume", checkpoint_seconds=3600)
    assert not (tmp_path / "new").exists()
    run(resume=tmp_path / "new" / "run.resume", checkpoint_seconds=0)
    assert (tmp_path / "new" / "run.resume").is_file()
