"""What is shipped: sums, sizes, counts, no near-duplicate across a border, and a model that opens."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from surefoot.data import Dataset, embedded, load
from surefoot.errors import DataError, UnknownNameError
from surefoot.methods import get
from surefoot.model import EMBEDDED, load_model
from surefoot.protocols import Judge
from surefoot.train import start_state

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "iconshift"))
from duplicates import THRESHOLD, clusters, descriptors, near  # noqa: E402


@pytest.fixture(scope="module")
def iconshift() -> Dataset:
    return load("iconshift")


def pictures(paths: list[Path]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


def test_sizes_stay_within_what_a_package_may_weigh() -> None:
    total = sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file())
    assert total < 60e6
    assert sum(path.stat().st_size for path in (EMBEDDED / "iconclip").iterdir()) < 25e6


def test_counts_reach_the_goals(iconshift: Dataset) -> None:
    sizes = {name: len(split) for name, split in iconshift.splits.items()}
    assert sizes["train"] >= 3000
    assert sizes["val"] >= 750
    assert sizes["test"] >= 1250
    assert len(iconshift.class_names) >= 100
    assert len(set(iconshift.split("unseen/outline").labels)) >= 50
    assert len(iconshift.shifts) == 8
    for split in iconshift.shifts:
        assert len(set(split.labels)) >= 50
        assert len(split) >= (200 if split.name in ("shifts/3d-emoji", "shifts/bw-emoji") else 300)


def test_unseen_classes_are_not_seen_ones(iconshift: Dataset) -> None:
    assert not set(iconshift.split("unseen/outline").class_names) & set(iconshift.class_names)
    assert len(set(iconshift.class_names)) == len(iconshift.class_names)


def test_every_style_has_a_context_prompt(iconshift: Dataset) -> None:
    assert [iconshift.context_of(split.name) for split in iconshift.shifts] == [s.name.removeprefix("shifts/") for s in iconshift.shifts]
    assert iconshift.context_of("test") == "outline"
    assert len(iconshift.templates) >= 12


def test_no_near_duplicate_crosses_a_border(iconshift: Dataset) -> None:
    features = {name: descriptors(pictures(list(split.paths))) for name, split in iconshift.splits.items()}
    id_features = torch.cat([features[name] for name in ("train", "val", "test")])
    assert len(set(clusters(id_features))) == len(id_features), "train, val and test hold near-duplicates"
    for split in iconshift.shifts:
        assert not near(id_features, features[split.name]).any(), split.name
    pool = embedded.unpack("iconpool")
    paths = sorted(pool.rglob("*.webp"))
    assert not near(torch.cat(list(features.values())), descriptors(pictures(paths))).any(), (
        "the pool holds near-duplicates of the benchmark"
    )


def test_near_duplicates_would_be_found(iconshift: Dataset) -> None:
    path = iconshift.split("test").paths[0]
    moved = Image.new("RGB", (48, 48), "white")
    moved.paste(Image.open(path).convert("RGB").resize((30, 30)), (14, 3))
    assert near(descriptors(pictures([path])), descriptors(np.asarray(moved)[None])).tolist() == [True]
    other = iconshift.split("test").paths[-1]
    assert near(descriptors(pictures([path])), descriptors(pictures([other]))).tolist() == [False]
    assert THRESHOLD < 0.96


def test_pool_holds_captioned_pairs_of_other_sets(iconshift: Dataset) -> None:
    pool = embedded.unpack("iconpool")
    rows = list(csv.DictReader((pool / "manifest.csv").read_text().splitlines()))
    assert len(rows) >= 20_000
    assert all((pool / row["path"]).is_file() and row["caption"] for row in rows[::500])
    used = {path.name.partition("--")[0] for split in iconshift.splits.values() for path in split.paths}
    assert not used & {row["set"] for row in rows}


def test_iconclip_opens_in_open_clip() -> None:
    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{EMBEDDED / 'iconclip'}")
    model = load_model("iconclip")
    image = preprocess(Image.new("RGB", (64, 32), "red"))[None]
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_image(image, normalize=True), model.encode_image(image))
    assert image.shape == (1, 3, 48, 48)


def test_iconclip_has_zero_shot_ability(iconshift: Dataset) -> None:
    """On ID validation only, well below what its card says: a wrong template, label order or preprocessing falls far under it."""
    model = load_model("iconclip")
    small = Dataset(iconshift.root, "val", iconshift.class_names, {k: iconshift.split(k) for k in ("train", "val")}, iconshift.templates)
    start = start_state(model, small)
    assert Judge(model, small, start).judge(get("zero_shot"), start).accuracy["val"] > 0.6


def test_damaged_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thing.zip").write_bytes(b"damaged")
    (tmp_path / "manifest.json").write_text('{"thing": "00"}')
    monkeypatch.setattr(embedded, "EMBEDDED", tmp_path)
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="Install Surefoot again"):
        embedded.unpack("thing")
    with pytest.raises(UnknownNameError, match="Did you mean 'thing'"):
        embedded.unpack("thin")
    assert not (tmp_path / "cache").exists()
