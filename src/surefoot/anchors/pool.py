"""A pool of image-text pairs to retrieve from: a folder with a manifest, or webdataset shards.

    POOL/manifest.csv          path,caption: paths relative to it; manifest.jsonl with an object a line is read too
    POOL/*.tar                 webdataset shards: KEY.jpg (png, webp, ...) beside KEY.txt, or KEY.json with a "caption"
    POOL/shards.txt            their addresses or paths, one or a pattern in each line; each is downloaded once, as those of training data

Only texts are read; the image of a pair is read when the pair is wanted. Shards come from strangers: nothing is ever written under a
member's name, and no size that a header claims is believed.
"""

from __future__ import annotations

import csv
import glob
import io
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from surefoot.data.downloads import is_remote
from surefoot.data.embedded import names, unpack
from surefoot.data.layout import SUFFIXES
from surefoot.data.shards import BROKEN, MOST_IMAGE, MOST_TEXT, check_member, content, is_there, open_tar, stamp, text_of, walk
from surefoot.data.streamed import LIST, expanded, fetched, local_shards, read_list, shards_named, tar_name
from surefoot.errors import DataError, MissingDataError, SettingError
from surefoot.guard import parse_json, read_text
from surefoot.guard.places import check_inside

MANIFESTS = ("manifest.csv", "manifest.jsonl")
_LONG = 6  # letters: a shorter word written apart is another one


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of an image lie: a file of its own, or `size` bytes from `offset` on of a shard, whose `stamp` tells its state."""

    file: Path
    suffix: str
    offset: int = 0
    size: int = -1
    stamp: tuple[int, int] | None = None

    def check(self) -> None:
        """The shard is the one that was opened.

        Raises:
            DataError: it has another size or time of change.
        """
        if self.stamp and self.file.is_file() and stamp(self.file) != self.stamp:
            raise DataError(
                f"The shard {self.file} has changed since its texts were read, so that they belong to other images. Retrieve again."
            )

    def read(self) -> bytes:
        """The image file's bytes.

        Raises:
            DataError: they cannot be read, are too many for an image, or lie in a shard that has changed.
        """
        self.check()
        try:
            if self.size < 0:
                found = content(self.file, MOST_IMAGE + 1)
            else:
                with open_tar(self.file) as shard:
                    shard.seek(self.offset)
                    found = shard.read(min(self.size, MOST_IMAGE))
        except OSError as error:
            raise DataError(f"{self.file} cannot be read ({error.strerror}). Put it back, or retrieve again without it.") from error
        if len(found) < self.size or len(found) > MOST_IMAGE:
            raise DataError(f"{self.file} has changed, or is too large for an image. Retrieve again without it.")
        return found


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Candidates: `texts[i]` belongs to the image at `places[i]`; `notes` say what was left out.

    `rows[i]` is the candidate's row in the pool as it was opened, which names it and its embedding, however many others are left out.
    """

    name: str
    texts: tuple[str, ...]
    places: tuple[Place, ...]
    rows: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def without(self, class_names: Sequence[str]) -> Pool:
        """The candidates whose text names none of some classes: whole words, singular or plural, in any case. Other words for a class stay.

        Raises:
            SettingError: no name.
            DataError: no candidate is left.
        """
        if not (wanted := [name for name in class_names if name.strip()]):
            raise SettingError("No class is named that candidates are to be left out for. Name one at least, such as 'cat, sea lion'.")
        named = _naming(wanted)
        kept = [row for row, text in enumerate(self.texts) if not named.search(text)]
        if not kept:
            raise DataError(f"All {len(self)} candidates of {self.name} name one of the {len(wanted)} classes left out. Leave out fewer.")
        note = f"{len(self) - len(kept)} of {len(self)} candidates name one of the {len(wanted)} classes left out."
        return replace(
            self, name=f"{self.name} without {len(wanted)} classes", texts=tuple(self.texts[row] for row in kept),
            places=tuple(self.places[row] for row in kept), rows=tuple(self.rows[row] for row in kept), notes=(*self.notes, note),
        )  # fmt: skip


def _naming(class_names: Iterable[str]) -> re.Pattern[str]:
    words = "|".join(map(_forms, sorted(class_names, key=len, reverse=True)))
    return re.compile(rf"(?<![^\W_])(?:{words})(?![^\W_])", re.IGNORECASE)


def _forms(name: str) -> str:
    """A pattern of a class's name, singular and plural, its words joined or not; a long word may be written apart, as "paint brush".

    Examples:
        >>> [bool(re.fullmatch(_forms("sea wolf"), text)) for text in ("sea wolf", "sea-wolves", "seawolfs", "sea")]
        [True, True, True, False]
    """
    *first, last = [word for word in re.split(r"[\s_-]+", name) if word] or [name]
    if last[-1] in "yY":
        end = _apart(last[:-1]) + "(?:ys?|ies)"
    elif last[-1] in "sS" and len(last) > 3:
        end = _apart(last[:-1]) + "(?:s(?:es)?)?"
    elif stem := re.fullmatch(r"(.+?)fe?", last, re.IGNORECASE):
        end = _apart(stem[1]) + "(?:fe?s?|ves)"
    else:
        end = _apart(last) + "(?:e?s)?"
    return r"[\s_-]*".join([*map(_apart, first), end])


def _apart(word: str) -> str:
    return (r"[\s_-]?" if len(word) >= _LONG else "").join(map(re.escape, word))


def open_pool(
    place: str, *, skip_broken: bool = False, allow_outside: bool = False, on_shard: Callable[[int, int], None] | None = None
) -> Pool:
    """Read the texts of a pool.

    Args:
        place: an embedded pool ("iconpool"), a folder, a manifest file, a .tar file or its address, a pattern of them such as
            `shards/{000..099}.tar`, or a list of them, such as shards.txt.
        skip_broken: leave out what a broken shard does not give any more, instead of stopping. A sample of a whole shard that cannot be
            read, such as one in Latin-1, is left out and told in any case.
        allow_outside: let a manifest or a list of shards lead to files outside of its folder.
        on_shard: hears how many shards are read, and how many there are.

    Raises:
        MissingDataError: nothing there.
        DataError: a broken manifest, list or shard, named.
    """
    embedded = place in names()
    beside, shards = (Path(), []) if embedded else _shards(place)
    if shards:
        if not allow_outside and beside != Path():
            check_inside(beside, [beside / shard for shard in shards if not is_remote(shard)], f"The list of shards in {beside}")
        found, notes = _of_shards(beside, shards, skip_broken, on_shard)
    else:
        manifest = _manifest(unpack(place) if embedded else Path(place), place)
        found, notes = _of_manifest(manifest, allow_outside), []
    kept = [(text, where) for text, where in ((_clean(text), where) for text, where in found) if text]
    if len(kept) < len(found):
        notes.append(f"{len(found) - len(kept)} candidates without a text are left out.")
    if not kept:
        raise DataError(f"{place} holds no image with a text. Give another pool. {' '.join(notes)}".rstrip())
    texts, places = zip(*kept, strict=True)
    return Pool(name=place, texts=texts, places=places, rows=tuple(range(len(kept))), notes=tuple(notes))


def _clean(text: str) -> str:
    return text.strip().encode("utf-8", "replace").decode()  # JSON may hold half a character


def _manifest(path: Path, place: str) -> Path:
    for file in (path, *(path / name for name in MANIFESTS)):
        if file.is_file():
            return file
    raise MissingDataError(
        f"{place} is no pool of image-text pairs. Give a folder with {' or '.join(MANIFESTS)} (columns path, caption), such a "
        "file, webdataset shards (.tar, their address, or a list of them), or iconpool."
    )


def _shards(place: str) -> tuple[Path, list[str]]:
    """The folder that paths are relative to, and the paths or addresses of shards; none for a manifest."""
    path = Path(place)
    if path.is_dir():
        return _in_folder(path)
    if path.name.endswith(LIST) and path.is_file():
        return path.parent, list(read_list(path).values())
    if (every := expanded(place)) == [place] and not is_remote(place):
        return Path(), [path for path in sorted(glob.glob(place)) if path.endswith(".tar")]  # noqa: PTH207 - the pattern may be absolute
    local = [path for path in every if not (is_remote(path) and tar_name(path))]
    if missing := [path for path in local if not Path(path).is_file()]:
        raise MissingDataError(f"{len(missing)} of {len(every)} shards are not there, the first is {missing[0]}. Check the pattern.")
    return Path(), every


def _in_folder(folder: Path) -> tuple[Path, list[str]]:
    if (folder / LIST).is_file():
        return folder, list(shards_named(folder).values())
    names = sorted(path.name for path in folder.glob("*.tar") if not path.name.startswith("."))  # macOS leaves ._0.tar
    if not names and not any((folder / name).is_file() for name in MANIFESTS):
        local_shards(folder)  # which tells of compressed ones, and of such in capitals
    return folder, names


def _of_manifest(path: Path, allow_outside: bool) -> list[tuple[str, Place]]:
    rows, found = list(_rows(path)), list[tuple[str, Place]]()
    for line, row in rows:
        name, caption = row.get("path"), row.get("caption")
        if not isinstance(name, str) or not isinstance(caption, str):
            raise DataError(f"{path}, line {line} has not got a path and a caption. Every line needs both columns; a caption may be empty.")
        image = path.parent / name
        found.append((caption, Place(image, image.suffix.lower())))
    if not allow_outside:
        check_inside(path.parent, [where.file for _, where in found], str(path))
    missing = [where.file for _, where in found if not is_there(where.file)]
    if missing:
        raise DataError(f"{len(missing)} of {len(rows)} images of {path} are not there, such as {missing[0]}. Put them back.")
    return found


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    try:
        with io.StringIO(read_text(path, "utf-8-sig"), newline="") as file:
            if path.suffix.lower() == ".jsonl":
                for number, line in enumerate(file, start=1):
                    row = parse_json(line)
                    yield number, row if isinstance(row, dict) else {}
            else:
                reader = csv.DictReader(file)
                yield from ((reader.line_num, row) for row in reader)
    except DataError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # ValueError: no JSON, or no UTF-8
        raise DataError(f"{path} cannot be read as a manifest ({error}). Give a CSV or JSONL file in UTF-8.") from error


def _of_shards(
    beside: Path, shards: Sequence[str], skip_broken: bool, on_shard: Callable[[int, int], None] | None
) -> tuple[list[tuple[str, Place]], list[str]]:
    """The texts of some shards, by path or address, and where their images lie, in order, and what is to be told of them."""
    found: list[tuple[str, Place]] = []
    notes: list[str] = []
    num_half, odd, again = 0, list[str](), list[str]()
    for number, address in enumerate(shards, start=1):
        path = address if is_remote(address) else str(beside / address)
        shard = _Shard(fetched(address, beside))
        try:
            shard.read()
        except BROKEN as error:
            if not skip_broken:
                raise DataError(
                    f"The shard {path} is broken ({error}). Get it again, or leave out what it does not give by --skip-broken."
                ) from error
            notes.append(f"{path} is broken ({error}): {len(shard.whole())} of its pairs were read.")
        found += shard.whole()
        num_half += len(shard.samples) - len(shard.whole()) - len(shard.odd())
        odd += [f"{reason} in {path}" for reason in shard.odd()]
        again += [f"{name} of {path}" for name in shard.again]
        if on_shard:
            on_shard(number, len(shards))
    if num_half:
        notes.append(f"{num_half} samples of the shards have no image or no text, and are left out.")
    if odd:
        notes.append(f"{len(odd)} samples cannot be read, and are left out. The first: {odd[0]}.")
    if again:
        notes.append(f"{len(again)} files stand in samples that had such a file before, and are left out. The first: {again[0]}.")
    return found, notes


@dataclass(slots=True)
class _Sample:
    """What a shard holds under one key; `odd` tells by ending which of its files cannot be read."""

    texts: dict[str, str | None] = field(default_factory=dict)
    place: Place | None = None
    odd: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str | None:
        return self.texts.get(".txt", self.texts.get(".json"))

    @property
    def trouble(self) -> str:
        """Why it cannot be read, "" if it can: what KEY.json is like does not matter beside a KEY.txt."""
        return next((reason for suffix, reason in self.odd.items() if suffix != ".json" or ".txt" not in self.texts), "")


@dataclass
class _Shard:
    """One tar file: its samples, and the names of files that stand in a sample a second time."""

    path: Path
    samples: dict[str, _Sample] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)
    stamp: tuple[int, int] | None = None

    def whole(self) -> list[tuple[str, Place]]:
        """Every sample that has both, and can be read."""
        return [(one.text, one.place) for one in self.samples.values() if one.text is not None and one.place and not one.trouble]

    def odd(self) -> list[str]:
        """What cannot be read in the samples that cannot."""
        return [one.trouble for one in self.samples.values() if one.trouble]

    def read(self) -> None:
        self.stamp = stamp(self.path)
        for member, file in walk(self.path):
            if member.isreg():
                self._add(member, file)

    def _add(self, member: tarfile.TarInfo, shard: BinaryIO) -> None:
        folder, _, file = member.name.rpartition("/")
        stem, _, ending = file.partition(".")
        suffix, key = "." + ending.lower(), f"{folder}/{stem}"
        if suffix not in (*SUFFIXES, ".txt", ".json"):
            return
        sample = self.samples.setdefault(key, _Sample())
        if suffix in {*sample.texts, *sample.odd} or (suffix in SUFFIXES and sample.place):
            self.again.append(member.name)  # the first stays: the files of one sample lie together
            return
        try:
            if suffix in SUFFIXES:
                check_member(member, shard, MOST_IMAGE, "an image")
                sample.place = Place(self.path, suffix, member.offset_data, member.size, self.stamp)
            else:
                check_member(member, shard, MOST_TEXT, "a caption")
                sample.texts[suffix] = _caption(text_of(member, shard), suffix)
        except (ValueError, RecursionError) as error:  # of this file; what is wrong with the shard is another error
            sample.odd[suffix] = f"{member.name} ({error})"


def _caption(text: str, suffix: str) -> str | None:
    """The caption that a file holds, if it does."""
    if suffix == ".txt":
        return text
    fields = parse_json(text)
    caption = fields.get("caption") if isinstance(fields, dict) else None
    return caption if isinstance(caption, str) else None
