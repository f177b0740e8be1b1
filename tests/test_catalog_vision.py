"""The data sets that torchvision lays out in its own way, PatchCamelyon, and Rendered SST2."""

from __future__ import annotations

import builtins
import sys
from importlib.util import find_spec
from pathlib import Path

import fakes
import numpy as np
import pytest
from fake_layouts import CLASSES, MAKERS, make_torchvision
from PIL import Image
from torchvision import datasets
from typer.testing import CliRunner

from surefoot.cli import app
from surefoot.data import Dataset, catalog, load
from surefoot.data.catalog import opening
from surefoot.data.catalog.loaders import arrays
from surefoot.data.catalog.loaders.stored import Stored
from surefoot.errors import DataError, MissingDataError, SettingError

TORCHVISION = {
    "dtd": datasets.DTD, "flowers102": datasets.Flowers102, "food101": datasets.Food101, "oxford_pets": datasets.OxfordIIITPet,
    "stanford_cars": datasets.StanfordCars, "sun397": datasets.SUN397,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path_factory.mktemp("cache")))


def pairs(data: Dataset, *splits: str) -> set[tuple[Path, int]]:
    return {pair for name in splits for pair in zip(data.split(name).paths, data.split(name).labels, strict=True)}


def theirs(name: str, root: Path, split: str) -> set[tuple[Path, int]]:
    """{(image, class number)} as torchvision reads it."""
    if name == "sun397":
        read = datasets.SUN397(root)
    else:
        if name == "food101":  # it wants the JSON lists beside the text lists, which say the same
            _food_json(root)
        read = TORCHVISION[name](root, split="trainval" if (name, split) == ("oxford_pets", "train") else split)
    if name == "stanford_cars":
        return {(Path(path), int(label)) for path, label in read._samples}
    return set(zip(read._images if name == "oxford_pets" else read._image_files, map(int, read._labels), strict=True))


def _food_json(root: Path) -> None:
    import json

    for name in ("train", "test"):
        table: dict[str, list[str]] = {}
        for line in (root / f"food-101/meta/{name}.txt").read_text().split():
            table.setdefault(line.partition("/")[0], []).append(line)
        (root / f"food-101/meta/{name}.json").write_text(json.dumps(table))


@pytest.mark.parametrize("name", sorted(TORCHVISION))
def test_images_and_class_numbers_are_those_of_torchvision(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)  # it compares with the official digests
    data = load(name, root=make_torchvision(name, tmp_path))
    official = name in ("dtd", "flowers102")
    if name == "sun397":
        assert pairs(data, "train", "val", "test") == theirs(name, tmp_path, "train")
        return
    assert pairs(data, *(["train"] if official else ["train", "val"])) == theirs(name, tmp_path, "train")
    assert pairs(data, "test") == theirs(name, tmp_path, "test")
    if official:
        assert pairs(data, "val") == theirs(name, tmp_path, "val")
    else:
        assert any("val (15%) was split off train" in note for note in data.notes)


def test_every_layout_has_a_tiny_copy_and_says_where_to_get_it() -> None:
    assert {name for name in catalog.names() if catalog.declared(name).layouts} == set(MAKERS)
    for name in MAKERS:
        (layout,) = catalog.declared(name).layouts
        assert layout.layout == "torchvision" and layout.templates == catalog.declared(name).templates
        assert all("http" in layout.source_of(part) for part in layout.parts)


def test_numbers_of_images_are_the_published_ones() -> None:
    counted = {name: [part.images for part in catalog.declared(name).layouts[0].parts] for name in MAKERS}
    assert counted == {
        "caltech101": [8_677], "dtd": [1_880] * 3, "eurosat": [27_000], "flowers102": [1_020, 1_020, 6_149], "food101": [75_750, 25_250],
        "oxford_pets": [3_680, 3_669], "stanford_cars": [8_144, 8_041], "sun397": [108_754],
    }  # fmt: skip
    assert [part.images for part in catalog.declared("pcam").parts] == [262_144, 32_768, 32_768]
    assert [part.images for part in catalog.declared("rendered_sst2").parts] == [6_920, 872, 1_821]


def test_classes_are_called_by_what_the_data_say(tmp_path: Path) -> None:
    named = {name: load(name, root=make_torchvision(name, tmp_path / name)).class_names for name in MAKERS}
    theirs = [name.replace("pink-yellow dahlia?", "pink and yellow dahlia") for name in datasets.Flowers102.classes]
    assert named["flowers102"] == tuple(theirs) and len(theirs) == 102
    assert named["oxford_pets"] == ("Abyssinian", "american bulldog", "Bengal"), "in the order of their numbers"
    assert named["stanford_cars"] == ("BMW M3 Coupe 2012", "Audi TT RS Coupe 2012", "Acura TL Sedan 2012")
    assert named["food101"] == named["dtd"] == tuple(label.replace("_", " ") for label in CLASSES)
    assert named["sun397"] == ("abbey", "outdoor apartment building", "shop bakery", "zoo")
    assert named["eurosat"][0] == "Annual Crop Land" and named["eurosat"][-1] == "Sea or Lake"
    assert named["caltech101"][:2] == ("off-center face", "centered face") and len(named["caltech101"]) == 101
    assert named["caltech101"][-1] == "yin and yang symbol"


def test_sets_without_official_splits_give_val_and_test_and_no_clutter(tmp_path: Path) -> None:
    data = load("caltech101", root=make_torchvision("caltech101", tmp_path))
    assert any("val (15%) and test (15%) were split off train" in note for note in data.notes)
    assert sum(len(split) for split in data.splits.values()) == 4 * 101
    assert not any("BACKGROUND_Google" in str(path) for split in data.splits.values() for path in split.paths)
    assert not any("BACKGROUND_Google" in note for note in data.notes)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_coops_list_comes_first_and_a_note_tells_the_other_layout(name: str, tmp_path: Path) -> None:
    root = make_torchvision(name, tmp_path)
    told = f"{name} was read as torchvision lays it out, for there is no {catalog.declared(name).marks[0]}: its splits"
    assert any(note.startswith(told) for note in load(name, root=root).notes)
    data = load(name, root=fakes.make(name, root))
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 15, "val": 5, "test": 5}
    assert not any("torchvision" in note for note in data.notes)


def test_aircraft_lies_in_either_folder(tmp_path: Path) -> None:
    fakes.make("fgvc_aircraft", tmp_path / "made")
    (tmp_path / "root/fgvc-aircraft-2013b").mkdir(parents=True)
    (tmp_path / "made/fgvc_aircraft").rename(tmp_path / "root/fgvc-aircraft-2013b/data")
    data = load("fgvc_aircraft", root=tmp_path / "root")
    assert pairs(data, "train") == set(_aircraft(tmp_path / "root", "train"))


def _aircraft(root: Path, split: str) -> list[tuple[Path, int]]:
    read = datasets.FGVCAircraft(root, split=split)
    return list(zip(map(Path, read._image_files), read._labels, strict=True))


def test_neither_layout_tells_what_both_want(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"It holds nothing; wanted are jpg/ or flowers-102/jpg/\. Get it from: .*CoOp"):
        load("flowers102", root=tmp_path)
    make_torchvision("food101", tmp_path)
    (tmp_path / "food-101/meta/train.txt").unlink()
    with pytest.raises(DataError) as error:
        load("food101", root=tmp_path)
    told = str(error.value)
    assert "There is no file" in told and "split_zhou_Food101.json. Get it from: https://github.com/KaiyangZhou" in told
    assert "food101 can also lie there as torchvision lays it out, food-101/meta/train.txt; that was not found" in told


def test_listed_images_that_are_not_there_stop_it(tmp_path: Path) -> None:
    root = make_torchvision("stanford_cars", tmp_path)
    (root / "stanford_cars/cars_test/00002.jpg").unlink()
    with pytest.raises(DataError, match=r"test: 1 of 3 listed images are not there: .*00002\.jpg\. A half-extracted archive"):
        load("stanford_cars", root=root)


@pytest.mark.parametrize(
    ("name", "file", "text", "told"),
    [
        ("dtd", "dtd/dtd/labels/val1.txt", "cat.jpg\n", r"does not hold <class>/<image> in each line: cat\.jpg"),
        ("dtd", "dtd/dtd/labels/val1.txt", "../x.jpg\n", "names an image outside its folder"),
        ("oxford_pets", "oxford-iiit-pet/annotations/test.txt", "Bengal_1 x\n", "the number of its breed"),
        ("oxford_pets", "oxford-iiit-pet/annotations/test.txt", "Bengal_1 9 1 1\n", "without a gap"),
        ("flowers102", "flowers-102/setid.mat", "text", "cannot be read as a MATLAB file with trnid, valid, tstid"),
        ("stanford_cars", "stanford_cars/devkit/cars_train_annos.mat", "", "cannot be read as a MATLAB file with annotations"),
        ("sun397", "SUN397/ClassName.txt", "/a/../../etc\n", "names an image outside its folder"),
    ],
)
def test_a_broken_list_is_named(name: str, file: str, text: str, told: str, tmp_path: Path) -> None:
    root = make_torchvision(name, tmp_path)
    (root / file).write_text(text)
    with pytest.raises(DataError, match=told):
        load(name, root=root)


def test_numbers_beyond_the_lists_are_refused(tmp_path: Path) -> None:
    from scipy.io import savemat

    root = make_torchvision("flowers102", tmp_path)
    savemat(root / "flowers-102/imagelabels.mat", {"labels": np.full((1, 30), 103)})
    with pytest.raises(DataError, match="number classes up to 102, and flowers102 has 102 from 0 on"):
        load("flowers102", root=root)
    savemat(root / "flowers-102/imagelabels.mat", {"labels": np.ones((1, 3))})
    with pytest.raises(DataError, match=r"setid\.mat numbers images that imagelabels\.mat does not know"):
        load("flowers102", root=root)


@pytest.mark.parametrize(("name", "package"), [("flowers102", "scipy"), ("stanford_cars", "scipy"), ("pcam", "h5py")])
def test_a_package_that_is_missing_names_its_extra(name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fakes.make(name, tmp_path) if name == "pcam" else make_torchvision(name, tmp_path)
    monkeypatch.setattr(opening, "find_spec", lambda asked: None if asked == package else find_spec(asked))
    with pytest.raises(SettingError, match=rf"package {package}, which is not installed\. Run: pip install 'surefoot\[vision\]'"):
        load(name, root=root)
    if name != "pcam":  # CoOp's lists need no package
        assert load(name, root=fakes.make(name, tmp_path)).name == name


def test_reading_text_lists_needs_no_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *given: object, **named: object) -> object:
        if name.split(".")[0] in ("scipy", "h5py"):
            raise ImportError(name)
        return real(name, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    for name in ("dtd", "food101", "oxford_pets"):
        assert load(name, root=make_torchvision(name, tmp_path)).name == name


def test_pcam_is_written_once_without_loss_and_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h5py

    root = fakes.make("pcam", tmp_path)
    asked: list[int] = []
    read = Stored.__getitem__

    def counted(self: Stored, rows: slice) -> np.ndarray:
        found = read(self, rows)
        asked.append(len(found) if self.key == "x" else 0)
        return found

    monkeypatch.setattr(Stored, "__getitem__", counted)
    monkeypatch.setattr(arrays, "CHUNK", 5)
    data = load("pcam", root=root)
    assert max(asked) == 5 and sum(asked) == 36, "never more than a piece in memory, and each image once"
    assert data.class_names == ("lymph node", "lymph node containing metastatic tumor tissue")
    with h5py.File(root / "pcam/camelyonpatch_level_2_split_valid_x.h5") as file:
        images = file["x"][:]
    assert len(data.split("val")) == 6
    for path, label in zip(data.split("val").paths, data.split("val").labels, strict=True):
        assert label == int(path.stem) % 2
        assert np.array_equal(np.asarray(Image.open(path)), images[int(path.stem)])
    asked.clear()
    assert load("pcam", root=root).fingerprint() == data.fingerprint()
    assert sum(asked) == 0, "the pictures are in the cache"


def test_pcam_that_is_packed_or_broken_is_told(tmp_path: Path) -> None:
    root = fakes.make("pcam", tmp_path)
    stem = root / "pcam/camelyonpatch_level_2_split_train_x.h5"
    stem.rename(f"{stem}.gz")
    (root / "pcam/camelyonpatch_level_2_split_test_y.h5").write_text("no HDF5")
    with pytest.raises(DataError) as error:
        load("pcam", root=root)
    assert f"There is no file {stem}. Unpack it: gunzip {stem.name}.gz Get it from: https://github.com/basveeling/pcam" in str(error.value)
    assert "split_test_y.h5 cannot be read as an HDF5 file with the array 'y'" in str(error.value)


@pytest.mark.parametrize(
    ("file", "key", "content", "message"),
    [
        ("y", "y", np.uint8(1), "train_y.h5 holds one uint8 under 'y', not a class number for each image"),
        ("y", "y", np.full(24, 0.5), "labels of the kind float64, such as 0.5, not whole class numbers"),
        ("y", "y", np.full(24, np.nan), "not whole class numbers"),
        ("y", "y", np.array([b"tumor"] * 24), "labels of the kind |S5, such as"),
        ("y", "y", np.array(["0"] * 24, dtype=object), "labels of the kind object"),
        ("y", "y", np.zeros((24, 2), np.uint8), "labels of the shape (48,); wanted are bytes"),
        ("y", "label", np.zeros(24, np.uint8), "cannot be read as an HDF5 file with the array 'y'"),
        ("y", "y", None, "cannot be read as an HDF5 file with the array 'y'"),
        ("x", "x", np.zeros((24, 8, 8, 3), np.float32), ": float32 images of the shape (24, 8, 8, 3)"),
        ("x", "x", np.uint8(1), ": uint8 images of the shape ()"),
    ],
)
def test_odd_arrays_are_told(file: str, key: str, content: object, message: str, tmp_path: Path) -> None:
    import h5py

    root = fakes.make("pcam", tmp_path)
    with h5py.File(root / f"pcam/camelyonpatch_level_2_split_train_{file}.h5", "w") as opened:
        if content is None:
            opened[key] = h5py.Empty("f")
        else:
            opened[key] = content
    with pytest.raises(DataError) as error:
        load("pcam", root=root)
    assert message in str(error.value)


def test_whole_numbers_that_are_written_as_floats_are_labels(tmp_path: Path) -> None:
    import h5py

    root = fakes.make("pcam", tmp_path)
    before = load("pcam", root=root).split("train").labels
    with h5py.File(root / "pcam/camelyonpatch_level_2_split_train_y.h5", "a") as opened:
        label = opened["y"][:].astype(np.float32)
        del opened["y"]
        opened["y"] = label
    assert load("pcam", root=root).split("train").labels == before


def test_rendered_sst2_has_its_official_validation(tmp_path: Path) -> None:
    data = load("rendered_sst2", root=fakes.make("rendered_sst2", tmp_path))
    assert {path.parts[-3] for path in data.split("val").paths} == {"valid"}
    assert data.class_names == ("negative", "positive") and data.templates == ("a {} review of a movie.",)
    read = datasets.RenderedSST2(tmp_path, split="val")
    assert pairs(data, "val") == {(Path(path), label) for path, label in read._samples}


def test_the_tree_shows_both_layouts_and_both_sources() -> None:
    told = " ".join(CliRunner().invoke(app, ["datasets", "flowers102"]).output.split())
    assert "ROOT/oxford_flowers/jpg/*.jpg, as split_zhou_OxfordFlowers.json lists them (train, 4,093 images, 102 classes)" in told
    assert "or, as torchvision lays it out: ROOT/flowers-102/jpg/image_<number>.jpg" in told
    assert "Get it from: https://github.com/KaiyangZhou/CoOp (DATASETS.md) Get it from: https://www.robots.ox.ac.uk" in told


def test_the_data_are_opened_without_open_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert load("dtd", root=make_torchvision("dtd", tmp_path)).name == "dtd"
