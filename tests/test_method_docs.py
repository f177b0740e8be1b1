"""The pages of the methods, of the choice and of the papers are what the script makes of the code now."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from surefoot import records
from surefoot.data import Dataset
from surefoot.methods import METHODS, base_of, get, setting_problems
from surefoot.model import ImageTextModel

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "docs"
AGAIN = "run `python benchmarks/docs/build.py` and look at what changed"


def module(path: Path) -> ModuleType:
    """A script by its path: others are called build.py too."""
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


sys.path.append(str(FOLDER))
build = module(FOLDER / "build.py")
step_cost = module(ROOT / "benchmarks" / "step_cost.py")
facts = sys.modules["method_facts"]
run_results = sys.modules["run_results"]
PAPERS = tomllib.loads((FOLDER / "papers.toml").read_text(encoding="utf-8"))
ITEMS = [(paper["name"], item) for paper in PAPERS["paper"] for item in paper["item"]]


@pytest.fixture(scope="module")
def pages() -> dict[Path, str]:
    return build.pages()  # type: ignore[no-any-return]


def test_pages_are_what_the_script_renders_now(pages: dict[Path, str]) -> None:
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: {AGAIN}"


def test_every_method_has_a_page_and_every_page_a_method(pages: dict[Path, str]) -> None:
    wanted = {*METHODS, "wise_ft", "soups"}
    assert {path.stem for path in pages if path.parent.name == "methods"} == wanted
    assert {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")} == wanted


@pytest.mark.parametrize("name", METHODS)
def test_a_page_names_every_setting_with_its_default_and_every_term(name: str, pages: dict[Path, str]) -> None:
    text = pages[ROOT / "docs" / "methods" / f"{name}.md"]
    for setting, parameter in inspect.signature(METHODS[name]).parameters.items():
        default = parameter.default
        shown = "[" if isinstance(default, tuple) else str(default).lower() if isinstance(default, bool | None) else str(default)
        assert f"- `{setting} = {shown}" in text
    for stage in get(name).stages:
        assert all(term.name in text for term in stage.objective.terms if term.weight)


def test_a_symbol_that_nobody_explains_is_an_error() -> None:
    page = {"symbols": [], "tokens": ["x"]}
    with pytest.raises(KeyError, match="rho_7"):
        facts.symbols(["L = rho_7 x"], page, [{"tokens": ["L"], "means": "the loss"}])


def test_docstrings_are_taken_apart_in_the_house_order() -> None:
    doc = facts.taken_apart(METHODS["clip_cite"])
    assert doc.equations[0] == "L = L_DVA + lambda L_SCL + eta L_VLD" and len(doc.equations) == 2
    assert doc.args["frozen"].endswith("fig. 4).") and doc.sections["Differences"].startswith("the printed losses")


def commands(pages: dict[Path, str]) -> list[list[str]]:
    found = [line for text in pages.values() for line in re.findall(r"(?:^|`)(surefoot (?:compare|tune) [^`\n]+)", text, re.M)]
    return [shlex.split(line) for line in found]


def test_methods_that_commands_name_exist_with_these_settings(pages: dict[Path, str]) -> None:
    named = [words[words.index("--methods") + 1] for words in commands(pages) if "--methods" in words]
    assert len(named) > 40
    for name in {name for names in named for name in names.split(",") if names != "all"}:
        assert not setting_problems(name, {}), name


EVERY = {
    "FLYP": (["table 1", "table 2", "table 3", "table 5"], 3),
    "CAR-FT": ([f"table {n}" for n in range(1, 8)], 6),
    "ARF": ([f"table {n}" for n in range(1, 5)], 5),
    "CLIP-CITE": ([f"table {n}" for n in range(1, 7)], 9),
    "WiSE-FT": ([], 2),
}


@pytest.mark.parametrize("paper", EVERY)
def test_every_table_and_figure_of_a_paper_is_mapped(paper: str) -> None:
    tables, figures = EVERY[paper]
    numbers = [item["number"] for name, item in ITEMS if name == paper]
    for wanted in [*tables, *(f"fig. {n}" for n in range(1, figures + 1))]:
        assert any(re.match(rf"{re.escape(wanted)}(?!\d)", number) for number in numbers), wanted


def test_items_of_the_papers_are_told_apart_and_whole() -> None:
    keys = [build.key_of(name, item) for name, item in ITEMS]
    assert len(set(keys)) == len(keys)
    for _, item in ITEMS:
        assert item["state"] in {"runs", "data", "open", "drawing"}
        assert ("theirs" in item) != ("says" in item)
        assert item["state"] != "runs" or item["command"]
        methods = {base_of(row.partition("@")[0]) for row in item.get("ours", {}).get("rows", ())}
        assert methods <= {*METHODS, "soup"}


def test_rows_of_ours_are_made_by_the_command_beside_them() -> None:
    for _, item in ITEMS:
        words = shlex.split(item.get("command", ""))
        if "ours" in item and "--methods" in words:
            made = {*words[words.index("--methods") + 1].split(","), "zero_shot"}
            assert {row.partition("@")[0] for row in item["ours"]["rows"]} <= made, item["number"]


def test_tables_of_the_papers_have_a_figure_for_every_column() -> None:
    for name, table in PAPERS["table"].items():
        assert {len(row) for row in table["rows"].values()} == {len(table["columns"])}, name


def answers(right: int, total: int = 20) -> records.Answers:
    label = np.zeros(total, np.int32)
    return records.Answers(np.where(np.arange(total) < right, 0, 1).astype(np.int32), label, np.ones(total, np.float32))


def evaluation(folder: Path, method: str, seed: int, alpha: float, right: tuple[int, int], **settings: object) -> None:
    """A record in which `right` of 20 images of ID and of a shift are answered right."""
    sets = {"val": answers(right[0]), "test": answers(right[0]), "shifts/red": answers(right[1])}
    path = records.save_answers(folder, f"{method}-{seed}-{alpha}", sets)
    accuracy = {name: float(one.correct.mean()) for name, one in sets.items()} | {"avg_shifts": right[1] / 20}
    given = {"method": method, "precision": "fp32", **settings}
    records.append(
        folder,
        records.Evaluation(
            method=method, seed=seed, alpha=alpha, dataset="iconshift", accuracy=accuracy, num_images=dict.fromkeys(sets, 20), answers=path,
            settings=given, settings_hash=records.settings_hash(given), provenance={"data": "d", "weights": "w"},
        ),
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    evaluation(folder, "zero_shot", 0, 0.0, (10, 8))
    for seed in (0, 1):
        evaluation(folder, "tp_ft", seed, 1.0, (11, 6))
        evaluation(folder, "flyp", seed, 1.0, (17, 9))
    return folder


def test_results_of_a_run_stand_between_the_markers_and_stay(run: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    made = build.pages([build.open_run(run)], docs)
    flyp = made[docs / "methods" / "flyp.md"]
    assert "| FLYP | 85.0 ± 0.0 | 45.0 ± 0.0 |" in flyp
    assert re.search(r"FLYP minus zero-shot \| \+35\.0 \[\+15\.0, \+55\.0\] \| \(\+5\.0 \[", flyp)
    assert re.search(r"FLYP minus TP-FT \| \+30\.0 \[", flyp) and "2 seeds each; run `made` (data `d`" in flyp
    assert "Not measured yet." in made[docs / "methods" / "arf.md"]
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert build.pages([], docs) == made


def test_figures_beside_the_papers_come_from_a_run_of_the_same_kind(run: Path, tmp_path: Path) -> None:
    item = {"number": "n", "shows": "s", "state": "runs", "says": "-", "command": "surefoot compare iconshift --methods tp_ft,flyp"}
    item["ours"] = {"rows": ["zero_shot", "tp_ft", "flyp"], "columns": ["test", "avg_shifts"]}
    whole = build.open_run(run)
    made = build.item_row("k", item, [whole], "")
    text = "_ID / Avg. shifts_<br>zero-shot: 50.0 / 40.0<br>TP-FT: 55.0 / 30.0<br>FLYP: 85.0 / 45.0"
    assert made["ours"] == f"<!-- k: begin -->{text}<!-- k: end -->" and made["state"] == "measured here"
    assert build.item_row("k", item, [], f"| x | {made['ours']} |")["ours"] == made["ours"]
    few = {**item, "command": item["command"] + " --shots 1,2"}
    assert "not measured yet" in build.item_row("k", few, [whole], "")["ours"]
    evaluation(tmp_path / "few", "zero_shot", 0, 0.0, (10, 8))
    for method in ("tp_ft", "flyp"):
        evaluation(tmp_path / "few", method, 0, 1.0, (12, 7), shots=2)
    shown = build.item_row("k", few, [whole, build.open_run(tmp_path / "few")], "")["ours"]
    assert "TP-FT, 2 shots: 60.0 / 35.0" in shown and "1 shot:" not in shown


def test_a_soup_fills_only_figures_of_the_method_that_it_mixes(tmp_path: Path) -> None:
    item = {"number": "n", "shows": "s", "state": "runs", "says": "-", "command": "surefoot soup runs/car:car_ft --out runs/soups"}
    item["ours"] = {"rows": ["soup"], "columns": ["test"]}
    for name in ("tp_ft", "car_ft"):
        evaluation(tmp_path / name, "zero_shot", 0, 0.0, (10, 8))
        right = (12 if name == "car_ft" else 16, 7)
        evaluation(tmp_path / name, "soup", 0, 1.0, right, ingredients=[f"{name}, seed {k}, d" for k in (0, 1)])
    runs = [build.open_run(tmp_path / name) for name in ("car_ft", "tp_ft")]
    assert [run.mixed for run in runs] == [("car_ft",), ("tp_ft",)]
    assert "60.0" in build.item_row("k", item, runs, "")["ours"]
    assert "not measured yet" in build.item_row("k", item, runs[1:], "")["ours"]
    assert "mixed are runs of CAR-FT;" in run_results.origin(runs[0], ["soup"])


def test_figures_that_stand_elsewhere_are_linked_until_there_are_own(run: Path) -> None:
    item = {"number": "n", "shows": "s", "state": "runs", "says": "-", "command": "surefoot compare iconshift --methods tp_ft"}
    item |= {"ours": {"rows": ["tp_ft"], "columns": ["test"]}, "elsewhere": "claims.md#there"}
    made = build.item_row("k", item, [], "")
    assert (made["ours"], made["state"]) == ("[our figures](claims.md#there)", "measured elsewhere")
    made = build.item_row("k", item, [build.open_run(run)], "")
    assert "55.0" in made["ours"] and made["state"] == "measured here"


def test_a_row_whose_name_holds_a_colon_keeps_it(tmp_path: Path) -> None:
    row = "tp_ft+layers=visual[:3]"
    item = {"number": "n", "shows": "s", "state": "runs", "says": "-", "command": f"surefoot compare iconshift --methods {row} --shots 2"}
    item["ours"] = {"rows": [row], "columns": ["test"]}
    evaluation(tmp_path, "zero_shot", 0, 0.0, (10, 8))
    evaluation(tmp_path, row, 0, 1.0, (12, 7), shots=2)
    made = build.item_row("k", item, [build.open_run(tmp_path)], "")["ours"]
    assert "TP-FT (layers=visual[:3]), 2 shots: 60.0" in made
    assert build.item_row("k", item, [], f"| x | {made} |")["ours"] == made


def test_kept_figures_of_other_rows_are_dropped(run: Path) -> None:
    item = {"number": "n", "shows": "s", "state": "runs", "says": "-", "command": "surefoot compare iconshift --methods tp_ft,flyp"}
    item["ours"] = {"rows": ["tp_ft"], "columns": ["test"]}
    before = build.item_row("k", item, [build.open_run(run)], "")["ours"]
    for changed in ({"rows": ["flyp"], "columns": ["test"]}, {"rows": ["tp_ft"], "columns": ["avg_shifts"]}):
        assert "not measured yet" in build.item_row("k", {**item, "ours": changed}, [], before)["ours"]


def test_a_run_without_all_rows_or_with_other_settings_fills_nothing(run: Path) -> None:
    found = build.open_run(run)
    assert run_results.levels(found, ["tp_ft", "lp"], ["test"], {}) is None
    assert run_results.levels(found, ["tp_ft"], ["test"], {"batch_size": 32}) is None
    assert run_results.levels(found, ["tp_ft"], ["test"], {"precision": "fp32"}) == ["TP-FT: 55.0"]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "zero_shot"])
def test_steps_of_every_method_can_be_timed(name: str, tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    found = step_cost.measured(name, tiny_model, tiny_data, batch_size=4, num_steps=1, warmup=1)
    assert found["seconds"] > 0 and found["peak"] > 0


def test_a_timed_step_is_the_library_s_own(tiny_model: ImageTextModel, tiny_data: Dataset) -> None:
    steps = step_cost.Steps("flyp", tiny_model, step_cost.with_anchors(tiny_data), 4, 1)
    before = {name: tensor.clone() for name, tensor in tiny_model.weights().items()}
    assert np.isfinite(steps.take())
    after = tiny_model.weights()
    moving = {name.removeprefix("model.") for name in steps.ours.moving.named}
    assert {name for name in before if not before[name].equal(after[name])} <= moving
    assert any(not before[name].equal(after[name]) for name in before if name.startswith("visual."))


def test_anchors_that_nobody_made_are_distinct(tiny_data: Dataset) -> None:
    anchors = step_cost.with_anchors(replace(tiny_data, anchors=type(tiny_data.anchors)())).anchors
    assert len(set(anchors.captions.values())) == len(anchors.captions) == len(tiny_data.split("train"))
    assert len({row for rows in anchors.pairs.values() for row in rows}) == len(anchors.pairs)


def test_cost_is_the_median_of_ratios_within_a_repeat() -> None:
    def one(base: float, own: float, peak: float) -> dict[str, dict[str, float]]:
        return {
            "zero_shot": {"seconds": 0.0, "peak": 100.0},
            "tp_ft": {"seconds": base, "peak": 200.0},
            "flyp": {"seconds": own, "peak": peak},
        }

    made = step_cost.summary([one(1.0, 2.0, 400.0), one(4.0, 4.0, 300.0), one(2.0, 6.0, 350.0)])
    assert made["flyp"]["time"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert made["flyp"]["memory"] == {"median": 2.5, "low": 2.0, "high": 3.0}
    about = {"repeats": 3, "data": "iconshift", "model": "iconclip", "batch_size": 128, "precision": "fp32"}
    text = build.spent("flyp", {**about, "methods": made, "machine": {"cpu": "a CPU", "threads": 2, "torch": "2"}})
    assert text.startswith("2.00 times the time of a TP-FT step (1.00 to 3.00 in 3 repeats), and 2.50 times the memory") and "a CPU" in text
