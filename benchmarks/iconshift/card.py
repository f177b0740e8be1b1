"""Write the data card of the embedded benchmark: counts from the shipped images, licences from the source package.

python benchmarks/iconshift/card.py BENCHMARK --cache CACHE
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from build import digest
from pack import EMBEDDED
from source import catalogue, download, load_rules

HERE = Path(__file__).parent
GOAL_IMAGES, GOAL_CLASSES = 300, 50


def table(head: list[str], rows: list[list[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def count(benchmark: Path) -> dict[str, Counter[str]]:
    """{split: {class folder: images}}."""
    counts: dict[str, Counter[str]] = {}
    for path in sorted(benchmark.rglob("*.webp")):
        split = path.parent.parent.relative_to(benchmark).as_posix()
        counts.setdefault(split, Counter())[path.parent.name] += 1
    order = {"train": 0, "val": 1, "test": 2}
    return dict(sorted(counts.items(), key=lambda item: (order.get(item[0], 3), item[0])))


def sets_table(side: str, package: Path, used: Counter[str]) -> str:
    rules, collections = load_rules()[side], json.loads((package / "collections.json").read_text())
    rows = []
    for name in rules:
        info = collections[name]
        author, licence = info["author"], info["license"]
        who = f"[{author['name']}]({author['url']})" if author.get("url") else author["name"]
        terms = f"[{licence['spdx']}]({licence['url']})" if licence.get("url") else licence["spdx"]
        rows.append([f"`{name}`", info["name"], who, terms, rules[name]["family"], used[name]])
    return table(["set", "name", "author", "licence", "family", "images"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    given = parser.parse_args()
    package, counts = download(given.cache), count(given.benchmark)
    built = json.loads((given.benchmark / "build.json").read_text())
    used = Counter(path.name.partition("--")[0] for path in given.benchmark.rglob("*.webp"))
    pretraining = Counter(icon.set_name for icon in catalogue(package) if icon.side == "pretraining")
    shifts = {split: by_class for split, by_class in counts.items() if split.startswith("shifts/")}
    short = [
        f"{split.removeprefix('shifts/')} has {sum(c.values())} images in {len(c)} classes"
        for split, c in shifts.items()
        if sum(c.values()) < GOAL_IMAGES or len(c) < GOAL_CLASSES
    ]
    missed = f"The goal for a shift was {GOAL_IMAGES} images and {GOAL_CLASSES} classes. "
    missed += f"Below it: {'; '.join(short)}: one set each, and no other under a free licence." if short else "All reach it."
    columns = list(counts)
    names = sorted({name for by_class in counts.values() for name in by_class})
    total, unseen = (sum(sum(c.values()) for split, c in counts.items() if split.startswith(prefix)) for prefix in ("", "unseen/"))
    sizes = [[split, sum(c.values()), len(c), min(c.values()), max(c.values())] for split, c in counts.items()]
    text = (HERE / "card.md").read_text()
    filled = text.format(
        summary=f"{total:,} images; {len(counts['train'])} training classes; {len(shifts)} shifts; {unseen} images of unseen classes.",
        version=built["source"]["version"],
        digest=digest(given.benchmark),
        threshold=built["recipe"]["threshold"],
        dropped=len((HERE / "dropped.tsv").read_text().splitlines()) - 1,
        labels=(HERE / "labels.md").read_text().strip(),
        missed=missed,
        splits=table(["split", "images", "classes", "smallest class", "largest class"], sizes),
        classes=table(["class", *columns], [[n, *(counts[c][n] or "" for c in columns)] for n in names]),
        benchmark_sets=sets_table("benchmark", package, used),
        pretraining_sets=sets_table("pretraining", package, pretraining),
    )
    (EMBEDDED / "iconshift.md").write_text(filled)
    print(EMBEDDED / "iconshift.md")


if __name__ == "__main__":
    main()
