"""Methods named with their settings: how a name is read, what the plan adds to it, and that every place that takes a name takes it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from surefoot import cli, records
from surefoot.cli.compare import possible
from surefoot.cli.diff import rows_of
from surefoot.compare import Comparison, Plan
from surefoot.config import resolve
from surefoot.data import Dataset
from surefoot.data.anchors import Anchors
from surefoot.errors import SettingError, UnknownNameError
from surefoot.methods import ALL, METHODS, base_of, get, setting_problems
from surefoot.methods.registry import variant_settings
from surefoot.model import ImageTextModel
from surefoot.report.runs import display_name
from surefoot.train import Training

FAST = Training(epochs=1, batch_size=8, learning_rate=1e-2)
COMPARE = sys.modules["surefoot.cli.compare"]  # the package gives the function under that name
OWN, OTHER = "car_ft+contexts=own", "car_ft+contexts=templates+context_weight=5e-1"


@pytest.mark.parametrize(
    ("name", "base", "settings"),
    [
        ("lp", "lp", {}),
        (OWN, "car_ft", {"contexts": "own"}),
        (OTHER, "car_ft", {"contexts": "templates", "context_weight": 0.5}),
        ("l2_sp+pull=1e-4", "l2_sp", {"pull": 1e-4}),
        ("l2_sp+pull=1e+1+head_l2=0.0", "l2_sp", {"pull": 10.0, "head_l2": 0.0}),
        ("clip_cite+alignment_weight=0+distillation_weight=0", "clip_cite", {"alignment_weight": 0, "distillation_weight": 0}),
        ("clip_cite+frozen=text+positive_in_denominator=false", "clip_cite", {"frozen": "text", "positive_in_denominator": False}),
        ("flyp+mask_collisions=true+lora_rank=2", "flyp", {"mask_collisions": True, "lora_rank": 2}),
        ("tp_ft+layers=visual[-1:]", "tp_ft", {"layers": "visual[-1:]"}),
        ("lp+l2=[1e-3, 0.0]", "lp", {"l2": [1e-3, 0.0]}),
    ],
)
def test_name_holds_the_method_and_its_settings(name: str, base: str, settings: dict[str, Any]) -> None:
    assert (base_of(name), variant_settings(name)) == (base, settings)
    method, plain = get(name), get(base, settings)
    assert method.name == name
    assert method.settings == plain.settings
    assert [(stage.trains, stage.adapter, stage.needs) for stage in method.stages] == [
        (stage.trains, stage.adapter, stage.needs) for stage in plain.stages
    ]
    assert (method.predict, method.finish) == (plain.predict, plain.finish)


def test_settings_of_the_name_reach_the_objective_and_the_record() -> None:
    term = get(OTHER).stages[0].objective.terms[1]
    assert term.weight == 0.5
    assert term.needs >= {"contexts:templates"}
    assert get(OTHER).settings["context_weight"] == 0.5
    assert get(OTHER).settings["divergence"] == "kl"


def test_settings_of_the_name_count_before_those_that_are_given() -> None:
    assert get(OWN, {"contexts": "openai80", "context_weight": 2.0}).settings["contexts"] == "own"
    assert get(OWN, {"contexts": "openai80", "context_weight": 2.0}).settings["context_weight"] == 2.0


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("car_tf+contexts=own", UnknownNameError, "Unknown method 'car_tf'. Did you mean 'car_ft'?"),
        ("car_ft+contexts", UnknownNameError, "Did you mean 'car_ft'?"),
        ("car_ft+context=own", SettingError, "Unknown setting of car_ft 'context'. Did you mean 'contexts'?"),
        ("car_ft+contexts=mine", SettingError, "contexts is 'mine'; it must be one of openai80"),
        ("car_ft+contexts=", SettingError, "contexts is ''; it must be one of openai80"),
        ("car_ft+context_weight=much", SettingError, "context_weight is 'much'; it must be a number"),
        ("car_ft+context_weight=-1", SettingError, "context_weight is -1"),
        ("clip_cite+contexts=own", SettingError, "Unknown setting of clip_cite 'contexts'"),
        ("tp_ft+layers=text[0:1]", SettingError, "tp_ft trains head, visual"),
    ],
)
def test_name_that_does_not_fit_is_told(name: str, error: type[SettingError], message: str) -> None:
    with pytest.raises(error) as raised:
        get(name)
    assert message in str(raised.value)
    with pytest.raises(SettingError) as raised:
        resolve({}, {}, methods=[name])
    assert message in str(raised.value)


def test_all_problems_of_several_names_are_told_together() -> None:
    assert len(setting_problems("car_ft+context=own+divergence=js", {"context_wieght": 1.0})) == 3
    with pytest.raises(SettingError) as raised:
        resolve({}, {}, methods=["car_tf+contexts=own", "car_ft+context=own", "tp_ft"])
    assert len(str(raised.value).splitlines()) == 2


def test_variant_has_its_methods_overrides_and_its_own_before_them() -> None:
    plan = Plan(
        methods=("car_ft", OWN),
        training=FAST,
        overrides={
            "car_ft": {"context_weight": 2.0, "epochs": 3, "learning_rate": 1e-3},
            OWN: {"epochs": 4, "divergence": "mmd", "contexts": "openai80"},
        },
    )
    assert plan.training_of("car_ft", 0) == replace(FAST, epochs=3, learning_rate=1e-3)
    assert plan.training_of(OWN, 1) == replace(FAST, epochs=4, learning_rate=1e-3, seed=1)
    settings = plan.method_of(OWN).settings
    assert [settings[key] for key in ("context_weight", "divergence", "contexts")] == [2.0, "mmd", "own"]
    assert plan.method_of("car_ft").settings["divergence"] == "kl"
    assert plan.training_of("tp_ft", 0) == FAST


def test_name_may_hold_training_settings_which_count_before_all_others() -> None:
    name = "flyp+batch_size=32+clip_norm=none+frozen_text=true"
    plan = resolve({"methods": ["flyp", name], "overrides": {"flyp": {"batch_size": 16, "clip_norm": 1.0, "epochs": 3}}}, {}).plan
    assert plan.training_of(name, 1) == replace(Training(), batch_size=32, clip_norm=None, epochs=3, seed=1)
    assert plan.training_of("flyp", 0).batch_size == 16
    method = plan.method_of(name)
    assert (method.name, method.settings["frozen_text"], "text" in method.trains) == (name, True, False)
    with pytest.raises(SettingError, match="batch_size is 1; it must be 2 or more"):
        resolve({}, {}, methods=["flyp+batch_size=1"])
    with pytest.raises(SettingError, match="batch_size is 'many'; it must be a whole number"):
        resolve({}, {}, methods=["flyp+batch_size=many"])


def test_recipe_may_set_something_for_a_variant_alone() -> None:
    recipe = {"methods": ["car_ft", OWN], "overrides": {OWN: {"epochs": 2}, "car_ft": {"context_weight": 3.0}}}
    plan = resolve(recipe, {"car_ft.learning_rate": 1e-3}).plan
    assert (plan.training_of(OWN, 0).epochs, plan.training_of("car_ft", 0).epochs) == (2, Training().epochs)
    assert {plan.training_of(name, 0).learning_rate for name in plan.methods} == {1e-3}
    with pytest.raises(SettingError, match="Did you mean 'epochs'"):
        resolve({**recipe, "overrides": {OWN: {"epcohs": 2}}}, {})


def test_all_means_every_method_and_car_ft_with_the_datas_own_contexts() -> None:
    assert resolve({}, {}, methods=["all"]).plan.methods == ALL
    assert {base_of(name) for name in ALL} == set(METHODS)
    assert OWN in ALL
    with pytest.raises(SettingError, match="each may stand there once"):
        resolve({}, {}, methods=[OWN, "tp_ft", OWN])


@pytest.mark.parametrize(
    ("change", "left_out"),
    [
        ({}, set()),
        ({"anchors": Anchors()}, {"arf"}),
        ({"contexts": {}, "id_context": None}, {OWN}),
        ({"anchors": Anchors(), "contexts": {}, "id_context": None}, {"arf", OWN}),
    ],
)
def test_all_leaves_out_what_the_data_lack_and_says_so(
    change: dict[str, Any], left_out: set[str], tiny_data: Dataset, tiny_model: ImageTextModel, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = possible(Plan(methods=ALL), replace(tiny_data, **change), lambda: tiny_model)
    assert plan.methods == tuple(name for name in ALL if name not in left_out)
    told = capsys.readouterr().err
    assert [line.partition(" is left out: ")[0] for line in told.splitlines()] == [name for name in ALL if name in left_out]
    assert ("surefoot caption" in told) == ("arf" in left_out)
    assert ("surefoot retrieve" in told) == ("arf" in left_out)


def test_what_the_plan_switches_off_is_not_lacking(tiny_data: Dataset, tiny_model: ImageTextModel) -> None:
    bare = replace(tiny_data, anchors=replace(tiny_data.anchors, captions={}))

    def kept(*methods: str, **overrides: dict[str, float]) -> tuple[str, ...]:
        return possible(Plan(methods=methods, overrides=overrides), bare, lambda: tiny_model).methods

    assert kept("arf") == ()
    assert kept("arf+caption_weight=0") == ("arf+caption_weight=0",)
    assert kept("arf", arf={"caption_weight": 0.0}) == ("arf",)


def test_pairs_of_other_weights_leave_a_method_out_and_the_model_is_loaded_only_for_them(
    tiny_data: Dataset, tiny_model: ImageTextModel, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = list[ImageTextModel]()

    def load() -> ImageTextModel:
        loaded.append(tiny_model)
        return tiny_model

    foreign = replace(tiny_data, anchors=replace(tiny_data.anchors, weights="another"))
    own = ("arf", "arf+caption_weight=0", "arf+retrieval_weight=0", "flyp")
    assert possible(Plan(methods=own), foreign, load).methods == ("arf+retrieval_weight=0", "flyp")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("arf is left out: its image-text pairs were retrieved with other weights (another) than those of ")
    assert "run 'surefoot retrieve " in first
    assert second.startswith("arf+caption_weight=0 is left out: ")
    assert len(loaded) == 1
    assert possible(Plan(methods=own), tiny_data, load).methods == own
    without = replace(tiny_data, anchors=Anchors())
    possible(Plan(methods=ALL), without, load)
    possible(Plan(methods=("flyp", "tp_ft")), tiny_data, load)
    assert len(loaded) == 2


def test_all_goes_on_without_arf_and_arf_by_name_stops(
    tiny_data: Dataset, tiny_root: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign, run = replace(tiny_data, anchors=replace(tiny_data.anchors, weights="another")), list[tuple[str, ...]]()
    monkeypatch.setattr(COMPARE.shared, "opened", lambda options: foreign)
    common = ["compare", str(tiny_root), "--model", f"local-dir:{tiny_folder}", "--precision", "fp32", "--out", str(tmp_path / "run")]
    result = invoke(*common, "--methods", "arf")
    assert isinstance(result.exception, SettingError)
    assert "retrieved with other weights (another)" in str(result.exception)
    monkeypatch.setattr(COMPARE, "run", lambda job, *_: run.append(job.plan.methods))
    result = invoke(*common, "--methods", "all")
    assert result.exit_code == 0, result.output
    assert run == [tuple(name for name in ALL if name != "arf")]
    assert "arf is left out: its image-text pairs were retrieved with other weights" in result.stderr


def invoke(*arguments: str) -> Result:
    sys.argv = ["surefoot", *arguments]
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def short(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a run of seconds."""
    recipe = tmp_path_factory.mktemp("recipe") / "short.toml"
    recipe.write_text("seeds = [0]\nalphas = [0.5]\n[training]\nepochs = 1\nbatch_size = 8\nlearning_rate = 1e-2\n")
    return ["--recipe", str(recipe), "--model", f"local-dir:{tiny_folder}", "--precision", "fp32"]


@pytest.fixture(scope="module")
def compared(tiny_root: Path, short: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two variants with another method, by the command."""
    out, methods = tmp_path_factory.mktemp("variants") / "run", f"tp_ft,{OWN},{OTHER}"
    result = invoke("compare", str(tiny_root), "--out", str(out), "--methods", methods, *short, "--set", "car_ft.label_smoothing=0.1")
    assert result.exit_code == 0, result.output
    return out


def test_records_hold_name_and_settings_of_a_variant(compared: Path) -> None:
    found = {r.method: r for r in records.read(compared) if isinstance(r, records.Evaluation) and r.alpha == 1}
    assert set(found) == {"tp_ft", OWN, OTHER}
    assert (found[OWN].settings["contexts"], found[OWN].settings["method"]) == ("own", OWN)
    assert (found[OTHER].settings["contexts"], found[OTHER].settings["context_weight"]) == ("templates", 0.5)
    assert [found[name].settings["label_smoothing"] for name in ("tp_ft", OWN, OTHER)] == [0.0, 0.1, 0.1]
    assert len({record.settings_hash for record in found.values()}) == 3


def test_weights_lie_in_a_file_of_the_variants_name(compared: Path) -> None:
    files = sorted(path.name.rpartition("-seed0-")[0] for path in (compared / "weights").iterdir())
    assert files == sorted(["tp_ft", OWN, OTHER])


def test_variants_of_one_method_do_not_share_weights(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    plan = Plan(methods=("car_ft", OWN, OTHER), seeds=(0,), alphas=(), training=FAST, overrides={"car_ft": {"contexts": "own"}})
    made = Comparison(tiny_model, tiny_data, plan, tmp_path)
    assert len({made.weights_path(plan.method_of(name), plan.training_of(name, 0)) for name in plan.methods}) == 3


def test_diff_takes_a_variants_name(compared: Path) -> None:
    for row, alpha in ((f"{OWN}@0.5", 0.5), (OTHER, 1.0)):
        rows = rows_of(f"{compared}:{row}")
        assert [(e.method, e.alpha) for e in rows.evaluations] == [(row.partition("@")[0], alpha)]
    result = invoke("diff", f"{compared}:{OWN}@0.5", f"{compared}:tp_ft@val", "--on", "test")
    assert result.exit_code == 0, result.output
    assert f"{OWN}@0.5 minus" in " ".join(result.output.split())
    with pytest.raises(UnknownNameError, match=r"Did you mean 'car_ft\+contexts=own'"):
        rows_of(f"{compared}:car_ft+contexts=won")


def test_report_shows_a_variant_by_its_methods_name_and_its_settings(compared: Path) -> None:
    page = (compared / "report" / "index.html").read_text(encoding="utf-8")
    assert "CAR-FT (contexts=own)" in page
    assert display_name(f"{OTHER} + WiSE-FT 0.5") == "CAR-FT (contexts=templates, context_weight=5e-1) + WiSE-FT 0.5"


def test_fit_takes_a_variant(tiny_root: Path, short: list[str], tmp_path: Path) -> None:
    result = invoke("fit", str(tiny_root), "--out", str(tmp_path / "run"), "--method", OWN, *short, "--set", "epochs=1")
    assert result.exit_code == 0, result.output
    card = json.loads((tmp_path / "run" / "model" / "surefoot.json").read_text())
    assert (card["method"], card["origin"]["settings"]["contexts"]) == (OWN, "own")


def test_missing_needs_of_a_named_variant_stop_the_comparison(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    plan = Plan(methods=(OWN, "arf"), seeds=(0,), training=FAST)
    with pytest.raises(SettingError) as raised:
        Comparison(tiny_model, replace(tiny_data, contexts={}, id_context=None, anchors=Anchors()), plan, tmp_path / "out")
    assert f"{OWN} cannot run: contexts is 'own'" in str(raised.value)
    assert "arf cannot run: it needs retrieved image-text pairs" in str(raised.value)
    assert not (tmp_path / "out").exists()
