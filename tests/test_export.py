"""Exported folders answer as the model does, from image files on; nothing is half written; the card says what the records say."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import anchored, typed
from exports import METHODS, card_answers, classifiers, photographs
from PIL import Image
from safetensors.torch import load_file

from surefoot import hf_clip, records
from surefoot.bundle import load_bundle
from surefoot.data import read_image
from surefoot.errors import DataError, MissingDataError, ModelError, SettingError, UnknownNameError
from surefoot.export import export, targets, transformers_files
from surefoot.export.card import licence_of
from surefoot.folders import whole_folder
from surefoot.model import ImageTextModel, load_model
from surefoot.records import Evaluation, load_answers


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, loaded_model: ImageTextModel, tiny_root: Path, tiny_pool: tuple[Path, ...]
) -> dict[str, Path]:
    """{method: a classifier's folder}: TP-FT answers by its head, FLYP by its text tower."""
    return classifiers(tmp_path_factory.mktemp("made"), loaded_model, anchored(tiny_root, tiny_pool, loaded_model))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def exported(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    root = tmp_path_factory.mktemp("exported")
    return {(t, m): export(made[m], t, root / f"{t}-{m}") for t in ("open_clip", "transformers") for m in METHODS}


def paths(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.png"))


def own(folder: Path, photos: Path) -> torch.Tensor:
    """The model's own probabilities, [12, 3], one image at a time."""
    bundle = load_bundle(folder, device="cpu")
    return torch.cat([bundle.classifier()(bundle.model.preprocess(read_image(path))[None]) for path in paths(photos)])


def with_config(folder: Path, to: Path, **preprocessing: object) -> Path:
    """A copy of a classifier whose images are prepared in another way."""
    shutil.copytree(folder, to)
    config = json.loads((to / "open_clip_config.json").read_text())
    config["preprocess_cfg"] |= preprocessing
    (to / "open_clip_config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize("method", METHODS)
def test_open_clip_opens_the_folder_and_computes_the_same_bits(
    exported: dict[tuple[str, str], Path], made: dict[str, Path], method: str
) -> None:
    folder = exported["open_clip", method]
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a disc", "a long bar of something"])
    ours = load_bundle(made[method], device="cpu").model
    picture = Image.effect_noise((60, 45), 80).convert("RGB")
    image = preprocess(picture)[None]
    assert torch.equal(image[0], ours.preprocess(picture))
    with torch.inference_mode():
        for got, expected in zip(theirs.eval()(image, tokens), ours.clip.eval()(image, tokens), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_code_in_open_clips_card_answers_as_the_model(
    exported: dict[tuple[str, str], Path], made: dict[str, Path], photos: Path, method: str
) -> None:
    expected = own(made[method], photos)
    assert float(expected.std(0).max()) > 0.05, "photographs that are told apart"
    found = list(card_answers(exported["open_clip", method], paths(photos)))
    torch.testing.assert_close(torch.stack([p for _, p in found]), expected, atol=5e-6, rtol=0)
    names = load_bundle(made[method], device="cpu").card.class_names
    assert [name for name, _ in found] == [names[k] for k in expected.argmax(1).tolist()]


@pytest.mark.parametrize("method", METHODS)
def test_the_code_in_transformers_card_answers_as_the_model(
    exported: dict[tuple[str, str], Path], made: dict[str, Path], photos: Path, method: str
) -> None:
    pytest.importorskip("transformers")
    expected = own(made[method], photos)
    found = list(card_answers(exported["transformers", method], paths(photos)))
    # each library rounds the levels of a resized image in its own way
    torch.testing.assert_close(torch.stack([p for _, p in found]), expected, atol=0.02, rtol=0)
    assert [p.argmax() for _, p in found] == expected.argmax(1).tolist()


@pytest.mark.parametrize("method", METHODS)
def test_transformers_opens_the_folder_and_its_logits_are_the_models(
    exported: dict[tuple[str, str], Path], made: dict[str, Path], method: str
) -> None:
    transformers = pytest.importorskip("transformers")
    folder, ours = exported["transformers", method], load_bundle(made[method], device="cpu").model
    theirs, processor = transformers.AutoModel.from_pretrained(folder), transformers.AutoProcessor.from_pretrained(folder)
    assert type(theirs).__name__ == "CLIPModel"
    texts = ["a disc", "Square Box,  it's 42 café-like!", "a very long text " * 40]
    tokens = processor(text=texts, return_tensors="pt", padding=True, truncation=True)
    image = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = theirs(pixel_values=image, **tokens).logits_per_image
        expected = ours.scale * ours.encode_image(image) @ ours.encode_text(ours.tokenize(texts)).T
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_zero_shot_pipeline_answers_as_the_text_tower(
    exported: dict[tuple[str, str], Path], made: dict[str, Path], photos: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    pipeline = transformers.pipeline("zero-shot-image-classification", model=str(exported["transformers", "flyp"]))
    bundle = load_bundle(made["flyp"], device="cpu")
    names = list(bundle.card.class_names)
    with torch.inference_mode():
        text = bundle.model.encode_text(bundle.model.tokenize([f"a {name}." for name in names]))
        for path in paths(photos)[::3]:
            given = {a["label"]: a["score"] for a in pipeline(str(path), candidate_labels=names, hypothesis_template="a {}.")}
            logits = bundle.model.scale * bundle.model.encode_image(bundle.model.preprocess(read_image(path))[None]) @ text.T
            torch.testing.assert_close(torch.tensor([given[n] for n in names]), logits.softmax(1)[0], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [{"resize_mode": "squash"}, {"interpolation": "bilinear"}, {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}],
    ids=["squash", "bilinear", "mean and std"],
)
def test_preprocessing_survives(made: dict[str, Path], photos: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    pytest.importorskip("transformers")
    source = with_config(made["tp_ft"], tmp_path / "source", **changes)
    expected = own(source, photos)
    assert float((expected - own(made["tp_ft"], photos)).abs().max()) > 0.03, "it matters"
    for target, within in (("open_clip", 5e-6), ("transformers", 0.02)):
        found = card_answers(export(source, target, tmp_path / target), paths(photos))
        torch.testing.assert_close(torch.stack([p for _, p in found]), expected, atol=within, rtol=0)


@pytest.mark.parametrize("target", ["open_clip", "transformers"])
def test_top1_of_the_exported_folder_is_that_of_evaluate(
    exported: dict[tuple[str, str], Path], made: dict[str, Path], photos: Path, tiny_folder: Path, tmp_path: Path, target: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if target == "transformers":
        pytest.importorskip("transformers")
    for method in METHODS:
        out = tmp_path / method
        arguments = ("evaluate", made[method], photos, "--all-images", "--out", out, "--device", "cpu", "--precision", "fp32")
        code, said = typed(monkeypatch, capsys, *arguments)
        assert code == 0, said
        record = next(r for r in records.read(out) if isinstance(r, Evaluation) and r.method == method)
        judged = load_answers(out, record.answers)["test"]
        found = [p.argmax() for _, p in card_answers(exported[target, method], paths(photos))]
        # the data's classes are in the order of their folders, and the folders' names are the class names
        labels = sorted(load_bundle(made[method], device="cpu").card.class_names)
        names = load_bundle(made[method], device="cpu").card.class_names
        right = [names[int(k)] == path.parent.name for k, path in zip(found, paths(photos), strict=True)]
        assert sum(right) == int(judged.correct.sum()) and len(labels) == 3
        assert record.accuracy["test"] == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("target", ["open_clip", "transformers"])
def test_an_exported_folder_is_a_classifier_of_surefoot_too(
    exported: dict[tuple[str, str], Path], made: dict[str, Path], photos: Path, target: str
) -> None:
    for method in METHODS:
        torch.testing.assert_close(own(exported[target, method], photos), own(made[method], photos), atol=1e-5, rtol=0)


def test_names_and_weights_go_to_transformers_and_back(loaded_model: ImageTextModel) -> None:
    weights = loaded_model.weights()
    again = hf_clip.rename(hf_clip.rename_back(weights))
    assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)
    config = {
        "embed_dim": 16, "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "patch_size": 16, "head_width": 20, "width": 60, "layers": 3, "mlp_ratio": 61 / 60},
        "text_cfg": {"context_length": 40, "vocab_size": 49408, "heads": 4, "width": 36, "layers": 2, "norm_kwargs": {"eps": 1e-3}},
    }  # fmt: skip
    back = hf_clip.model_config(hf_clip.to_config(config))
    assert back["text_cfg"].pop("mlp_ratio") == 4 and back["vision_cfg"].pop("norm_kwargs") == {"eps": 1e-5}
    assert int(60 * back["vision_cfg"].pop("mlp_ratio")) == 61 and config["vision_cfg"].pop("mlp_ratio")
    assert back == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_cfg": {"pool_type": "avg"}}, "avg"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "ViT"),
        ({"text_cfg": {"no_causal_mask": True}}, "no_causal_mask"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "roberta-base"),
        ({"init_logit_bias": -10}, "init_logit_bias"),
        ({"multimodal_cfg": {"width": 3}}, "multimodal_cfg"),
    ],
)
def test_what_transformers_clip_cannot_compute_is_refused(loaded_model: ImageTextModel, changes: dict[str, object], message: str) -> None:
    config = copy.deepcopy(loaded_model.config()["model_cfg"])
    for key, value in changes.items():
        config[key] = config.get(key, {}) | value if isinstance(value, dict) else value
    with pytest.raises(ModelError, match=message):
        hf_clip.to_config(config)


def test_other_architectures_are_told_what_they_can_be_exported_as(made: dict[str, Path], tmp_path: Path) -> None:
    source = with_config(made["tp_ft"], tmp_path / "source", resize_mode="longest")
    with pytest.raises(ModelError, match=r"'longest'.*--to open_clip or --to onnx"):
        export(source, "transformers", tmp_path / "out")
    config = json.loads((source / "open_clip_config.json").read_text())
    config["model_cfg"]["custom_text"] = True
    (source / "open_clip_config.json").write_text(json.dumps(config))
    clip = open_clip.CustomTextCLIP(**{k: v for k, v in config["model_cfg"].items() if k != "custom_text"})
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, source / "open_clip_model.safetensors")
    with pytest.raises(ModelError, match=r"CustomTextCLIP.*--to open_clip or --to onnx"):
        export(source, "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists() and [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_copy_that_answers_differently_is_not_left(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    back = hf_clip.rename_back

    def spoilt(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = back(weights)
        return renamed | {"visual_projection.weight": renamed["visual_projection.weight"].flip(0).contiguous()}

    monkeypatch.setattr(hf_clip, "rename_back", spoilt)
    with pytest.raises(ModelError, match=r"differ from the model's by .*0\.0001 is allowed"):
        export(made["tp_ft"], "transformers", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ModelError, match="differ"):
        transformers_files.compare("x", torch.tensor([float("nan")]), torch.zeros(1))
    transformers_files.compare("x", torch.tensor([0.9e-4]), torch.zeros(1))


def test_nothing_half_written_is_left_and_what_stood_there_stays(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export(made["tp_ft"], "open_clip", tmp_path / "deep" / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(SettingError, match="--overwrite"):
        export(made["flyp"], "open_clip", out)

    def fails(folder: Path, *_: object) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(targets.TARGETS, "open_clip", fails)
    with pytest.raises(DataError, match=r"out cannot be written .*No space.*--out"):
        export(made["flyp"], "open_clip", out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    monkeypatch.undo()
    export(made["flyp"], "open_clip", out, overwrite=True)
    assert (out / "head.safetensors").read_bytes() != before["head.safetensors"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_overwrite_never_takes_a_folder_that_is_not_a_models(made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(SettingError, match="no model folder"):
        export(made["tp_ft"], "open_clip", tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").is_file()
    (tmp_path / "empty").mkdir()
    assert (export(made["tp_ft"], "open_clip", tmp_path / "empty") / "README.md").is_file()


def test_a_folder_that_comes_back_when_its_successor_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with whole_folder(out, overwrite=False) as folder:
        (folder / "surefoot.json").write_text("old")
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(13, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(DataError, match="Permission"), whole_folder(out, overwrite=True) as folder:
        (folder / "surefoot.json").write_text("new")
    assert (out / "surefoot.json").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["out"]


def run_with_records(made: dict[str, Path], folder: Path, **origin: str) -> Path:
    """A run's folder: a classifier in model/, and records of it beside."""
    shutil.copytree(made["tp_ft"], folder / "model")
    told = {"data": "d", "weights": "w"} | origin
    for method, seed, alpha, accuracy in (
        ("zero_shot", 0, 0.0, {"test": 0.5012, "avg_shifts": 0.4}),
        ("tp_ft", 3, 0.7, {"test": 0.8034, "avg_shifts": 0.45}),
        ("tp_ft", 3, 1.0, {"test": 0.8156, "avg_shifts": 0.42}),
        ("tp_ft", 4, 1.0, {"test": 0.8256, "avg_shifts": 0.42}),
    ):
        records.append(folder, Evaluation(
            method=method, seed=seed, alpha=alpha, dataset="shapes & <co>", accuracy=accuracy, num_images={"test": 15}, answers="",
            settings={"learning_rate": 1e-3}, settings_hash="h", provenance=told,
        ))  # fmt: skip
    described = records.Described(
        dataset="shapes & <co>", class_names={"seen": ["bar"]}, num_images={"train": 24, "test": 15}, templates=[], notes=["Cut by seed 0."]
    )
    records.append(folder, described)
    return folder


def test_the_card_says_what_the_records_say(made: dict[str, Path], tmp_path: Path) -> None:
    run = run_with_records(made, tmp_path / "run")
    card = (export(run, "open_clip", tmp_path / "out") / "README.md").read_text()
    assert (tmp_path / "out" / "frontier.svg").read_text().startswith("<svg")
    for said in (
        "ID 80.3 % (zero-shot 50.1 %); Avg. shifts 45.0 % (zero-shot 40.0 %)", "fine-tuned by TP-FT on shapes &amp; &lt;co&gt;",
        "alpha = 0.7", "| TP-FT | **82.1 ± 0.7** |", "train 24, test 15", "Cut by seed 0.", "Seed: 3; the table is over the seeds [3, 4]",
        "| learning\\_rate | 0.001 |", "![", "(frontier.svg)", "square box", "trained head", "states no licence",
    ):  # fmt: skip
        assert said in card, said
    assert export(run / "model", "open_clip", tmp_path / "again") and (tmp_path / "again" / "README.md").read_text() == card


def test_figures_of_another_model_are_left_out(made: dict[str, Path], tmp_path: Path) -> None:
    run = run_with_records(made, tmp_path / "run", weights="of another model")
    card = (export(run, "open_clip", tmp_path / "out") / "README.md").read_text()
    assert "82.1" not in card and "80.3" not in card and "No records of this model" in card
    assert not (tmp_path / "out" / "frontier.svg").exists()


def test_no_path_of_this_machine_is_in_what_is_passed_on(exported: dict[tuple[str, str], Path], tiny_folder: Path) -> None:
    for folder in exported.values():
        for name in ("README.md", "surefoot.json"):
            assert str(tiny_folder.parent) not in (folder / name).read_text()
        assert json.loads((folder / "surefoot.json").read_text())["base"] == f"local-dir:{tiny_folder.name}"


def test_the_licence_is_the_checkpoints(made: dict[str, Path], tmp_path: Path) -> None:
    assert licence_of(f"local-dir:{tmp_path}") is None and licence_of("ViT-B-32:openai") is None
    (tmp_path / "README.md").write_text("---\nlibrary_name: x\nlicense: mit\n---\nlicense: not this\n")
    assert licence_of(f"local-dir:{tmp_path}") == "mit"
    (tmp_path / "README.md").write_text("no front matter\nlicense: mit\n")
    assert licence_of(f"local-dir:{tmp_path}") is None
    card = (export(made["flyp"], "open_clip", tmp_path / "out", licence="cc-by-4.0") / "README.md").read_text()
    assert '\nlicense: "cc-by-4.0"\n' in card and "is under: cc-by-4.0" in card
    assert "The **text tower** answers" in card


def test_wrong_targets_and_folders_are_refused(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'onnx'"):
        export(made["tp_ft"], "onx", tmp_path / "out")
    with pytest.raises(MissingDataError, match="surefoot fit"):
        export(tmp_path, "open_clip", tmp_path / "out")


def test_the_command_exports(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = typed(monkeypatch, capsys, "export", made["tp_ft"], "--to", "open_clip", "--out", tmp_path / "out")
    assert code == 0 and "README.md says how to open it" in said
    assert load_model(f"local-dir:{tmp_path / 'out'}").weights().keys()
    assert load_file(tmp_path / "out" / "head.safetensors")["weight"].shape == (3, 16)
    code, said = typed(monkeypatch, capsys, "export", made["tp_ft"], "--to", "open_clip", "--out", tmp_path / "out")
    assert code == 2 and "--overwrite" in said
