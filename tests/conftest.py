"""A tiny model and a tiny data set, made anew in seconds: three classes of drawn shapes, two shifts, two unseen classes."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from surefoot import cli
from surefoot.data import Dataset, open_dataset
from surefoot.data.anchors import Anchors
from surefoot.identity import weights_hash
from surefoot.model import ImageTextModel, load_model

CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"size": 32, "mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1], "interpolation": "bicubic", "resize_mode": "shortest"},
}
SHAPES = {"disc": "ellipse", "box": "rectangle", "bar": "rectangle", "ring_thing": "ellipse", "cross": "rectangle"}


def draw(shape: str, number: int, colour: str) -> Image.Image:
    """A shape whose place depends on `number`."""
    image = Image.new("RGB", (40, 40), "white")
    shift = number % 7
    box = {"bar": (4, 15 + shift, 36, 20 + shift), "ring_thing": (2, 2, 38, 38)}.get(shape, (8 + shift, 8, 26 + shift, 26))
    getattr(ImageDraw.Draw(image), SHAPES[shape])(box, outline=colour, fill=colour if shape in ("disc", "box") else None, width=3)
    return image


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder in open_clip's local-dir layout."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-model")
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    clip = open_clip.CLIP(**CONFIG["model_cfg"])
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def loaded_model(tiny_folder: Path) -> ImageTextModel:
    """Loaded once: building the tokenizer takes longer than most tests."""
    return load_model(f"local-dir:{tiny_folder}")


def fresh(model: ImageTextModel) -> ImageTextModel:
    """A copy; the tokenizer is shared, since its vocabulary takes longer to copy than a run takes."""
    return copy.deepcopy(model, {id(model._tokenizer): model._tokenizer})


def with_resnet(model: ImageTextModel) -> ImageTextModel:
    """The tiny model with an image tower of convolutions and BatchNorm."""
    config: dict[str, Any] = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "head_width": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
        model.clip = open_clip.CLIP(16, config, text)
    return model


@pytest.fixture
def tiny_model(loaded_model: ImageTextModel) -> ImageTextModel:
    return fresh(loaded_model).requires_grad_()  # whatever an earlier test froze in the one that all share


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    counts = {"train": 8, "val": 4, "test": 5, "shifts/red": 4, "shifts/green": 3}
    for split, count in counts.items():
        colour = {"shifts/red": "red", "shifts/green": "green"}.get(split, "black")
        for shape in ("disc", "box", "bar"):
            for number in range(count):
                path = root / split / shape / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                draw(shape, number, colour).save(path)
    for shape in ("ring_thing", "cross"):
        for number in range(3):
            path = root / "unseen" / "other" / shape / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(shape, number, "black").save(path)
    (root / "dataset.toml").write_text(
        'name = "shapes"\nid_context = "black"\ntemplates = ["a {}.", "a drawing of a {}."]\n'
        '[contexts]\nblack = "a black {}."\nred = "a red {}."\n[class_names]\nbox = "square box"\n'
    )
    return root


@pytest.fixture(scope="session")
def tiny_pool(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Three images that are in no split."""
    folder = tmp_path_factory.mktemp("pool")
    for number, shape in enumerate(("ring_thing", "cross", "disc")):
        draw(shape, number, "blue").save(folder / f"{number}.png")
    return tuple(sorted(folder.iterdir()))


def anchored(root: Path, pool: tuple[Path, ...], model: ImageTextModel) -> Dataset:
    """The tiny data with a caption for each training image, and three image-text pairs of which each retrieves two."""
    data = open_dataset(root)
    paths = data.split("train").paths
    anchors = Anchors(
        captions={path: f"{data.written(path)} on paper" for path in paths}, captioner="a human",
        pairs={path: (row % 3, (row + 1) % 3) for row, path in enumerate(paths)}, images=pool,
        texts=tuple(f"a pair, {path.name}" for path in pool), weights=weights_hash(model), pool="shapes",
    )  # fmt: skip
    return replace(data, anchors=anchors)


@pytest.fixture
def tiny_data(tiny_root: Path, tiny_pool: tuple[Path, ...], loaded_model: ImageTextModel) -> Dataset:
    return anchored(tiny_root, tiny_pool, loaded_model)


def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Type a command through the real entry point: what it ends with, and everything that it prints, spaces joined."""
    monkeypatch.setattr(sys, "argv", ["surefoot", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), " ".join((captured.out + captured.err).split())


@pytest.fixture
def copy_of(tiny_root: Path, tmp_path: Path) -> Callable[[], Path]:
    """A copy of the tiny data set that a test may damage."""

    def make() -> Path:
        import shutil

        return Path(shutil.copytree(tiny_root, tmp_path / "data"))

    return make
