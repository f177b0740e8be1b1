"""The standard layout, batches of images, and the errors that name the file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from surefoot.data import Budget, Dataset, Images, load, open_dataset
from surefoot.errors import DataError, MissingDataError, UnknownNameError

Copy = Callable[[], Path]


def test_layout_is_read_as_documented(tiny_data: Dataset) -> None:
    assert tiny_data.class_names == ("bar", "square box", "disc")
    assert {name: len(split) for name, split in tiny_data.splits.items()} == {
        "train": 24, "val": 12, "test": 15, "shifts/green": 9, "shifts/red": 12, "unseen/other": 6,
    }  # fmt: skip
    assert tiny_data.split("unseen/other").class_names == ("cross", "ring thing")
    assert [tiny_data.context_of(name) for name in ("test", "shifts/red", "shifts/green")] == ["black", "red", None]
    for path, label in zip(tiny_data.split("test").paths, tiny_data.split("test").labels, strict=True):
        assert path.parent.name == ("bar", "box", "disc")[label]


def test_shift_with_some_classes_keeps_the_labels_of_train(copy_of: Copy) -> None:
    root = copy_of()
    for file in (root / "shifts/red/bar").iterdir():
        file.unlink()
    (root / "shifts/red/bar").rmdir()
    assert set(open_dataset(root).split("shifts/red").labels) == {1, 2}


def test_fingerprint_sees_pixels_names_and_prompts(copy_of: Copy) -> None:
    root = copy_of()
    first = open_dataset(root).fingerprint()
    assert open_dataset(root).fingerprint() == first
    Image.new("RGB", (9, 9)).save(root / "val/box/0.png")
    second = open_dataset(root).fingerprint()
    (root / "dataset.toml").write_text('name = "shapes"\n')
    assert len({first, second, open_dataset(root).fingerprint()}) == 3


def _validation(root: Path) -> None:
    (root / "val").rename(root / "validation")


def _no_train(root: Path) -> None:
    (root / "train").rename(root / "pictures")


def _foreign_class(root: Path) -> None:
    (root / "shifts/red/disc").rename(root / "shifts/red/disk")


def _empty_split(root: Path) -> None:
    for file in (root / "shifts/green").rglob("*.png"):
        file.unlink()


def _one_class(root: Path) -> None:
    for name in ("disc", "bar"):
        (root / "train" / name).rename(root / name)


def _broken_toml(root: Path) -> None:
    (root / "dataset.toml").write_text("name = ")


def _unknown_key(root: Path) -> None:
    (root / "dataset.toml").write_text('template = ["a {}"]')


def _bad_template(root: Path) -> None:
    (root / "dataset.toml").write_text('templates = ["a photo"]')


def _context_without_prompt(root: Path) -> None:
    (root / "dataset.toml").write_text('id_context = "ink"')


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_validation, DataError, "validation -> val"),
        (_no_train, MissingDataError, "train/<class>/"),
        (_foreign_class, DataError, "disk"),
        (_empty_split, DataError, "shifts/green"),
        (_one_class, DataError, "at least two"),
        (_broken_toml, DataError, "dataset.toml"),
        (_unknown_key, UnknownNameError, "Did you mean 'templates'"),
        (_bad_template, DataError, "a photo"),
        (_context_without_prompt, DataError, "ink"),
    ],
)
def test_damaged_layout_is_named(copy_of: Copy, damage: Callable[[Path], None], error: type[Exception], message: str) -> None:
    root = copy_of()
    damage(root)
    with pytest.raises(error, match=message):
        open_dataset(root)


def test_what_is_neither_a_folder_nor_embedded_is_refused() -> None:
    with pytest.raises(MissingDataError, match="iconshift"):
        load("iconshif")


def test_random_transforms_are_drawn_anew_and_fixed_ones_kept(tiny_data: Dataset) -> None:
    paths, calls = tiny_data.split("test").paths[:3], []

    def transform(image: Image.Image) -> torch.Tensor:
        calls.append(image.size)
        return torch.zeros(3, 4, 4)

    fixed, random = Images(paths, transform), Images(paths, transform, random=True)
    assert sum(len(batch) for _ in range(2) for batch in fixed.batches(2)) == 6
    assert len(calls) == 3
    random.batch([0, 1])
    random.batch([0, 1])
    assert len(calls) == 7


def test_hidden_files_are_left_out(copy_of: Copy) -> None:
    root = copy_of()
    (root / "train/box/.checkpoints").mkdir()
    for name in (".checkpoints/0.png", "._1.png"):
        (root / "train/box" / name).write_bytes(b"not an image")
    assert len(open_dataset(root).split("train")) == 24


def test_class_without_images_and_unknown_class_name_are_named(copy_of: Copy) -> None:
    root = copy_of()
    (root / "train/empty_one").mkdir()
    with pytest.raises(DataError, match="empty_one"):
        open_dataset(root)
    (root / "train/empty_one").rmdir()
    (root / "dataset.toml").write_text('[class_names]\nboks = "square"\n')
    with pytest.raises(UnknownNameError, match="Did you mean 'box'"):
        open_dataset(root)


def test_budget_is_shared(tiny_data: Dataset) -> None:
    budget, paths = Budget(3 * 48), tiny_data.split("test").paths[:2]
    for _ in range(2):
        images = Images(paths, lambda image: torch.zeros(3, 2, 2), budget=budget)
        images.batch([0, 1])
    assert budget.left == 0


def _slow_first(image: Image.Image) -> torch.Tensor:
    """A fixed transform whose first image ends last, and that tells the images apart."""
    wide = image.width
    time.sleep(0.05 if wide == 10 else 0)
    return torch.full((3, 1, 1), float(wide))


@pytest.fixture
def widths(tmp_path: Path) -> list[Path]:
    """Five files whose images are 10, 11, ... pixels wide."""
    for wide in range(10, 15):
        Image.new("RGB", (wide, 9)).save(tmp_path / f"{wide}.png")
    return sorted(tmp_path.glob("*.png"))


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("keep", [0, 1 << 20])
def test_threads_keep_the_order_of_rows(widths: list[Path], random: bool, keep: int) -> None:
    images = Images(widths, _slow_first, random=random, budget=Budget(keep), workers=4)
    for rows in ([0, 3, 1, 0, 4], [2, 0, 0, 3, 1]):  # a row may stand twice
        assert images.batch(rows).flatten().tolist() == [10.0 + row for row in rows for _ in range(3)]


def test_random_transforms_draw_the_same_with_any_number_of_threads(widths: list[Path]) -> None:
    def draws(workers: int) -> list[float]:
        def transform(image: Image.Image) -> torch.Tensor:
            names.add(threading.current_thread().name)
            return torch.rand(1, 1, 1) + image.width

        torch.manual_seed(5)
        return Images(widths, transform, random=True, workers=workers).batch([4, 0, 1, 2, 3]).flatten().tolist()

    names: set[str] = set()
    with torch.random.fork_rng(devices=[]):
        assert draws(1) == draws(4)
    assert names == {threading.current_thread().name}


def test_unreadable_image_of_a_batch_is_named(widths: list[Path]) -> None:
    widths[2].write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"12\.png"):
        Images(widths, _slow_first, workers=3).batch(range(5))
