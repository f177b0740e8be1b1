"""The sections of the page about images and epochs, on the records of a whole comparison that never ran."""

from __future__ import annotations

import base64
import io
import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_report import SVG
from test_report_whole import CORRUPTIONS, METHODS, NUM, SHIFTS, save_whole, whole

from surefoot import records
from surefoot.records import Answers, Described, Evaluation, Example, Record
from surefoot.report import calibration, confusion, frontier_svg, markdown, marks, rich_table, rows, training, write_page
from surefoot.report.answers import Stored
from surefoot.report.curves import Dot
from surefoot.report.frontier import Frame, _whiskers, drawn_of
from surefoot.report.runs import NAMES as SHOWN_NAMES
from surefoot.report.runs import Runs, collect
from surefoot.report.table import Cell, columns, header, is_best, is_worse, more_columns


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of the whole comparison, with everything that lies beside them."""
    return save_whole(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def runs(folder: Path) -> Runs:
    return collect(records.read(folder))


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return write_page(folder, folder / "page", command="surefoot compare iconshift", notes=["From the command."]).read_text(
        encoding="utf-8"
    )


def pictures(text: str, css: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(rf'<svg class="{css}.*?</svg>', text, re.S)]


def centre(path: str) -> tuple[float, float]:
    """The middle of a marker's corners, or of a circle that is drawn as two arcs from its left end."""
    if "a" in path:
        x, y, radius = (float(number) for number in re.match(r"M([\d.-]+) ([\d.-]+)a([\d.]+)", path).groups())  # type: ignore[union-attr]
        return x + radius, y
    corners = np.array([[float(number) for number in pair.split()] for pair in path.strip("MZ").split("L")])
    return float(corners[:, 0].mean()), float(corners[:, 1].mean())


def test_whole_page_is_small_has_no_script_and_every_section(page: str) -> None:
    assert len(page.encode()) < 2_000_000
    assert not re.search(r"<script|https?:|@import|url\(", page)
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert headings == [
        "Results", "Between zero-shot and fine-tuned", "Shift by shift", "Answers, image by image", "Differences", "How this was made",
        "How to read this",
    ]  # fmt: skip
    notes = page[page.index('class="note"') : page.index('id="results"')]
    assert notes.index("From the command.") < notes.index("Validation and test were split off") < notes.index("2 unreadable images")
    assert "not readable" not in page.lower()


def test_columns_stand_in_reading_order_and_single_corruptions_stay_in_the_picture(runs: Runs, folder: Path) -> None:
    shown = columns(rows(records.read(folder)))
    assert [header(column, shown) for column in shown] == [
        "ID", "Avg. shifts", *sorted(SHIFTS), "Avg. shifts, own classes", "Avg. corruptions", "Unseen", "ID and unseen, harmonic mean",
        "Seen + unseen, harmonic mean", "Context", "Context, own text", "Agreement with zero-shot",
    ]  # fmt: skip
    assert drawn_of(shown) == ["avg_shifts", "avg_corruptions", "unseen/icons", "context", "agreement"]
    assert [SHOWN_NAMES[name] for name in METHODS if name in SHOWN_NAMES] == [
        "LP",
        "FT",
        "TP-FT",
        "LP-FT",
        "L2-SP",
        "FLYP",
        "FLYP-CE",
        "CAR-FT",
    ]


def test_second_table_says_more_about_id_and_a_low_calibration_error_is_the_best(folder: Path, page: str) -> None:
    table = rows(records.read(folder))
    assert more_columns(table) == ["metrics/mean_per_class", "metrics/macro_f1", "metrics/ece"]
    by_error = sorted(table, key=lambda row: row.cells["metrics/ece"].mean)
    assert is_best(by_error[0], table, "metrics/ece")
    assert not is_best(by_error[-1], table, "metrics/ece")
    zero = table[0].cells["metrics/ece"].mean
    assert [is_worse(row, table, "metrics/ece") for row in by_error] == [
        round(100 * row.cells["metrics/ece"].mean, 1) > round(100 * zero, 1) for row in by_error
    ]
    assert "\nMore about ID:\n\n|  | Mean per class | Macro F1 | ECE |\n" in markdown(table)
    assert "More about ID: Mean per class, Macro F1, ECE" in page


def test_terminal_table_of_all_methods_fits_a_hundred_letters(folder: Path) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    table = rows(records.read(folder))
    console.print(rich_table(table))
    text = console.export_text()
    assert "…" not in text
    assert all(f"{row.cells[column]}" in text and row.label in text for row in table for column in ("test", "avg_shifts", "context"))


def test_places_of_labels_keep_order_gap_and_bounds_and_move_as_little_as_possible() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, *[3] * 30):
        wanted = rng.uniform(0, 30, count).round().tolist()
        found = np.array(marks.spread_out(wanted, 8.0, 0.0, 30.0))
        order = np.argsort(wanted, kind="stable")
        assert (np.diff(found[order]) >= 8 - 1e-9).all()
        assert found.min() >= 0
        assert found.max() <= 30
        grid = np.stack(np.meshgrid(*[np.arange(31)] * count)).reshape(count, -1)
        allowed = grid[:, (np.diff(grid[order], axis=0) >= 8).all(axis=0)]
        least = ((allowed - np.array(wanted)[:, None]) ** 2).sum(axis=0).min()
        assert ((found - wanted) ** 2).sum() <= least + 1e-9
    crowded = marks.spread_out([5.0] * 9, 8.0, 0.0, 30.0)
    assert crowded == pytest.approx(np.linspace(0, 30, 9).tolist())


def test_every_curve_is_named_beside_its_end_and_no_two_names_collide(folder: Path) -> None:
    for on in drawn_of(columns(rows(records.read(folder)))):
        root = ET.fromstring(frontier_svg(records.read(folder), on))
        named = [element for element in root.iter() if element.get("class") == "label"]
        assert [element.text for element in named] == [SHOWN_NAMES.get(method, method) for method in METHODS]
        heights = sorted(float(element.get("y", "")) for element in named)
        assert np.diff(heights).min() >= 14.9
        for curve in (element for element in root.iter() if str(element.get("class")).startswith("curve m")):
            leader = next(element.get("d", "") for element in curve.iter() if element.get("class") == "leader")
            last = [element for element in curve.iter() if element.get("class") == "hit"][-1]
            start = [float(number) for number in re.match(r"M([\d.]+) ([\d.]+)L", leader).groups()]  # type: ignore[union-attr]
            assert start == pytest.approx([float(last.get("cx", "")) + 8, float(last.get("cy", ""))], abs=0.11)


def sunk(given: list[Record], method: str, at: Callable[[float], float]) -> list[Record]:
    """The records with another accuracy on the shifts along the curve of a method."""

    def changed(one: Record) -> Record:
        far = isinstance(one, Evaluation) and one.method == method and one.alpha > 0
        return replace(one, accuracy=one.accuracy | {"avg_shifts": at(one.alpha)}) if far else one  # type: ignore[union-attr]

    return [changed(one) for one in given]


def test_a_method_far_below_all_others_leaves_the_axes_to_them(folder: Path) -> None:
    last = list(METHODS)[-1]
    given = list(records.read(folder))
    root = ET.fromstring(frontier_svg(sunk(given, last, lambda alpha: 0.4 - 0.3 * alpha)))
    without = ET.fromstring(frontier_svg([one for one in given if getattr(one, "method", None) != last]))
    box, curves = {}, {}
    for name, svg in {"sunk": root, "without": without}.items():
        box[name] = [element.get("d", "") for element in svg.iter() if element.get("class") == "grid" and "H" in element.get("d", "")]
        curves[name] = [element for element in svg.iter() if str(element.get("class")).startswith("curve m")]
    ticks = [[e.text for e in svg.iter() if e.get("class") == "tick" and e.get("text-anchor") == "end"] for svg in (root, without)]
    assert ticks[0] == ticks[1]
    assert [line.split("H")[0] for line in box["sunk"]] == [line.split("H")[0] for line in box["without"]], (
        "the axis upwards is the others'"
    )
    named = [element.text for element in root.iter() if element.get("class") == "label"]
    assert named[-1] == f"{SHOWN_NAMES.get(last, last)} ↓ 10.0"
    assert not [name for name in named[:-1] if "↓" in str(name)]
    low = max(float(line.split()[1].split("V")[1]) for line in grid_across(root))
    assert not [element for element in curves["sunk"][-1].iter() if element.get("class") == "leader"]
    heights = [float(element.get("cy", "")) for curve in curves["sunk"] for element in curve.iter() if element.get("class") == "hit"]
    assert max(heights) <= low
    (line,) = [element.get("d", "") for element in curves["sunk"][-1].iter() if element.get("class") == "line"]
    ends = [float(place.split()[1]) for place in line.strip("M").split("L")]
    assert ends[-1] == pytest.approx(low, abs=0.11) and len(ends) >= 2, "it goes down to the edge, and is cut off there"


def test_the_best_end_of_a_curve_is_drawn_even_where_its_middle_leaves_the_picture(folder: Path) -> None:
    last, given = list(METHODS)[-1], list(records.read(folder))
    best = max(one.accuracy["avg_shifts"] for one in given if isinstance(one, Evaluation) and "avg_shifts" in one.accuracy)
    svg = frontier_svg(sunk(given, last, lambda alpha: best + 0.01 if alpha == 1 else 0.02))
    curve = [element for element in ET.fromstring(svg).iter() if str(element.get("class")).startswith("curve m")][-1]
    assert "↓" not in svg and [element for element in curve.iter() if element.get("class") == "leader"]
    told = [element.findtext(f"{SVG}title") or "" for element in curve.iter(f"{SVG}g") if element.get("class") == "dot"]
    assert [text.partition(":")[0].partition("α = ")[2] for text in told] == ["0", "1"]


def test_an_end_just_below_the_others_is_drawn_and_named_without_an_arrow(folder: Path) -> None:
    last, given = list(METHODS)[-1], list(records.read(folder))
    kept = [one for one in given if isinstance(one, Evaluation) and "avg_shifts" in one.accuracy]
    low = min(one.accuracy["avg_shifts"] for one in kept)
    svg = frontier_svg(sunk(given, last, lambda alpha: low - 0.001 if alpha == 1 else 0.02))
    curve = [element for element in ET.fromstring(svg).iter() if str(element.get("class")).startswith("curve m")][-1]
    assert "↓" not in svg and [element for element in curve.iter() if element.get("class") == "leader"]


def test_what_leaves_the_picture_stretches_no_axis_sideways(folder: Path) -> None:
    last, given = list(METHODS)[-1], list(records.read(folder))
    far = [
        replace(one, accuracy=one.accuracy | {"test": 0.01})
        if isinstance(one, Evaluation) and one.method == last and one.alpha > 0
        else one
        for one in sunk(given, last, lambda _: 0.02)
    ]
    without = [one for one in given if getattr(one, "method", None) != last]
    ticks = [
        [e.text for e in ET.fromstring(frontier_svg(lines)).iter() if e.get("class") == "tick" and e.get("text-anchor") == "middle"]
        for lines in (far, without)
    ]
    assert ticks[0] == ticks[1] != []


def test_what_is_not_far_below_stays(folder: Path) -> None:
    last, given = list(METHODS)[-1], list(records.read(folder))
    low = min(one.accuracy["avg_shifts"] for one in given if isinstance(one, Evaluation) and "avg_shifts" in one.accuracy)
    assert "↓" not in frontier_svg(sunk(given, last, lambda _: low - 0.045))
    assert "↓" in frontier_svg(sunk(given, last, lambda _: low - 0.5))


def test_whiskers_of_a_dot_at_the_edge_end_there() -> None:
    frame = Frame(marks.Axis(50.0, 60.0, 100.0, 200.0), marks.Axis(50.0, 60.0, 300.0, 100.0))
    dot = Dot(0.5, Cell(0.55, 0.30, 3), Cell(0.51, 0.02, 3), 0)
    assert _whiskers(dot, frame) == "M100.0 280.0H200.0M150.0 300.0V240.0"


def grid_across(svg: ET.Element) -> list[str]:
    """The lines of the grid from top to bottom."""
    return [element.get("d", "") for element in svg.iter() if element.get("class") == "grid" and "V" in element.get("d", "")]


def test_pointing_at_a_curve_needs_no_script(page: str) -> None:
    assert re.search(r"\.curves:hover > \.curve:not\(:hover\)[^{]*\{ opacity: 0\.\d+; \}", page)
    lead = pictures(page, "frontier many")[0]
    tips = [element for element in lead.iter() if element.get("class") == "tip"]
    assert len(tips) == len(METHODS) * 12 + 1, "a readout for each dot, each curve and the star"
    near = [element.text for element in lead.iter() if element.get("class") == "near"]
    assert near == ["α = 0.5", "α = 0.6, chosen"] * len(METHODS)


def test_marks_of_the_shifts_stand_where_the_axis_says_the_easiest_set_first(runs: Runs, folder: Path, page: str) -> None:
    table = {row.name: row for row in rows(records.read(folder))}
    found = pictures(page, "chart strip")
    names = [element.text for picture in found for element in picture.iter() if element.get("class") == "heading"]
    assert names == [*SHIFTS, *SHIFTS, *CORRUPTIONS]
    columns_of = [
        *(f"shifts/{name}" for name in SHIFTS),
        *(f"restricted/{name}" for name in SHIFTS),
        *(f"corruptions/{name}" for name in CORRUPTIONS),
    ]
    lanes = [(picture, lane) for picture in found for lane in picture.iter() if str(lane.get("class")).startswith("lane")]
    assert len(lanes) == len(columns_of) * len(METHODS)
    for (picture, lane), (column, method) in zip(lanes, itertools.product(columns_of, METHODS), strict=True):
        ticks = [(float(tick.text or ""), float(tick.get("x", ""))) for tick in picture.iter() if tick.get("class") == "tick"]
        (low, start), (high, end) = ticks[0], ticks[-1]
        for css, name in (("solid", method), ("open", f"{method} + WiSE-FT (ID val.)")):
            (path,) = [element.get("d", "") for element in lane.iter() if element.get("class") == css]
            by_hand = start + (100 * table[name].cells[column].mean - low) / (high - low) * (end - start)
            assert centre(path)[0] == pytest.approx(by_hand, abs=0.4), (column, name)


def test_reliability_points_and_errors_are_those_of_the_answers(runs: Runs, folder: Path) -> None:
    section = calibration.section(runs, Stored(folder))
    assert section is not None
    panel = section["panels"][5]  # type: ignore[index]
    stored = records.load_answers(folder, runs.at("flyp", 1.0)[0].answers)["test"]
    points, error = [], 0.0
    for low in range(15):
        inside = [k for k in range(NUM) if low / 15 < stored.confidence[k] <= (low + 1) / 15]
        if inside:
            said, right = np.mean(stored.confidence[inside]), np.mean(stored.correct[inside])
            points.append((36 + 158 * said, 166 - 158 * right))
            error += len(inside) / NUM * abs(said - right)
    assert panel["name"] == "FLYP"
    assert panel["errors"][0] == ("fine-tuned", f"{100 * error:.1f}")
    (line,) = [group for group in ET.fromstring(panel["picture"]).iter() if group.get("class") == "tuned"]
    found = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in line.iter() if dot.tag == "circle"]
    assert np.allclose(found, points, atol=0.06)


def test_confusions_are_of_the_best_method_on_validation_not_on_test(tmp_path: Path) -> None:
    label = np.array([0, 0, 0, 0, 1, 1, 2, 2], dtype=np.int32)
    given = {"zero_shot": [1, 0, 0, 0, 0, 0, 2, 2], "flyp": [1, 1, 2, 0, 1, 0, 2, 2], "tp_ft": [0, 0, 0, 0, 1, 1, 2, 1]}
    kept: list[Record] = [Described(dataset="d", class_names={"seen": ["cat", "dog", "bird"]}, num_images={}, templates=[])]
    for method, prediction in given.items():
        stored = Answers(np.array(prediction, dtype=np.int32), label, np.full(8, 0.5, dtype=np.float32))
        kept.append(
            Evaluation(
                method=method, seed=0, alpha=float(method != "zero_shot"), dataset="d", num_images={}, settings={}, settings_hash="",
                accuracy={"val": {"zero_shot": 0.5, "flyp": 0.9, "tp_ft": 0.8}[method], "test": float(stored.correct.mean())},
                answers=records.save_answers(tmp_path, method, {"test": stored}),
            )
        )  # fmt: skip
    section = confusion.section(collect(kept), Stored(tmp_path))
    assert section is not None
    assert section["name"] == "FLYP"
    assert section["lines"] == [("cat", "dog", "2", "50%", "1"), ("cat", "bird", "1", "25%", "0"), ("dog", "cat", "1", "50%", "2")]


def test_gallery_embeds_the_files_and_names_what_is_missing(runs: Runs, folder: Path, page: str, tmp_path: Path) -> None:
    sources = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)
    assert [base64.b64decode(source) for source in sources] == [
        (folder / "examples" / f"{number}.jpg").read_bytes() for change in (0, 1) for number in range(change, 24, 2)
    ]
    card = page[page.index("From wrong to right") :]
    assert re.sub(r"<[^>]+>|\s+", " ", card[card.index("<figcaption>") : card.index("</figure>")]).split() == (
        ["arrow", "emoji", "zero-shot", "folder", "(40%)", "FLYP", "+", "WiSE-FT", "(ID", "val.)", "arrow", "(91%)"]
    )
    (tmp_path / "outside.png").write_bytes(b"secret")
    inside = tmp_path / "records"
    for record in whole(inside, 2):
        records.append(inside, record)
    (inside / "examples" / "1.jpg").unlink()
    outside = Example(
        a="flyp", b="zero_shot", on="test", change="lost", image="../outside.png", label="x", answer_a="y", answer_b="x",
        confidence_a=0.5, confidence_b=0.5, runs="all",
    )  # fmt: skip
    records.append(inside, outside)
    text = write_page(inside, tmp_path / "a.html", command="").read_text(encoding="utf-8")
    assert text.count("<img") == 1
    assert "2 pictures are not shown: the files are not in the records' folder." in text
    assert base64.b64encode(b"secret").decode() not in text


def test_training_marks_the_kept_epoch_of_the_last_stage(runs: Runs, page: str) -> None:
    cards = {card["name"]: card for card in training.section(runs)}
    assert list(cards) == [SHOWN_NAMES.get(method, method) for method in METHODS]
    assert cards["LP"] == {
        "name": "LP",
        "picture": None,
        "facts": {"chosen by": "accuracy", "steps": "800", "time, mean": "3 min 20 s", "l2": "0.1"},
    }
    assert cards["FLYP"]["facts"]["kept epochs"] == "5, 5, 6"  # type: ignore[index]
    root = ET.fromstring(str(cards["LP-FT"]["picture"]))
    kept = [centre(element.get("d", ""))[0] for element in root.iter() if element.get("class") == "solid"]
    lines = [element.get("d", "").strip("M").split("L") for element in root.iter() if element.get("class") == "between"]
    assert kept == pytest.approx([float(line[3 + epoch - 1].split()[0]) for line, epoch in zip(lines, (5, 5, 6), strict=True)], abs=0.2)
    assert len([element for element in root.iter() if element.get("class") == "ideal"]) == 1, "one other stage begins"
