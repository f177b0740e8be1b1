"""Pack a folder into one archive of the package, and note its SHA-256.

    python benchmarks/iconshift/pack.py FOLDER NAME

Writes src/surefoot/embedded/NAME.zip (files sorted, times fixed, so that the same folder gives the same bytes) and its line in
manifest.json. The images are compressed already and are only stored.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import zipfile
from pathlib import Path

EMBEDDED = Path(__file__).parents[2] / "src" / "surefoot" / "embedded"
STORED = {".webp", ".safetensors"}


def pack(folder: Path, name: str, embedded: Path = EMBEDDED) -> Path:
    """Write the archive and the manifest; returns the archive."""
    archive = embedded / f"{name}.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (2026, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_STORED if path.suffix in STORED else zipfile.ZIP_DEFLATED
            packed.writestr(info, path.read_bytes())
    manifest = embedded / "manifest.json"
    entries = json.loads(manifest.read_text()) if manifest.is_file() else {}
    entries[name] = hashlib.sha256(archive.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
    return archive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    given = parser.parse_args()
    archive = pack(given.folder, given.name)
    print(archive.name, f"{archive.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
