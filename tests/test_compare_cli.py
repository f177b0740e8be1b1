"""The whole command on the tiny data: records, what is not done twice, and errors that end with code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from surefoot import cli, config, cookbook, records
from surefoot.compare import Comparison, Plan, choices, comparison, differences
from surefoot.data import Dataset, open_dataset
from surefoot.errors import SettingError
from surefoot.identity import weights_hash
from surefoot.model import ImageTextModel, load_model
from surefoot.objective import Method
from surefoot.protocols import Judge
from surefoot.report.runs import collect
from surefoot.train import Fitted, Training

PLAN = Plan(seeds=(0, 1), alphas=(0.5,), training=Training(epochs=1, batch_size=8, learning_rate=1e-2))


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["surefoot", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out + captured.err


def test_records_hold_every_run_at_every_alpha(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    found = Comparison(tiny_model, tiny_data, PLAN, tmp_path).run()
    points = [(r.method, r.seed, r.alpha) for r in found]
    assert points == [("zero_shot", 0, 0.0), *((m, s, a) for m in ("tp_ft", "flyp") for s in (0, 1) for a in (0.0, 0.5, 1.0))]
    zero = found[0]
    for record in found:
        assert set(record.accuracy) == set(zero.accuracy)
        if record.alpha == 0:
            assert record.accuracy == zero.accuracy
        answers = records.load_answers(tmp_path, record.answers)
        assert answers["test"].correct.mean() == record.accuracy["test"]
    stored = list(records.read(tmp_path))
    assert [r for r in stored if isinstance(r, records.Evaluation)] == found
    assert {(c.method, c.seed) for c in stored if isinstance(c, records.Choice)} == {(m, s) for m in ("tp_ft", "flyp") for s in (0, 1)}
    ours = [d for d in stored if isinstance(d, records.Difference) and (d.a, d.b, d.on) == ("tp_ft", "zero_shot", "test")]
    plain = [r.accuracy["test"] for r in found if r.method == "tp_ft" and r.alpha == 1]
    assert len(ours) == 1
    assert ours[0].mean == pytest.approx(sum(plain) / 2 - zero.accuracy["test"])


def test_what_is_finished_is_not_done_again(
    tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Comparison(tiny_model, tiny_data, PLAN, tmp_path).run()
    lines = (tmp_path / records.FILE).read_text()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(comparison, "fit", forbidden)
    assert Comparison(tiny_model, tiny_data, PLAN, tmp_path).run() == first
    assert (tmp_path / records.FILE).read_text() == lines
    kept = "\n".join(lines.splitlines()[:5]) + "\n" + lines.splitlines()[5][:40]  # cut off in the middle of a line
    (tmp_path / records.FILE).write_text(kept)
    again = Comparison(tiny_model, tiny_data, PLAN, tmp_path).run()  # evaluates the rest from the stored weights
    assert [r.accuracy for r in again] == [r.accuracy for r in first]
    assert [r for r in records.read(tmp_path) if isinstance(r, records.Evaluation)] == again


def test_other_settings_are_another_run(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    small = Plan(methods=("tp_ft",), seeds=(0,), alphas=(), training=PLAN.training, overrides={"tp_ft": {"epochs": 2}})
    Comparison(tiny_model, tiny_data, Plan(methods=("tp_ft",), seeds=(0,), alphas=(), training=PLAN.training), tmp_path).run()
    found = Comparison(tiny_model, tiny_data, small, tmp_path).run()
    assert len(list((tmp_path / "weights").iterdir())) == 2
    assert found[-1].settings["epochs"] == 2
    one = Comparison(tiny_model, tiny_data, Plan(methods=("tp_ft",), seeds=(0,), alphas=(), training=PLAN.training), tmp_path).run()
    last = [r for r in records.read(tmp_path) if isinstance(r, records.Evaluation)][-1]
    assert (last.settings, one[-1].settings["epochs"]) == (one[-1].settings, 1), "what was asked for last stands last"


def recorder(folder: Path) -> Callable[..., records.Evaluation]:
    """Makes evaluations of which only the accuracies are chosen."""

    def record(alpha: float, val: float, test: float, method: str = "tp_ft") -> records.Evaluation:
        given = {}
        for name, value in (("val", val), ("test", test)):
            right = np.arange(10_000) < round(10_000 * value)
            given[name] = records.Answers(np.where(right, 1, 0).astype(np.int32), np.ones(10_000, np.int32), np.ones(10_000, np.float32))
        answers = records.save_answers(folder, f"{method}-{alpha}", given)
        return records.Evaluation(
            method=method, seed=0, alpha=alpha, dataset="d", accuracy={"val": val, "test": test}, num_images={"val": 10000, "test": 10000},
            answers=answers, settings={}, settings_hash="",
        )  # fmt: skip

    return record


def test_the_choice_of_alpha_looks_at_validation_only(tmp_path: Path) -> None:
    record = recorder(tmp_path)
    found = [record(0.0, 0.5, 0.9), record(0.5, 0.799, 0.2), record(0.8, 0.8, 0.3), record(1.0, 0.7, 0.9)]
    assert [(c.alpha, c.argmax) for c in choices(found, tmp_path)] == [(0.5, 0.8)]


def test_a_difference_is_the_first_row_minus_the_second(tmp_path: Path) -> None:
    record = recorder(tmp_path)
    found = [record(0.0, 0.5, 0.5, "zero_shot"), record(0.0, 0.5, 0.5), record(0.5, 0.8, 0.7), record(1.0, 0.7, 0.6)]
    made = {(d.a, d.b): d.mean for d in differences(found, tmp_path, choices(found, tmp_path)) if d.on == "test"}
    assert made == pytest.approx(
        {
            ("tp_ft", "zero_shot"): 0.1,
            ("tp_ft + WiSE-FT 0.5", "tp_ft"): 0.1,
            ("tp_ft + WiSE-FT 0.5", "zero_shot"): 0.2,
            ("tp_ft + WiSE-FT (ID val.)", "tp_ft"): 0.1,
            ("tp_ft + WiSE-FT (ID val.)", "zero_shot"): 0.2,
        }
    )


def test_command_writes_table_records_and_page(tiny_root: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["compare", str(tiny_root), "--out", str(tmp_path / "run"), "--model", f"local-dir:{tiny_folder}", "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", ["surefoot", *arguments])
    result = CliRunner().invoke(
        cli.app, [*arguments, "--precision", "fp32", "--set", "epochs=1", "--set", "batch_size=8"], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    assert "TP-FT" in result.output
    assert "zero-shot" in result.output
    assert {path.name for path in (tmp_path / "run" / "report").iterdir()} == {"index.html", "table.md", "frontier.svg"}
    assert "compare" in (tmp_path / "run" / "command.txt").read_text()
    again = CliRunner().invoke(cli.app, ["report", str(tmp_path / "run")])
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "/no/such/folder"], "neither a folder"),
        (["compare", "{data}", "--methods", "flip,tp_ft", "--set", "epoch=3", "--precision", "int8"], "Did you mean 'flyp'"),
        (["compare", "{data}", "--methods", "flip,tp_ft", "--set", "epoch=3", "--precision", "int8"], "Did you mean 'epochs'"),
        (["compare", "{data}", "--methods", "flip,tp_ft", "--set", "epoch=3", "--precision", "int8"], "int8"),
        (["compare", "{data}", "--set", "epochs=many"], "must be a whole number"),
        (["compare", "{data}", "--set", "epochs=0"], "1 or more"),
        (["compare", "{data}", "--set", "epochs"], "key=value"),
        (["compare", "{data}", "--alphas", "0.5,2"], "alpha 2.0 is not in 0..1"),
        (["compare", "{data}", "--model", "local-dir:/none"], "open_clip_config.json"),
        (["compare", "{data}", "--recipe", "imagenot"], "iconshift"),
        (["compare", "{data}", "--seeds", "a,b"], "whole numbers"),
        (["report", "{empty}"], "compare"),
    ],
)
def test_bad_input_ends_with_code_2_and_writes_nothing(
    arguments: list[str], message: str, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    filled = [a.format(data=tiny_root, empty=tmp_path / "empty") for a in arguments]
    filled += ["--out", str(out)] if filled[0] == "compare" else []
    code, text = run(filled, monkeypatch, capsys)
    assert code == 2
    assert message in " ".join(text.split())
    assert not out.exists()


@pytest.mark.parametrize("command", [[], ["compare"], ["report"], ["methods"]])
def test_help_is_there_with_an_example(command: list[str]) -> None:
    result = CliRunner().invoke(cli.app, [*command, "--help"])
    assert result.exit_code == 0
    assert not command or f"Example: surefoot {command[0]}" in " ".join(result.output.split())


def test_methods_lists_every_method() -> None:
    result = CliRunner().invoke(cli.app, ["methods"])
    assert all(name in result.output for name in ("zero_shot", "tp_ft", "flyp"))


def test_assignments_override_the_recipe_for_all_or_for_one_method() -> None:
    recipe = {"training": {"epochs": 3, "learning_rate": 1e-3}, "overrides": {"flyp": {"epochs": 4}}}
    plan = config.resolve(recipe, config.parse_assignments(["learning_rate=1e-4", "flyp.batch_size=16"])).plan
    assert (plan.training_of("tp_ft", 7).epochs, plan.training_of("tp_ft", 7).learning_rate, plan.training_of("tp_ft", 7).seed) == (
        3,
        1e-4,
        7,
    )
    assert (plan.training_of("flyp", 0).epochs, plan.training_of("flyp", 0).batch_size) == (4, 16)


def test_shipped_recipes_resolve() -> None:
    for name in cookbook.names():
        assert config.resolve(config.read_recipe(name), {}).plan.seeds


def test_all_problems_of_a_recipe_are_reported_together() -> None:
    with pytest.raises(SettingError) as error:
        config.resolve({"methodes": [], "alphas": [2.0], "seeds": []}, {"lr": 1})
    assert all(part in str(error.value) for part in ("methodes", "alpha 2.0", "no seed", "lr"))


def test_conclusions_follow_what_was_run_last(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    def run_with(epochs: int, seeds: tuple[int, ...]) -> list[records.Difference]:
        training = Training(epochs=epochs, batch_size=8, learning_rate=1e-2)
        plan = Plan(methods=("tp_ft",), seeds=seeds, alphas=(0.5,), training=training)
        Comparison(tiny_model, tiny_data, plan, tmp_path).run()
        collected = collect(records.read(tmp_path))
        assert {run.points[1.0].settings["epochs"] for (name, _), run in collected.runs.items() if name == "tp_ft"} == {epochs}
        assert all(0.5 in run.points for (name, _), run in collected.runs.items() if name == "tp_ft")
        assert {seed for _, seed in collected.choices} == set(seeds)
        return list(collected.differences.values())

    first = run_with(1, (0,))
    other = run_with(2, (0,))
    assert {d.runs for d in first}.isdisjoint(d.runs for d in other)
    assert run_with(1, (0,)) == first
    assert {d.num_seeds for d in run_with(1, (0, 1))} == {2}


def test_data_without_shifts_unseen_or_contexts_is_compared(
    tiny_model: ImageTextModel, copy_of: Callable[[], Path], tmp_path: Path
) -> None:
    import shutil

    root = copy_of()
    for name in ("shifts", "unseen"):
        shutil.rmtree(root / name)
    (root / "dataset.toml").unlink()
    found = Comparison(tiny_model, open_dataset(root), PLAN, tmp_path / "run").run()
    assert {"avg_corruptions", "agreement"} <= found[-1].accuracy.keys(), "forgetting is visible all the same"
    result = CliRunner().invoke(cli.app, ["report", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "corruptions accuracy" in (tmp_path / "run" / "report" / "frontier.svg").read_text()


def test_another_preprocessing_is_another_model(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    tiny_model.save(tmp_path / "other")
    config = tmp_path / "other" / "open_clip_config.json"
    config.write_text(config.read_text().replace("0.4", "0.45"))
    other = load_model(f"local-dir:{tmp_path / 'other'}")
    assert weights_hash(other) != weights_hash(tiny_model)


def test_alpha_runs_from_the_first_weights_to_the_trained_ones(
    tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[dict[str, Tensor]] = []
    started: list[bool] = []
    first, judge_all, train = tiny_model.weights(), Judge.judge_all, comparison.fit

    def fit(method: Method, model: ImageTextModel, *arguments: object, **options: object) -> Fitted:
        started.append(all(torch.equal(tensor, first[name]) for name, tensor in model.weights().items()))
        return train(method, model, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(comparison, "fit", fit)
    monkeypatch.setattr(
        Judge, "judge_all", lambda self, members: (judged.extend(dict(m.state()) for m in members), judge_all(self, members))[1]
    )
    plan = Plan(methods=("tp_ft", "flyp"), seeds=(0,), alphas=(0.25,), training=PLAN.training)
    Comparison(tiny_model, tiny_data, plan, tmp_path).run()
    assert started == [True, True]
    zero, quarter, end = judged[:3]
    name = "model.visual.proj"
    torch.testing.assert_close(quarter[name], 0.75 * zero[name] + 0.25 * end[name])
    assert torch.equal(zero[name], first["visual.proj"])
    assert not torch.allclose(zero[name], end[name], atol=1e-3)
