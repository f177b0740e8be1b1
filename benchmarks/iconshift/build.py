"""Cut a benchmark of shifted images out of the icon sets.

    python benchmarks/iconshift/build.py --cache CACHE --out FOLDER             # IconShift as it is shipped
    python benchmarks/iconshift/build.py --cache CACHE --out FOLDER --id-style solid --swap-classes --name iconshift-solid

Steps: read the names (`naming`), render (`source`), drop near-duplicates by content (`duplicates`), split, write class folders
in the standard layout with a dataset.toml. The same parameters give the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from duplicates import THRESHOLD, clusters, descriptors, near
from naming import Classes
from source import Icon, catalogue, download, load_rules, render_all

TEMPLATES = (
    "an icon of a {}", "a {} icon", "a picture of a {}", "an image of a {}", "a drawing of a {}", "a symbol of a {}",
    "a {}", "{}", "an outline icon of a {}", "a solid icon of a {}", "a flat colour icon of a {}", "an emoji of a {}",
)  # fmt: skip
CONTEXTS = {
    "outline": "an outline icon of a {}",
    "solid": "a solid icon of a {}",
    "duotone": "a duotone icon of a {}",
    "flat": "a flat colour icon of a {}",
    "emoji": "an emoji of a {}",
    "bw-emoji": "a black and white emoji of a {}",
    "3d-emoji": "a 3D emoji of a {}",
    "pixel": "a pixel art icon of a {}",
    "hand-drawn": "a hand drawn icon of a {}",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one benchmark is cut by. Shares are of the ID images of each class; a class below the minimum is left out."""

    name: str = "iconshift"
    id_style: str = "outline"
    swap_classes: bool = False
    size: int = 48
    seed: int = 0
    share_val: float = 0.15
    share_test: float = 0.25
    min_id_images: int = 12
    min_unseen_images: int = 6
    max_per_class: int = 150
    max_per_shift: int = 800
    threshold: float = THRESHOLD


def label(icons: list[Icon], classes: Classes, recipe: Recipe) -> dict[str, dict[str, dict[str, list[int]]]]:
    """{"seen"|"unseen": {style: {class: rows}}} of the benchmark's side, in the catalogue's order."""
    found: dict = {"seen": defaultdict(lambda: defaultdict(list)), "unseen": defaultdict(lambda: defaultdict(list))}
    for row, icon in enumerate(icons):
        class_name = classes.class_of(icon) if icon.side == "benchmark" else None
        if class_name:
            seen = (classes.group_of(class_name) == "seen") != recipe.swap_classes
            found["seen" if seen else "unseen"][icon.style][class_name].append(row)
    return found


def shuffled(rows: list[int], icons: list[Icon], seed: int) -> list[int]:
    """`rows` in an order drawn from the seed and each icon's own name, so that dropping one icon moves no other."""
    return sorted(rows, key=lambda r: hashlib.blake2b(f"{seed} {icons[r].set_name}:{icons[r].name}".encode()).digest())


def distinct(rows: list[int], features: dict[int, np.ndarray], threshold: float) -> list[int]:
    """The first row of every cluster of near-duplicates, in the order given."""
    import torch

    component = clusters(torch.from_numpy(np.stack([features[r] for r in rows])), threshold)
    first = {c: r for r, c in reversed(list(zip(rows, component, strict=True)))}
    return [r for r in rows if r in set(first.values())]


def cut(icons: list[Icon], pictures: np.ndarray, classes: Classes, recipe: Recipe) -> dict[str, list[tuple[str, int]]]:
    """{split: [(class, row)]}: train, val, test, shifts/<style>, unseen/<id style>."""
    import torch

    labelled = label(icons, classes, recipe)
    rows = sorted({r for styles in labelled.values() for by_class in styles.values() for rs in by_class.values() for r in rs})
    blank = {r for r in rows if pictures[r].min() > 200}
    features = dict(zip(rows, descriptors(pictures[rows]).numpy(), strict=True))

    def pick(by_class: dict[str, list[int]], minimum: int) -> dict[str, list[int]]:
        owner = {r: c for c, rs in by_class.items() for r in rs if r not in blank}
        kept: dict[str, list[int]] = defaultdict(list)
        for r in distinct(shuffled(list(owner), icons, recipe.seed), features, recipe.threshold):
            if len(kept[owner[r]]) < recipe.max_per_class:
                kept[owner[r]].append(r)
        return {c: rs for c, rs in sorted(kept.items()) if len(rs) >= minimum}

    splits: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    seen = pick(labelled["seen"][recipe.id_style], recipe.min_id_images)
    for class_name, chosen in seen.items():
        n_val, n_test = (max(1, round(len(chosen) * share)) for share in (recipe.share_val, recipe.share_test))
        for split, part in (("val", chosen[:n_val]), ("test", chosen[n_val : n_val + n_test]), ("train", chosen[n_val + n_test :])):
            splits[split] += [(class_name, r) for r in part]
    id_features = torch.from_numpy(np.stack([features[r] for split in ("train", "val", "test") for _, r in splits[split]]))
    for style, by_class in sorted(labelled["seen"].items()):
        if style == recipe.id_style:
            continue
        chosen = [(c, r) for c, rs in pick({c: rs for c, rs in by_class.items() if c in seen}, 1).items() for r in rs]
        known = near(id_features, torch.from_numpy(np.stack([features[r] for _, r in chosen])), recipe.threshold).tolist()
        fresh = [item for item, is_known in zip(chosen, known, strict=True) if not is_known]
        first = set(shuffled([r for _, r in fresh], icons, recipe.seed)[: recipe.max_per_shift])
        splits[f"shifts/{style}"] = [(c, r) for c, r in fresh if r in first]
    unseen = pick(labelled["unseen"][recipe.id_style], recipe.min_unseen_images)
    splits[f"unseen/{recipe.id_style}"] = [(c, r) for c, rs in unseen.items() for r in rs]
    return splits


def folder_name(class_name: str) -> str:
    return class_name.replace(" ", "_")


def write(splits: dict[str, list[tuple[str, int]]], icons: list[Icon], pictures: np.ndarray, recipe: Recipe, out: Path) -> None:
    """Lossless WebP in class folders, dataset.toml, and build.json with the recipe and the counts."""
    for split, items in splits.items():
        for class_name, row in items:
            path = out / split / folder_name(class_name) / f"{icons[row].set_name}--{icons[row].name}.webp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures[row]).save(path, lossless=True, quality=100, method=6)
    styles = [recipe.id_style] + [s.removeprefix("shifts/") for s in splits if s.startswith("shifts/")]
    names = sorted({c for items in splits.values() for c, _ in items if folder_name(c).replace("_", " ") != c})
    lines = [f'name = "{recipe.name}"', f'id_context = "{recipe.id_style}"', "", "templates = ["]
    lines += [f'    "{template}",' for template in TEMPLATES] + ["]", "", "[contexts]"]
    lines += [f'{style} = "{CONTEXTS[style]}"' for style in styles] + ["", "[class_names]"]
    lines += [f'"{folder_name(name)}" = "{name}"' for name in names]
    (out / "dataset.toml").write_text("\n".join(lines) + "\n")
    counts = {split: {"images": len(items), "classes": len({c for c, _ in items})} for split, items in splits.items()}
    source = load_rules()["source"]
    (out / "build.json").write_text(json.dumps({"recipe": asdict(recipe), "source": source, "splits": counts}, indent=1) + "\n")


def digest(folder: Path) -> str:
    """SHA-256 over the relative paths and bytes of a folder's images."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.webp")):
        total.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return total.hexdigest()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="downloads and rendered sets are kept here")
    parser.add_argument("--out", type=Path, required=True, help="the benchmark is written here; must not exist")
    parser.add_argument("--classes", type=Path, help="another class list (default: classes.toml beside this script)")
    for name, default in asdict(Recipe()).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(default), default=default)
    return parser.parse_args()


def main() -> None:
    given = vars(parse())
    cache, out, class_list = given.pop("cache"), given.pop("out"), given.pop("classes")
    if out.exists():
        raise SystemExit(f"{out} exists: name another folder, or delete it first.")
    recipe, classes = Recipe(**given), Classes.load(class_list) if class_list else Classes.load()
    package = download(cache)
    icons = catalogue(package)
    pictures = render_all(icons, package, recipe.size, cache)
    splits = cut(icons, pictures, classes, recipe)
    write(splits, icons, pictures, recipe, out)
    for split, items in splits.items():
        sets = Counter(icons[r].set_name for _, r in items)
        print(f"{split:24s} {len(items):5d} images {len({c for c, _ in items}):4d} classes {len(sets):3d} sets")
    print("sha256", digest(out))


if __name__ == "__main__":
    main()
