"""The report's section of anchors: which images it shows, and that nothing in a caption becomes markup."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from surefoot import records
from surefoot.compare import Comparison, Plan, gallery
from surefoot.data import Dataset
from surefoot.data.anchors import Anchors
from surefoot.model import ImageTextModel
from surefoot.report.page import write_page
from surefoot.train import Training

PLAN = Plan(methods=("arf",), seeds=(0,), alphas=(), training=Training(epochs=1, batch_size=8))


@pytest.fixture
def page(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> str:
    anchors = tiny_data.anchors
    marked = replace(anchors, captions={path: f"<b>bold</b> {text}" for path, text in anchors.captions.items()})
    Comparison(tiny_model, replace(tiny_data, anchors=marked), PLAN, tmp_path).run()
    return write_page(tmp_path, tmp_path / "page", command="").read_text()


def test_each_class_is_shown_with_its_caption_and_its_nearest_pair(page: str, tiny_data: Dataset) -> None:
    train, anchors = tiny_data.split("train"), tiny_data.anchors
    assert page.count('class="pair"') == len(tiny_data.class_names)
    for label in range(len(tiny_data.class_names)):
        path = train.paths[train.labels.index(label)]
        assert f"&lt;b&gt;bold&lt;/b&gt; {anchors.captions[path]}" in page
        assert anchors.texts[anchors.pairs[path][0]] in page
    assert "<b>bold" not in page
    assert "a human" in page and "shapes" in page


def test_no_section_where_no_method_uses_anchors(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    Comparison(tiny_model, tiny_data, replace(PLAN, methods=("tp_ft",)), tmp_path).run()
    assert not [record for record in records.read(tmp_path) if isinstance(record, records.Anchored)]
    assert 'id="anchors"' not in write_page(tmp_path, tmp_path / "page", command="").read_text()


def test_the_section_stays_when_other_methods_are_added(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    for methods in (("arf",), ("lp",)):
        Comparison(tiny_model, tiny_data, replace(PLAN, methods=methods), tmp_path).run()
    assert 'id="anchors"' in write_page(tmp_path, tmp_path / "page", command="").read_text()


def test_captions_alone_and_pairs_alone(tiny_data: Dataset, tmp_path: Path) -> None:
    anchors = tiny_data.anchors
    captions = replace(tiny_data, anchors=Anchors(captions=anchors.captions, captioner="c"))
    pairs = replace(tiny_data, anchors=replace(anchors, captions={}, captioner=""))
    assert all(one.caption and not one.pair_text and not one.pair_image for one in gallery.anchored(tmp_path, captions, ""))
    assert all(one.pair_text and one.pair_image and not one.caption for one in gallery.anchored(tmp_path, pairs, ""))
    assert (tmp_path / gallery.anchored(tmp_path, pairs, "")[0].pair_image).is_file()
