"""Checkpoints of other code: what is in them is found without running any of it, and what would run is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import released
import torch
from conftest import draw, typed
from torch import nn
from torch.nn import functional as F

from surefoot.bundle import load_bundle
from surefoot.errors import DataError, MissingDataError, ModelError, SettingError, SurefootError
from surefoot.foreign import archive, convert
from surefoot.foreign.pickles import Global, Inert, Machine
from surefoot.model import load_model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def flyp_file(files: Path) -> Path:
    return released.save(files / "flyp.pt", released.flyp())


@pytest.fixture(scope="module")
def wise_ft_file(files: Path) -> Path:
    return released.save(files / "wise_ft.pt", released.wise_ft())


@pytest.fixture(scope="module")
def base(flyp_file: Path, files: Path) -> str:
    """A pre-trained model of the same architecture, as a name."""
    return f"local-dir:{convert(flyp_file, files / 'base').folder}"


def test_the_classes_of_the_file_are_not_here(flyp_file: Path) -> None:
    assert not {"src.models.modeling", "clip.model"} & sys.modules.keys()
    with pytest.raises(ModuleNotFoundError):
        torch.load(flyp_file, weights_only=False)


def test_flyps_checkpoint_becomes_a_model_that_computes_the_same(flyp_file: Path, tmp_path: Path) -> None:
    made = convert(flyp_file, tmp_path / "out")
    model, expected = load_model(f"local-dir:{made.folder}"), released.flyp().model
    weights = model.weights()
    state = {name: tensor for name, tensor in expected.state_dict().items() if name != "attn_mask"}
    assert weights.keys() == state.keys() and all(torch.equal(weights[name], state[name]) for name in state)
    config = json.loads((made.folder / "open_clip_config.json").read_text())
    assert config["model_cfg"]["quick_gelu"] is True
    assert config["model_cfg"]["vision_cfg"] == {
        "image_size": 32, "patch_size": 16, "head_width": 32, "width": 128, "layers": 3, "mlp_ratio": 4.0,
    }  # fmt: skip
    assert config["model_cfg"]["text_cfg"] == {
        "context_length": 77, "vocab_size": 49408, "heads": 2, "width": 16, "layers": 2, "mlp_ratio": 4.0,
    }  # fmt: skip
    # the image tower, by hand
    image = model.preprocess(draw("disc", 1, "red"))[None]
    with torch.no_grad():
        found = model.encode_image(image)
        visual = expected.visual
        x = visual.conv1(image).flatten(2).transpose(1, 2)
        x = visual.ln_pre(torch.cat([visual.class_embedding.expand(1, 1, -1), x], 1) + visual.positional_embedding)
        for block in visual.transformer.resblocks:
            y = block.ln_1(x).transpose(0, 1)
            x = x + block.attn(y, y, y, need_weights=False)[0].transpose(0, 1)
            x = x + block.mlp(block.ln_2(x))
        torch.testing.assert_close(found, F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1), atol=1e-5, rtol=0)


def test_preprocessing_is_that_of_the_transforms_in_the_file(flyp_file: Path, tmp_path: Path) -> None:
    model = load_model(f"local-dir:{convert(flyp_file, tmp_path / 'out').folder}")
    picture = draw("bar", 3, "green").resize((70, 44))
    assert torch.equal(model.preprocess(picture), released.preprocess()(picture))


def test_plain_gelu_is_told_from_quick_gelu(tmp_path: Path) -> None:
    made = convert(released.save(tmp_path / "a.pt", released.flyp(nn.GELU)), tmp_path / "out")
    assert json.loads((made.folder / "open_clip_config.json").read_text())["model_cfg"]["quick_gelu"] is False


def test_wise_fts_text_tower_comes_from_its_base_and_its_head_answers(wise_ft_file: Path, base: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no text transformer.*--base"):
        convert(wise_ft_file, tmp_path / "out")
    made = convert(wise_ft_file, tmp_path / "out", base=base, names=["bar", "box", "disc"])
    assert made.is_classifier and "holds no text transformer" in made.notes[0]
    bundle, expected, pretrained = load_bundle(made.folder, device="cpu"), released.wise_ft(), load_model(base).weights()
    own = expected.image_encoder.model.state_dict()
    for name, tensor in bundle.model.weights().items():
        assert torch.equal(tensor, pretrained[name] if name.startswith("transformer.") else own[name]), name
    assert not torch.equal(own["visual.proj"], pretrained["visual.proj"])
    image = bundle.model.preprocess(draw("disc", 1, "red"))[None]
    with torch.no_grad():
        logits = expected.classification_head(bundle.model.encode_image(image))
    torch.testing.assert_close(bundle.classifier()(image), logits.softmax(1))
    assert (bundle.card.predict, bundle.card.class_names) == ("head", ["bar", "box", "disc"])


def test_a_checkpoint_without_a_head_answers_by_its_text_tower(flyp_file: Path, base: str, tmp_path: Path) -> None:
    made = convert(flyp_file, tmp_path / "out", base=base, names=["bar", "box"], templates=["a {}.", "the {}"])
    bundle = load_bundle(made.folder, device="cpu")
    with torch.inference_mode():
        texts = bundle.model.encode_text(bundle.model.tokenize(["a bar.", "the bar", "a box.", "the box"]))
        weight = torch.stack([F.normalize(texts[:2].mean(0), dim=0), F.normalize(texts[2:].mean(0), dim=0)])
        torch.testing.assert_close(bundle.head["weight"], bundle.model.scale * weight)
    assert bundle.card.predict == "text"


def test_a_head_without_names_is_left_out_and_told_of(wise_ft_file: Path, base: str, tmp_path: Path) -> None:
    made = convert(wise_ft_file, tmp_path / "out", base=base)
    assert not made.is_classifier and any("head of 3 classes was left out" in note for note in made.notes)
    assert sorted(path.name for path in made.folder.iterdir()) == ["open_clip_config.json", "open_clip_model.safetensors"]


def test_heads_that_do_not_fit_are_refused(wise_ft_file: Path, base: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"names 2 classes, the head .* has 3"):
        convert(wise_ft_file, tmp_path / "out", base=base, names=["a", "b"])
    loose = released.save(tmp_path / "loose.pt", released.wise_ft(normalize=False))
    with pytest.raises(DataError, match="normalize=False"):
        convert(loose, tmp_path / "out", base=base, names=["a", "b", "c"])
    with pytest.raises(SettingError, match="names the model that it came from"):
        convert(wise_ft_file, tmp_path / "out", names=["a", "b", "c"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "module", "half", "data parallel"])
def test_state_dicts_and_wrappers_hold_the_same_model(wrap: str, base: str, tmp_path: Path) -> None:
    encoder = released.flyp()
    state = {k: v for k, v in encoder.model.state_dict().items() if k != "attn_mask"}
    content: object = {
        "plain": state, "state_dict": {"epoch": 3, "state_dict": state}, "module": {f"module.model.{k}": v for k, v in state.items()},
        "half": {k: v.half() for k, v in state.items()}, "data parallel": nn.DataParallel(encoder),
    }[wrap]  # fmt: skip
    file = released.save(tmp_path / "a.pt", content)
    weights = load_model(f"local-dir:{convert(file, tmp_path / 'out', base=base).folder}").weights()
    for name, tensor in state.items():
        assert torch.equal(weights[name], tensor.half().float() if wrap == "half" else tensor)


def test_weights_alone_ask_for_what_they_do_not_say(tmp_path: Path) -> None:
    file = released.save(tmp_path / "a.pt", released.flyp().model.state_dict())
    with pytest.raises(SettingError, match=r"neither the activation.*--arch ViT-B-32@openai.*--base"):
        convert(file, tmp_path / "out")
    with pytest.raises(SettingError, match=r"ViT-B-32@TAG"):
        convert(file, tmp_path / "out", arch="ViT-B-32")
    with pytest.raises(SettingError, match="both given"):
        convert(file, tmp_path / "out", arch="ViT-B-32@openai", base="iconclip")


def test_a_named_architecture_takes_only_its_own_shapes(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny architecture stands under a name of open_clip's zoo; weights of another grid, which open_clip would resize, are refused."""
    config = json.loads((Path(base.removeprefix("local-dir:")) / "open_clip_config.json").read_text())
    open_clip.factory._MODEL_CONFIGS["tiny-vit"] = config["model_cfg"]
    table = open_clip.pretrained._PRETRAINED
    monkeypatch.setitem(table, "tiny-vit", {"openai": open_clip.get_pretrained_cfg("ViT-B-32", "openai")})
    try:
        state = released.flyp().model.state_dict()
        made = convert(released.save(tmp_path / "a.pt", state), tmp_path / "out", arch="tiny-vit@openai")
        model = load_model(f"local-dir:{made.folder}")
        assert all(torch.equal(model.weights()[name], state[name]) for name in model.weights())
        assert model.config()["model_cfg"]["quick_gelu"] is True and model.config()["preprocess_cfg"]["mean"][0] == 0.48145466
        state["visual.positional_embedding"] = torch.randn(17, released.WIDTH)
        with pytest.raises(ModelError, match=r"visual\.positional_embedding|does not hold the weights of tiny-vit"):
            convert(released.save(tmp_path / "c.pt", state), tmp_path / "other", arch="tiny-vit@openai")
        del state["visual.positional_embedding"]
        with pytest.raises(ModelError, match="does not hold the weights of tiny-vit"):
            convert(released.save(tmp_path / "d.pt", state), tmp_path / "other", arch="tiny-vit@openai")
        assert not (tmp_path / "other").exists()
    finally:
        del open_clip.factory._MODEL_CONFIGS["tiny-vit"]


def test_what_contradicts_the_file_is_refused(base: str, tmp_path: Path) -> None:
    gelu = released.save(tmp_path / "gelu.pt", released.flyp(nn.GELU))
    with pytest.raises(SettingError, match=r"was trained with GELU, .* has QuickGELU"):
        convert(gelu, tmp_path / "out", base=base)
    folder = Path(shutil.copytree(base.removeprefix("local-dir:"), tmp_path / "base"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(SettingError, match="prepares images with the mean"):
        convert(released.save(tmp_path / "a.pt", released.flyp()), tmp_path / "out", base=f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k.startswith("visual.")} | {"extra.weight": torch.zeros(2)}, "do not belong|extra"),
        (lambda s: {k: v for k, v in s.items() if "visual" not in k}, "no image tower"),
        (lambda s: {**{f"a.{k}": v for k, v in s.items()}, **{f"b.{k}": v for k, v in s.items()}}, "several image towers .under a., b.."),
        (lambda s: s | {"visual.proj": torch.zeros(2, 2)}, "do not belong"),
        (lambda s: {k: v for k, v in s.items() if k != "visual.proj"}, "visual.proj"),
        (lambda s: {k: v for k, v in s.items() if "resblocks.1.mlp" not in k}, "resblocks.1.mlp"),
        (lambda _: [1, 2], "no model"),
        (lambda _: {"optimizer": {"lr": 1}}, "no model"),
    ],
)
def test_what_is_no_such_model_is_refused(change: Callable[[dict[str, Any]], object], message: str, base: str, tmp_path: Path) -> None:
    state = {k: v for k, v in released.flyp().model.state_dict().items() if k != "attn_mask"}
    with pytest.raises(SurefootError, match=message):
        convert(released.save(tmp_path / "a.pt", change(state)), tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()


class Attack:
    """An object whose unpickling calls something."""

    def __init__(self, call: Callable[..., object], *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.args


def attacks(marker: Path) -> dict[str, object]:
    code = f"open({str(marker)!r}, 'w').close()"
    state = released.flyp().model.state_dict()
    named = torch.nn.Linear(2, 2)
    named.hook = Attack(os.system, f"touch {marker}")
    return {
        "os.system": Attack(os.system, f"touch {marker}"),
        "eval": Attack(eval, f"__import__('os').system('touch {marker}')"),
        "exec": Attack(exec, code),
        "open": Attack(open, str(marker), "w"),
        "nested in a state dict": state | {"x": Attack(exec, code)},
        "nested deep": {"state_dict": state, "args": [({"a": (Attack(os.system, f"touch {marker}"),)},)]},
        "an attribute of a module": named,
        "as a key": {(1, Attack(os.system, f"touch {marker}")): 1},
        "getattr": Attack(getattr, "x", "upper"),
        "import": Attack(__import__, "os"),
        "a function of torch": Attack(torch.hub.load_state_dict_from_url, f"file://{marker}"),
        "partial": Attack(__import__("functools").partial, os.system, f"touch {marker}"),
    }


@pytest.mark.parametrize("name", list(attacks(Path("x"))))
def test_what_would_run_is_refused_and_does_not(name: str, tmp_path: Path) -> None:
    marker, file = tmp_path / "marker", tmp_path / "a.pt"
    torch.save(attacks(marker)[name], file)
    with pytest.raises(DataError, match=r"a\.pt: .*(wants|names) '.*nothing in it was run"):
        convert(file, tmp_path / "out", base="iconclip")
    assert not marker.exists() and not (tmp_path / "out").exists()
    if name in ("os.system", "exec", "nested deep"):  # the attack is one
        torch.load(file, weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_attacks_of_every_protocol_are_refused(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    data = pickle.dumps([1, Attack(os.system, f"touch {marker}")], protocol)
    with pytest.raises(DataError, match=r"names|uses"):
        Machine({}, lambda _: None).load(data)
    (tmp_path / "bare.pt").write_bytes(data)
    with pytest.raises(DataError, match="bare pickle" if protocol > 1 else "no file of torch.save"):
        archive.load(tmp_path / "bare.pt")
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'touch marker'\ntR.",
        b"(S'touch marker'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch marker'\no.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x01x\x85R.",
        b"\x80\x02\x82\x01.",
        b"csrc.models\nA\n)Rcos\nsystem\n.",
        b"csrc.models\nrun\n(S'x'\ntR.",
        b"ccollections\nOrderedDict\n(N}S'__class__'\nNstb.",
        b"\x80\x02]q\x00}b.",
        b"Pid\n.",
    ],
    ids=["reduce", "inst", "obj", "eval", "stack global", "extension", "unknown call", "unknown function",
         "state of a class", "state of a list", "id"],
)  # fmt: skip
def test_every_way_to_call_something_is_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        Machine({}, lambda _: None).load(data)


@pytest.mark.parametrize("named", [os.system, eval, getattr, __import__], ids=lambda one: one.__name__)
def test_what_belongs_into_no_model_may_not_even_be_named(named: Callable[..., object]) -> None:
    for protocol in range(6):
        with pytest.raises(DataError, match=f"names '.*{named.__name__}'"):
            Machine({}, lambda _: None).load(pickle.dumps({"x": named}, protocol))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_what_the_unpickler_makes_of_them(protocol: int) -> None:
    from collections import OrderedDict, defaultdict

    shared = [1, 2]
    value = {
        "a": shared, "b": (shared, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), "c": {1, 2}, "d": frozenset([3]), "e": b"\x00\xff",
        "f": None, "g": [True, False, 1 << 70, -1, 300, 70000, 0.5, "é"], "h": OrderedDict(x=1, y=[2]), "i": slice(1, 2, 3),
        "j": {}, "k": [], "l": set(),
    }  # fmt: skip
    found = Machine({}, lambda _: None).load(pickle.dumps(value, protocol))
    assert found == value and found["a"] is found["b"][0]
    assert Machine({}, lambda _: None).load(pickle.dumps(defaultdict(list, x=[1]), protocol)) == {"x": [1]}


def test_objects_of_unknown_classes_hold_their_state_and_do_nothing(flyp_file: Path) -> None:
    found = archive.load(flyp_file)
    assert isinstance(found, Inert) and found.kind == Global("src.models.modeling", "CLIPEncoder")
    assert found.get("cache_dir") == "/somewhere" and isinstance(found.get("_modules")["model"], Inert)


def rewritten(
    file: Path, to: Path, change: Callable[[str, bytes], tuple[str, bytes] | None], *more: tuple[str, bytes], compress: bool = False
) -> Path:
    """The same archive, with other parts."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            if part := change(name, old.read(name)):
                new.writestr(*part)
        for part in more:
            new.writestr(*part)
    return to


def test_other_files_are_refused_and_told_why(flyp_file: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="There is no file"):
        archive.load(tmp_path / "none.pt")
    (tmp_path / "a.pt").write_bytes(b"hello")
    old = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, old, _use_new_zipfile_serialization=False)
    (tmp_path / "old.pt").write_bytes(old.getvalue())
    root = zipfile.ZipFile(flyp_file).namelist()[0].split("/")[0]
    jit = rewritten(
        flyp_file, tmp_path / "jit.pt", lambda n, d: (n, d), (f"{root}/code/__torch__.py", b"class A"), (f"{root}/constants.pkl", b"")
    )
    packed = rewritten(flyp_file, tmp_path / "packed.pt", lambda n, d: (n, d), compress=True)
    big = rewritten(flyp_file, tmp_path / "big.pt", lambda n, d: (n, b"big" if n.endswith("byteorder") else d))
    cut = rewritten(flyp_file, tmp_path / "cut.pt", lambda n, d: (n, d[: len(d) // 2] if n.endswith("data.pkl") else d))
    short = rewritten(flyp_file, tmp_path / "short.pt", lambda n, d: (n, d[:8] if "/data/" in n else d))
    lost = rewritten(flyp_file, tmp_path / "lost.pt", lambda n, d: None if n.endswith("/data/0") else (n, d))
    no_pickle = rewritten(flyp_file, tmp_path / "no.pt", lambda n, d: None if n.endswith("data.pkl") else (n, d))
    for file, message in (
        (tmp_path / "a.pt", "no file of torch.save"), (tmp_path / "old.pt", "before version 1.6"), (jit, "TorchScript.*ViT-B-32:openai"),
        (packed, "compressed"), (big, "big-endian"), (cut, "has no end|damaged"), (short, "fewer numbers"), (lost, "damaged"),
        (no_pickle, "none of torch.save"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            archive.load(file)


def test_tensors_that_would_need_more_memory_than_the_file_are_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1).expand(1 << 40)}, tmp_path / "a.pt")
    with pytest.raises(DataError, match="fewer numbers"):
        archive.load(tmp_path / "a.pt")


def test_views_of_one_storage_are_what_torch_saved(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    parts = {
        "a": whole[2:8].reshape(2, 3).T,
        "b": whole[3:4].squeeze(),
        "c": torch.zeros(0, 4),
        "d": torch.arange(5).short(),
        "e": whole.bfloat16(),
    }
    torch.save(parts, tmp_path / "a.pt")
    found = archive.load(tmp_path / "a.pt")
    assert found.keys() == parts.keys()
    for name, tensor in parts.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_the_command_imports(
    wise_ft_file: Path, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("bar\nbox\ndisc\n")
    given = ("import", wise_ft_file, "--base", base, "--classes", tmp_path / "names.txt", "--out", tmp_path / "out")
    code, said = typed(monkeypatch, capsys, *given)
    assert code == 0 and "holds no text transformer" in said and "surefoot predict" in said
    code, said = typed(monkeypatch, capsys, *given)
    assert code == 2 and "--overwrite" in said
    (tmp_path / "names.txt").write_text("bar\n\ndisc\n")
    code, said = typed(monkeypatch, capsys, *given, "--overwrite")
    assert code == 2 and "empty line" in said
    code, said = typed(monkeypatch, capsys, "import", wise_ft_file, "--classes", "none.txt", "--out", tmp_path / "other")
    assert code == 2 and "there is no such file" in said
