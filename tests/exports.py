"""Tiny classifiers with a trained head and with a text head, photographs of odd sizes, and the code block of a model card, run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from conftest import draw, fresh
from PIL import Image
from torch import Tensor

from surefoot.bundle import save_bundle
from surefoot.data import Dataset
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.train import start_state

METHODS = ("tp_ft", "flyp")
SIZES = [(60, 40), (33, 71), (40, 40), (97, 64)]
CLASSES = {"bar": "bar", "square box": "box", "disc": "disc"}


def classifier(folder: Path, model: ImageTextModel, data: Dataset, name: str) -> Path:
    """A classifier of the method `name` whose weights and head are moved at random: all of it is another than the base's."""
    generator = torch.Generator().manual_seed(5)
    state = start_state(model, data)
    moved = {
        key: value + 0.3 * value.std() * torch.randn(value.shape, generator=generator) if value.ndim > 1 else value
        for key, value in state.items()
    }
    moved["model.logit_scale"] = torch.tensor(3.0)
    model.load_weights({key.removeprefix("model."): value for key, value in moved.items() if key.startswith("model.")})
    with torch.no_grad():  # image features lose what all images share, so that images are told apart
        common = model.encode_image(torch.stack([model.preprocess(draw("bar", number, "red")) for number in range(7)])).mean(0)
    proj = moved["model.visual.proj"]
    moved["model.visual.proj"] = proj - (proj @ common)[:, None] * common / (common @ common)
    moved["head.weight"] = 4 * torch.randn(moved["head.weight"].shape, generator=generator)
    moved["head.bias"] = torch.tensor([0.1, -0.3, 0.2])
    save_bundle(folder, model, moved, data, get(name), 0.7, seed=3, settings={"learning_rate": 1e-3}, data="d", weights="w")
    return folder


def classifiers(root: Path, model: ImageTextModel, data: Dataset) -> dict[str, Path]:
    """{method: a classifier's folder} below `root`: TP-FT answers by its head, FLYP by its text tower."""
    return {name: classifier(root / name, fresh(model), data, name) for name in METHODS}


def photographs(folder: Path) -> Path:
    """Four images of each class, none of the model's size, as a data folder with `classifier`'s prompts; each of its own proportion."""
    generator = torch.Generator().manual_seed(1)
    for name, shape in CLASSES.items():
        for number, size in enumerate(SIZES):
            noise = torch.randint(256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
            image = Image.blend(draw(shape, number, "black").resize(size), Image.fromarray(noise.numpy()), 0.6)
            (folder / name).mkdir(parents=True, exist_ok=True)
            image.save(folder / name / f"{number}.png")
    (folder / "dataset.toml").write_text('templates = ["a {}.", "a drawing of a {}."]\n')  # evaluate asks by the prompts of the data
    return folder


def card_answers(folder: Path, photos: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """What the code in a folder's README.md answers, (name, probabilities [K]) for each photograph: its last lines once for each."""
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    assert 'folder, photo = ".", "photo.jpg"' in block
    lines = block.replace('"."', repr(str(folder))).splitlines()
    end = 1 + next(number for number, line in enumerate(lines) if line.startswith("names"))
    space: dict[str, Any] = {}
    exec("\n".join(lines[:end]), space)
    for photo in photos:
        space["photo"] = photo
        exec("\n".join(lines[end:]), space)
        yield space["names"][int(space["probability"].argmax())], torch.as_tensor(space["probability"])
