"""The benchmark and the pool that come with Surefoot, unpacked once into the user's cache; and `load`, which opens data of any kind."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

from surefoot.data import splits
from surefoot.data.layout import Dataset, open_dataset
from surefoot.data.manifest import open_manifest
from surefoot.errors import DataError, MissingDataError, unknown_name

EMBEDDED = Path(__file__).parent.parent / "embedded"
MANIFEST = "manifest.json"
TEMPLATES = ("own", "clip")
UNSEEN = {"iconshift-unseen": ("iconshift", "unseen/outline")}
"""{data set: the archive, and the unseen classes of it that are a data set of their own}: two disjoint sets of classes to go between."""


def cache_folder() -> Path:
    """$SUREFOOT_CACHE, or surefoot/ in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("SUREFOOT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surefoot"


def names() -> list[str]:
    """The embedded archives, and the data sets that are parts of one."""
    return sorted([*_manifest(), *UNSEEN])


def _manifest() -> dict[str, str]:
    """{archive name: SHA-256}."""
    return dict(json.loads((EMBEDDED / MANIFEST).read_text(encoding="utf-8")))


def unpack(name: str) -> Path:
    """The folder of an embedded archive; unpacked now if it was not yet.

    Raises:
        UnknownNameError: no archive of that name.
        DataError: the archive is not the one that was released.
    """
    manifest = _manifest()
    if name not in manifest:
        raise unknown_name("embedded data set", name, manifest)
    target = cache_folder() / f"{name}-{manifest[name][:12]}"
    if target.is_dir():
        return target
    archive = EMBEDDED / f"{name}.zip"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != manifest[name]:
        raise DataError(f"{archive} has SHA-256 {digest}, expected {manifest[name]}: it is damaged. Install Surefoot again.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.part-", dir=target.parent))
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(partial)
        partial.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def load(
    name_or_path: str | Path,
    *,
    root: str | Path | None = None,
    seed: int = 0,
    val_share: float | None = None,
    test_share: float = splits.TEST_SHARE,
    templates: str = "own",
    allow_outside: bool = False,
) -> Dataset:
    """A data set by its name, a folder in the standard layout, or a manifest; val and test are split off train if missing.

    Args:
        name_or_path: an embedded name, a folder, a .csv or .jsonl file; with a root, a name of the catalogue.
        root: the folder that a data set of the catalogue lies in; nothing else needs one.
        seed: of the splits that are made; given ones do not depend on it.
        val_share: of each class's distinct training images, if there is no val. None is 0.15, or for a data set of the
            catalogue the share that it declares (2% of ImageNet).
        test_share: the same for test.
        templates: "clip" takes CLIP's own prompts for a data set of the catalogue that has others; nothing else has any but its "own".
        allow_outside: let a manifest, and links and lists in a folder, lead to images outside of it. Without, data from elsewhere can
            reach no other files. Links in data of the catalogue are followed in any case.

    Raises:
        MissingDataError: neither a known name nor a folder nor a file; a name of the catalogue without a root, or with a wrong one.
        DataError: what it holds is not a data set.
        UnknownNameError: neither "own" nor "clip".
        SettingError: a share is out of range, or a package is missing that reads the data.
    """
    from surefoot.data import catalog  # here, because catalog -> embedded would be a circle

    if templates not in TEMPLATES:
        raise unknown_name("choice of templates", templates, TEMPLATES)
    path = Path(name_or_path)
    if root is not None and str(name_or_path) in catalog.names():
        found = catalog.open_declared(str(name_or_path), Path(root), templates)
        val_share = catalog.declared(str(name_or_path)).val_share if val_share is None else val_share
    elif str(name_or_path) in _manifest():
        found = open_dataset(unpack(str(name_or_path)))
    elif str(name_or_path) in UNSEEN:
        found = _unseen(str(name_or_path))
    elif path.is_file():
        found = open_manifest(path, allow_outside=allow_outside)
    elif path.is_dir():
        found = open_dataset(path, allow_outside=allow_outside)
    else:
        raise _unknown(str(name_or_path), catalog.names())
    return splits.complete(found, seed=seed, val_share=splits.VAL_SHARE if val_share is None else val_share, test_share=test_share)


def _unseen(name: str) -> Dataset:
    archive, split = UNSEEN[name]
    whole = open_dataset(unpack(archive))
    images = whole.split(split)
    note = f"The classes are those of {split} of {archive}."
    return Dataset(whole.root, name, images.class_names, {"train": replace(images, name="train")}, whole.templates, notes=(note,))


def _unknown(name: str, catalogue: list[str]) -> MissingDataError:
    if name in catalogue:
        return MissingDataError(
            f"{name} is a data set of the catalogue: say where it lies by --root DIR. 'surefoot datasets {name}' shows what must be there."
        )
    near = difflib.get_close_matches(name, [*names(), *catalogue], n=1)
    return MissingDataError(
        f"'{name}' is neither a folder nor a manifest nor one of the embedded data sets: {', '.join(names())}; nor, with --root DIR, one "
        "of the catalogue ('surefoot datasets'). " + (f"Did you mean '{near[0]}'?" if near else "Check the path, or take one of these.")
    )
