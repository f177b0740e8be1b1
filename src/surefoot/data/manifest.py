"""A data set as a list: one CSV row or JSON line for each image.

    path,class,split,caption
    photos/0001.jpg,granny,train,a green apple on a table
    photos/0002.jpg,granny,val,
    sketches/17.png,fuji,shifts/sketch,

`path` is relative to the manifest's folder, and leads to a file in it; elsewhere, also by an absolute path or a link, only where the user
allows it. `split` is train, val, test, shifts/<name> or unseen/<name>; empty, or without the
column, it is train (and `surefoot.data.load` splits val and test off). `caption` is optional. A dataset.toml beside the manifest counts.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surefoot.data.dataset_toml import check_class_names, class_name, read_config
from surefoot.data.layout import SPLITS, Dataset, Split, dataset_of, listed, split_meant
from surefoot.data.shards import is_there
from surefoot.errors import DataError, MissingDataError
from surefoot.guard import parse_json, read_text
from surefoot.guard.places import check_inside

COLUMNS = ("path", "class", "split", "caption")
_MOST_NAMED = 10
_ALLOWED = f"{', '.join(SPLITS)}, shifts/<name>, unseen/<name>"
_SHIFT_OR_UNSEEN = re.compile(r"(shifts|unseen)/[^/]+")


@dataclass(frozen=True)
class _Row:
    """One image of the list; `line` is where it stands."""

    line: int
    path: Path
    label: str
    split: str
    caption: str


def open_manifest(path: Path, *, allow_outside: bool = False) -> Dataset:
    """The images that a manifest lists, as it stands; nothing is decoded. Rows may stand in any order.

    Args:
        path: a .csv file with a header, or a .jsonl file with an object in each line.
        allow_outside: let it name images outside of its folder, as a list of one's own often does.

    Raises:
        MissingDataError: no such file, or images that are not there (all of them together).
        DataError: a row that is not what it must be, named by its line; an image that lies elsewhere; multi-label data; fewer than two
            classes; a shift with a class that is not in train.
    """
    path = Path(path)
    config = read_config(path.parent / "dataset.toml")
    entries, unread = _entries(path)
    rows = [_row(path, line, entry) for line, entry in entries]
    if not allow_outside:
        check_inside(path.parent, [row.path for row in rows], str(path))
    _check_paths(path, rows)
    seen = sorted({row.label for row in rows if row.split == "train"})
    if len(seen) < 2:
        raise DataError(f"{path} holds {len(seen)} classes in train; classification needs at least two. Name one for each image.")
    called = tuple(class_name(config, label) for label in seen)
    splits: dict[str, Split] = {}
    names = {row.split for row in rows}
    for name in (*(name for name in SPLITS if name in names), *sorted(names - set(SPLITS))):
        own = [row for row in rows if row.split == name]
        labels, classes = seen, called
        if name.startswith("unseen/"):
            labels = sorted({row.label for row in own})
            classes = tuple(class_name(config, label) for label in labels)
        splits[name] = _split(path, name, own, labels, classes)
    check_class_names(path.parent / "dataset.toml", config, {row.label for row in rows})
    notes = [f"Columns of {path.name} that have no meaning here were not read: {listed(unread)}."] if unread else []
    return dataset_of(path.parent, path.stem, config, called, splits, notes)


def _split(path: Path, name: str, rows: Sequence[_Row], labels: Sequence[str], class_names: tuple[str, ...]) -> Split:
    """The images of one split, in the order that a folder would give."""
    place = {label: row for row, label in enumerate(labels)}
    for row in rows:
        if row.label not in place:
            raise DataError(
                f"{path}, line {row.line}: '{row.label}' is a class that train does not have. Rename it, or put it into unseen/<name>."
            )
    ordered = sorted(rows, key=lambda row: (place[row.label], row.path.parts))
    captions = tuple(row.caption for row in ordered)
    return Split(
        name,
        tuple(row.path for row in ordered),
        tuple(place[row.label] for row in ordered),
        class_names,
        captions if any(captions) else (),
    )


def _row(manifest: Path, line: int, entry: Mapping[str, Any]) -> _Row:
    where = f"{manifest}, line {line}"
    label = entry.get("class")
    if isinstance(label, int) and not isinstance(label, bool) and abs(label) < 1 << 63:
        label = str(label)
    if isinstance(label, list) or (isinstance(label, str) and re.search("[;|]", label)):
        raise DataError(
            f"{where}: the class {label!r} looks like several labels. Multi-label data are not supported: Surefoot trains classifiers with "
            "exactly one class for each image. Give one class in each row."
        )
    texts = []
    for column in COLUMNS:
        value = label if column == "class" else entry.get(column)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {column} is {repr(value)[:80]}. Write a text.")
        texts.append((value or "").strip())
        _check_letters(f"{where}: {column}", texts[-1])
    path, label, split, caption = texts
    for column, value in (("path", path), ("class", label)):
        if not value:
            raise DataError(f"{where}: {column} is empty. Give the {column} of this image, or remove the row.")
    split = split or "train"
    if split not in SPLITS and not _SHIFT_OR_UNSEEN.fullmatch(split):
        near = split_meant(split) or next(iter(difflib.get_close_matches(split, [*SPLITS, "shifts/", "unseen/"], n=1, cutoff=0.5)), None)
        hint = f" Did you mean '{near}'?" if near else ""
        raise DataError(f"{where}: unknown split '{split}'.{hint} Allowed: {_ALLOWED}.")
    return _Row(line, manifest.parent / path, label, split, caption)


def _check_letters(what: str, text: str) -> None:
    """A text is one that can be shown and written: no control characters, no halves of characters (which JSON may hold)."""
    if not text.isprintable() and (odd := [letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs")]):
        raise DataError(f"{what} holds the character {odd[0]!r}, which is no letter. Write the text without it.")


def _check_paths(manifest: Path, rows: Sequence[_Row]) -> None:
    """Every image is there, and stands in one row."""
    if not rows:
        raise DataError(f"{manifest} lists no images. Write one row for each image, with its path and its class.")
    missing = [f"{row.path} (line {row.line})" for row in rows if not is_there(row.path)]
    if missing:
        one = len(missing) == 1
        raise MissingDataError(
            f"{manifest} lists {len(missing)} {'file that is' if one else 'files that are'} not there: {listed(missing, _MOST_NAMED)}. "
            "Paths are relative to the manifest's folder, or absolute."
        )
    first: dict[str, _Row] = {}
    for row in rows:
        other = first.setdefault(os.path.normpath(row.path), row)
        if other is row:
            continue
        what = "twice in the list"
        if other.split != row.split:
            what = f"in two splits, {other.split} and {row.split}"
        elif other.label != row.label:
            what = f"in two classes, '{other.label}' and '{row.label}' (multi-label data are not supported)"
        raise DataError(f"{manifest}: {row.path} stands {what}, in lines {other.line} and {row.line}. Keep one of the two rows.")


def _entries(path: Path) -> tuple[list[tuple[int, Mapping[str, Any]]], list[str]]:
    """(line, {column: value}) of every row, and the columns that have no meaning."""
    if not path.is_file():
        raise MissingDataError(f"There is no manifest {path}. Give a .csv or .jsonl file with the columns {', '.join(COLUMNS)}.")
    kinds = {".csv": _csv, ".jsonl": _json_lines}
    if path.suffix.lower() not in kinds:
        raise DataError(
            f"{path} is a {path.suffix or 'nameless'} file; a manifest is a .csv or a .jsonl file with path and class of each image. "
            "Give one, or the folder that holds train/<class>/."
        )
    try:
        text = read_text(path, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    entries = list(kinds[path.suffix.lower()](path, text))
    columns = dict.fromkeys(column for _, entry in entries for column in entry)
    return entries, [column for column in columns if column not in COLUMNS]


def _csv(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        header = [column.strip() for column in reader.fieldnames or ()]
        _check_columns(f"{path}, line 1", header, "Separate the columns with commas. " if re.search("[;\t]", "".join(header)) else "")
        reader.fieldnames = header
        for entry in reader:
            line = reader.line_num
            if None in entry:
                raise DataError(f"{path}, line {line} has more cells than the header. Put cells that hold commas in double quotes.")
            yield line, entry
    except csv.Error as error:
        raise DataError(
            f"{path}, line {max(line, reader.line_num)} is not valid CSV: {error}. Put cells with quotes or commas in double quotes."
        ) from error


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            entry = parse_json(content)
        except ValueError as error:
            raise DataError(f"{path}, line {line} is not valid JSON: {error}. Write one object in each line.") from error
        if not isinstance(entry, dict):
            raise DataError(f'{path}, line {line} is no object. Write {{"path": "...", "class": "..."}}.')
        _check_columns(f"{path}, line {line}", list(entry), "")
        yield line, entry


def _check_columns(where: str, columns: Sequence[str], hint: str) -> None:
    """path and class are there, and no column is named almost like one that is not."""
    for wanted in COLUMNS:
        if wanted in columns:
            continue
        near = next((column for column in columns if column.lower() in (wanted, f"{wanted}s", f"{wanted}es")), None)
        if near is not None or wanted in ("path", "class"):
            rename = f"Rename '{near}' to '{wanted}'. " if near is not None else hint
            raise DataError(f"{where}: no column '{wanted}'. {rename}Found: {', '.join(columns) or 'none'}; used are {', '.join(COLUMNS)}.")
