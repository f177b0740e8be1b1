"""A sweep trains every method at every value and draws one curve."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import typed

from surefoot import records
from surefoot.cli.sweep import swept
from surefoot.data import Dataset
from surefoot.errors import SettingError
from surefoot.protocols.parts import Column, sweep


def test_each_value_is_a_part_and_a_point_of_each_group(tiny_data: Dataset) -> None:
    protocol = sweep(tiny_data, "context_weight", [0, 0.5])
    assert [(part.name, dict(part.settings)) for part in protocol.parts] == [
        ("context_weight-0", {"context_weight": 0}), ("context_weight-0.5", {"context_weight": 0.5}),
    ]  # fmt: skip
    assert protocol.along == "context weight"
    assert protocol.columns[:2] == (
        Column("0", ((("context_weight-0", "test"),),), "ID"), Column("0.5", ((("context_weight-0.5", "test"),),), "ID"),
    )  # fmt: skip
    with pytest.raises(SettingError, match="needs two values or more"):
        sweep(tiny_data, "epochs", [5, 5])


def test_what_a_method_does_not_take_is_refused_before_anything_runs() -> None:
    seen: list[list[str]] = []
    assert swept("shots=1,4", ["flyp"], seen.append) == ("shots", [1, 4])
    assert seen == []
    assert swept("clip_norm=none,1", ["flyp", "tp_ft"], seen.append) == ("clip_norm", ["none", 1])
    assert seen == [["flyp.clip_norm=none", "tp_ft.clip_norm=none"], ["flyp.clip_norm=1", "tp_ft.clip_norm=1"]]
    with pytest.raises(SettingError, match="two values or more"):
        swept("epochs=5", ["flyp"], seen.append)
    with pytest.raises(SettingError, match=r"tp_ft\+batch_size=8 names batch_size itself"):
        swept("batch_size=16,32", ["flyp", "tp_ft+batch_size=8"], seen.append)
    with pytest.raises(SettingError, match="every command judges all of --alphas"):
        swept("alpha=0.1,0.5", ["flyp"], seen.append)


def test_sweep_over_base_classes_has_their_harmonic_mean_with_new_ones(tiny_data: Dataset) -> None:
    new = replace(tiny_data.split("unseen/other"), name="unseen/new")
    data = replace(tiny_data, splits={**tiny_data.splits, new.name: new})
    means = [column for column in sweep(data, "epochs", [5, 6]).columns if column.group == "HM"]
    assert [column.sources for column in means] == [((((part, "test"),), ((part, "unseen/new"),))) for part in ("epochs-5", "epochs-6")]
    assert not [column for column in sweep(tiny_data, "epochs", [5, 6]).columns if column.group == "HM"]


def test_sweep_from_end_to_end(
    tiny_root: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    given = ("--model", f"local-dir:{tiny_folder}", "--methods", "car_ft", "--seeds", "0", "--alphas", "1", "--out", out)
    code, said = typed(monkeypatch, capsys, "sweep", tiny_root, "--over", "contxt_weight=0,4", *given)
    assert (code, "Did you mean 'context_weight'?" in said, out.exists()) == (2, True, False), said
    code, said = typed(monkeypatch, capsys, "sweep", tiny_root, "--over", "shots=1,2", "--shots", "4", *given)
    assert (code, "Leave --shots out" in said, out.exists()) == (2, True, False), said
    code, said = typed(
        monkeypatch, capsys, "sweep", tiny_root, "--over", "context_weight=0,4", *given,
        "--set", "steps=3", "--set", "batch_size=8", "--set", "learning_rate=1e-2", "--set", "keep=last",
    )  # fmt: skip
    assert code == 0, said
    found = {
        part: [one for one in records.read(out / part) if isinstance(one, records.Evaluation) and one.method == "car_ft"]
        for part in ("context_weight-0", "context_weight-4")
    }
    assert [{one.settings["context_weight"] for one in each} for each in found.values()] == [{0}, {4}]
    losses = [
        next(one.history[0]["loss"] for one in records.read(out / part) if isinstance(one, records.Trained)) for part in found
    ]  # fmt: skip
    assert losses[0] < losses[1]
    series = next(one for one in records.read(out) if isinstance(one, records.Series))
    assert (series.protocol, series.along) == ("sweep", "context weight")
    assert json.loads((out / "context_weight-4" / "job.json").read_text())["data"]["cut"] is None
    assert "Along context weight" in (out / "report" / "index.html").read_text()
