"""How good IconCap's captions are, as its model card shows: on held-out pre-training icons, and on IconShift's train and val splits.

    python benchmarks/iconcap/evaluate.py [--run RUN] [--folder FOLDER] [--beams 1]

Without RUN (the folder that `train.py` wrote) the held-out icons are left out. No test set and no shift of IconShift is read.
"""

from __future__ import annotations

import argparse
import json
import random
import tomllib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from surefoot.anchors.iconcap import FOLDER, IconCap, load_iconcap
from surefoot.data import Dataset, load
from surefoot.model import ImageTextModel

MIN_IMAGES = 4
RESAMPLES = 2000
Groups = dict[str, list[int]]


def synonyms() -> dict[str, list[str]]:
    """{class: the names that IconShift's class list takes for it}."""
    table = tomllib.loads((Path(__file__).parent.parent / "iconshift" / "classes.toml").read_text())
    return {name: [name, *(n.replace("-", " ") for n in names)] for name, names in table["seen"].items()}


def contains(caption: str, name: str) -> bool:
    """Whether the words of `name` stand in the caption, in a row."""
    return f" {name.lower()} " in f" {caption.replace(',', ' ')} "


@torch.no_grad()
def image_features(model: ImageTextModel, images: list[Image.Image]) -> torch.Tensor:
    return torch.cat([model.encode_image(x) for x in torch.stack([model.preprocess(image) for image in images]).split(64)])


@torch.no_grad()
def text_features(model: ImageTextModel, texts: list[str]) -> torch.Tensor:
    distinct = sorted(set(texts))
    features = torch.cat([model.encode_text(tokens) for tokens in model.tokenize(distinct).split(64)])
    return features[[distinct.index(text) for text in texts]]


def hits(image: torch.Tensor, text: torch.Tensor, groups: Groups) -> dict[str, np.ndarray]:
    """For each group and each of its texts: 1 if its own image scores highest in the group, a share of 1 where several images are tied.

    Two images with one caption are no tie: at most one of them can be found by it.
    """
    found = {}
    for name, rows in groups.items():
        score = (text[rows] @ image[rows].T).double()
        best = score >= score.amax(1, keepdim=True) - 1e-6  # equal texts meet equal images in another order of summation
        found[name] = (best.diag() / best.sum(1)).numpy()
    return found


def interval(found: dict[str, np.ndarray], other: Callable[[str], np.ndarray | float], seed: int = 0) -> tuple[float, float, float]:
    """Mean of found - other over all images with its 95% interval; resampled are whole classes, whose images depend on one another."""
    total = np.array([(found[name] - other(name)).sum() for name in found])
    count = np.array([len(found[name]) for name in found])
    drawn = np.random.default_rng(seed).integers(len(total), size=(RESAMPLES, len(total)))
    low, high = np.quantile(total[drawn].sum(1) / count[drawn].sum(1), [0.025, 0.975])
    return 100 * total.sum() / count.sum(), 100 * low, 100 * high


def own_names(data: Dataset, split: str) -> list[str]:
    """The names that the icons' designers gave them: a reference only, a captioner never sees them."""
    stems = [path.stem.partition("--")[2].replace("-", " ") for path in data.split(split).paths]
    return [f"an outline icon of a {stem}" for stem in stems]


def show(kind: str, hit: dict[str, np.ndarray], chance: dict[str, float]) -> None:
    mean, low, high = interval(hit, chance.__getitem__)
    share = interval(hit, lambda _: 0.0)[0]
    print(f"    {kind:20s} {share:5.2f} %, above chance {mean:+.2f} [{low:+.2f}, {high:+.2f}], {sum(map(len, hit.values()))} captions")


def report_split(data: Dataset, split: str, iconcap: IconCap) -> None:
    found = data.split(split)
    images = [Image.open(path).convert("RGB") for path in found.paths]
    names = [found.class_names[label] for label in found.labels]
    captions = iconcap(images)
    named = np.mean([contains(c, n) for c, n in zip(captions, names, strict=True)])
    known = synonyms()
    meant = np.mean([any(contains(c, other) for other in known[n]) for c, n in zip(captions, names, strict=True)])
    print(f"\n{split}: {len(images)} images, {len(set(captions))} distinct captions")
    print(f"  contain the class name: {100 * named:.1f} %, it or one of the class list's other names for it: {100 * meant:.1f} %")
    print(f"  words in a caption: {np.mean([len(c.split()) for c in captions]):.1f}")
    by_class: Groups = defaultdict(list)
    for row, name in enumerate(names):
        by_class[name].append(row)
    groups = {name: rows for name, rows in by_class.items() if len(rows) >= MIN_IMAGES}
    within = np.mean([len({captions[r] for r in rows}) / len(rows) for rows in groups.values()])
    print(f"  distinct captions in a class, of its images: {100 * within:.1f} %")
    chance = {name: 1 / len(rows) for name, rows in groups.items()}
    texts = {
        "captions": captions,
        "control": [f"an outline icon of {'an' if n[0] in 'aeiou' else 'a'} {n}" for n in names],
        "own names": own_names(data, split),
    }
    print(f"  retrieval within {len(groups)} classes of {sum(map(len, groups.values()))} images, IconCLIP zero-shot:")
    image = image_features(iconcap.model, images)
    for kind, text in texts.items():
        hit = hits(image, text_features(iconcap.model, text), groups)
        show(kind, hit, chance)
        if kind == "captions":
            told = {name: [any(contains(captions[r], n) for n in known[name]) for r in rows] for name, rows in groups.items()}
            show("that name the class", {name: hit[name][told[name]] for name in groups if any(told[name])}, chance)
    for row in random.Random(0).sample(range(len(images)), 12):
        print(f"    {names[row]:16s} {captions[row]}")


def report_held_out(run: Path, iconcap: IconCap, num_shown: int = 20) -> None:
    """The last line of the curve, captions that are right to the word, and examples."""
    rows = json.loads((run / "held_out.json").read_text())
    pictures = np.load(run / "pictures.npy", mmap_mode="r")
    curve = [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]
    print("held out:", {key: round(value, 4) for key, value in curve[-1].items() if key.startswith("held_out")})
    captions = iconcap([Image.fromarray(pictures[r]) for r, _ in rows])
    right = np.mean([caption == text for caption, (_, text) in zip(captions, rows, strict=True)])
    print(f"captions equal to the icon's own, word for word: {100 * right:.1f} % of {len(rows)}")
    for k in random.Random(0).sample(range(len(rows)), num_shown):
        print(f"    own: {rows[k][1]:60s} IconCap: {captions[k]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--beams", type=int, default=1)
    given = parser.parse_args()
    iconcap, data = load_iconcap(folder=given.folder, num_beams=given.beams), load("iconshift")
    print(iconcap.identity, f"{sum(path.stat().st_size for path in given.folder.iterdir()) / 1e6:.1f} MB")
    if given.run:
        report_held_out(given.run, iconcap)
    for split in ("val", "train"):
        report_split(data, split, iconcap)


if __name__ == "__main__":
    main()
