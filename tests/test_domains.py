"""Leave one domain out: what the domains are called, and that nothing of a held-out one is trained on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import fakes
import pytest
from conftest import typed

from surefoot import records
from surefoot.cli.recipe import resolve
from surefoot.compare import Comparison, Plan
from surefoot.data import Dataset, load, open_dataset
from surefoot.data.digest import digests
from surefoot.data.draws import of_seed, together
from surefoot.data.subsets import joined
from surefoot.errors import SettingError
from surefoot.job import Job
from surefoot.model import ImageTextModel
from surefoot.protocols.parts import DOMAINBED, PROTOCOLS, leave_one_out
from surefoot.soup import Ingredient, check
from surefoot.train import Training
from surefoot.tune.search import _Search


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


def plan_of(*seeds: int, **more: object) -> Plan:
    return Plan(methods=("tp_ft",), seeds=seeds, alphas=(0.5,), training=Training(steps=1, batch_size=4), corruptions=False, **more)  # type: ignore[arg-type]


@pytest.fixture
def south(doubled: Dataset) -> Dataset:
    """The fold that trains on train and north."""
    return next(part.dataset for part in leave_one_out(doubled).parts if part.name == "south")


def test_every_seed_draws_validation_images_of_its_own(south: Dataset) -> None:
    drawn = {seed: of_seed(south, seed) for seed in range(4)}
    assert drawn[0] is south
    pool = {*joined([south.split("train"), south.split("val")]).paths}
    for data in drawn.values():
        train, val = data.split("train"), data.split("val")
        assert not {*train.paths} & {*val.paths} and {*train.paths} | {*val.paths} == pool
        assert {*train.labels} == {0, 1} and {*train.groups} == {"train", "north"}
        assert len(val) >= 4, "2 of 8 images of each class of each domain, but for copies"
        for path, label, group in zip(train.paths, train.labels, train.groups, strict=True):
            assert path.parent.name == south.class_names[label] and (group in path.parts)
    assert len({data.split("val").paths for data in drawn.values()}) == 4
    assert of_seed(south, 2) == of_seed(of_seed(south, 1), 2), "a draw hangs on the seed alone"
    (other,) = [part.dataset for part in leave_one_out(open_dataset(south.root), seed=1).parts if part.name == "south"]
    assert {*other.split("val").paths} == {*drawn[1].split("val").paths}, "--split-seed is added to the seed"


def test_data_without_draws_of_their_own_are_the_same_for_every_seed(tiny_data: Dataset) -> None:
    assert of_seed(tiny_data, 3) is tiny_data and together(tiny_data, {3: tiny_data}) is tiny_data


def test_a_run_chooses_on_the_images_that_it_was_not_trained_on(south: Dataset, tiny_model: ImageTextModel, tmp_path: Path) -> None:
    found = Comparison(tiny_model, south, plan_of(2, 0, 1), tmp_path / "all").run()
    zero = records.load_answers(tmp_path / "all", found[0].answers)["val"]
    judged = together(south, {seed: of_seed(south, seed) for seed in (0, 1, 2)}).split("val")
    assert zero.label.tolist() == list(judged.labels)
    answered = dict(zip(judged.paths, zero.prediction.tolist(), strict=True))
    for one in found[1:]:
        val = of_seed(south, one.seed).split("val")
        given = records.load_answers(tmp_path / "all", one.answers)["val"]
        assert given.label.tolist() == list(val.labels)
        if one.alpha == 0:
            assert given.prediction.tolist() == [answered[path] for path in val.paths]
    said = {one.seed: one.settings.get("val_draws") for one in found[1:]}
    assert said == {0: None, 1: [1], 2: [2]}, "seed 0 keeps the splits that stand, and the hash of its settings"
    assert found[0].settings["val_draws"] == [0, 1, 2]


def test_a_seed_that_is_added_later_runs_alone_and_as_it_would_have(south: Dataset, tiny_model: ImageTextModel, tmp_path: Path) -> None:
    Comparison(tiny_model, south, plan_of(0), tmp_path / "grown").run()
    grown = Comparison(tiny_model, south, plan_of(0, 1), tmp_path / "grown")
    assert not grown.missing("tp_ft", 0) and grown.missing("tp_ft", 1)
    both = {(one.seed, one.alpha): one.accuracy for one in Comparison(tiny_model, south, plan_of(0, 1), tmp_path / "both").run()[1:]}
    assert {(one.seed, one.alpha): one.accuracy for one in grown.run()[1:]} == both


def test_references_are_judged_on_validation_images_that_they_were_not_trained_on(
    south: Dataset, tiny_model: ImageTextModel, tmp_path: Path
) -> None:
    comparison = Comparison(tiny_model, south, plan_of(1, 0, references=(0.5, 1.0)), tmp_path)
    comparison.run()
    own = of_seed(south, 1)
    assert comparison.references.dataset.split("train") == own.split("train")
    for one in comparison.references.standing():
        assert one.num_images["val"] == len(own.split("val")) and one.settings["val_draws"] == [1]


def test_a_search_with_several_seeds_validates_each_on_its_own_images(south: Dataset, tiny_model: ImageTextModel, tmp_path: Path) -> None:
    searches = [_Search("tp_ft", tiny_model, south, plan_of(0, 1), tmp_path, None, 0, number, None) for number in (1, 2)]  # type: ignore[arg-type]
    assert searches[1].data_of == {0: south, 1: of_seed(south, 1)}
    assert searches[0].draws == {} and searches[1].draws == {"val_draws": [0, 1]}


def test_runs_that_were_trained_on_each_others_validation_images_make_no_soup(
    south: Dataset, tiny_model: ImageTextModel, tmp_path: Path
) -> None:
    found = Comparison(tiny_model, south, plan_of(0, 1), tmp_path).run()
    first, second = [Ingredient.of(tmp_path, one) for one in found if one.alpha == 1]
    check([first, first])
    with pytest.raises(SettingError, match="drew their own validation images, and each was trained on some of the other's"):
        check([first, second])


@pytest.mark.parametrize(
    ("recipe", "settings", "given", "steps", "seeds"),
    [
        (None, [], {}, 5000, (0, 1, 2)),
        (None, ["batch_size=8"], {"seeds": [4]}, 5000, (4,)),
        (None, ["epochs=3"], {}, None, (0, 1, 2)),
        (None, ["steps=7"], {}, 7, (0, 1, 2)),
        (None, ["flyp.epochs=3"], {}, None, (0, 1, 2)),
        (None, [], {"methods": ["tp_ft", "flyp+epochs=3"]}, None, (0, 1, 2)),
        ("car_ft/domainbed", [], {}, 5000, (0, 1, 2)),
        ("flyp/imagenet", [], {}, None, (0, 1, 2, 3, 4)),
        ("rate.toml", [], {}, 5000, (0, 1, 2)),
        ("long.toml", [], {}, None, (7,)),
    ],
)
def test_domainbed_says_what_neither_the_user_nor_a_recipe_says(
    recipe: str | None, settings: list[str], given: dict[str, list[object]], steps: int | None, seeds: tuple[int, ...], tmp_path: Path
) -> None:
    (tmp_path / "rate.toml").write_text("[training]\nlearning_rate = 1e-6\n")
    (tmp_path / "long.toml").write_text("seeds = [7]\n[overrides.tp_ft]\nepochs = 2\n")
    path = str(tmp_path / recipe) if recipe and recipe.endswith(".toml") else recipe
    plan = resolve("photos", path, settings, usual=PROTOCOLS["domains"].usual, **given).plan
    assert (plan.training.steps, plan.seeds) == (steps, seeds)
    assert PROTOCOLS["domains"].usual == DOMAINBED == {"seeds": (0, 1, 2), "steps": 5000}


def test_domainbeds_length_holds_for_iconshift_too_unless_its_recipe_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not any(kind.usual for name, kind in PROTOCOLS.items() if name != "domains")
    usual = PROTOCOLS["domains"].usual
    plain = resolve("iconshift", None, []).plan
    assert resolve("iconshift", None, [], usual=usual).plan == replace(plain, training=replace(plain.training, steps=5000))
    assert resolve("iconshift", "iconshift", [], usual=usual).plan == plain
    assert resolve("iconshift", None, ["epochs=2"], usual=usual).plan.training.steps is None
    said = " ".join(typed(monkeypatch, capsys, "domains", "--help")[1].replace("│", " ").split())
    assert "for all data alike" in said and "--recipe iconshift" in said


def test_the_share_of_validation_images_is_the_users_and_is_known_when_a_part_is_opened_again(
    doubled: Dataset, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", f"local-dir:{tiny_folder}", "--methods", "tp_ft", "--seeds", "0", "--alphas", "0.5", "--set", "steps=1")
    code, said = typed(monkeypatch, capsys, "domains", doubled.root, *common, "--val-share", "0.5", "--out", tmp_path / "out")
    assert code == 0, said
    opened = Job.of(tmp_path / "out/south").data.open_plain()
    assert {path.stem for path in opened.split("val").paths} == {
        path.stem for path in leave_one_out(open_dataset(doubled.root), val_share=0.5).parts[2].dataset.split("val").paths
    }
    assert opened.val_draw == (0.5, 0)
    job = json.loads((tmp_path / "out/south/job.json").read_text())
    del job["data"]["cut"]["val_share"]  # as older folders have it
    (tmp_path / "out/south/job.json").write_text(json.dumps(job))
    assert Job.of(tmp_path / "out/south").data.open_plain().val_draw == (0.2, 0)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--test-share", "0.15", "domains splits off no test images"),
        ("--val-share", "1.5", "val_share is 1.5; it must lie between 0 and 1"),
    ],
)
def test_shares_that_mean_nothing_are_refused(
    option: str, value: str, told: str, doubled: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = typed(monkeypatch, capsys, "domains", doubled.root, option, value)
    assert code == 2 and told in " ".join(said.split())
