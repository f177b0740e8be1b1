"""The table of a protocol against its definition, and the commands from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import typed

from surefoot import records
from surefoot.compare import series
from surefoot.data import Dataset
from surefoot.errors import DataError
from surefoot.job import Job
from surefoot.metrics import macro_f1, worst_group
from surefoot.protocols.parts import Column, Part, Protocol

Made = tuple[Protocol, dict[str, list[records.Evaluation]], Path]
RATES = {"zero_shot": 0.5, "tp_ft": 0.7, "flyp": 0.8}
SIZES = {"a": {"val": 20, "test": 40, "unseen/new": 30}, "b": {"val": 20, "test": 60, "unseen/new": 10}}
OWN = (Column("ID", ((("a", "test"),),), "Macro F1", "macro_f1"), Column("ID", ((("a", "test"),),), "Worst group", "worst_group"))
COLUMNS = (
    Column("Base", ((("a", "test"),),), "a"),
    Column("Avg.", ((("a", "test"), ("b", "test")),)),
    Column("HM", ((("a", "test"), ("b", "test")), (("a", "unseen/new"), ("b", "unseen/new"))), "Avg."),
)


def evaluation(folder: Path, part: str, method: str, seed: int, alpha: float) -> records.Evaluation:
    """One that is right on a random share of the images; alpha 0 is zero-shot."""
    rng = np.random.default_rng([len(part + method), seed, int(100 * alpha)])
    answers = {}
    for name, number in SIZES[part].items():
        right = rng.random(number) < RATES[method if alpha else "zero_shot"]
        label = np.arange(number, dtype=np.int32) % 4
        answers[name] = records.Answers(np.where(right, label, (label + 1) % 4).astype(np.int32), label, np.full(number, 0.5, np.float32))
    return records.Evaluation(
        method=method, seed=seed, alpha=alpha, dataset=part,
        accuracy={name: float(one.correct.mean()) for name, one in answers.items()},
        num_images=SIZES[part], answers=records.save_answers(folder / part, f"{method}-{seed}-{alpha}", answers),
        settings={}, settings_hash=f"{method}{seed}",
    )  # fmt: skip


@pytest.fixture
def made(tmp_path: Path, tiny_data: Dataset) -> Made:
    protocol = Protocol("base-to-new", tuple(Part(part, tiny_data) for part in SIZES), COLUMNS, notes=("a note",))
    found = {
        part: [evaluation(tmp_path, part, "zero_shot", 0, 0.0)]
        + [
            evaluation(tmp_path, part, method, seed, alpha)
            for method in ("tp_ft", "flyp")
            for seed in (0, 1, 2)
            for alpha in (0.0, 0.5, 1.0)
        ]
        for part in SIZES
    }
    return protocol, found, tmp_path


def of(found: dict[str, list[records.Evaluation]], part: str, method: str, seed: int, alpha: float = 1.0) -> dict[str, float]:
    return next(dict(one.accuracy) for one in found[part] if (one.method, one.seed, one.alpha) == (method, seed, alpha))


def test_cells_are_means_over_parts_and_the_harmonic_mean_of_means(
    made: Made,
) -> None:
    protocol, found, folder = made
    table = series.table(protocol, found, folder, ["a", "b"])
    cells = {(one.row, one.group, one.column): one for one in table if isinstance(one, records.Summary)}
    for seed in range(3):
        first, second = of(found, "a", "flyp", seed), of(found, "b", "flyp", seed)
        base, new = ((first[name] + second[name]) / 2 for name in ("test", "unseen/new"))
        assert cells["flyp", "a", "Base"].values[seed] == first["test"]
        assert cells["flyp", "", "Avg."].values[seed] == pytest.approx(base)
        assert cells["flyp", "Avg.", "HM"].values[seed] == pytest.approx(2 * base * new / (base + new))
    assert cells["flyp", "", "Avg."].num_images == 100
    assert list(cells["flyp", "", "Avg."].seeds) == [0, 1, 2]
    assert len(cells["zero_shot", "", "Avg."].values) == 1
    assert {row for row, _, _ in cells} == {"zero_shot"} | {
        method + wise for method in ("tp_ft", "flyp") for wise in ("", " + WiSE-FT 0.5", " + WiSE-FT (ID val.)")
    }


def test_the_chosen_alpha_is_each_parts_own(made: Made) -> None:
    protocol, found, folder = made
    rows = series.rows_of(protocol, found, folder)["tp_ft + WiSE-FT (ID val.)"]
    from surefoot.compare.conclusions import choices

    for part in SIZES:
        chosen = {choice.seed: choice.alpha for choice in choices(found[part], folder / part) if choice.method == "tp_ft"}
        assert {one.seed: one.alpha for one in rows[part]} == chosen


def test_differences_are_paired_and_their_mean_is_that_of_the_cells(
    made: Made,
) -> None:
    protocol, found, folder = made
    table = series.table(protocol, found, folder, ["a", "b"])
    cells = {(one.row, f"{one.group}/{one.column}".strip("/")): np.mean(one.values) for one in table if isinstance(one, records.Summary)}
    differences = [one for one in table if isinstance(one, records.Difference)]
    for one in differences:
        assert one.mean == pytest.approx(cells[one.a, one.on] - cells[one.b, one.on])
        assert one.low <= one.mean <= one.high
    pairs = {(one.a, one.b) for one in differences}
    assert ("flyp", "tp_ft") in pairs and ("flyp", "zero_shot") in pairs and ("flyp + WiSE-FT 0.5", "flyp") in pairs
    assert ("tp_ft", "flyp") not in pairs
    sizes = {one.on: one.num_images for one in differences}
    assert sizes == {"a/Base": 40, "Avg.": 100, "Avg./HM": 140}


def test_differences_are_over_the_seeds_that_there_are(made: Made) -> None:
    protocol, found, folder = made
    later = {part: [one for one in own if one.method == "zero_shot" or one.seed > 0] for part, own in found.items()}
    later = {part: [one for one in own if (one.method, one.seed) != ("flyp", 2)] for part, own in later.items()}
    table = series.table(protocol, later, folder, ["a", "b"])
    cells = {(one.row, f"{one.group}/{one.column}".strip("/")): one for one in table if isinstance(one, records.Summary)}
    for one in (one for one in table if isinstance(one, records.Difference)):
        a, b = cells[one.a, one.on], cells[one.b, one.on]
        seeds = set(a.seeds) if one.b == "zero_shot" else set(a.seeds) & set(b.seeds)
        assert seeds == ({1} if "flyp" in one.a + one.b else {1, 2})
        assert one.num_seeds == len(seeds)
        means = []
        for row in (a, b):
            kept = [value for value, seed in zip(row.values, row.seeds, strict=True) if seed in seeds or row.row == "zero_shot"]
            means.append(np.mean(kept))
        assert one.mean == pytest.approx(means[0] - means[1])


def test_a_column_may_measure_something_else_than_accuracy(made: Made) -> None:
    protocol, found, folder = made
    rng, regions = np.random.default_rng(0), np.arange(40, dtype=np.int32) % 4 - 1  # -1 is in no region
    for number, one in enumerate(found["a"]):
        given = records.load_answers(folder / "a", one.answers)
        test = replace(given["test"], group=regions, prediction=rng.integers(0, 5, 40).astype(np.int32))
        inside = regions >= 0
        own = {"macro_f1": macro_f1(test.prediction, test.label), "worst_group": worst_group(test.correct[inside], regions[inside])}
        path = records.save_answers(folder / "a", f"own-{number}", {**given, "test": test})
        found["a"][number] = replace(one, answers=path, metrics={"test": own})
    table = series.table(replace(protocol, columns=(*COLUMNS, *OWN)), found, folder, ["a", "b"])
    cells = {(one.row, one.group): one for one in table if isinstance(one, records.Summary) and one.group in ("Macro F1", "Worst group")}
    assert {row for row, _ in cells} >= {"zero_shot", "tp_ft", "flyp", "tp_ft + WiSE-FT 0.5"}
    for (row, group), cell in cells.items():
        evaluations = series.rows_of(protocol, found, folder)[row]["a"]
        assert cell.values == [one.metrics["test"][group.lower().replace(" ", "_")] for one in evaluations]
    drawn = [one for one in table if isinstance(one, records.Difference) and one.on in ("Macro F1/ID", "Worst group/ID")]
    assert {one.on for one in drawn} == {"Macro F1/ID", "Worst group/ID"}
    for one in drawn:
        a, b = (np.mean(cells[row, one.on.removesuffix("/ID")].values) for row in (one.a, one.b))
        assert one.mean == pytest.approx(a - b)
        assert one.low < one.high
    unmeasured = {part: [replace(one, metrics={}) for one in own] for part, own in found.items()}
    bare = series.table(replace(protocol, columns=(*COLUMNS, *OWN)), unmeasured, folder, ["a", "b"])
    assert not [one for one in bare if isinstance(one, records.Summary) and one.group == "Macro F1"]


def test_a_table_is_written_once_and_anew_when_a_run_changes(made: Made) -> None:
    protocol, found, folder = made
    series.write(protocol, found, folder, ["a", "b"])
    before = list(records.read(folder))
    series.write(protocol, found, folder, ["a", "b"])
    assert list(records.read(folder)) == before
    found["a"][1] = replace(found["a"][1], settings_hash="other")
    series.write(protocol, found, folder, ["a", "b"])
    assert len(list(records.read(folder))) == 2 * len(before)


def test_a_method_that_a_part_lacks_is_no_row_and_a_part_without_runs_is_named(
    made: Made,
) -> None:
    protocol, found, folder = made
    found["b"] = [one for one in found["b"] if one.method != "flyp"]
    assert not any("flyp" in row for row in series.rows_of(protocol, found, folder))
    with pytest.raises(DataError, match="no evaluations of b"):
        series.table(protocol, {**found, "b": []}, folder, [])


def test_domains_from_end_to_end(
    tiny_root: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    arguments = (
        "domains", tiny_root, "--model", f"local-dir:{tiny_folder}", "--methods", "tp_ft", "--seeds", "0", "--alphas", "0.5",
        "--set", "steps=2", "--set", "batch_size=8", "--set", "sampling=groups", "--set", "flip=true", "--out", out,
    )  # fmt: skip
    code, said = typed(monkeypatch, capsys, *arguments)
    assert code == 0, said
    cells = [one for one in records.read(out) if isinstance(one, records.Summary)]
    assert [one.column for one in cells if one.row == "tp_ft"] == ["black", "green", "red", "Avg."]
    for name in ("black", "green", "red"):
        assert (out / name / "report" / "index.html").is_file()
        data = Job.of(out / name).data.open()
        assert [split.name for split in data.shifts] == [f"shifts/{name}"]
    assert (out / "command.txt").read_text().startswith("surefoot domains ")
    written = (out / "records.jsonl").read_bytes()
    code, _ = typed(monkeypatch, capsys, *arguments)
    assert code == 0
    assert (out / "records.jsonl").read_bytes() == written
    assert "black" in (out / "report" / "index.html").read_text()
    job = json.loads((out / "red" / "job.json").read_text())
    assert job["data"]["cut"] == {"protocol": "domains", "part": "red", "others": [], "val_share": 0.2}
