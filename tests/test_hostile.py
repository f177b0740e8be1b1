"""Files of strangers: nothing in them runs, nothing is read or written elsewhere, nothing takes the machine down; each is named."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pickle
import random
import shutil
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import open_clip
import pytest
import torch
from conftest import CONFIG, fresh
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.io import savemat

from surefoot import answers, bundle, config, hf_clip, records
from surefoot.anchors import pairs
from surefoot.anchors.pool import open_pool
from surefoot.cli.console import plain
from surefoot.data import Dataset, load, read_image
from surefoot.data import images as reading
from surefoot.data.catalog.loaders.official import _mat
from surefoot.data.catalog.loaders.stored import Stored
from surefoot.data.dataset_toml import read_config
from surefoot.data.images import SIDE
from surefoot.data.pictures import _look_at
from surefoot.data.shards import index
from surefoot.data.writing import holder
from surefoot.errors import DataError, MissingDataError, ModelError, SettingError, SurefootError, TrainingError
from surefoot.guard.arrays import load_array, load_arrays
from surefoot.guard.weights import check_folder_config, least_parameters
from surefoot.job import Job
from surefoot.methods import get
from surefoot.model import ImageTextModel, load_model
from surefoot.report.gallery import data_uri
from surefoot.train import Step, Training, checkpoint, fit
from surefoot.train.settings import LONGEST
from surefoot.watching.log import events

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "fuzz"))
import readers  # noqa: E402
from mutate import mutated  # noqa: E402

CORPUS = sorted((ROOT / "tests" / "corpus").glob("*/*"))


class Payload:
    """What a pickle runs when it is opened: it makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.marker, "w")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A classifier's folder with one block a tower."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in readers.models().items():
        if name != "config.json":
            (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of two classes, and beside it a picture that is nobody's business."""
    for split in ("train", "val", "test"):
        for label, letter in enumerate("ab"):
            (tmp_path / "data" / split / letter).mkdir(parents=True)
            for number in range(3):
                Image.effect_noise((9, 9 + number), 50 + label).save(tmp_path / "data" / split / letter / f"{number}.png")
    (tmp_path / "private").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "private" / "secret.png")
    return tmp_path / "data"


# --- checkpoints ---
@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "head.safetensors"])
def test_a_pickle_in_a_model_folder_is_refused_and_does_not_run(name: str, small: Path, tmp_path: Path) -> None:
    for number, write in enumerate((torch.save, lambda value, path: path.write_bytes(pickle.dumps(value)))):
        marker = tmp_path / f"ran-{number}"
        write({"weight": Payload(marker)}, small / name)
        with pytest.raises(SurefootError, match=str(small)):
            bundle.load_bundle(small, device="cpu")
        assert not marker.exists()


@pytest.fixture
def tiny_architecture(monkeypatch: pytest.MonkeyPatch) -> str:
    """An architecture that open_clip knows with tags, made small."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", CONFIG["model_cfg"])
    return "ViT-B-32"


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
def test_a_checkpoint_file_with_a_payload_is_refused_and_does_not_run(old: bool, tiny_architecture: str, tmp_path: Path) -> None:
    marker, file = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save({"state_dict": {"logit_scale": torch.zeros(()), "x": Payload(marker)}}, file, _use_new_zipfile_serialization=not old)
    with pytest.raises(ModelError, match=r"evil\.pt"):
        load_model(f"{tiny_architecture}:{file}@openai")
    assert not marker.exists()


@pytest.mark.parametrize("content", [{}, [], None, 3, {"a": 1}, {"state_dict": {"a": "b"}}], ids=str)
def test_a_checkpoint_file_of_something_else_is_refused(content: object, tiny_architecture: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ModelError, match=r"odd\.pt"):
        load_model(f"{tiny_architecture}:{tmp_path / 'odd.pt'}@openai")


def test_a_good_checkpoint_file_is_read(tiny_architecture: str, tiny_folder: Path, tmp_path: Path) -> None:
    weights = load_file(tiny_folder / "open_clip_model.safetensors")
    torch.save(weights, tmp_path / "good.pt")
    loaded = load_model(f"{tiny_architecture}:{tmp_path / 'good.pt'}@openai").weights()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_a_checkpoint_that_unpacks_to_more_than_it_has_is_refused(tiny_architecture: str, tmp_path: Path) -> None:
    torch.save({"logit_scale": torch.zeros(1000)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in good.namelist():
            bomb.writestr(name, good.read(name))
    with pytest.raises(ModelError, match=r"bomb\.pt: its part .* is compressed"):
        load_model(f"{tiny_architecture}:{tmp_path / 'bomb.pt'}@openai")


def test_a_resume_file_is_no_pickle_and_its_tensors_are_the_runs_own(
    tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class StopError(Exception):
        pass

    def stop(step: Step) -> None:
        if step.number == 2:
            raise StopError

    path, training = tmp_path / "run.resume", Training(epochs=1, batch_size=8, learning_rate=1e-3)
    with pytest.raises(StopError):
        fit(get("tp_ft"), fresh(tiny_model), tiny_data, training, resume=path, checkpoint_seconds=0, on_step=stop)
    with safe_open(path, framework="pt") as stored:
        metadata, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    for damage in (
        {"head.weight": torch.zeros(3)},
        {next(name for name in tensors if name.startswith("adam.exp_avg.")): torch.zeros(7)},
        {next(name for name in tensors if "visual" in name and not name.startswith(("adam", "kept", "before"))): torch.zeros(7)},
    ):
        save_file({**tensors, **damage}, path, metadata)
        with pytest.raises(TrainingError, match=r"(?s)run\.resume does not hold what the run goes on from .*Delete it"):
            fit(get("tp_ft"), fresh(tiny_model), tiny_data, training, resume=path)
    for progress in ("[" * 5000, "{}", '{"scores": {"x": [1]}}', '{"scores": {}, "step": "a"}', '{"scores": [], "other": 1}'):
        save_file(tensors, path, {**metadata, "progress": progress})
        with caplog.at_level(logging.WARNING):
            assert checkpoint.load(path, metadata["identity"]) is None
        assert "run.resume cannot be read" in caplog.messages[-1]
    marker = tmp_path / "ran"
    path.write_bytes(pickle.dumps(Payload(marker)))
    assert checkpoint.load(path, metadata["identity"]) is None
    assert not marker.exists()


# --- model folders ---
def changed(folder: Path, name: str, keys: str, value: object) -> None:
    content = json.loads((folder / name).read_text())
    place = content
    *path, last = keys.split(".")
    for key in path:
        place = place[key]
    place[last] = value
    (folder / name).write_text(json.dumps(content))


HUGE = 10**9


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        ("model_cfg.vision_cfg.width", HUGE, "width is 1000000000, beyond"),
        ("model_cfg.vision_cfg.width", 60_000, "describes a model of .* parameters at least"),
        ("model_cfg.vision_cfg.layers", HUGE, "layers is 1000000000"),
        ("model_cfg.vision_cfg.layers", [HUGE] * 4, "layers is 1000000000"),
        ("model_cfg.vision_cfg.layers", [9] * 400, "layers is a list of 400"),
        ("model_cfg.vision_cfg.layers", [200] * 4, None),
        ("model_cfg.vision_cfg.layers", None, "layers is None"),
        ("model_cfg.vision_cfg.image_size", HUGE, "image_size is 1000000000"),
        ("model_cfg.vision_cfg.patch_size", 0, "patch_size is 0"),
        ("model_cfg.vision_cfg.mlp_ratio", 1e300, "mlp_ratio is 1e"),
        ("model_cfg.text_cfg.vocab_size", HUGE, "vocab_size is 1000000000"),
        ("model_cfg.text_cfg.vocab_size", 1_000_000, None),
        ("model_cfg.text_cfg.width", 50_000, "describes a model of"),
        ("model_cfg.text_cfg.context_length", 100_000, "context_length is 100000"),
        ("model_cfg.text_cfg.layers", 200, None),
        ("model_cfg.multimodal_cfg", {"layers": 200, "width": 60_000}, "describes a model of"),
        ("model_cfg.embed_dim", HUGE, "embed_dim is 1000000000"),
        ("model_cfg.embed_dim", float("nan"), "embed_dim is nan"),
        ("model_cfg.text_cfg.hf_tokenizer_name", "../../etc", "hf_tokenizer_name is '../../etc', which may lead to other files"),
        ("model_cfg.text_cfg.hf_model_name", "/etc/evil", "hf_model_name is '/etc/evil'"),
        ("model_cfg.vision_cfg.timm_model_name", "hf-hub:evil/model", "timm_model_name is 'hf-hub:evil/model'"),
        ("model_cfg.vision_cfg.timm_model_name", "local-dir:/tmp/evil", "timm_model_name is 'local-dir"),
        ("model_cfg.text_cfg.tokenizer_kwargs", {"trust_remote_code": True}, "tokenizer_kwargs is .*allowed are clean"),
        ("model_cfg.text_cfg.tokenizer_kwargs", {"bpe_path": "/etc/passwd"}, "tokenizer_kwargs is"),
        ("model_cfg.text_cfg", "x" * 500, "has no model_cfg with vision_cfg and text_cfg"),
        ("model_cfg", [], "has no model_cfg"),
        ("preprocess_cfg.size", HUGE, "size is 1000000000"),
        ("preprocess_cfg.size", [HUGE, 1], "size is "),
        ("preprocess_cfg.std", [0, 0, 0], "std is "),
        ("preprocess_cfg.mean", "abc", "mean is abc"),
        ("preprocess_cfg", "abc", "preprocess_cfg is abc"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_absurd_architecture_is_refused_before_anything_is_built(
    keys: str, value: object, words: str | None, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(small, "open_clip_config.json", keys, value)
    if words is not None:
        monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *_, **__: pytest.fail("it is built"))
    with pytest.raises(ModelError, match=words or r"could not be loaded|describes a model of") as caught:
        load_model(f"local-dir:{small}")
    assert str(small) in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 90_000, "{", "\0", "\xff", "3"])
def test_configurations_that_are_none_are_named(text: str, small: Path) -> None:
    (small / "open_clip_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=r"open_clip_config\.json"):
        load_model(f"local-dir:{small}")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ("vision_config.hidden_size", HUGE), ("vision_config.num_attention_heads", 0), ("text_config", "abc"), ("vision_config", [1]),
        ("text_config.hidden_size", "x"), ("vision_config.image_size", HUGE), ("projection_dim", -1),
        ("vision_config.num_hidden_layers", HUGE),
        ("text_config.hidden_act", ["gelu"]), ("text_config.max_position_embeddings", HUGE),
    ],
)  # fmt: skip
def test_absurd_configurations_of_the_transformers_library_are_refused(keys: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(readers.TRANSFORMERS))
    (tmp_path / "preprocessor_config.json").write_text('{"size": 8, "crop_size": 8}')
    save_file({"logit_scale": torch.zeros(())}, tmp_path / "model.safetensors")
    changed(tmp_path, "config.json", keys, value)
    with pytest.raises(ModelError, match=r"config\.json"):
        hf_clip.read(tmp_path)


def test_the_code_of_a_tokenizer_is_not_run(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ran"
    changed(small, "open_clip_config.json", "model_cfg.text_cfg.hf_tokenizer_name", "mine")
    (small / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil:\n    pass\n")
    (small / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    (small / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}))
    with pytest.raises(ModelError, match="reads text by the tokenizer"):
        load_model(f"local-dir:{small}")
    assert not marker.exists()
    asked: list[object] = []
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **given: asked.append(given["trust_remote_code"]))
    load_model(f"local-dir:{small}")
    assert asked == [False], "without it the library asks at the terminal whether the code may run"


@pytest.mark.parametrize("shape", [[2**62, 2**62], [10**9, 10**9], [2**31], [-1], [10**30]], ids=str)
def test_absurd_shapes_in_a_safetensors_header_are_refused(shape: list[int], small: Path) -> None:
    for name in ("open_clip_model.safetensors", "head.safetensors"):
        good = (small / name).read_bytes()
        size = int.from_bytes(good[:8], "little")
        header = json.loads(good[8 : 8 + size])
        next(value for key, value in header.items() if key != "__metadata__")["shape"] = shape
        packed = json.dumps(header).encode()
        (small / name).write_bytes(len(packed).to_bytes(8, "little") + packed + good[8 + size :])
        with pytest.raises(SurefootError, match=str(small)):
            bundle.load_bundle(small, device="cpu")
        (small / name).write_bytes(good)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_names", "cat"), ("class_names", ["cat", 3]), ("class_names", ["\ud800", "dog"]), ("class_names", []),
        ("templates", ["no place"]),
        ("predict", "evil"), ("alpha", "1"), ("origin", []), ("base", None), ("unknown", 1), ("method", {"a": [[[]]]}),
        ("origin", {"settings": "x"}), ("origin", {"seed": "0"}),
    ],
)  # fmt: skip
def test_a_card_that_is_none_is_refused(key: str, value: object, small: Path) -> None:
    changed(small, "surefoot.json", key, value)
    with pytest.raises(DataError, match=str(small)):
        bundle.load_bundle(small, device="cpu")


def test_a_head_of_another_form_is_refused(small: Path) -> None:
    for head in ({"weight": torch.zeros(2)}, {"weight": torch.zeros(2, 8)}, {"weight": torch.zeros(2, 8), "bias": torch.zeros(3)}, {}):
        save_file(head or {"other": torch.zeros(1)}, small / "head.safetensors")
        with pytest.raises(DataError, match="has no row for each"):
            bundle.load_bundle(small, device="cpu")


# --- archives and arrays ---
def test_sparse_and_absurdly_large_members_of_a_tar_are_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.jpg")
    member.size = 2**50
    (tmp_path / "huge.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match=r"huge\.tar is broken: it ends in the middle of a\.jpg"):
        index([tmp_path / "huge.tar"])
    sparse = bytearray(tarfile.TarInfo("b.jpg").tobuf(tarfile.GNU_FORMAT))
    sparse[156:157] = b"S"
    sparse[483:495] = b"77777777777\0"  # the size that it claims to have
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    (tmp_path / "sparse.tar").write_bytes(bytes(sparse) + bytes(1024))
    with pytest.raises(DataError, match=r"sparse\.tar.*b\.jpg is a sparse file"):
        index([tmp_path / "sparse.tar"])


def npz(path: Path, **parts: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    content = file.getvalue()
    if shape is None:
        return content
    claimed = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(claimed).to_bytes(2, "little") + claimed + array.tobytes()


def test_arrays_are_never_unpickled_and_not_larger_than_their_file(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = np.empty(1, dtype=object)
    evil[0] = Payload(marker)
    for content in (
        npy(evil),
        npy(np.zeros(4), (10**13,)),
        npy(np.zeros(4), (2**62, 2**62)),
        b"\x93NUMPY\x09\x00",
        b"",
        npy(np.zeros(4))[:-9],
    ):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises((ValueError, EOFError)):
            load_array(tmp_path / "a.npy")
        with pytest.raises((ValueError, EOFError)):
            load_arrays(npz(tmp_path / "a.npz", names=content))
    with pytest.raises(ValueError, match="unpacks to 1000128 bytes"):
        load_arrays(npz(tmp_path / "bomb.npz", names=npy(np.zeros(125_000))), most=10**6)
    assert not marker.exists()
    assert load_arrays(npz(tmp_path / "good.npz", names=npy(np.arange(3)), other=npy(evil)), ["names"])["names"].tolist() == [0, 1, 2]


def test_answers_lie_beside_their_records_and_are_answers(tmp_path: Path) -> None:
    label, one = np.arange(3, dtype=np.int32), np.ones(3, dtype=np.float32)
    folder = tmp_path / "run"
    name = answers.save_answers(folder, "a", {"test": answers.Answers(label, label, one)})
    assert answers.load_answers(folder, name)["test"].correct.all()
    shutil.copy(folder / name, tmp_path / "outside.npz")
    (folder / "link.npz").symlink_to(tmp_path / "outside.npz")
    for outside in ("../outside.npz", str(tmp_path / "outside.npz"), "link.npz"):
        with pytest.raises(DataError, match=r"does not hold the answers .*outside of"):
            answers.load_answers(folder, outside)
    for damaged in (answers.Answers(label, label[:2], one), answers.Answers(one, label, one), answers.Answers(label, label - 1, one)):  # type: ignore[arg-type]
        with pytest.raises(DataError, match="does not hold the answers"):
            answers.load_answers(folder, answers.save_answers(folder, "b", {"test": damaged}))
    os.mkfifo(folder / "fifo.npz")
    with pytest.raises(DataError, match="no regular file"):
        answers.load_answers(folder, "fifo.npz")


def test_hdf5_files_that_lead_elsewhere_or_claim_too_much_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros((3, 2), np.uint8)
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        file["linked"] = h5py.ExternalLink("other.h5", "x")
        file.create_dataset("raw", (100,), np.uint8, external=[(str(tmp_path / "other.h5"), 0, 100)])
        file.create_dataset("empty", (10**9, 96, 96, 3), np.uint8, chunks=(1, 96, 96, 3))
        layout = h5py.VirtualLayout((3, 2), np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (3, 2))
        file.create_virtual_dataset("virtual", layout)
        file["good"] = np.arange(10)
    for key, words in (("linked", "another file"), ("raw", "another file"), ("virtual", "another file"), ("empty", "claims")):
        with pytest.raises(DataError, match=rf"evil\.h5 cannot be read.*{words}"):
            Stored.open(tmp_path / "evil.h5", key)
    assert Stored.open(tmp_path / "evil.h5", "good").shape == (10,)


def test_matlab_files_do_not_unpack_to_more_than_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    savemat(tmp_path / "labels.mat", {"labels": np.zeros(300_000)}, do_compression=True)
    assert len(_mat(tmp_path / "labels.mat", "labels")[0]) == 300_000
    monkeypatch.setattr("surefoot.guard.arrays.MOST_MAT", 10**6)
    with pytest.raises(DataError, match=r"labels\.mat cannot be read .*unpacks to more than 1000000 bytes"):
        _mat(tmp_path / "labels.mat", "labels")


# --- images ---
def test_the_limit_of_pixels_is_told_and_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    content = b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in (
            (b"IHDR", (60_000).to_bytes(4, "big") * 2 + b"\x01\0\0\0\0"), (b"IDAT", zlib.compress(bytes(7501) * 300)), (b"IEND", b""),
        )
    )  # fmt: skip
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(DataError, match=r"bomb\.png is too large to be read .*SUREFOOT_MAX_PIXELS"):
        read_image(path)
    assert "is too large to be read" in json.loads(_look_at(path))["error"]
    with monkeypatch.context() as other, pytest.raises(DataError, match=r"3600000000 pixels, and 178956970 are allowed"):
        other.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as a package may set it that is loaded beside
        read_image(path)
    Image.new("L", (50, 40)).save(path)
    before = Image.MAX_IMAGE_PIXELS
    monkeypatch.setenv("SUREFOOT_MAX_PIXELS", "1500")
    with pytest.raises(DataError, match="is too large to be read"):
        read_image(path)
    monkeypatch.setenv("SUREFOOT_MAX_PIXELS", "2k")
    assert read_image(path).size == (50, 40)
    assert before == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="is too large"):
        monkeypatch.delenv("SUREFOOT_MAX_PIXELS")
        read_image(path)
    monkeypatch.setenv("SUREFOOT_MAX_PIXELS", "many")
    with pytest.raises(SettingError, match=r"SUREFOOT_MAX_PIXELS is 'many'"):
        read_image(path)
    assert reading._quiet._readers == 0, "nobody reads any more, so that the next one sets warnings and limits again"


def test_only_declared_formats_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("another program is started"))
    (tmp_path / "evil.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n%%EOF\n")
    for form in ("PCX", "ICO", "TGA", "SGI", "JPEG2000"):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{form}.jpg", form)
    for path in tmp_path.iterdir():
        with pytest.raises(DataError, match=rf"{path.name} cannot be read as an image \(no image format that is known\)"):
            read_image(path)


def test_text_chunks_that_unpack_to_megabytes_are_refused(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("Comment", "a" * 50_000_000, zip=True)
    Image.new("L", (4, 4)).save(tmp_path / "bomb.png", pnginfo=info)
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(DataError, match=r"bomb\.png cannot be read as an image .*too large"):
        read_image(tmp_path / "bomb.png")


def test_of_thousands_of_frames_the_first_is_read(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), number % 256) for number in range(2000)]
    for name, options in (("a.gif", {}), ("a.tif", {}), ("a.webp", {"lossless": True, "method": 0})):
        frames[0].convert("RGB" if name == "a.webp" else "L").save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        begin = time.monotonic()
        assert json.loads(_look_at(tmp_path / name))["animated"]
        assert read_image(tmp_path / name).getpixel((0, 0)) == (0, 0, 0)
        assert time.monotonic() - begin < 5


def test_what_is_no_file_makes_nobody_wait(images: Path, tmp_path: Path) -> None:
    os.mkfifo(images / "train" / "a" / "fifo.png")
    (images / "train" / "a" / "zero.png").symlink_to("/dev/zero")
    assert len(load(images).split("train")) == 6
    with pytest.raises(DataError, match=r"fifo\.png is no regular file"):
        read_image(images / "train" / "a" / "fifo.png")
    assert "is no regular file" in json.loads(_look_at(images / "train" / "a" / "fifo.png"))["error"]
    os.mkfifo(tmp_path / "picture.png")
    assert data_uri(tmp_path, "picture.png") is None
    assert data_uri(tmp_path, "a\0.png") is None
    os.mkfifo(tmp_path / ".run.lock")
    assert holder(tmp_path, "run") is None
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(MissingDataError, match=r"list\.csv"):
        load(tmp_path / "list.csv")


def test_large_pictures_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LARGE", 99)
    inside: list[int] = []
    most: list[int] = []

    def slowly(image: Image.Image, path: Path) -> Image.Image:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return image

    monkeypatch.setattr(reading, "_rgb", slowly)
    for number in range(4):
        Image.new("L", (10, 10)).save(tmp_path / f"{number}.png")
    read = reading.Images(sorted(tmp_path.iterdir()), lambda image: torch.zeros(1), workers=4)
    assert len(read.batch(range(4))) == 4
    assert max(most) == 1
    monkeypatch.setattr(reading, "LARGE", 100)
    most.clear()
    read = reading.Images(sorted(tmp_path.iterdir()), lambda image: torch.zeros(1), workers=4)
    assert len(read.batch(range(4))) == 4
    assert max(most) > 1


# --- places ---
def test_links_out_of_a_folder_are_refused_unless_they_are_allowed(images: Path) -> None:
    (images / "test" / "a" / "inner.png").symlink_to(images / "train" / "a" / "0.png")
    load(images)
    link = images / "train" / "b" / "link.png"
    link.symlink_to(images.parent / "private" / "secret.png")
    with pytest.raises(DataError, match=r"leads to 1 file outside of .*link\.png -> .*secret\.png.*--allow-outside"):
        load(images)
    assert link in load(images, allow_outside=True).split("train").paths
    link.unlink()
    shutil.move(images / "train" / "b", images.parent / "private" / "b")
    (images / "train" / "b").symlink_to(images.parent / "private" / "b")
    with pytest.raises(DataError, match="leads to 3 files outside of"):
        load(images)


@pytest.mark.parametrize(
    "path", ["../private/secret.png", "{private}/secret.png", "train/../../private/secret.png", "link.png", "out/secret.png"]
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_manifest_reaches_no_image_outside_its_folder(path: str, suffix: str, images: Path, tmp_path: Path) -> None:
    (images / "link.png").symlink_to(tmp_path / "private" / "secret.png")
    (images / "out").symlink_to(tmp_path / "private")
    rows = [{"path": f"train/{c}/{n}.png", "class": c} for c in "ab" for n in range(3)]
    rows.append({"path": path.format(private=tmp_path / "private"), "class": "a"})
    table = "path,class\n" + "".join(f"{row['path']},{row['class']}\n" for row in rows)
    (images / f"list.{suffix}").write_text(table if suffix == "csv" else "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=rf"list\.{suffix} leads to 1 file outside of .*--allow-outside"):
        load(images / f"list.{suffix}")
    found = load(images / f"list.{suffix}", allow_outside=True)
    assert sum(len(split) for split in found.splits.values()) == 7


def test_a_pool_reaches_no_image_outside_its_folder(tmp_path: Path, images: Path) -> None:
    (images / "manifest.csv").write_text("path,caption\ntrain/a/0.png,a\n../private/secret.png,b\n")
    with pytest.raises(DataError, match=r"manifest\.csv leads to 1 file outside of"):
        open_pool(str(images))
    assert len(open_pool(str(images), allow_outside=True)) == 2


def test_pairs_are_not_links_to_elsewhere(tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "anchors"
    (folder / pairs.IMAGES).mkdir(parents=True)
    (folder / pairs.IMAGES / "x.png").symlink_to(tmp_path / "private" / "secret.png")
    (folder / pairs.TEXTS).write_text("name,text\nx,a text\n")
    (folder / pairs.FILE).write_text("{}\n")
    with pytest.raises(DataError, match="leads to 1 file outside of"):
        pairs.read_pairs(folder)


def test_a_list_of_shards_reaches_none_outside_its_folder(tmp_path: Path) -> None:
    for place in ("data/train", "private"):
        (tmp_path / place).mkdir(parents=True)
        with tarfile.open(tmp_path / place / "0.tar", "w") as tar:
            for number in range(4):
                file = io.BytesIO()
                Image.effect_noise((9, 9), 10 + number).save(file, "PNG")
                for name, content in ((f"{number}.png", file.getvalue()), (f"{number}.cls", b"%d" % (number % 2))):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    data = tmp_path / "data"
    (data / "classnames.txt").write_text("cat\ndog\n")
    (data / "train" / "shards.txt").write_text("0.tar\n../../private/1.tar\n")
    shutil.move(tmp_path / "private" / "0.tar", tmp_path / "private" / "1.tar")
    with pytest.raises(DataError, match=r"train leads to 1 file outside of .*1\.tar.*--allow-outside"):
        load(data)
    assert sum(len(split) for split in load(data, allow_outside=True).splits.values()) == 8
    (data / "train" / "shards.txt").unlink()
    (data / "train" / "1.tar").symlink_to(tmp_path / "private" / "1.tar")
    with pytest.raises(DataError, match=r"train leads to 1 file outside of .*1\.tar"):
        load(data)


# --- texts ---
def test_texts_are_of_a_bounded_size(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"train/{c}/{n}.png,{c}\n" for c in "ab" for n in range(3))
    (images / "list.csv").write_text("path,class\n" + rows)
    monkeypatch.setenv("SUREFOOT_MAX_TEXT", "100")
    with pytest.raises(DataError, match=r"list\.csv has 107 bytes; 100 are read at most.*SUREFOOT_MAX_TEXT=4GB"):
        load(images / "list.csv")
    monkeypatch.setenv("SUREFOOT_MAX_TEXT", "1KB")
    load(images / "list.csv")
    (images / "list.csv").write_text("path,class\n" + "a" * 200_000 + ",b\n")
    monkeypatch.delenv("SUREFOOT_MAX_TEXT")
    with pytest.raises(DataError, match=r"list\.csv, line \d is not valid CSV: field larger"):
        load(images / "list.csv")


@pytest.mark.parametrize("text", ["a\0b", "a\x1bb", "a\ud800", "a\nb", "\u009d"])
def test_letters_that_are_none_are_refused_in_a_manifest(text: str, images: Path) -> None:
    for column in ("path", "class", "split", "caption"):
        row = {"path": "train/a/0.png", "class": "a"} | {column: text + "x"}
        (images / "list.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(DataError, match=rf"line 1: {column} holds the character"):
            load(images / "list.jsonl")
    (images / "train" / "e\x1b]0;x\x07").mkdir()
    shutil.copy(images / "train" / "a" / "0.png", images / "train" / "e\x1b]0;x\x07")
    with pytest.raises(DataError, match="control characters"):
        load(images)


def test_what_steers_a_terminal_is_shown_as_a_mark() -> None:
    assert plain("\x1b]52;c;aGk=\x07 \u009b31m\r[bold]\tx\ny") == "\ufffd]52;c;aGk=\ufffd \ufffd31m\ufffd\\[bold]\tx\ny"


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 50_000, "x = " + "[" * 70 + "]" * 70, ".".join("a" * 20_000) + " = 1", "[" + ".".join(["'a'"] * 20_000) + "]",
        "x = " + "9" * 10_000, "x = " + "{a = " * 5000, "a = 1\0", "name = \ud800",
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_toml_without_end_is_refused_at_once(text: str, tmp_path: Path) -> None:
    path, begin = tmp_path / "dataset.toml", time.monotonic()
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=r"dataset\.toml"):
        read_config(path)
    with pytest.raises(SettingError, match=r"dataset\.toml"):
        config.read_recipe(str(path))
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "entry",
    [
        "steps = 1e308", f"steps = {10**30}", "batch_size = -1", f"batch_size = {10**12}", "learning_rate = nan", "learning_rate = inf",
        f"learning_rate = {10**400}", "learning_rate = 1e300", "weight_decay = nan", "weight_decay = 1e300", f"epochs = {10**10}",
        "warmup_share = nan", "clip_norm = nan", "chunk_size = -5", "clip_norm = -inf",
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(entry: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(f"[training]\n{entry}\n")
    with pytest.raises(SettingError, match=entry.partition(" ")[0]):
        config.resolve(config.read_recipe(str(tmp_path / "recipe.toml")), {})
    (tmp_path / "recipe.toml").write_text(f"[training]\nsteps = {LONGEST}\n")
    config.resolve(config.read_recipe(str(tmp_path / "recipe.toml")), {})


# --- records and logs ---
@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": {"test": "0.5"}}, {"accuracy": [0.5]}, {"method": 3}, {"alpha": None}, {"seed": 1.5}, {"answers": {}},
        {"kind": "none"},
        {"kind": ["evaluation"]}, {"provenance": "x"}, {"seed": True}, {"accuracy": {"test": {"a": 1}}},
    ],
    ids=str,
)  # fmt: skip
def test_records_are_of_the_kind_that_they_say(change: dict[str, object], tmp_path: Path) -> None:
    good = records.Evaluation(
        method="flyp", seed=0, alpha=1, dataset="x", accuracy={"test": 0.5}, num_images={}, answers="a", settings={}, settings_hash="h"
    )
    records.append(tmp_path, good)
    assert list(records.read(tmp_path)) == [good]
    row = json.loads((tmp_path / records.FILE).read_text())
    with (tmp_path / records.FILE).open("a") as file:
        file.write(json.dumps({**row, **change}) + "\n")
    with pytest.raises(DataError, match=r"records\.jsonl, line 2 is not a record"):
        list(records.read(tmp_path))


def test_records_nested_without_end_are_named(tmp_path: Path) -> None:
    for text in ("[" * 90_000, '{"kind":' * 90_000, '{"a":' + "[" * 80 + "]" * 80 + "}"):
        (tmp_path / records.FILE).write_text(text + "\n")
        with pytest.raises(DataError, match=r"records\.jsonl, line 1 is not a record"):
            list(records.read(tmp_path))
        (tmp_path / "job.json").write_text(text)
        with pytest.raises(DataError, match=r"job\.json is damaged"):
            Job.of(tmp_path)


def test_a_log_shows_only_what_is_an_event(tmp_path: Path) -> None:
    good = {"time": "2025-01-01T00:00:00", "event": "step", "step": 1, "total": 2, "loss": 0.5, "seconds": 1.0, "method": "flyp", "seed": 0}
    bad: list[object] = [
        {**good, key: value} for key, value in (("loss", "x"), ("loss", float("nan")), ("time", "x"), ("seed", []), ("step", None))
    ]
    bad += [{**good, "method": {}}, {**good, "event": 3}, [], 3, {"time": "2025-01-01", "event": "epoch"}]
    lines = [json.dumps(row) for row in (*bad, good)] + ["[" * 90_000, "{"]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    assert events(tmp_path) == [good]


def test_every_architecture_of_open_clip_may_be_built() -> None:
    for name in open_clip.list_models():
        check_folder_config(name, {"model_cfg": (parts := open_clip.get_model_config(name))}, None)
        assert least_parameters(parts) >= 0, "whatever it says of its sizes"


@pytest.mark.parametrize("given", [[1], "abc", 7])
def test_a_third_tower_that_is_no_table_is_refused(given: object, tmp_path: Path) -> None:
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}, "multimodal_cfg": given}}
    with pytest.raises(ModelError, match="its multimodal_cfg is no table"):
        check_folder_config("open_clip_config.json", config, tmp_path / "never-read.safetensors")


def test_what_another_library_is_handed_may_call_its_own_sizes_alike() -> None:
    vision = {"timm_model_name": "a", "timm_model_kwargs": {"width": [64, 128], "deep": {"x": 1 << 40}}}
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {}}}
    with pytest.raises(ModelError, match=r"^c: a number for another library is 1099511627776, beyond 1048576"):
        check_folder_config("c", config, None)
    del vision["timm_model_kwargs"]["deep"]  # type: ignore[attr-defined]
    check_folder_config("c", config, None)


def test_an_image_with_an_absurd_side_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (SIDE, SIDE + 1):
        Image.new("L", (width, 1)).save(tmp_path / f"{width}.png")
    assert read_image(tmp_path / f"{SIDE}.png").size == (SIDE, 1)
    monkeypatch.setattr(PngImageFile, "load", lambda *_: pytest.fail("it is decoded"))
    with pytest.raises(DataError, match=rf"{SIDE + 1}\.png is {SIDE + 1} x 1 pixels, and a side has {SIDE} at most"):
        read_image(tmp_path / f"{SIDE + 1}.png")


# --- the corpus ---
def test_every_reader_reads_its_good_files(tmp_path: Path) -> None:
    for name, (seeds, read) in readers.READERS.items():
        for target, content in seeds().items():
            (place := tmp_path / name / target).mkdir(parents=True)
            if target == "config.json":
                continue  # it stands beside weights of no model
            read(target, content, place)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_fuzzing_found_stays_mended(path: Path, tmp_path: Path) -> None:
    with contextlib.suppress(SurefootError):
        readers.READERS[path.parent.name][1](path.name.partition("--")[2], path.read_bytes(), tmp_path)


def test_damaged_copies_are_drawn_by_the_seed() -> None:
    for seeds, _ in readers.READERS.values():
        for name, content in seeds().items():
            first, second = ([mutated(draw, name, content, [content]) for _ in range(30)] for draw in (random.Random(3), random.Random(3)))
            assert first == second
            assert len({*first} - {content}) > 20
