"""Sets with classes of their own, and what `views` hands back, against loops; the forms in which `explain` writes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_explain import with_tower
from torch import Tensor

from surefoot.data import Dataset
from surefoot.data.images import Images
from surefoot.explain import Question, Version, generic_contexts, picks, relevance, show, views
from surefoot.heads import class_weight, prompt_embeddings
from surefoot.model import ImageTextModel
from surefoot.prompts import PromptTable
from surefoot.report.explained import shown_of

MAPPED = ((2,), (1, 0))


def versions_of(model: ImageTextModel, count: int) -> list[Version]:
    """Trained heads on the weights that the model has."""
    heads = [(5 * torch.randn(3, 16), torch.randn(3)) for _ in range(count)]
    return [Version(str(number), str(number), model.weights, head) for number, head in enumerate(heads)]


def own_classes(logits: Tensor, mapped: tuple[tuple[int, ...], ...]) -> tuple[int, int, float]:
    """(class of its own, the row that it comes from, its probability) of the logits of one image."""
    best = [max((float(logits[row]), row) for row in rows) for rows in mapped]
    total = sum(torch.tensor(value).exp().item() for value, _ in best)
    answer = max(range(len(best)), key=lambda number: best[number][0])
    return answer, best[answer][1], torch.tensor(best[answer][0]).exp().item() / total


def test_images_of_a_set_with_classes_of_its_own_are_asked_for_these(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    torch.manual_seed(1)
    image, versions = torch.randn(20, 3, 32, 32), versions_of(tiny_model, 2)
    question = Question(tiny_data.class_names, tiny_data.templates, tiny_data.contexts)
    mapped = [MAPPED if number % 2 else () for number in range(20)]
    found, of = views(tiny_model, image, versions, question, [None] * 20, mapped=mapped)
    features = tiny_model.encode_image(image).detach()
    answers = []
    for place, version in enumerate(versions):
        weight, bias = version.head  # type: ignore[misc]
        for number in range(20):
            logits, view = features[number] @ weight.T + bias, found[number][place]
            answer, row, confidence = own_classes(logits, mapped[number] or ((0,), (1,), (2,)))
            assert (view.answer, view.row) == (answer, row)
            assert view.confidence == pytest.approx(confidence, abs=1e-5)
            answers.append(answer != int(logits.argmax()))
            if place == 1:
                assert of[number] == row
                assert view.heat is not None
                expected = relevance(tiny_model, image[number : number + 1], weight[row][None])[0]
                torch.testing.assert_close(view.heat, expected, rtol=1e-3, atol=1e-6)
    assert any(answers) and not all(answers), "classes of its own must make a difference"


def test_their_names_and_answers_are_written(tiny_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(2)
    green = tiny_data.split("shifts/green")
    own = replace(green, class_names=("round", "square"), mapped=MAPPED, labels=tuple(label % 2 for label in green.labels), border=2)
    data = replace(tiny_data, splits={**tiny_data.splits, "shifts/green": own})
    picked = [one for one in picks(data, {}, 9, seed=0) if one.on == "shifts/green"]
    assert [(one.names, one.mapped, one.border) for one in picked] == [(own.class_names, MAPPED, 2)] * len(green)
    question = Question(tiny_data.class_names, tiny_data.templates, tiny_data.contexts)
    versions = versions_of(tiny_model, 2)
    made = show(tmp_path / "out", tiny_model, picked, versions, question, maps=False)
    image = torch.cat([Images([one.path], tiny_model.preprocess, border=2).batch([0]) for one in picked])
    found, _ = views(tiny_model, image, versions, question, [None] * len(picked), mapped=[MAPPED] * len(picked), maps=False)
    for record, seen in zip(made, found, strict=True):
        assert [view["confidence"] for view in record.views] == pytest.approx([view.confidence for view in seen], abs=2e-6)
    assert {view["answer"] for record in made for view in record.views} <= {"round", "square"}
    for record, one in zip(made, picked, strict=True):
        assert record.label == ("round", "square")[own.labels[own.paths.index(one.path)]]
        rows = MAPPED[("round", "square").index(record.views[-1]["answer"])]
        assert record.of in {tiny_data.class_names[row] for row in rows}
    shown = shown_of(tmp_path / "out", None)
    assert shown is not None
    colours = [row["css"] for card in shown["cards"] for row in card["rows"]]  # type: ignore[attr-defined]
    assert colours == ["right" if view["answer"] == record.label else "wrong" for record in made for view in record.views]
    assert set(colours) == {"right", "wrong"}


def test_contexts_are_asked_by_the_text_tower_of_the_first_version(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    torch.manual_seed(3)
    start = tiny_model.weights()
    moved = {name: tensor + 0.3 * torch.randn_like(tensor) if tensor.ndim > 1 else tensor for name, tensor in start.items()}
    names = [f"thing {number}" for number in range(23)]
    question = Question(names, ("a {}.",), {"black": "a black {}.", "red": "the reddest {} of all.", "odd": "{}"})
    image = torch.randn(12, 3, 32, 32)
    found, _ = views(
        tiny_model, image, [Version("a", "a", lambda: start), Version("b", "b", lambda: moved)], question, [0] * 12, maps=False
    )
    with torch.inference_mode():
        table = PromptTable.build(list(question.contexts.values()), names)
        head = float(tiny_model.scale) * torch.nn.functional.normalize(prompt_embeddings(tiny_model, table).mean(0), dim=-1)
        for place, weights in enumerate((start, moved)):
            tiny_model.load_weights(weights)
            features = tiny_model.encode_image(image)
            share = (features @ head.T).softmax(1)
            text = class_weight(prompt_embeddings(tiny_model, PromptTable.build(("a {}.",), names)))
            assert [own[place].context for own in found] == share.argmax(1).tolist()
            assert [own[place].context_confidence for own in found] == pytest.approx(share.amax(1).tolist(), abs=1e-4)
            assert [own[place].answer for own in found] == (features @ text.T).argmax(1).tolist()


def test_clips_own_contexts_are_averaged_over_names_that_are_spread_evenly(tiny_model: ImageTextModel) -> None:
    names, image = [f"thing {number}" for number in range(41)], torch.randn(4, 3, 32, 32)
    versions, few = [Version("a", "a", tiny_model.weights)], [names[place] for place in (0, 2, 4, 6, 8, 10, 12, 14, 16, 18)]
    few += [names[place] for place in (20, 22, 24, 26, 28, 30, 32, 34, 36, 38)]
    (many, _), (own, _) = (
        views(tiny_model, image, versions, Question(some, ("a {}.",), generic_contexts()), [0] * 4, maps=False) for some in (names, few)
    )
    for one, other in zip(many, own, strict=True):
        assert (one[0].context, one[0].context_confidence) == (other[0].context, pytest.approx(other[0].context_confidence, abs=1e-7))


def test_a_model_in_training_answers_as_it_does_in_use(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    model, image = with_tower(tiny_model, patch_dropout=0.5), torch.randn(3, 3, 6, 6)
    question = Question(tiny_data.class_names, ("a {}.",), tiny_data.contexts)
    version = Version("a", "a", model.weights, (torch.randn(3, 5), torch.zeros(3)))
    expected, _ = views(model, image, [version], question, [0] * 3)
    found, _ = views(model.train(), image, [version], question, [0] * 3)
    assert [(one[0].answer, one[0].confidence) for one in found] == [(one[0].answer, one[0].confidence) for one in expected]
    assert model.clip.visual.patch_dropout.training


def test_what_is_done_is_told_up_to_the_end(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    question = Question(tiny_data.class_names, tiny_data.templates, tiny_data.contexts)
    for maps, count in ((True, 8), (False, 4)):  # two versions, two batches
        told: list[tuple[int, int]] = []
        views(
            tiny_model, torch.randn(17, 3, 32, 32), versions_of(tiny_model, 2), question, [0] * 17, maps=maps,
            on_done=lambda done, total, told=told: told.append((done, total)),
        )  # fmt: skip
        assert told == [(number, count) for number in range(1, count + 1)]
