"""Every data set of the catalogue, in its official layout, through its protocol from end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fakes
import pytest

from surefoot import records
from surefoot.compare import Comparison, Plan, series
from surefoot.data import catalog, load
from surefoot.data.subsets import only_classes
from surefoot.model import ImageTextModel
from surefoot.protocols.parts import build
from surefoot.train import Training

DOMAINS = ("pacs", "vlcs", "office_home", "terra_incognita", "domainnet")


def protocol_of(name: str) -> str:
    """What the papers do with a data set: hold out domains, measure shifts, or transfer to it."""
    if name in DOMAINS:
        return "domains"
    return "shift" if any(part.name.startswith("shifts/") for part in catalog.declared(name).splits) else "transfer"


@pytest.mark.parametrize("name", catalog.names())
def test_protocol_runs_on_the_official_layout(name: str, tmp_path: Path, tiny_model: ImageTextModel) -> None:
    with fakes.official():
        data = load(name, root=fakes.make(name, tmp_path / "root"))
    data = replace(data, templates=("a photo of a {}.",), contexts={})  # fewer prompts: the towers are not what is tested
    if name in DOMAINS:  # the tiny copy of DomainNet holds some of its classes only
        there = sorted(set(data.split("train").labels))
        splits = {of: only_classes(split, there) for of, split in data.splits.items()}
        data = replace(data, splits=splits, class_names=splits["train"].class_names)
    protocol = build(protocol_of(name), [data])
    plan = Plan(methods=("tp_ft",), seeds=(0,), alphas=(1.0,), training=Training(steps=1, batch_size=4), corruptions=False)
    found = {}
    for part in protocol.parts:
        comparison = Comparison(tiny_model, part.dataset, plan, tmp_path / "out" / part.name)
        found[part.name] = comparison.run()
        assert {one.method for one in found[part.name]} == {"zero_shot", "tp_ft"}
    table = series.table(protocol, found, tmp_path / "out", [name])
    cells = {(one.row, one.group, one.column) for one in table if isinstance(one, records.Summary)}
    assert cells == {
        (row, column.group, column.name) for row in ("zero_shot", "tp_ft", "tp_ft + WiSE-FT (ID val.)") for column in protocol.columns
    }
