"""ONNX files answer as the model does, for any number of images; a file that does not is not left."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import anchored
from exports import METHODS, card_answers, classifiers, photographs

from surefoot import records
from surefoot.bundle import load_bundle
from surefoot.cli.evaluate import _judged
from surefoot.data import load, read_image
from surefoot.data.subsets import whole
from surefoot.errors import ModelError
from surefoot.export import export, onnx_files
from surefoot.model import ImageTextModel, load_model


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, loaded_model: ImageTextModel, tiny_root: Path, tiny_pool: tuple[Path, ...]
) -> dict[str, Path]:
    return classifiers(tmp_path_factory.mktemp("made"), loaded_model, anchored(tiny_root, tiny_pool, loaded_model))


@pytest.fixture(scope="module")
def exported(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    for package in onnx_files.PACKAGES:
        pytest.importorskip(package)
    root = tmp_path_factory.mktemp("onnx")
    return {name: export(made[name], "onnx", root / name) for name in METHODS}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("photos"))


def session(path: Path) -> Any:  # noqa: ANN401
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_code_in_the_card_answers_as_the_model_and_as_evaluate(
    exported: dict[str, Path], made: dict[str, Path], photos: Path, method: str
) -> None:
    bundle, paths = load_bundle(made[method], device="cpu"), sorted(photos.rglob("*.png"))
    expected = torch.cat([bundle.classifier()(bundle.model.preprocess(read_image(path))[None]) for path in paths])
    found = list(card_answers(exported[method], paths))
    torch.testing.assert_close(torch.stack([p for _, p in found]), expected, atol=1e-5, rtol=0)
    data = whole(load(photos))
    judged = _judged(bundle, load_model(bundle.card.base), data, None)[1].answers["test"]
    answered = dict(zip(paths, [name for name, _ in found], strict=True))
    assert [answered[path] for path in data.split("test").paths] == [data.class_names[k] for k in judged.prediction]


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 7])
def test_batches_of_any_size_give_the_models_features(exported: dict[str, Path], made: dict[str, Path], number: int) -> None:
    model = load_bundle(made["tp_ft"], device="cpu").model
    image = torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(number))
    tokens = model.tokenize([f"a {'very ' * k} long thing" for k in range(number)])
    with torch.inference_mode():
        features, texts = model.encode_image(image), model.encode_text(tokens)
    folder = exported["tp_ft"]
    np.testing.assert_allclose(session(folder / "image.onnx").run(None, {"pixel_values": image.numpy()})[0], features, atol=1e-5)
    np.testing.assert_allclose(session(folder / "text.onnx").run(None, {"input_ids": tokens.numpy()})[0], texts, atol=1e-5)
    (probability,) = session(folder / "classifier.onnx").run(None, {"pixel_values": image.numpy()})
    assert probability.shape == (number, 3)
    np.testing.assert_allclose(probability, load_bundle(made["tp_ft"], device="cpu").classifier()(image), atol=1e-5)


@pytest.mark.slow
def test_labels_and_preprocessing_stand_beside_and_inside(exported: dict[str, Path]) -> None:
    folder = exported["tp_ft"]
    labels = json.loads((folder / "labels.json").read_text())
    assert labels == ["bar", "square box", "disc"]
    inside = session(folder / "classifier.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(inside["labels"]) == labels
    assert json.loads(inside["preprocessing"]) == json.loads((folder / "preprocessing.json").read_text())
    assert json.loads(inside["preprocessing"])["mean"] == [0.4, 0.5, 0.6]
    assert "trained head" in (folder / "README.md").read_text() and "library_name: onnx" in (folder / "README.md").read_text()
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "classifier.onnx", "head.safetensors", "image.onnx", "labels.json", "preprocessing.json", "surefoot.json", "text.onnx",
    ]  # fmt: skip
    assert not list(records.read(folder))
    for path in folder.glob("*.onnx"):  # the exporter notes which lines of which files made a node
        assert b"site-packages" not in path.read_bytes() and str(Path(onnx_files.__file__).parent).encode() not in path.read_bytes()


@pytest.mark.parametrize("off", [0.9e-4, 1.1e-4, float("nan")])
def test_a_file_that_answers_differently_is_refused(off: float, monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def __init__(self, path: Path, providers: list[str]) -> None:
            pass

        def run(self, _: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [given["x"] * 2 + (off if len(given["x"]) == 1 else 0)]

    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, 2)
    if off < 1e-4:
        onnx_files.check(Path("a.onnx"), module, "x", torch.zeros(3, 1))
    else:
        with pytest.raises(ModelError, match=r"a\.onnx in onnxruntime differ"):
            onnx_files.check(Path("a.onnx"), module, "x", torch.zeros(3, 1))


def test_a_missing_package_names_the_extra(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxscript" else find(name, *a))
    with pytest.raises(ModelError, match=r"onnxscript\. Install them: pip install 'surefoot\[export\]'"):
        export(made["tp_ft"], "onnx", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_traced_is_refused_and_nothing_is_left(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "require", lambda: None)

    def fails(*_: object, **__: object) -> None:
        raise torch.onnx.errors.OnnxExporterError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(ModelError, match=r"image\.onnx: torch cannot write .*no such operator.*--to open_clip"):
        export(made["tp_ft"], "onnx", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_modules_compute_what_the_model_does(made: dict[str, Path]) -> None:
    bundle = load_bundle(made["tp_ft"], device="cpu")
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = bundle.model.tokenize(["a disc", "one bar"])
    head = bundle.classifier()
    with torch.inference_mode():
        torch.testing.assert_close(onnx_files.ImageTower(bundle.model.clip)(image), bundle.model.encode_image(image))
        torch.testing.assert_close(onnx_files.TextTower(bundle.model.clip)(tokens), bundle.model.encode_text(tokens))
        torch.testing.assert_close(onnx_files.LabelProbabilities(bundle.model.clip, head.weight, head.bias)(image), head(image))
