"""The benchmark and the pool that come with Surefoot, unpacked once into the user's cache."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from surefoot.data import splits
from surefoot.data.layout import Dataset, open_dataset
from surefoot.data.manifest import open_manifest
from surefoot.errors import DataError, MissingDataError, unknown_name

EMBEDDED = Path(__file__).parent.parent / "embedded"
MANIFEST = "manifest.json"


def cache_folder() -> Path:
    """$SUREFOOT_CACHE, or surefoot/ in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("SUREFOOT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surefoot"


def names() -> list[str]:
    """The embedded archives."""
    return sorted(_manifest())


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


def load(name_or_path: str | Path, *, seed: int = 0, val_share: float = splits.VAL_SHARE, test_share: float = splits.TEST_SHARE) -> Dataset:
    """An embedded data set by its name, a folder in the standard layout, or a manifest; val and test are split off train if missing.

    Args:
        name_or_path: a name, a folder, or a .csv or .jsonl file.
        seed: of the splits that are made; given ones do not depend on it.
        val_share: of each class's distinct training images, if there is no val.
        test_share: the same for test.

    Raises:
        MissingDataError: neither an embedded name nor a folder nor a file.
        DataError: what it holds is not a data set.
        SettingError: a share is out of range.
    """
    path = Path(name_or_path)
    if str(name_or_path) in _manifest():
        found = open_dataset(unpack(str(name_or_path)))
    elif path.is_file():
        found = open_manifest(path)
    elif path.is_dir():
        found = open_dataset(path)
    else:
        near = difflib.get_close_matches(str(name_or_path), names(), n=1)
        raise MissingDataError(
            f"'{name_or_path}' is neither a folder nor a manifest nor one of the embedded data sets: {', '.join(names())}. "
            + (f"Did you mean '{near[0]}'?" if near else "Check the path, or take one of these.")
        )
    return splits.complete(found, seed=seed, val_share=val_share, test_share=test_share)
