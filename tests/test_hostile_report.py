"""Names from data of strangers are text in every page, picture and table: no element, no attribute and no script comes from them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_report_whole import whole

from surefoot import records
from surefoot.bundle import Bundle, Card
from surefoot.export.card import write_card
from surefoot.model import ImageTextModel
from surefoot.records import Anchored, Record
from surefoot.report import frontier_svg, markdown, rows, write_page

DONE = "document.title='owned'"
EVIL = {
    "flyp_ce": f"flyp_ce+a=<script>{DONE}</script>",
    "car_ft": f'car_ft+b="><img src=x onerror="{DONE}">',
    "pixel art": f"</title></style></svg><svg onload={DONE}>",
    "hand-drawn with a long name": f"--><iframe srcdoc='<script>parent.{DONE}</script>'></iframe>",
    "house with a garden": f"'\" onmouseover={DONE} autofocus onfocus={DONE} x='",
    "calendar": f"javascript:{DONE}",
    "iconshift": f"<base href='http://127.0.0.1:9/'><body onload={DONE}>",
    "unreadable": "{{ 7 * 7 }}{% raw %}<style>@import 'http://127.0.0.1:9/'</style>",
    "skipped": f"<a href=\"javascript:{DONE}\">here</a><meta http-equiv=refresh content='0;javascript:{DONE}'>",
    "1.jpg": "1.jpg",
}
"""{a harmless text of the records: what takes its place}."""


def evil(value: object) -> object:
    """A record's content with the harmless texts replaced, in keys too."""
    if isinstance(value, str):
        for good, bad in EVIL.items():
            value = value.replace(good, bad)
        return value
    if isinstance(value, dict):
        return {evil(key): evil(one) for key, one in value.items()}
    return [evil(one) for one in value] if isinstance(value, list | tuple) else value


def all_of(folder: Path) -> Iterator[Record]:
    """A comparison with every section, an image with a caption and a retrieved text among them."""
    every = list(whole(folder))
    yield from every
    shown = next(record for record in every if isinstance(record, records.Example))
    text = f"calendar, {EVIL['skipped']}"
    yield Anchored(
        image=shown.image, label="house with a garden", caption=text, captioner=text, pair_image=shown.image, pair_text=text, pool=text,
        path="skipped/1.jpg", runs="all",
    )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Records with harmless names, and the same with the others."""
    good = tmp_path_factory.mktemp("good")
    for record in all_of(good):
        records.append(good, record)
    bad = tmp_path_factory.mktemp("bad") / "run"
    shutil.copytree(good, bad)
    kept = ("kind", "answers", "image", "pair_image", "runs", "settings_hash")
    lines = []
    for record in records.read(good):
        row = asdict(record)
        lines.append(json.dumps({key: value if key in kept else evil(value) for key, value in row.items()}))
    (bad / records.FILE).write_text("\n".join(lines) + "\n")
    return good, bad


class Elements(HTMLParser):
    """What a page consists of: tags with the names of their attributes, addresses, and the text outside of them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.kinds: set[tuple[str, tuple[str, ...]]] = set()
        self.addresses: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.kinds.add((tag, tuple(sorted(name for name, _ in attrs))))
        self.addresses |= {value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "action", "srcdoc", "style")}

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(folder: Path) -> str:
    text = EVIL["skipped"] if folder.name == "run" else "skipped"
    return write_page(folder, folder / "report", command=text, notes=[text]).read_text(encoding="utf-8")


def test_no_element_of_the_page_comes_from_a_name(folders: tuple[Path, Path]) -> None:
    good, bad = (Elements(page_of(folder)) for folder in folders)
    assert bad.kinds <= good.kinds
    assert not any(name.startswith("on") for _, names in bad.kinds for name in names)
    assert "script" not in {tag for tag, _ in bad.kinds}
    assert all(re.match(r"data:(image/|,)|#", address) for address in bad.addresses), bad.addresses
    for text in EVIL.values():
        if text != "1.jpg":
            assert text.partition("+")[2].partition("=")[2] in bad.text or text in bad.text, text
    assert "default-src 'none'" in page_of(folders[1])


def test_no_element_of_a_picture_comes_from_a_name(folders: tuple[Path, Path]) -> None:
    good, bad = (frontier_svg(records.read(folder)) for folder in folders)
    found, known = ({(one.tag, *sorted(one.attrib)) for one in ET.fromstring(svg).iter()} for svg in (bad, good))
    assert found <= known
    assert "<script" not in bad and "<img" not in bad


def test_no_markup_of_a_table_comes_from_a_name(folders: tuple[Path, Path]) -> None:
    good, bad = (markdown(rows(records.read(folder))) for folder in folders)
    assert "<" not in bad and "](" not in bad
    assert [line.replace("\\|", "").count("|") for line in bad.splitlines()] == [line.count("|") for line in good.splitlines()]


def test_a_model_card_shows_names_as_text(folders: tuple[Path, Path], tiny_model: ImageTextModel, tmp_path: Path) -> None:
    bad = f"x`\n<script>{DONE}</script>\n`"
    card = Card(
        class_names=[bad, EVIL["car_ft"]], templates=[f"{{}} {bad}"], predict="text", method=bad, alpha=1.0, base=f"hf-hub:{bad}",
        origin={"seed": 0, "settings": {bad: bad}, "torch": bad},
    )  # fmt: skip
    for target in ("open_clip", "transformers", "onnx"):
        write_card(tmp_path, Bundle(tiny_model, {}, replace(card)), target, [], None)
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        outside = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
        assert "<script" not in outside.partition("\n---\n")[2] and "<img" not in outside
        assert [line for line in text.split("\n---\n")[0].splitlines() if line.startswith("<")] == []


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium is installed, which would open the page")
def test_no_script_of_a_name_runs_in_a_browser(folders: tuple[Path, Path], tmp_path: Path) -> None:
    def opened(page: str, name: str) -> str:
        (tmp_path / name).write_text(page, encoding="utf-8")
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        done = subprocess.run([*command, (tmp_path / name).as_uri()], capture_output=True, text=True, timeout=120, check=True)
        return re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1]  # type: ignore[index]

    page = page_of(folders[1])
    assert "owned" not in opened(page, "report.html").replace("title='owned'", "")
    free = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page)
    assert free != page
    assert "owned" not in opened(free, "without.html").replace("title='owned'", ""), "names are text without the policy too"
    ran = free.replace("</main>", f"<script>{DONE}</script></main>")
    assert opened(ran, "ran.html") == "owned", "a script that is there does run, so that this test can fail"
    held = page.replace("</main>", f"<script>{DONE}</script></main>")
    assert opened(held, "held.html") != "owned", "the policy holds back what would slip through"
