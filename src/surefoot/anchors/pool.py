"""A pool of image-text pairs to retrieve from: a folder with a manifest, or webdataset shards.

    POOL/manifest.csv          path,caption: paths relative to it; manifest.jsonl with an object a line is read too
    POOL/*.tar                 webdataset shards: KEY.jpg (png, webp, ...) beside KEY.txt, or KEY.json with a "caption"

Only texts are read; the image of a pair is read when the pair is wanted.
"""

from __future__ import annotations

import csv
import glob
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from surefoot.data.embedded import names, unpack
from surefoot.data.layout import SUFFIXES
from surefoot.errors import DataError, MissingDataError

MANIFESTS = ("manifest.csv", "manifest.jsonl")
MOST_TEXT = 1 << 16  # bytes of a caption's file: what is longer is no caption
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Place:
    """Where the bytes of an image lie: a file of its own, or `size` bytes of a shard from `offset` on."""

    file: Path
    suffix: str
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """The image file's bytes.

        Raises:
            DataError: they cannot be read.
        """
        try:
            with self.file.open("rb") as opened:
                opened.seek(self.offset)
                return opened.read(self.size)
        except OSError as error:
            raise DataError(f"{self.file} cannot be read ({error.strerror}). Put it back, or retrieve again without it.") from error


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Candidates: `texts[i]` belongs to the image at `places[i]`; `notes` say what was left out."""

    name: str
    texts: tuple[str, ...]
    places: tuple[Place, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def without(self, class_names: tuple[str, ...]) -> Pool:
        """The candidates whose text names none of some classes: whole words, singular or plural, in any case."""
        words = "|".join(re.escape(name) for name in sorted(class_names, key=len, reverse=True))
        named = re.compile(rf"(?<!\w)(?:{words})(?:e?s)?(?!\w)", re.IGNORECASE)
        kept = [row for row, text in enumerate(self.texts) if not class_names or not named.search(text)]
        note = f"{len(self) - len(kept)} of {len(self)} candidates name one of the {len(class_names)} classes left out."
        return Pool(
            name=f"{self.name} without {len(class_names)} classes", texts=tuple(self.texts[row] for row in kept),
            places=tuple(self.places[row] for row in kept), notes=(*self.notes, note),
        )  # fmt: skip


def open_pool(place: str, *, skip_broken: bool = False, on_shard: Callable[[int, int], None] | None = None) -> Pool:
    """Read the texts of a pool.

    Args:
        place: an embedded pool ("iconpool"), a folder, a manifest file, a .tar file, or a pattern of them such as `shards/{000..099}.tar`.
        skip_broken: leave out what a broken shard does not give any more, instead of stopping.
        on_shard: hears how many shards are read, and how many there are.

    Raises:
        MissingDataError: nothing there.
        DataError: a broken manifest or shard, named.
    """
    path = unpack(place) if place in names() else Path(place)
    shards = _shards(place) if place not in names() else []
    if shards:
        found, notes = _of_shards(shards, skip_broken, on_shard)
    else:
        manifest = path if path.is_file() else next((path / name for name in MANIFESTS if (path / name).is_file()), None)
        if manifest is None:
            raise MissingDataError(
                f"{place} is no pool of image-text pairs. Give a folder with {' or '.join(MANIFESTS)} (columns path, caption), such a "
                "file, webdataset shards (.tar), or iconpool."
            )
        found, notes = _of_manifest(manifest), []
    kept = [(text, where) for text, where in found if text]
    if len(kept) < len(found):
        notes.append(f"{len(found) - len(kept)} candidates without a text are left out.")
    if not kept:
        raise DataError(f"{place} holds no image with a text. Give another pool.")
    return Pool(name=place, texts=tuple(text for text, _ in kept), places=tuple(where for _, where in kept), notes=tuple(notes))


def _shards(place: str) -> list[Path]:
    if (folder := Path(place)).is_dir():
        return sorted(folder.glob("*.tar"))
    if found := _BRACES.search(place):
        width = len(found[1])
        numbers = range(int(found[1]), int(found[2]) + 1)
        paths = [Path(place[: found.start()] + f"{number:0{width}d}" + place[found.end() :]) for number in numbers]
        if missing := [path for path in paths if not path.is_file()]:
            raise MissingDataError(f"{len(missing)} of {len(paths)} shards are not there, the first is {missing[0]}. Check the pattern.")
        return paths
    return [Path(path) for path in sorted(glob.glob(place)) if path.endswith(".tar")]  # noqa: PTH207 - the pattern may be absolute


def _of_manifest(path: Path) -> list[tuple[str, Place]]:
    rows, found, missing = list(_rows(path)), [], []
    for line, row in rows:
        name, caption = row.get("path"), row.get("caption")
        if not isinstance(name, str) or not isinstance(caption, str):
            raise DataError(f"{path}, line {line} has not got a path and a caption. Every line needs both columns; a caption may be empty.")
        image = path.parent / name
        missing += [] if image.is_file() else [image]
        found.append((caption.strip(), Place(image, image.suffix.lower())))
    if missing:
        raise DataError(f"{len(missing)} of {len(rows)} images of {path} are not there, such as {missing[0]}. Put them back.")
    return found


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix.lower() == ".jsonl":
                for number, line in enumerate(file, start=1):
                    row = json.loads(line)
                    yield number, row if isinstance(row, dict) else {}
            else:
                reader = csv.DictReader(file)
                yield from ((reader.line_num, row) for row in reader)
    except (OSError, ValueError, csv.Error) as error:  # ValueError: no JSON, or no UTF-8
        raise DataError(f"{path} cannot be read as a manifest ({error}). Give a CSV or JSONL file in UTF-8.") from error


@dataclass
class _Sample:
    """What a shard holds under one key."""

    text: str | None = None
    place: Place | None = None


def _of_shards(
    shards: list[Path], skip_broken: bool, on_shard: Callable[[int, int], None] | None
) -> tuple[list[tuple[str, Place]], list[str]]:
    found: list[tuple[str, Place]] = []
    notes: list[str] = []
    for number, shard in enumerate(shards, start=1):
        samples = _Shard(shard)
        try:
            samples.read()
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            if not skip_broken:
                raise DataError(
                    f"The shard {shard} is broken ({error}). Get it again, or leave out what it does not give by --skip-broken."
                ) from error
            notes.append(f"{shard} is broken ({error}): {len(samples.samples)} of its samples were read.")
        whole = [(one.text, one.place) for one in samples.samples.values() if one.text is not None and one.place]
        if half := len(samples.samples) - len(whole):
            notes.append(f"{half} samples of {shard} have no image or no text, and are left out.")
        found += [(text.strip(), place) for text, place in whole]
        if on_shard:
            on_shard(number, len(shards))
    return found, notes


@dataclass
class _Shard:
    """One tar file, read once from start to end; nothing is ever written under a member's name."""

    path: Path
    samples: dict[str, _Sample] = field(default_factory=dict)

    def read(self) -> None:
        size = self.path.stat().st_size
        with tarfile.open(self.path, "r:") as opened:
            for member in opened:
                if not member.isreg():
                    continue
                if member.offset_data + member.size > size:
                    raise EOFError(f"it ends in the middle of {member.name}")
                self._add(opened, member)
            end = opened.offset
        with self.path.open("rb") as file:  # tarfile takes a header that is cut off for the end
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise EOFError(f"it ends at byte {size} without an end mark")

    def _add(self, opened: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        folder, _, file = member.name.rpartition("/")
        key, _, suffix = file.partition(".")
        suffix = "." + suffix.lower()
        if suffix in SUFFIXES:
            self._of(folder, key).place = Place(self.path, suffix, member.offset_data, member.size)
        elif suffix in (".txt", ".json"):
            if member.size > MOST_TEXT:
                raise ValueError(f"{member.name} has {member.size} bytes, too many for a caption")
            stream = opened.extractfile(member)
            text = stream.read().decode("utf-8") if stream else ""
            sample = self._of(folder, key)
            if suffix == ".txt":
                sample.text = text
            elif sample.text is None and isinstance(known := json.loads(text), dict) and isinstance(known.get("caption"), str):
                sample.text = known["caption"]

    def _of(self, folder: str, key: str) -> _Sample:
        return self.samples.setdefault(f"{folder}/{key}", _Sample())
