"""iWildCam and FMoW: the splits and the numbers are those of the package wilds."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import fakes
import numpy as np
import pytest
import torch
from PIL import Image

from surefoot.answers import Answers
from surefoot.data import Dataset, catalog, load
from surefoot.data.catalog import opening
from surefoot.data.catalog.loaders import wild
from surefoot.errors import DataError, MissingDataError, SettingError
from surefoot.protocols.judge import numbered
from surefoot.protocols.outcome import Outcome

SPLITS = {"train": "train", "val": "id_val", "test": "id_test", "shifts/ood": "test"}
FOLDERS = {"iwildcam": "iwildcam_v2.0", "fmow": "fmow_v1.1"}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: fakes.make(name, tmp_path_factory.mktemp(name)) for name in FOLDERS}


@pytest.fixture(scope="module")
def opened(roots: dict[str, Path]) -> dict[str, Dataset]:
    return {name: load(name, root=root) for name, root in roots.items()}


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_images_and_classes_are_those_of_wilds_split_by_split(name: str, roots: dict[str, Path], opened: dict[str, Dataset]) -> None:
    whole, data = wild._opened(name, roots[name]), opened[name]
    assert list(data.splits) == list(SPLITS)
    for own, theirs in SPLITS.items():
        subset, split = whole.get_subset(theirs), data.split(own)
        assert split.labels == tuple(subset.y_array.tolist()) and len(split) == len(subset)
        for path, row in zip(split.paths, subset.indices, strict=True):
            with Image.open(path) as image:
                assert np.array_equal(np.asarray(image), np.asarray(whole.get_input(row))), "each picture is unlike all others"


def test_classes_are_called_as_the_papers_call_them(opened: dict[str, Dataset]) -> None:
    names = opened["iwildcam"].class_names
    assert len(names) == 182 and names[0] == "empty" and names[4] == "cougar" and names[52] == "günther's dik-dik"
    assert names[153] == names[181] == "central american red brocket", "the releases' names are not distinct"
    assert opened["iwildcam"].templates == ("a photo of {}.", "{} in the wild.")
    names = opened["fmow"].class_names
    assert len(names) == 62 and names[1] == "airport hangar" and names[30] == "multi-unit residential" and names[-1] == "zoo"
    assert len(opened["fmow"].templates) == 16


def test_metrics_and_numbers_of_images_are_the_published_ones() -> None:
    iwildcam, fmow = catalog.declared("iwildcam"), catalog.declared("fmow")
    assert (iwildcam.metric, fmow.metric) == ("macro_f1", "worst_group")
    assert [part.images for part in iwildcam.parts] == [129_809, 7_314, 8_154, 42_791]
    assert [part.images for part in fmow.parts] == [76_863, 11_483, 11_327, 22_108]


def test_fmows_categories_stand_in_the_order_of_wilds() -> None:
    from wilds.datasets.fmow_dataset import categories

    assert catalog.declared("fmow").labels == tuple(categories)


def test_regions_are_groups_and_other_is_none(opened: dict[str, Dataset]) -> None:
    assert set(opened["fmow"].split("shifts/ood").groups) == {"Americas", "Europe", "Asia", "Africa", "Oceania", ""}
    assert not opened["iwildcam"].split("shifts/ood").groups


@pytest.fixture
def scatter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one function of torch_scatter that wilds' evaluation calls; the package itself must be compiled."""

    def mean(*, src: torch.Tensor, index: torch.Tensor, dim_size: int, reduce: str) -> torch.Tensor:
        assert reduce == "mean"
        total, number = torch.zeros(dim_size).index_add(0, index, src), torch.bincount(index, minlength=dim_size)
        return total / number.clamp(min=1)

    monkeypatch.setitem(sys.modules, "torch_scatter", SimpleNamespace(scatter=mean))


@pytest.mark.usefixtures("scatter")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("own", ["test", "shifts/ood"])
@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_our_numbers_are_those_of_wilds_own_evaluation(
    name: str, own: str, seed: int, roots: dict[str, Path], opened: dict[str, Dataset]
) -> None:
    subset, split = wild._opened(name, roots[name]).get_subset(SPLITS[own]), opened[name].split(own)
    draw = np.random.default_rng(seed)
    label = np.array(split.labels, dtype=np.int32)
    wrong = draw.integers(0, len(split.class_names), len(label))
    prediction = np.where(draw.random(len(label)) < 0.6, label, wrong).astype(np.int32)
    if name == "fmow":  # the images of no region are the worst: wilds leaves them out
        prediction = np.where(np.array(split.groups) == "", -1, prediction).astype(np.int32)
    group = numbered(split.groups) if split.groups else None
    ours = Outcome({own: Answers(prediction, label, np.ones(len(label), np.float32), group)}).metrics[own]
    theirs, _ = subset.eval(torch.from_numpy(prediction).long(), subset.y_array, subset.metadata_array)
    if name == "fmow":
        assert ours["worst_group"] == pytest.approx(float(theirs["acc_worst_region"]), abs=1e-6)
        assert ours["worst_group"] > 0
    else:
        assert ours["macro_f1"] == pytest.approx(float(theirs["F1-macro_all"]), abs=1e-6)
        assert "worst_group" not in ours


def test_images_in_no_group_alone_have_no_worst_group() -> None:
    label = np.zeros(2, np.int32)
    outcome = Outcome({"test": Answers(label, label, np.ones(2, np.float32), numbered(["", ""]))})
    assert "worst_group" not in outcome.metrics["test"]


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_the_root_may_be_the_folder_of_wilds_itself(name: str, roots: dict[str, Path], opened: dict[str, Dataset]) -> None:
    assert load(name, root=roots[name] / FOLDERS[name]).fingerprint() == opened[name].fingerprint()


def test_another_folder_name_is_told(tmp_path: Path) -> None:
    (fakes.make("fmow", tmp_path) / "fmow_v1.1").rename(tmp_path / "fmow")
    with pytest.raises(DataError, match=r"fmow cannot be read by wilds \(FileNotFoundError.*reads the folder fmow_v1\.1; this is fmow\."):
        load("fmow", root=tmp_path / "fmow")
    with pytest.raises(MissingDataError, match=r"wanted are images/\. They are in .*fmow: give --root"):
        load("fmow", root=tmp_path)


def test_missing_metadata_and_images_are_named(tmp_path: Path) -> None:
    root = fakes.make("iwildcam", tmp_path)
    gone = root / "iwildcam_v2.0/train/00000000.jpg"
    gone.unlink()
    with pytest.raises(DataError, match=r"^train: 1 of 182 listed images are not there: .*00000000\.jpg\. A half-extracted archive"):
        load("iwildcam", root=root)
    (root / "iwildcam_v2.0/RELEASE_v2.0.txt").unlink()
    with pytest.raises(DataError, match=r"not complete: there is no .*RELEASE_v2\.0\.txt\. Get it from: https://wilds\.stanford\.edu"):
        load("iwildcam", root=root)


def test_metadata_that_wilds_cannot_read_are_told(tmp_path: Path) -> None:
    root = fakes.make("iwildcam", tmp_path)
    (root / "iwildcam_v2.0/metadata.csv").write_text("split,y\ntrain,0\n")
    with pytest.raises(DataError, match=r"iwildcam cannot be read by wilds \(KeyError"):
        load("iwildcam", root=root)


def test_without_the_package_the_extra_is_named(roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "find_spec", lambda asked: None if asked == "wilds" else find_spec(asked))
    with pytest.raises(SettingError, match=r"package wilds, which is not installed\. Run: pip install 'surefoot\[wilds\]'"):
        load("fmow", root=roots["fmow"])


def test_opening_asks_the_network_for_nothing(roots: dict[str, Path]) -> None:
    load("iwildcam", root=roots["iwildcam"])
    assert sys.modules["wilds.version"].check_outdated is None, "wilds would look for a newer release"
    assert sys.modules.get("outdated", 0) is not None, "others may import it"
