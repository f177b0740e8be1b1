"""Retrieval of image-text pairs: the texts of a pool that are nearest to each training image, for ARF's image-text-pair anchors."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from surefoot.anchors.pairs import FILE, IMAGES, TEXTS
from surefoot.anchors.pool import Pool
from surefoot.data.digest import digests
from surefoot.data.embedded import cache_folder
from surefoot.data.images import Images
from surefoot.errors import DataError, SettingError, TrainingError
from surefoot.identity import weights_hash
from surefoot.model import ImageTextModel

log = logging.getLogger(__name__)

CHUNK = 2048  # texts, or images, that an interruption costs at most
BATCH = 256
SPARE = 8  # candidates beyond k, for pairs whose image cannot be read
Index = Literal["exact", "ivf"]
OnDone = Callable[[int, int], None]


def embed_texts(model: ImageTextModel, texts: Sequence[str], on_done: OnDone | None = None) -> Tensor:
    """g(t) [N, D] of texts, l2-normalised, float32 on the CPU; each distinct text once, chunks of them from the cache where they are known.

    The cache's key is made of the weights, the precision and the texts.
    """
    place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    distinct, device = list(place), next(model.parameters()).device

    def encode(rows: range) -> Tensor:
        tokens = torch.split(model.tokenize([distinct[row] for row in rows]), BATCH)
        return torch.cat([model.encode_text(part.to(device)).cpu() for part in tokens])

    features = _chunked("text", model, distinct, encode, on_done)
    return features[torch.tensor([place[text] for text in texts])]


def embed_images(model: ImageTextModel, paths: Sequence[Path], on_done: OnDone | None = None) -> Tensor:
    """f(x) [N, D] of images, l2-normalised, float32 on the CPU; from the cache where weights, preprocessing and files are the same."""
    device = next(model.parameters()).device

    def encode(rows: range) -> Tensor:
        images = Images([paths[row] for row in rows], model.preprocess)
        return torch.cat([model.encode_image(batch.to(device)).cpu() for batch in images.batches(BATCH)])

    return _chunked("image", model, digests(paths), encode, on_done)


def _chunked(kind: str, model: ImageTextModel, keys: Sequence[str], encode: Callable[[range], Tensor], on_done: OnDone | None) -> Tensor:
    """Features of `keys`, a file of the cache for each chunk of them; a file that cannot be read is made anew."""
    weights, found = weights_hash(model), []
    for start in range(0, len(keys), CHUNK):
        rows = range(start, min(start + CHUNK, len(keys)))
        known = repr((kind, weights, model.precision, [keys[row] for row in rows]))
        path = cache_folder() / "embeddings" / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.safetensors"
        features = _stored(path)
        if features is None or len(features) != len(rows):
            with torch.inference_mode():
                features = encode(rows).clone()
            _keep(path, features)
        found.append(features)
        if on_done:
            on_done(rows.stop, len(keys))
    return torch.cat(found)


def _stored(path: Path) -> Tensor | None:
    try:
        return load_file(path)["features"] if path.is_file() else None
    except (SafetensorError, OSError, KeyError) as error:
        log.warning("%s cannot be read (%s) and is made anew.", path, error)
        return None


def _keep(path: Path, features: Tensor) -> None:
    """Write to the cache; without room it costs time the next time, never a result."""
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": features.contiguous()}, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        log.warning("The embeddings are not kept for the next time: %s.", error)
        partial.unlink(missing_ok=True)


def nearest(query: Tensor, keys: Tensor, k: int, index: Index = "exact") -> tuple[Tensor, Tensor]:
    """The k nearest keys of every query by inner product, the nearest first.

    Args:
        query: [N, D].
        keys: [M, D], M at least k.
        k: how many.
        index: "exact" (faiss' flat index, or the same search in torch where faiss is not installed), or faiss' inverted file for millions.

    Returns:
        Scores [N, k], and rows of `keys` [N, k].

    Raises:
        SettingError: more than there are, or an inverted file without faiss.

    References:
        Han et al., "Anchor-based robust finetuning of vision-language models", CVPR 2024, eq. 4.
    """
    if not 1 <= k <= len(keys):
        raise SettingError(f"{k} pairs for each image were asked for, and there are {len(keys)} candidates. Ask for 1 to {len(keys)}.")
    try:
        import faiss
    except ImportError as error:
        if index == "ivf":
            raise SettingError("--index ivf needs faiss, which is not installed. Run: pip install 'surefoot[retrieval]'") from error
        parts = [(part @ keys.T).topk(k) for part in torch.split(query, BATCH)]
        return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
    flat = faiss.IndexFlatIP(keys.shape[1])
    searched: Any = flat
    if index == "ivf":
        lists = max(1, min(len(keys) // 40, round(4 * math.sqrt(len(keys)))))
        searched = faiss.IndexIVFFlat(flat, keys.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        searched.nprobe = max(8, lists // 16)
        searched.train(keys.numpy())
    searched.add(keys.numpy())
    scores, rows = searched.search(query.numpy(), k)
    return torch.from_numpy(scores), torch.from_numpy(rows)


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """For each query the rows of its k pairs in the pool and their scores; the bytes of every distinct pair's image."""

    rows: Sequence[Sequence[int]]
    scores: Sequence[Sequence[float]]
    images: Mapping[int, bytes]
    num_unreadable: int


def retrieve_pairs(pool: Pool, query: Tensor, keys: Tensor, k: int, index: Index = "exact") -> Retrieved:
    """The pairs of every query; one whose image cannot be read gives way to the next nearest.

    Raises:
        SettingError: more pairs than candidates.
        DataError: too few of the nearest can be read.
    """
    scores, rows = nearest(query, keys, min(k + SPARE, len(pool)) if k <= len(pool) else k, index)
    images: dict[int, bytes] = {}
    bad: set[int] = set()
    kept: list[list[int]] = []
    for wanted in rows.tolist():
        good: list[int] = []
        for row in wanted:
            if row < 0 or len(good) == k:  # an inverted file may find fewer
                break
            if row not in images and row not in bad:
                content = pool.places[row].read()
                if _is_image(content):
                    images[row] = content
                else:
                    bad.add(row)
            good += [row] if row in images else []
        if len(good) < k:
            raise DataError(
                f"Of the {len(wanted)} nearest candidates of an image only {len(good)} can be read, and {k} are needed. Mend {pool.name}."
            )
        kept.append(good)
    values = [
        [float(s) for s, row in zip(own, all_, strict=True) if row in set(good)][:k]
        for own, all_, good in zip(scores.tolist(), rows.tolist(), kept, strict=True)
    ]
    used = {row for good in kept for row in good}
    return Retrieved(rows=kept, scores=values, images={row: images[row] for row in sorted(used)}, num_unreadable=len(bad))


def _is_image(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return True


def write_pairs(folder: Path, pool: Pool, found: Retrieved, keys: Sequence[str], about: Mapping[str, object]) -> None:
    """Write the pairs into an anchors folder: images, texts, then who retrieved what; the old ones stand until the new are whole.

    Args:
        folder: of the anchors.
        pool: where the pairs come from.
        found: the pairs of every training image.
        keys: digests of the training images.
        about: the first line: weights, model, pool, k, num_candidates.

    Raises:
        TrainingError: no room on the disk.
    """
    names = {row: f"{row:08d}-{hashlib.sha256(content).hexdigest()[:8]}" for row, content in found.images.items()}
    fresh = folder / (IMAGES + ".part")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for row, content in found.images.items():
            (fresh / f"{names[row]}{pool.places[row].suffix}").write_bytes(content)
        texts = folder / (TEXTS + ".part")
        with texts.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("name", "text"), *((names[row], pool.texts[row]) for row in found.images)])
        lines = [dict(about)] + [
            {"image": key, "pairs": [names[row] for row in rows], "scores": [round(score, 6) for score in scores]}
            for key, rows, scores in zip(keys, found.rows, found.scores, strict=True)
        ]
        listed = folder / (FILE + ".part")
        listed.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        (folder / FILE).unlink(missing_ok=True)  # whoever reads in between finds no pairs, never half of two
        shutil.rmtree(folder / IMAGES, ignore_errors=True)
        fresh.replace(folder / IMAGES)
        texts.replace(folder / TEXTS)
        listed.replace(folder / FILE)
    except OSError as error:
        raise TrainingError(
            f"The retrieved pairs could not be written into {folder} ({error}). Make room, or name another by --anchors."
        ) from error
