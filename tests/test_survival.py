"""Five kills at random moments; `benchmarks/survival/kills.py` makes two hundred."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "survival" / "kills.py"


def test_killed_runs_end_at_the_bits_of_an_undisturbed_one(tiny_root: Path, tiny_folder: Path) -> None:
    own = ["--data", str(tiny_root), "--model", f"local-dir:{tiny_folder}", "--kills", "5", "--steps", "20", "--batch-size", "8"]
    done = subprocess.run([sys.executable, str(SCRIPT), *own, "--shots", "4"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("5 kills: ")
    assert "\n0 of them left a checkpoint" not in done.stdout
    assert "all of them at the bits of the undisturbed run" in done.stdout
