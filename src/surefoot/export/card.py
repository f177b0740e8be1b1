"""The model card of an exported folder: what the model is, what it was measured to do, how it is opened. Figures come from records only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from surefoot import records
from surefoot.bundle import Bundle, Card
from surefoot.errors import DataError
from surefoot.guard.texts import SMALL, read_bytes
from surefoot.records import Described, Evaluation, Record
from surefoot.report import frontier_column, frontier_svg, markdown, rows
from surefoot.report.runs import collect, display_name
from surefoot.report.table import header

README, PICTURE = "README.md", "frontier.svg"
LIBRARY = {"open_clip": "open_clip", "transformers": "transformers", "onnx": "onnx"}
SHOWN = 30
_LICENCE = re.compile(r"^licen[sc]e:\s*[\"']?([\w.\-]+)", re.M)


def write_card(folder: Path, bundle: Bundle, target: str, found: Sequence[Record], licence: str | None) -> None:
    """Write README.md, and frontier.svg where the records of the run hold a frontier.

    Args:
        folder: the exported folder.
        bundle: the classifier.
        target: what it was exported as.
        found: the records of its run, as `measured` gives them; figures are left out if there are none.
        licence: of the checkpoint it came from; None if not known.
    """
    card = bundle.card
    column = frontier_column(found) if found else None
    if column:
        (folder / PICTURE).write_text(frontier_svg(found, on=column), encoding="utf-8")
    standing = collect(found) if found else None
    config = bundle.model.config()["preprocess_cfg"]
    text = _environment().get_template("card.md.j2").render(
        target=target, library=LIBRARY[target], card=card, licence=licence, picture=PICTURE if column else "",
        method=display_name(card.method), dataset=standing.dataset if standing else "", described=standing.described if standing else None,
        names=card.class_names[:SHOWN], more=len(card.class_names) - SHOWN, figures=_figures(found, card, column),
        table=markdown(rows(found)) if found else "", settings=_settings(card.origin), preprocessing=config,
        simple=_is_simple(config), seeds=_seeds(found, card), versions=_versions(card.origin),
    )  # fmt: skip
    (folder / README).write_text(text, encoding="utf-8")


def measured(run: Path, card: Card) -> list[Record]:
    """The records of a run if what stands there last of this classifier's method and alpha is its own; none otherwise.

    Its own is what has its seed and settings, on its data, from its weights: a run of other settings may have followed it.
    """
    try:
        found = list(records.read(run))
    except DataError:  # another program's records.jsonl
        return []
    own = [r for r in found if isinstance(r, Evaluation) and r.method == card.method and abs(r.alpha - card.alpha) < 1e-6]
    own = [r for r in own if r.seed == card.origin.get("seed", r.seed)][-1:]
    same = [r for r in own if all(r.provenance.get(key) == card.origin.get(key) for key in ("data", "weights"))]
    return found if any(r.settings == card.origin.get("settings", r.settings) for r in same) else []


def licence_of(base: str) -> str | None:
    """The licence that a checkpoint states: IconCLIP's, or what the head of README.md says in a folder; None where nothing says it.

    Examples:
        >>> licence_of("iconclip")
        'apache-2.0'
    """
    if base == "iconclip":
        return "apache-2.0"
    prefix, _, folder = base.partition(":")
    readme = Path(folder) / README
    if prefix not in ("local-dir", "hf-dir") or not readme.is_file():
        return None
    front = re.match(r"---\n(.*?)\n---", read_bytes(readme, SMALL).decode("utf-8", "replace"), re.S)
    said = _LICENCE.search(front.group(1)) if front else None
    return said.group(1) if said else None


def _figures(found: Sequence[Record], card: Card, column: str | None) -> str:
    """ID accuracy and the frontier's other accuracy, beside the zero-shot model's."""
    at = {(r.method, r.seed, round(r.alpha, 6)): r for r in found if isinstance(r, Evaluation)}
    own = at.get((card.method, int(card.origin.get("seed", 0)), round(card.alpha, 6)))
    zero = next((r for (method, _, alpha), r in at.items() if method == "zero_shot" or alpha == 0), None)
    if own is None or zero is None:
        return ""
    shown = [c for c in ("test", column) if c and c in own.accuracy and c in zero.accuracy]
    return "; ".join(f"{header(c)} {100 * own.accuracy[c]:.1f} % (zero-shot {100 * zero.accuracy[c]:.1f} %)" for c in shown)


def _settings(origin: Mapping[str, Any]) -> dict[str, str]:
    given = origin.get("settings", {})
    return {key: json.dumps(value, ensure_ascii=False) for key, value in sorted(given.items())}


def _seeds(found: Sequence[Record], card: Card) -> str:
    """The seed of these weights, and all seeds that the table is a mean over."""
    others = sorted({r.seed for r in found if isinstance(r, Evaluation) and r.method == card.method})
    return plain(card.origin.get("seed", "not recorded")) + (f"; the table is over the seeds {others}" if len(others) > 1 else "")


def _versions(origin: Mapping[str, Any]) -> str:
    known = {key: origin[key] for key in ("surefoot", "torch", "open_clip_torch", "python", "machine", "data", "weights") if key in origin}
    return ", ".join(f"{key} {value}" for key, value in known.items())


def _is_simple(config: Mapping[str, Any]) -> bool:
    """Whether the few lines of numpy in the card prepare images as this model needs them."""
    size = config["size"] if isinstance(config["size"], list | tuple) else [config["size"]] * 2
    return size[0] == size[1] and config.get("resize_mode", "shortest") in ("shortest", "squash")


def described_line(described: Described) -> str:
    """How many images each split has, those of the training style first.

    Examples:
        >>> described_line(Described(dataset="x", class_names={}, num_images={"test": 3, "train": 8}, templates=[]))
        'train 8, test 3'
    """
    first = [split for split in ("train", "val", "test") if split in described.num_images]
    return ", ".join(f"{split} {described.num_images[split]}" for split in dict.fromkeys([*first, *described.num_images]))


def plain(text: object) -> str:
    """Text that Markdown shows as it is, on one line.

    Examples:
        >>> plain("a*b | <i>")
        'a\\\\*b \\\\| &lt;i&gt;'
    """
    shown = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", shown)


def code(text: object) -> str:
    """Text as a span of code in Markdown, whatever it holds.

    Examples:
        >>> code("ViT-B-32"), code("a`b")
        ('`ViT-B-32`', '`` a`b ``')
    """
    shown = " ".join(str(text).split())
    if "`" not in shown:
        return f"`{shown}`"
    fence = "`" * (1 + max(len(run) for run in re.findall("`+", shown)))
    return f"{fence} {shown} {fence}"


@cache
def _environment() -> Environment:
    loader = PackageLoader("surefoot.export", package_path="")
    environment = Environment(loader=loader, autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "plain": plain,
        "code": code,
        "counts": described_line,
        "json": lambda value: json.dumps(value, ensure_ascii=False),
    }
    return environment
