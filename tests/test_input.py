"""Images are prepared beside training: the same crops, the same batches, and nothing that outlives the run."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fresh
from PIL import Image
from test_resume import TRAINING, StoppedError, Watch, assert_same
from torch import Tensor
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor

from surefoot.data import Dataset, Images
from surefoot.data import images as images_module
from surefoot.data.crops import RandomCrop
from surefoot.data.images import read_image
from surefoot.errors import DataError, SettingError
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.train import batches, fit, prefetch
from surefoot.train.prefetch import prefetched
from surefoot.train.settings import settings_of

SIZES = [(48, 48), (300, 20), (20, 300), (1, 1), (7, 5), (640, 480), (33, 200)]
CROPS = [((0.9, 1.0), (0.75, 1.3333)), ((0.08, 1.0), (0.5, 2.0)), ((2.0, 3.0), (1.0, 1.0))]  # of the last nothing fits


def picture(size: tuple[int, int]) -> Image.Image:
    """Coloured noise of that width and height."""
    values = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


@pytest.mark.parametrize(("scale", "ratio"), CROPS)
@pytest.mark.parametrize("size", SIZES)
def test_crops_are_torchvisions_to_the_last_bit(size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    whole = Compose([RandomResizedCrop(24, scale=scale, ratio=ratio), ToTensor(), Normalize([0.5] * 3, [0.2] * 3)])
    crop, image, generator = RandomCrop.of(whole), picture(size), torch.Generator().manual_seed(4)
    assert crop is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        for _ in range(5):
            assert torch.equal(crop.finish(image, crop.draw(image, generator)), whole(image))
        assert torch.equal(torch.rand(3), torch.rand(3, generator=generator))  # as many numbers were drawn


def test_other_random_transforms_are_left_as_they_are() -> None:
    crop = RandomResizedCrop(24)
    assert RandomCrop.of(ToTensor()) is None
    assert RandomCrop.of(Compose([crop, RandomHorizontalFlip(), ToTensor()])) is None
    assert RandomCrop.of(Compose([RandomHorizontalFlip(), crop, ToTensor()])) is None


def test_model_crops_without_torchs_global_generator(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    images = Images(tiny_data.split("train").paths, tiny_model.preprocess_train, random=True)
    assert not images.draws_globally
    before = torch.get_rng_state()
    first, again, other = (images.batch([3, 0, 5], seeds) for seeds in ([1, 2, 3], [1, 2, 3], [2, 2, 3]))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first[0], other[0])
    assert torch.equal(first[1:], other[1:])
    assert torch.equal(images.batch([5, 3], [3, 1]), first[[2, 0]])  # whatever stands beside it


def test_batches_are_the_same_made_here_or_in_another_thread(
    tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Images(tiny_data.split("train").paths, tiny_model.preprocess_train, random=True)
    pairs = Images(tiny_data.anchors.images, tiny_model.preprocess_train, random=True)
    training, needs = replace(TRAINING, flip=True), get("arf").needs

    def drawn() -> list[Tensor]:
        found = []
        for batch in batches(tiny_data, images, tiny_model, training, needs=needs, pair_images=pairs):
            torch.rand(9)  # what the model draws must not matter
            assert batch.image is not None
            assert batch.anchor_image is not None
            found += [batch.image, batch.anchor_image, batch.label, *batch.text.values()]
        return found

    ahead = drawn()
    for own in (images, pairs):  # torchvision's transform, here, from the global generator
        monkeypatch.setattr(own, "_crop", None)
    assert images.draws_globally
    here = drawn()
    assert len(ahead) == len(here) > 0
    assert all(torch.equal(a, b) for a, b in zip(ahead, here, strict=True))


def started() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_items_come_in_order_and_a_few_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    taken = prefetched(items(), depth=2)
    assert next(taken) == 0
    for _ in range(200):
        if len(made) == 4:  # one taken, two waiting, one in the hand
            break
        time.sleep(0.01)
    time.sleep(3 * prefetch._PATIENCE)
    assert len(made) == 4
    assert list(taken) == list(range(1, 20))
    assert not started()


def test_what_fails_is_raised_at_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise DataError("a damaged image")

    taken, found = prefetched(items()), []
    with pytest.raises(DataError, match="a damaged image"):
        found.extend(taken)
    assert found == [] or found == [1, 2]
    assert not started()


def test_iterator_that_is_closed_ends_its_thread() -> None:
    taken = prefetched(iter(range(10**9)))
    assert [next(taken), next(taken)] == [0, 1]
    assert started()
    taken.close()
    assert not started()


@pytest.mark.parametrize("how", ["stopped", "damaged", "finished"])
def test_no_thread_outlives_a_run(how: str, tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    data = tiny_data
    if how == "damaged":
        (damaged := tmp_path / "damaged.png").write_bytes(b"no image")
        train = data.split("train")
        data = replace(data, splits={**data.splits, "train": replace(train, paths=(*train.paths[:-1], damaged))})
    if how == "finished":
        fit(get("tp_ft"), tiny_model, data, TRAINING)
    else:
        error = {"stopped": StoppedError, "damaged": DataError}[how]
        with pytest.raises(error, match="damaged" if how == "damaged" else None):
            fit(get("tp_ft"), tiny_model, data, TRAINING, on_step=Watch(2 if how == "stopped" else 10**9))
    assert not started()


def test_run_is_the_same_with_batches_made_here(tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = fit(get("flyp"), fresh(tiny_model), tiny_data, TRAINING)
    monkeypatch.setattr(sys.modules["surefoot.train.batches"], "prefetched", lambda items: items)
    assert_same(ahead, fit(get("flyp"), fresh(tiny_model), tiny_data, TRAINING))


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A JPEG of 1600 x 1200 pixels, to be turned by a quarter."""
    path, exif = tmp_path / "large.jpg", Image.Exif()
    exif[0x0112] = 6
    small = picture((40, 30))
    small.resize((1600, 1200), Image.Resampling.BICUBIC).save(path, quality=95, exif=exif)
    return path


@pytest.mark.parametrize(
    ("least", "size"), [(None, (1200, 1600)), (601, (1200, 1600)), (600, (600, 800)), (299, (300, 400)), (10, (150, 200))]
)
def test_a_large_jpeg_is_decoded_at_a_fraction_that_keeps_enough(photograph: Path, least: int | None, size: tuple[int, int]) -> None:
    image = read_image(photograph, least)
    assert image.size == size
    full = read_image(photograph)
    difference = np.abs(np.asarray(image.resize((48, 64)), np.float64) - np.asarray(full.resize((48, 64)), np.float64))
    assert difference.mean() < 3  # of 255


def test_other_formats_are_decoded_in_full(photograph: Path) -> None:
    path = photograph.with_suffix(".png")
    read_image(photograph).save(path)
    assert read_image(path, 100).size == (1200, 1600)


def test_only_training_images_are_decoded_at_a_reduced_size(
    tiny_model: ImageTextModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[bool, int | None]] = set()
    train, real = set(tiny_data.split("train").paths), images_module.read_image

    def noted(path: Path, least: int | None = None) -> Image.Image:
        seen.add((path in train, least))
        return real(path, least)

    monkeypatch.setattr(images_module, "read_image", noted)
    for decode in ("full", "reduced"):
        seen.clear()
        fit(get("tp_ft"), fresh(tiny_model), tiny_data, replace(TRAINING, epochs=1, decode=decode))
        assert seen == {(True, None if decode == "full" else 64), (False, None)}


def test_decode_is_checked_and_told_only_where_it_is_used(tiny_model: ImageTextModel) -> None:
    with pytest.raises(SettingError, match="decode is half; it must be one of full, reduced"):
        replace(TRAINING, decode="half")  # type: ignore[arg-type]
    assert "decode" not in settings_of(get("tp_ft"), TRAINING, tiny_model)
    assert settings_of(get("tp_ft"), replace(TRAINING, decode="reduced"), tiny_model)["decode"] == "reduced"
