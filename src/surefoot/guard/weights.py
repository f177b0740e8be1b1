"""Weights and architectures of strangers: what a configuration asks for is in the file beside it before anything is built."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from surefoot.errors import DataError, MissingDataError, ModelError
from surefoot.guard.texts import parse_json, read_text

LARGEST = 1 << 20  # of any whole number in a configuration, such as the tokens of a vocabulary
_MOST = {
    "layers": 256, "width": 1 << 16, "embed_dim": 1 << 16, "image_size": 4096, "size": 4096, "context_length": 8192, "mlp_ratio": 64,
    "head_width": 1 << 16, "heads": 1024, "patch_size": 4096, "attn_pooler_queries": 4096,
    "vocab_size": LARGEST,
}  # fmt: skip
_HANDED = "a number for another library"  # such as in timm_model_kwargs, where names may mean something else
_PAIRS = ("image_size", "patch_size", "size")  # may be height and width
_PREPROCESSING: dict[str, Callable[[Any], bool]] = {
    "size": lambda value: _is_size(value) or (isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_size, value))),
    "mean": lambda value: _are_numbers(value), "std": lambda value: _are_numbers(value) and all(one > 0 for one in value),
    "interpolation": lambda value: value in ("bicubic", "bilinear", "random"),
    "resize_mode": lambda value: value in ("shortest", "longest", "squash"),
    "fill_color": lambda value: type(value) is int and 0 <= value <= 255, "mode": lambda value: value == "RGB",
}  # fmt: skip
_TOKENIZER = ("clean", "strip_sep_token", "language", "tokenizer_mode", "reduction_mask", "padding_side", "use_fast", "legacy")
UNLOADABLE = (
    RuntimeError, ValueError, TypeError, OSError, LookupError, SafetensorError, AttributeError, ArithmeticError, AssertionError, EOFError,
    ImportError, MemoryError, StopIteration, pickle.UnpicklingError,
)  # fmt: skip
"""What open_clip and torch raise for files that are none of theirs, depending on where that shows."""
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_MOST_CONFIG = 100_000_000  # bytes; a tokenizer's vocabulary takes some tens of millions
_SLACK = 10_000_000  # parameters that a model may have beyond what its file holds


def num_elements(path: Path) -> int:
    """How many numbers a safetensors file holds; its header is read and checked, no tensor.

    Raises:
        ModelError: it is none, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            return sum(math.prod(stored.get_slice(name).get_shape()) for name in stored.keys())  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise ModelError(
            f"{path} could not be loaded: it could not be read as a safetensors file ({error}). Copy it anew; no pickle is opened."
        ) from error


def check_source(name: str, target: str, pretrained: str | None) -> None:
    """Whether the files that a model's name leads to may be opened.

    Args:
        name: what the user called the model.
        target: what open_clip is asked for.
        pretrained: a tag, or a checkpoint file.

    Raises:
        MissingDataError: a folder without its two files.
        ModelError: see `check_folder_config` and `check_archive`.
    """
    if not target.startswith("local-dir:"):
        return check_archive(Path(pretrained)) if pretrained and Path(pretrained).is_file() else None
    folder = Path(target.removeprefix("local-dir:"))
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise MissingDataError(f"{name}: {folder / file} is not there. A model folder holds {CONFIG} and {WEIGHTS}.")
    return check_folder_config(folder / CONFIG, read_config(folder / CONFIG), folder / WEIGHTS)


def read_config(path: Path) -> Any:  # noqa: ANN401
    """A configuration in JSON.

    Raises:
        ModelError: it cannot be read, or is not JSON.
    """
    try:
        return parse_json(read_text(path, most=_MOST_CONFIG))
    except DataError as error:
        raise ModelError(str(error)) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is no JSON ({error}). Copy it anew.") from error


def check_archive(path: Path) -> None:
    """A checkpoint of torch.save has no part that unpacks to more than the file holds.

    Raises:
        ModelError: it has, or it is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise ModelError(f"{path} is damaged ({error}). Copy it anew.") from error
    for part in parts:
        if part.compress_type != zipfile.ZIP_STORED:
            raise ModelError(
                f"{path}: its part {part.filename} is compressed, which torch.save never does. Get the file from where it was published."
            )
    if sum(part.file_size for part in parts) > path.stat().st_size:
        raise ModelError(f"{path}: its parts claim more bytes than the file has. Copy it anew.")


def check_folder_config(where: Path | str, content: Any, weights: Path | None) -> None:  # noqa: ANN401
    """Whether the content of open_clip_config.json may be built.

    Args:
        where: the file, for the message.
        content: what it holds.
        weights: the safetensors file beside it; None if its size is not known, as on a hub.

    Raises:
        ModelError: sizes that are absurd or beyond what the weights hold, code or files of elsewhere, or another form.
    """
    parts = content.get("model_cfg") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(parts.get(key), dict) for key in ("vision_cfg", "text_cfg")):
        raise ModelError(f"{where} has no model_cfg with vision_cfg and text_cfg. Copy the folder anew.")
    if not isinstance(parts.get("multimodal_cfg") or {}, dict):
        raise ModelError(f"{where}: its multimodal_cfg is no table. Copy the folder anew.")
    if wrong := [*_numbers(parts, "model_cfg"), *_foreign(parts), *_preprocessing(content.get("preprocess_cfg", {}))]:
        raise ModelError(f"{where}: {'; '.join(wrong[:5])}. Such a model is not built; get the folder from where it was published.")
    if weights is None:
        return
    wanted, held = least_parameters(parts), num_elements(weights)
    if wanted > 2 * held + _SLACK:
        raise ModelError(
            f"{where} describes a model of {wanted:.3g} parameters at least; {weights.name} holds {held:.3g} numbers. It is not built; "
            "copy both files anew."
        )


def least_parameters(model_cfg: Mapping[str, Any]) -> float:
    """How many parameters a model has at the least, by the sizes in open_clip's model_cfg; towers of other libraries count as none.

    Examples:
        >>> least_parameters({"embed_dim": 8, "vision_cfg": {"layers": 1, "width": 8, "image_size": 8, "patch_size": 4}, "text_cfg": {
        ...     "layers": 1, "width": 8, "vocab_size": 10, "context_length": 4}})
        2064.0
    """
    vision, text, more = (model_cfg.get(key) or {} for key in ("vision_cfg", "text_cfg", "multimodal_cfg"))
    total = 0.0
    if not vision.get("timm_model_name"):
        width = vision.get("width", 768)
        patch = _pair(vision, "patch_size", 16)
        total += _tower(vision, 768) + (_pair(vision, "image_size", 224) / patch + 3 * patch) * width
        if isinstance(vision.get("layers"), list):
            total = float(sum(vision["layers"]) * 16 * width**2)
    if not text.get("hf_model_name"):
        total += _tower(text, 512) + (text.get("vocab_size", 49408) + text.get("context_length", 77)) * text.get("width", 512)
    return total + (_tower(more, 512) if more else 0)


def _tower(config: Mapping[str, Any], usual: int) -> float:
    layers, width = config.get("layers", 12), config.get("width", usual)
    return 0.0 if isinstance(layers, list) else layers * width * (4 * width + 2 * int(width * config.get("mlp_ratio", 4.0)))


def _pair(config: Mapping[str, Any], key: str, usual: int) -> float:
    """The product of a pair, or the square of a number; of the usual one where none is said."""
    value = config.get(key) or usual
    return float(math.prod(value) if isinstance(value, list) else value**2)


def _numbers(value: Any, key: str) -> list[str]:  # noqa: ANN401
    """What is absurd among the numbers of a configuration."""
    if value is None and key == "patch_size":  # as open_clip's ResNets say that they have none
        return []
    if isinstance(value, dict):
        handed = key == _HANDED or key.endswith("_kwargs")
        own = [text for inner, one in value.items() for text in _numbers(one, _HANDED if handed else str(inner))]
        return [f"{key} is {str(value)[:40]}"] if key in _MOST else own
    if isinstance(value, list):
        if key in _MOST and not _is_list_of_sizes(value, key):
            return [f"{key} is {str(value)[:40]}"]
        return [text for one in value[:64] for text in _numbers(one, key)] + [f"{key} is a list of {len(value)}"] * (len(value) > 64)
    if key in _MOST and (isinstance(value, bool) or not isinstance(value, int | float if key == "mlp_ratio" else int)):
        return [f"{key} is {str(value)[:40]}"]
    if isinstance(value, int | float) and not isinstance(value, bool):
        most = _MOST.get(key, LARGEST)
        if not (0 < value <= most if key in _MOST else -most <= value <= most):
            return [f"{key} is {str(value)[:40]}, beyond {most}"]
    return []


def _is_list_of_sizes(value: Sequence[Any], key: str) -> bool:
    """The stages of a ResNet, or height and width."""
    flat = bool(value) and not any(one is None or isinstance(one, dict | list) for one in value)
    return flat and (key == "layers" or (key in _PAIRS and len(value) == 2))


def _foreign(parts: Mapping[str, Any]) -> list[str]:
    """Names in a configuration that lead to code, or to files of elsewhere."""
    wrong = []
    for place in ("vision_cfg", "text_cfg"):
        for key, value in parts[place].items():
            if key.endswith(("_name", "_name_or_path")) and not _is_name(value, hub=key.startswith("hf_")):
                wrong.append(f"{key} is {str(value)[:60]!r}, which may lead to other files")
            if key == "tokenizer_kwargs" and not (isinstance(value, dict) and all(own in _TOKENIZER for own in value)):
                wrong.append(f"tokenizer_kwargs is {str(value)[:60]}; allowed are {', '.join(_TOKENIZER)}")
    return wrong


def _is_name(value: object, *, hub: bool) -> bool:
    """A model's name, of the hub with one slash at most, and no path."""
    if not isinstance(value, str) or len(value) > 200 or value.startswith((".", "/", "~")):
        return not value
    return ".." not in value and "\\" not in value and ":" not in value and value.count("/") <= (1 if hub else 0)


def _preprocessing(values: object) -> list[str]:
    if not isinstance(values, dict):
        return [f"preprocess_cfg is {str(values)[:40]}"]
    return [f"{key} is {str(value)[:40]}" for key, value in values.items() if key in _PREPROCESSING and not _PREPROCESSING[key](value)]


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value <= _MOST["size"]


def _are_numbers(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(type(one) in (int, float) and -1e6 < one < 1e6 for one in value)
