"""For small devices: ranges of blocks and low-rank updates move what they say, and nothing else, in every method."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_baselines import PROBE, SHORT, TRAINED, changed

from surefoot.data import Dataset
from surefoot.errors import SettingError
from surefoot.methods import adapted, flyp_ce, get
from surefoot.model import ImageTextModel, load_model
from surefoot.train import fit, part, start_state


@pytest.mark.parametrize(
    ("name", "layers"),
    [("tp_ft", "visual[-1:]"), ("ft", "visual[:1]"), ("lp_ft", "visual[0]"), ("l2_sp", "visual[1:]"), ("flyp", "visual[-1:], text[:1]"),
     ("flyp", "text[-1:]"), ("flyp_ce", "visual[:1],visual[1:]")],
)  # fmt: skip
def test_exactly_the_named_blocks_move(name: str, layers: str, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    method, start = get(name, {"layers": layers} | (PROBE if name == "lp_ft" else {})), start_state(tiny_model, tiny_data)
    specs = [spec.strip() for spec in layers.split(",")]
    whole = get(name).trains - {spec.partition("[")[0] for spec in specs} - {"head", "logit_bias"}
    expected = {f"model.{n}" for spec in [*specs, *whole] for n in tiny_model.layer_names(spec)}
    end = fit(method, tiny_model, tiny_data, SHORT, start=start).state
    assert {n for n in changed(start, end) if n.startswith("model.")} == expected
    assert (
        expected != {f"model.{n}" for group in method.trains - {"head", "logit_bias"} for n in tiny_model.groups()[group]} or "," in layers
    )
    assert method.settings["layers"] == layers


@pytest.mark.parametrize("name", [name for name in TRAINED if name not in ("lp", "l2_sp")])
def test_lora_moves_the_towers_by_low_rank_and_leaves_the_rest(name: str, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    start, method = start_state(tiny_model, tiny_data), get(name, {"lora_rank": 2} | (PROBE if name == "lp_ft" else {}))
    names = [n for n, _ in tiny_model.clip.named_parameters()]
    towers = {f"model.{n}" for group in method.trains & {"visual", "text"} for n in tiny_model.groups()[group]}
    inside = {n for n in towers if "resblocks" in n and n.endswith("weight") and start[n].ndim == 2}
    end = fit(method, tiny_model, tiny_data, SHORT, start=start).state
    scale = {"model.logit_scale"} if "logit_scale" in method.trains else set()
    assert {n for n in changed(start, end) if n.startswith("model.")} == inside | scale
    for n in inside:
        rank = int(torch.linalg.matrix_rank((end[n] - start[n]).double(), atol=1e-5))
        assert 1 <= rank <= 2, n
    assert [n for n, _ in tiny_model.clip.named_parameters()] == names


@pytest.mark.parametrize("settings", [{"layers": "visual[-1:]"}, {"lora_rank": 2}, {"lora_rank": 2, "layers": "visual[:1]"}], ids=str)
@pytest.mark.parametrize("name", ["tp_ft", "flyp", "lp_ft"])
def test_contract_of_adapted_methods(
    name: str, settings: dict[str, Any], tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path
) -> None:
    method = get(name, settings | (PROBE if name == "lp_ft" else {}))
    start, seen = start_state(tiny_model, tiny_data), []
    end = fit(method, tiny_model, tiny_data, SHORT, start=start, on_step=seen.append).state
    assert all(math.isfinite(step.loss) for step in seen)
    assert len([step for step in seen if not step.cached]) == 3
    allowed = {f"model.{n}" for group in method.trains - {"head", "logit_bias"} for n in tiny_model.groups()[group]}
    assert set() < {n for n in changed(start, end) if n.startswith("model.")} <= allowed
    tiny_model.save(tmp_path / "saved")
    saved = load_model(f"local-dir:{tmp_path / 'saved'}").weights()
    assert not changed(saved, {n: end[f"model.{n}"] for n in saved})
    tiny_model.load_weights(part(start, "model"))
    assert not changed(end, fit(method, tiny_model, tiny_data, SHORT).state)  # the same model again, as if it were new


def test_adapters_do_not_stay_if_a_later_range_cannot_take_them(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    names = [n for n, _ in tiny_model.clip.named_parameters()]
    method = adapted(flyp_ce(), layers="visual[:2],visual[-1:]", lora_rank=2)  # the second range has updates already
    with pytest.raises(SettingError, match="without an adapter"):
        fit(method, tiny_model, tiny_data, SHORT)
    assert [n for n, _ in tiny_model.clip.named_parameters()] == names
