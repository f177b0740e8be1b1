"""ONNX files: image tower, text tower, and one file from pixels to the probabilities of labels; run once to compare with torch."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surefoot.bundle import Bundle
from surefoot.errors import ModelError
from surefoot.export.transformers_files import compare

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LABELS, PREPROCESSING = "labels.json", "preprocessing.json"
ONE_FILE = 1_800_000_000  # bytes; a protobuf holds 2 GB at most, above which the weights lie beside it


class ImageTower(nn.Module):
    """Pixels [B, 3, H, W] -> l2-normalised features [B, D]."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixel_values: Tensor) -> Tensor:
        return F.normalize(self.clip.encode_image(pixel_values), dim=-1)  # type: ignore[operator]


class TextTower(nn.Module):
    """Token numbers [B, L] -> l2-normalised features [B, D]."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.normalize(self.clip.encode_text(input_ids), dim=-1)  # type: ignore[operator]


class LabelProbabilities(nn.Module):
    """Pixels [B, 3, H, W] -> probabilities [B, K] of what answers, `weight` [K, D] and `bias` [K]."""

    def __init__(self, clip: nn.Module, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.image = ImageTower(clip)
        self.weight, self.bias = nn.Parameter(weight.clone(), requires_grad=False), nn.Parameter(bias.clone(), requires_grad=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return F.linear(self.image(pixel_values), self.weight, self.bias).softmax(1)


def write(folder: Path, bundle: Bundle, tell: Callable[[int, int], None]) -> None:
    """Write image.onnx, text.onnx, classifier.onnx, labels.json and preprocessing.json; the last two stand in classifier.onnx too.

    Raises:
        ModelError: a missing package, a model that cannot be traced, or answers that differ from torch's by more than 1e-4.
    """
    require()
    classifier, config = bundle.classifier(), bundle.model.config()["preprocess_cfg"]
    about = {"labels": json.dumps(list(classifier.names)), "preprocessing": json.dumps(config)}
    tokens = bundle.model.tokenize([t.replace("{}", n) for t in bundle.card.templates[:1] for n in bundle.card.class_names[:3]] * 3)
    height, width = config["size"] if isinstance(config["size"], list) else (config["size"],) * 2
    pixels = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    clip = bundle.model.clip
    files: list[tuple[str, nn.Module, str, Tensor, str, Mapping[str, str]]] = [
        ("image", ImageTower(clip), "pixel_values", pixels, "image_embeds", {"preprocessing": about["preprocessing"]}),
        ("text", TextTower(clip), "input_ids", tokens[:3], "text_embeds", {"logit_scale": str(float(bundle.model.scale.detach()))}),
        ("classifier", LabelProbabilities(clip, classifier.weight, classifier.bias), "pixel_values", pixels, "probabilities", about),
    ]
    for number, (name, module, given, example, gives, metadata) in enumerate(files, start=1):
        trace(module.eval(), given, example, gives, folder / f"{name}.onnx", metadata)
        check(folder / f"{name}.onnx", module, given, example)
        tell(number, len(files))
    for file, key in ((LABELS, "labels"), (PREPROCESSING, "preprocessing")):
        (folder / file).write_text(about[key] + "\n", encoding="utf-8")
    if hasattr(bundle.model._tokenizer, "save_pretrained"):
        bundle.model._tokenizer.save_pretrained(folder)


def require() -> None:
    """Whether the packages are there.

    Raises:
        ModelError: one is not.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ModelError(f"--to onnx needs the packages {', '.join(missing)}. Install them: pip install 'surefoot[export]'.")


def trace(module: nn.Module, given: str, example: Tensor, gives: str, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a module of one input as an ONNX file, the batch [B, ...] of any size.

    Args:
        module: in evaluation mode.
        given: the input's name.
        example: an input of two or more.
        gives: the output's name.
        path: the file.
        metadata: goes into the file.

    Raises:
        ModelError: the exporter cannot trace it.
    """
    batch: Any = torch.export.Dim("batch", max=65536)
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                module, (example,), dynamo=True, dynamic_shapes=({0: batch},), input_names=[given], output_names=[gives], verbose=False
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ModelError(f"{path.name}: torch cannot write this model as ONNX ({error}). Export it by --to open_clip instead.") from error
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # the exporter notes the lines that made a node, by their path on this machine
    program.model.metadata_props.update(metadata)
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values() if value.const_value is not None)
    program.save(path, external_data=size > ONE_FILE)


def check(path: Path, module: nn.Module, given: str, example: Tensor) -> None:
    """Run the file in onnxruntime, on the batch `example` and on its first row alone, and compare.

    Raises:
        ModelError: another answer than torch's.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for part in (example, example[:1]):
        with torch.inference_mode():
            expected = module(part)
        found = session.run(None, {given: part.numpy()})[0]
        compare(f"{path.name} in onnxruntime", torch.from_numpy(found), expected)
