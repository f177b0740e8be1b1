"""BatchNorm after merging: interpolated running statistics are wrong, re-estimated ones right, and the library's training needs neither."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import CONFIG, fresh
from safetensors.torch import save_file
from torch import Tensor, nn

from surefoot.data import Dataset, Images
from surefoot.errors import SettingError
from surefoot.methods import get
from surefoot.model import ImageTextModel, load_model
from surefoot.train import Training, fit, start_state
from surefoot.train.statistics import reestimate_batch_norm
from surefoot.weights import interpolate

RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}


@pytest.fixture(scope="module")
def loaded_resnet(tmp_path_factory: pytest.TempPathFactory) -> ImageTextModel:
    """CLIP's own ResNet, small."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-resnet")
    config = {"model_cfg": {**CONFIG["model_cfg"], "vision_cfg": RESNET}, "preprocess_cfg": CONFIG["preprocess_cfg"]}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    clip = open_clip.CLIP(**config["model_cfg"])
    assert isinstance(clip.visual, open_clip.modified_resnet.ModifiedResNet)
    save_file({name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
    return load_model(f"local-dir:{folder}")


@pytest.fixture
def resnet(loaded_resnet: ImageTextModel) -> ImageTextModel:
    return fresh(loaded_resnet)


@pytest.fixture
def images(resnet: ImageTextModel, tiny_data: Dataset) -> Images:
    return Images(tiny_data.split("train").paths, resnet.preprocess)


def norms(model: ImageTextModel) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in model.clip.named_modules() if isinstance(module, nn.BatchNorm2d)}


def true_statistics(model: ImageTextModel, images: Images) -> dict[str, tuple[Tensor, Tensor]]:
    """{layer: mean and variance of what comes into it}, of all images at once, in training mode, by hooks; the model's buffers stay."""
    model, found = fresh(model), {}
    for name, layer in norms(model).items():
        layer.train()
        layer.register_forward_hook(
            lambda _, given, __, name=name: found.update({name: (given[0].mean((0, 2, 3)), given[0].var((0, 2, 3), unbiased=True))})
        )
    with torch.no_grad():
        model.encode_image(images.batch(range(len(images))))
    return found


@pytest.fixture
def merged(resnet: ImageTextModel, images: Images) -> ImageTextModel:
    """The mean of two ResNets of other weights, each with the statistics of its own activations."""
    sides = []
    for seed in (1, 2):
        one = fresh(resnet)
        one.load_weights(one.weights() | one.fresh_visual(seed))
        assert reestimate_batch_norm(one, images)
        sides.append(one.weights())
    resnet.load_weights(interpolate(*sides, 0.5))
    return resnet


def distance(model: ImageTextModel, truth: dict[str, tuple[Tensor, Tensor]]) -> list[float]:
    """For each layer how many times too large or too small its variances are, on average over channels."""
    return [float((layer.running_var / truth[name][1]).log().abs().mean().exp()) for name, layer in norms(model).items()]


def test_interpolated_statistics_are_wrong_and_reestimated_ones_right(merged: ImageTextModel, images: Images) -> None:
    truth = true_statistics(merged, images)
    assert all(factor > 1.3 for factor in distance(merged, truth)), "every layer's variances are far off"
    assert reestimate_batch_norm(merged, images) is True
    for name, layer in norms(merged).items():
        torch.testing.assert_close(layer.running_mean, truth[name][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_var, truth[name][1], rtol=1e-4, atol=1e-6)


def test_in_the_first_layer_the_variance_of_the_difference_is_what_is_wrong(resnet: ImageTextModel, images: Images) -> None:
    batch, sides, activations = images.batch(range(len(images))), [], []
    for seed in (1, 2):
        resnet.load_weights(resnet.weights() | resnet.fresh_visual(seed))
        reestimate_batch_norm(resnet, images)
        sides.append(resnet.weights())
        with torch.no_grad():
            activations.append(resnet.clip.visual.conv1(batch))
    alpha = 0.25
    resnet.load_weights(interpolate(*sides, alpha))
    between = resnet.clip.visual.bn1.running_var.clone()
    reestimate_batch_norm(resnet, images)
    apart = (activations[0] - activations[1]).var((0, 2, 3), unbiased=True)
    torch.testing.assert_close(between - resnet.clip.visual.bn1.running_var, alpha * (1 - alpha) * apart, rtol=1e-3, atol=1e-5)


def test_features_are_those_of_the_true_statistics(merged: ImageTextModel, images: Images) -> None:
    batch, live = images.batch(range(len(images))), fresh(merged)
    with torch.no_grad():
        for layer in norms(live).values():
            layer.train()
        expected, before = live.encode_image(batch), merged.encode_image(batch)
        reestimate_batch_norm(merged, images)
        after = merged.encode_image(batch)
    assert float((after - expected).norm(dim=1).mean()) < 0.1 * float((before - expected).norm(dim=1).mean())


def test_only_buffers_of_the_norms_change_and_modes_come_back(merged: ImageTextModel, images: Images) -> None:
    merged.train()
    norms(merged)["visual.bn1"].eval()
    norms(merged)["visual.bn2"].momentum = 0.3
    modes, before = {name: m.training for name, m in merged.named_modules()}, merged.weights()
    reestimate_batch_norm(merged, images, batch_size=8)
    after = merged.weights()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    expected = {f"{layer}.{buffer}" for layer in norms(merged) for buffer in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed == expected
    assert modes == {name: m.training for name, m in merged.named_modules()}
    assert norms(merged)["visual.bn2"].momentum == 0.3
    assert {int(layer.num_batches_tracked) for layer in norms(merged).values()} == {3}


def test_every_batch_counts_alike_and_the_statistics_before_do_not(merged: ImageTextModel, images: Images) -> None:
    other = fresh(merged)
    for layer in norms(other).values():
        layer.running_mean.fill_(9.0)
        layer.running_var.fill_(9.0)
    reestimate_batch_norm(merged, images, batch_size=6)
    reestimate_batch_norm(other, images, batch_size=6)
    assert all(torch.equal(tensor, other.weights()[name]) for name, tensor in merged.weights().items())
    with torch.no_grad():
        parts = [merged.clip.visual.conv1(images.batch(range(at, at + 6))) for at in range(0, 24, 6)]
    bn = merged.clip.visual.bn1
    torch.testing.assert_close(bn.running_mean, torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(bn.running_var, torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("count", "size", "expected"), [(24, 256, [24]), (9, 8, [5, 4]), (5, 2, [3, 2]), (17, 8, [6, 6, 5])])
def test_no_batch_holds_one_image(
    count: int, size: int, expected: list[int], resnet: ImageTextModel, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def batches(rows: list[int]) -> Tensor:
        seen.append(list(rows))
        return Images.batch(few, rows)

    few = Images(images.paths[:count], resnet.preprocess)
    monkeypatch.setattr(few, "batch", batches)
    reestimate_batch_norm(resnet, few, batch_size=size)
    assert [len(rows) for rows in seen] == expected
    assert [row for rows in seen for row in rows] == list(range(count)), "in their order, each once"


def test_without_batch_norm_nothing_is_read(tiny_model: ImageTextModel) -> None:
    before = tiny_model.weights()
    assert reestimate_batch_norm(tiny_model, Images([Path("nowhere.png")] * 3, tiny_model.preprocess)) is False
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.weights().items())


def test_one_image_has_no_statistics(resnet: ImageTextModel, images: Images) -> None:
    before = resnet.weights()
    with pytest.raises(SettingError, match="two or more at a time"):
        reestimate_batch_norm(resnet, Images(images.paths[:1], resnet.preprocess))
    with pytest.raises(SettingError, match="in batches of 1 were given"):
        reestimate_batch_norm(resnet, images, batch_size=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in resnet.weights().items())


def test_modes_come_back_when_an_image_cannot_be_read(resnet: ImageTextModel) -> None:
    with pytest.raises(ValueError, match="is not there any more"):
        reestimate_batch_norm(resnet, Images([Path("nowhere.png")] * 3, resnet.preprocess))
    assert not any(module.training for module in resnet.modules())
    assert {layer.momentum for layer in norms(resnet).values()} == {0.1}


def test_the_librarys_training_leaves_nothing_to_reestimate(resnet: ImageTextModel, tiny_data: Dataset) -> None:
    start = start_state(resnet, tiny_data)
    settings = Training(epochs=1, batch_size=8, learning_rate=1e-2, keep="last")
    end = fit(get("tp_ft"), resnet, tiny_data, settings, start=start).state
    statistics = [f"model.{layer}.{buffer}" for layer in norms(resnet) for buffer in ("running_mean", "running_var")]
    assert not torch.equal(start["model.visual.conv1.weight"], end["model.visual.conv1.weight"])
    merged = interpolate(start, end, 0.5)
    for name in statistics:
        assert torch.equal(start[name], end[name])
        torch.testing.assert_close(merged[name], start[name])
