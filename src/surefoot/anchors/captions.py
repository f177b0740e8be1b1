"""Captions of training images: generated once, cached as they arise, written beside the data set for ARF's text-compensated anchors.

Two kinds of file, of one form. A cache holds everything that one captioner ever said, a batch appended after the other;
ANCHORS/captions.jsonl holds what training reads, and is written in one piece:

    {"captioner": "hf:blip, weights 3f2a..., ..."}
    {"image": "<SHA-256 of the file's bytes>", "caption": "Two oranges hanging from a tree branch."}

Images are known by their content, so that renaming or splitting data anew costs no captions.

References:
    Han et al., Anchor-based Robust Finetuning of Vision-Language Models (ARF), CVPR 2024, section 4.2.1.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from surefoot import records
from surefoot.data.digest import digests
from surefoot.data.embedded import cache_folder
from surefoot.data.images import read_image
from surefoot.data.writing import writing
from surefoot.errors import DataError, MissingDataError, SettingError
from surefoot.guard import parse_json, read_bytes

log = logging.getLogger(__name__)

KEPT = "what was captioned is kept"
FILE = "captions.jsonl"
OnDone = Callable[[int, int], None]
_READERS = 8


class Captioner(Protocol):
    """Writes a text for each image. `identity` names all that its texts depend on: weights, prompt and the settings of generation."""

    identity: str

    def __call__(self, images: Sequence[Image.Image]) -> list[str]: ...


class Rewriter(Protocol):
    """Says each text in other words; "" where it has none. `identity` as a captioner's."""

    identity: str

    def __call__(self, texts: Sequence[str]) -> list[str]: ...


@dataclass(frozen=True)
class Captions:
    """What `captioner` said: {SHA-256 of an image's bytes: caption}."""

    captioner: str
    by_digest: Mapping[str, str]


def cache_path(identity: str) -> Path:
    """Where a captioner's (or a rewriter's) texts are cached: readable, and another place for every identity.

    Examples:
        >>> cache_path("hf:blip, weights 3f2a").name
        'hf-blip-weights-3f2a-7fc8cff1695b.jsonl'
    """
    word = re.sub(r"[^A-Za-z0-9.]+", "-", identity).strip("-.")[:48]
    return cache_folder() / "captions" / f"{word}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.jsonl"


def caption_images(
    paths: Sequence[Path], captioner: Captioner, cache_file: Path, *, batch_size: int = 8, on_done: OnDone | None = None
) -> list[str]:
    """A caption for each image, from the cache if the captioner has seen its content before.

    Every batch is on disk before the next begins: after an interruption the same call captions only what is left.

    Args:
        paths: N image files.
        captioner: called with at most `batch_size` images.
        cache_file: of this captioner alone; see `cache_path`.
        batch_size: images in one call.
        on_done: hears (done, total) of the distinct images: first what the cache held, then after each batch.

    Returns:
        N captions; "" where the captioner said nothing.

    Raises:
        DataError: an image that cannot be read, a damaged cache, a disk that refuses.
        SettingError: batch_size below 1.
    """
    if batch_size < 1:
        raise SettingError(f"The batch size is {batch_size}; it must be 1 or more.")
    keys = digests(paths)
    place = dict(zip(keys, paths, strict=True))
    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:

        def work(batch: Sequence[str]) -> list[str]:
            return captioner(list(pool.map(read_image, [place[key] for key in batch])))

        texts = _cached(list(dict.fromkeys(keys)), work, captioner.identity, cache_file, batch_size, on_done)
    return [texts[key] for key in keys]


def rewrite_captions(
    captions: Sequence[str], rewriter: Rewriter, cache_file: Path, *, batch_size: int = 8, on_done: OnDone | None = None
) -> tuple[list[str], int]:
    """Each caption in other words, cached under its text; ARF's table 4 does so with Vicuna.

    Args:
        captions: N texts; empty ones stay empty.
        rewriter: called with at most `batch_size` texts.
        cache_file: of this rewriter alone.
        batch_size: texts in one call.
        on_done: as in `caption_images`, counting distinct texts.

    Returns:
        N texts, and how many distinct captions stayed as they were because the rewriter had no answer.

    Raises:
        DataError: a damaged cache, a disk that refuses.
    """
    distinct = {hashlib.sha256(caption.encode()).hexdigest(): caption for caption in captions if caption}

    def work(batch: Sequence[str]) -> list[str]:
        return rewriter([distinct[key] for key in batch])

    texts = _cached(list(distinct), work, rewriter.identity, cache_file, batch_size, on_done)
    new = {caption: texts[key] or caption for key, caption in distinct.items()}
    return [new.get(caption, "") for caption in captions], sum(not texts[key] for key in distinct)


def write_captions(folder: Path, captioner_identity: str, digests: Sequence[str], captions: Sequence[str]) -> Captions:
    """Write ANCHORS/captions.jsonl in one piece, replacing another captioner's; images without a caption are left out with a warning.

    Args:
        folder: the anchors folder of a data set; made if it is not there.
        captioner_identity: what wrote them.
        digests: N SHA-256 of the images' bytes.
        captions: N texts.

    Raises:
        DataError: all captions are empty, or the folder may not be written.
    """
    found: dict[str, str] = {}
    for digest, caption in zip(digests, captions, strict=True):
        if caption.strip():
            found.setdefault(digest, caption.strip())
    if not found:
        raise DataError(f"All {len(captions)} captions of {captioner_identity} are empty. Use another captioner, or another --prompt.")
    if without := len(set(digests) - set(found)):
        log.warning("%d of %d images have an empty caption and were left out.", without, len(set(digests)))
    lines = [{"captioner": captioner_identity, **records.provenance()}, *({"image": key, "caption": found[key]} for key in found)]
    partial = folder / (FILE + ".part")
    with writing(folder, "--anchors", KEPT):
        try:
            partial.write_bytes(b"".join(map(_line, lines)))
            partial.replace(folder / FILE)
        finally:
            partial.unlink(missing_ok=True)
    return Captions(captioner_identity, found)


def read_captions(folder: Path) -> Captions:
    """What `write_captions` wrote.

    Raises:
        MissingDataError: no captions there.
        DataError: a damaged line, named by its number.
    """
    path = folder / FILE
    if not path.is_file():
        raise MissingDataError(f"There are no captions in {folder}. Make them: surefoot caption DATA.")
    with _reading(path):
        lines = read_bytes(path).split(b"\n")
    if lines[-1]:
        raise DataError(f"{path}, line {len(lines)} is cut off. {_again(path)}")
    header, *rest = [_entry(path, number, line) for number, line in enumerate(lines[:-1], start=1)] or [{}]
    captioner = header.get("captioner")
    if not isinstance(captioner, str):
        raise DataError(f"{path}, line 1 does not name the captioner. {_again(path)}")
    return Captions(captioner, dict(_caption(path, number, entry) for number, entry in enumerate(rest, start=2)))


def _cached(
    keys: Sequence[str],
    work: Callable[[Sequence[str]], list[str]],
    identity: str,
    path: Path,
    batch_size: int,
    on_done: OnDone | None,
) -> dict[str, str]:
    """{key: text} of all keys: from the cache, or by `work`, batch after batch, each appended to the cache at once."""
    texts = {key: text for key, text in _open_cache(path, identity).items() if key in set(keys)}
    missing = [key for key in keys if key not in texts]
    if on_done is not None:
        on_done(len(texts), len(keys))
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        found = dict(zip(batch, [" ".join(text.split()) for text in work(batch)], strict=True))
        with writing(path.parent, "the environment variable SUREFOOT_CACHE", KEPT), path.open("ab") as file:
            file.write(b"".join(_line({"image": key, "caption": text}) for key, text in found.items()))
        texts |= found
        if on_done is not None:
            on_done(len(texts), len(keys))
    return texts


def _open_cache(path: Path, identity: str) -> dict[str, str]:
    """What the cache holds; begun if it is not there, and a last line that an interruption damaged taken away."""
    with writing(path.parent, "the environment variable SUREFOOT_CACHE", KEPT), path.open("ab+") as file:
        file.seek(0)
        lines = file.read().split(b"\n")[:-1]
        if lines and not _is_entry(lines[-1]):
            lines.pop()
        file.truncate(sum(len(line) + 1 for line in lines))
        if not lines:
            file.write(_line({"captioner": identity}))
    entries = [_entry(path, number, line) for number, line in enumerate(lines, start=1)]
    if entries and entries[0].get("captioner") != identity:
        raise DataError(f"{path} is not the cache of {identity}. Remove the file; its captions are made again.")
    return dict(_caption(path, number, entry) for number, entry in enumerate(entries[1:], start=2))


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace") + b"\n"  # a manifest may hold half a character


def _is_entry(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:  # no JSON, or no UTF-8
        return False


def _entry(path: Path, number: int, line: bytes) -> dict[str, Any]:
    if not _is_entry(line):
        raise DataError(f"{path}, line {number} is damaged. {_again(path)}")
    return dict(parse_json(line))


def _caption(path: Path, number: int, entry: Mapping[str, Any]) -> tuple[str, str]:
    image, caption = entry.get("image"), entry.get("caption")
    if not isinstance(image, str) or not isinstance(caption, str):
        raise DataError(f"{path}, line {number} does not hold an image and its caption. {_again(path)}")
    return image, caption


def _again(path: Path) -> str:
    return f"Remove {path.name if path.name == FILE else 'that line'} and run 'surefoot caption DATA' again; what is cached is kept."


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Allow it to be read.") from error
