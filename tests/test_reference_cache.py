"""The frozen reference's image features, computed once for all epochs and runs: the same loss and gradients up to rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fresh
from test_chunked import assert_close
from test_resume import assert_same, interrupted, runner
from test_sharding import first_gradients
from torch import Tensor

from surefoot.anchors import retrieval
from surefoot.data import Dataset
from surefoot.data.subsets import take
from surefoot.errors import SettingError
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.train import Training, fit, start_state, training_images
from surefoot.train.batches import batches
from surefoot.train.reference import FrozenReference
from surefoot.train.settings import settings_of

PLAIN = Training(epochs=2, batch_size=8, learning_rate=1e-3, crop="center")
CACHED = replace(PLAIN, reference_cache=True)
METHODS: dict[str, dict[str, Any]] = {"car_ft": {"contexts": "own"}, "clip_cite": {}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the reference encodes, call by call: those that no gradient is wanted of, and that no validation asks for."""
    found: list[int] = []
    image, embed = FrozenReference.image, retrieval._encoded

    def seen(self: FrozenReference, given: Tensor) -> Tensor:
        found.append(len(given))
        return image(self, given)

    def embedded(parts: Any, on_batch: Any) -> Tensor:  # noqa: ANN401
        features = embed(parts, on_batch)
        found.append(len(features))
        return features

    monkeypatch.setattr(FrozenReference, "image", seen)
    monkeypatch.setattr(retrieval, "_encoded", embedded)
    return found


@pytest.mark.parametrize("how", [{}, {"chunk_size": 3}])
@pytest.mark.parametrize("name", METHODS)
def test_kept_features_give_the_same_losses_and_gradients(
    name: str, how: Mapping[str, Any], tiny_model: ImageTextModel, tiny_data: Dataset, encoded: list[int]
) -> None:
    found = []
    for training in (replace(PLAIN, **how), replace(CACHED, **how)):
        losses: list[float] = []
        run = lambda: fit(  # noqa: E731
            get(name, METHODS[name]), fresh(tiny_model), tiny_data, training, on_step=lambda step: losses.append(step.loss)  # noqa: B023
        ) and None  # fmt: skip
        encoded.clear()
        found.append((first_gradients(run), losses, sum(encoded)))  # type: ignore[arg-type]
    (gradients, losses, anew), (theirs, kept, once) = found
    assert (anew, once) == (2 * 24, 24), "every epoch, or once a run"
    assert_close(gradients, theirs)
    torch.testing.assert_close(torch.tensor(kept), torch.tensor(losses), rtol=1e-5, atol=1e-6)


def test_each_image_has_its_own_feature(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    reference = FrozenReference(tiny_model, start_state(tiny_model, tiny_data), tiny_data)
    paths = tiny_data.split("train").paths
    kept = reference.images(paths)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.mul_(1.5)  # what trains is not what is compared with
    images = training_images(paths, tiny_model, CACHED)
    seen = 0
    for batch in batches(tiny_data, images, tiny_model, CACHED, reference=kept):
        assert batch.image is not None and batch.reference_image is not None
        torch.testing.assert_close(batch.reference_image, reference.image(batch.image), rtol=0, atol=1e-6)
        seen += len(batch.label)
    assert seen == 48


def test_later_runs_read_them_and_other_data_or_weights_do_not(tiny_model: ImageTextModel, tiny_data: Dataset, encoded: list[int]) -> None:
    method, steps = get("car_ft", METHODS["car_ft"]), replace(CACHED, epochs=1)
    for seed in (0, 1):
        fit(method, fresh(tiny_model), tiny_data, replace(steps, seed=seed))
    assert encoded == [24]
    train = tiny_data.split("train")
    fewer = replace(tiny_data, splits={**tiny_data.splits, "train": take(train, range(1, len(train)))})
    fit(method, fresh(tiny_model), fewer, steps)
    assert encoded == [24, 23]
    with torch.no_grad():
        tiny_model.clip.visual.proj[0, 0] += 1e-3
    fit(method, fresh(tiny_model), tiny_data, steps)
    assert encoded == [24, 23, 24]


def test_a_run_is_resumed_to_the_same_bits(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    run = runner(tiny_model, tiny_data, get("clip_cite"), CACHED)
    interrupted(run, tmp_path / "run.resume", 5)
    assert_same(run(resume=tmp_path / "run.resume"), run())


@pytest.mark.parametrize("how", [{"crop": "random"}, {"flip": True}, {"decode": "reduced"}])
def test_images_that_change_are_refused(how: Mapping[str, Any], tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    with pytest.raises(SettingError, match="reference_cache needs images that are the same in every epoch: set crop=center, flip=false"):
        fit(get("car_ft", METHODS["car_ft"]), tiny_model, tiny_data, replace(CACHED, **how))
    fit(get("tp_ft"), tiny_model, tiny_data, replace(CACHED, epochs=1, **how))  # compares with nothing


def test_center_crops_are_those_of_evaluation(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    paths = tiny_data.split("train").paths
    images = training_images(paths, tiny_model, PLAIN)
    assert not images.draws_globally
    from surefoot.data.images import Images

    assert torch.equal(images.batch([3, 1], [7, 8]), Images(paths, tiny_model.preprocess).batch([3, 1]))
    assert training_images(paths, tiny_model, replace(PLAIN, crop="random"))._random


def test_settings_are_checked_and_older_hashes_stay(tiny_model: ImageTextModel) -> None:
    with pytest.raises(SettingError, match="crop is none; it must be one of random, center"):
        Training(crop="none")  # type: ignore[arg-type]
    assert not {"crop", "reference_cache"} & set(settings_of(get("car_ft"), Training(), tiny_model))
    assert settings_of(get("car_ft"), CACHED, tiny_model).items() >= {("crop", "center"), ("reference_cache", True)}
