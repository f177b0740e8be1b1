"""CLIP's own prompts of the catalogue's sets: chosen by a recipe or a setting, and known when the data are opened again."""

from __future__ import annotations

import json
from pathlib import Path

import fakes
import pytest
from conftest import typed
from fake_layouts import make_torchvision

from surefoot import config, cookbook
from surefoot.cli.fit import _asked
from surefoot.data import catalog, load
from surefoot.errors import SettingError, UnknownNameError
from surefoot.job import DataOptions, Job

# counted in data/prompts.md of github.com/openai/CLIP
COUNTS = {
    "caltech101": 34, "dtd": 8, "eurosat": 3, "fgvc_aircraft": 2, "pcam": 1, "stanford_cars": 8, "sun397": 2, "ucf101": 48,
}  # fmt: skip
ALREADY = ("cifar10", "cifar100", "flowers102", "food101", "imagenet", "oxford_pets", "rendered_sst2")
"""Sets whose usual prompts are CLIP's."""


def test_the_lists_are_those_that_clip_was_released_with() -> None:
    found = {name: catalog.declared(name).clip_templates for name in catalog.names()}
    assert {name: len(own) for name, own in found.items() if own} == COUNTS
    for name, own in found.items():
        assert len({*own}) == len(own) and (not own or own != catalog.declared(name).templates)
    assert found["stanford_cars"][3:5] == ("i love my {}!", "a photo of my dirty {}.")
    assert found["caltech101"][1] == "a painting of a {}." and found["caltech101"][-1] == "a doodle of the {}."
    assert found["ucf101"][-1] == "a demonstration of the person practicing {}."
    assert found["pcam"] == ("this is a photo of {}",)
    assert len(catalog.declared("cifar10").templates) == len(catalog.declared("cifar100").templates) == 18
    one = {name: catalog.declared(name).templates for name in ("flowers102", "food101", "oxford_pets", "rendered_sst2")}
    assert one == {
        "flowers102": ("a photo of a {}, a type of flower.",), "food101": ("a photo of {}, a type of food.",),
        "oxford_pets": ("a photo of a {}, a type of pet.",), "rendered_sst2": ("a {} review of a movie.",),
    }  # fmt: skip


@pytest.mark.parametrize("torchvision", [False, True])
def test_they_are_taken_where_they_are_asked_for(torchvision: bool, tmp_path: Path) -> None:
    root = make_torchvision("stanford_cars", tmp_path) if torchvision else fakes.make("stanford_cars", tmp_path)
    own, clip = (load("stanford_cars", root=root, templates=which) for which in ("own", "clip"))
    assert own == load("stanford_cars", root=root) and own.templates == ("a photo of a {}.",)
    assert clip.templates == catalog.declared("stanford_cars").clip_templates
    assert "Prompts are CLIP's own for stanford_cars, 8 of them." in clip.notes
    assert clip.splits == own.splits and clip.fingerprint() != own.fingerprint()


def test_sets_without_a_list_of_their_own_keep_their_prompts_and_say_so(tmp_path: Path, tiny_root: Path) -> None:
    root = fakes.make("oxford_pets", tmp_path)
    clip = load("oxford_pets", root=root, templates="clip")
    assert clip.fingerprint() == load("oxford_pets", root=root).fingerprint()
    assert any("CLIP has no prompts of its own for oxford_pets that are others" in note for note in clip.notes)
    assert load(tiny_root, templates="clip") == load(tiny_root)
    with pytest.raises(UnknownNameError, match="Did you mean 'clip'"):
        load(tiny_root, templates="clips")


def test_a_recipe_or_a_setting_chooses_them() -> None:
    assert config.resolve({}, {}).templates == "own"
    assert config.resolve({"templates": "clip"}, {}).templates == "clip"
    assert config.resolve({"templates": "clip"}, {"templates": "own"}).templates == "own"
    settings = config.resolve({}, config.parse_assignments(["templates=clip", "epochs=3"]))
    assert settings.templates == "clip" and settings.plan == config.resolve({}, {"epochs": 3}).plan
    with pytest.raises(SettingError, match="templates is 'coop'; it must be one of own, clip"):
        config.resolve({}, {"templates": "coop"})
    clip = {name for name in cookbook.names() if config.resolve(config.read_recipe(name), {}).templates == "clip"}
    assert clip == {"arf/zeroshot_transfer", "car_ft/transfer", "flyp/fewshot_pcam", "flyp/transfer"}


@pytest.mark.parametrize("command", ["compare", "transfer", "fit", "sweep"])
def test_a_command_trains_with_them_and_a_folder_opens_with_them_again(
    command: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = fakes.make("sun397", tmp_path / "root"), tmp_path / "out"
    more = {
        "compare": ["--methods", "tp_ft", "--seeds", "0"], "transfer": ["--methods", "tp_ft", "--seeds", "0"], "fit": ["--method", "tp_ft"],
        "sweep": ["--methods", "tp_ft", "--seeds", "0", "--over", "batch_size=2,4"],
    }[command]  # fmt: skip
    common = ("sun397", "--root", root, "--model", f"local-dir:{tiny_folder}", "--set", "steps=1", "--set", "templates=clip", "--out", out)
    code, said = typed(monkeypatch, capsys, command, *common, *more)
    assert code == 0, said
    folder = {"transfer": out / "sun397", "sweep": out / "batch_size-2"}.get(command, out)
    assert Job.of(folder).data.open_plain().templates == ("a photo of a {}.", "a photo of the {}.")
    described = [line for line in map(json.loads, (folder / "records.jsonl").read_text().splitlines()) if "templates" in line]
    assert described[-1]["templates"] == ["a photo of a {}.", "a photo of the {}."]


def test_advice_from_before_there_was_a_choice_still_stands() -> None:
    settings = config.resolve({}, {})
    jobs = [
        Job(data=DataOptions(data="a", templates=which), model="iconclip", precision="fp32", plan=settings.plan)
        for which in ("own", "clip")
    ]
    own, clip = map(_asked, jobs)
    assert "templates" not in own["data"] and clip["data"]["templates"] == "clip"
