"""Tiny copies of the papers' data sets in their official layout, a few pictures a class: `make("pacs", folder)`.

`surefoot.data.load("pacs", root=folder)` opens one. torchvision compares CIFAR's files with their official digests: open those inside
`with official():`.
"""

from __future__ import annotations

import io
import itertools
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from surefoot.data.catalog import declared
from surefoot.data.catalog.loaders.imagenet import subset, wnids

MANY, MOST = 4, 10  # so many pictures has each of the first MOST classes, and one the others
TRAINED = sorted({*range(0, 1000, 20), 657, 744, 836, 837})
"""The classes of ImageNet that a copy has training images of; "missile" and "sunglasses" twice each."""
VID = {
    "n02691156": "airplane", "n02419796": "antelope", "n02131653": "bear", "n02834778": "bicycle", "n01503061": "bird",
    "n02924116": "bus", "n02958343": "car", "n02402425": "cattle", "n02084071": "dog", "n02121808": "domestic_cat",
    "n02503517": "elephant", "n02118333": "fox", "n02510455": "giant_panda", "n02342885": "hamster", "n02374451": "horse",
    "n02129165": "lion", "n01674464": "lizard", "n02484322": "monkey", "n03790512": "motorcycle", "n02324045": "rabbit",
    "n02509815": "red_panda", "n02411705": "sheep", "n01726692": "snake", "n02355227": "squirrel", "n02129604": "tiger",
    "n04468005": "train", "n01662784": "turtle", "n04530566": "watercraft", "n02062744": "whale", "n02391049": "zebra",
}  # fmt: skip
"""The 30 classes of ImageNet-VID in their order."""
YTBB = [
    "person", "bird", "bicycle", "boat", "bus", "bear", "cow", "cat", "giraffe", "potted plant", "horse", "motorcycle", "knife",
    "airplane", "skateboard", "train", "truck", "zebra", "toilet", "dog", "elephant", "umbrella", "none", "car",
]  # fmt: skip
NOT_IN_IMAGENET = {"cow", "giraffe", "skateboard", "toilet", "none"}
_numbers = itertools.count(1)


def make(name: str, root: Path) -> Path:
    """A tiny copy of a data set of the catalogue below `root`, which is given back."""
    MAKERS[name](root)
    return root


@contextmanager
def official() -> Iterator[None]:
    """torchvision takes a fake CIFAR for the official one."""
    from torchvision.datasets import cifar

    before, cifar.check_integrity = cifar.check_integrity, lambda path, md5=None: Path(path).is_file()
    try:
        yield
    finally:
        cifar.check_integrity = before


def picture(path: Path, side: int = 8) -> None:
    """A picture unlike all others that were drawn: the bits of its number as black and white blocks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = next(_numbers)
    bits = np.array([(number >> place) & 1 for place in range(16)], dtype=np.uint8).reshape(4, 4)
    block = np.kron(bits, np.ones((side // 4, side // 4), dtype=np.uint8))
    drawn = io.BytesIO()
    Image.fromarray(np.stack([block * 255, block * 200, 255 - block * 255], axis=2)).save(drawn, "PNG" if path.suffix == ".png" else "JPEG")
    path.write_bytes(drawn.getvalue())


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def _imagenet(root: Path) -> None:
    for place, number in enumerate(TRAINED):
        wnid = wnids()[number]
        for one in range(MANY if place < MOST else 1):
            picture(root / "train" / wnid / f"{wnid}_{one}.JPEG")
        picture(root / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG")


def _with_shifts(root: Path) -> None:
    _imagenet(root)
    for number in TRAINED:
        picture(root / "imagenetv2-matched-frequency-format-val" / str(number) / f"{number:040x}.jpeg")
    for folder, name in (("imagenet-r", "imagenet_r"), ("imagenet-a", "imagenet_a")):
        _write(root / folder / "README.txt", "about")
        for number in subset(name):
            picture(root / folder / wnids()[number] / "art_0.jpg")
    for number in TRAINED:
        picture(root / "sketch" / wnids()[number] / "sketch_0.JPEG")
    _objectnet(root / "objectnet-1.0")


def _objectnet(folder: Path) -> None:
    """113 objects that are classes of ImageNet, two of them several at once, and one that is none."""
    labels = [f"thing {number}" for number in range(1000)]
    labels[134] = labels[517] = "crane"
    labels[409], labels[530] = "analog clock", "digital clock"
    labels[423], labels[559], labels[765] = "barber chair", "folding chair", "rocking chair, rocker"
    objects = {
        f"object_{number:03d}": labels[number * 9] for number in range(1, 112)
    }  # 134, 517, 409, 530, 423, 559, 765 are none of these
    objects |= {"alarm_clock": "analog clock; digital clock", "chair": "barber chair; folding chair; rocking chair, rocker"}
    place = {number: (number * 7 + 3) % 1000 for number in range(1000)}
    at = {there: labels[number] for number, there in place.items()}
    called = {name: name.replace("_", " ").capitalize() for name in (*objects, "squeegee")}
    _write(folder / "mappings/folder_to_objectnet_label.json", called)
    _write(folder / "mappings/objectnet_to_imagenet_1k.json", {called[name]: joined for name, joined in objects.items()})
    _write(folder / "mappings/imagenet_to_label_2012_v2", "".join(f"{at[there]}\n" for there in range(1000)))
    _write(folder / "mappings/pytorch_to_imagenet_2012_id.json", {str(number): there for number, there in place.items()})
    for name in called:
        picture(folder / "images" / name / "0a1b.png", side=16)


def _vid_robust(root: Path) -> None:
    _imagenet(root)
    folder = root / "imagenet_vid_ytbb_robust/imagenet-vid-robust"
    pmsets, labels = {}, {}
    for number in range(len(VID)):
        video = f"val/ILSVRC2015_val_{number:08d}"
        frames = [f"{video}/{frame:06d}.JPEG" for frame in range(3)]
        pmsets[frames[1]] = [frames[0], frames[2]]
        for frame in frames:
            labels[frame] = [number] if number else [0, 1]
            picture(folder / frame)
    imagenet = wnids()
    _write(folder / "metadata/pmsets.json", pmsets)
    _write(folder / "metadata/labels.json", labels)
    _write(folder / "misc/imagenet_vid_class_index.json", {str(number): list(pair) for number, pair in enumerate(VID.items())})
    _write(folder / "misc/rev_wnid_map.json", {wnid: [imagenet[2 * row], imagenet[2 * row + 1]] for row, wnid in enumerate(sorted(VID))})


AROUND = {6: [0, 2], 8: [0], 9: [0], 10: [], 17: [0], 18: [0]}
"""{frame around an anchor, which is frame 7: what reviewers said of it}: 8, 9 and 17 show the same and are near enough."""


def _ytbb_robust(root: Path) -> None:
    _imagenet(root)
    folder = root / "imagenet_vid_ytbb_robust/ytbb-robust"
    metadata = folder / "ytbb-robust_metadata"
    said = ["good", "unsure", "bad", *YTBB]
    annotations, around, rows = [], list[object](), ["ytid,time_ms,label"]
    for number, name in enumerate(YTBB):
        for kind in ("good", "bad"):
            key = f"video-{number}_{kind}_{1000 + number}/frame-7.jpg"
            added = [said.index("bird")] if name == "cow" and kind == "good" else []
            annotations.append({"key": key, "notes": "", "labels": [said.index(kind), *added]})
            rows.append(f"video-{number}_{kind},{1000 + number},{ {22: 23, 23: 22}.get(number, number) }")
            picture(folder / "ytbb_videos" / key)
            for frame, words in (AROUND if kind == "good" and number else {}).items():
                around.append({"key": f"/anywhere/{key},/anywhere/{key.replace('-7.', f'-{frame}.')}", "notes": "", "labels": words})
                picture(folder / "ytbb_videos" / key.replace("-7.", f"-{frame}."))
    bad = {"key": "/anywhere/video-0_good_1000/frame-7.jpg,/anywhere/video-0_good_1000/frame-8.jpg", "notes": "", "labels": [0, 1]}
    _write(metadata / "anchor_labels.json", {"annotations": annotations, "labels": said})
    _write(metadata / "pmk_labels.json", {"annotations": [bad, *around], "labels": ["similar", "bad-anchor", "blur-increase"]})
    _write(metadata / "ytbb_robustness_test_anchors_full.csv", "\n".join(rows) + "\n")
    _write(metadata / "ytbb_class_index.json", {str(number): name for number, name in enumerate(YTBB)})
    classes = {str(number): [3 * number, 3 * number + 1] for number, name in enumerate(YTBB) if name not in NOT_IN_IMAGENET}
    _write(metadata / "rev_class_idx_map.json", classes)


def _domains(name: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        declaration = declared(name)
        labels = declaration.labels if len(declaration.labels) < 100 else declaration.labels[::15]
        for part in declaration.parts:
            for number, label in enumerate(labels):
                for one in range(MANY if number < MOST else 1):
                    picture(root / declaration.home[0] / part.place[0] / label / f"{part.name}_{one}.jpg")

    return write


def _cifar(folder: str, files: dict[str, int], meta: tuple[str, str], key: str, name: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        (root / folder).mkdir(parents=True)
        labels = list(declared(name).labels)
        for file, each in files.items():
            own = [number for _ in range(each) for number in range(len(labels))]
            (root / folder / file).write_bytes(pickle.dumps({"data": _array(len(own)).reshape(len(own), -1), key: own}))
        (root / folder / meta[0]).write_bytes(pickle.dumps({meta[1]: labels}))

    return write


def _array(number: int) -> np.ndarray:
    """Noise, [N, 32, 32, 3]."""
    return np.random.default_rng(next(_numbers)).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)


def _cifar10(root: Path) -> None:
    files = {**{f"data_batch_{number}": 1 for number in range(1, 6)}, "test_batch": 2}
    _cifar("cifar-10-batches-py", files, ("batches.meta", "label_names"), "labels", "cifar10")(root)
    label = np.arange(20) % 10
    for folder in ("CIFAR-10.1", "CIFAR-10.2"):
        (root / folder).mkdir()
    np.save(root / "CIFAR-10.1/cifar10.1_v6_data.npy", _array(20))
    np.save(root / "CIFAR-10.1/cifar10.1_v6_labels.npy", label.astype(np.int32))
    names = np.array(declared("cifar10").labels, dtype=object)  # as published: reading it would need pickle
    np.savez(root / "CIFAR-10.2/cifar102_test.npz", images=_array(20), labels=label.astype(np.int64), label_names=names)


def _lists(name: str) -> Callable[[Path], None]:
    """Three images a class in train and one in val and test, as the published list of a data set names them; five classes."""

    def write(root: Path) -> None:
        declaration = declared(name)
        home, first = root / declaration.home[0], declaration.parts[0]
        classes = ["abbey", "b_c", "cat", "dog", "eel"]
        if name == "eurosat":
            classes[:2] = ["Annual Crop Land", "SeaLake"]
        table: dict[str, list[tuple[str, int, str]]] = {}
        for part in declaration.parts:
            for number, label in enumerate(classes):
                for one in range(3 if part.name == "train" else 1):
                    file = f"{part.name}{number}{one}.jpg"
                    inner = file if name in ("fgvc_aircraft", "flowers102", "oxford_pets", "stanford_cars") else f"{label}/{file}"
                    picture(home / part.place[0] / inner)
                    listed = f"{part.place[0]}/{inner}" if "base" in part.options else inner
                    table.setdefault(part.name, []).append((listed, number, label))
        if "list" in first.options:
            (home / first.options["list"]).write_text(json.dumps(table))
            return
        (home / "variants.txt").write_text("\n".join(classes) + "\n")
        for split, rows in table.items():
            lines = [f"{file.removesuffix('.jpg')} {label}" for file, _, label in rows]
            (home / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")

    return write


def _pcam(root: Path) -> None:
    import h5py

    (root / "pcam").mkdir(parents=True)
    for split, number in (("train", 24), ("valid", 6), ("test", 6)):
        stem = root / "pcam" / f"camelyonpatch_level_2_split_{split}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file["x"] = _array(number)
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = (np.arange(number) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)


def _rendered_sst2(root: Path) -> None:
    for split in ("train", "valid", "test"):
        for label in ("negative", "positive"):
            for one in range(MANY):
                picture(root / "rendered-sst2" / split / label / f"{one}.png")


def _iwildcam(root: Path) -> None:
    """An image of each of the 182 classes in train, and some in the other splits."""
    rows = ["split,image_id,filename,y,location_remapped,sequence_remapped,datetime"]
    for split, every in (("train", 1), ("val", 9), ("test", 7), ("id_val", 11), ("id_test", 8)):
        for label in range(0, 182, every):
            number = len(rows) - 1
            rows.append(f"{split},{number},{number:08x}.jpg,{label},{number % 5},{number % 7},2013-06-05 05:44:19.000")
            picture(root / "iwildcam_v2.0/train" / f"{number:08x}.jpg")
    _write(root / "iwildcam_v2.0/metadata.csv", "\n".join(rows) + "\n")
    _write(root / "iwildcam_v2.0/RELEASE_v2.0.txt", "2.0\n")


def _fmow(root: Path) -> None:
    """Images of the 62 classes in the years of each split, in five regions and in none; the sequestered ones have no file."""
    labels, countries = declared("fmow").labels, ["USA", "FRA", "CHN", "KEN", "AUS", "XXX"]
    rows = ["split,img_filename,category,country_code,timestamp"]
    each = (("seq", 2010, 9), ("train", 2002, 1), ("val", 2010, 3), ("test", 2011, 2), ("val", 2014, 9), ("test", 2016, 2))
    for split, year, every in each:
        for number, label in enumerate(labels[::every]):
            if split != "seq":
                picture(root / "fmow_v1.1/images" / f"rgb_img_{len(rows) - 1}.png")
            rows.append(f"{split},{label}_{number}_rgb.jpg,{label},{countries[number % 6]},{year}-05-04T10:20:30Z")
    regions = ["Americas", "Europe", "Asia", "Africa", "Oceania"]
    _write(root / "fmow_v1.1/rgb_metadata.csv", "\n".join(rows) + "\n")
    pairs = [f"{country},{region}" for country, region in zip(countries, regions, strict=False)]
    _write(root / "fmow_v1.1/country_code_mapping.csv", "\n".join(["alpha-3,region", *pairs]) + "\n")
    _write(root / "fmow_v1.1/RELEASE_v1.1.txt", "1.1\n")


LISTS = ("caltech101", "oxford_pets", "stanford_cars", "flowers102", "food101", "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101")
MAKERS: dict[str, Callable[[Path], None]] = {
    "imagenet": _with_shifts,
    "imagenet_vid_robust": _vid_robust,
    "ytbb_robust": _ytbb_robust,
    **{name: _domains(name) for name in ("pacs", "vlcs", "office_home", "terra_incognita", "domainnet", "domainnet_real")},
    **{name: _lists(name) for name in LISTS},
    "pcam": _pcam,
    "rendered_sst2": _rendered_sst2,
    "iwildcam": _iwildcam,
    "fmow": _fmow,
    "cifar10": _cifar10,
    "cifar100": _cifar("cifar-100-python", {"train": 4, "test": 1}, ("meta", "fine_label_names"), "fine_labels", "cifar100"),
}
