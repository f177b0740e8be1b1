"""The page of claims: a point of a curve beside the frontier stands against rows of the table, image by image."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from surefoot import records
from surefoot.compare.curves import KEPT, KINDS
from surefoot.methods import base_of, get
from surefoot.protocols import Outcome
from surefoot.records import Answers

FOLDER = Path(__file__).parents[1] / "benchmarks" / "docs"
SIZES = {"val": 20, "test": 40, "shifts/a": 30, "shifts/b": 30, "unseen/new": 50, "joint_seen/new": 40, "joint_unseen/new": 50}


def script() -> ModuleType:
    """The script, which imports its neighbours by their names."""
    sys.path.append(str(FOLDER))
    spec = importlib.util.spec_from_file_location("docs_claims", FOLDER / "claims.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


claims = script()
STORED = claims.STORED


def outcome(seed: int, right: float) -> Outcome:
    """Answers to images of three classes, a share of them right."""
    generator, found = np.random.default_rng(seed), {}
    for name, size in SIZES.items():
        label = np.arange(size, dtype=np.int32) % 3
        wrong = generator.random(size) > right
        found[name] = Answers(((label + wrong) % 3).astype(np.int32), label, np.full(size, 0.5, np.float32))
    return Outcome(found)


def write(folder: Path, *, seeds: tuple[int, ...] = (0, 1), kept: bool = True) -> dict[str, list[Outcome]]:
    """A comparison of clip_cite: what its rows "tuned", "half" and "visual" answered, one a seed."""
    rows: dict[str, list[Outcome]] = {"tuned": [], "half": [], "visual": []}
    common = {"method": "clip_cite", "dataset": "d", "settings_hash": "h", "provenance": {"data": "d", "weights": "w"}}
    for seed in seeds:
        for row, alpha, right in (("half", 0.5, 0.9), ("tuned", 1.0, 0.7)):
            rows[row].append(given := outcome(10 * seed + int(2 * alpha), right))
            numbers = {name: len(one.label) for name, one in given.answers.items()}
            path = records.save_answers(folder, f"{row}{seed}", given.answers)
            one = records.Evaluation(
                **common, seed=seed, alpha=alpha, accuracy=given.accuracy, num_images=numbers, answers=path, settings={}
            )  # type: ignore[arg-type]  # fmt: skip
            records.append(folder, one)
        rows["visual"].append(given := outcome(10 * seed + 5, 0.5))
        path = records.save_answers(folder, f"visual{seed}", given.answers) if kept else ""
        records.append(folder, records.Curve(**common, seed=seed, along="visual", at=0.5, accuracy=given.accuracy, answers=path))  # type: ignore[arg-type]
    return rows


def claim_on(on: str, a: str = "curves:clip_cite@0.5") -> dict[str, object]:
    return {"a": a, "b": "curves:clip_cite@visual/0.5", "on": on, "expect": 1}


@pytest.mark.parametrize(("on", "column"), [("avg_shifts", "avg_shifts"), ("test", "test"), ("unseen", "unseen/new"), ("hm", "hm/new")])
def test_a_point_of_a_curve_stands_against_a_row(on: str, column: str, tmp_path: Path) -> None:
    rows = write(tmp_path)
    runs = {"curves": str(tmp_path)}
    found = claims.measured(claim_on(on), runs)
    expected = np.mean([a.accuracy[column] - b.accuracy[column] for a, b in zip(rows["half"], rows["visual"], strict=True)])
    assert (found.on, found.num_seeds) == (column, 2)
    assert found.mean == pytest.approx(expected)
    assert found.low < expected < found.high
    against_tuned = claims.measured(claim_on(on, "curves:clip_cite"), runs)
    assert against_tuned.mean == pytest.approx(
        np.mean([a.accuracy[column] - b.accuracy[column] for a, b in zip(rows["tuned"], rows["visual"], strict=True)])
    )


def test_a_point_without_answers_or_a_run_that_is_not_there_leaves_its_line_open(tmp_path: Path) -> None:
    write(tmp_path / "bare", kept=False)
    write(tmp_path / "whole")
    for folder, test in (
        ("none", claim_on("test")), ("bare", claim_on("test")),
        ("whole", claim_on("test") | {"b": "curves:clip_cite@visual/0.7"}), ("whole", claim_on("test") | {"b": "curves:flyp@visual/0.5"}),
    ):  # fmt: skip
        assert claims.measured(test, {"curves": str(tmp_path / folder)}) == "not measured yet"
    (line,) = claims.lines([{"paper": "P", "says": "S", "tests": [claim_on("hm")]}], {"curves": str(tmp_path / "none")})[2:]
    what = "CLIP-CITE + WiSE-FT 0.5 more than CLIP-CITE, image tower alone, 0.5"
    assert line == f"| S | P | {what} | ID and unseen, harmonic mean | – | not measured yet |"


def test_a_line_measured_before_stays_when_its_run_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    write(folder)
    asked = [{"paper": "P", "says": "S", "tests": [claim_on("test"), claim_on("hm")]}]
    before = claims.lines(asked, {"curves": str(folder)})
    assert "–" not in "".join(before)
    folder.rename(tmp_path / "gone")
    assert claims.lines(asked, {"curves": str(folder)}, "\n".join(before)) == before
    renamed = claims.lines(asked, {"curves": str(tmp_path / "other")}, "\n".join(before))
    assert "".join(renamed).count("not measured yet") == 2, "what another run gave is not this run's"
    other = [{"paper": "P", "says": "S", "tests": [claim_on("unseen")]}]
    assert claims.lines(other, {"curves": str(folder)}, "\n".join(before))[-1].endswith("| – | not measured yet |")


def test_seeds_that_only_one_of_both_has_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, seeds=(0, 1, 2))
    lines = (tmp_path / records.FILE).read_text().splitlines(keepends=True)
    (tmp_path / records.FILE).write_text("".join(lines[:-1]))  # the last seed's curve is not drawn yet
    assert claims.measured(claim_on("test"), {"curves": str(tmp_path)}).num_seeds == 2


def test_every_row_names_a_run_and_a_method_and_every_curve_keeps_its_answers() -> None:
    for claim in STORED["claim"]:
        for row in (row for test in claim["tests"] for row in (test["a"], test["b"])):
            run, _, rest = row.partition(":")
            method, _, place = rest.partition("@")
            assert run in STORED["runs"], row
            assert method in ("soup", "greedy_soup") or get(method).name == method, row
            along, slash, at = place.partition("/")
            if slash:
                assert along in KEPT, row
                assert 0 <= float(at) <= 1
                assert {"visual", "text"} <= get(base_of(method)).trains
    assert set(KEPT) <= set(KINDS)


def test_the_page_has_a_line_for_every_test() -> None:
    page = claims.PAGE.read_text(encoding="utf-8")
    for claim in STORED["claim"]:
        assert f"| {claim['says']} | {claim['paper']} | " in page
        for test in claim["tests"]:
            sign = "more" if test["expect"] > 0 else "less"
            assert f"{claims.name_of(test['a'])} {sign} than {claims.name_of(test['b'])} | " in page
