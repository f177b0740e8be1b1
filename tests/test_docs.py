"""What the documents tell people to type exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from doc_blocks import options_of

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *ROOT.glob("benchmarks/*/README.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/surefoot/embedded/*.md")]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def lines(start: str) -> list[tuple[Path, str]]:
    """Every line of a code block, and every inline code, that begins with `start`."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        typed = [line for _, block in BLOCK.findall(text) for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)
        found += [(document, line.partition("  #")[0].strip()) for line in typed if line.startswith(start)]
    return found


@pytest.mark.parametrize(("document", "line"), lines("surefoot "), ids=str)
def test_commands_parse(document: Path, line: str) -> None:
    _, command, *arguments = shlex.split(line)
    assert {a for a in arguments if a.startswith("--")} <= options_of(command), f"{document.name}: {line}"


@pytest.mark.parametrize(("document", "line"), lines("python benchmarks/"), ids=str)
def test_scripts_exist_and_know_their_options(document: Path, line: str) -> None:
    _, script, *arguments = shlex.split(line)
    source = (ROOT / script).read_text()
    for option in (a for a in arguments if a.startswith("--")):
        field = option.removeprefix("--").replace("-", "_")
        assert f'"{option}"' in source or re.search(rf"^    {field}: ", source, re.M), f"{document.name}: {line}"


@pytest.mark.parametrize(("document", "line"), lines("make "), ids=str)
def test_make_targets_exist(document: Path, line: str) -> None:
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.M), f"{document.name}: {line}"


def test_python_of_the_readme_compiles_and_its_imports_exist() -> None:
    for language, block in BLOCK.findall((ROOT / "README.md").read_text()):
        if language == "python":
            compile(block, "README.md", "exec")
            exec("\n".join(line for line in block.splitlines() if line.startswith("from ")), {})


def test_files_that_documents_name_exist() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_shipped_texts_speak_of_no_machine() -> None:
    for path in [*DOCUMENTS, *(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        assert not re.search(r"/(work|root|home)/", path.read_text()), path
