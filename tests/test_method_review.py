"""What a review of the methods against their papers found, each held by a test."""

from __future__ import annotations

import importlib
import inspect
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import fresh
from test_arf import contrast
from test_baselines import SHORT
from test_clip_cite import one_of_each
from test_reference import make_case
from test_resume import TRAINING, StoppedError, Watch, interrupted, runner
from test_variants import invoke

from surefoot.advise import advise
from surefoot.cli import console as shared
from surefoot.cli.diff import rows_of
from surefoot.compare import Comparison, Plan
from surefoot.config import parse_assignments, resolve
from surefoot.data import Dataset
from surefoot.errors import SettingError, SurefootError
from surefoot.methods import car_ft, clip_cite, flyp, get
from surefoot.model import ImageTextModel
from surefoot.train import Training, settings_of, start_state
from surefoot.train.reference import context_templates
from surefoot.tune.choice import recipe


def test_lambda_means_what_equations_4_and_6_print(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    case = make_case(tiny_model, tiny_data, clip_cite())
    terms, label = case.terms(clip_cite()), case.batch.label.tolist()
    both = 2 * contrast(case.images(case.now), case.texts("prompt", case.now), case.scale, label)  # eq. 4 sums the directions
    assert terms["total"] == pytest.approx(terms["cross_entropy"] + 0.7 * both + 0.1 * terms["similarity_distillation"], rel=1e-3)


def test_swapped_captions_are_another_run(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    captions = tiny_data.anchors.captions
    a, b = (path for path in captions if path.name == "0.png" and path.parent.name in ("disc", "box"))
    other = replace(tiny_data, anchors=replace(tiny_data.anchors, captions={**captions, a: captions[b], b: captions[a]}))
    assert settings_of(get("arf"), SHORT, tiny_model, tiny_data) != settings_of(get("arf"), SHORT, tiny_model, other)
    assert settings_of(get("flyp"), SHORT, tiny_model, tiny_data) == settings_of(get("flyp"), SHORT, tiny_model, other)


def test_one_template_tells_no_contexts_apart(tiny_data: Dataset) -> None:
    with pytest.raises(SettingError, match="names 1 templates; two or more are needed"):
        context_templates("templates", replace(tiny_data, templates=("a {}.",)))


def test_checkpoint_of_other_contexts_is_not_taken_up(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    path, watch = tmp_path / "r", Watch(1)
    interrupted(runner(tiny_model, tiny_data, car_ft(contexts="own"), TRAINING), path, 5)
    with pytest.raises(StoppedError):
        runner(tiny_model, tiny_data, car_ft(contexts="templates"), TRAINING)(resume=path, on_step=watch)
    assert watch.steps[0].number == 1


def test_masking_is_nothing_without_repeats_for_a_sigmoid_model_too(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    tiny_model.clip.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))
    data = one_of_each(tiny_data)
    ends = [make_case(fresh(tiny_model), data, flyp(mask_collisions=m)).terms(flyp(mask_collisions=m))["total"] for m in (True, False)]
    assert ends[0] == ends[1]


def test_single_template_holds_for_the_added_cross_entropy(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    case = make_case(tiny_model, tiny_data, flyp(single_template=True, cross_entropy_weight=1.0))
    assert len(set(itertools.chain(*(rows.tolist() for rows in case.batch.text.values())))) <= 3


def test_diff_takes_a_range_of_layers(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("")
    with pytest.raises(SurefootError, match="There are no evaluations"):
        rows_of(f"{tmp_path}:tp_ft+layers=visual[-3:]@0.5")


def test_lists_in_names_survive_the_command_line() -> None:
    assert shared.names("tp_ft,lp+l2=[1e-3,1e-4],ft") == ["tp_ft", "lp+l2=[1e-3,1e-4]", "ft"]


def test_set_reaches_a_variant() -> None:
    assert parse_assignments(["car_ft+contexts=own.epochs=5"]) == {"car_ft+contexts=own.epochs": 5}
    assert parse_assignments(["car_ft+context_weight=0.5.epochs=5"]) == {"car_ft+context_weight=0.5.epochs": 5}
    plan = resolve({}, parse_assignments(["car_ft+contexts=own.epochs=5"]), methods=["car_ft", "car_ft+contexts=own"]).plan
    assert [plan.training_of(name, 0).epochs for name in plan.methods] == [10, 5]


def test_zero_shot_has_no_settings_as_a_variant_either() -> None:
    with pytest.raises(SettingError):
        get("zero_shot+lora_rank=2")


def test_a_setting_twice_is_told() -> None:
    with pytest.raises(SettingError, match="sets contexts twice"):
        get("car_ft+contexts=own+contexts=templates")


def test_same_variant_twice_is_told() -> None:
    with pytest.raises(SettingError, match="each may stand there once"):
        resolve({}, {}, methods=["car_ft+contexts=own", 'car_ft+contexts="own"'])


def test_tuned_recipe_keeps_the_methods_overrides(tiny_model: ImageTextModel) -> None:
    plan = Plan(methods=("car_ft+contexts=own",), overrides={"car_ft": {"context_weight": 0.5}})
    assert "context_weight = 0.5" in recipe(plan, plan.methods[0], tiny_model, ["x"], {"learning_rate": 1e-3})


def test_fit_keeps_what_was_set_for_the_method(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    name = "car_ft+contexts=own"
    plan = Plan(methods=(name,), training=Training(batch_size=64), overrides={"car_ft": {"epochs": 2, "batch_size": 12}})
    found = advise(tiny_model, tiny_data, plan, start_state(tiny_model, tiny_data), method=name, minutes=60)
    assert (found.training.epochs, found.training.batch_size) == (2, 12)


def test_file_names_are_valid_everywhere(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    plan = Plan(methods=("tp_ft+layers=visual[-1:]",), seeds=(0,))
    made = Comparison(tiny_model, tiny_data, plan, tmp_path)
    name = made.weights_path(plan.method_of(plan.methods[0]), plan.training_of(plan.methods[0], 0)).name
    assert not set(name) & set('<>:"/\\|?*')


def test_methods_command_takes_a_variant() -> None:
    assert invoke("methods", "car_ft+contexts=own").exit_code == 0


def test_tune_finds_the_anchors() -> None:
    assert "anchors" in inspect.signature(importlib.import_module("surefoot.cli.tune").tune).parameters
