"""Shards in place of class folders: the same data set, the same weights; every layout, every mistake, and downloads that break."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fresh
from PIL import Image
from test_downloads import Server, served  # noqa: F401 - a fixture
from test_shards import cache, picture, shard  # noqa: F401 - the cache is every test's

from surefoot.data import Dataset, Images, downloads, load, open_dataset, packing, read_image
from surefoot.data.layout import Split
from surefoot.data.packing import pack
from surefoot.data.streamed import natural
from surefoot.data.subsets import few_shot
from surefoot.data.survey import survey
from surefoot.errors import DataError, MissingDataError, SettingError, SurefootError
from surefoot.job import DataOptions
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.protocols import Judge
from surefoot.train import Training, fit

Sample = tuple[bytes, object]


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()


def samples(*labels: int, start: int = 0) -> dict[str, bytes]:
    """An image and a .cls for each label."""
    return {
        f"s{start + row:03d}.{ending}": content
        for row, label in enumerate(labels)
        for ending, content in (("png", picture(start + row)), ("cls", str(label).encode()))
    }


def hand_made(root: Path, **sets: Mapping[str, bytes]) -> Path:
    """Two classes, one shard for each set."""
    for name, members in ({"train": samples(0, 1, 0, 1)} | sets).items():
        shard(root / name / "0.tar", members)
    (root / "classnames.txt").write_text("granny smith\nred_fuji\n")
    return root


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Class folders of tiny pictures, with all that a data set in folders can have."""
    root = tmp_path / "folders"
    counts = {"train": 9, "val": 5, "test": 4, "shifts/sketch": 3, "unseen/pears": 2}
    number = 0
    for split, count in counts.items():
        for name in ("bosc", "red_anjou") if split == "unseen/pears" else ("granny", "fuji", "gala"):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                number += 1
                (root / split / name / f"{k}.b.{'PNG' if k else 'jpg'}").write_bytes(picture(number, "png" if k else "jpg"))
    (root / "dataset.toml").write_text(
        'name = "äpfel \\"1\\""\nid_context = "photo"\ntemplates = ["a {}.", "a drawing of a {}."]\n'
        '[contexts]\nphoto = "a photo of a {}."\nsketch = "a sketch of a {}."\n[class_names]\ngranny = "granny_smith apple"\n'
    )
    return root


@pytest.fixture
def packed(folders: Path, tmp_path: Path) -> Path:
    pack(open_dataset(folders), tmp_path / "shards", per_shard=4)
    return tmp_path / "shards"


def test_shards_and_folders_are_the_same_data_set(folders: Path, packed: Path) -> None:
    one, other = open_dataset(folders), open_dataset(packed)
    assert replace(other, root=one.root, splits=one.splits) == one
    assert one.class_names == ("fuji", "gala", "granny_smith apple")
    assert list(one.splits) == list(other.splits)
    for name, split in one.splits.items():
        again = other.split(name)
        assert (split.labels, split.class_names, split.captions) == (again.labels, again.class_names, again.captions)
        for a, b in zip(split.paths, again.paths, strict=True):
            assert read_image(a).tobytes() == read_image(b).tobytes()
    assert sorted(path.name for path in (packed / "train").iterdir()) == [*(f"{k:06d}.tar" for k in range(7)), "nshards.txt"]
    assert other.written(other.split("train").paths[5]) == "train/000001.tar/00000005-fuji-5_b.png"
    assert other.fingerprint() == open_dataset(packed).fingerprint()


def test_two_classes_of_one_name_stay_apart_in_a_shift_with_names_of_its_own(tmp_path: Path) -> None:
    root = hand_made(tmp_path, train=samples(0, 1, 2), **{"shifts/same": samples(0, 1, 2), "shifts/turned": samples(0, 1, 2)})
    (root / "classnames.txt").write_text("crane\nmaillot\ncrane\n")
    (root / "shifts/same/classnames.txt").write_text("crane\nmaillot\ncrane\n")
    (root / "shifts/turned/classnames.txt").write_text("maillot\ncrane\ncrane\n")
    data = open_dataset(root)
    assert data.split("shifts/same").labels == (0, 1, 2)
    assert data.split("shifts/turned").labels == (1, 0, 2)
    (root / "shifts/turned/classnames.txt").write_text("maillot\ncrane\nmaillot\n")
    with pytest.raises(DataError, match="names classes that train does not have: maillot"):
        open_dataset(root)


@pytest.mark.parametrize(("told", "words"), [
    ({"label": 0, "caption": ["a red apple", "an apple"]}, "caption of a.json is .*; it must be one text"),
    ({"label": 0, "group": 3}, "group of a.json is 3; it must be one text"),
])  # fmt: skip
def test_fields_that_are_no_text_are_refused(told: dict[str, object], words: str, tmp_path: Path) -> None:
    root = hand_made(tmp_path, train={**samples(1), "a.png": picture(7), "a.json": json.dumps(told).encode()})
    with pytest.raises(DataError, match=words):
        open_dataset(root)


def test_null_is_no_caption_and_no_group(tmp_path: Path) -> None:
    told = json.dumps({"label": 0, "caption": None, "group": None}).encode()
    train = open_dataset(hand_made(tmp_path, train={**samples(1), "a.png": picture(7), "a.json": told})).split("train")
    assert (train.captions, train.groups) == ((), ())


def test_every_image_comes_once_with_any_number_of_workers(folders: Path, packed: Path) -> None:
    wanted = [read_image(path).tobytes() for path in open_dataset(folders).split("train").paths]
    for workers in (1, 2, 8):
        images = Images(open_dataset(packed).split("train").paths, tensor, workers=workers)
        got = torch.cat(list(images.batches(5)))
        assert [image.permute(1, 2, 0).byte().numpy().tobytes() for image in got] == wanted
    assert len(set(wanted)) == 27


def test_draws_and_splits_have_the_same_sizes(folders: Path, packed: Path, tmp_path: Path) -> None:
    one, other = (few_shot(open_dataset(root), 2, seed=3) for root in (folders, packed))
    assert {name: split.labels for name, split in one.splits.items()} == {name: split.labels for name, split in other.splits.items()}
    only_train = replace(open_dataset(folders), splits={"train": open_dataset(folders).split("train")})
    pack(only_train, tmp_path / "train-only", per_shard=100)
    for name in ("val", "test"):
        for path in sorted((folders / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (folders / name).rmdir()
    one, other = load(folders, seed=5), load(tmp_path / "train-only", seed=5)
    assert [len(other.split(name)) for name in ("train", "val", "test")] == [len(one.split(name)) for name in ("train", "val", "test")]
    assert not {path for name in ("val", "test") for path in other.split(name).paths} & set(other.split("train").paths)


def test_check_finds_what_is_wrong_in_shards(packed: Path, tmp_path: Path) -> None:
    assert survey(open_dataset(packed)).formats == survey(open_dataset(tmp_path / "folders")).formats
    root = hand_made(tmp_path / "bad", test=samples(0, 1))  # the first two of train again
    shard(root / "val" / "0.tar", {"a.png": b"nothing", "a.cls": b"0"})
    found = survey(open_dataset(root))
    assert [path for path, _ in found.unreadable] == [root / "val" / "0.tar" / "a.png"]
    assert len(found.across_splits) == 2


def test_the_same_run_from_shards_gives_the_same_weights(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    plain = replace(tiny_data, anchors=type(tiny_data.anchors)())
    pack(plain, tmp_path / "shards", per_shard=5)
    ends, right = [], []
    for data in (plain, open_dataset(tmp_path / "shards")):
        model = fresh(tiny_model)
        ends.append(fit(get("flyp"), model, data, Training(epochs=1, batch_size=8, learning_rate=1e-2)).state)
        right.append(Judge(model, data, ends[-1]).judge(get("flyp"), ends[-1]).correct)
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert right[0].keys() == right[1].keys() >= {"val", "test", "shifts/red", "unseen/other"}
    assert all(right[0][name].tolist() == right[1][name].tolist() for name in right[0])


def test_hand_made_samples_state_their_class_in_every_way(tmp_path: Path) -> None:
    texts = {"label": 1, "caption": "an apple "}, {"class": "granny smith", "group": "asia"}, {"class": "1"}
    members = {f"{k}.json": json.dumps(text).encode() for k, text in enumerate(texts)} | {f"{k}.png": picture(k) for k in range(3)}
    more = {
        "in/x.WebP": picture(9, "webp"),
        "in/x.cls": b" 0\n",
        "in/x.txt": b"one more\n",
        "in/x.seg.png": b"",
        "in/x.json": b"[1]",
    }
    data = open_dataset(hand_made(tmp_path / "data", train=members | more))
    train = data.split("train")
    assert data.class_names == ("granny smith", "red_fuji")
    assert train.labels == (1, 0, 1, 0)
    assert train.captions == ("an apple", "", "", "one more")
    assert train.groups == ("", "asia", "", "")
    assert [data.written(path) for path in train.paths] == [f"train/0.tar/{name}" for name in ("0.png", "1.png", "2.png", "in/x.WebP")]
    assert data.notes == ("Fields of the samples that have no meaning here were not read: .seg.png.",)


def test_a_renamed_class_is_known_by_both_names(tmp_path: Path) -> None:
    told = ("granny smith", "apple", "red_fuji", "granny smith")
    members = {f"{k}.json": json.dumps({"class": name}).encode() for k, name in enumerate(told)}
    members |= {f"{k}.png": picture(k) for k in range(4)}
    root = hand_made(tmp_path, train=members, **{"shifts/same": members, "shifts/turned": members, "unseen/pears": members})
    for place in ("shifts/turned", "unseen/pears"):
        (root / place / "classnames.txt").write_text("red_fuji\ngranny smith\n")
    (root / "dataset.toml").write_text('[class_names]\n"granny smith" = "apple"\n')
    data = open_dataset(root)
    assert data.class_names == ("apple", "red_fuji")
    assert data.split("train").labels == data.split("shifts/same").labels == data.split("shifts/turned").labels == (0, 0, 1, 0)
    assert data.split("unseen/pears").labels == (1, 1, 0, 1)
    (root / "dataset.toml").write_text('[class_names]\n"granny smith" = "red_fuji"\nred_fuji = "apple"\n')
    assert open_dataset(root).split("train").labels == (0, 1, 1, 0), "what classnames.txt says counts more"


def test_clip_benchmarks_layout_opens(tmp_path: Path) -> None:
    root = hand_made(tmp_path / "data", test=samples(1, 0, start=50))
    for number in (1, 2, 10):
        shard(root / "train" / f"{number}.tar", samples(0, 1, start=number * 10))
    for number in range(3, 10):
        shard(root / "train" / f"{number}.tar", samples(1, start=number * 10))
    (root / "train" / "nshards.txt").write_text("11\n")
    (root / "test" / "nshards.txt").write_text("1")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nart of {c}\n")
    data = open_dataset(root)
    assert data.templates == ("a photo of a {}.", "art of {}")
    assert data.split("test").labels == (1, 0)
    assert [path.parent.name for path in data.split("train").paths][-3:] == ["9.tar", "10.tar", "10.tar"]
    assert sorted(["b10", "b9", "a", "10", "9"], key=natural) == ["9", "10", "a", "b9", "b10"]
    (root / "train" / "4.tar").unlink()
    with pytest.raises(MissingDataError, match=r"train/4\.tar is not there: .*counts 11 shards, and 10"):
        open_dataset(root)
    (root / "train" / "nshards.txt").write_text("4")
    with pytest.raises(DataError, match=r"also holds 5\.tar, 6\.tar"):
        open_dataset(root)


def test_sets_with_class_names_of_their_own(tmp_path: Path) -> None:
    sets = {"shifts/r": samples(0), "shifts/objects": samples(0, 1, 2), "unseen/pears": samples(1, 0)}
    root = hand_made(tmp_path / "data", **sets)
    (root / "shifts/r/classnames.txt").write_text("red_fuji\n")
    (root / "shifts/objects/classnames.txt").write_text("a\nb\nc\n")
    (root / "shifts/objects/set.toml").write_text("mapped = [[0], [0, 1], [1]]\nborder = 2\n")
    (root / "unseen/pears/classnames.txt").write_text("bosc\nanjou\n")
    (root / "unseen/pears/zeroshot_classification_templates.txt").write_text("a pear, {c}\n")
    data = open_dataset(root)
    assert (data.split("shifts/r").labels, data.split("shifts/r").class_names) == ((1,), data.class_names)
    objects, pears = data.split("shifts/objects"), data.split("unseen/pears")
    assert (objects.mapped, objects.border, objects.class_names, objects.labels) == (((0,), (0, 1), (1,)), 2, ("a", "b", "c"), (0, 1, 2))
    assert (pears.templates, pears.class_names, pears.labels) == (("a pear, {}",), ("bosc", "anjou"), (1, 0))
    grouped = replace(data.split("train"), groups=("", "asia", "", "europe"), captions=("", "x", "", ""))
    whole = replace(data, splits={**data.splits, "train": grouped}, metric="worst_group")
    pack(whole, tmp_path / "again")
    again = open_dataset(tmp_path / "again")
    assert replace(again, root=root, splits=whole.splits) == whole
    for name, split in again.splits.items():
        assert replace(split, paths=()) == replace(whole.split(name), paths=())
    (root / "shifts/r/classnames.txt").write_text("fuji\n")
    with pytest.raises(DataError, match="names classes that train does not have: fuji"):
        open_dataset(root)
    (root / "shifts/objects/set.toml").write_text("mapped = [[0], [0, 2], [1]]\n")
    with pytest.raises(DataError, match="class numbers from 0 to 1"):
        open_dataset(hand_made(root, **{"shifts/r": samples(0)}))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no class": (lambda root: hand_made(root, train={"a.png": picture(0)}), r"0\.tar: the sample a has no class"),
    "no number": (
        lambda root: hand_made(root, train={"a.png": picture(0), "a.cls": b"apple"}),
        r"0\.tar: the sample a has the class 'apple'",
    ),
    "too high": (lambda root: hand_made(root, train={"a.png": picture(0), "a.cls": b"2"}), r"0\.tar: the sample a has class 2; .* 0 to 1"),
    "negative": (lambda root: hand_made(root, train={"a.png": picture(0), "a.cls": b"-1"}), "class -1"),
    "truth": (lambda root: hand_made(root, train={"a.png": picture(0), "a.json": b'{"label": true}'}), "class True"),
    "no image": (lambda root: hand_made(root, train=samples(0, 1) | {"b.1.png": b"", "b.cls": b"0"}), "the sample b has no image"),
    "two images": (lambda root: hand_made(root, train={"a.png": b"", "a.jpg": b"", "a.cls": b"0"}), "a has two images, a.png and a.jpg"),
    "two classes": (lambda root: hand_made(root, train={"a.png": b"", "a.cls": b"0", "a.CLS": b"1"}), "a has two files .cls"),
    "bad json": (lambda root: hand_made(root, train={"a.png": b"", "a.json": b"{"}), r"0\.tar/a\.json is not valid JSON"),
    "no text": (lambda root: hand_made(root, train={"a.png": b"", "a.cls": b"\xff"}), r"0\.tar/a\.cls is no short text"),
    "a class without images": (lambda root: hand_made(root, train=samples(0, 0)), "no image of 1 of the 2 classes .*: red_fuji"),
    "no images": (lambda root: hand_made(root, val={}), "val hold no images"),
    "no names": (lambda root: (hand_made(root) / "classnames.txt").unlink(), r"There is no .*classnames\.txt"),
    "no unseen names": (lambda root: hand_made(root, **{"unseen/x": samples(0)}), r"There is no .*unseen/x/classnames\.txt"),
    "a gap": (lambda root: (hand_made(root) / "classnames.txt").write_text("a\n\nb\n"), "line 2 is empty"),
    "one class": (lambda root: (hand_made(root) / "classnames.txt").write_text("a\n"), "names 1 classes"),
    "no train": (lambda root: (hand_made(root, test=samples(0)) / "train").rename(root / "x"), "There is no folder .*train"),
    "nearly val": (lambda root: hand_made(root, valid=samples(0)), "Rename it: valid -> val"),
    "compressed": (lambda root: (hand_made(root) / "train/0.tar").rename(root / "train/0.tar.gz"), r"0\.tar\.gz is compressed.* gunzip"),
    "loud": (lambda root: (hand_made(root) / "train/0.tar").rename(root / "train/0.TAR"), r"small letters\. Rename it: 0\.tar"),
    "loud address": (lambda root: (hand_made(root) / "train/shards.txt").write_text("http://x/0.TAR"), "written in small letters"),
    "half unpacked": (lambda root: (hand_made(root) / "train/granny").mkdir(), r"both folders \(granny\) and archives \(0\.tar\)"),
    "no number of shards": (lambda root: (hand_made(root) / "train/nshards.txt").write_text("two"), "Write the number of .tar files"),
    "no shard": (lambda root: hand_made(root, test=samples(0)) and (root / "val").mkdir(), r"val holds no \.tar file"),
    "no prompt": (lambda root: (hand_made(root) / "zeroshot_classification_templates.txt").write_text("a {class}\n"), "templates.txt: "),
    "strange key": (lambda root: (hand_made(root) / "train/set.toml").write_text("borders = 1"), "Did you mean 'border'"),
    "bad metric": (lambda root: (hand_made(root) / "set.toml").write_text('metric = "f1"'), "metric is 'f1'. Allowed are accuracy"),
    "bad border": (lambda root: (hand_made(root) / "train/set.toml").write_text("border = -1"), "border is -1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    make, message = WRONG[name]
    make(tmp_path / "data")
    with pytest.raises(SurefootError, match=message) as error:
        open_dataset(tmp_path / "data")
    assert str(tmp_path / "data") in str(error.value)


def test_a_truncated_shard_is_found_before_anything_else(packed: Path) -> None:
    tar = packed / "test" / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"test/000001\.tar is broken"):
        load(packed)


def test_an_interrupted_packing_goes_on(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out, told = open_dataset(folders), tmp_path / "shards", list[tuple[int, int]]()
    real, left = packing.content, iter(range(10))

    def stops(path: Path) -> bytes:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(packing, "content", stops)
    with pytest.raises(KeyboardInterrupt):
        pack(data, out, per_shard=4)
    assert sorted(path.name for path in (out / "train").iterdir()) == ["000000.tar", "000001.tar", "nshards.txt"]
    with pytest.raises(MissingDataError, match=r"000002\.tar is not there.*'surefoot shards' again"):
        open_dataset(out)
    monkeypatch.setattr(packing, "content", real)
    before = [(out / "train" / f"00000{k}.tar").stat().st_mtime_ns for k in (0, 1)]
    number = pack(data, out, per_shard=4, on_image=lambda *done: told.append(done))
    assert before == [(out / "train" / f"00000{k}.tar").stat().st_mtime_ns for k in (0, 1)]
    assert number == len(list(out.rglob("*.tar"))) == 7 + 4 + 3 + 3 + 1
    assert told[0] == (4, 67)
    assert told[-1] == (67, 67)
    pack(data, tmp_path / "at once", per_shard=4)
    for path in (tmp_path / "at once").rglob("*.*"):
        assert path.read_bytes() == (out / path.relative_to(tmp_path / "at once")).read_bytes(), path
    with tarfile.open(out / "train" / "000000.tar") as tar:
        assert {member.mtime for member in tar} == {0}


LONG = "ä" * 32_768  # 64 KB, the most that is read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: replace(d, class_names=(*d.class_names, "fig")), "no image of 1 of its 4 classes: fig"),
        (lambda d, _: replace(d, splits={**d.splits, "val": replace(d.split("val"), paths=(), labels=())}), "split val .* no image"),
        (lambda d, _: replace(d, splits={"test": d.split("test")}), "has no split train"),
        (lambda d, t: (replace(t, captions=(LONG + "x", *[""] * 26))), r"caption of .*0\.b\.jpg has 65537 bytes; .*65536 at most"),
        (lambda d, t: (replace(t, groups=("x" * 65_536, *[""] * 26))), r"group of .*0\.b\.jpg has 655.. bytes"),
        (lambda d, _: replace(d, class_names=(" fuji", *d.class_names[1:])), "class name ' fuji' is not one line .* without spaces"),
        (lambda d, _: replace(d, class_names=("fuji\ngala", *d.class_names[1:])), "is not one line"),
        (lambda d, _: replace(d, class_names=("fuji\udce4", *d.class_names[1:])), "is not one line of text"),
        (lambda d, _: replace(d, name="\udce4"), "is no valid text"),
    ],
)  # fmt: skip
def test_what_could_not_be_opened_again_is_not_written(
    change: Callable[[Dataset, Split], Dataset | Split], message: str, folders: Path, tmp_path: Path
) -> None:
    data = open_dataset(folders)
    changed = change(data, data.split("train"))
    if isinstance(changed, Split):
        changed = replace(data, splits={**data.splits, "train": changed})
    with pytest.raises(DataError, match=message):
        pack(changed, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_written_is_opened_as_it_was(folders: Path, tmp_path: Path) -> None:
    data = open_dataset(folders)
    odd = replace(data.split("train"), captions=(LONG, "#", "a\r\nb\x0b", '"', *[""] * 23), groups=("ä\n", *["null"] * 26))
    whole = replace(
        data, class_names=("#fuji", '"gala" = [1]', "a\xa0b"), splits={**data.splits, "train": odd}, contexts={}, id_context=None
    )
    pack(whole, tmp_path / "new")
    again = open_dataset(tmp_path / "new")
    assert replace(again, root=data.root, splits=whole.splits) == whole
    train = again.split("train")
    assert (train.labels, train.captions, train.groups) == (odd.labels, tuple(text.strip() for text in odd.captions), odd.groups)


def test_what_else_a_data_set_tells_is_packed_too(folders: Path, tmp_path: Path) -> None:
    data = open_dataset(folders)
    test, sketch, pears = (data.split(name) for name in ("test", "shifts/sketch", "unseen/pears"))
    splits = {
        **data.splits,
        "test": replace(test, accepted=tuple((2, 1) if row == 3 else () for row in range(len(test))), groups=("g",) * len(test)),
        "shifts/sketch": replace(sketch, declared=(0, 2), together=True, groups=tuple("ab"[row % 2] for row in range(len(sketch)))),
        "unseen/pears": replace(pears, accepted=((1,), *((),) * (len(pears) - 1)), declared=(1,)),
    }
    whole = replace(data, splits=splits, id_domain="studio", fewer_shots=True, metric="macro_f1")
    pack(whole, tmp_path / "new", per_shard=5)
    again = open_dataset(tmp_path / "new")
    assert (again.id_domain, again.fewer_shots, again.metric) == ("studio", True, "macro_f1")
    for name, split in splits.items():
        assert replace(again.split(name), paths=split.paths) == split, name
    assert DataOptions(data=str(tmp_path / "new")).open_plain().fewer_shots, "no option of a command takes it away"
    pack(data, tmp_path / "plain", per_shard=5)
    assert not list((tmp_path / "plain").rglob("set.toml")), "nothing is said where there is nothing to say"


def test_a_second_packing_from_python_is_told_of_the_first(folders: Path, tmp_path: Path) -> None:
    lock = tmp_path / "out" / packing.LOCK
    lock.parent.mkdir()
    lock.write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname()}))
    with pytest.raises(DataError, match=f"is being written by another 'surefoot shards': process {os.getppid()}"):
        pack(open_dataset(folders), lock.parent)
    assert list(lock.parent.iterdir()) == [lock]
    lock.unlink()
    held: list[bool] = []
    pack(open_dataset(folders), lock.parent, on_image=lambda *_: held.append(lock.is_file()))
    assert all(held) and held and not lock.exists()


def test_two_packings_into_one_folder_are_told_of_each_other(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from conftest import typed

    lock = tmp_path / "out" / packing.LOCK
    lock.parent.mkdir()
    lock.write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname()}))
    code, said = typed(monkeypatch, capsys, "shards", folders, "--out", tmp_path / "out")
    assert (code, f"is being written by another 'surefoot shards': process {os.getppid()}" in said) == (2, True), said
    assert list(lock.parent.iterdir()) == [lock]
    lock.unlink()
    assert typed(monkeypatch, capsys, "shards", folders, "--out", tmp_path / "out")[0] == 0
    assert not lock.exists()


def test_another_packing_in_the_folder_is_refused(folders: Path, packed: Path, tmp_path: Path) -> None:
    data = open_dataset(folders)
    for arguments in ({"per_shard": 5}, {"per_shard": 4, "dataset": replace(data, name="pears")}):
        with pytest.raises(SettingError, match="other data or of another size"):
            pack(**{"dataset": data, "out": packed} | arguments)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="not empty"):
        pack(data, folders)
    with pytest.raises(SettingError, match="0 images per shard"):
        pack(data, tmp_path / "new", per_shard=0)
    odd = folders / "train" / "fuji" / "x.dat"
    odd.write_bytes(picture(0))
    with pytest.raises(DataError, match=r"x\.dat has no image's ending"):
        pack(replace(data, splits={"train": replace(data.split("train"), paths=(odd,), labels=(0,))}), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("line", "words"), [
    ("s3://bucket/0.tar", "neither a path nor an http address"),
    ("pipe:curl http://host/0.tar", "neither a path nor an http address"),
    ("http://[bad/0.tar", "is no address"),
])  # fmt: skip
def test_addresses_that_are_none_are_named(line: str, words: str, tmp_path: Path) -> None:
    root = hand_made(tmp_path)
    (root / "val").mkdir()
    (root / "val/shards.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=words):
        open_dataset(root)


def test_list_that_is_no_text_is_named_and_a_mark_at_its_beginning_is_none(
    packed: Path, tmp_path: Path, serve: Callable[..., Server]
) -> None:
    root = hand_made(tmp_path)
    (root / "val").mkdir()
    (root / "val/shards.txt").write_bytes("ä.tar".encode("latin-1"))
    with pytest.raises(DataError, match=r"shards\.txt is not UTF-8 text"):
        open_dataset(root)
    shard(tmp_path / "away/ä.tar", samples(0, 1))
    address = serve(tmp_path / "away").address.replace("http", "HTTP")
    (root / "val/shards.txt").write_text(f"\ufeff{address}/ä.tar\n", encoding="utf-8")
    assert open_dataset(root).split("val").labels == (0, 1)


def remote(packed: Path, root: Path, address: str) -> Path:
    """The same data set with lists of addresses in place of its tars."""
    for path in packed.rglob("*.*"):
        if path.suffix in (".txt", ".toml"):
            (root / path.relative_to(packed)).parent.mkdir(parents=True, exist_ok=True)
            (root / path.relative_to(packed)).write_bytes(path.read_bytes())
    for path in packed.rglob("nshards.txt"):
        split, last = path.parent.relative_to(packed).as_posix(), int(path.read_text()) - 1
        (root / split / "shards.txt").write_text(f"# shards\n{address}/{split}/{{000000..{last:06d}}}.tar\n\n")
    return root


@pytest.mark.parametrize("ranges", [True, False])
def test_shards_are_streamed_once_and_broken_transfers_go_on(
    packed: Path,
    tmp_path: Path,
    serve: Callable[..., Server],
    ranges: bool,
    cache: Path,  # noqa: F811
) -> None:
    server = serve(packed, breaks=2 if ranges else 1, ranges=ranges)
    root = remote(packed, tmp_path / "remote", server.address)
    one, other = open_dataset(packed), open_dataset(root)
    for name, split in one.splits.items():
        again = other.split(name)
        assert split.labels == again.labels
        assert [one.written(path) for path in split.paths] == [other.written(path) for path in again.paths]
        assert [read_image(path).tobytes() for path in split.paths] == [read_image(path).tobytes() for path in again.paths]
    assert other.fingerprint() == one.fingerprint()
    assert server.asked[:2] == ["000000.tar", "000000.tar bytes=700-"]
    asked = len(server.asked)
    open_dataset(root)
    assert len(server.asked) == asked
    assert not list(cache.rglob("*.part"))


def test_what_cannot_be_streamed_is_named_and_what_came_is_kept(
    packed: Path,
    tmp_path: Path,
    serve: Callable[..., Server],
    cache: Path,  # noqa: F811
) -> None:
    server = serve(packed, breaks=downloads.TRIES)
    root = remote(packed, tmp_path / "remote", server.address)
    listing = root / "train" / "shards.txt"
    with pytest.raises(DataError, match=rf"{server.address}/train/000000\.tar could not be downloaded .*3500 bytes are kept"):
        open_dataset(root)
    assert [path.stat().st_size for path in cache.rglob("*.part")] == [3500]
    listing.write_text(f"{server.address}/train/none.tar\n")
    with pytest.raises(MissingDataError, match=r"none\.tar cannot be had \(HTTP 404\)"):
        open_dataset(root)
    wrong = {
        "# nothing": "lists no shard",
        "http://x/a.tar.gz": "no .tar file",
        "http://x/0.tar\nhttp://y/0.tar": "two shards called 0.tar",
    }
    for lines, message in wrong.items():
        listing.write_text(lines)
        with pytest.raises(DataError, match=message):
            open_dataset(root)
    listing.write_text("".join(f"{packed}/train/00000{k}.tar\n" for k in range(7)))  # a path is one too
    for split in ("val", "test", "shifts/sketch", "unseen/pears"):
        (root / split / "shards.txt").write_text("".join(f"{path}\n" for path in sorted((packed / split).glob("*.tar"))))
    assert open_dataset(root, allow_outside=True).fingerprint() == open_dataset(packed).fingerprint()


def test_a_list_may_lead_into_folders_beside_it_and_what_lies_there_is_not_fetched(tmp_path: Path, served_shard: str) -> None:
    root = hand_made(tmp_path / "data")
    shard(root / "train/parts/1.tar", samples(0, 1, start=4))
    (root / "train/shards.txt").write_text(f"{served_shard}\n./parts/1.tar\nhttp://127.0.0.1:1/0.tar\n")
    train = open_dataset(root).split("train")
    assert [path.parent.relative_to(root).as_posix() for path in train.paths] == ["train/9.tar"] * 2 + ["train/1.tar"] * 2 + [
        "train/0.tar"
    ] * 4
    assert [read_image(path).tobytes() for path in train.paths] == [
        Image.open(io.BytesIO(picture(number))).tobytes() for number in (8, 9, 4, 5, 0, 1, 2, 3)
    ]
    shard(root / "train/2.tar", samples(0))
    with pytest.raises(DataError, match=r"train holds 2\.tar, which shards\.txt beside it does not name\. Add a line"):
        open_dataset(root)
    (root / "train/2.tar").rename(root / "train/parts/2.tar")
    (root / "train/shards.txt").write_text("parts/{1..3}.tar\n0.tar\n")
    with pytest.raises(MissingDataError, match=r"shards\.txt: There is no shard .*train/parts/3\.tar"):
        open_dataset(root)
    (root / "train/granny").mkdir()
    with pytest.raises(DataError, match=r"both folders \(granny\) and archives"):
        open_dataset(root)


@pytest.fixture
def served_shard(tmp_path: Path, serve: Callable[..., Server]) -> str:
    shard(tmp_path / "away/9.tar", samples(0, 1, start=8))
    return f"{serve(tmp_path / 'away').address}/9.tar"


@pytest.mark.parametrize(
    ("names", "missing", "extra"),
    [
        (["train-000000.tar", "train-000001.tar", "train-000002.tar"], r"train-000001\.tar is not there", r"also holds train-000002\.tar"),
        (["a-0-of-3.tar", "a-1-of-3.tar", "a-2-of-3.tar"], r"a-1-of-3\.tar is not there", r"also holds a-2-of-3\.tar"),
        (["1.tar", "2.tar", "3.tar"], r"/2\.tar is not there", r"also holds 3\.tar"),
        (["a.tar", "b.tar", "c.tar"], "counts 3 shards, and 2 were found", "counts 2 shards, and 3 were found"),
    ],
)
def test_numbered_shards_of_any_name_are_counted(names: list[str], missing: str, extra: str, tmp_path: Path) -> None:
    root = hand_made(tmp_path)
    (root / "train/0.tar").unlink()
    for number, name in enumerate(names):
        shard(root / "train" / name, samples(0, 1, start=2 * number))
    (root / "train/nshards.txt").write_text("3")
    assert len(open_dataset(root).split("train")) == 6
    (root / "train/nshards.txt").write_text("2")
    with pytest.raises(DataError, match=extra):
        open_dataset(root)
    (root / "train/nshards.txt").write_text("3")
    (root / "train" / names[1]).unlink()
    with pytest.raises(DataError, match=missing):
        open_dataset(root)


def test_the_command_packs_and_tells(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from conftest import typed

    code, said = typed(monkeypatch, capsys, "shards", folders, "--out", tmp_path / "out", "--images-per-shard", "20")
    assert (code, "67 images in 6 shards" in said) == (0, True), said
    assert len(load(tmp_path / "out").split("train")) == 27
    code, said = typed(monkeypatch, capsys, "shards", folders, "--out", tmp_path / "out", "--images-per-shard", "9")
    assert (code, "other data or of another size" in said) == (2, True), said
