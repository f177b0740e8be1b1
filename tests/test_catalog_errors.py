"""A declared data set that is not as it should be: wrong root, half-extracted archive, missing parts and classes, broken declarations."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fakes
import numpy as np
import pytest

from surefoot.bundle import Bundle
from surefoot.cli.console import next_comparison
from surefoot.cli.evaluate import state_fits, state_on
from surefoot.compare import Plan
from surefoot.data import Dataset, catalog, load, open_dataset
from surefoot.data.catalog import opening
from surefoot.data.catalog.declaration import CATALOG, declared, read_declaration
from surefoot.data.findings import Finding
from surefoot.data.splits import complete
from surefoot.data.subsets import take
from surefoot.data.survey import verified
from surefoot.errors import DataError, MissingDataError, SettingError, UnknownNameError
from surefoot.job import DataOptions, Job
from surefoot.methods import get
from surefoot.protocols.parts import context, leave_one_out, shift
from surefoot.train import Training
from surefoot.train.preflight import lacking

PACS = (CATALOG / "pacs.toml").read_text()


@pytest.fixture(scope="session")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.make("pacs", tmp_path_factory.mktemp("domains"))


@pytest.fixture
def damaged(pacs: Path, tmp_path: Path) -> Path:
    """A copy of PACS that a test may damage."""
    return Path(shutil.copytree(pacs, tmp_path / "data"))


def texts(found: list[Finding], level: str) -> list[str]:
    return [finding.text for finding in found if finding.level == level]


def test_a_name_of_the_catalogue_asks_for_its_root() -> None:
    with pytest.raises(MissingDataError, match=r"pacs is a data set of the catalogue: say where it lies by --root DIR"):
        load("pacs")
    with pytest.raises(MissingDataError, match="Did you mean 'pacs'"):
        load("pasc")
    with pytest.raises(UnknownNameError, match="Did you mean 'imagenet'"):
        catalog.declared("imagenett")


def test_a_folder_keeps_its_name_without_a_root(tiny_root: Path, pacs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_root, tmp_path / "pacs")
    monkeypatch.chdir(tmp_path)
    assert load("pacs").name == "shapes"
    assert load("pacs", root=pacs).name == "pacs"
    assert load(tiny_root, root=pacs).name == "shapes", "other data need no root"


def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"no folder .*nowhere\. Give the folder that PACS lies in"):
        load("pacs", root=tmp_path / "nowhere")


@pytest.mark.parametrize(("deeper", "wanted"), [("PACS/sketch", "PACS"), ("PACS/sketch/dog", "PACS"), ("", None)])
def test_a_root_too_low_is_told_where_to_go(deeper: str, wanted: str | None, pacs: Path, tmp_path: Path) -> None:
    root = pacs / deeper if wanted else tmp_path
    with pytest.raises(MissingDataError) as error:
        load("pacs", root=root)
    told = str(error.value)
    assert f"{root} is not where pacs lies" in told and "wanted are art_painting/, cartoon/, photo/, sketch/" in told
    assert (f"give --root {pacs / wanted}." in told) if wanted else ("It holds nothing" in told and "DomainBed" in told)


def test_a_root_too_high_is_told_where_to_go(pacs: Path) -> None:
    with pytest.raises(MissingDataError, match=rf"It holds .*give --root {pacs}\."):
        load("pacs", root=pacs.parent)


def test_every_missing_folder_is_named_with_its_source(damaged: Path) -> None:
    shutil.rmtree(damaged / "PACS/photo")
    shutil.rmtree(damaged / "PACS/sketch")
    with pytest.raises(DataError) as error:
        load("pacs", root=damaged)
    for name in ("photo", "sketch"):
        assert f"shifts/{name} was not found: there is no folder {damaged / 'PACS' / name}." in str(error.value)
    assert "Get it from: https://github.com/facebookresearch/DomainBed" in str(error.value)
    assert [f.level for f in catalog.check("pacs", damaged)][:2] == ["error", "error"]


def test_a_class_that_a_shift_lacks_is_named_and_the_rest_opens(damaged: Path) -> None:
    shutil.rmtree(damaged / "PACS/photo/dog")
    for path in (damaged / "PACS/photo/horse").iterdir():
        path.unlink()
    (warning,) = [text for text in texts(catalog.check("pacs", damaged), "warning") if "no image of" in text]
    assert warning == "shifts/photo holds no image of 2 of its 7 classes: dog, horse."
    assert warning in load("pacs", root=damaged).notes


def test_a_half_extracted_archive_is_told_with_both_numbers(damaged: Path) -> None:
    found = texts(catalog.check("pacs", damaged), "warning")
    assert "shifts/photo holds 28 images; 1,670 were published. A half-extracted archive? Unpack it again." in found


def test_a_complete_set_has_nothing_to_tell_and_too_many_images_are_a_note(pacs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = declared("pacs")
    monkeypatch.setattr(opening, "declared", lambda name: replace(whole, parts=tuple(replace(p, images=28) for p in whole.parts)))
    assert catalog.check("pacs", pacs) == []
    monkeypatch.setattr(opening, "declared", lambda name: replace(whole, parts=tuple(replace(p, images=20) for p in whole.parts)))
    assert [finding.level for finding in catalog.check("pacs", pacs)] == ["note"] * 4


def test_a_folder_that_is_no_class_is_named_and_not_read(damaged: Path) -> None:
    fakes.picture(damaged / "PACS/photo/lost+found/1.jpg")
    fakes.picture(damaged / "PACS/photo/dog/.hidden.jpg")
    (told,) = [text for text in texts(catalog.check("pacs", damaged), "warning") if "lost+found" in text]
    assert told.startswith(f"{damaged / 'PACS/photo'} holds folders that are no class of shifts/photo")
    assert len(load("pacs", root=damaged).split("shifts/photo")) == 28


def test_a_domain_without_any_image_is_an_error(damaged: Path) -> None:
    shutil.rmtree(damaged / "PACS/photo")
    (damaged / "PACS/photo").mkdir()
    with pytest.raises(DataError, match=r"shifts/photo: .*photo holds no images in class folders, only nothing.*such as dog, elephant"):
        load("pacs", root=damaged)


def imagenet(root: Path, *, loose: bool = False) -> Path:
    """ImageNet with training images of two classes, and val in class folders or as the archive unpacks."""
    for wnid in ("n01440764", "n01443537"):
        for number in range(4):
            fakes.picture(root / "train" / wnid / f"{wnid}_{number}.JPEG")
        fakes.picture(root / "val" / ("" if loose else wnid) / f"ILSVRC2012_val_{wnid}.JPEG")
    return root


def test_shifts_that_are_not_there_are_notes(tmp_path: Path) -> None:
    notes = texts(catalog.check("imagenet", imagenet(tmp_path)), "note")
    assert len(notes) == 5
    (told,) = [note for note in notes if note.startswith("shifts/r ")]
    assert f"there is no folder {tmp_path / 'imagenet-r'} (or imagenet-rendition/imagenet-r)" in told
    assert "30,000 images. Get it from: https://github.com/hendrycks/imagenet-r. Without it the rest can be used." in told
    assert not load("imagenet", root=tmp_path).shifts


def test_loose_validation_images_are_told_to_be_sorted(tmp_path: Path) -> None:
    (error,) = texts(catalog.check("imagenet", imagenet(tmp_path, loose=True)), "error")
    assert "without class folders: sort them into these" in error and "such as n01440764, n01443537, n01484850" in error


def test_a_foreign_class_of_a_subset_is_named(tmp_path: Path) -> None:
    fakes.picture(imagenet(tmp_path) / "imagenet-a/n01440764/1.jpg")  # tench: no class of ImageNet-A
    found = texts(catalog.check("imagenet", tmp_path), "warning")
    assert any("holds 1 classes that shifts/a does not have: n01440764" in text for text in found)
    assert any("shifts/a holds no image of 200 of its 200 classes" in text for text in found)


def test_objectnet_without_its_maps_is_left_out(tmp_path: Path) -> None:
    fakes._objectnet(imagenet(tmp_path) / "objectnet-1.0")
    mappings = tmp_path / "objectnet-1.0/mappings"
    known = (mappings / "objectnet_to_imagenet_1k.json").read_text()
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps({"Chair": "crane"}))
    (told,) = [text for text in texts(catalog.check("imagenet", tmp_path), "warning") if "objectnet" in text]
    assert "'crane' stands 2 times" in told
    (mappings / "objectnet_to_imagenet_1k.json").write_text(known)
    (mappings / "imagenet_to_label_2012_v2").unlink()
    (told,) = [text for text in texts(catalog.check("imagenet", tmp_path), "warning") if "objectnet" in text]
    assert f"there is no {mappings / 'imagenet_to_label_2012_v2'}" in told
    assert "shifts/objectnet" not in load("imagenet", root=tmp_path).splits


def test_a_frame_without_its_metadata_is_an_error(tmp_path: Path) -> None:
    fakes.picture(imagenet(tmp_path) / "imagenet-vid-robust/val/video/000001.JPEG")
    with pytest.raises(DataError, match=r"shifts/vid_robust is not complete: there is no .*metadata/pmsets\.json.* Get it from: https"):
        load("imagenet_vid_robust", root=tmp_path)


def test_a_cifar_that_is_not_the_official_one_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    fakes.make("cifar10", tmp_path / "data")
    found = texts(catalog.check("cifar10", tmp_path / "data"), "error")
    assert len(found) == 2 and all("is not the official one (its digest differs). Unpack the archive again." in text for text in found)
    (tmp_path / "data/cifar-10-batches-py/data_batch_3").unlink()
    assert "has no data_batch_3." in texts(catalog.check("cifar10", tmp_path / "data"), "error")[0]


def test_arrays_that_are_pickled_or_broken_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    root = fakes.make("cifar10", tmp_path / "data")
    (root / "CIFAR-10.2/cifar102_test.npz").unlink()
    np.save(root / "CIFAR-10.2/cifar102_test.npy", np.array({"images": 1}, dtype=object), allow_pickle=True)
    np.save(root / "CIFAR-10.1/cifar10.1_v6_labels.npy", np.array([7, "x"], dtype=object), allow_pickle=True)
    with fakes.official():
        first, second = [text for text in texts(catalog.check("cifar10", root), "warning") if text.startswith("shifts/")]
        assert "cifar10.1_v6_labels.npy cannot be read as NumPy's arrays" in first
        assert "It holds cifar102_test.npy, pickled objects, which are not opened." in second
        np.save(root / "CIFAR-10.1/cifar10.1_v6_labels.npy", np.full(20, 10))
        told = f"{root / 'CIFAR-10.1/cifar10.1_v6_labels.npy'} holds classes 10 to 10, not 0 to 9."
        assert any(told in text for text in texts(catalog.check("cifar10", root), "warning"))
        np.save(root / "CIFAR-10.1/cifar10.1_v6_labels.npy", np.zeros(19, np.int64))
        files = " and ".join(str(root / f"CIFAR-10.1/cifar10.1_v6_{kind}.npy") for kind in ("data", "labels"))
        told = f"{files}: uint8 images of the shape (20, 32, 32, 3) and labels of the shape (19,)"
        assert any(told in text for text in texts(catalog.check("cifar10", root), "warning"))
        assert not load("cifar10", root=root).shifts


def test_what_is_wrong_with_unpacked_arrays_is_told_of_the_users_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    root = fakes.make("cifar10", tmp_path / "data")
    with fakes.official():
        data = load("cifar10", root=root)
    alone = replace(data, splits={name: split for name, split in data.splits.items() if "/" not in name})
    for cut in (shift, leave_one_out, context):
        with pytest.raises(DataError, match=f"^{re.escape(str(root))} "):
            cut(alone)
    with pytest.raises(DataError, match=f"^{re.escape(str(root))} has no val and test, and no class has 3 different images"):
        complete(replace(alone, splits={"train": take(data.split("train"), [0])}))
    assert any(f"surefoot caption cifar10 --root {root}'" in text for text in lacking(get("arf"), data))
    path = data.split("shifts/cifar10.1").paths[0]
    path.write_bytes(b"no picture")
    with pytest.raises(DataError) as error:
        verified(data, skip_unreadable=False)
    assert f"image {int(path.stem)} of {root / 'CIFAR-10.1/cifar10.1_v6_data.npy'} (unpacked as {path}; remove " in str(error.value)


def test_a_package_that_is_missing_names_the_extra(pacs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needy = replace(declared("pacs"), package="surely_not_installed", extra="wilds")
    monkeypatch.setattr(opening, "declared", lambda name: needy)
    with pytest.raises(SettingError, match=r"surely_not_installed, which is not installed\. Run: pip install 'surefoot\[wilds\]'"):
        load("pacs", root=pacs)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("classes = 7", "classs = 7"), "Unknown key of a declaration 'classs'. Did you mean 'classes'"),
        (("classes = 7", "classes = 8"), "labels names 7 folders, and classes is 8"),
        (("classes = 7", 'classes = "7"'), "classes of a declaration is '7'; it must be of the type int"),
        (("classes = 7", "classes = 7\nmetric = 'f1'"), "Unknown metric 'f1'"),
        (("classes = 7\n", ""), "a declaration has no classes"),
        (('"art_painting"\n\n[contexts]', '"oil"\n\n[contexts]'), "id_context is 'oil', which [contexts] does not hold"),
        (("a cartoon {}.", "a cartoon."), "holds 0 places '{}'"),
        (('loader = "domains"', 'loader = "folders"'), "a part is called 'art_painting'"),
        (('labels = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]', 'labels = "pasc"'), "Did you mean 'pacs'"),
        (("images = 2048", "image = 2048"), "Unknown key of [parts.art_painting] 'image'"),
        (('place = "photo"', "place = 3"), "place of [parts.photo] is 3"),
        (("title", "= title"), "is not valid TOML"),
    ],
)
def test_a_broken_declaration_says_what_is_wrong(change: tuple[str, str], told: str, tmp_path: Path) -> None:
    assert change[0] in PACS
    (tmp_path / "mine.toml").write_text(PACS.replace(*change, 1))
    with pytest.raises((DataError, UnknownNameError)) as error:
        read_declaration(tmp_path / "mine.toml")
    assert told in str(error.value)


def test_options_open_by_root_from_anywhere(pacs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pacs)
    options = DataOptions(data="pacs", root="PACS")
    assert options.anywhere() == DataOptions(data="pacs", root=str(pacs / "PACS"))
    assert options.anchors_folder == options.anywhere().anchors_folder
    assert options.anchors_folder != DataOptions(data="pacs", root=".").anchors_folder
    assert options.open_plain().name == "pacs"
    assert next_comparison(options) == "surefoot compare pacs --methods flyp,arf --root PACS"


def test_a_job_that_knows_no_root_still_opens(tmp_path: Path) -> None:
    old = {
        "data": {"data": "iconshift", "split_seed": 0}, "model": "iconclip", "precision": "fp32", "device": "auto",
        "plan": {"methods": ["flyp"], "training": {}},
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(old))
    assert Job.of(tmp_path).data.root is None


def test_a_trained_head_answers_for_classes_that_share_a_name(tiny_root: Path) -> None:
    names = ("missile", "missile", "bar")
    data = replace(open_dataset(tiny_root), class_names=names)
    bundle = SimpleNamespace(card=SimpleNamespace(class_names=list(names)))
    assert state_fits(bundle, data)  # type: ignore[arg-type]
    assert not state_fits(bundle, replace(data, class_names=names[::-1]))  # type: ignore[arg-type]
    fitted = _bundle(names, np.arange(3))
    assert state_on(fitted, data, {})["head.bias"].tolist() == [0, 1, 2]


def _bundle(names: tuple[str, ...], bias: np.ndarray) -> Bundle:
    import torch

    model = SimpleNamespace(weights=dict)
    head = {"bias": torch.tensor(bias)}
    return Bundle(model, head, SimpleNamespace(class_names=list(names)))  # type: ignore[arg-type]


def test_the_shares_of_the_user_win_over_the_declared_one(tmp_path: Path) -> None:
    data: Dataset = load("imagenet", root=imagenet(tmp_path), val_share=0.5)
    assert any(note.startswith("val (50%)") for note in data.notes)
    assert any(note.startswith("val (15%)") for note in load("imagenet", root=tmp_path, val_share=0.15).notes), "given, though usual"
    assert any(note.startswith("val (2%)") for note in load("imagenet", root=tmp_path).notes)
    given, none = DataOptions(data="imagenet", root=str(tmp_path), val_share=0.15), DataOptions(data="imagenet", root=str(tmp_path))
    plan = Plan(methods=("flyp",), seeds=(0,), alphas=(0.0,), training=Training())
    for number, (options, share) in enumerate([(given, "15%"), (none, "2%")]):
        Job(data=options, model="iconclip", precision="fp32", plan=plan).save(folder := tmp_path / str(number))
        assert any(note.startswith(f"val ({share})") for note in Job.of(folder).data.open_plain().notes)
    stored = json.loads((tmp_path / "0/job.json").read_text())
    del stored["form"]  # as older folders have it, where 0.15 also stood for none given
    (tmp_path / "0/job.json").write_text(json.dumps(stored))
    assert Job.of(tmp_path / "0").data.val_share is None
