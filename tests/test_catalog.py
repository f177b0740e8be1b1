"""The papers' data sets, opened from tiny copies in their official layout: class order, subsets, maps, contexts, prompts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fakes
import numpy as np
import pytest
from PIL import Image

from surefoot.data import Dataset, catalog, load, open_dataset
from surefoot.data.catalog import listing
from surefoot.data.catalog.declaration import CATALOG, read_declaration
from surefoot.data.catalog.loaders import LOADERS, arrays, folders
from surefoot.data.catalog.loaders.imagenet import subset, wnids
from surefoot.data.subsets import fraction
from surefoot.methods import get
from surefoot.model import ImageTextModel, imagenet_class_names, templates_named
from surefoot.protocols import Judge
from surefoot.train import start_state

DOMAINS = {
    "pacs": (7, 9991, "art_painting"), "vlcs": (5, 10729, "caltech101"), "office_home": (65, 15588, "art"),
    "terra_incognita": (10, 24330, "location_38"), "domainnet": (345, 586575, "clipart"), "domainnet_real": (345, 414075, "real"),
}  # fmt: skip
"""{set: (classes, images, the domain that is trained on)}, as DomainBed and the sets' papers count them."""

Open = Callable[[str], Dataset]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def opened(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens a fake, which is made once for all tests."""
    monkeypatch.setenv("SUREFOOT_CACHE", str(places.setdefault("cache", tmp_path_factory.mktemp("cache"))))

    def open_(name: str) -> Dataset:
        if name not in places:
            places[name] = fakes.make(name, tmp_path_factory.mktemp(name))
        with fakes.official():
            return load(name, root=places[name])

    return open_


def folder_of(path: Path) -> str:
    return path.parent.name


@pytest.mark.parametrize("name", catalog.names())
def test_every_declaration_can_be_read_and_has_a_tiny_copy(name: str) -> None:
    declaration = read_declaration(CATALOG / f"{name}.toml")
    assert declaration.loader in LOADERS
    readings = {**arrays.READINGS} if declaration.loader == "arrays" else {**folders.READINGS}
    if declaration.loader in ("arrays", "domains", "folders"):
        assert {part.reading for part in declaration.parts} <= readings.keys()
    assert name in fakes.MAKERS, "a set without a tiny copy is not tested"
    assert all("http" in declaration.source_of(part) for part in declaration.parts)


@pytest.mark.parametrize("name", sorted(fakes.MAKERS))
def test_every_set_opens_from_its_official_layout(name: str, opened: Open) -> None:
    data = opened(name)
    assert {"train", "val", "test"} <= set(data.splits)
    assert {part.name for part in catalog.declared(name).splits} <= set(data.splits)
    for split in data.splits.values():
        assert len(split) and all(path.is_file() for path in split.paths)
        assert max(split.labels) < len(split.class_names)
    assert len(data.class_names) == (5 if name in fakes.LISTS else catalog.declared(name).classes)
    assert data.name == name and data.metric == catalog.declared(name).metric
    assert not any(Path(data.written(path)).is_absolute() for split in data.splits.values() for path in split.paths)


def test_imagenet_classes_stand_in_the_order_of_their_wnids() -> None:
    assert list(wnids()) == sorted(wnids()) and len(set(wnids())) == 1000
    names = imagenet_class_names()
    known = {0: "tench", 1: "goldfish", 6: "stingray", 281: "tabby cat", 409: "analog clock", 530: "digital clock", 999: "toilet paper"}
    assert {number: names[number] for number in known} == known
    assert {wnids()[0], wnids()[1], wnids()[999]} == {"n01440764", "n01443537", "n15075141"}


def test_imagenet_images_carry_the_number_of_their_wnid(opened: Open) -> None:
    data = opened("imagenet")
    for name in ("train", "val", "test", "shifts/r", "shifts/a", "shifts/sketch"):
        split = data.split(name)
        assert [wnids()[label] for label in split.labels] == [folder_of(path) for path in split.paths]
        assert split.class_names == tuple(imagenet_class_names())
    assert set(data.split("train").labels) == set(fakes.TRAINED)
    assert data.templates == tuple(templates_named("openai80"))


def test_imagenet_validation_is_two_percent_of_train_and_val_is_the_test(opened: Open) -> None:
    data = opened("imagenet")
    assert any(note.startswith("val (2%) was split off train") for note in data.notes)
    assert {folder.parts[-3] for folder in data.split("test").paths} == {"val"}
    assert {folder.parts[-3] for folder in data.split("val").paths} == {"train"}


def test_another_place_of_the_same_images_gives_the_same_draws(tmp_path: Path) -> None:
    source = fakes.make("imagenet_vid_robust", tmp_path / "source")
    drawn = []
    for place in ("train", "imagenet/train", "imagenet/images/train"):
        root = tmp_path / place.replace("/", "-")
        shutil.copytree(source / "val", root / place.replace("train", "val"))
        shutil.copytree(source / "train", root / place)
        data = load("imagenet", root=root)
        kept = [data.split("train"), data.split("val"), fraction(data, 0.5, seed=0).split("train")]
        drawn.append([[path.relative_to(data.root / place).as_posix() for path in split.paths] for split in kept])
    assert drawn[0] == drawn[1] == drawn[2]
    assert all(len(part) < len(drawn[0][0]) for part in drawn[0][1:]), "something was drawn"


def test_r_and_a_hold_their_200_classes(opened: Open) -> None:
    data = opened("imagenet")
    assert set(data.split("shifts/r").labels) == set(subset("imagenet_r")) and len(subset("imagenet_r")) == 200
    assert set(data.split("shifts/a").labels) == set(subset("imagenet_a")) and len(subset("imagenet_a")) == 200
    assert subset("imagenet_r")[:3] == (1, 2, 4) and subset("imagenet_a")[:3] == (6, 11, 13)


def test_v2_folders_are_numbers(opened: Open) -> None:
    split = opened("imagenet").split("shifts/v2")
    assert [int(folder_of(path)) for path in split.paths] == list(split.labels) == fakes.TRAINED
    assert [folder_of(path) for path in split.paths] != sorted(folder_of(path) for path in split.paths), "text order would be another"


def test_objectnet_has_113_classes_that_stand_for_imagenets(opened: Open) -> None:
    split = opened("imagenet").split("shifts/objectnet")
    assert len(split.class_names) == len(split.mapped) == 113 and split.border == 2
    names = [folder_of(path) for path in split.paths]
    assert names == sorted(names) and "squeegee" not in names
    rows = dict(zip(names, split.labels, strict=True))
    assert split.mapped[rows["alarm_clock"]] == (409, 530)
    assert split.mapped[rows["chair"]] == (423, 559, 765)
    assert split.mapped[rows["object_001"]] == (9,)
    assert split.class_names[rows["alarm_clock"]] == "alarm clock"


def test_two_names_of_imagenet_stand_there_twice() -> None:
    names = imagenet_class_names()
    assert (names[657], names[744]) == ("missile", "missile")
    assert (names[836], names[837]) == ("sunglasses", "sunglasses")
    assert len(set(names)) == 998


def test_duplicate_class_names_can_be_judged(tiny_data: Dataset, tiny_model: ImageTextModel) -> None:
    names = ("missile", "missile", "bar")
    splits = {name: replace(split, class_names=names) for name, split in tiny_data.splits.items() if not name.startswith("unseen/")}
    data = replace(tiny_data, class_names=names, splits=splits)
    start = start_state(tiny_model, data)
    outcome = Judge(tiny_model, data, start, corruptions=False).judge(get("zero_shot"), start)
    assert not {1} & set(outcome.answers["test"].prediction.tolist()), "of two equal logits the first wins"
    assert 0 <= outcome.accuracy["avg_shifts"] <= 1


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_domains_open_with_the_first_as_train(name: str, opened: Open) -> None:
    classes, images, first = DOMAINS[name]
    declaration, data = catalog.declared(name), opened(name)
    assert len(data.class_names) == declaration.classes == classes
    assert sum(part.images or 0 for part in declaration.parts) == images
    assert declaration.parts[0].name == first
    assert {split.name for split in data.shifts} == {f"shifts/{part.name}" for part in declaration.parts[1:]}
    assert [folder_of(path) for path in data.split("train").paths] == [declaration.labels[row] for row in data.split("train").labels]
    assert data.class_names == tuple(label.replace("_", " ") for label in sorted(declaration.labels))


def test_contexts_are_car_fts_listings(opened: Open) -> None:
    pacs, home, real = opened("pacs"), opened("office_home"), opened("domainnet_real")
    assert pacs.contexts == {
        "art_painting": "a art painting of {}.", "cartoon": "a cartoon {}.", "photo": "a photo of {}.", "sketch": "a sketch of {}.",
    }  # fmt: skip
    assert pacs.id_context == "art_painting" and pacs.templates == tuple(pacs.contexts.values())
    assert list(home.contexts.values()) == ["a art painting of {}.", "a clipart of {}.", "a product of {}.", "a photo of {}."]
    assert real.context_of("test") == "real" and real.contexts["real"] == "a photo of {}."
    assert "quickdraw" not in real.contexts and "shifts/quickdraw" not in real.splits
    for data in (pacs, home, real, opened("domainnet")):
        assert all(data.context_of(name) for name in data.splits)
    for name in ("vlcs", "terra_incognita"):
        assert len(opened(name).templates) == 80 and not opened(name).contexts


def test_the_root_may_be_the_sets_own_folder(opened: Open, places: dict[str, Path]) -> None:
    above = opened("pacs")
    own = load("pacs", root=places["pacs"] / "PACS")
    assert own.root == above.root == places["pacs"] / "PACS"
    assert own.fingerprint() == above.fingerprint()


def test_cifar_is_read_by_class_number_and_loses_no_pixel(opened: Open, places: dict[str, Path]) -> None:
    data = opened("cifar10")
    assert data.class_names == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    labels = np.load(places["cifar10"] / "CIFAR-10.1/cifar10.1_v6_labels.npy")
    images = np.load(places["cifar10"] / "CIFAR-10.1/cifar10.1_v6_data.npy")
    split = data.split("shifts/cifar10.1")
    assert sorted(split.labels) == sorted(labels.tolist())
    for path, label in zip(split.paths, split.labels, strict=True):
        row = int(path.stem)
        assert labels[row] == label and folder_of(path) == data.class_names[label]
        assert np.array_equal(np.asarray(Image.open(path)), images[row])
    assert data.root == places["cache"] / "arrays/cifar10"
    assert len(data.templates) == 18


def test_cifar100_stands_in_the_order_of_its_names(opened: Open) -> None:
    data = opened("cifar100")
    assert data.class_names[:2] == ("apple", "aquarium fish") and data.class_names[-1] == "worm"
    assert {folder_of(path).replace("_", " ") for path in data.split("test").paths} == set(data.class_names)


def test_arrays_are_written_once_and_anew_where_they_differ(
    opened: Open, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened("cifar10")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(Image.Image, "save", refuse)
    assert opened("cifar10").fingerprint() == first.fingerprint()
    monkeypatch.undo()
    images, label = np.zeros((2, 8, 8, 3), np.uint8), np.array([1, 0])
    one = arrays.written(images, label, ["a", "b"], tmp_path, "shifts/x")
    assert [path.relative_to(tmp_path).parts[1:] for path in one] == [("a", "00001.png"), ("b", "00000.png")]
    assert one[0].parts[-3].startswith("shifts-x-")
    for other in (
        arrays.written(images + 1, label, ["a", "b"], tmp_path, "x"),
        arrays.written(images, label[::-1], ["a", "b"], tmp_path, "x"),
    ):
        assert other[0].parents[1].name.rsplit("-")[-1] != one[0].parents[1].name.rsplit("-")[-1]


def test_arrays_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, calls = Image.Image.save, iter(range(10))

    def full(*given: object, **named: object) -> None:
        if next(calls) == 2:
            raise OSError(28, "No space left on device")
        save(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        arrays.written(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2, ["a", "b"], tmp_path, "train")
    assert list(tmp_path.iterdir()) == []


def test_vid_robust_holds_the_anchors_of_30_classes(opened: Open) -> None:
    data = opened("imagenet_vid_robust")
    split = data.split("shifts/vid_robust")
    assert len(split.class_names) == 30 == len(split) and {path.stem for path in split.paths} == {"000001"}
    assert split.class_names[9] == "domestic cat" and split.class_names[26] == "turtle"
    turtle = sorted(fakes.VID).index("n01662784")
    assert split.mapped[26] == (2 * turtle, 2 * turtle + 1)
    assert any("1 of 30 frames show several classes, any of which is right" in note for note in data.notes)
    first = next(row for row, path in enumerate(split.paths) if path.parts[-2].endswith("val_00000000"))
    assert (split.labels[first], split.accepted[first]) == (0, (1,)) and sum(map(len, split.accepted)) == 1
    assert any("pm-0" in note for note in data.notes)


def test_ytbb_robust_holds_the_good_anchors_that_imagenet_knows(opened: Open) -> None:
    data = opened("ytbb_robust")
    split = data.split("shifts/ytbb_robust")
    assert len(split.class_names) == 19 and not set(split.class_names) & fakes.NOT_IN_IMAGENET
    assert all("good" in str(path) for path in split.paths)
    named = {path.parent.name.split("_")[0]: split.class_names[label] for path, label in zip(split.paths, split.labels, strict=True)}
    assert "video-0" not in named, "its reviewers called the anchor bad"
    assert named["video-23"] == "car", "the list of anchors swaps car and none"
    assert named["video-6"] == "bird", "a cow with a bird, of which ImageNet knows the bird"
    assert split.mapped[split.class_names.index("bird")] == (3, 4)
    assert any("4 anchor frames show only classes that ImageNet has not" in note for note in data.notes)


def test_pm10_of_vid_robust_takes_the_anchor_and_the_frames_around_it_as_one(opened: Open, places: dict[str, Path]) -> None:
    data = opened("imagenet_vid_robust")
    benign, around = data.split("shifts/vid_robust"), data.split("shifts/vid_robust_pm10")
    assert around.together and not benign.together and not benign.groups
    assert (len(benign), len(around), len(set(around.groups))) == (30, 90, 30)
    assert {path.parent.name for path in around.paths} == {group.split("/")[0] for group in around.groups}
    for group in set(around.groups):
        rows = [row for row, own in enumerate(around.groups) if own == group]
        assert {around.paths[row].stem for row in rows} == {"000000", "000001", "000002"}
        anchor = [path.parent for path in benign.paths].index(around.paths[rows[0]].parent)
        assert {around.labels[row] for row in rows} == {benign.labels[anchor]}
    assert sum(map(len, around.accepted)) == 3, "each frame has classes of its own"
    assert (around.class_names, around.mapped) == (benign.class_names, benign.mapped)
    lost = around.paths[0]
    lost.rename(lost.with_suffix(".away"))
    try:
        told = [finding.text for finding in catalog.check("imagenet_vid_robust", places["imagenet_vid_robust"])]
    finally:
        lost.with_suffix(".away").rename(lost)
    assert any("shifts/vid_robust_pm10: 1 of 90 frames are not there" in text for text in told)


def test_pm10_of_ytbb_robust_takes_near_frames_that_show_the_same(opened: Open) -> None:
    data = opened("ytbb_robust")
    benign, around = data.split("shifts/ytbb_robust"), data.split("shifts/ytbb_robust_pm10")
    assert set(around.groups) == {f"{path.parent.name}/{path.name}" for path in benign.paths}
    found = {group: [path.stem for path, own in zip(around.paths, around.groups, strict=True) if own == group] for group in around.groups}
    assert set(map(tuple, found.values())) == {("frame-17", "frame-7", "frame-8", "frame-9")}
    of = dict(zip((path.parent for path in benign.paths), benign.labels, strict=True))
    assert [of[path.parent] for path in around.paths] == list(around.labels), "the classes of the anchor count"


def test_the_documents_show_the_table_of_the_declarations() -> None:
    page = (Path(__file__).parents[1] / "docs/datasets.md").read_text(encoding="utf-8")
    assert listing.markdown() in page, "put the table of surefoot.data.catalog.listing.markdown() into docs/datasets.md"


def test_a_metric_belongs_to_the_fingerprint_but_for_accuracy(tiny_root: Path) -> None:
    data = open_dataset(tiny_root)
    assert replace(data, metric="accuracy").fingerprint() == data.fingerprint()
    assert replace(data, metric="macro_f1").fingerprint() != data.fingerprint()
