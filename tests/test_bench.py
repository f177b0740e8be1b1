"""Where a step's time goes: parts that add up, a count of operations, and a sentence that names the largest."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from conftest import fresh, typed

from surefoot import bench
from surefoot.bench import Profile, profile
from surefoot.clock import PARTS, Clock, StepClock
from surefoot.data import Dataset
from surefoot.errors import SettingError
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.train import Training

TRAINING = Training(batch_size=4)


class Ticks:
    """Stands for `time.perf_counter`, so that a test says what takes how long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def work(self, seconds: float) -> None:
        self.now += seconds


def test_a_part_counts_without_the_parts_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ticks = StepClock(torch.device("cpu")), Ticks(monkeypatch)
    for step in range(2):
        ticks.work(50.0)  # nobody's
        with clock("loss"):
            ticks.work(1.0)
            with clock("image tower"):
                ticks.work(2.0 + step)
            with clock("reference"), clock("text tower"):
                ticks.work(4.0)
            ticks.work(8.0)
        clock.end_step()
    assert clock.steps == [{"loss": 9.0, "image tower": 2.0 + step, "reference": 0.0, "text tower": 4.0} for step in range(2)]


def test_waiting_counts_what_the_items_take_and_not_what_is_done_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ticks = StepClock(torch.device("cpu")), Ticks(monkeypatch)

    def items() -> object:
        for number in range(3):
            ticks.work(number)
            yield number

    for number in clock.waiting("input", items()):  # type: ignore[arg-type]
        ticks.work(100.0)
        clock.end_step()
        assert clock.steps[-1] == {"input": number}
    assert list(Clock().waiting("input", [1, 2])) == [1, 2]


@pytest.mark.parametrize("name", ["tp_ft", "flyp", "car_ft", "clip_cite", "lp_ft"])
def test_every_part_of_a_real_step_is_measured(name: str, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    before = tiny_model.weights()
    found = profile(get(name), tiny_model, tiny_data, TRAINING, steps=2, warm_up=1)
    text = {"text tower"} if name in ("flyp", "clip_cite") else set()
    reference = {"reference"} if name in ("car_ft", "clip_cite") else set()
    wanted = {"input", "image tower", "loss", "backward", "optimizer"} | text | reference
    assert [set(step) for step in found.steps] == [wanted, wanted]
    assert wanted <= set(PARTS)
    assert found.seconds == pytest.approx(sum(sum(step.values()) for step in found.steps) / 2)
    assert all(torch.equal(before[key], value) for key, value in tiny_model.weights().items())  # as it was
    assert found.peak_bytes > 1e6
    assert 0 < found.rate_share < 2


def test_operations_are_those_of_three_passes_through_the_image_tower(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    found = profile(get("tp_ft"), fresh(tiny_model), tiny_data, TRAINING, steps=1, warm_up=0)
    width, tokens, blocks, images, heads = 32, 5, 2, 4, 2
    block = 2 * tokens * (4 + 8) * width**2 + 2 * 2 * tokens**2 * width  # q, k, v, out, two layers of the MLP; attention
    last = 2 * (4 + 8) * width**2 + 2 * 2 * heads * tokens * width  # all of the one token that is read, which each head compares with all
    patches, projection, head = 2 * 4 * width * 3 * 16**2, 2 * width * 16, 2 * 3 * 16
    forward = images * ((blocks - 1) * block + last + patches + projection + head)
    assert found.flops == 3 * forward - images * patches  # the pixels get no gradient


@pytest.mark.parametrize(("parts", "words"), [
    ({"input": 3.0, "image tower": 4.0, "backward": 3.0}, "waits for images 30% of the time"),
    ({"input": 0.1, "image tower": 3.0, "backward": 3.0, "optimizer": 3.9}, "update of the weights takes 39% of the time"),
    ({"input": 0.1, "image tower": 2.0, "text tower": 4.0, "backward": 8.0}, "most of it in the text tower and its backward pass"),
    ({"image tower": 2.0, "reference": 3.0, "backward": 4.0}, "The reference takes the most time beside the backward pass"),
])  # fmt: skip
def test_the_largest_part_is_named_with_what_to_do(parts: Mapping[str, float], words: str) -> None:
    assert words in Profile("flyp", 4, [parts], 1.0, 1.0, 1.0).bottleneck


def test_rate_of_a_matrix_product_counts_two_operations_an_element(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 9.0, *(t for k in range(5) for t in (10.0 * k, 10.0 * k + 2.0 + k))])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(bench, "_MATRIX", 8)
    assert bench.matmul_rate(torch.device("cpu")) == 2 * 8**3 / 2.0


@pytest.mark.parametrize(("name", "words"), [("lp", "encodes every image once"), ("zero_shot", "trains nothing")])
def test_methods_without_steps_are_refused(name: str, words: str, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    with pytest.raises(SettingError, match=f"{name} moves no tower: .*{words}"):
        profile(get(name), tiny_model, tiny_data, TRAINING)


@pytest.mark.parametrize("as_json", [False, True])
def test_command(
    as_json: bool, tiny_root: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", tiny_root, "--model", f"local-dir:{tiny_folder}", "--steps", 2, "--set", "batch_size=4"]
    code, said = typed(monkeypatch, capsys, *arguments, *(["--json"] if as_json else []))
    assert code == 0
    if as_json:
        facts = json.loads(said[said.index("{") : said.rindex("}") + 1])
        assert (facts["method"], facts["batch_size"], facts["num_steps"]) == ("flyp", 4, 2)
        assert facts["seconds"] > 0
    else:
        assert all(word in said for word in ("image tower", "text tower", "backward", "images a second", "of a plain matrix product"))
