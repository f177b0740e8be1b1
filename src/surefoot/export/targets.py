"""What a classifier can be written as, and the writing: all of a folder or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from surefoot.bundle import CARD, HEAD, Bundle, Card, load_bundle
from surefoot.errors import unknown_name
from surefoot.export import onnx_files, transformers_files
from surefoot.export.card import licence_of, measured, write_card
from surefoot.folders import check_apart, check_free, whole_folder

Tell = Callable[[int, int], None]
Write = Callable[[Path, Bundle, Tell], None]


def _open_clip(folder: Path, bundle: Bundle, tell: Tell) -> None:
    """What open_clip opens as local-dir:FOLDER."""
    bundle.model.save(folder)
    tell(1, 1)


TARGETS: dict[str, Write] = {"open_clip": _open_clip, "transformers": transformers_files.write, "onnx": onnx_files.write}


def export(model: Path, target: str, out: Path, *, overwrite: bool = False, licence: str | None = None, tell: Tell | None = None) -> Path:
    """Write a classifier as a folder that other libraries open, with a card that says what it is and how to open it.

    Every folder also holds head.safetensors and surefoot.json: the head that answers and the names of its rows. Names of folders of this
    machine are cut down to their last part.

    Args:
        model: what `surefoot.bundle.load_bundle` takes.
        target: one of `TARGETS`.
        out: the folder; none of it is left if writing fails.
        overwrite: let it take the place of a model folder that is there.
        licence: of the checkpoint that the model came from, as the card names it; None for what is known of it.
        tell: told how many parts are written, of how many.

    Raises:
        UnknownNameError: another target.
        SettingError: something is there already, or it is the model itself.
        MissingDataError, DataError: no classifier in `model`; no room.
        ModelError: the model cannot be written so, a package is missing, or the copy does not answer as the model does.
    """
    if target not in TARGETS:
        raise unknown_name("target of --to", target, TARGETS)
    check_apart(out, model if (model / CARD).is_file() else model / "model")
    check_free(out, overwrite=overwrite)
    bundle = load_bundle(model, device="cpu")
    with whole_folder(out, overwrite=overwrite) as folder:
        TARGETS[target](folder, bundle, tell or (lambda _done, _total: None))
        save_file({name: tensor.contiguous() for name, tensor in bundle.head.items()}, folder / HEAD)
        shared = without_folders(bundle.card)
        (folder / CARD).write_text(json.dumps(asdict(shared), indent=1) + "\n", encoding="utf-8")
        found = measured(records_of(model), bundle.card)
        write_card(folder, replace(bundle, card=shared), target, found, licence or licence_of(bundle.card.base))
    return out


def records_of(model: Path) -> Path:
    """The folder that holds the records of a classifier: the run that it is the model/ of."""
    return model if (model / "model" / CARD).is_file() and not (model / CARD).is_file() else model.absolute().parent


def without_folders(card: Card) -> Card:
    """The card, in which names of models and paths show the last part of a folder alone.

    Examples:
        >>> card = Card(class_names=[], templates=[], predict="head", method="flyp", alpha=1.0, base="local-dir:/some/where/clip")
        >>> without_folders(card).base
        'local-dir:clip'
    """
    return replace(card, base=_last(card.base), origin=_last(card.origin))


def _last(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _last(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_last(one) for one in value]
    if not isinstance(value, str) or "/" not in value or value.startswith("hf-hub:"):
        return value
    prefix, colon, path = value.rpartition(":")
    return prefix + colon + Path(path).name if Path(path).is_absolute() or prefix in ("local-dir", "hf-dir") else value
