"""Planted faults are found, each by its path; clean data have none; a second reading reads nothing."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from surefoot.data import Dataset, open_dataset, read_image
from surefoot.data import pictures as pictures_module
from surefoot.data.digest import CACHE_FILE, digests, remember
from surefoot.data.findings import Finding
from surefoot.data.pictures import look
from surefoot.data.survey import Survey, survey, verified
from surefoot.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(number: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Smooth and different for each number, so that a JPEG of it is like any photograph."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def age(path: Path) -> None:
    """As if written an hour ago: the cache does not trust what has just changed."""
    os.utime(path, ns=(path.stat().st_mtime_ns - 3600 * 10**9,) * 2)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes; train 6, val 40, test 4 of each; a shift, two unseen classes; nothing wrong with any."""
    folder, number = tmp_path_factory.mktemp("clean"), 0
    for split, count in {"train": 6, "val": 40, "test": 4, "shifts/dark": 2, "unseen/other": 3}.items():
        for name in ["fig", "lime"] if split == "unseen/other" else ["apple", "pear", "plum"]:
            (folder / split / name).mkdir(parents=True)
            for row in range(count):
                path = folder / split / name / f"{row}.png"
                picture(number := number + 1).save(path)
                age(path)
    return folder


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(template, tmp_path / "data"))


def surveyed(root: Path) -> Survey:
    return survey(open_dataset(root))


def texts(found: Survey, level: str | None = None) -> str:
    return "\n".join(finding.text for finding in found.findings if level in (None, finding.level))


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_clean_data_have_no_findings(root: Path) -> None:
    found = surveyed(root)
    assert found.findings == []
    assert found.counts["train"] == (6, 6, 6) and found.counts["val"] == (40, 40, 40)
    assert found.sizes == ((40, 40),) * 3 and found.formats == {"PNG": 162} and found.modes == {"RGB": 162}
    assert found.imbalance == 1


def test_unreadable_images_are_an_error_and_named(root: Path) -> None:
    bad = [root / "train/apple/1.png", root / "shifts/dark/pear/0.png"]
    truncate(bad[0])
    bad[1].write_bytes(b"not an image")
    found = surveyed(root)
    assert [path for path, _ in found.unreadable] == bad
    assert found.findings[0].level == "error" and found.findings[0].paths == tuple(bad)
    assert "2 images" in found.findings[0].text and "--skip-unreadable" in found.findings[0].text


def test_forbidden_file_is_unreadable_and_not_a_crash(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_module, "read_image", _refuse)
    assert len(surveyed(root).unreadable) == 162


def _refuse(path: Path) -> Image.Image:
    raise DataError(f"{path} cannot be read as an image (Permission denied). Repair or remove the file.")


@pytest.mark.parametrize("suffix", [".bmp", ".png", ".tiff"])
def test_same_picture_in_two_splits_is_found_under_another_name_and_format(root: Path, suffix: str) -> None:
    copy = root / f"test/apple/renamed{suffix}"
    read_image(root / "train/apple/3.png").save(copy)
    found = surveyed(root)
    (copies,) = found.across_splits
    assert {(place.split, place.path) for place in copies.places} == {("train", root / "train/apple/3.png"), ("test", copy)}
    assert "1 picture is in several splits: train, test" in texts(found, "warning")
    assert found.across_labels == ()


def test_picture_shared_by_a_shift_and_test_is_only_a_note(root: Path) -> None:
    shutil.copy(root / "test/apple/0.png", root / "shifts/dark/apple/copy.png")
    assert texts(surveyed(root), "warning") == "" and "several splits: test, shifts/dark" in texts(surveyed(root), "note")


def test_same_picture_under_two_labels_and_twice_in_a_split(root: Path) -> None:
    shutil.copy(root / "train/apple/0.png", root / "train/pear/stray.png")
    shutil.copy(root / "val/plum/0.png", root / "val/plum/again.png")
    shutil.copy(root / "val/plum/0.png", root / "val/plum/and-again.png")
    found = surveyed(root)
    assert [{place.class_name for place in copies.places} for copies in found.across_labels] == [{"apple", "pear"}]
    assert {split: [len(copies.places) for copies in several] for split, several in found.within_splits.items()} == {
        "train": [2],
        "val": [3],
    }
    assert "2 images of val repeat" in texts(found, "note") and found.across_splits == ()


def test_empty_and_single_image_classes(root: Path) -> None:
    shutil.rmtree(root / "test/plum")
    shutil.rmtree(root / "shifts/dark/pear")
    for path in sorted((root / "train/pear").iterdir())[1:]:
        path.unlink()
    found = surveyed(root)
    assert found.empty == {"test": ("plum",), "shifts/dark": ("pear",)} and found.single == {"train": ("pear",)}
    assert "test holds no image of 'plum'" in texts(found, "warning") and "single image of 'pear'" in texts(found, "warning")
    assert "shifts/dark of 1" in texts(found, "note")


def test_imbalance_brings_advice_above_five_only(root: Path) -> None:
    for path in sorted((root / "train/pear").iterdir())[1:]:
        path.unlink()
    assert surveyed(root).imbalance == 6
    assert all(advice in texts(surveyed(root)) for advice in ("sampling=balanced", "logit_adjustment=1", "select_by=mean_per_class"))
    (root / "train/apple/5.png").unlink()
    (root / "train/plum/5.png").unlink()
    assert surveyed(root).imbalance == 5 and "sampling" not in texts(surveyed(root))


def test_class_names_that_read_the_same(root: Path) -> None:
    for name in ("Granny-Smith", "granny_smith"):
        shutil.copytree(root / "train/apple", root / "train" / name)
    (root / "unseen/other/fig").rename(root / "unseen/other/PLUM")
    found = surveyed(root)
    assert found.collisions == (("train: Granny-Smith", "train: granny smith"), ("train: plum", "unseen/other: PLUM"))
    assert "train: Granny-Smith; train: granny smith" in texts(found, "warning")


def test_two_folders_of_one_name_collide(root: Path) -> None:
    (root / "dataset.toml").write_text('[class_names]\nplum = "pear"\n')
    assert surveyed(root).collisions == (("train: pear", "train: pear"),)


def test_codes_as_class_names_until_dataset_toml_names_them(root: Path) -> None:
    for split in ("train", "val", "test", "shifts/dark"):
        (root / split / "plum").rename(root / split / "n01440764")
    assert "n01440764" in texts(surveyed(root), "warning") and "[class_names]" in texts(surveyed(root), "warning")
    (root / "dataset.toml").write_text('[class_names]\nn01440764 = "tench"\n')
    assert surveyed(root).findings == []


def test_few_validation_images_give_the_standard_error(root: Path) -> None:
    for name in ("apple", "pear", "plum"):
        for path in sorted((root / "val" / name).iterdir())[4:]:
            path.unlink()
    assert "val holds 12 images: the standard error of an accuracy near 80 % is 11.5 points" in texts(surveyed(root), "warning")


def test_small_and_animated_images_are_notes(root: Path) -> None:
    picture(900, (31, 60)).save(root / "train/apple/small.png")
    picture(901).save(root / "train/apple/film.gif", save_all=True, append_images=[picture(902)])
    found = surveyed(root)
    assert found.small == (root / "train/apple/small.png",) and found.animated == (root / "train/apple/film.gif",)
    assert {finding.level for finding in found.findings} == {"note"} and "first is used" in texts(found)


def test_sizes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, size in (("small.jpg", (60, 40)), ("large.jpg", (900, 600))):
        picture(1, size).save(tmp_path / name, exif=exif)
    assert [(p.width, p.height) for p in look([tmp_path / "small.jpg", tmp_path / "large.jpg"])] == [(40, 60), (600, 900)]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("cut", [1, 2, 50, 0.1, 0.5, 0.9])
def test_truncation_is_found_in_a_jpeg_that_is_decoded_at_a_fraction(tmp_path: Path, progressive: bool, cut: float) -> None:
    path = tmp_path / "photo.jpg"
    picture(1, (2400, 1620)).save(path, quality=90, progressive=progressive)
    whole = path.read_bytes()
    assert look([path])[0].reduced and not look([path])[0].error
    path.write_bytes(whole[: len(whole) - int(cut if cut >= 1 else cut * len(whole))])
    assert "truncated" in look([path])[0].error


def test_large_jpeg_is_found_again_as_png_and_no_other_is_decoded_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jpegs = [tmp_path / f"{number}.jpg" for number in range(4)]
    for number, path in enumerate(jpegs):
        picture(number, (900, 603)).save(path, quality=90)
    read_image(jpegs[2]).save(tmp_path / "copy.png")
    picture(77, (900, 603)).save(tmp_path / "other.png")
    opened: list[str] = []
    monkeypatch.setattr(pictures_module, "read_image", lambda path: (opened.append(path.name), read_image(path))[1])
    found = look([*jpegs, tmp_path / "copy.png", tmp_path / "other.png"])
    assert found[2].pixels == found[4].pixels and len({one.pixels for one in found}) == 5
    assert sorted(opened) == ["2.jpg", "copy.png", "other.png"]
    assert found[2].file == digests([jpegs[2]])[0] != found[4].file


def test_every_image_is_read_once_and_not_at_all_the_second_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(pictures_module, "read_image", lambda path: (opened.append(path), read_image(path))[1])
    told: list[tuple[int, int]] = []
    first = survey(open_dataset(root), lambda done, total: told.append((done, total)), workers=2)
    assert len(opened) == len(set(opened)) == 162 and told == [(number, 162) for number in range(1, 163)]
    assert survey(open_dataset(root)) == first and len(opened) == 162
    picture(999).save(root / "train/apple/0.png")
    survey(open_dataset(root))
    assert opened[162:] == [root / "train/apple/0.png"]


def test_a_repaired_file_is_read_again_even_with_the_same_size_and_date(root: Path) -> None:
    path = root / "train/apple/0.png"
    good, when = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(bytes(len(good)))
    os.utime(path, ns=(when, when))
    assert len(surveyed(root).unreadable) == 1
    path.write_bytes(good)
    os.utime(path, ns=(when, when))
    assert surveyed(root).unreadable == ()


def test_digest_is_of_the_bytes_and_remembered(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    age(path)
    told: list[int] = []
    assert digests([path, path], told.append) == ["ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"] * 2
    assert told == [1, 2]
    path.write_bytes(b"xyz")
    assert digests([path])[0].startswith("3608bca1")
    age(path)
    assert remember("sha256", [path], lambda _: "read anew") == ["read anew"] and remember("sha256", [path], lambda _: "again") == [
        "read anew"
    ]
    with sqlite3.connect(own_cache / CACHE_FILE) as connection:
        assert connection.execute("SELECT count(*) FROM facts").fetchone() == (1,)
    connection.close()


@pytest.mark.parametrize(("content", "later"), [(b"xyz", -5), (b"xyz", 5), (b"longer", 0)])
def test_another_size_or_date_earlier_or_later_is_another_file(tmp_path: Path, content: bytes, later: int) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    age(tmp_path / "file")
    when = (tmp_path / "file").stat().st_mtime_ns
    first = digests([tmp_path / "file"])
    (tmp_path / "file").write_bytes(content)
    os.utime(tmp_path / "file", ns=(when + later * 10**9,) * 2)
    assert digests([tmp_path / "file"]) != first


def test_what_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    when = (tmp_path / "file").stat().st_mtime_ns
    first = digests([tmp_path / "file"])
    (tmp_path / "file").write_bytes(b"xyz")
    os.utime(tmp_path / "file", ns=(when, when))
    assert digests([tmp_path / "file"]) != first


@pytest.mark.parametrize("damage", ["no folder", "not a database", "locked", "read-only table"])
def test_a_cache_that_fails_costs_a_warning_and_no_result(
    tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    age(tmp_path / "file")
    monkeypatch.setattr("surefoot.data.digest._LOCK_SECONDS", 0.05)
    blocker = None
    if damage == "no folder":
        own_cache.write_text("a file where the folder should be")
    else:
        own_cache.mkdir()
    if damage == "not a database":
        (own_cache / CACHE_FILE).write_bytes(b"something else" * 100)
    if damage == "locked":
        blocker = sqlite3.connect(own_cache / CACHE_FILE, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
    if damage == "read-only table":
        with sqlite3.connect(own_cache / CACHE_FILE) as connection:
            connection.execute("CREATE TABLE facts (something TEXT)")
        connection.close()
    with caplog.at_level(logging.WARNING):
        assert digests([tmp_path / "file"])[0].startswith("ba7816bf")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    if blocker:
        blocker.close()


def test_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png cannot be read"):
        digests([tmp_path / "gone.png"])


def test_an_error_in_one_file_stops_the_others(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}" for number in range(200)]
    for path in paths:
        path.touch()
    asked, gate = [], threading.Event()

    def find_out(path: Path) -> str:
        asked.append(path)
        if path == paths[0]:
            raise DataError("broken")
        gate.wait(0.02)
        return "fine"

    with pytest.raises(DataError, match="broken"):
        remember("test", paths, find_out, workers=2)
    assert len(asked) < 100


def test_verified_returns_good_data_as_they_are(root: Path) -> None:
    data = open_dataset(root)
    assert verified(data, skip_unreadable=False) is data


def test_verified_names_ten_unreadable_images_and_counts_all(root: Path) -> None:
    bad = sorted((root / "val/apple").iterdir())[:12]
    for path in bad:
        path.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        verified(open_dataset(root), skip_unreadable=False)
    message = str(caught.value)
    assert message.startswith("12 images cannot be read") and "--skip-unreadable" in message and message.endswith("and 2 more")
    assert [str(path) in message for path in bad] == [True] * 10 + [False] * 2


def test_skipping_drops_path_label_and_caption_together(root: Path) -> None:
    whole = open_dataset(root)
    train = whole.split("train")
    whole = replace(
        whole, splits={**whole.splits, "train": replace(train, captions=tuple(f"caption of {path.name}" for path in train.paths))}
    )
    bad = (root / "train/pear/2.png", root / "test/plum/0.png")
    for path in bad:
        truncate(path)
    left = verified(whole, skip_unreadable=True)
    for name, split in left.splits.items():
        assert split.paths == tuple(path for path in whole.split(name).paths if path not in bad)
        assert [split.class_names[label] for label in split.labels] == [path.parent.name for path in split.paths]
    assert left.split("train").captions == tuple(f"caption of {path.name}" for path in left.split("train").paths)
    assert left.notes == (*whole.notes, "2 unreadable images were skipped: train/pear/2.png, test/plum/0.png.")


@pytest.mark.parametrize(
    ("folder", "said"), [("train/pear", "train holds no image of 'pear'"), ("shifts/dark", "shifts/dark holds no image of")]
)
def test_skipping_must_not_empty_a_training_class_or_a_split(root: Path, folder: str, said: str) -> None:
    for path in (root / folder).rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=said):
        verified(open_dataset(root), skip_unreadable=True)


def test_facts_are_json_and_name_everything(root: Path) -> None:
    shutil.copy(root / "train/apple/0.png", root / "test/pear/leak.png")
    truncate(root / "val/plum/0.png")
    facts = json.loads(json.dumps(surveyed(root).facts()))
    assert facts["splits"]["train"][0] == {"class": "apple", "images": 6}
    assert facts["unreadable"][0]["path"] == str(root / "val/plum/0.png")
    assert {place["class"] for place in facts["across_splits"][0]["places"]} == {"apple", "pear"}
    assert [found["level"] for found in facts["findings"]] == ["error", "warning", "warning"]


def run_check(*arguments: str) -> tuple[int, str, str]:
    from surefoot.cli import app

    result = CliRunner().invoke(app, ["check", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_check_ends_with_zero_on_warnings_and_two_on_errors(root: Path) -> None:
    leak = root / "test/pear/leak.png"
    shutil.copy(root / "train/apple/0.png", leak)
    code, out, _ = run_check(str(root))
    assert code == 0 and "warning" in out and str(leak) in out.replace("\n", "")
    truncate(root / "val/plum/0.png")
    code, out, _ = run_check(str(root))
    assert code == 2 and out.index("error") < out.index("warning") and str(root / "val/plum/0.png") in out.replace("\n", "")
    assert "train" in out and "6 (apple)" in out


def test_check_shows_five_paths_and_json_shows_all(root: Path) -> None:
    for path in (root / "val/plum").iterdir():
        path.write_bytes(b"no image")
    code, out, _ = run_check(str(root))
    assert (
        code == 2 and "and 35 more" in out and len([line for line in out.splitlines() if line.startswith("  ") and "val/plum" in line]) == 5
    )
    code, out, _ = run_check(str(root), "--json")
    assert code == 2 and len(json.loads(out)["findings"][0]["paths"]) == 40


def test_check_help_has_an_example() -> None:
    code, out, _ = run_check("--help")
    assert code == 0 and "surefoot check" in out and "--json" in out


def test_finding_of_tiny_data_uses_the_standard_fixture(copy_of: Callable[[], Path]) -> None:
    data: Dataset = open_dataset(copy_of())
    found = survey(data)
    assert {finding.level for finding in found.findings} <= {"warning", "note"} and all(isinstance(f, Finding) for f in found.findings)
