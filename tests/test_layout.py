"""The house's own rules: who may import whom, file and function lengths, no print, one importer of open_clip."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import surefoot

SOURCE = Path(surefoot.__file__).parent
# A module imports only from rows above its own, or from its own row further left; a folder is one entry and may import within itself.
ROWS = [
    ["errors"],
    [
        "guard",
        "losses",
        "weights",
        "metrics",
        "intervals",
        "robustness",
        "adapters",
        "layers",
        "hf_clip",
        "precision",
        "prefixes",
        "towers",
        "distributed",
        "chunked",
        "clock",
        "stopping",
        "folders",
    ],
    ["prompts", "model", "identity", "heads", "answers", "records", "data", "anchors"],
    ["objective", "methods"],
    ["train", "protocols", "compare", "bundle", "soup", "predict", "explain", "advise", "tune", "bench", "watching"],
    ["job", "cookbook", "config", "report", "export", "foreign", "cli", "__main__"],
]
ORDER = {name: (row, place) for row, names in enumerate(ROWS) for place, name in enumerate(names)}
FILES = sorted(SOURCE.rglob("*.py"))


def unit(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_upwards(path: Path) -> None:
    own = unit(path)
    if own == "__init__":
        return
    for name in imported(path):
        if name.startswith("surefoot."):
            other = name.split(".")[1]
            assert other == own or ORDER[other] < ORDER[own], f"{own} imports {other}"


def test_every_module_has_a_row() -> None:
    assert {unit(path) for path in FILES} - {"__init__"} == set(ORDER)


def test_methods_never_import_data_and_report_never_models() -> None:
    for path in FILES:
        names = {name.split(".")[1] for name in imported(path) if name.startswith("surefoot.")}
        assert unit(path) != "methods" or "data" not in names
        assert unit(path) != "report" or not names & {"model", "heads", "train", "protocols", "compare"}


def test_open_clip_has_one_importer() -> None:
    assert [str(p.relative_to(SOURCE)) for p in FILES if any(n.split(".")[0] == "open_clip" for n in imported(p))] == ["model.py"]


def test_one_optimizer_step() -> None:
    assert [unit(p) for p in FILES if "optimizer.step()" in p.read_text()] == ["train"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_stay_short_and_documented(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            doc = ast.get_docstring(node, clean=False)
            lines = (node.end_lineno or 0) - node.lineno + 1 - (len(doc.splitlines()) if doc else 0)
            assert lines <= 42, f"{node.name} has {lines} code lines"
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node in tree.body:
                assert doc, f"{node.name} has no docstring"
