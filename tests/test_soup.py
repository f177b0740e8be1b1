"""Soups: the mean, the greedy rule, that ID validation alone chooses, and runs that must not be mixed."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from surefoot import cli, records, soup
from surefoot.bundle import load_bundle
from surefoot.errors import SettingError, TrainingError
from surefoot.methods import get
from surefoot.report.runs import collect
from surefoot.soup import Ingredient
from surefoot.weights import interpolate, uniform_soup

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def made(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["surefoot", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), " ".join((captured.out + captured.err).split())

    return made


@pytest.fixture
def folder(run: Run, tiny_root: Path, tiny_folder: Path, tmp_path: Path) -> Path:
    """TP-FT and FLYP with two seeds each."""
    out = tmp_path / "runs"
    settings = ("--set", "epochs=1", "--set", "batch_size=8", "--set", "learning_rate=1e-2")
    code, text = run(
        "compare", tiny_root, "--model", f"local-dir:{tiny_folder}", "--methods", "tp_ft,flyp", "--seeds", "0,1", "--out", out, *settings
    )
    assert code == 0, text
    return out


def test_the_mean_is_taken_tensor_by_tensor() -> None:
    states = [{"w": torch.randn(3, 2), "n": torch.tensor(k)} for k in range(3)]
    mean = uniform_soup(states)
    for row, column in itertools.product(range(3), range(2)):
        assert float(mean["w"][row, column]) == pytest.approx(sum(float(state["w"][row, column]) for state in states) / 3)
    assert mean["n"] == 0
    assert mean["n"].dtype == torch.int64


def test_a_soup_of_one_is_itself_and_order_does_not_matter() -> None:
    states = [{"w": torch.randn(50), "h": torch.randn(5).half()} for _ in range(4)]
    for copies in (1, 3):
        assert all(torch.equal(uniform_soup([states[0]] * copies)[name], states[0][name]) for name in states[0])
    forward, backward = uniform_soup(states), uniform_soup(states[::-1])
    assert all(torch.equal(forward[name], backward[name]) for name in forward)
    half = interpolate(states[0], states[1], 0.5)
    torch.testing.assert_close(uniform_soup(states[:2])["w"], half["w"])


def test_models_of_other_layouts_are_refused() -> None:
    with pytest.raises(SettingError, match=r"w is \[2\] torch.float32 in model 1 and \[3\] torch.float32 in model 2"):
        uniform_soup([{"w": torch.zeros(2)}, {"w": torch.zeros(3)}])
    with pytest.raises(SettingError, match="of no model"):
        uniform_soup([])


def made(tmp_path: Path, values: Mapping[float, float]) -> list[Ingredient]:
    """Runs with one weight, {weight: ID validation accuracy}."""
    found = []
    for number, (weight, val) in enumerate(values.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file({"w": torch.tensor([weight])}, path)
        one = Ingredient(
            name=f"r{number}", method=get("tp_ft"), seed=number, settings_hash="", path=path, val=val, origin=("data", "weights")
        )
        found.append(one)
    return found


def test_greedy_goes_by_validation_and_keeps_what_does_not_make_it_worse(tmp_path: Path) -> None:
    runs = made(tmp_path, {0.0: 0.7, 4.0: 0.9, 2.0: 0.8, -6.0: 0.6})

    def score(state: Mapping[str, Tensor]) -> float:
        return -abs(float(state["w"]) - 3.0)  # best at 3

    state, kept = soup.greedy(runs, score)
    # 4 alone: -1; with 2 the mean is 3: 0; with 0 the mean is 2: worse; with -6 it is 0: worse
    assert [one.name for one in kept] == ["r1", "r2"]
    assert state["w"].item() == 3.0


def test_greedy_keeps_a_run_that_changes_nothing(tmp_path: Path) -> None:
    runs = made(tmp_path, {1.0: 0.5, 2.0: 0.5})
    assert len(soup.greedy(runs, lambda state: 0.5)[1]) == 2
    told: list[tuple[int, int]] = []
    soup.greedy(runs, lambda state: 0.5, lambda *done: told.append(done))
    assert told == [(2, 2)]


def test_what_must_not_be_mixed_is_named(tmp_path: Path) -> None:
    first, second = made(tmp_path, {1.0: 0.5, 2.0: 0.5})
    for other, text in (
        (replace(second, origin=("other", "weights")), "different data"),
        (replace(second, origin=("data", "other")), "different weights"),
        (replace(second, method=get("flyp")), "answers by its trained head, the other by text"),
    ):
        with pytest.raises(SettingError, match=rf"r0 and r1 .*{text}"):
            soup.uniform([first, other])
    with pytest.raises(SettingError, match="none was found"):
        soup.check([])
    first.path.write_bytes(b"x")
    with pytest.raises(TrainingError, match="cannot be read"):
        soup.uniform([first, second])


@pytest.mark.parametrize("method", ["tp_ft", "flyp"])
def test_a_soup_of_one_run_has_its_accuracies_and_its_weights(method: str, folder: Path, run: Run, tmp_path: Path) -> None:
    code, text = run("soup", f"{folder}:{method}@seed1", "--out", tmp_path / "soup", "--alphas", "0.5")
    assert code == 0, text
    own, made_of = collect(records.read(folder)).runs[method, 1].points, collect(records.read(tmp_path / "soup")).runs["soup", 0].points
    assert set(made_of) == {0.0, 0.5, 1.0}
    for alpha, evaluation in made_of.items():
        assert evaluation.accuracy == own[alpha].accuracy
    weights = load_file(next((folder / "weights").glob(f"{method}-seed1-*.safetensors")))
    stored = load_bundle(tmp_path / "soup")
    assert all(torch.equal(tensor, weights[f"model.{name}"]) for name, tensor in stored.model.weights().items())
    torch.testing.assert_close(stored.head["weight"], weights["head.weight"])


def test_a_soup_of_seeds_is_judged_and_stands_beside_them(folder: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "soup"
    code, text = run("soup", f"{folder}:tp_ft", "--out", out)
    assert code == 0, text
    assert "seed 0;" in text and "Soup (uniform)" in text
    weights = [load_file(path) for path in (folder / "weights").glob("tp_ft-*.safetensors")]
    expected = uniform_soup(weights)
    stored = load_bundle(out)
    torch.testing.assert_close(stored.head["weight"], expected["head.weight"])
    assert json.loads((out / "model" / "surefoot.json").read_text())["method"] == "soup"
    settings = next(r for r in records.read(out) if isinstance(r, records.Evaluation) and r.method == "soup").settings
    assert len(settings["ingredients"]) == settings["num_tried"] == 2
    code, text = run("diff", f"{out}:soup", f"{folder}:tp_ft", "--on", "test")
    assert code == 0, text


def test_only_validation_chooses(folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from surefoot.train import validate

    opened: list[str] = []
    images = validate.Images
    monkeypatch.setattr(
        validate, "Images", lambda paths, *rest, **how: (opened.extend(p.parts[-3] for p in paths), images(paths, *rest, **how))[1]
    )
    code, text = run("soup", f"{folder}:flyp", "--greedy", "--out", tmp_path / "soup")
    assert code == 0, text
    assert set(opened) == {"val"}
    assert "Soup (greedy)" in text


def test_bad_runs_end_with_a_sentence(folder: Path, run: Run, tmp_path: Path) -> None:
    for arguments, wanted in (
        ((tmp_path / "nowhere",), "There are no results in"),
        ((f"{folder}:tpft",), "Did you mean 'tp_ft'"),
        ((f"{folder}:tp_ft@seed7",), "names no run"),
        ((folder,), "cannot be averaged"),
        ((f"{folder}:tp_ft", "--alphas", "2"), "must be in 0..1"),
    ):
        code, text = run("soup", *arguments, "--out", tmp_path / "soup")
        assert code == 2, text
        assert wanted in text
    assert not (tmp_path / "soup").exists()
    for path in (folder / "weights").glob("flyp-*"):
        path.unlink()
    code, text = run("soup", f"{folder}:flyp", "--out", tmp_path / "soup")
    assert code == 2
    assert "has no weights of flyp, seed 0, any more" in text
