"""Retrieval of image-text pairs: the texts of a pool that are nearest to each training image, for ARF's image-text-pair anchors.

    query f0(x) of every training image, keys g0(t) of every candidate's text; pair of x: the candidate k = argmax f0(x) . g0(t_k)   (eq. 4)

Embeddings are computed once with the pre-trained weights and cached as they arise; the image of a candidate is read when it is retrieved.

References:
    Han et al., Anchor-based Robust Finetuning of Vision-Language Models (ARF), CVPR 2024, section 4.2.2.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from surefoot.anchors.pool import Place, Pool
from surefoot.data.digest import digests
from surefoot.data.embedded import cache_folder
from surefoot.data.images import Images, read_image
from surefoot.errors import DataError, SettingError, unknown_name
from surefoot.identity import weights_hash
from surefoot.model import ImageTextModel

log = logging.getLogger(__name__)

CHUNK = 2048  # texts, or images, of one file of the cache: what an interruption costs at most
BATCH = 256
SPARE = 8  # candidates beyond k, for pairs whose image cannot be read
INDEXES = ("exact", "ivf")
NUM_SAMPLED = 100  # queries that an approximate index is measured with
_TIE = 1e-5  # how far two ways to add up an inner product in float32 may differ
_PRODUCTS = 1 << 26  # similarities in memory at a time
OnDone = Callable[[int, int], None]
_Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]
_Encode = Callable[[range], Iterator[tuple[Tensor, Tensor]]]


def embed_texts(model: ImageTextModel, texts: Sequence[str], on_done: OnDone | None = None, *, batch_size: int = BATCH) -> Tensor:
    """g(t) of texts, from the cache where weights, precision, tokenizer and texts are the same.

    Args:
        model: its text tower.
        texts: N texts; each distinct one is encoded once.
        on_done: hears how many distinct texts are done, and how many there are.
        batch_size: texts encoded at a time.

    Returns:
        [N, D], l2-normalised, float32 on the CPU.
    """
    place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    distinct, device = list(place), next(model.parameters()).device

    def encode(rows: range) -> Iterator[tuple[Tensor, Tensor]]:
        tokens = model.tokenize([distinct[row] for row in rows])
        by_length = (tokens != 0).sum(dim=1).argsort(stable=True)  # a batch costs what its longest text costs
        for part in torch.split(by_length, batch_size):
            yield part, model.encode_text(tokens[part].to(device))

    features = _chunked(f"text {_tokenizer_hash(model)}", model, distinct, encode, on_done)
    return features if len(distinct) == len(texts) else features[torch.tensor([place[text] for text in texts])]


def embed_images(model: ImageTextModel, paths: Sequence[Path], on_done: OnDone | None = None, *, batch_size: int = BATCH) -> Tensor:
    """f(x) of images, from the cache where weights, precision, preprocessing and the files' bytes are the same.

    Args:
        model: its image tower.
        paths: N images.
        on_done: hears how many are done, and how many there are.
        batch_size: images encoded at a time.

    Returns:
        [N, D], l2-normalised, float32 on the CPU.
    """
    device = next(model.parameters()).device

    def encode(rows: range) -> Iterator[tuple[Tensor, Tensor]]:
        images = Images([paths[row] for row in rows], model.preprocess)
        for part in torch.split(torch.arange(len(rows)), batch_size):
            yield part, model.encode_image(images.batch(part.tolist()).to(device))

    return _chunked("image", model, digests(paths), encode, on_done)


def _tokenizer_hash(model: ImageTextModel) -> str:
    """What the tokenizer makes of a sentence: its files are no part of the weights."""
    tokens = model.tokenize(["The quick brown fox; jumps over 13 lazy dogs! Ünïcödé"])
    return hashlib.sha256(repr(tokens.tolist()).encode()).hexdigest()[:16]


def _chunked(kind: str, model: ImageTextModel, keys: Sequence[str], encode: _Encode, on_done: OnDone | None) -> Tensor:
    """Features of `keys`, a file of the cache for each chunk of them; a file that cannot be read is made anew."""
    weights, whole = weights_hash(model), torch.empty(0)
    for start in range(0, len(keys), CHUNK):
        rows = range(start, min(start + CHUNK, len(keys)))

        def on_batch(done: int, start: int = start) -> None:
            if on_done:
                on_done(start + done, len(keys))

        known = repr((kind, weights, model.precision, [keys[row] for row in rows]))
        path = cache_folder() / "embeddings" / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.safetensors"
        if (features := _stored(path, len(rows))) is None:
            features = _encoded(encode(rows), on_batch)
            _keep(path, features)
        if not start:
            whole = torch.empty(len(keys), features.shape[1])
        whole[start : rows.stop] = features
        on_batch(len(rows))
    return whole


def _encoded(batches: Iterator[tuple[Tensor, Tensor]], on_batch: Callable[[int], None]) -> Tensor:
    """Features in the order of their rows, from batches of (rows, features) in any order."""
    parts: list[tuple[Tensor, Tensor]] = []
    with torch.inference_mode():
        for rows, features in batches:
            parts.append((rows, features.float().cpu()))
            on_batch(sum(len(part) for part, _ in parts))
    found = torch.cat([features for _, features in parts])
    ordered = torch.empty(found.shape)
    ordered[torch.cat([rows for rows, _ in parts])] = found
    return ordered


def _stored(path: Path, num_rows: int) -> Tensor | None:
    try:
        found = load_file(path)["features"] if path.is_file() else None
    except (SafetensorError, OSError, KeyError) as error:
        log.warning("%s cannot be read (%s) and is made anew.", path, error)
        return None
    return found if found is not None and found.ndim == 2 and len(found) == num_rows else None


def _keep(path: Path, features: Tensor) -> None:
    """Write to the cache; without room it costs time the next time, never a result."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": features}, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        log.warning("The embeddings are not kept for the next time: %s.", error)
    finally:
        partial.unlink(missing_ok=True)


def check(k: int, num_candidates: int, index: str) -> None:
    """Whether so many pairs can be retrieved by such an index, asked before anything is embedded.

    Raises:
        SettingError: more pairs than there are candidates, or an inverted file without faiss.
        UnknownNameError: another index.
    """
    if index not in INDEXES:
        raise unknown_name("index", index, INDEXES)
    if not 1 <= k <= num_candidates:
        raise SettingError(
            f"{k} pairs for each image were asked for, and there are {num_candidates} candidates. Ask for 1 to {num_candidates}."
        )
    if index == "ivf" and _faiss() is None:
        raise SettingError("--index ivf needs faiss, which is not installed. Run: pip install 'surefoot[retrieval]'")


def nearest(query: Tensor, keys: Tensor, k: int, index: str = "exact") -> tuple[Tensor, Tensor]:
    """The k nearest keys of every query by inner product, the nearest first; of equally near ones the lower row.

    Args:
        query: f0(x) [N, D].
        keys: g0(t) [M, D], M at least k.
        k: how many; 1 in the paper.
        index: "exact" (faiss' flat index; without faiss the same search in torch, with the same result), or "ivf", faiss' inverted file,
            which looks at a part of the keys, for millions of them.

    Returns:
        Scores [N, k], and rows of `keys` [N, k].

    Raises:
        SettingError: more than there are, or an inverted file without faiss.

    References:
        ARF (see the head of this module), eq. 4.
    """
    check(k, len(keys), index)
    query, keys = query.float().contiguous(), keys.float().contiguous()
    search = _inverted(keys) if index == "ivf" else _exact(keys)
    size = max(1, min(1024, _PRODUCTS // len(keys)))
    parts = [_ranked(search, part, keys, k, SPARE) for part in torch.split(query, size)]
    scores, rows = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    if len(lost := (rows < 0).any(dim=1).nonzero().flatten()):  # an inverted file may hold fewer than k where it looks
        scores[lost], rows[lost] = nearest(query[lost], keys, k)
    return scores, rows


def _ranked(search: _Search, query: Tensor, keys: Tensor, k: int, margin: int) -> tuple[Tensor, Tensor]:
    """`search` with scores added up in float64, so that every index gives the same order, and with ties that go on beyond k resolved."""
    count = min(k + margin, len(keys))
    rough, rows = search(query, count)
    exact = torch.einsum("nd,nkd->nk", query.double(), keys[rows].double()).masked_fill(rows < 0, -math.inf)
    rows, by_row = rows.sort(dim=1)
    exact, by_score = exact.gather(1, by_row).sort(dim=1, descending=True, stable=True)
    scores, found = exact[:, :k].float(), rows.gather(1, by_score)[:, :k]
    tied = (rough[:, -1] >= exact[:, k - 1] - _TIE) & (rows[:, 0] >= 0)
    if count < len(keys) and tied.any():
        scores[tied], found[tied] = _ranked(search, query[tied], keys, k, 4 * margin)
    return scores, found


def _exact(keys: Tensor) -> _Search:
    if (faiss := _faiss()) is None:
        return lambda query, count: torch.topk(query @ keys.T, count)
    flat = faiss.IndexFlatIP(keys.shape[1])
    flat.add(keys.numpy())
    return _searched(flat)


def _inverted(keys: Tensor) -> _Search:
    """About 4 sqrt(M) lists, of which a sixteenth is looked at; 40 keys a list at least, as faiss asks for."""
    faiss, num_lists = _faiss(), max(1, min(len(keys) // 40, round(4 * math.sqrt(len(keys)))))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(keys.shape[1]), keys.shape[1], num_lists, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = max(8, num_lists // 16)
    index.train(keys.numpy())
    index.add(keys.numpy())
    return _searched(index)


def _searched(index: Any) -> _Search:  # noqa: ANN401
    def search(query: Tensor, count: int) -> tuple[Tensor, Tensor]:
        scores, rows = index.search(query.numpy(), count)
        return torch.from_numpy(scores), torch.from_numpy(rows)

    return search


def _faiss() -> Any:  # noqa: ANN401
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def recall(query: Tensor, keys: Tensor, scores: Tensor) -> float:
    """The part of the nearest keys that an approximate index found, over at most 100 queries spread evenly; ties count as found.

    Args:
        query: [N, D].
        keys: [M, D].
        scores: [N, k] that the index found.
    """
    count = min(NUM_SAMPLED, len(query))
    sample = torch.arange(count) * len(query) // count
    exact, _ = nearest(query[sample], keys, scores.shape[1])
    return float((scores[sample] >= exact - _TIE).float().mean())


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """For each of N queries the rows of its k pairs in the pool, the nearest first, and their scores.

    `num_unreadable` candidates gave way to the next nearest; `recall` is that of an approximate index.
    """

    rows: Sequence[Sequence[int]]
    scores: Sequence[Sequence[float]]
    num_unreadable: int
    recall: float | None = None

    def distinct(self) -> list[int]:
        """The rows of the distinct pairs."""
        return sorted({row for wanted in self.rows for row in wanted})


def retrieve_pairs(pool: Pool, query: Tensor, keys: Tensor, k: int, index: str = "exact", on_done: OnDone | None = None) -> Retrieved:
    """The pairs of every query; one whose image cannot be read gives way to the next nearest.

    Args:
        pool: M candidates.
        query: f0(x) [N, D] of the training images.
        keys: g0(t) [M, D] of the candidates' texts.
        k: pairs for each image.
        index: see `nearest`.
        on_done: hears how many images have their pairs, and how many there are.

    Raises:
        SettingError: more pairs than candidates, or an index that is not there.
        DataError: too few of the nearest can be read.
    """
    check(k, len(pool), index)
    scores, rows = nearest(query, keys, min(k + SPARE, len(pool)), index)
    readable: dict[int, bool] = {}
    kept_rows, kept_scores = [], []
    with tempfile.TemporaryDirectory(prefix="surefoot-") as folder:
        for number, (wanted, values) in enumerate(zip(rows.tolist(), scores.tolist(), strict=True), start=1):
            good: list[tuple[int, float]] = []
            for row, score in zip(wanted, values, strict=True):
                if len(good) == k:
                    break
                if row not in readable:
                    readable[row] = _is_image(pool.places[row], Path(folder) / "image")
                good += [(row, score)] if readable[row] else []
            if len(good) < k:
                raise DataError(
                    f"Only {len(good)} of the {len(wanted)} candidates nearest to an image can be read; {k} are needed. Mend {pool.name}."
                )
            kept_rows.append([row for row, _ in good])
            kept_scores.append([score for _, score in good])
            if on_done:
                on_done(number, len(rows))
    found = None if index == "exact" else recall(query, keys, scores[:, :k])
    return Retrieved(rows=kept_rows, scores=kept_scores, num_unreadable=sum(not good for good in readable.values()), recall=found)


def _is_image(place: Place, copy: Path) -> bool:
    """Whether training will be able to read it; shards hold no files, so that a copy is read."""
    place.check()  # a shard that has changed is no reason to take the next candidate
    try:
        copy.write_bytes(place.read())
        read_image(copy)
    except DataError:
        return False
    return True
