"""Does an exported classifier answer the same everywhere? Top-1 on images of the embedded benchmark, by each library that opens it.

    python benchmarks/export/check.py runs/photos --images 500
    python benchmarks/export/check.py runs/photos --images 50 --without onnx --clip-benchmark OTHER-VENV/bin/python

Nothing is trained. The images of IconShift's test split are written as PNG files, which every library opens by itself; clip_benchmark reads
them offline as shards. A classifier answers by its head (`surefoot predict`) or by its text tower; both are compared with what Surefoot
computes in the same way. clip_benchmark tells only how many were right. It may live in an environment of its own: see --clip-benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from surefoot.bundle import Bundle, load_bundle
from surefoot.data import load, read_image
from surefoot.export import export
from surefoot.predict import predict
from surefoot.prompts import PromptTable

Answers = dict[tuple[str, str], list[int]]


def write_images(folder: Path, names: list[str], count: int) -> tuple[list[Path], list[int]]:
    """PNG files of `count` test images of classes that the model knows, spread evenly, and the numbers of their classes."""
    data = load("iconshift")
    split = data.split("test")
    known = [row for row, label in enumerate(split.labels) if data.class_names[label] in names]
    rows = [known[place] for place in np.linspace(0, len(known) - 1, min(count, len(known))).astype(int)]
    paths, labels = [], []
    for row in rows:
        paths.append(folder / f"{row:06d}.png")
        read_image(split.paths[row]).save(paths[-1])
        labels.append(names.index(data.class_names[split.labels[row]]))
    return paths, labels


def own(bundle: Bundle, paths: list[Path]) -> Answers:
    """Surefoot's answers, by the head and by the text tower with all prompts and with the first."""
    pixels = torch.stack([bundle.model.preprocess(read_image(path)) for path in paths])
    with torch.inference_mode():
        features = torch.cat([bundle.model.encode_image(part) for part in pixels.split(32)])
    head = [int(np.argmax(answer.probability)) for answer in predict(bundle.classifier(), paths)]
    found: Answers = {("what answers", "surefoot"): head}
    for which, templates in (("all prompts", bundle.card.templates), ("first prompt", bundle.card.templates[:1])):
        weight = text_weight(bundle, list(templates))
        found[which, "surefoot"] = (features @ weight.T).argmax(1).tolist()
    return found


def text_weight(bundle: Bundle, templates: list[str]) -> Tensor:
    """The text tower's classifier [K, D]."""
    table = PromptTable.build(templates, bundle.card.class_names)
    with torch.inference_mode():
        texts = torch.cat([bundle.model.encode_text(part) for part in bundle.model.tokenize(table.texts).split(256)])
    return F.normalize(texts[torch.tensor(table.index)].mean(1), dim=-1)


def by_card(folder: Path, paths: list[Path]) -> list[int]:
    """What the code in the folder's README.md answers; its last lines once for each image."""
    block = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)[0]
    lines = block.replace('"."', repr(str(folder))).splitlines()
    end = 1 + next(number for number, line in enumerate(lines) if line.startswith("names"))
    space: dict[str, object] = {}
    exec("\n".join(lines[:end]), space)
    answer = compile("\n".join(line for line in lines[end:] if not line.startswith("print")), str(folder), "exec")
    found = []
    for path in paths:
        space["photo"] = path
        exec(answer, space)
        found.append(int(space["probability"].argmax()))  # type: ignore[attr-defined]
    return found


def by_pipeline(folder: Path, paths: list[Path], bundle: Bundle) -> list[int]:
    """The zero-shot pipeline of transformers, with the first prompt."""
    from transformers import pipeline

    ask, names = pipeline("zero-shot-image-classification", model=str(folder)), list(bundle.card.class_names)
    best = [ask(str(path), candidate_labels=names, hypothesis_template=bundle.card.templates[0])[0]["label"] for path in paths]
    return [names.index(name) for name in best]


def by_clip_benchmark(python: str, folder: Path, root: Path, paths: list[Path], labels: list[int], bundle: Bundle) -> float:
    """Top-1 that clip_benchmark prints for the open_clip folder, offline, with all prompts."""
    (root / "test").mkdir(parents=True)
    (root / "classnames.txt").write_text("\n".join(bundle.card.class_names), encoding="utf-8")
    prompts = [template.replace("{}", "{c}") for template in bundle.card.templates]
    (root / "zeroshot_classification_templates.txt").write_text("\n".join(prompts), encoding="utf-8")
    (root / "test" / "nshards.txt").write_text("1")
    with tarfile.open(root / "test" / "0.tar", "w") as shard:
        for path, label in zip(paths, labels, strict=True):
            shard.add(path, f"{path.stem}.png")
            number = root / "label"
            number.write_text(str(label))
            shard.add(number, f"{path.stem}.cls")
    out = root / "out.json"
    command = [
        python, "-m", "clip_benchmark.cli", "eval", "--model", f"local-dir:{folder}", "--pretrained", "", "--dataset", "wds/iconshift",
        "--dataset_root", str(root), "--task", "zeroshot_classification", "--output", str(out), "--num_workers", "0", "--no_amp",
    ]  # fmt: skip
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)
    if done.returncode or not out.is_file():
        sys.exit(f"clip_benchmark failed; --without clip_benchmark leaves it out:\n{done.stderr[-2000:]}")
    return float(json.loads(out.read_text())["metrics"]["acc1"])


def table(found: Answers, labels: list[int], benchmark: float | None) -> str:
    """Top-1 by who answered, and how many answers are Surefoot's own, in Markdown."""
    right = np.array(labels)
    lines = ["| answered by | library | top-1 % | same answers |", "|---|---|---:|---:|"]
    for (which, library), answers in found.items():
        same = int((np.array(answers) == np.array(found[which, "surefoot"])).sum())
        lines.append(f"| {which} | {library} | {100 * (np.array(answers) == right).mean():.1f} | {same} of {len(labels)} |")
    if benchmark is not None:
        lines.append(f"| all prompts | clip_benchmark | {100 * benchmark:.1f} | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="A folder that 'surefoot fit' or 'surefoot soup' wrote, of classes of IconShift.")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--without", nargs="*", default=[], choices=["clip_benchmark", "transformers", "onnx"])
    parser.add_argument("--clip-benchmark", default=sys.executable, help="A Python that has clip_benchmark.")
    given = parser.parse_args()
    bundle, benchmark = load_bundle(given.model, device="cpu"), None
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "images").mkdir()
        paths, labels = write_images(root / "images", list(bundle.card.class_names), given.images)
        found = own(bundle, paths)
        folder = export(given.model, "open_clip", root / "open_clip")
        found["what answers", "open_clip"] = by_card(folder, paths)
        if "clip_benchmark" not in given.without:
            benchmark = by_clip_benchmark(given.clip_benchmark, folder, root / "wds", paths, labels, bundle)
        if "transformers" not in given.without:
            folder = export(given.model, "transformers", root / "transformers")
            found["what answers", "transformers"] = by_card(folder, paths)
            found["first prompt", "transformers' pipeline"] = by_pipeline(folder, paths, bundle)
        if "onnx" not in given.without:
            found["what answers", "onnxruntime"] = by_card(export(given.model, "onnx", root / "onnx"), paths)
    print(f"{len(labels)} test images of IconShift, {len(bundle.card.class_names)} classes, {bundle.card.method}\n")
    print(table(found, labels, benchmark))
    alike = sum(a == b for a, b in zip(found["what answers", "surefoot"], found["all prompts", "surefoot"], strict=True))
    print(
        f"\nWhat answers and all prompts through the text tower agree on {alike} of {len(labels)}; above, only the rest tells them apart."
    )


if __name__ == "__main__":
    main()
