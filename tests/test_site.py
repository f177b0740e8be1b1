"""The site's own parts: the contents tree, the page of commands, docstrings, and what a citation says."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from doc_blocks import ROOT, commands

from surefoot import cli

DOCS = ROOT / "docs"


def module(name: str) -> ModuleType:
    """A script of docs/ by its path."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def conf(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path])
    return module("conf")


def trees(text: str) -> dict[str, list[str]]:
    """{caption: pages} of the contents trees in a text."""
    found = re.findall(r"```\{toctree\}\n:hidden:\n:caption: (.+)\n\n((?:.+\n)+)```", text)
    return {caption: pages.split() for caption, pages in found}


def test_the_contents_tree_is_what_the_index_lists(conf: ModuleType) -> None:
    text = "# Title\n\n## Start\n\n- [One](index.md)\n- [Two](methods/two.md): it\n\n## More of it\n\n- [API](api/index.rst)\n- [Else](https://e.org/x.md)\n"
    found = trees(conf.contents(text))
    assert found.pop("Start") == ["index", "methods/two"]
    assert found.pop("More of it") == ["api/index"]
    assert found["More"] == sorted(path.stem for path in DOCS.glob("*.md") if path.stem != "index"), "what it does not list comes last"


def test_the_index_lists_every_page(conf: ModuleType) -> None:
    listed = [page for pages in trees(conf.contents((DOCS / "index.md").read_text())).values() for page in pages]
    assert len(listed) == len(set(listed))
    wanted = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} - {"index"}
    assert wanted <= set(listed)
    assert all((DOCS / f"{page}.md").is_file() or (DOCS / f"{page}.rst").is_file() for page in listed)


def test_the_page_of_commands_has_every_option_of_every_command() -> None:
    sections = dict(re.findall(r"^## surefoot (\S+)\n(.*?)(?=^## |\Z)", module("commands_page").every_command(), re.M | re.S))
    examples = {callback.__name__: example for callback, example in cli.EXAMPLES.items()}
    assert list(sections) == list(commands()) == list(examples)
    for name, text in sections.items():
        shown = [parameter for parameter in commands()[name].params if not parameter.hidden and parameter.name != "help"]
        rows = [line for line in text.splitlines() if line.startswith("| `")]
        assert len(rows) == len(shown), name
        for parameter, row in zip(sorted(shown, key=lambda one: one.param_type_name == "option"), rows, strict=True):
            written = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name.upper()
            assert written in row.split("|")[1]
            kept = re.sub(r"\\([|<>*_\[\]])", r"\1", row)
            assert " ".join(parameter.help.split()) in kept
        assert f"```sh\n{examples[name]}\n```" in text


def test_defaults_and_required_options_are_shown() -> None:
    text = module("commands_page").every_command()
    assert re.search(r"^\| `--minutes X` \| .* \| `120` \|$", text, re.M)
    assert re.search(r"^\| `--smoke` \| .* \|  \|$", text, re.M), "a switch has no value"
    assert "surefoot sweep DATA --over TEXT [OPTIONS]" in text
    assert "surefoot base-to-new DATA... [OPTIONS]" in text
    assert "surefoot datasets [NAME]" in text


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (["Sum.", "", "    L = a * |b|", "", "a*b: `a * b`"], ["Sum.", "", "::", "", "    L = a * |b|", "", r"a\*b: `a * b`"]),
        (["It is::", "", "    L = a"], ["It is::", "", "    L = a"]),
        (["Args:", "    a: of a|b,", "        it", "", "    b: none."], ["Args:", r"    a: of a\|b,", "        it", "", "    b: none."]),
        (["Examples:", "    >>> 2 * 3", "    6"], ["Examples:", "    >>> 2 * 3", "    6"]),
        (["It.", "Needs: a,", "    b.", "Relations: `c`."], ["It.", "", "**Needs**: a,", "b.", "", "**Relations**: `c`."]),
    ],
)  # fmt: skip
def test_docstrings_become_what_they_look_like(given: list[str], made: list[str]) -> None:
    assert module("docstrings").as_rst(given) == made


def test_the_citation_is_of_this_version_and_names_the_five_papers() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= cited.keys(), "what the format asks for"
    assert cited["cff-version"] == "1.2.0"
    assert [paper["notes"] for paper in cited["references"]] == ["WiSE-FT", "FLYP", "CAR-FT", "ARF", "CLIP-CITE"]
    for paper in cited["references"]:
        assert paper["type"] in ("conference-paper", "article") and paper["year"] >= 2022
        assert paper["conference"]["name"] if paper["type"] == "conference-paper" else paper["journal"]
        assert all(author.keys() == {"family-names", "given-names"} for author in paper["authors"])


def test_the_changelog_keeps_the_form() -> None:
    """Keep a Changelog: a heading for each version, the newest first, and below it the kinds of changes."""
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    headings = [line for line in lines if line.startswith("#")]
    assert headings[:2] == ["# Changelog", "## [Unreleased]"]
    for line in headings[1:]:
        assert re.fullmatch(
            r"## \[(Unreleased|\d+\.\d+\.\d+)\]( - \d{4}-\d\d-\d\d)?|### (Added|Changed|Deprecated|Removed|Fixed|Security)", line
        )
    assert not [line for line in lines if line.startswith("- Changed")], "what changed stands under its heading"


def test_links_and_headings_of_the_markdown_are_whole() -> None:
    """Anchors too: GitHub and the site make them of headings in the same way."""

    def anchors(path: Path) -> set[str]:
        titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            there = page.parent / target if target else page
            assert anchor in anchors(there), f"{page.name}: {target}#{anchor}"
