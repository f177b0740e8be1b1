"""`surefoot predict`: probabilities for images."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich import box
from rich.table import Column, Table

from surefoot.bundle import load_bundle
from surefoot.cli import console as shared
from surefoot.errors import SettingError
from surefoot.folders import whole_file
from surefoot.predict import Answer, find_images
from surefoot.predict import predict as answers

SHOWN = 50


def predict(
    model: Annotated[Path, typer.Argument(help="A folder that 'surefoot fit' wrote, or its model/.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    classes: Annotated[str | None, typer.Option(help="Names never trained on, which compete too: --classes 'zebra, sea lion'.")] = None,
    none_of_these: Annotated[bool, typer.Option("--none-of-these", help="Give images of something else an answer of their own.")] = False,
    top: Annotated[int, typer.Option(help="How many answers are shown for each image.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Write all probabilities to this .csv or .jsonl file.")] = None,
    device: shared.Device = "auto",
    skip_unreadable: shared.SkipUnreadable = False,
) -> None:
    """Which class is on the image? With --classes or --none-of-these the text tower answers for all names, else the model's own head."""
    if out is not None and out.suffix not in (".csv", ".jsonl"):
        raise SettingError(f"--out is {out}; the file must end in .csv or .jsonl.")
    if top < 1:
        raise SettingError(f"--top is {top}; it must be 1 or more.")
    if out is not None and out.is_dir():
        raise SettingError(f"--out is {out}, which is a folder. Give a file in it, such as {out / 'answers.csv'}.")
    if out is not None:
        shared.check_folder(out.parent)
    added = shared.names(classes) or []
    if twice := [name for name in added if added.count(name) > 1]:
        raise SettingError(f"--classes holds '{twice[0]}' twice. Write each name once.")
    paths = find_images(images)
    classifier = load_bundle(model, device=device).classifier(added, none_of_these=none_of_these)
    found = []
    with shared.bar() as progress:
        task = progress.add_task("images", total=len(paths))
        for answer in answers(classifier, paths, skip_unreadable=skip_unreadable):
            found.append(answer)
            progress.advance(task)
    if out is not None:
        _write(out, found, classifier.names)
    _show(found, classifier.names, top)
    if unread := sum(bool(answer.error) for answer in found):
        shared.errors.print(f"{unread} of {len(found)} images could not be read and were skipped.")


def _show(found: Sequence[Answer], names: Sequence[str], top: int) -> None:
    table = Table(Column("image", overflow="fold"), *(f"answer {n}" for n in range(1, min(top, len(names)) + 1)), box=box.SIMPLE_HEAD)
    above = Path(os.path.commonpath([answer.path.absolute().parent for answer in found]))  # long paths differ in their ends
    for answer in found[:SHOWN]:
        best = sorted(range(len(answer.probability)), key=lambda k: -answer.probability[k])[:top]
        cells = (
            str(answer.path.absolute().relative_to(above)),
            *([f"{names[k]} {100 * answer.probability[k]:.1f}%" for k in best] or [answer.error]),
        )
        table.add_row(*(shared.plain(cell) for cell in cells))
    shared.console.print(table)
    if len(found) > SHOWN:
        shared.console.print(f"and {len(found) - SHOWN} more; --out answers.csv holds all of them")


def _write(path: Path, found: Sequence[Answer], names: Sequence[str]) -> None:
    """All answers in one piece, or no file at all."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        {".csv": _write_csv, ".jsonl": _write_jsonl}[path.suffix](file, found, names)


def _write_csv(file: TextIO, found: Sequence[Answer], names: Sequence[str]) -> None:
    writer = csv.writer(file)
    writer.writerow(["path", "answer", *told_apart(names), "error"])
    for answer in found:
        best = names[max(range(len(names)), key=lambda k: answer.probability[k])] if answer.probability else ""
        writer.writerow([answer.path, best, *([f"{p:.6f}" for p in answer.probability] or [""] * len(names)), answer.error])


def _write_jsonl(file: TextIO, found: Sequence[Answer], names: Sequence[str]) -> None:
    for answer in found:
        given = dict(zip(told_apart(names), answer.probability, strict=True)) if answer.probability else {}
        file.write(json.dumps({"path": str(answer.path), "probability": given, "error": answer.error}) + "\n")


def told_apart(names: Sequence[str]) -> list[str]:
    """Names of which each stands once: classes of one name, as iWildCam and ImageNet have, are counted.

    Examples:
        >>> told_apart(["missile", "tench", "missile"])
        ['missile', 'tench', 'missile (2)']
    """
    seen: Counter[str] = Counter()
    found: list[str] = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
