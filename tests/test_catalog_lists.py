"""The data sets with published lists of their images open by them, and by nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import fakes
import pytest

from surefoot.data import load
from surefoot.data.catalog import declared
from surefoot.errors import DataError


@pytest.mark.parametrize("name", fakes.LISTS)
def test_the_list_says_what_is_trained_validated_and_tested(name: str, tmp_path: Path) -> None:
    data = load(name, root=fakes.make(name, tmp_path))
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 15, "val": 5, "test": 5}
    for split in data.splits.values():
        assert all(path.is_file() and path.name.startswith(split.name) for path in split.paths)
        assert [path.name[len(split.name)] for path in split.paths] == [str(label) for label in split.labels]
    assert len(data.templates) == 1 and data.templates == tuple(declared(name).templates)


def test_class_names_are_the_lists_with_spaces_and_eurosats_are_words(tmp_path: Path) -> None:
    assert load("caltech101", root=fakes.make("caltech101", tmp_path)).class_names == ("abbey", "b c", "cat", "dog", "eel")
    names = load("eurosat", root=fakes.make("eurosat", tmp_path)).class_names
    assert names[:2] == ("Annual Crop Land", "Sea or Lake")


def test_numbers_of_images_are_the_published_ones() -> None:
    counted = {name: sum(part.images or 0 for part in declared(name).parts) for name in fakes.LISTS}
    assert counted == {
        "caltech101": 8_242, "oxford_pets": 7_349, "stanford_cars": 16_185, "flowers102": 8_189, "food101": 101_000,
        "fgvc_aircraft": 10_000, "sun397": 39_700, "dtd": 5_640, "eurosat": 27_000, "ucf101": 13_320,
    }  # fmt: skip


def test_listed_images_that_are_not_there_stop_it_with_their_number(tmp_path: Path) -> None:
    root = fakes.make("dtd", tmp_path)
    for path in (root / "dtd" / "images" / "cat").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"train: 3 of 15 listed images are not there: .*cat/train20.jpg(.|\n)*val: 1 of 5"):
        load("dtd", root=root)


def test_a_list_that_names_no_image_of_a_split_stops_it(tmp_path: Path) -> None:
    root = fakes.make("dtd", tmp_path)
    path = root / "dtd" / "split_zhou_DescribableTextures.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "test": []}))
    with pytest.raises(DataError, match=r"test: the list of its images names none\. A list that is cut off"):
        load("dtd", root=root)


def test_a_missing_list_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    root = fakes.make("ucf101", tmp_path)
    (root / "ucf101" / "split_zhou_UCF101.json").unlink()
    with pytest.raises(DataError, match=r"There is no file .*split_zhou_UCF101.json. Get it from: .*CoOp"):
        load("ucf101", root=root)


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "a\\..\\b.jpg"])
def test_a_list_names_no_image_outside_its_folder(name: str, tmp_path: Path) -> None:
    root = fakes.make("dtd", tmp_path)
    path = root / "dtd" / "split_zhou_DescribableTextures.json"
    table = json.loads(path.read_text())
    table["test"][0][0] = name
    path.write_text(json.dumps(table))
    with pytest.raises(DataError, match="names an image outside its folder"):
        load("dtd", root=root)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "is not a list of"),
        ('{"train": [["a.jpg", "x", "cat"]]}', "is not a list of"),
        ('{"train": [["a.jpg", 1, "cat"]]}', "from 0 on"),
    ],
)
def test_another_form_of_list_is_refused(content: str, said: str, tmp_path: Path) -> None:
    root = fakes.make("dtd", tmp_path)
    (root / "dtd" / "split_zhou_DescribableTextures.json").write_text(content)
    with pytest.raises(DataError, match=said):
        load("dtd", root=root)


def test_a_variant_that_is_not_declared_is_named(tmp_path: Path) -> None:
    root = fakes.make("fgvc_aircraft", tmp_path)
    (root / "fgvc_aircraft" / "images_variant_val.txt").write_text("1 zeppelin\n")
    with pytest.raises(DataError, match=r"names variants that variants\.txt does not: zeppelin"):
        load("fgvc_aircraft", root=root)
