"""The four readers that are fuzzed, each with good files of its own, made by code: what is read of a file that a stranger made.

A case is a file's name, which tells what it stands for, and its content. `read` puts it among good files and opens it as users do.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save, save_file

from surefoot import bundle, config, hf_clip
from surefoot.data import load, read_image
from surefoot.data.dataset_toml import read_config
from surefoot.data.pictures import _look_at

Seeds = Mapping[str, bytes]
"""{name of the file: a good content}."""
MODEL = {
    "model_cfg": {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 4, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"size": 8, "mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1], "interpolation": "bicubic", "resize_mode": "shortest"},
}
CARD = {
    "class_names": ["cat", "dog"], "templates": ["a photo of a {}."], "predict": "head", "method": "tp_ft", "alpha": 0.5,
    "base": "iconclip", "origin": {"seed": 0, "settings": {"epochs": 1}},
}  # fmt: skip
TRANSFORMERS = {
    "model_type": "clip", "projection_dim": 8,
    "text_config": {"hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "hidden_act": "gelu"},
    "vision_config": {
        "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8, "patch_size": 8,
        "hidden_act": "gelu",
    },
}  # fmt: skip
RECIPE = """reproduces = "a paper"
model = "iconclip"
methods = ["tp_ft", "car_ft+contexts=own"]
seeds = [0, 1]
alphas = [0, 0.5, 1]
[training]
epochs = 2
batch_size = 8
learning_rate = 1e-4
clip_norm = 1.0
sampling = "balanced"
[overrides.flyp]
learning_rate = 1e-5
"""
DATASET = """name = "fruit"
id_context = "photo"
templates = ["a photo of a {}."]
[contexts]
photo = "a photo of a {}."
[class_names]
a = "granny smith apple"
"""


def manifests() -> Seeds:
    """Lists of six images, in both forms."""
    rows = [{"path": f"{c}/{n}.png", "class": c, "split": split} for c in "ab" for n, split in enumerate(("train", "val", "test"))]
    table = "path,class,split,caption\n" + "".join(f"{row['path']},{row['class']},{row['split']},a {row['class']}\n" for row in rows)
    return {"list.csv": table.encode(), "list.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}


def read_manifest(name: str, content: bytes, place: Path) -> None:
    """As `surefoot check LIST` opens it, images unread."""
    for letter in "ab":
        (place / letter).mkdir()
        for number in range(3):
            Image.new("RGB", (4, 4), (number * 80, ord(letter), 0)).save(place / letter / f"{number}.png")
    (place / name).write_bytes(content)
    load(place / name)


def configs() -> Seeds:
    """A recipe, and a data set's configuration."""
    return {"recipe.toml": RECIPE.encode(), "dataset.toml": DATASET.encode()}


def read_settings(name: str, content: bytes, place: Path) -> None:
    """A recipe up to the plan that it stands for; a configuration up to its entries."""
    (place / name).write_bytes(content)
    if name == "dataset.toml":
        read_config(place / name)
    else:
        config.resolve(config.read_recipe(str(place / name)), {})


def models() -> Seeds:
    """The files of a classifier with one block a tower, and a configuration of the transformers library."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = open_clip.CLIP(**MODEL["model_cfg"]).state_dict()
    head = {"weight": torch.zeros(2, 8), "bias": torch.zeros(2)}
    return {
        "open_clip_config.json": json.dumps(MODEL).encode(),
        "surefoot.json": json.dumps(CARD).encode(),
        "head.safetensors": save(head),
        "open_clip_model.safetensors": save({key: value.contiguous() for key, value in weights.items()}),
        "config.json": json.dumps(TRANSFORMERS).encode(),
    }


_good: dict[str, bytes] = {}


def read_model(name: str, content: bytes, place: Path) -> None:
    """As `surefoot predict FOLDER` opens it; a configuration of the transformers library with weights that are none of its own."""
    if name == "config.json":
        (place / name).write_bytes(content)
        (place / "preprocessor_config.json").write_text('{"size": 8, "crop_size": 8}')
        save_file({"logit_scale": torch.zeros(())}, place / "model.safetensors")
        hf_clip.read(place)
        return
    if not _good:
        _good.update(models())
    for other, good in _good.items():
        if other != "config.json":
            (place / other).write_bytes(content if other == name else good)
    bundle.load_bundle(place, device="cpu")


def images() -> Seeds:
    """Small images of every format that is read, some with text, EXIF data, several frames or transparency."""
    picture, info = Image.effect_noise((24, 16), 60), PngInfo()
    info.add_text("Comment", "a comment", zip=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.effect_noise((24, 16), sigma) for sigma in (20, 50, 80)]
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = "a description"

    def made(form: str, image: Image.Image = picture, **options: Any) -> bytes:  # noqa: ANN401
        file = io.BytesIO()
        image.save(file, form, **options)
        return file.getvalue()

    return {
        "text.png": made("PNG", pnginfo=info), "palette.png": made("PNG", picture.convert("P"), transparency=3),
        "grey.png": made("PNG", Image.new("I;16", (24, 16), 40000)), "exif.jpg": made("JPEG", picture.convert("RGB"), exif=exif),
        "frames.gif": made("GIF", frames[0], save_all=True, append_images=frames[1:]), "plain.bmp": made("BMP", picture.convert("RGB")),
        "frames.webp": made("WEBP", frames[0].convert("RGB"), save_all=True, append_images=[one.convert("RGB") for one in frames[1:]]),
        "plain.webp": made("WEBP", picture.convert("RGB")), "plain.ppm": made("PPM", picture.convert("RGB")),
        "deflate.tif": made("TIFF", picture, compression="tiff_adobe_deflate", tiffinfo=tags),
        "pages.tif": made("TIFF", frames[0], save_all=True, append_images=frames[1:]),
    }  # fmt: skip


def read_picture(name: str, content: bytes, place: Path) -> None:
    """As training and `surefoot check` read it."""
    (place / name).write_bytes(content)
    _look_at(place / name)  # what it finds wrong is in the fact that it returns
    read_image(place / name)


READERS: dict[str, tuple[Callable[[], Seeds], Callable[[str, bytes, Path], None]]] = {
    "manifest": (manifests, read_manifest),
    "config": (configs, read_settings),
    "model": (models, read_model),
    "image": (images, read_picture),
}
"""{reader: what makes its seeds, what reads a case in an empty folder}."""
