"""The page of a protocol says what its records say: cells, marks, pictures, words, and the way to the parts."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pytest
from conftest import typed
from rich.console import Console
from test_report import SVG, Tables, evaluation

from surefoot import records
from surefoot.errors import DataError
from surefoot.records import Difference, Record, Series, Summary
from surefoot.report import series_markdown, series_table, write_series_page
from surefoot.report.series_picture import legend_of, pictures_of
from surefoot.report.series_rows import sentences, standing_of

Columns = Sequence[tuple[str, str]]
SEEDS = (0, 1, 2)
METHODS = {"tp_ft": 0.04, "flyp": 0.07}
METHODS_END = " + WiSE-FT (ID val.)"
ENDS = {"": 1.0, " + WiSE-FT 0.5": 1.2, " + WiSE-FT (ID val.)": 1.3}
DOMAINS: Columns = [("", name) for name in ("art painting", "cartoon", "photo", "sketch", "Avg.")]
HALVES: Columns = [(group, name) for group in ("pets", "cars", "Avg.") for name in ("Base", "New", "HM")]
SHOTS: Columns = [(group, number) for group in ("ID", "Avg. shifts", "Unseen") for number in ("1", "4", "16")]


def zero_of(place: int, column: tuple[str, str], along: str) -> float:
    """Zero-shot does not depend on the number of images."""
    return 0.60 + 0.02 * (sum(map(ord, column[0])) % 7 if along else place)


def values(row: str, place: int, column: tuple[str, str], along: str, seeds: Sequence[int]) -> list[float]:
    """Gains, which WiSE-FT enlarges; tp_ft without it loses in the second column. Along images they grow, and unseen classes lose."""
    method = row.partition(" + ")[0]
    gain = METHODS[method] * ENDS[row.removeprefix(method)]
    if along:
        gain *= (place % 3) * (-0.5 if column[0] == "Unseen" else 1.0)
    elif row == "tp_ft" and place == 1:
        gain = -0.03
    return [zero_of(place, column, along) + gain + 0.01 * (seed - 1) + 0.001 * place for seed in seeds]


def table(
    protocol: str, columns: Columns, along: str = "", seeds: Sequence[int] = SEEDS, runs: str = "r1", **changes: object
) -> Iterator[Record]:
    """What `compare.series` writes: the series, its cells row by row, the differences."""
    given: dict[str, object] = {
        "protocol": protocol,
        "parts": ["a part", "b"],
        "columns": [list(column) for column in columns],
        "datasets": ["data/pacs"],
        "along": along,
        "notes": ["Drawn with seed 0."],
        "runs": runs,
    }
    yield Series(**{**given, **changes})  # type: ignore[arg-type]
    rows = [method + end for method in METHODS for end in ENDS]
    for place, column in enumerate(columns):
        zero = zero_of(place, column, along)
        yield Summary(row="zero_shot", group=column[0], column=column[1], values=[zero], seeds=[0], num_images=900 + place, runs=runs)
        for row in rows:
            found = values(row, place, column, along, seeds)
            yield Summary(
                row=row, group=column[0], column=column[1], values=found, seeds=list(seeds), num_images=900 + place, runs=runs
            )  # fmt: skip
    pairs = [(row, "zero_shot") for row in rows] + [(f"flyp{end}", f"tp_ft{end}") for end in ENDS]
    for a, b in pairs:
        for place, column in enumerate(columns):
            one, other = (
                [zero_of(place, column, along)] if row == "zero_shot" else values(row, place, column, along, seeds) for row in (a, b)
            )
            mean, name = fmean(one) - fmean(other), "/".join(filter(None, column))
            yield Difference(
                a=a, b=b, on=name, mean=mean, low=mean - 0.02, high=mean + 0.03, num_seeds=len(seeds), num_images=900, runs=runs
            )


FAKES: dict[str, Callable[[], list[Record]]] = {
    "domains": lambda: list(table("domains", DOMAINS)),
    "base-to-new": lambda: list(table("base-to-new", HALVES, datasets=["pets", "cars"])),
    "few-shot": lambda: list(table("few-shot", SHOTS, "images a class", parts=["shots-1", "shots-4", "shots-16"])),
}


def save(folder: Path, lines: Sequence[Record]) -> Path:
    for line in lines:
        records.append(folder, line)
    return folder


def written(folder: Path, lines: Sequence[Record]) -> str:
    return write_series_page(save(folder, lines), folder / "report", command="surefoot domains pacs").read_text(encoding="utf-8")


def cells_of(page: str) -> dict[str, list[str]]:
    """{row: the texts of its cells} of the first table; the two rows of headings are "" and so one."""
    return {cells[0]: [" ".join(cell.split()) for cell in cells[1:]] for cells in Tables(page).tables[0]}


def marked(page: str, css: str) -> list[str]:
    """The means of the cells of the first table that are marked so."""
    first = page[page.index('id="results-table"') : page.index("</table>")]
    return re.findall(rf'<td class="[^"]*\b{css}\b[^"]*"[^>]*><span class="mean">([^<]*)', first)


def with_row(lines: Sequence[Record], row: str, column: str, found: Sequence[float]) -> list[Record]:
    """The records with other values in one cell; none at all where nothing is given."""
    changed = [replace(one, values=found) if isinstance(one, Summary) and (one.row, one.column) == (row, column) else one for one in lines]
    return [one for one in changed if not (isinstance(one, Summary) and not one.values)]


def test_cells_hold_mean_deviation_and_interval(tmp_path: Path) -> None:
    found = [0.70, 0.71, 0.75]
    page = written(tmp_path, with_row(FAKES["domains"](), "flyp", "photo", found))
    shown = cells_of(page)
    assert [*shown] == ["", "zero-shot", *(f"{name}{end}" for name in ("TP-FT", "FLYP") for end in ENDS)]
    assert shown[""] == ["art painting", "cartoon", "photo", "sketch", "Avg."]
    assert shown["zero-shot"] == ["60.0", "62.0", "64.0", "66.0", "68.0"]
    assert (fmean(found), round(100 * stdev(found), 1)) == (pytest.approx(0.72), 2.6)
    assert shown["FLYP"][2] == "72.0 ± 2.6 +5.2 to +10.2"  # the fake's own difference, 7.2 points
    assert shown["TP-FT"][1] == "59.1 ± 1.0 −4.9 to +0.1"


def test_best_of_a_column_is_bold_and_worse_than_zero_shot_is_shaded(tmp_path: Path) -> None:
    page = written(tmp_path, with_row(FAKES["domains"](), "zero_shot", "photo", [0.9]))
    assert marked(page, "best") == ["90.0", "69.1", "71.2", "75.4", "77.5"]
    photo = ["68.2", "69.0", "69.4", "71.2", "72.6", "73.3"]
    assert sorted(marked(page, "below")) == sorted(["59.1", *photo])


def test_a_row_without_a_column_has_a_dash(tmp_path: Path) -> None:
    lines = with_row(FAKES["domains"](), "flyp", "photo", [])
    page = written(tmp_path, lines)
    assert cells_of(page)["FLYP"][2:4] == ["–", "73.3 ± 1.0 +5.3 to +10.3"]
    assert "| FLYP | 67.0 ± 1.0 | 69.1 ± 1.0 | – |" in series_markdown(lines)


def test_one_seed_has_no_deviation_and_no_whisker(tmp_path: Path) -> None:
    lines = list(table("few-shot", SHOTS, "images a class", seeds=[1]))
    page = written(tmp_path, lines)
    assert "one seed" in page and "±" not in str(cells_of(page))
    assert 'class="whisker' not in page
    assert 'class="whisker' in written(tmp_path / "three", FAKES["few-shot"]())


def test_seeds_that_a_row_lacks_are_named(tmp_path: Path) -> None:
    lines = [replace(one, values=one.values[:2], seeds=[0, 1]) if isinstance(one, Summary) and one.row == "flyp" else one
             for one in FAKES["domains"]()]  # fmt: skip
    assert "FLYP (2 of 3 seeds)" in cells_of(written(tmp_path, lines))


def test_groups_stand_above_their_columns(tmp_path: Path) -> None:
    columns: Columns = [("", "ID"), ("Shifts", "x"), ("Shifts", "y"), ("", "Avg. shifts"), ("", "Avg. all")]
    page = written(tmp_path, list(table("shift", columns)))
    groups, names = Tables(page).tables[0][:2]
    assert (groups, names) == (["", "", "Shifts", ""], ["", "ID", "x", "y", "Avg. shifts", "Avg. all"])
    assert [attrs["colspan"] for _, attrs in Tables(page).tags if "colspan" in attrs][:3] == ["1", "2", "2"]
    spans = [attrs.get("span") for tag, attrs in Tables(page).tags if tag == "colgroup"]
    assert spans[:4] == [None, "1", "2", "2"]
    assert "| Shifts: x |" in series_markdown(records.read(tmp_path))
    few = written(tmp_path / "few", FAKES["few-shot"]())
    assert Tables(few).tables[0][0] == ["", "ID: images a class", "Avg. shifts: images a class", "Unseen: images a class"]


def test_names_are_text_and_never_tags(tmp_path: Path) -> None:
    bad = '<b>"x"&</b>'
    columns: Columns = [(bad, f"{bad} one"), (bad, "two"), ("", bad)]
    lines = list(table("domains", columns, datasets=[f"data/{bad}"], parts=["a <b> #1?", "../up"], notes=[bad]))
    page = written(tmp_path, lines)
    report = tmp_path / "a <b> #1?" / "report" / "index.html"
    report.parent.mkdir(parents=True)
    report.write_text("its own")
    page = write_series_page(tmp_path, tmp_path / "report", command=f"surefoot {bad}").read_text(encoding="utf-8")
    assert "<b>" not in page and "&lt;b&gt;" in page
    assert [attrs["href"] for tag, attrs in Tables(page).tags if tag == "a"] == ["../a%20%3Cb%3E%20%231%3F/report/index.html"]
    assert "<b>" not in (tmp_path / "report" / "picture.svg").read_text(encoding="utf-8")
    ET.parse(tmp_path / "report" / "picture.svg")
    assert "&lt;b&gt;" in series_markdown(lines)
    assert bad in printed(lines).replace("\n", " ")


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = written(tmp_path, FAKES["few-shot"]())
    addresses = [value for tag, attrs in Tables(page).tags for name, value in attrs.items() if name in ("src", "href", "srcset")]
    assert addresses == ["data:,"]  # no part has a report yet
    assert "http:" not in page and "https:" not in page and "<script" not in page and "@import" not in page


def test_only_the_last_series_counts(tmp_path: Path) -> None:
    first = [replace(one, values=[0.11] * 3) if isinstance(one, Summary) else one for one in table("domains", DOMAINS, runs="r0")]
    more = [Summary(row="ghost", group="", column="photo", values=[0.99], seeds=[0], num_images=1, runs="r0")]
    lines = FAKES["domains"]()
    page = written(tmp_path, [*first, *lines, *more])
    assert cells_of(page) == cells_of(written(tmp_path / "alone", lines))
    assert "ghost" not in page and "11.0" not in page
    again = [replace(one, values=[0.77]) if isinstance(one, Summary) and one.row == "zero_shot" else one for one in lines]
    assert cells_of(written(tmp_path, again))["zero-shot"] == ["77.0"] * 5


def test_sentences_tell_gain_interval_and_doubt() -> None:
    told = sentences(standing_of(FAKES["domains"]()))
    assert told == [
        "FLYP gains 7.4 points over zero-shot on average (+5.4 to +10.4); with WiSE-FT (ID val.) it gains 9.5 points (+7.5 to +12.5).",
        "TP-FT gains 4.4 points over zero-shot on average (+2.4 to +7.4); with WiSE-FT (ID val.) it gains 5.6 points (+3.6 to +8.6).",
    ]
    worse = [replace(one, mean=-0.004, low=-0.02, high=0.01) if isinstance(one, Difference) and one.a == "tp_ft" else one
             for one in FAKES["domains"]()]  # fmt: skip
    assert any("TP-FT loses 0.4 points to zero-shot on average (−2.0 to +1.0, undecided);" in one for one in sentences(standing_of(worse)))


SUMMED_UP: dict[str, tuple[list[Record], str]] = {
    "few-shot": (
        FAKES["few-shot"](),
        "At 16 images a class, TP-FT gains 8.2 points over zero-shot on ID (+6.2 to +11.2), gains 8.5 on the average of the shifts (",
    ),
    "base-to-new": (
        FAKES["base-to-new"](),
        "FLYP gains 7.8 points over zero-shot in the harmonic mean of both averages (+5.8 to +10.8); with",
    ),
    "cross": (
        list(table("cross", [("cars", "HM"), ("zoo", "Base"), ("zoo", "New")])),
        "FLYP gains 7.1 points over zero-shot on zoo Base (+5.1 to +10.1) and gains 7.2 on zoo New (",
    ),
    "shift": (
        list(table("shift", [("", "ID"), ("Shifts", "x"), ("", "Avg. shifts"), ("", "Avg. all")])),
        "FLYP gains 7.0 points over zero-shot on ID (+5.0 to +10.0) and gains 7.2 on the average of the shifts (+5.2 to +10.2); with",
    ),
}


@pytest.mark.parametrize("name", SUMMED_UP)
def test_sentences_take_the_columns_that_sum_up(name: str) -> None:
    lines, begins = SUMMED_UP[name]
    assert sentences(standing_of(lines))[0].startswith(begins)


def test_nothing_is_claimed_without_a_pair() -> None:
    lines = [one for one in FAKES["domains"]() if not isinstance(one, Difference)]
    assert sentences(standing_of(lines)) == ["There is no pair of models yet that could be compared."]


def svgs(lines: Sequence[Record]) -> list[ET.Element]:
    return [ET.fromstring(picture.svg()) for picture in pictures_of(standing_of(lines))]


def titles(svg: ET.Element, css: str) -> list[str]:
    """What the shapes of a class say when pointed at."""
    return [group.findtext(f"{SVG}title") or group.findtext("title") or "" for group in svg.iter() if css in group.get("class", "").split()]


def test_curves_say_the_numbers_of_the_table() -> None:
    found = svgs(FAKES["few-shot"]())
    assert [picture.title for picture in pictures_of(standing_of(FAKES["few-shot"]()))] == ["ID", "Avg. shifts", "Unseen"]
    told = titles(found[0], "point")
    assert told[0] == "zero-shot: 62.0"
    assert "TP-FT, 16 images a class: 70.2 ± 1.0 (zero-shot 62.0)" in told
    assert "FLYP + WiSE-FT (ID val.), 4 images a class: 71.2 ± 1.0 (zero-shot 62.0)" in told
    assert len(told) == 1 + 2 * 2 * 3


def test_curves_stand_on_a_logarithmic_axis_and_higher_is_better() -> None:
    (svg, *_) = svgs(FAKES["few-shot"]())
    middle = [text for text in svg.iter("text") if text.get("text-anchor") == "middle"]
    ticks = {text.text: float(text.get("x", 0)) for text in middle if text.text in ("1", "4", "16")}
    assert ticks["4"] - ticks["1"] == pytest.approx(ticks["16"] - ticks["4"], abs=0.2)
    lines = [path.get("d", "") for path in svg.iter("path") if "between" in path.get("class", "")]
    ends = [[tuple(map(float, point.split())) for point in line.strip("M").split("L")] for line in lines]
    assert len(ends) == 4
    for line in ends:
        assert line[0][1] > line[1][1] > line[2][1]  # downwards is less
    heights = {place: line[-1][1] for place, line in enumerate(ends)}
    assert heights[3] < heights[2] < heights[1] < heights[0]  # FLYP with WiSE-FT is the best


def test_whiskers_reach_one_deviation_up_and_down() -> None:
    (svg, *_) = svgs(FAKES["few-shot"]())
    ticks = {text.text: float(text.get("y", 0)) for text in svg.iter("text") if text.get("text-anchor") == "end"}
    point = (ticks["65"] - ticks["75"]) / 10
    whiskers = [path.get("d", "") for path in svg.iter("path") if path.get("class") == "whisker"]
    lengths = [abs(float(re.split("[ V]", path)[1]) - float(re.split("V", path)[1])) for path in whiskers]
    assert lengths == pytest.approx([2 * point] * 12, abs=0.2)  # every deviation is one point


def test_a_gap_in_a_curve_stays_a_gap() -> None:
    lines = with_row(FAKES["few-shot"](), "flyp", "4", [])
    (svg, *_) = svgs(lines)
    assert len([path for path in svg.iter("path") if path.get("class", "").strip() == "between"]) == 1  # TP-FT alone
    assert sum(title.startswith("FLYP, ") for title in titles(svg, "point")) == 2


def with_third(values: Sequence[float]) -> list[Record]:
    """A third method with these means on ID; it has no other column."""
    lines = list(FAKES["few-shot"]())
    like = [one for one in lines if isinstance(one, Summary) and (one.row, one.group) == ("flyp", "ID")]
    return [*lines, *(replace(one, row="ft", values=[mean]) for one, mean in zip(like, values, strict=True))]


def test_a_method_far_below_the_others_is_drawn_below_the_axis() -> None:
    with_rest, alone = svgs(with_third([0.05, 0.35, 0.65]))[0], svgs(FAKES["few-shot"]())[0]
    ticks = [[text.text for text in svg.iter("text") if text.get("text-anchor") == "end"] for svg in (with_rest, alone)]
    assert ticks[0] == ticks[1]  # the others have the axis that they would have without it
    (course,) = [group for group in with_rest.iter("g") if group.get("class") == "course m2"]
    marks = [(point.findtext("title"), point.findtext("text")) for point in course.iter("g") if point.get("class") == "point m2"]
    assert [mark[1] if "l-5 -8" in path.get("d", "") else "" for mark, path in zip(marks, course.iterfind("g/path"), strict=True)] == [
        "5.0",
        "35.0",
        "",
    ]
    tips = [path.get("d", "").split("l-5")[0].split()[1] for path in course.iterfind("g/path") if "l-5 -8" in path.get("d", "")]
    assert tips == ["284.0", "284.0"], "at the lower edge"
    (line,) = [path.get("d", "") for path in course.iter("path") if "between" in path.get("class", "")]
    (x, y), (end_x, end_y) = ([float(number) for number in point.split()] for point in line.strip("M").split("L"))
    height = {text.text: float(text.get("y", 0)) - 4 for text in with_rest.iter("text") if text.get("text-anchor") == "end"}
    point = (height["65"] - height["75"]) / 10  # pixels
    assert end_y == pytest.approx(height["65"], abs=0.2) and y > end_y
    assert (end_x - x) / (412.0 - 254.0) == pytest.approx((y - end_y) / point / 30, abs=0.01)  # it enters where the straight line crosses
    assert "below the axis, with its value" in [key.text for key in legend_of(standing_of(with_third([0.05, 0.35, 0.65])))]


def test_two_values_below_the_axis_at_one_place_can_be_read() -> None:
    lines = with_third([0.05, 0.35, 0.65])
    lines += [replace(one, row=f"ft{METHODS_END}", values=[0.15]) for one in lines if isinstance(one, Summary) and one.row == "ft"]
    (course,) = [group for group in svgs(lines)[0].iter("g") if group.get("class") == "course m2"]
    texts = {text.text: float(text.get("y", 0)) for text in course.iter("text") if text.get("class") == "tick"}
    assert abs(texts["5.0"] - texts["15.0"]) > 10


@pytest.mark.parametrize("means", [[0.60, 0.61, 0.62], [0.54, 0.58, 0.62]])
def test_a_method_that_squeezes_nothing_is_on_the_axis(means: list[float]) -> None:
    lines = with_third(means)
    (course,) = [group for group in svgs(lines)[0].iter("g") if group.get("class") == "course m2"]
    assert not any("l-5 -8" in path.get("d", "") for path in course.iter("path"))
    assert "below the axis, with its value" not in [key.text for key in legend_of(standing_of(lines))]


def test_strips_have_a_band_for_each_column_in_groups() -> None:
    pictures = pictures_of(standing_of(FAKES["base-to-new"]()))
    assert [picture.title for picture in pictures] == ["pets", "cars", "Avg."]
    first = ET.fromstring(pictures[0].svg())
    assert [text.text for text in first.iter("text") if text.get("class") == "heading"] == ["Base", "New", "HM"]
    assert "New, TP-FT: fine-tuned 59.1 ± 1.0, WiSE-FT (ID val.) 67.3 ± 1.0 (zero-shot 62.0)" in titles(first, "lane")
    half = [one for one in FAKES["domains"]() if not (isinstance(one, Summary) and "ID val." in one.row)]
    assert "photo, FLYP: fine-tuned 71.2 ± 1.0, WiSE-FT 0.5 72.6 ± 1.0 (zero-shot 64.0)" in titles(svgs(half)[0], "lane")


@pytest.mark.parametrize("name", FAKES)
def test_the_picture_alone_has_its_own_colours_and_names(name: str, tmp_path: Path) -> None:
    written(tmp_path, FAKES[name]())
    text = (tmp_path / "report" / "picture.svg").read_text(encoding="utf-8")
    svg = ET.fromstring(text)
    assert "var(" not in text and 'fill="#ffffff"' in text
    inner = svg.findall(f"{SVG}svg")
    assert len(inner) == len(pictures_of(standing_of(FAKES[name]())))
    width, height = float(svg.get("width", 0)), float(svg.get("height", 0))
    for one in inner:
        x, y, w, h = (float(one.get(key, 0)) for key in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
    keys = [group.findtext(f"{SVG}text") for group in svg.iter(f"{SVG}g") if group.get("class") == "key"]
    assert keys[:4] == ["zero-shot", "TP-FT", "FLYP", "with WiSE-FT (ID val.)"]


def test_differences_between_models_come_first(tmp_path: Path) -> None:
    _, between, zero, *_ = Tables(written(tmp_path, FAKES["domains"]())).tables
    assert between[1][0] == "FLYP minus TP-FT"
    assert " ".join(between[1][1].split()) == "+3.0 +1.0 to +6.0"
    assert all(row[0].endswith("minus zero-shot") for row in zero[1:]) and len(zero) == 7
    assert "undecided" in zero[1][2]


def printed(lines: Sequence[Record]) -> str:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(series_table(lines))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_terminal_shows_what_fits_and_says_so() -> None:
    assert "Avg." in printed(FAKES["domains"]()) and "columns" not in printed(FAKES["domains"]())
    text = printed(FAKES["few-shot"]())
    assert "Columns of a group: images a class. 3 of 9 columns." in text
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "75.7 ± 1.0" in printed(FAKES["base-to-new"]())


def test_report_writes_a_protocol_again_with_the_command_that_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, FAKES["domains"]())
    records.append(tmp_path / "b", evaluation("zero_shot", 0, 0.0, {"test": 0.5}))
    (tmp_path / "b" / "command.txt").write_text("surefoot domains pacs --seeds 0,1,2\n")
    code, said = typed(monkeypatch, capsys, "report", tmp_path)
    assert (code, "art painting" in said) == (0, True)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"index.html", "picture.svg", "table.md"}
    assert "surefoot domains pacs --seeds 0,1,2" in (tmp_path / "report" / "index.html").read_text()
    records.append(tmp_path, evaluation("zero_shot", 0, 0.0, {"test": 0.5}))  # a comparison wrote last
    code, said = typed(monkeypatch, capsys, "report", tmp_path)
    assert code == 0 and "art painting" not in said


@pytest.mark.parametrize("begun", [[], FAKES["domains"]()[:1]], ids=["nothing", "a series without its cells"])
def test_an_unfinished_protocol_says_what_to_do(
    begun: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, begun)
    records.append(tmp_path / "photo", evaluation("zero_shot", 0, 0.0, {"test": 0.5}))
    with pytest.raises(DataError, match=f"holds no table of a protocol.*again with --out {tmp_path}.*there are photo; .* surefoot report"):
        write_series_page(tmp_path, tmp_path / "report", command="x")
    assert not (tmp_path / "report").exists()
    code, said = typed(monkeypatch, capsys, "report", tmp_path)
    assert code != 0 and "holds no table of a protocol" in said
