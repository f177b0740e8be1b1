"""Checkpoints of WiSE-FT's and FLYP's releases, and plain state dicts, as model folders of our own.

Both releases save live objects, `torch.save(model)`, of classes in src/models/modeling.py:

    ImageClassifier (WiSE-FT)
    ├── image_encoder: ImageEncoder         train_preprocess and val_preprocess are torchvision's transforms
    │   └── model: CLIP                     of the package clip (QuickGELU), or open_clip; WiSE-FT deletes the text tower's `transformer`
    └── classification_head: ClassificationHead     a linear layer on features of length 1 if `normalize`; it knows no class names
    CLIPEncoder (FLYP)
    └── model: CLIP                         of the package clip, or open_clip, both towers

A DataParallel (`module`) may stand around either. The names below CLIP are open_clip's own. What a file lacks (WiSE-FT's text tower, which
is the pre-trained one) comes from the model that it was fine-tuned from.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from surefoot.bundle import CARD, HEAD, Card
from surefoot.errors import DataError, ModelError, SettingError
from surefoot.folders import check_apart, check_free, whole_folder
from surefoot.foreign import archive
from surefoot.foreign.modules import Found, find
from surefoot.guard.weights import CONFIG, WEIGHTS
from surefoot.heads import class_weight, prompt_embeddings
from surefoot.model import ImageTextModel, load_model
from surefoot.prompts import PromptTable

HEAD_NAMES = ("classification_head.weight", "classification_head.bias")
_NO_WEIGHTS = ("attn_mask", "input_resolution", "context_length", "vocab_size")
_FIRST = "transformer.resblocks.0.attn."


@dataclass(frozen=True)
class Imported:
    """What was written: its folder, whether it is a classifier, and sentences on what was found and decided."""

    folder: Path
    is_classifier: bool
    notes: Sequence[str]


def convert(
    path: Path,
    out: Path,
    *,
    arch: str | None = None,
    base: str | None = None,
    names: Sequence[str] | None = None,
    templates: Sequence[str] = ("a photo of a {}.",),
    overwrite: bool = False,
) -> Imported:
    """Write the model in a checkpoint of other code as a folder that `load_model` and open_clip open; nothing in the file is run.

    Args:
        path: what torch.save wrote.
        out: the folder; none of it is left if this fails.
        arch: ARCH@TAG, an open_clip architecture and the pretrained tag whose preprocessing and activation it has.
        base: the model that the file was fine-tuned from, which gives the same and what the file lacks.
        names: class names in the order of the head's rows, or those that prompts shall answer for; the folder is a classifier then.
        templates: prompts of these names.
        overwrite: let it take the place of a model folder that is there.

    Raises:
        DataError: a file that is not read, and why.
        SettingError: what must be given beside the file, or contradicts it.
        ModelError: weights that are not of the architecture.
    """
    check_apart(out, path, *(Path(name.partition(":")[2].partition("@")[0]) for name in (base,) if name and ":" in name))
    check_free(out, overwrite=overwrite)
    if arch and base:
        raise SettingError("--arch and --base were both given; the base has an architecture. Leave --arch out.")
    if names is not None and not (arch or base):
        raise SettingError("A classifier names the model that it came from. Give --base (such as ViT-B-32:openai) beside --classes.")
    found = _found(path)
    body, head = _split(path, found.state)
    with whole_folder(out, overwrite=overwrite) as folder:
        model, notes = _model(path, folder, found, body, arch, base)
        model.save(folder)
        if names is not None:
            card, rows = _classifier(path, model, head, found, names, templates, base or str(arch).replace("@", ":"))
            save_file(rows, folder / HEAD)
            (folder / CARD).write_text(json.dumps(asdict(card), indent=1) + "\n", encoding="utf-8")
        elif head:
            notes.append(f"Its head of {len(head[HEAD_NAMES[0]])} classes was left out: name the classes by --classes to keep it.")
    return Imported(out, names is not None, notes)


def _found(path: Path) -> Found:
    """The model in a file.

    Raises:
        DataError: a file that is not read, or no model in it.
    """
    content = archive.load(path)
    try:
        return find(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:  # objects that are not what their class has
        raise DataError(f"{path} holds a model whose parts are not what they should be ({error!r}). Copy it anew.") from error


def _split(path: Path, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The image-text model's weights, float32, under open_clip's names, and the head's.

    Raises:
        DataError: no image tower, several, or weights of something else.
    """
    prefixes = {name[: name.index("visual.")] for name in state if name.startswith("visual.") or ".visual." in name}
    if len(prefixes) != 1:
        held = "no image tower (visual.*)" if not prefixes else f"several image towers (under {', '.join(sorted(prefixes))})"
        raise DataError(f"{path} holds {held}; its weights are {', '.join(sorted(state)[:5])}, ... Give the checkpoint of one whole model.")
    (prefix,) = prefixes
    kept = {name: tensor for name, tensor in state.items() if name.split(".")[-1] not in _NO_WEIGHTS}
    body = {
        name.removeprefix(prefix): tensor.float() for name, tensor in kept.items() if name.startswith(prefix) and name not in HEAD_NAMES
    }
    head = {name: state[name].float() for name in HEAD_NAMES if name in state}
    if other := sorted(set(kept) - {prefix + name for name in body} - set(head)):
        raise DataError(f"{path} also holds {', '.join(other[:5])}, which is no part of a CLIP or its head. Save the model alone.")
    if bad := [name for name, tensor in {**body, **head}.items() if not torch.isfinite(tensor).all()]:
        raise DataError(f"{path} holds numbers that are not finite, in {bad[0]}: its training went wrong. Take an earlier checkpoint.")
    return body, head


def _model(
    path: Path, folder: Path, found: Found, body: dict[str, Tensor], arch: str | None, base: str | None
) -> tuple[ImageTextModel, list[str]]:
    """The model with the file's weights, and notes."""
    if base:
        model = load_model(base)
        notes = _fill(path, body, model)
        model.load_weights(body)
    elif arch:
        model, notes = _of_architecture(path, body, arch), []
    else:
        model, notes = (
            _by_itself(path, folder, found, body),
            ["Architecture, activation and preprocessing are those of the objects in the file."],
        )
    _check(path, model, found)
    return model, notes


def _fill(path: Path, body: dict[str, Tensor], model: ImageTextModel) -> list[str]:
    """Put the base's text tower into `body` where the file has none."""
    text = set(model.groups()["text"])
    lacking = sorted(text - set(body))
    if not lacking or any(name.startswith(("transformer.", "text.")) for name in body):
        return []
    weights = model.weights()
    body.update({name: weights[name] for name in lacking})
    return [f"{path.name} holds no text transformer; {len(lacking)} weights of it are those of {model.name}."]


def _of_architecture(path: Path, body: Mapping[str, Tensor], arch: str) -> ImageTextModel:
    """open_clip's architecture with exactly these weights."""
    name, _, tag = arch.partition("@")
    if not tag:
        raise SettingError(
            f"--arch {arch} does not say how images were prepared, nor the activation. Write {arch}@TAG with the tag that the weights "
            "began as (openai, laion400m_e31, ...), or give --base."
        )
    _check_whole(path, body)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "weights.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in body.items()}, file)
        try:
            model = load_model(f"{name}:{file}@{tag}")
        except ModelError as error:
            raise ModelError(f"{path} does not hold the weights of {name}: {error.__cause__ or error}") from error
    model.name = f"{name}:{tag}"
    own = model.weights()
    if wrong := sorted(key for key in body.keys() | own.keys() if key not in own or key not in body or own[key].shape != body[key].shape):
        raise ModelError(
            f"{path} does not hold the weights of {name}: {', '.join(wrong[:5])} are not alike. Give the --arch that was trained."
        )
    model.load_weights(body)
    return model


def _by_itself(path: Path, folder: Path, found: Found, body: Mapping[str, Tensor]) -> ImageTextModel:
    """The model that the file alone describes."""
    if not found.is_live:
        raise SettingError(
            f"{path} holds weights alone, which say neither the activation nor how images are prepared. Give --arch ViT-B-32@openai "
            "(architecture and the tag whose preprocessing it has) or --base ViT-B-32:openai (the model that it was fine-tuned from)."
        )
    _check_whole(path, body)
    if found.preprocess_cfg is None:
        raise SettingError(f"{path} does not say in a known way how images are prepared. Give --arch ARCH@TAG or --base.")
    config = {"model_cfg": shape_of(path, found, body), "preprocess_cfg": found.preprocess_cfg}
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    save_file({key: tensor.contiguous() for key, tensor in body.items()}, folder / WEIGHTS)
    model = load_model(f"local-dir:{folder}")
    model.name = path.stem
    return model


def _check_whole(path: Path, body: Mapping[str, Tensor]) -> None:
    if not any(name.startswith(("transformer.", "text.")) for name in body):
        raise SettingError(
            f"{path} holds no text transformer, as WiSE-FT's checkpoints do not. Give the model that it was fine-tuned from by --base, "
            "such as --base ViT-B-32:openai; its text tower is taken."
        )


def shape_of(path: Path, found: Found, body: Mapping[str, Tensor]) -> dict[str, Any]:
    """open_clip's model_cfg of a CLIP with a ViT, by the shapes of its weights and the number of its attention heads.

    Raises:
        DataError: another image tower, or weights that are missing.
    """
    heads = {"visual": 0, "text": 0}
    for prefix, number in found.heads.items():
        if prefix.endswith(_FIRST):
            heads["visual" if prefix.endswith(f"visual.{_FIRST}") else "text"] = number
    try:
        width, colours, patch, patch_width = body["visual.conv1.weight"].shape
        _check_shapes(body, width, colours, patch - patch_width)
        positions = len(body["visual.positional_embedding"]) - 1
        length, text_width = body["positional_embedding"].shape
        return {
            "embed_dim": body["visual.proj"].shape[1],
            "quick_gelu": "QuickGELU" in found.activations,
            "vision_cfg": {
                "image_size": patch * math.isqrt(positions), "patch_size": patch, "head_width": width // heads["visual"],
                **_tower(body, "visual.transformer.resblocks.", width),
            },
            "text_cfg": {
                "context_length": length, "vocab_size": len(body["token_embedding.weight"]), "heads": heads["text"],
                **_tower(body, "transformer.resblocks.", text_width),
            },
        }  # fmt: skip
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise DataError(
            f"{path} holds no CLIP with a ViT of open_clip's names ({error!r}). Give the model it came from by --base."
        ) from error


def _check_shapes(body: Mapping[str, Tensor], width: int, colours: int, oblong: int) -> None:
    """Whether the weights fit each other, before a model of their sizes is made: a small file must not ask for a huge one.

    Raises:
        ValueError: they do not.
    """
    length, text_width = body["positional_embedding"].shape
    expected: dict[str, tuple[int, ...]] = {
        "visual.positional_embedding": (len(body["visual.positional_embedding"]), width),
        "visual.proj": (width, body["visual.proj"].shape[1]),
        "token_embedding.weight": (len(body["token_embedding.weight"]), text_width), "positional_embedding": (length, text_width),
    }  # fmt: skip
    for prefix, size in (("visual.transformer.resblocks.", width), ("transformer.resblocks.", text_width)):
        for block in {name.removeprefix(prefix).split(".")[0] for name in body if name.startswith(prefix)}:
            expected[f"{prefix}{block}.attn.in_proj_weight"] = (3 * size, size)
    wrong = [name for name, shape in expected.items() if tuple(body[name].shape) != shape or not body[name].numel()]
    if wrong or colours != 3 or oblong or len(body["visual.positional_embedding"]) < 2:
        raise ValueError(f"{wrong[0] if wrong else 'visual.conv1.weight'} does not fit the rest")


def _tower(body: Mapping[str, Tensor], prefix: str, width: int) -> dict[str, Any]:
    blocks = {name.removeprefix(prefix).split(".")[0] for name in body if name.startswith(prefix)}
    inner = len(body[f"{prefix}0.mlp.c_fc.weight"])
    ratio = inner / width
    return {"width": width, "layers": len(blocks), "mlp_ratio": ratio if int(width * ratio) == inner else math.nextafter(ratio, math.inf)}


def _check(path: Path, model: ImageTextModel, found: Found) -> None:
    """Whether what the file's objects say of activation and preprocessing is what the model does.

    Raises:
        SettingError: it is not.
    """
    config = model.config()
    quick = bool(config["model_cfg"].get("quick_gelu"))
    if found.activations and quick != ("QuickGELU" in found.activations):
        raise SettingError(
            f"{path} was trained with {', '.join(sorted(found.activations))}, {model.name} has {'QuickGELU' if quick else 'GELU'}. Give "
            "the tag or base that it was trained from (OpenAI's have QuickGELU)."
        )
    theirs, ours = found.preprocess_cfg, config["preprocess_cfg"]
    if theirs is None:
        return
    for key in ("size", "mean", "std", "interpolation", "resize_mode"):
        if _numbers(theirs[key]) != _numbers(ours[key]):
            raise SettingError(
                f"{path} prepares images with the {key} {theirs[key]}, {model.name} with {ours[key]}. "
                "Give the tag or base that it was trained from."
            )


def _numbers(value: Any) -> Any:  # noqa: ANN401
    """A size as a pair, and numbers rounded as float32 may differ."""
    pair = [value] * 2 if isinstance(value, int) else value
    return [round(number, 6) for number in pair] if isinstance(pair, list | tuple) else pair


def _classifier(
    path: Path, model: ImageTextModel, head: Mapping[str, Tensor], found: Found, names: Sequence[str], templates: Sequence[str], base: str
) -> tuple[Card, dict[str, Tensor]]:
    """The card and the head that answers: the file's own, or the text tower's where the file has none.

    Raises:
        SettingError: names that are not as many as the head's rows.
        DataError: a head that does not take features of length 1.
    """
    origin = {"imported": path.name}
    if not head:
        with torch.inference_mode():
            weight = float(model.scale) * class_weight(prompt_embeddings(model, PromptTable.build(templates, names)))
        card = Card(class_names=names, templates=templates, predict="text", method="flyp", alpha=1.0, base=base, origin=origin)
        return card, {"weight": weight.clone(), "bias": torch.zeros(len(names))}
    weight = head[HEAD_NAMES[0]]
    if found.normalize is False:
        raise DataError(f"The head in {path} takes features of any length (normalize=False), ours those of length 1. Leave --classes out.")
    if len(weight) != len(names):
        raise SettingError(f"--classes names {len(names)} classes, the head in {path} has {len(weight)}. Name one for each row, in order.")
    card = Card(class_names=names, templates=templates, predict="head", method="tp_ft", alpha=1.0, base=base, origin=origin)
    return card, {"weight": weight.contiguous(), "bias": head.get(HEAD_NAMES[1], torch.zeros(len(weight))).contiguous()}
