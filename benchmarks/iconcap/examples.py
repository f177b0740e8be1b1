"""What IconCap learns from: for every pre-training icon its name, its style, what its pixels show, and the image tower's tokens.

Made once and kept in the run's folder: `icons.json`, `pictures.npy` and `tokens.npy` (float16, 4.4 GB: larger than the rest of the
work, but a step of training then costs the decoder only).
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "iconclip"))
import corpus as corpora
from surefoot.anchors.iconcap import image_tokens
from surefoot.model import ImageTextModel, load_model

BLOCKS = (2, 4)
FIRST_STYLE = "outline"
CHUNK = 512  # icons a part


@dataclass(frozen=True)
class Examples:
    """Icons in the corpus's order: words of the name and style, pictures uint8 [N, S, S, 3], tokens float16 [N, M, W]."""

    names: list[str]
    words: list[tuple[str, ...]]
    styles: list[str]
    pictures: np.ndarray
    tokens: np.ndarray


def chosen(styles: list[str], num_icons: int) -> np.ndarray:
    """Rows of `num_icons` icons, in order: first all outline icons, which a user's first training images are, then others by chance."""
    chance = np.random.default_rng(0).permutation(len(styles))
    first = sorted(range(len(styles)), key=lambda r: (styles[r] != FIRST_STYLE, chance[r]))
    return np.sort(first[:num_icons])


def load_examples(cache: Path, out: Path, num_icons: int, num_processes: int = 2) -> Examples:
    """The examples kept in `out`, made from the corpus in `cache` if they are not there."""
    if not (out / "icons.json").is_file():
        corpus = corpora.build(cache)
        rows = chosen([icon.style for icon in corpus.icons], num_icons)
        np.save(out / "pictures.npy", corpus.pictures[rows])
        icons = [(f"{i.set_name}:{i.name}", i.words, i.style) for i in (corpus.icons[r] for r in rows)]
        counts = {"corpus": len(corpus.icons), "screened_out": corpus.screened_out, "repeated": corpus.repeated}
        partial = out / "icons.part"
        partial.write_text(json.dumps({"icons": icons, **counts}))
        partial.rename(out / "icons.json")
    icons = json.loads((out / "icons.json").read_text())["icons"]
    pictures = np.load(out / "pictures.npy", mmap_mode="r")
    if not (out / "tokens.npy").is_file():
        encode(pictures, out / "tokens.npy", num_processes)
    tokens = np.load(out / "tokens.npy", mmap_mode="r")
    return Examples([i[0] for i in icons], [tuple(i[1]) for i in icons], [i[2] for i in icons], pictures, tokens)


def encode(pictures: np.ndarray, path: Path, num_processes: int) -> None:
    """Write the tower's tokens of all `pictures`; the file appears when it is whole, and an interrupted run goes on with its next part."""
    partial, done = path.with_suffix(".part"), path.with_suffix(".done")
    shape = (len(pictures), *image_tokens(load_model("iconclip"), torch.zeros(1, 3, 48, 48), BLOCKS).shape[1:])
    if not partial.is_file():
        np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
    finished = set(done.read_text().split()) if done.is_file() else set()
    jobs = [(path, start) for start in range(0, len(pictures), CHUNK) if str(start) not in finished]
    started = time.time()
    with done.open("a") as log, multiprocessing.get_context("spawn").Pool(num_processes, initializer=_one_thread) as pool:
        for number, start in enumerate(pool.imap_unordered(_encode_part, jobs), 1):
            log.write(f"{start}\n")
            log.flush()
            if number % 20 == 0:
                print(f"tokens: {number} of {len(jobs)} parts, {number * CHUNK / (time.time() - started):.0f} icons/s", flush=True)
    partial.rename(path)
    done.unlink()


_MODEL: list[ImageTextModel] = []


def _one_thread() -> None:
    torch.set_num_threads(1)
    _MODEL.append(load_model("iconclip"))


def _encode_part(job: tuple[Path, int]) -> int:
    path, start = job
    pictures = np.load(path.with_name("pictures.npy"), mmap_mode="r")
    kept = np.lib.format.open_memmap(path.with_suffix(".part"), mode="r+")
    for i in range(start, min(start + CHUNK, len(pictures)), 32):  # CHUNK is a multiple of 32
        batch = torch.from_numpy(np.array(pictures[i : i + 32])).permute(0, 3, 1, 2).float() / 255
        kept[i : i + 32] = image_tokens(_MODEL[0], (batch - 0.5) / 0.5, BLOCKS).numpy()
    kept.flush()
    return start
