"""Every fenced block of README.md and docs/ is true: commands run on tiny data, Python is executed, settings are read by their reader."""

from __future__ import annotations

import hashlib
import re
import shutil
import tomllib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import typed
from doc_blocks import LANGUAGES, PAGES, Block, Typed, blocks, make_world, options_of, parsed, typed_in
from PIL import Image

from surefoot import config
from surefoot.cli import recipe as recipes
from surefoot.data.dataset_toml import read_config

BLOCKS = blocks()
LINES = [line for block in BLOCKS if block.language == "sh" for line in typed_in(block)]
SUREFOOT = [line for line in LINES if line.words[0] == "surefoot"]
NOT_RUN = {
    "surefoot import finetuned.pt --base ViT-B-32:openai --classes imagenet --out models/wise-ft": "wants a head of 1,000 classes and "
    "its base; tests/test_foreign.py imports such a file",
    "surefoot import state_dict.pt --arch ViT-B-16@laion400m_e32 --out models/mine": "wants weights of a ViT-B-16; "
    "tests/test_foreign.py imports such a file",
}
"""Commands that are only parsed, and why. All others run."""
SMALL = {("--trials", "4"): "2", ("--trials", "16"): "2", ("--shots", "1,2,4,8,16"): "1,2", ("--shots", "1,2,4"): "1,2"}
"""Options whose values are made smaller, since `--smoke` leaves them."""
BEFORE = (
    "surefoot fit photos --method flyp --smoke --out runs/photos",
    "surefoot compare photos --methods tp_ft,flyp --smoke --out runs/compared",
)
"""Runs that pages speak of and do not make."""


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in BLOCKS} == LANGUAGES
    assert len(SUREFOOT) > 80


def test_every_line_of_a_shell_block_is_of_a_kind_that_is_checked() -> None:
    for line in LINES:
        assert line.words[0] in ("surefoot", "make", "python"), f"{line}. Blocks that are not meant to be typed carry ```text."


def test_what_is_only_parsed_stands_in_a_document() -> None:
    assert NOT_RUN.keys() <= {line.text for line in LINES}


@pytest.mark.parametrize("line", SUREFOOT, ids=str)
def test_the_command_line_takes_every_command(line: Typed) -> None:
    given = parsed(line.words)
    if line.torchrun:
        from torch.distributed.run import get_args_parser

        start = get_args_parser().parse_args([*line.torchrun[1:], *line.words[1:]])
        assert (start.module, start.training_script) == (True, "surefoot")
    if "set_" in given and not re.search(r"[\w/]+\.toml", line.text):
        data = given["data"] if isinstance(given["data"], str) else given["data"][0]
        named = given.get("methods") or given.get("method")
        wanted = None if named is None else re.split(r",(?![^\[\]]*\])", named)
        recipes.resolve(data, given.get("recipe"), given["set_"], methods=wanted)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "toml"], ids=str)
def test_settings_are_read_by_their_reader(block: Block, tmp_path: Path) -> None:
    (tmp_path / "dataset.toml").write_text(block.text)
    if tomllib.loads(block.text).keys() & {"methods", "training"}:
        config.resolve(config.read_recipe(str(tmp_path / "dataset.toml")), {})
    else:
        assert read_config(tmp_path / "dataset.toml")


class Hub:
    """The hub that is uploaded to."""

    def create_repo(self, repo: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(repo_id=repo)

    def upload_folder(self, *, repo_id: str, **_: object) -> str:
        return f"https://hub/{repo_id}"


class Says:
    """A captioner."""

    identity = "says"

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        return [f"a drawing, {hashlib.sha256(image.tobytes()).hexdigest()[:8]}" for image in images]


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), tiny_folder)


Run = Callable[[Sequence[str]], None]


@pytest.fixture
def type_(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Types a command in a copy of the world; what would take a download or the embedded data is tiny there."""
    import huggingface_hub

    from surefoot import model
    from surefoot.anchors import pool
    from surefoot.data import embedded

    here, beside = tmp_path / "here", made.parent
    shutil.copytree(made, here, symlinks=True)
    resolve, tiny = model._resolve, f"local-dir:{beside / 'embedded' / 'iconclip'}"
    monkeypatch.setattr(model, "_resolve", lambda name: resolve(name if name.startswith("local-dir:") else tiny))
    for module in (embedded, pool):
        monkeypatch.setattr(module, "unpack", lambda name: beside / name)
    monkeypatch.setattr(import_module("surefoot.cli.caption"), "load_captioner", lambda *_, **__: Says())
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(here)

    def run(words: Sequence[str]) -> None:
        code, said = typed(monkeypatch, capsys, *words[1:])
        assert code == 0, said

    return run


def small(words: Sequence[str]) -> list[str]:
    """A command at smoke size."""
    made = [SMALL.get((before, word), word) for before, word in zip(["", *words[:-1]], words, strict=True)]
    return [*made, "--smoke"] if "--smoke" in options_of(words[1]) - {*words} else made


RUNNING = [page for page in PAGES if any(block.page == page and block.language in ("sh", "python") for block in BLOCKS)]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.stem)
def test_a_page_runs_from_top_to_bottom(page: Path, type_: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [block for block in BLOCKS if block.page == page]
    text = "".join(block.text for block in own)
    for line in BEFORE:
        out = line.rpartition(" ")[2]
        if out in text:
            type_(line.split())
    names: dict[str, object] = {}
    for block in own:
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), names)
        for line in typed_in(block) if block.language == "sh" else ():
            for variable in line.variables:
                monkeypatch.setenv(*variable.split("=", 1))
            if line.words[0] == "surefoot" and line.text not in NOT_RUN:
                type_(small(line.words))
