"""Evaluation against direct computation, and which tower answers what."""

from __future__ import annotations

import pytest
import torch

from surefoot.data import Dataset, read_image
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.protocols import Judge, Outcome, members
from surefoot.records import Answers
from surefoot.train import Training, fit, part, start_state

LONG = Training(epochs=2, batch_size=8, learning_rate=3e-2)


@pytest.fixture
def judged(tiny_model: ImageTextModel, tiny_data: Dataset) -> tuple[Judge, dict[str, torch.Tensor]]:
    start = start_state(tiny_model, tiny_data)
    return Judge(tiny_model, tiny_data, start), start


def test_zero_shot_is_the_most_similar_mean_prompt(judged: tuple[Judge, dict[str, torch.Tensor]], tiny_model: ImageTextModel) -> None:
    judge, start = judged
    outcome = judge.judge(get("zero_shot"), start)
    for name in ("test", "shifts/red", "unseen/other"):
        split = judge.dataset.split(name)
        expected = []
        with torch.no_grad():
            for path, label in zip(split.paths, split.labels, strict=True):
                feature = tiny_model.encode_image(tiny_model.preprocess(read_image(path))[None])[0]
                scores = []
                for class_name in split.class_names:
                    texts = tiny_model.encode_text(tiny_model.tokenize([t.replace("{}", class_name) for t in judge.dataset.templates]))
                    scores.append(float(feature @ torch.nn.functional.normalize(texts.mean(0), dim=0)))
                expected.append(max(range(len(scores)), key=scores.__getitem__) == label)
        assert outcome.correct[name].tolist() == expected


def test_head_predictions_use_weight_and_bias(judged: tuple[Judge, dict[str, torch.Tensor]]) -> None:
    judge, start = judged
    forced = {**start, "head.bias": torch.tensor([0.0, 1e6, 0.0])}
    outcome = judge.judge(get("tp_ft"), forced)
    assert outcome.correct["test"].tolist() == [label == 1 for label in judge.dataset.split("test").labels]
    assert outcome.correct["unseen/other"].tolist() == judge.judge(get("zero_shot"), start).correct["unseen/other"].tolist()


def test_tp_ft_at_its_start_is_zero_shot_everywhere(judged: tuple[Judge, dict[str, torch.Tensor]]) -> None:
    judge, start = judged
    assert judge.judge(get("tp_ft"), start).accuracy == judge.judge(get("zero_shot"), start).accuracy


def test_context_recognition_keeps_the_pre_trained_context_head(judged: tuple[Judge, dict[str, torch.Tensor]], tiny_data: Dataset) -> None:
    judge, start = judged
    end = fit(get("flyp"), judge.model, tiny_data, LONG, start=start).state
    image_only = {k: (end if k.startswith("model.visual.") else start)[k] for k in start}
    text_only = {k: (start if k.startswith("model.visual.") else end)[k] for k in start}
    whole, images, texts = (judge.judge(get("flyp"), state).correct for state in (end, image_only, text_only))
    zero = judge.judge(get("zero_shot"), start).correct
    for context in ("black", "red"):
        assert whole[f"context/{context}"].tolist() == images[f"context/{context}"].tolist()
        assert texts[f"context/{context}"].tolist() == zero[f"context/{context}"].tolist()
    expected = []
    judge.model.load_weights(part(end, "model"))
    with torch.no_grad():
        heads = []
        for template in ("a black {}.", "a red {}."):
            texts = judge.model.encode_text(judge.model.tokenize([template.replace("{}", name) for name in tiny_data.class_names]))
            heads.append(torch.nn.functional.normalize(texts.mean(0), dim=0))
        for path in tiny_data.split("shifts/red").paths:
            feature = judge.model.encode_image(judge.model.preprocess(read_image(path))[None])[0]
            expected.append(bool(feature @ heads[1] > feature @ heads[0]))
    assert whole["context_own/red"].tolist() == expected


def test_contexts_come_from_the_sets_that_name_them(judged: tuple[Judge, dict[str, torch.Tensor]]) -> None:
    judge, start = judged
    outcome = judge.judge(get("zero_shot"), start)
    assert {k: len(v) for k, v in outcome.correct.items() if k.startswith("context/")} == {"context/black": 15, "context/red": 12}
    assert "train" not in outcome.correct


def test_means_are_over_sets_not_images() -> None:
    import numpy as np

    def given(right: list[bool]) -> Answers:
        return Answers(np.array(right).astype(np.int32), np.ones(len(right), np.int32), np.full(len(right), 0.5, np.float32))

    answers = {
        "test": given([True] * 4),
        "shifts/a": given([True, False]),
        "shifts/b": given([True] * 100),
        "context/x": given([False] * 3),
    }
    accuracy = Outcome(answers).accuracy
    assert accuracy["avg_shifts"] == 0.75
    assert accuracy["context"] == 0
    assert "context_own" not in accuracy
    assert members("context", answers) == ["context/x"]
    assert members("test", answers) == ["test"]


def test_judging_does_not_depend_on_what_was_judged_before(judged: tuple[Judge, dict[str, torch.Tensor]], tiny_data: Dataset) -> None:
    judge, start = judged
    first = judge.judge(get("zero_shot"), start).accuracy
    judge.judge(get("flyp"), fit(get("flyp"), judge.model, tiny_data, LONG, start=start).state)
    assert judge.judge(get("zero_shot"), start).accuracy == first


def test_context_answers_by_the_first_text_tower_and_context_own_by_the_live_one(
    judged: tuple[Judge, dict[str, torch.Tensor]], tiny_data: Dataset
) -> None:
    judge, start = judged
    end = fit(get("flyp"), judge.model, tiny_data, LONG, start=start).state
    before = judge.judge(get("flyp"), end).correct
    judge._start_texts = {**judge._start_texts, "context": judge._start_texts["context"].flip(0)}  # the two contexts change places
    after = judge.judge(get("flyp"), end).correct
    for context in ("black", "red"):
        assert after[f"context/{context}"].tolist() == [not right for right in before[f"context/{context}"]]
        assert after[f"context_own/{context}"].tolist() == before[f"context_own/{context}"].tolist()


def test_unseen_classes_and_flyp_are_answered_by_the_live_text_tower(
    judged: tuple[Judge, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, start = judged
    live = {name: head.roll(1, 0) for name, head in judge._start_texts.items()}
    before = judge.judge(get("zero_shot"), start).correct
    monkeypatch.setattr(judge, "_text_heads", lambda: live)
    after = judge.judge(get("flyp"), start).correct
    assert after["unseen/other"].tolist() == [not right for right in before["unseen/other"]]
    assert judge.judge(get("tp_ft"), start).correct["unseen/other"].tolist() == before["unseen/other"].tolist()
    assert after["test"].tolist() != before["test"].tolist()
