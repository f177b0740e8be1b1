"""The icons: download once, read names and styles, render to pixels.

Everything that later steps see is a row of `catalogue`: one icon of one listed set, with the words of its name, its style and
its place in the rendered array of its set. Rendering is resumable (one file a set) and takes a few minutes on two cores.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import multiprocessing
import re
import subprocess
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

HERE = Path(__file__).parent
SIDES = ("benchmark", "pretraining")
LICENCES = {"MIT", "ISC", "Apache-2.0", "CC0-1.0", "OFL-1.1", "CC-BY-3.0", "CC-BY-4.0", "Unlicense"}
# Words of a name that tell how an icon is drawn or at which size, never what it shows.
STYLE_WORDS = frozenset(
    [
        "outline",
        "outlined",
        "line",
        "linear",
        "regular",
        "light",
        "thin",
        "fill",
        "filled",
        "solid",
        "duotone",
        "twotone",
        "two",
        "tone",
        "bold",
        "sharp",
        "rounded",
        "round",
        "broken",
        "duo",
        "flat",
        "stroke",
        "alt",
        "alternative",
        "alternate",
        "variant",
        "baseline",
        "ltr",
        "rtl",
        "24px",
        "16px",
        "20px",
        "12px",
        "32px",
    ]
)
SIZES = ("24", "32", "20", "28", "48", "16", "12", "15", "14", "11", "10", "96", "26")
_SIZE_RANK = {size: rank for rank, size in enumerate(SIZES)}
# An emoji drawn with this many gradients is shaded, which is what makes it look three-dimensional.
SHADED_GRADIENTS = 2

logger = logging.getLogger("iconshift.source")


@dataclass(frozen=True, kw_only=True)
class Icon:
    """One icon: `words` are its name without style and size, `index` its row in the rendered array of `set_name`."""

    set_name: str
    side: str
    family: str
    name: str
    words: tuple[str, ...]
    style: str
    index: int


def load_rules() -> dict:
    """The tables of sets.toml."""
    return tomllib.loads((HERE / "sets.toml").read_text())


def download(cache: Path) -> Path:
    """Fetch the pinned package with npm, check its SHA-1 and unpack it; returns the folder of the package."""
    source = load_rules()["source"]
    folder = cache / f"iconify-json-{source['version']}"
    if (folder / "package" / "collections.json").is_file():
        return folder / "package"
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", "--silent", f"{source['package']}@{source['version']}"]
    archive = folder / subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split()[-1]
    digest = hashlib.sha1(archive.read_bytes()).hexdigest()
    if digest != source["integrity_sha1"]:
        raise ValueError(f"{archive.name} has SHA-1 {digest}, sets.toml pins {source['integrity_sha1']}: delete it and try again.")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def split_name(name: str) -> list[str]:
    """`alarm-clock-2-outline` -> [alarm, clock, outline]; numbers other than sizes only count variants and go."""
    tokens = [token for token in re.split(r"[-_]", name) if token]
    return [re.sub(r"(?<=[a-z]{3})\d+$", "", token) for token in tokens if not token.isdigit() or token in _SIZE_RANK]


def style_of(tokens: list[str], rule: dict[str, str], svg: str) -> str:
    """The style that a set's rule gives these tokens; `drop` and "" leave the icon out."""
    style = rule["default"]
    for token in tokens:
        if token in rule and token not in ("family", "default"):
            style = rule[token]
            if style == "drop":
                return "drop"
    if style == "emoji" and svg.count("Gradient id=") >= SHADED_GRADIENTS:
        return "3d-emoji"
    return style


def catalogue(package: Path) -> list[Icon]:
    """Every usable icon of every listed set, one size each, in a fixed order."""
    rules, licences = load_rules(), json.loads((package / "collections.json").read_text())
    icons: list[Icon] = []
    for side in SIDES:
        for set_name, rule in rules[side].items():
            spdx = licences[set_name]["license"]["spdx"]
            if spdx not in LICENCES:
                raise ValueError(f"The set {set_name} is under {spdx}; sets.toml may list {sorted(LICENCES)} only.")
            icons += _icons_of_set(package, set_name, side, rule)
    return icons


def _icons_of_set(package: Path, set_name: str, side: str, rule: dict[str, str]) -> list[Icon]:
    """One icon for each (words, number, style): of several sizes the one nearest 24 pixels is kept."""
    data = json.loads((package / "json" / f"{set_name}.json").read_text())
    best: dict[tuple, tuple[int, Icon]] = {}
    for index, (name, icon) in enumerate(data["icons"].items()):
        tokens = split_name(name)
        style = style_of(tokens, rule, icon["body"])
        if not style or style == "drop" or icon.get("hidden") or ("skin" in tokens and "tone" in tokens):
            continue
        words = tuple(t for t in tokens if t not in STYLE_WORDS and t not in rule and not t.isdigit())
        if not words:
            continue
        rank = min((_SIZE_RANK[t] for t in tokens if t in _SIZE_RANK), default=0)
        key = (re.sub(r"(?<![a-z])(" + "|".join(SIZES) + r")(px)?(?![0-9])", "", name), style)
        made = Icon(set_name=set_name, side=side, family=rule["family"], name=name, words=words, style=style, index=index)
        if key not in best or rank < best[key][0]:
            best[key] = (rank, made)
    return [icon for _, icon in best.values()]


def render_svg(icon: dict, data: dict, size: int) -> np.ndarray:
    """One icon in black (or its own colours) on white, as uint8 [size, size, 3]; the drawing is centred and keeps its proportions."""
    left, top = icon.get("left", data.get("left", 0)), icon.get("top", data.get("top", 0))
    width, height = icon.get("width", data.get("width", 16)), icon.get("height", data.get("height", 16))
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    body = icon["body"].replace("currentColor", "#000000")
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'{head} viewBox="{box}" width="{size}" height="{size}">{body}</svg>'
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white"))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _render_part(job: tuple[Path, str, list[str], int]) -> np.ndarray:
    package, set_name, names, size = job
    data = json.loads((package / "json" / f"{set_name}.json").read_text())
    pictures = np.full((len(names), size, size, 3), 255, dtype=np.uint8)
    for row, name in enumerate(names):
        try:
            pictures[row] = render_svg(data["icons"][name], data, size)
        except ValueError as error:  # resvg could not read it: stays blank, and blank icons are left out
            logger.warning("%s:%s not rendered: %s", set_name, name, error)
    return pictures


def render_set(package: Path, set_name: str, names: list[str], size: int, cache: Path, pool: multiprocessing.pool.Pool) -> np.ndarray:
    """The pictures of `names`, uint8 [N, size, size, 3], from the cache or rendered now."""
    key = hashlib.sha256(f"{package.parent.name} {size} {' '.join(names)}".encode()).hexdigest()[:12]
    path = cache / "rendered" / f"{set_name}-{size}-{key}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        step = 400
        jobs = [(package, set_name, names[i : i + step], size) for i in range(0, len(names), step)]
        pictures = np.concatenate(list(pool.imap(_render_part, jobs)))
        partial = path.with_suffix(".part.npy")
        np.save(partial, pictures)
        partial.rename(path)
    return np.load(path, mmap_mode="r")


def render_all(icons: list[Icon], package: Path, size: int, cache: Path) -> np.ndarray:
    """The pictures of all `icons` in their order, uint8 [N, size, size, 3]."""
    from rich.progress import track

    by_set: dict[str, list[int]] = {}
    for row, icon in enumerate(icons):
        by_set.setdefault(icon.set_name, []).append(row)
    pictures = np.empty((len(icons), size, size, 3), dtype=np.uint8)
    with multiprocessing.Pool() as pool:
        for set_name, rows in track(by_set.items(), description="rendering icon sets"):
            pictures[rows] = render_set(package, set_name, [icons[r].name for r in rows], size, cache, pool)
    return pictures
