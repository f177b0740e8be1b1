"""The site: `make docs` builds it from the Markdown as it stands in the repository, whose links go on working there.

The repository is Sphinx's source folder, so that a link from a page to a data card or to the changelog is one. Two pages grow when they are
read: the index gets a contents tree of the links that it lists, and the page of commands the options of every command.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "src")]

from commands_page import every_command  # noqa: E402
from docstrings import as_rst  # noqa: E402

_cited: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))

project = "Surefoot"
author = "the authors of Surefoot"
version = release = str(_cited["version"])
project_copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "docs/**.rst", "CHANGELOG.md", "src/surefoot/embedded/*.md", "benchmarks/*/README.md"]
exclude_patterns = [".*", "build", "dist", "runs", "tests", "src/surefoot/embedded/iconclip"]

myst_enable_extensions: list[str] = []
myst_heading_anchors = 4

smartquotes = False  # two dashes are an option
default_role = "code"  # docstrings have names in single backticks, as Markdown has
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"Surefoot {version}"
html_additional_pages = {"index": "to_the_index.html"}
html_show_sourcelink = False
templates_path = ["templates"]
html_static_path: list[str] = ["static"]
html_css_files = ["wide.css"]

_SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.M | re.S)
_ITEM = re.compile(r"^\s*[-|].*?\]\(([^)#:]+)\.(?:md|rst)\)", re.M)


def contents(text: str) -> str:
    """The contents tree of the index: under each of its headings the pages that it lists there; pages that it does not name come last."""
    trees, listed = [], set[str]()
    for title, body in _SECTION.findall(text):
        pages = _ITEM.findall(body)
        listed |= set(pages)
        trees.append(_tree(title, pages))
    others = sorted(page.stem for page in (ROOT / "docs").glob("*.md") if page.stem not in listed | {"index"})
    return "\n".join([*trees, *([_tree("More", others)] if others else [])])


def _tree(title: str, pages: list[str]) -> str:
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```", ""])


def _grow(_app: Sphinx, page: str, source: list[str]) -> None:
    if page == root_doc:
        source[0] += contents(source[0])
    if page == "docs/commands":
        source[0] += every_command()


def _tell(_app: Sphinx, _what: str, _name: str, _found: object, _options: object, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _tell, priority=100)  # before napoleon
    app.connect("source-read", _grow)
