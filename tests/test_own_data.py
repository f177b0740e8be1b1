"""A user's own images: val and test split off, folders of class folders, manifests, and the errors of each."""

from __future__ import annotations

import csv
import json
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from surefoot.data import Dataset, Split, load, open_dataset
from surefoot.data.splits import assign
from surefoot.errors import DataError, MissingDataError, SettingError, UnknownNameError

Copy = Callable[[], Path]
GOLDEN = {
    "cat/0.jpg": "test",
    "cat/1.jpg": "train",
    "cat/2.jpg": "train",
    "cat/3.jpg": "train",
    "cat/4.jpg": "val",
    "cat/5.jpg": "val",
    "cat/6.jpg": "train",
    "cat/7.jpg": "test",
    "äpfel/1.jpg": "val",
    "äpfel/2.jpg": "train",
    "äpfel/3.jpg": "test",
}
BOTH = {"val": 0.15, "test": 0.15}


def make(root: Path, counts: Mapping[str, int]) -> Path:
    """{folder: number of images}; every image has another colour."""
    total = 0
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            total += 1
            Image.new("RGB", (4, 4), (total % 256, total // 256, 90)).save(root / folder / f"{number}.png")
    return root


def where(dataset: Dataset) -> dict[str, str]:
    """{path from the root: split}."""
    return {dataset.written(path): split.name for split in dataset.splits.values() for path in split.paths}


def count(split: Split) -> list[int]:
    found = Counter(split.labels)
    return [found[label] for label in range(len(split.class_names))]


# --- splitting off ---


def test_splits_of_a_tiny_set_are_the_same_on_every_platform() -> None:
    """Golden membership, from sha256("<seed>:<key>"): another draw anywhere would change what users' runs mean."""
    keys = [f"cat/{n}.jpg" for n in range(8)] + ["äpfel/1.jpg", "äpfel/2.jpg", "äpfel/3.jpg"]
    labels = [0] * 8 + [1] * 3
    went = assign(keys, labels, keys, {"val": 0.25, "test": 0.25}, seed=0)
    assert dict(zip(keys, went, strict=True)) == GOLDEN


def test_no_image_is_in_two_splits_and_none_is_lost(tmp_path: Path) -> None:
    root = make(tmp_path / "data", {"train/a": 20, "train/b": 10, "train/c": 7})
    dataset = load(root)
    contents = [path.read_bytes() for split in dataset.splits.values() for path in split.paths]
    assert len(contents) == len(set(contents)) == 37
    assert list(dataset.splits) == ["train", "val", "test"]


def test_every_class_gives_its_share(tmp_path: Path) -> None:
    dataset = load(make(tmp_path / "data", {"train/a": 40, "train/b": 10, "train/c": 4, "train/d": 3}))
    assert count(dataset.split("val")) == [6, 2, 1, 1]
    assert count(dataset.split("test")) == [6, 2, 1, 1]
    assert count(dataset.split("train")) == [28, 6, 2, 1]
    for split in dataset.splits.values():
        assert all(path.parent.name == "abcd"[label] for path, label in zip(split.paths, split.labels, strict=True))
    assert dataset.notes == (
        "val (15%) and test (15%) were split off train, class by class, with seed 0: 37 train, 10 val and 10 test images.",
    )


def test_classes_of_one_and_two_images_stay_in_train(tmp_path: Path) -> None:
    dataset = load(make(tmp_path / "data", {"train/one": 1, "train/three": 3, "train/two_x": 2}))
    assert [count(dataset.split(name)) for name in ("train", "val", "test")] == [[1, 1, 2], [0, 1, 0], [0, 1, 0]]
    assert dataset.notes[-1] == "2 classes have fewer than 3 different images, all of which stay in train: one, two x."


@pytest.mark.parametrize("shares", [{"val": 0.5, "test": 0.49}, {"val": 0.01, "test": 0.98}, {"val": 0.98}, {"test": 0.001}])
@pytest.mark.parametrize("size", [3, 4, 5, 11])
def test_no_share_empties_train_or_a_split(shares: Mapping[str, float], size: int) -> None:
    keys = [str(number) for number in range(size)]
    assert set(assign(keys, [0] * size, keys, shares, seed=3)) == {"train", *shares}


def test_same_seed_same_split_and_another_seed_another(tmp_path: Path) -> None:
    root = make(tmp_path / "data", {"train/a": 12, "train/b": 12})
    assert where(load(root, seed=1)) == where(load(root, seed=1)) != where(load(root, seed=2))
    assert load(root, seed=1).fingerprint() != load(root, seed=2).fingerprint()


def test_order_of_the_files_does_not_matter() -> None:
    keys, labels = [f"{number}.jpg" for number in range(10)], [0, 1] * 5
    went = assign(keys, labels, keys, BOTH, seed=0)
    assert assign(keys[::-1], labels[::-1], keys[::-1], BOTH, seed=0) == went[::-1]


def test_copies_of_an_image_stay_together() -> None:
    keys = [f"{number}.jpg" for number in range(40)]
    contents = [f"content {number // 4}" for number in range(40)]
    for seed in range(5):
        went = assign(keys, [0] * 40, contents, BOTH, seed)
        assert all(len(set(went[start : start + 4])) == 1 for start in range(0, 40, 4))
        assert Counter(went) == {"train": 24, "val": 8, "test": 8}
    assert set(assign(keys[:8], [0] * 8, contents[:8], BOTH, seed=0)) == {"train"}, "two distinct images are too few"


@pytest.mark.parametrize(("given", "missing"), [("val", "test"), ("test", "val")])
def test_only_what_is_missing_is_split_off(tmp_path: Path, given: str, missing: str) -> None:
    root = make(tmp_path / "data", {"train/a": 10, "train/b": 10, f"{given}/a": 3, f"{given}/b": 3})
    dataset = load(root)
    assert {name: count(split) for name, split in dataset.splits.items()} == {"train": [8, 8], given: [3, 3], missing: [2, 2]}
    assert list(dataset.splits) == ["train", "val", "test"]
    assert dataset.notes == (f"{missing} (15%) was split off train, class by class, with seed 0: 16 train and 4 {missing} images.",)


def test_given_splits_are_left_alone(tiny_root: Path) -> None:
    assert load(tiny_root, seed=7) == open_dataset(tiny_root)
    assert load(tiny_root).notes == ()


@pytest.mark.parametrize(("val", "test"), [(0, 0.1), (1.0, 0.1), (0.1, -0.1), (0.5, 0.5)])
def test_impossible_shares_are_refused(tiny_root: Path, val: float, test: float) -> None:
    with pytest.raises(SettingError, match="share"):
        load(tiny_root, val_share=val, test_share=test)


def test_too_few_images_for_a_split_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no val and test, and no class has 3 different images"):
        load(make(tmp_path / "data", {"train/a": 2, "train/b": 2}))


# --- folders as people have them ---


def test_class_folders_alone_are_train(tmp_path: Path) -> None:
    root = make(tmp_path / "data", {"a": 6, "b": 6, "notes": 0})
    dataset = load(root)
    assert dataset.class_names == ("a", "b")
    assert "2 folders of images were read as the classes of train" in dataset.notes[0]
    assert "not read: notes." in dataset.notes[1]
    inside = make(tmp_path / "other", {"train/a": 6, "train/b": 6})
    assert where(dataset) == {path.removeprefix("train/"): split for path, split in where(load(inside)).items()}


@pytest.mark.parametrize(
    ("folder", "meant"),
    [("Train", "train"), ("training", "train"), ("valid", "val"), ("validation", "val"), ("Val", "val"), ("testing", "test"),
     ("TEST", "test"), ("Shifts", "shifts")],
)  # fmt: skip
@pytest.mark.parametrize("beside", ["", "train/"])
def test_folder_named_almost_like_a_split_is_refused(tmp_path: Path, folder: str, meant: str, beside: str) -> None:
    root = make(tmp_path / "data", {f"{beside}a": 3, f"{beside}b": 3, f"{folder}/x": 1})
    with pytest.raises(DataError, match=f"{folder} -> {meant}"):
        load(root)


def test_files_that_are_passed_over_are_counted(tmp_path: Path) -> None:
    root = make(tmp_path / "data", {"train/a": 4, "train/b": 4, "extra": 0})
    for name in ("a/list.txt", "a/.hidden", "b/Thumbs.db"):
        (root / "train" / name).write_text("x")
    notes = load(root).notes
    assert notes[0].endswith("not read: extra.")
    assert notes[1] == "2 files without an image suffix were passed over, e.g. train/a/list.txt."
    (root / "train/b/phone.HEIC").write_text("x")
    assert "3 files" in load(root).notes[1]
    assert "convert them to JPEG" in load(root).notes[1]


def test_folder_without_classes_is_explained(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    Image.new("RGB", (4, 4)).save(root / "0.png")
    with pytest.raises(MissingDataError, match=r"train/<class>/, one folder for each class\.$"):
        load(root)
    (root / "list.csv").write_text("path,class\n")
    with pytest.raises(MissingDataError, match=r"list\.csv lists the images, give that file"):
        load(root)


@pytest.mark.parametrize("folder", ["a", "train/a"])
def test_one_class_is_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(DataError, match="1 class folders; classification needs at least two"):
        load(make(tmp_path / "data", {folder: 3}))


def test_colliding_class_names_are_kept(tmp_path: Path) -> None:
    dataset = load(make(tmp_path / "data", {"train/Granny_Smith": 4, "train/granny smith": 4}))
    assert dataset.class_names == ("Granny Smith", "granny smith")


def test_names_that_are_no_valid_text_do_not_stop_a_split() -> None:
    keys = ["a/\udcff.jpg", "a/1.jpg", "a/2.jpg"]
    assert sorted(assign(keys, [0] * 3, keys, BOTH, seed=0)) == ["test", "train", "val"]


# --- manifests ---


def rows_of(root: Path) -> list[dict[str, str]]:
    """The rows that describe a folder in the standard layout, in an order of their own."""
    dataset = open_dataset(root)
    return [
        {"path": dataset.written(path), "class": path.parent.name, "split": split.name}
        for split in reversed(dataset.splits.values())
        for path in reversed(split.paths)
    ]


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
        return path
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("absolute", [False, True])
def test_manifest_gives_what_the_folder_gives(copy_of: Copy, suffix: str, absolute: bool) -> None:
    root = copy_of()
    rows = rows_of(root)
    if absolute:
        rows = [row | {"path": str(root / row["path"])} for row in rows]
    listed, folder = load(write(root / f"list{suffix}", rows)), load(root)
    assert list(listed.splits) == ["train", "val", "test", "shifts/green", "shifts/red", "unseen/other"]
    assert replace(listed, notes=()) == replace(folder, notes=())
    assert listed.fingerprint() == folder.fingerprint()


def test_manifest_without_splits_is_split_like_the_folder(tmp_path: Path) -> None:
    root = make(tmp_path / "data", {"train/a": 9, "train/b": 9})
    rows = [{"path": row["path"], "class": row["class"]} for row in rows_of(root)]
    listed = load(write(root / "list.csv", rows), seed=4)
    assert where(listed) == where(load(root, seed=4))
    assert listed.name == "list"
    assert listed.notes == load(root, seed=4).notes


def test_manifest_lists_files_anywhere(tmp_path: Path) -> None:
    root = make(tmp_path / "images", {"x": 4})
    (tmp_path / "lists").mkdir()
    rows = [{"path": f"../images/x/{n}.png", "class": "ab"[n % 2], "split": "train" if n < 2 else "test"} for n in range(4)]
    rows.append({"path": str(make(tmp_path / "far", {"y": 1}) / "y/0.png"), "class": "a", "split": "val"})
    path = write(tmp_path / "lists/list.csv", rows)
    with pytest.raises(DataError, match=r"list\.csv leads to 5 files outside of .*lists: .*0\.png.*--allow-outside"):
        load(path)
    dataset = load(path, allow_outside=True)
    assert sorted(where(dataset))[:2] == ["../images/x/0.png", "../images/x/1.png"]
    assert all(path.is_file() for split in dataset.splits.values() for path in split.paths)
    assert len(dataset.fingerprint()) == 16
    assert root.is_dir()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_captions_follow_their_images(tmp_path: Path, suffix: str) -> None:
    root = make(tmp_path / "data", {"a": 8, "b": 8})
    rows = [{"path": f"{c}/{n}.png", "class": c, "caption": f"{c}, number {n}" if n else ""} for c in "ab" for n in range(8)]
    dataset = load(write(root / f"list{suffix}", rows))
    for split in dataset.splits.values():
        assert split.captions == tuple(f"{p.parent.name}, number {p.stem}" if p.stem != "0" else "" for p in split.paths)
    rows[1]["caption"] = "another"
    assert load(write(root / f"list{suffix}", rows)).fingerprint() != dataset.fingerprint()
    assert load(root).split("train").captions == ()


def test_dataset_toml_beside_a_manifest_counts(tmp_path: Path) -> None:
    root = make(tmp_path / "data", {"x": 8})
    rows = [{"path": f"x/{n}.png", "class": n % 2} for n in range(8)]
    write(root / "list.jsonl", rows)
    (root / "dataset.toml").write_text('name = "eggs"\ntemplates = ["an {}."]\n[class_names]\n0 = "good egg"\n')
    dataset = load(root / "list.jsonl")
    assert (dataset.name, dataset.templates, dataset.class_names) == ("eggs", ("an {}.",), ("good egg", "1"))
    (root / "dataset.toml").write_text('[class_names]\ngod = "good egg"\n')
    with pytest.raises(UnknownNameError, match="god"):
        load(root / "list.jsonl")


def test_other_columns_are_noted(tmp_path: Path) -> None:
    root = make(tmp_path / "data", {"a": 4, "b": 4})
    rows = [{"path": f"{c}/{n}.png", "class": c, "camera": "x"} for c in "ab" for n in range(4)]
    assert load(write(root / "list.csv", rows)).notes[0] == "Columns of list.csv that have no meaning here were not read: camera."


GOOD = "a/0.png,a\na/1.png,a\nb/0.png,b\nb/1.png,b\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n" + GOOD, "list.csv, line 1: no column 'class'. Found: path, label"),
        ("path;class\na/0.png;a\n", "no column 'path'. Separate the columns with commas."),
        ("Path,class\n" + GOOD, "Rename 'Path' to 'path'"),
        ("path,class,Split\n", "no column 'split'. Rename 'Split' to 'split'"),
        ("path,classes\n" + GOOD, "Rename 'classes' to 'class'"),
        ("", "no column 'path'"),
        ("path,class\n", "lists no images"),
        (
            "path,class\n" + GOOD + "c/0.png,c\nc/1.png,c\n",
            "lists 2 files that are not there: {root}/c/0.png (line 6), {root}/c/1.png (line 7)",
        ),
        ("path,class\n" + GOOD + "c/0.png,c\n", "lists 1 file that is not there"),
        ("path,class\n" + "".join(f"c/{n}.png,c\n" for n in range(12)), "{root}/c/9.png (line 11) and 2 more."),
        ("path,class\n" + GOOD + "a/2.png,\n", "list.csv, line 6: class is empty"),
        ("path,class\n" + GOOD + "a/2.png\n", "list.csv, line 6: class is empty"),
        ("path,class\n" + GOOD + ",a\n", "list.csv, line 6: path is empty"),
        ("path,class\n" + GOOD + "a/2.png,a,b\n", "line 6 has more cells than the header"),
        ("path,class\n" + GOOD + 'a/2.png,"a\n', "is not valid CSV"),
        ("path,class,split\na/0.png,a,vall\n", "list.csv, line 2: unknown split 'vall'. Did you mean 'val'?"),
        ("path,class,split\na/0.png,a,validation\n", "Did you mean 'val'?"),
        ("path,class,split\na/0.png,a,shift/red\n", "Did you mean 'shifts/'?"),
        ("path,class,split\na/0.png,a,xyz\n", "unknown split 'xyz'. Allowed: train, val, test, shifts/<name>, unseen/<name>."),
        ("path,class,split\na/0.png,a,shifts/\n", "unknown split 'shifts/'"),
        ("path,class\n" + GOOD + "a/2.png,a;b\n", "list.csv, line 6: the class 'a;b' looks like several labels. Multi-label data are not"),
        ("path,class\n" + GOOD + "a/2.png,a|b\n", "Multi-label data are not supported"),
        ("path,class,split\na/0.png,a,train\nb/0.png,b,\n./a/0.png,a,val\n", "stands in two splits, train and val, in lines 2 and 4"),
        ("path,class\n" + GOOD + "a/0.png,b\n", "stands in two classes, 'a' and 'b' (multi-label"),
        ("path,class\n" + GOOD + "a/0.png,a\n", "stands twice in the list, in lines 2 and 6"),
        ("path,class\na/0.png,a\na/1.png,a\n", "holds 1 classes in train; classification needs at least two"),
        ("path,class,split\na/0.png,a,\nb/0.png,b,\na/1.png,c,shifts/x\n", "line 4: 'c' is a class that train does not have"),
    ],
)
def test_damaged_csv_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    root = make(tmp_path, {"a": 3, "b": 3})
    (root / "list.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        load(root / "list.csv")
    assert message.format(root=root) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a/0.png"}', "list.jsonl, line 1: no column 'class'"),
        ('{"path": "a/0.png", "class": "a"}\n{"path": ', "list.jsonl, line 2 is not valid JSON"),
        ('["a/0.png", "a"]', "line 1 is no object"),
        (
            '{"path": "a/0.png", "class": ["a", "b"]}',
            "line 1: the class ['a', 'b'] looks like several labels. Multi-label data are not supported",
        ),
        ('{"path": "a/0.png", "class": null}', "class is empty"),
        ('{"path": "a/0.png", "class": true}', "class is True. Write a text."),
        ('{"path": "a/0.png", "class": "a", "caption": 3}', "caption is 3. Write a text."),
    ],
)
def test_damaged_jsonl_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    root = make(tmp_path, {"a": 3})
    (root / "list.jsonl").write_text(text)
    with pytest.raises(DataError) as caught:
        load(root / "list.jsonl")
    assert message in str(caught.value)


def test_missing_files_are_missing_data(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,class\na/0.png,a\n")
    with pytest.raises(MissingDataError):
        load(tmp_path / "list.csv")


@pytest.mark.parametrize(("name", "content", "message"), [("list.txt", b"", ".txt file"), ("list.csv", b"path,class\n\xff", "UTF-8")])
def test_file_that_is_no_manifest_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / name)


def test_accents_are_one_name_however_they_are_spelt(tmp_path: Path) -> None:
    """macOS may hand out letters and accents apart."""
    one = make(tmp_path / "one", {unicodedata.normalize("NFC", "train/äpfel"): 9, "train/b": 9})
    two = Path(shutil.copytree(one, tmp_path / "two"))
    (two / unicodedata.normalize("NFC", "train/äpfel")).rename(two / unicodedata.normalize("NFD", "train/äpfel"))
    spelt = {unicodedata.normalize("NFC", path): split for path, split in where(load(two)).items()}
    assert spelt == where(load(one))
