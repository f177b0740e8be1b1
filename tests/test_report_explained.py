"""Contexts, reliability under shift and the gallery's contexts against counting by hand, on records that never ran."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from surefoot import records
from surefoot.compare import gallery
from surefoot.data import Dataset
from surefoot.errors import SettingError
from surefoot.metrics import change, overconfidence
from surefoot.records import Answers, Choice, Evaluation, Record
from surefoot.report import contexts, reliability, write_page
from surefoot.report.answers import Stored
from surefoot.report.before_after import before_after
from surefoot.report.runs import Runs, collect

SIZES = {"test": 60, "shifts/red": 40, "shifts/green": 30}
CONTEXTS = ("black", "red", "green")
MODELS = {("zero_shot", 0.0): 0.5, ("flyp", 0.5): 0.7, ("flyp", 1.0): 0.8, ("tp_ft", 1.0): 0.6}


def given(share: float, size: int, classes: int, label: int | None, seed: int) -> Answers:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size) if label is None else np.full(size, label)
    wrong = (labels + rng.integers(1, classes, size)) % classes
    right = rng.random(size) < share
    return Answers(np.where(right, labels, wrong).astype(np.int32), labels.astype(np.int32), rng.random(size).astype(np.float32))


def answers(model: int, share: float) -> dict[str, Answers]:
    found = {"val": given(share, 50, 4, None, 99)}
    for number, (name, size) in enumerate(SIZES.items()):
        labelled = given(share, size, 4, None, number)  # the same labels for every model, other answers
        own = given(share, size, 4, None, 10 * model + number + 50)
        moved = ((own.prediction - own.label + labelled.label) % 4).astype(np.int32)
        found[name] = Answers(moved, labelled.label, own.confidence)
        found[f"context/{CONTEXTS[number]}"] = given(share - 0.1, size, 3, number, 100 * model + number)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines: list[Record] = []
    for number, ((method, alpha), share) in enumerate(MODELS.items()):
        sets = answers(number, share)
        accuracy = {name: float(one.correct.mean()) for name, one in sets.items() if "context" not in name} | {"val": share}
        record = Evaluation(
            method=method, seed=0, alpha=alpha, dataset="d", accuracy=accuracy, num_images=SIZES, settings={}, settings_hash=method,
            answers=records.save_answers(tmp_path, f"{method}-{alpha}", sets),
        )  # fmt: skip
        lines.append(record)
    lines.append(Choice(method="flyp", seed=0, alpha=0.5, argmax=0.5))
    for line in lines:
        records.append(tmp_path, line)
    return tmp_path


@pytest.fixture
def runs(folder: Path) -> Runs:
    return collect(records.read(folder))


def load(folder: Path, method: str, alpha: float) -> dict[str, Answers]:
    return records.load_answers(folder, f"answers/{method}-{alpha}.npz")


def test_kept_lost_and_gained_contexts_are_counted_image_by_image(folder: Path, runs: Runs) -> None:
    section = contexts.section(runs, Stored(folder))
    assert section is not None
    assert (section["method"], section["best"], section["labels"]) == ("FLYP", True, ["fine-tuned", "WiSE-FT (α\u00a0=\u00a00.5)"])
    zero = load(folder, "zero_shot", 0.0)
    sums = {alpha: dict.fromkeys(("kept", "gained", "lost"), 0.0) for alpha in (1.0, 0.5)}
    for line, name in zip(section["lines"], CONTEXTS, strict=False):  # type: ignore[call-overload]
        before, key = zero[f"context/{name}"], f"context/{name}"
        assert (line["name"], line["images"]) == (name, len(before.label))
        assert line["zero"] == f"{100 * before.correct.mean():.1f}"
        for cell, alpha in zip(line["cells"], (1.0, 0.5), strict=True):
            after, counts, lost_to = load(folder, "flyp", alpha)[key], dict.fromkeys(("kept", "gained", "lost"), 0), list[int]()
            for row in range(len(before.label)):
                was, now = before.prediction[row] == before.label[row], after.prediction[row] == after.label[row]
                if was and now:
                    counts["kept"] += 1
                elif was:
                    counts["lost"] += 1
                    lost_to.append(int(after.prediction[row]))
                elif now:
                    counts["gained"] += 1
            assert dict(cell["parts"]) == {part: f"{100 * count / len(before.label):.1f}" for part, count in counts.items()}
            for part, count in counts.items():
                sums[alpha][part] += count / len(before.label) / 3
            if alpha == 1.0:
                most = max(set(lost_to), key=lambda number: (lost_to.count(number), -number))
                assert line["instead"] == f"{CONTEXTS[most]} ({100 * lost_to.count(most) / len(lost_to):.0f}%)"
    last = section["lines"][-1]  # type: ignore[index]
    assert [dict(cell["parts"]) for cell in last["cells"]] == [
        {part: f"{100 * value:.1f}" for part, value in sums[alpha].items()} for alpha in (1.0, 0.5)
    ]
    own = sums[1.0]
    assert section["sentences"][0] == (  # type: ignore[index]
        f"FLYP, fine-tuned: of all images (mean of 3 contexts) {100 * own['kept']:.1f}% keep their context, "
        f"{100 * own['lost']:.1f}% lose it, {100 * own['gained']:.1f}% gain it."
    )
    assert [name for name, _ in section["methods"]] == ["FLYP", "FLYP + WiSE-FT (ID val.)", "TP-FT"]  # type: ignore[attr-defined]


def test_reliability_under_each_shift_is_that_of_the_answers(folder: Path, runs: Runs) -> None:
    section = reliability.section(runs, Stored(folder))
    assert section is not None
    panels = section["panels"]
    assert [panel["name"] for panel in panels] == ["ID", "red", "green"]  # type: ignore[attr-defined]
    told = {}
    for label, kind, (method, alpha) in (
        ("zero-shot", "zero", ("zero_shot", 0.0)),
        ("fine-tuned", "tuned", ("flyp", 1.0)),
        ("WiSE-FT (α\u00a0=\u00a00.5)", "merged", ("flyp", 0.5)),
    ):
        stored, numbers = load(folder, method, alpha), []
        for panel, name in zip(panels, SIZES, strict=True):  # type: ignore[call-overload]
            own, points, error = stored[name], [], 0.0
            for low in range(15):
                inside = [k for k in range(len(own.label)) if low / 15 < own.confidence[k] <= (low + 1) / 15]
                if inside:
                    said, right = np.mean(own.confidence[inside]), np.mean(own.correct[inside])
                    points.append((36 + 158 * said, 166 - 158 * right))
                    error += len(inside) / len(own.label) * abs(said - right)
            assert (label, f"{100 * error:.1f}") in panel["errors"]
            (line,) = [group for group in ET.fromstring(panel["picture"]).iter() if group.get("class") == kind]
            found = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in line.iter() if dot.tag == "circle"]
            assert np.allclose(found, points, atol=0.06)
            numbers.append((float(np.mean(own.confidence, dtype=float)), float(np.mean(own.correct)), error))
        told[label] = [numbers[0], tuple(np.mean(numbers[1:], axis=0))]
    for sentence, (label, pair) in zip(section["sentences"], told.items(), strict=True):  # type: ignore[call-overload]
        (said, right, error), (said_there, right_there, error_there) = pair
        assert sentence == (
            f"{label[0].upper()}{label[1:]}: on ID test {words(said, right, error)}; "
            f"over the 2 shifts, on average, {words(said_there, right_there, error_there)}."
        )


def words(said: float, right: float, error: float) -> str:
    how = "too sure by" if said >= right else "not sure enough by"
    return f"sure of {100 * said:.1f}% and right in {100 * right:.1f}%, {how} {100 * abs(said - right):.1f} points (ECE {100 * error:.1f}%)"


def test_a_page_without_contexts_or_shifts_leaves_the_sections_out(folder: Path, runs: Runs, tmp_path: Path) -> None:
    page = write_page(folder, tmp_path / "page", command="").read_text()
    assert 'id="contexts"' in page
    assert "Calibration under shift: FLYP" in page
    for (method, alpha), _ in MODELS.items():
        kept = {name: one for name, one in load(folder, method, alpha).items() if name in ("val", "test")}
        records.save_answers(folder, f"{method}-{alpha}", kept)
    page = write_page(folder, tmp_path / "page", command="").read_text()
    assert 'id="contexts"' not in page
    assert "Calibration under shift" not in page


def test_a_method_whose_alpha_is_zero_has_nothing_after(folder: Path) -> None:
    """A classifier at alpha 0 is the zero-shot model itself: `evaluate` records no other."""
    found = [one for one in records.read(folder) if not isinstance(one, Evaluation) or one.method == "zero_shot"]
    own = next(one for one in found if isinstance(one, Evaluation))
    choice = Choice(method="flyp", seed=0, alpha=0.0, argmax=0.0)
    kept = [one for one in found if not isinstance(one, Choice)]
    runs = collect([*kept, replace(own, method="flyp"), choice])
    shown = before_after(runs)
    assert shown is not None and not shown.others
    assert reliability.section(runs, Stored(folder)) is None and contexts.section(runs, Stored(folder)) is None


def test_models_that_were_asked_other_images_are_not_compared(folder: Path, runs: Runs) -> None:
    sets = load(folder, "flyp", 1.0)
    sets["context/red"] = sets["context/red"].rows(range(10))
    records.save_answers(folder, "flyp-1.0", sets)
    section = contexts.section(runs, Stored(folder))
    assert section is not None
    assert [line["name"] for line in section["lines"]] == ["black", "green", "Mean"]  # type: ignore[attr-defined]


def test_changes_and_overconfidence_by_counting() -> None:
    rng = np.random.default_rng(0)
    before, after, confidence = rng.random(101) < 0.6, rng.random(101) < 0.4, rng.random(101)
    found = change(before, after)
    pairs = list(zip(before.tolist(), after.tolist(), strict=True))
    assert (found.kept, found.lost, found.gained, found.missed) == pytest.approx(
        tuple(pairs.count(pair) / 101 for pair in ((True, True), (True, False), (False, True), (False, False)))
    )
    assert overconfidence(confidence, after) == pytest.approx(sum(confidence) / 101 - sum(after) / 101)
    with pytest.raises(SettingError, match="same images"):
        change(before, after[:5])


def test_the_gallery_shows_contexts_before_and_after_and_the_images_that_lost_theirs(tiny_data: Dataset, tmp_path: Path) -> None:
    rng, data = np.random.default_rng(4), tiny_data
    rows, stored = [], []
    for number, (method, alpha) in enumerate((("zero_shot", 0.0), ("flyp", 0.5), ("flyp", 1.0))):
        sets = {}
        for name in ("test", "shifts/red", "shifts/green"):
            label = np.array(data.split(name).labels, np.int32)
            sets[name] = Answers(rng.integers(0, 3, len(label)).astype(np.int32), label, rng.random(len(label)).astype(np.float32))
            if context := data.context_of(name):
                own = np.full(len(label), list(data.contexts).index(context), np.int32)
                sets[f"context/{context}"] = Answers(
                    rng.integers(0, 2, len(label)).astype(np.int32), own, rng.random(len(label)).astype(np.float32)
                )
        record = Evaluation(
            method=method, seed=0, alpha=alpha, dataset="d", accuracy={}, num_images={}, settings={}, settings_hash="",
            answers=records.save_answers(tmp_path, f"{number}", sets), provenance={"data": "x"},
        )  # fmt: skip
        rows.append(record)
        stored.append(sets)
    zero, merged, tuned = stored
    found = gallery.examples(tmp_path, data, "flyp + WiSE-FT (ID val.)", rows[1], rows[0], "", rows)
    names = list(data.contexts)
    lost = [example for example in found if example.change == "context"]
    assert lost
    for example in found:
        split = data.split(example.on)
        row = [data.written(path) for path in split.paths].index(example.path)
        for sets, answer, context in (
            (zero, example.answer_b, example.context_b),
            (merged, example.answer_a, example.context_a),
            (tuned, example.answer_tuned, example.context_tuned),
        ):
            assert answer == data.class_names[sets[example.on].prediction[row]]
            truth = data.context_of(example.on)
            assert context == (names[sets[f"context/{truth}"].prediction[row]] if truth else "")
        assert example.context == (data.context_of(example.on) or "")
        assert example.change != "context" or (example.context_b == example.context != example.context_tuned)
    first = next(example for example in lost if example.on == "test")
    own, other = zero["context/black"], tuned["context/black"]
    sure = max((float(own.confidence[k]), k) for k in range(len(own.label)) if own.prediction[k] == 0 and other.prediction[k] != 0)[1]
    assert first.path == data.written(data.split("test").paths[sure])
    for name in ("test", "shifts/red"):
        own, split = zero[f"context/{data.context_of(name)}"], data.split(name)
        paths = [data.written(path) for path in split.paths]
        sure_of = [float(own.confidence[paths.index(example.path)]) for example in lost if example.on == name]
        assert sure_of == sorted(sure_of, reverse=True), "the surest first"
    alone = gallery.examples(tmp_path, data, "flyp", rows[2], rows[0], "", rows)
    assert all(example.tuned == "" for example in alone)
    for record in (*rows, *(replace(example, runs="x") for example in found)):
        records.append(tmp_path, record)
    page = write_page(tmp_path, tmp_path / "page", command="").read_text()
    card = page[page.index("Context lost in fine-tuning") :]
    card = re.sub(r"<[^>]+>|\s+", " ", card[card.index("<dl>") : card.index("</figure>")])
    assert [card.count(f"{name} ") for name in ("zero-shot", "✗")] == [1, card.count("✗")]
    assert f"{lost[0].answer_b} ({100 * lost[0].confidence_b:.0f}%) {lost[0].context} FLYP" in " ".join(card.split())
    assert "✗" in card
