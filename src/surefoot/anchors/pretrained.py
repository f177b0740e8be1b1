"""Checkpoints of the transformers library that write captions or rewrite them: a folder, or a name on the hub."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from surefoot.data.digest import digests
from surefoot.errors import MissingDataError, ModelError, SettingError

CONFIG = "config.json"
_CONTENT = frozenset({".safetensors", ".bin", ".json", ".txt", ".model", ".jinja"})
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint lies and what it is; its weights are not loaded yet.

    Attributes:
        source: the folder, or the name on the hub.
        config: the library's configuration.
        revision: the commit on the hub that is used; None for a folder.
        identity: a readable name, and what tells its weights, tokenizer and preprocessing from others.
    """

    source: str
    config: Any
    revision: str | None
    identity: str

    def load(self, auto_class: Any, **options: Any) -> Any:  # noqa: ANN401
        """auto_class.from_pretrained of this checkpoint; no code that it brings is run.

        Raises:
            ModelError: it cannot be loaded.
        """
        return _from_pretrained(auto_class, self.source, revision=self.revision, **options)

    def load_model(self, auto_class: Any, device: torch.device) -> Any:  # noqa: ANN401
        """The model on its device, in half precision on CUDA alone, ready to generate.

        Raises:
            ModelError: it cannot be loaded, or the checkpoint lacks weights, which would be random then.
        """
        logging = library().utils.logging
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # it would tear the command's own bar apart
        try:
            model, info = self.load(auto_class, output_loading_info=True)
        finally:
            if shown:
                logging.enable_progress_bar()
        if lacking := sorted(set(info["missing_keys"]) & {name for name, _ in model.named_parameters()}):
            raise ModelError(
                f"{self.source} lacks {len(lacking)} weights of {type(model).__name__}, such as {lacking[0]}: it is a checkpoint for "
                "another task. Give one that was trained to write text."
            )
        return model.to(device=device, dtype=half(device)).eval()


def library() -> ModuleType:
    """The transformers library.

    Raises:
        SettingError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise SettingError(
            f"Captions by a pre-trained model need the transformers library ({error}). Install it: pip install 'surefoot[captions]'."
        ) from error
    return transformers


def find(given: str, known: Collection[str], task: str, examples: str) -> Checkpoint:
    """What a folder or a hub name stands for; reads its configuration alone.

    Args:
        given: the folder or the name.
        known: model types that can do the task.
        task: for the message, such as "caption images".
        examples: model types to name when this one cannot.

    Raises:
        SettingError: transformers is not installed.
        MissingDataError: no such folder, or one without config.json.
        ModelError: the hub cannot be reached or has no such name, or the model is of another kind.
    """
    folder = Path(given).expanduser()
    if folder.is_dir() and not (folder / CONFIG).is_file():
        raise MissingDataError(
            f"{folder} holds no {CONFIG}. Give the folder of a transformers checkpoint: configuration, weights, tokenizer, preprocessing."
        )
    if not folder.is_dir() and (folder.exists() or not _HUB_NAME.fullmatch(given)):
        raise MissingDataError(f"There is no folder {given}. Give hf:FOLDER with a transformers checkpoint, or hf:NAME on the hub.")
    source = str(folder) if folder.is_dir() else given
    config = _from_pretrained(library().AutoConfig, source)
    if config.model_type not in known:
        raise ModelError(f"{given} is a model of the type '{config.model_type}', which cannot {task}. Types that can: {examples}.")
    if folder.is_dir():
        return Checkpoint(source, config, None, f"hf:{folder.resolve().name}, weights {_content(folder)}")
    revision = getattr(config, "_commit_hash", None)
    return Checkpoint(source, config, revision, f"hf:{given}, revision {(revision or 'unknown')[:12]}")


def half(device: torch.device) -> torch.dtype:
    """What a captioner computes in: bfloat16 or float16 on CUDA, float32 elsewhere."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def placed(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:  # noqa: ANN401
    """The tensors that the model takes, on its device and in its precision; tokenizers make some that it does not know."""
    taken = inspect.signature(model.forward).parameters
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    unknown = set() if "token_type_ids" in taken else {"token_type_ids"}
    found = {key: value for key, value in inputs.items() if (key in taken or free) and key not in unknown}
    return {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None) if isinstance(value, torch.Tensor) else value
        for key, value in found.items()
    }


def decode(tokenizer: Any, tokens: Tensor, given: Tensor | None) -> list[str]:  # noqa: ANN401
    """The texts of generated token numbers [B, L]; `given` [B, M] is cut off where they begin with it, as decoders without encoder do."""
    if given is not None and torch.equal(tokens[:, : given.shape[1]], given):
        tokens = tokens[:, given.shape[1] :]
    return list(tokenizer.batch_decode(tokens, skip_special_tokens=True))


def answer(text: str) -> str:
    """What a model said after thinking aloud; nothing if it never came to the end.

    Examples:
        >>> answer("<think>A disc?</think> A black disc."), answer("A disc."), answer("<think>Well, a")
        ('A black disc.', 'A disc.', '')
    """
    said = text.rpartition("</think>")[2].strip()
    return "" if said.startswith("<think>") else said


def _content(folder: Path) -> str:
    """Twelve hexadecimal digits over every file that a model, its tokenizer or its preprocessing is read from."""
    files = sorted(path for path in folder.iterdir() if path.suffix in _CONTENT and path.is_file())
    found = [(path.name, digest) for path, digest in zip(files, digests(files), strict=True)]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:12]


def _from_pretrained(auto_class: Any, source: str, **options: Any) -> Any:  # noqa: ANN401
    from safetensors import SafetensorError

    try:
        return auto_class.from_pretrained(source, trust_remote_code=False, **options)
    except ImportError as error:
        raise ModelError(f"{source} needs a package that is not installed: {_first(error)}") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        if Path(source).is_dir():
            raise ModelError(
                f"{source} could not be loaded: {_first(error)} Check that the folder is whole: configuration, weights, tokenizer, "
                "preprocessing."
            ) from error
        raise ModelError(
            f"{source} is no folder here, and could not be had from the hub: {_first(error)} Check the name and the connection; or "
            f"download it elsewhere, 'hf download {source} --local-dir FOLDER', and give hf:FOLDER."
        ) from error


def _first(error: BaseException) -> str:
    """The library's first line, as a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:") + "."
