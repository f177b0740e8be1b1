"""The protocols cut what the papers say they cut, and nothing that is held out is ever trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import draw

from surefoot.data import Dataset, Images, Split, open_dataset
from surefoot.data.subsets import joined, take
from surefoot.errors import DataError, SettingError, UnknownNameError
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.protocols.parts import (
    Column,
    build,
    context,
    cross,
    domains_of,
    few_shots,
    halves,
    leave_one_out,
    shift,
    transfer,
    zeroshot_transfer,
)
from surefoot.train import Training, fit
from surefoot.train.batches import batches, mirrored


@pytest.fixture(scope="module")
def six_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes, each image of which is one flat colour of its own, so that no two are copies."""
    root = tmp_path_factory.mktemp("six")
    number = 0
    for split, count in {"train": 5, "val": 3, "test": 3, "shifts/rough": 4}.items():
        for name in ("ant", "bee", "cow", "dog", "eel", "fox"):
            for _ in range(count):
                number += 1
                image = draw("disc", 0, "black").resize((8, 8))
                image.paste((number, 255 - number, 7), (0, 0, 8, 8))
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    (root / "dataset.toml").write_text('name = "six"\ntemplates = ["a {}.", "one {}."]\n')
    return root


@pytest.fixture
def six(six_root: Path) -> Dataset:
    return open_dataset(six_root)


def named(dataset: Dataset, name: str, templates: tuple[str, ...] = ("the {}.",)) -> Dataset:
    return replace(dataset, name=name, templates=templates)


def test_every_domain_is_held_out_once_and_no_image_of_it_is_seen(tiny_data: Dataset) -> None:
    protocol = leave_one_out(tiny_data)
    domains = {name: set(split.paths) for name, split in domains_of(tiny_data).items()}
    assert [part.name for part in protocol.parts] == ["black", "green", "red"] == list(domains)
    assert len(domains["black"]) == 3 * (8 + 4 + 5)
    for part in protocol.parts:
        seen = {path for split in ("train", "val") for path in part.dataset.split(split).paths}
        assert set(part.dataset.split(f"shifts/{part.name}").paths) == domains[part.name]
        assert not seen & domains[part.name]
        assert seen == set().union(*(paths for name, paths in domains.items() if name != part.name))
        assert not set(part.dataset.split("train").paths) & set(part.dataset.split("val").paths)
        assert set(part.dataset.splits) == {"train", "val", f"shifts/{part.name}"}


def test_each_class_of_each_training_domain_gives_a_fifth_to_validation(six: Dataset) -> None:
    for part, number in zip(leave_one_out(six).parts, (1, 2), strict=True):  # of 4 images of rough, of 11 of train
        val = part.dataset.split("val")
        assert [val.labels.count(label) for label in range(6)] == [number] * 6
    assert set(leave_one_out(six).parts[0].dataset.split("train").groups) == {"rough"}


def test_domains_average_counts_every_domain_alike(tiny_data: Dataset) -> None:
    columns = leave_one_out(tiny_data).columns
    assert columns[-1].sources == ((("black", "shifts/black"), ("green", "shifts/green"), ("red", "shifts/red")),)


def test_one_domain_alone_and_twice_the_same_name_are_refused(tiny_data: Dataset) -> None:
    alone = replace(tiny_data, splits={name: split for name, split in tiny_data.splits.items() if "/" not in name})
    with pytest.raises(DataError, match="holds one domain"):
        leave_one_out(alone)
    with pytest.raises(DataError, match="two domains called red"):
        leave_one_out(replace(tiny_data, id_context="red"))


def test_a_class_that_lives_in_one_domain_is_named(tiny_data: Dataset) -> None:
    red = tiny_data.split("shifts/red")
    own = tuple(row for row, label in enumerate(red.labels) if label)
    splits = {name: split for name, split in tiny_data.splits.items() if name != "shifts/green"}
    part = replace(red, paths=tuple(red.paths[row] for row in own), labels=tuple(red.labels[row] for row in own))
    with pytest.raises(DataError, match=f"Without black no domain .* {tiny_data.class_names[0]}"):
        leave_one_out(replace(tiny_data, splits={**splits, "shifts/red": part}))


def test_base_and_new_halves_are_judged_each_among_its_own_names(six: Dataset) -> None:
    protocol = halves([six])
    data = protocol.parts[0].dataset
    assert data.class_names == ("ant", "bee", "cow")
    assert data.split("unseen/new").class_names == ("dog", "eel", "fox")
    assert set(data.splits) == {"train", "val", "test", "unseen/new"}
    assert protocol.columns == (
        Column("Base", ((("six", "test"),),)), Column("New", ((("six", "unseen/new"),),)),
        Column("HM", ((("six", "test"),), (("six", "unseen/new"),))),
    )  # fmt: skip


def test_harmonic_mean_over_sets_is_that_of_both_means(six: Dataset) -> None:
    columns = halves([six, named(six, "other")]).columns
    assert columns[-1] == Column(
        "HM", ((("six", "test"), ("other", "test")), (("six", "unseen/new"), ("other", "unseen/new"))), "Avg."
    )  # fmt: skip


def test_cross_judges_both_halves_of_others_with_their_own_names_and_prompts(six: Dataset) -> None:
    protocol = cross(six, [named(six, "zoo")])
    data = protocol.parts[0].dataset
    assert len(protocol.parts) == 1
    assert data.class_names == ("ant", "bee", "cow")
    for title, names in {"base": ("ant", "bee", "cow"), "new": ("dog", "eel", "fox")}.items():
        split = data.split(f"unseen/zoo {title}")
        assert (split.class_names, split.templates) == (names, ("the {}.",))
        assert {split.class_names[label] for label in split.labels} == set(names)
    assert [(column.group, column.name) for column in protocol.columns] == [
        ("six", "Base"), ("six", "New"), ("six", "HM"), ("zoo", "Base"), ("zoo", "New"),
    ]  # fmt: skip


def test_zeroshot_transfer_trains_on_all_of_the_first_and_on_nothing_else(six: Dataset, tiny_data: Dataset) -> None:
    protocol = zeroshot_transfer(six, [tiny_data, named(six, "zoo")])
    data = protocol.parts[0].dataset
    assert data.split("train") == six.split("train")
    assert data.split("unseen/shapes").templates == tiny_data.templates
    assert data.split("unseen/shapes").paths == tiny_data.split("test").paths
    assert protocol.columns[-1].sources == ((("six", "unseen/shapes"), ("six", "unseen/zoo")),)


def test_transfer_has_a_part_for_each_data_set(six: Dataset, tiny_data: Dataset) -> None:
    protocol = transfer([six, tiny_data])
    assert [(part.name, set(part.dataset.splits)) for part in protocol.parts] == [
        ("six", {"train", "val", "test"}), ("shapes", {"train", "val", "test"}),
    ]  # fmt: skip
    with pytest.raises(DataError, match="have one name, six"):
        transfer([six, six])


@pytest.mark.parametrize("name", ["../../escaped", "a\\b", "report", ".."])
def test_names_that_cannot_be_folders_are_refused(name: str, six: Dataset, tiny_data: Dataset) -> None:
    with pytest.raises(DataError, match="cannot be a folder's name here"):
        transfer([six, replace(tiny_data, name=name)])


def test_shifts_that_hold_few_classes_are_judged_among_these_too_and_a_metric_of_the_data_has_columns(tiny_data: Dataset) -> None:
    red = tiny_data.split("shifts/red")
    few = take(red, [row for row, label in enumerate(red.labels) if label])
    protocol = shift(replace(tiny_data, metric="macro_f1", splits={**tiny_data.splits, red.name: few}))
    shown = [column for column in protocol.columns if column.group not in ("", "Shifts")]
    more = [(column.group, column.name, column.measure, column.sources) for column in shown]
    data = "shapes"
    assert more == [
        ("Own classes", "red", "accuracy", (((data, "restricted/red"),),)),
        ("Own classes", "Avg.", "accuracy", (((data, "shifts/green"), (data, "restricted/red")),)),
        ("Macro F1", "ID", "macro_f1", (((data, "test"),),)),
        ("Macro F1", "green", "macro_f1", (((data, "shifts/green"),),)),
        ("Macro F1", "red", "macro_f1", (((data, "shifts/red"),),)),
    ]


def test_shifts_with_class_names_of_their_own_are_left_out_of_a_second_mean(tiny_data: Dataset) -> None:
    mapped = replace(tiny_data.split("shifts/red"), class_names=("flat", "round"), mapped=((0, 1), (2,)))
    protocol = shift(replace(tiny_data, splits={**tiny_data.splits, mapped.name: mapped}))
    assert [column.name for column in protocol.columns] == [
        "ID", "green", "red", "Avg. shifts", "Avg. shifts without red", "Avg. all",
    ]  # fmt: skip
    assert protocol.columns[4].sources == ((("shapes", "shifts/green"),),)


def test_few_shot_has_a_part_for_each_number_and_refuses_what_the_data_cannot_give(tiny_data: Dataset) -> None:
    protocol = few_shots(tiny_data, [1, 4])
    assert [(part.name, part.shots) for part in protocol.parts] == [("shots-1", 1), ("shots-4", 4)]
    assert [(column.group, column.name) for column in protocol.columns] == [
        ("ID", "1"), ("ID", "4"), ("Avg. shifts", "1"), ("Avg. shifts", "4"), ("Unseen", "1"), ("Unseen", "4"),
    ]  # fmt: skip
    with pytest.raises(DataError, match="16 images of each class"):
        few_shots(tiny_data, [1, 16])


def test_shift_and_context_name_their_means(tiny_data: Dataset, six: Dataset) -> None:
    assert [column.name for column in shift(tiny_data).columns] == ["ID", "green", "red", "Avg. shifts", "Avg. all"]
    assert shift(tiny_data).columns[-1].sources == ((("shapes", "test"), ("shapes", "shifts/green"), ("shapes", "shifts/red")),)
    assert [(column.group, column.name) for column in context(tiny_data).columns] == [
        ("Image tower", "black"), ("Image tower", "red"), ("Image tower", "Avg."),
        ("Both towers", "black"), ("Both towers", "red"), ("Both towers", "Avg."),
    ]  # fmt: skip
    with pytest.raises(DataError, match="names no context"):
        context(six)


def test_build_refuses_numbers_that_a_protocol_does_not_take(six: Dataset, tiny_data: Dataset) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'domains'"):
        build("domain", [six])
    with pytest.raises(SettingError, match="cross takes 2 data sets or more; 1 were given: six"):
        build("cross", [six])
    with pytest.raises(SettingError, match="domains takes 1 data set; 2 were given"):
        build("domains", [six, tiny_data])
    with pytest.raises(SettingError, match="one number of images a class"):
        build("transfer", [six], shots=[1, 2])
    assert build("transfer", [six], shots=[2]).parts[0].shots == 2


def test_training_reads_no_image_that_is_held_out(six: Dataset, tiny_model: ImageTextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that training opens is noted where it is decoded."""
    read: list[Path] = []
    from surefoot.data import images

    plain = images.read_image
    monkeypatch.setattr(images, "read_image", lambda path, *least: (read.append(path), plain(path, *least))[1])
    for part in (*leave_one_out(six).parts, *cross(six, [named(six, "zoo")]).parts):
        read.clear()
        fit(get("tp_ft"), tiny_model, part.dataset, Training(epochs=1, batch_size=8))
        allowed = {path for split in ("train", "val") for path in part.dataset.split(split).paths}
        assert set(read) <= allowed  # the last, smaller batch of the epoch is left out
        assert len(set(read)) > len(allowed) - 8


def test_groups_are_drawn_alike_whatever_their_sizes(tiny_data: Dataset, tiny_model: ImageTextModel) -> None:
    fold = leave_one_out(tiny_data).parts[1].dataset  # black is four times as large as red
    train = fold.split("train")
    drawn = []
    training = Training(steps=40, batch_size=16, sampling="groups")
    for batch in batches(fold, torch.arange(len(train))[:, None].float(), tiny_model, training):
        assert batch.feature is not None
        drawn += [train.groups[int(row)] for row in batch.feature[:, 0]]
    assert 0.44 < drawn.count("red") / len(drawn) < 0.56
    assert train.groups.count("red") / len(train) < 0.3


def test_groups_without_groups_are_refused_before_training(tiny_data: Dataset, tiny_model: ImageTextModel) -> None:
    with pytest.raises(SettingError, match="sampling is 'groups', and the training images have none"):
        fit(get("tp_ft"), tiny_model, tiny_data, Training(epochs=1, sampling="groups"))


def test_half_of_the_images_are_mirrored_and_the_others_stay() -> None:
    image = torch.arange(200 * 3 * 2 * 5, dtype=torch.float32).reshape(200, 3, 2, 5)
    found = mirrored(image, torch.rand(200, generator=torch.Generator().manual_seed(0)))
    turned = [bool((one == before.flip(-1)).all()) for one, before in zip(found, image, strict=True)]
    kept = [bool((one == before).all()) for one, before in zip(found, image, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True))
    assert 70 < sum(turned) < 130


def test_flip_changes_the_run_and_its_absence_changes_no_settings(tiny_data: Dataset, tiny_model: ImageTextModel) -> None:
    from surefoot.train import settings_of

    plain, flipped = (settings_of(get("tp_ft"), Training(flip=flip), tiny_model) for flip in (False, True))
    assert "flip" not in plain
    assert flipped == {**plain, "flip": True}


def test_border_is_cut_off_before_anything_else(six_root: Path) -> None:
    path = next((six_root / "train" / "ant").iterdir())
    image = draw("box", 0, "black")
    image.save(target := path.parent.parent.parent / "bordered.png")
    sizes = []
    Images([target], lambda image: (sizes.append(image.size), torch.zeros(3, 1, 1))[1], border=2).batch([0])
    assert sizes == [(36, 36)]
    with pytest.raises(DataError, match="8 x 8 pixels; nothing is left without its border of 4"):
        Images([path], lambda image: torch.zeros(3, 1, 1), border=4).batch([0])


def test_joined_keeps_captions_and_groups_beside_their_images() -> None:
    first = Split("a", (Path("1"),), (0,), ("x",), captions=("one",))
    second = Split("b", (Path("2"),), (0,), ("x",), groups=("north",))
    both = joined([first, second])
    assert (both.name, both.captions, both.groups) == ("a", ("one", ""), ("", "north"))
