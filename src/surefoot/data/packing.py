"""Writing a data set as webdataset shards, in the layout that `surefoot.data.sharded` opens."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from surefoot.data.layout import SUFFIXES, Dataset, Split, listed
from surefoot.data.sharded import METRICS, NAMES, SET
from surefoot.data.shards import MOST_IMAGE, MOST_TEXT, content, stamp
from surefoot.data.streamed import NUM_SHARDS
from surefoot.data.writing import alone
from surefoot.errors import DataError, SettingError

PLAN = "packing.json"
LOCK = ".shards.lock"  # lets one process at a time into the folder
PER_SHARD = 10_000
_MOST_NAME = 60  # letters of a member's name that tell where it came from


def pack(dataset: Dataset, out: Path, *, per_shard: int = PER_SHARD, on_image: Callable[[int, int], None] | None = None) -> int:
    """Write every split as shards, images byte for byte and in the data set's order, so that a run from either gives the same weights.

    Shards that are there are not written again: an interrupted packing goes on where it stopped. Until it is finished the folder cannot be
    opened, since its nshards.txt count more shards than there are.

    Args:
        dataset: with the splits that are wanted; those that `load` cut off train become given ones.
        out: the folder; made if it is not there.
        per_shard: images in each shard; the last of a split may hold fewer.
        on_image: told how many images are in shards, of how many.

    Returns:
        How many shards the folder holds.

    Raises:
        SettingError: `per_shard` below 1, or a folder that holds something else.
        DataError: an image that cannot be read, or whose name does not end as images do; or what could not be opened again: an empty
            split, a class without an image in train, a class name with spaces around it, a caption that is too long; or another process
            packs into the folder.
    """
    if per_shard < 1:
        raise SettingError(f"{per_shard} images per shard were asked for. Give 1 or more; 10000 is usual.")
    parts = [(name, start, split) for name, split in dataset.splits.items() for start in range(0, len(split), per_shard)]
    _check(dataset)
    done, total = 0, sum(len(split) for split in dataset.splits.values())

    def tell(more: int) -> None:
        nonlocal done
        done += more
        if on_image:
            on_image(done, total)

    with alone(out, "shards", "--out", "shards that are finished are kept"):
        _begin(dataset, out, per_shard)
        for name, start, split in parts:
            rows = range(start, min(start + per_shard, len(split)))
            target = out / name / f"{start // per_shard:06d}.tar"
            if target.is_file():
                tell(len(rows))
            else:
                _write(target, dataset, split, rows, tell)
    return len(parts)


def _check(dataset: Dataset) -> None:
    """What is written can be opened again, and is the same data set then."""
    for name, split in dataset.splits.items():
        if not len(split):
            raise DataError(f"The split {name} of {dataset.name} holds no image; shards without one cannot be opened. Leave it out.")
        _check_samples(split)
    train = dataset.splits.get("train")
    if train is None:
        raise DataError(f"{dataset.name} has no split train, without which shards cannot be opened. Pack it with train.")
    present = set(train.labels)
    if lacking := [called for label, called in enumerate(dataset.class_names) if label not in present]:
        raise DataError(
            f"train of {dataset.name} holds no image of {len(lacking)} of its {len(dataset.class_names)} classes: {listed(lacking)}. "
            "Shards of it could not be opened. Add images, or take the classes out."
        )
    for names in (dataset.class_names, *(split.class_names for split in dataset.splits.values())):
        _listing(names)
    for text in (dataset.name, *dataset.templates, *dataset.contexts, *dataset.contexts.values()):
        if not _is_text(text):
            raise DataError(f"{text!r} of {dataset.name} is no valid text. Rename it in dataset.toml.")


def _check_samples(split: Split) -> None:
    """Every image's name ends so that it is found again, and its texts are not too long to be read."""
    for row, path in enumerate(split.paths):
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path} has no image's ending. Rename it; images end in {', '.join(sorted(SUFFIXES))}.")
        for what, text in (("caption", _caption(split, row)), ("group", _more(split, row))):
            if len(text) > MOST_TEXT:
                raise DataError(
                    f"The {what} of {path} has {len(text)} bytes; shards hold texts of {MOST_TEXT} at most. Shorten it: models read "
                    "far fewer words."
                )


def _begin(dataset: Dataset, out: Path, per_shard: int) -> None:
    """Everything but the shards; the plan first, and how many shards there will be last."""
    plan = {"data": dataset.name, "images_per_shard": per_shard, "content": _content_hash(dataset)}
    if (out / PLAN).is_file():
        if (out / PLAN).read_text(encoding="utf-8") != _json(plan):
            raise SettingError(f"{out} holds shards of other data or of another size. Give another --out, or remove that folder.")
    elif out.exists() and any(not path.name.startswith(LOCK) for path in out.iterdir()):
        raise SettingError(f"{out} is not empty, and no packing was begun there. Give another --out.")
    _replace(out / PLAN, _json(plan))
    _replace(out / NAMES, _listing(dataset.class_names))
    _replace(out / "dataset.toml", _toml(dataset))
    if whole := _whole(dataset):
        _replace(out / SET, whole)
    for name, split in dataset.splits.items():
        if about := _about(split):
            _replace(out / name / SET, about)
        if name.startswith("unseen/") or split.mapped:
            _replace(out / name / NAMES, _listing(split.class_names))
        _replace(out / name / NUM_SHARDS, f"{-(-len(split) // per_shard)}\n")


def _content_hash(dataset: Dataset) -> str:
    """Of everything that is written but the bytes of images, of which size and time of change stand in."""
    total = hashlib.sha256((_toml(dataset) + dataset.metric + _whole(replace(dataset, metric=METRICS[0]))).encode())
    for name, split in dataset.splits.items():
        images = [(dataset.written(path), *_stamp(path)) for path in split.paths]
        total.update(repr((name, split.class_names, split.labels, split.captions, split.groups, _about(split), images)).encode())
        total.update(repr(split.accepted).encode() * any(split.accepted))
    return total.hexdigest()[:16]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = stamp(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Put it back, or allow it to be read.") from error
    if found[0] > MOST_IMAGE:
        raise DataError(f"{path} has {found[0]} bytes, too many for an image in a shard. Save it smaller, or take it out.")
    return found


def _listing(names: tuple[str, ...]) -> str:
    for name in names:
        if name.splitlines() != [name] or name != name.strip() or name.startswith("\ufeff") or not _is_text(name):
            raise DataError(f"The class name {name!r} is not one line of text without spaces around it. Rename it in dataset.toml.")
    return "".join(f"{name}\n" for name in names)


def _is_text(text: str) -> bool:
    """Whether it can be written: names of files need not be valid text."""
    return text.encode("utf-8", "replace").decode() == text


def _toml(dataset: Dataset) -> str:
    """dataset.toml; texts of JSON are texts of TOML."""
    lines = [f"name = {_json(dataset.name)}", f"templates = {_json(dataset.templates)}"]
    if dataset.id_context is not None:
        lines.append(f"id_context = {_json(dataset.id_context)}")
    if dataset.contexts:
        lines += ["", "[contexts]", *(f"{_json(name)} = {_json(prompt)}" for name, prompt in dataset.contexts.items())]
    return "\n".join(lines) + "\n"


def _whole(dataset: Dataset) -> str:
    """set.toml of the data set; "" if it has nothing of its own."""
    known = {"id_domain": dataset.id_domain, "fewer_shots": dataset.fewer_shots}
    usual = "" if dataset.metric == METRICS[0] else f"metric = {_json(dataset.metric)}\n"
    return usual + "".join(f"{key} = {_json(value)}\n" for key, value in known.items() if value)


def _about(split: Split) -> str:
    """set.toml of a split; "" if it has nothing of its own."""
    known = {key: getattr(split, key) for key in ("templates", "mapped", "border", "declared", "together")}
    return "".join(f"{key} = {_json(value)}\n" for key, value in known.items() if value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _write(target: Path, dataset: Dataset, split: Split, rows: range, tell: Callable[[int], None]) -> None:
    """One shard, in one piece."""
    partial = target.with_name(target.name + ".part")
    try:
        with partial.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for row in rows:
                    for name, read in _files(dataset, split, row):
                        member = tarfile.TarInfo(name)  # time and owner stay 0: the same data give the same bytes
                        member.size = len(read)
                        tar.addfile(member, io.BytesIO(read))
                    tell(1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _files(dataset: Dataset, split: Split, row: int) -> Iterator[tuple[str, bytes]]:
    """The names and the bytes of a sample: its image, its class, and what else it has."""
    path = split.paths[row]
    try:
        image = content(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Allow it to be read, or remove it.") from error
    key = f"{row:08d}-{_origin(dataset.written(path), split.name)}"
    yield key + path.suffix.lower(), image
    yield f"{key}.cls", str(split.labels[row]).encode()
    if caption := _caption(split, row):
        yield f"{key}.txt", caption
    if more := _more(split, row):
        yield f"{key}.json", more


def _caption(split: Split, row: int) -> bytes:
    return split.captions[row].encode("utf-8", "replace") if split.captions else b""


def _more(split: Split, row: int) -> bytes:
    """KEY.json: the group, and other classes that are right; b"" for none."""
    found: dict[str, object] = {"group": split.groups[row]} if split.groups else {}
    if split.accepted and split.accepted[row]:
        found["accepted"] = split.accepted[row]
    return json.dumps(found).encode() if found else b""


def _origin(written: str, split: str) -> str:
    """Where an image came from, as far as a member's name may say it: no dot, no folder.

    Examples:
        >>> _origin("train/granny smith/17.b.png", "train")
        'granny_smith-17_b'
    """
    name = written.removeprefix(f"{split}/").rpartition(".")[0].replace("/", "-")
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[-_MOST_NAME:]


def _replace(path: Path, text: str) -> None:
    """Write a file so that its name stands for the old or the new text, never for half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
