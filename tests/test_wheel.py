"""The wheel holds all that the package reads, and nothing else; what is in it works away from the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
LARGEST = 40_000_000
DRAWN = ("airplane", "alarm clock", "backpack")

pytestmark = [pytest.mark.slow, pytest.mark.network]  # pip fetches the build backend


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT], check=True, cwd=folder)
    (made,) = folder.glob("surefoot-*.whl")
    return made


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    folder = wheel.parent / "unpacked"
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        held = {name for name in packed.namelist() if ".dist-info/" not in name}
    wanted = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert held == wanted
    needed = ["py.typed", "embedded/iconshift.zip", "embedded/iconpool.zip", "embedded/manifest.json", "report/template.html.j2"]
    needed += ["embedded/iconclip/open_clip_model.safetensors", "recipes/iconshift.toml", "recipes/clip.toml"]
    assert {f"surefoot/{name}" for name in needed} <= held
    assert wheel.stat().st_size < LARGEST


def test_the_wheel_says_what_it_is(unpacked: Path) -> None:
    (info,) = unpacked.glob("*.dist-info")
    said = Parser().parsestr((info / "METADATA").read_text(encoding="utf-8"))
    assert {"tune", "dev"} <= set(said.get_all("Provides-Extra") or ())
    assert any(line.startswith("optuna") and "tune" in line for line in said.get_all("Requires-Dist") or ())
    assert (said["License-Expression"], said["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    assert "surefoot = surefoot.cli:main" in (info / "entry_points.txt").read_text()
    assert (info / "licenses" / "LICENSE").is_file()


def run(unpacked: Path, folder: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """A command of the unpacked wheel, in a folder outside the repository, with nothing in the cache."""
    code = f"import sys, surefoot; assert surefoot.__file__.startswith({str(unpacked)!r}); {before}\nfrom surefoot.cli import main\nmain()"
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment = {**inherited, "PYTHONPATH": str(unpacked), "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_folder_of_images_is_learned_and_answered(unpacked: Path, tmp_path: Path) -> None:
    from surefoot.data import load

    data = load("iconshift")
    for split in (data.split("train"), data.split("val"), data.split("test")):
        for path, label in zip(split.paths, split.labels, strict=True):
            if (name := split.class_names[label]) in DRAWN:
                (tmp_path / "icons" / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, tmp_path / "icons" / name / f"{split.name}-{path.name}")
    fitted = run(unpacked, tmp_path, "fit", "icons", "--model", "iconclip", "--set", "epochs=1", "--out", "run")
    assert fitted.returncode == 0, fitted.stdout + fitted.stderr
    assert (tmp_path / "run/report/index.html").is_file()
    picture = next((tmp_path / "icons" / "airplane").iterdir())
    told = run(unpacked, tmp_path, "predict", "run", str(picture), "--out", "answers.csv")
    assert told.returncode == 0, told.stdout + told.stderr
    assert (tmp_path / "answers.csv").read_text().splitlines()[0] == "path,answer,airplane,alarm clock,backpack,error"


def test_without_optuna_the_extra_is_named(unpacked: Path, tmp_path: Path) -> None:
    told = run(
        unpacked, tmp_path, "tune", "iconshift", "--method", "tp_ft", "--model", "iconclip", "--out", "run",
        before="sys.modules['optuna'] = None",
    )  # fmt: skip
    assert told.returncode == 2
    assert "pip install 'surefoot[tune]'" in told.stderr
    assert not (tmp_path / "run").exists()
