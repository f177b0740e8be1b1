"""Pictures that one model gets right and another wrong, in both directions."""

from __future__ import annotations

import base64
from pathlib import Path

from surefoot.errors import DataError
from surefoot.guard import read_bytes
from surefoot.records import Example
from surefoot.report.runs import Runs, display_name
from surefoot.report.table import header

KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif"}
MOST = 5_000_000  # bytes of a small picture
CHANGES = {"gained": "From wrong to right", "lost": "From right to wrong", "context": "Context lost in fine-tuning"}


def section(runs: Runs, folder: Path) -> dict[str, object] | None:
    """What the section shows, or None without examples: pictures of both directions for each pair of models, and how many were left out."""
    pairs = list(dict.fromkeys((example.a, example.b) for example in runs.examples))
    shown = []
    num_missing = 0
    for a, b in pairs:
        groups = {}
        for change, title in CHANGES.items():
            examples = [example for example in runs.examples if (example.a, example.b, example.change) == (a, b, change)]
            cards = [card for example in examples if (card := _card(example, folder))]
            num_missing += len(examples) - len(cards)
            if cards:
                groups[title] = cards
        if groups:
            told = any(card["context"] for cards in groups.values() for card in cards)
            shown.append({"a": display_name(a), "b": display_name(b), "groups": groups, "contexts": told})
    return {"pairs": shown, "num_missing": num_missing} if pairs else None


def anchors(runs: Runs, folder: Path) -> dict[str, object] | None:
    """Training images with their captions and retrieved pairs, and who made them; None without any."""
    if not runs.anchored:
        return None
    cards = [
        {
            "source": data_uri(folder, one.image), "label": one.label, "caption": one.caption, "title": one.path,
            "pair_source": data_uri(folder, one.pair_image) if one.pair_image else None, "pair_text": one.pair_text,
        }
        for one in runs.anchored
    ]  # fmt: skip
    first = runs.anchored[0]
    return {"cards": [card for card in cards if card["source"]], "captioner": first.captioner, "pool": first.pool}


def _card(example: Example, folder: Path) -> dict[str, object] | None:
    """One picture with its caption, or None if the file is not there (any more)."""
    source = data_uri(folder, example.image)
    if source is None:
        return None
    return {
        "source": source,
        "label": example.label,
        "on": "" if example.on == "test" else header(example.on),
        "context": example.context,
        "rows": _rows(example),
        "title": example.path,
    }


def _rows(example: Example) -> list[dict[str, object]]:
    """What each model says of the picture: its class, and its context where the data name one."""
    given = [(example.b, example.answer_b, example.confidence_b, example.context_b)]
    if example.tuned:
        given.append((example.tuned, example.answer_tuned, example.confidence_tuned, example.context_tuned))
    given.append((example.a, example.answer_a, example.confidence_a, example.context_a))
    changed = {example.a: example.change == "gained", example.b: example.change == "lost"} if example.change != "context" else {}
    return [
        {
            "name": display_name(row),
            "answer": f"{answer} ({100 * confidence:.0f}%)",
            "css": "right" if changed.get(row, answer == example.label) else "wrong",
            "context": context,
            "right_context": context == example.context,
        }
        for row, answer, confidence, context in given
    ]


def data_uri(folder: Path, image: str) -> str | None:
    """The picture itself, as an address; files outside the records' folder, and what is too large for a small picture, are not read."""
    try:
        path = (folder / image).resolve()
    except (ValueError, OSError, RuntimeError):  # a NUL in the name, a link to itself
        return None
    kind = KINDS.get(path.suffix.lower())
    if kind is None or not path.is_relative_to(folder.resolve()):
        return None
    try:
        content = read_bytes(path, MOST)
    except (OSError, DataError):
        return None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
