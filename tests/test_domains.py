"""Leave one domain out: what the domains are called, and that nothing of a held-out one is trained on."""

from __future__ import annotations

from pathlib import Path

import fakes
import pytest

from surefoot.data import load
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
