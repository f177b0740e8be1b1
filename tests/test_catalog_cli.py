"""`surefoot datasets`, and `surefoot check NAME --root DIR`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fakes
import pytest
from conftest import typed
from typer.testing import CliRunner

from surefoot.cli import app
from surefoot.data import catalog

run = CliRunner().invoke


@pytest.fixture
def pacs(tmp_path: Path) -> Path:
    return fakes.make("pacs", tmp_path / "data")


def test_datasets_lists_the_catalogue(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(app, ["datasets"])
    assert result.exit_code == 0
    assert all(name in result.output for name in catalog.names())
    code, told = typed(monkeypatch, capsys, "datasets", "pascal")
    assert code == 2 and "Unknown data set of the catalogue 'pascal'" in told


def test_one_set_is_shown_as_a_tree_with_its_sources() -> None:
    told = " ".join(run(app, ["datasets", "imagenet"]).output.split())
    assert "ROOT/train/<wnid>/*.JPEG (train, 1,281,167 images, 1000 classes" in told
    assert "ROOT/objectnet-1.0/images/<object>/*.png and mappings/* (shifts/objectnet, 18,574 images, 113 classes, optional)" in told
    for source in ("https://image-net.org", "https://objectnet.dev", "https://github.com/hendrycks/natural-adv-examples"):
        assert f"Get it from: {source}" in told


def test_check_compares_with_what_was_published_and_surveys(pacs: Path) -> None:
    result = run(app, ["check", "pacs", "--root", str(pacs)])
    told = " ".join(result.output.split())
    assert result.exit_code == 0
    assert told.count("train holds 28 images; 2,048 were published") == 1, "what was told is not told again as a note"
    assert "shifts/cartoon 28 7 4 (" in told and "val (15%)" in told
    facts = json.loads(run(app, ["check", "pacs", "--root", str(pacs), "--json"], catch_exceptions=False).stdout)
    assert facts["name"] == "pacs" and {"level": "warning", "text": facts["notes"][0]} in facts["catalog"]


def test_check_ends_with_2_where_training_cannot_start(
    pacs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(pacs / "PACS/sketch")
    result = run(app, ["check", "pacs", "--root", str(pacs)])
    assert result.exit_code == 2 and "shifts/sketch was not found" in result.output
    result = run(app, ["check", "pacs", "--root", str(pacs), "--json"])
    assert result.exit_code == 2 and json.loads(result.stdout)["catalog"][0]["level"] == "error"
    code, told = typed(monkeypatch, capsys, "check", "pacs", "--root", pacs / "nowhere")
    assert code == 2 and "There is no folder" in told
    code, told = typed(monkeypatch, capsys, "check", "pacs")
    assert code == 2 and "say where it lies by --root DIR" in told
