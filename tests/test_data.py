"""The standard layout, reading images, and the errors that name the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from surefoot.data import Budget, Dataset, Images, load, open_dataset, read_image
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


def _no_val(root: Path) -> None:
    (root / "val").rename(root / "validation")


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
        (_no_val, MissingDataError, "val"),
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


@pytest.mark.parametrize(("mode", "value"), [("L", 90), ("P", 3), ("RGBA", (0, 0, 0, 0)), ("CMYK", (0, 0, 0, 0)), ("LA", (0, 0)), ("1", 1)])
def test_every_mode_becomes_rgb_with_transparency_on_white(tmp_path: Path, mode: str, value: object) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new(mode, (6, 4), value).save(tmp_path / f"image.{suffix}")
    image = read_image(tmp_path / f"image.{suffix}")
    assert (image.mode, image.size) == ("RGB", (6, 4))
    if mode in ("RGBA", "LA", "CMYK"):
        assert image.getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (4, 8)


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated"])
def test_unreadable_image_is_named(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "broken.png"
    if content == "truncated":
        Image.effect_noise((64, 64), 90).save(path)
        content = path.read_bytes()[:2000]
    path.write_bytes(content)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"broken\.png"):
        read_image(path)


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


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    import numpy as np

    Image.fromarray(np.full((4, 6), 128 * 257, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)


def test_budget_is_shared(tiny_data: Dataset) -> None:
    budget, paths = Budget(3 * 48), tiny_data.split("test").paths[:2]
    for _ in range(2):
        images = Images(paths, lambda image: torch.zeros(3, 2, 2), budget=budget)
        images.batch([0, 1])
    assert budget.left == 0
