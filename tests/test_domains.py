"""Leave one domain out: what the domains are called, and that nothing of a held-out one is trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import fakes
import pytest

from surefoot.data import Dataset, load, open_dataset
from surefoot.data.digest import digests
from surefoot.protocols.parts import leave_one_out


@pytest.mark.parametrize(
    ("name", "first"), [("vlcs", "caltech101"), ("terra_incognita", "location_38"), ("pacs", "art_painting"), ("office_home", "art")]
)
def test_the_first_domain_is_called_by_its_name(name: str, first: str, tmp_path: Path) -> None:
    protocol = leave_one_out(load(name, root=fakes.make(name, tmp_path)))
    assert protocol.parts[0].name == protocol.columns[0].name == first
    assert protocol.columns[0].sources == (((first, f"shifts/{first}"),),)
    assert protocol.notes[0].split("(")[1].startswith(f"{first}, ")
    assert first in protocol.parts[1].dataset.split("train").groups
    assert not any("train" in (part.name, *part.dataset.split("train").groups) for part in protocol.parts)


@pytest.fixture
def doubled(tmp_path: Path) -> Dataset:
    """Domains train, north and south of two classes, eight images each; north repeats two of train, one under another class."""
    for split in ("train", "shifts/north", "shifts/south"):
        for label in ("ant", "bee"):
            for number in range(8):
                fakes.picture(tmp_path / split / label / f"{number}.png")
    shutil.copy(tmp_path / "train/ant/0.png", tmp_path / "shifts/north/ant/0.png")
    shutil.copy(tmp_path / "train/ant/1.png", tmp_path / "shifts/north/bee/1.png")
    return open_dataset(tmp_path)


def test_a_copy_of_a_held_out_image_is_neither_trained_nor_validated_on(doubled: Dataset) -> None:
    for part in leave_one_out(doubled).parts:
        held = {*digests(part.dataset.split(f"shifts/{part.name}").paths)}
        assert len(part.dataset.split(f"shifts/{part.name}")) == 16, "the held-out domain is judged whole"
        assert not held & {*digests(part.dataset.split("train").paths), *digests(part.dataset.split("val").paths)}
        told = [note for note in part.dataset.notes if "byte for byte" in note]
        assert [note.split()[0] for note in told] == ([] if part.name == "south" else ["2"])


def test_no_validation_image_is_a_copy_of_a_training_image_of_another_domain(doubled: Dataset) -> None:
    for seed in range(12):
        data = next(part.dataset for part in leave_one_out(doubled, seed=seed, val_share=0.5).parts if part.name == "south")
        assert not {*digests(data.split("train").paths)} & {*digests(data.split("val").paths)}
        assert len(data.split("train")) + len(data.split("val")) == 32
