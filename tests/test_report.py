"""The report says what the records say: numbers against hand computation, pictures against the table, and nothing from outside."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from surefoot import records
from surefoot.errors import DataError
from surefoot.records import Choice, Difference, Evaluation, Record
from surefoot.report import frontier_svg, markdown, rich_table, rows, write_page
from surefoot.report.marks import palette
from surefoot.report.runs import collect
from surefoot.report.table import columns, header
from surefoot.report.verdict import sentences

ALPHAS = [k / 10 for k in range(11)]
ZERO = {"val": 0.70, "test": 0.70, "shifts/emoji": 0.40, "shifts/solid": 0.60, "unseen/icons": 0.64, "context": 0.60, "context_own": 0.60}
CHANGE = {
    "tp_ft": {
        "val": 0.08,
        "test": 0.08,
        "shifts/emoji": -0.06,
        "shifts/solid": 0.04,
        "unseen/icons": -0.05,
        "context": -0.12,
        "context_own": -0.11,
    },
    "flyp": {
        "val": 0.09,
        "test": 0.10,
        "shifts/emoji": -0.04,
        "shifts/solid": 0.06,
        "unseen/icons": -0.07,
        "context": -0.22,
        "context_own": -0.08,
    },
}
CHOSEN = {0: 0.6, 1: 0.7, 2: 0.6}
SVG = "{http://www.w3.org/2000/svg}"


def evaluation(method: str, seed: int, alpha: float, accuracy: dict[str, float], **changes: object) -> Evaluation:
    shifts = [value for name, value in accuracy.items() if name.startswith("shifts/")]
    given: dict[str, object] = {
        "method": method,
        "seed": seed,
        "alpha": alpha,
        "dataset": "iconshift",
        "accuracy": accuracy | ({"avg_shifts": sum(shifts) / len(shifts)} if shifts else {}),
        "num_images": dict.fromkeys(accuracy, 1000),
        "answers": f"answers/{method}-{seed}-{alpha}.npz",
        "settings": {"method": method, "epochs": 10, "lr": 1e-5 if method == "flyp" else 3e-5},
        "settings_hash": f"hash of {method}",
        "provenance": {"torch": "2.9.0", "data": "data-1", "weights": "weights-1"},
        "train_seconds": 0.0 if method == "zero_shot" else 320.0,
    }
    return Evaluation(**{**given, **changes})  # type: ignore[arg-type]


def along(method: str, seed: int, alpha: float) -> dict[str, float]:
    """A curve that bends above the chord, and seeds that lie one point apart at alpha 1."""
    bend = 0.1 * alpha * (1 - alpha)
    return {name: ZERO[name] + change * alpha + bend + 0.01 * (seed - 1) * alpha for name, change in CHANGE[method].items()}


def comparison(keep: Callable[[str, int, float], bool] = lambda method, seed, alpha: True, **changes: object) -> Iterator[Record]:
    """Two methods, three seeds, eleven alphas, as `compare` writes them."""
    yield evaluation("zero_shot", 0, 0.0, dict(ZERO), **changes)
    for method in CHANGE:
        for seed in CHOSEN:
            kept = [alpha for alpha in ALPHAS if keep(method, seed, alpha)]
            yield from (evaluation(method, seed, alpha, along(method, seed, alpha), **changes) for alpha in kept)
            if kept:
                yield Choice(method=method, seed=seed, alpha=CHOSEN[seed], argmax=0.9)
    yield Difference(a="tp_ft", b="zero_shot", on="test", mean=0.08, low=0.07, high=0.09, num_seeds=3, num_images=1000)
    yield Difference(a="tp_ft", b="zero_shot", on="context", mean=-0.12, low=-0.14, high=0.001, num_seeds=3, num_images=1000)


def save(folder: Path, lines: Iterator[Record]) -> Path:
    for line in lines:
        records.append(folder, line)
    return folder


class Tables(HTMLParser):
    """The cells of each table, and every tag and every address of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.open = True

    def handle_endtag(self, tag: str) -> None:
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.tables[-1][-1][-1] += data


def written(folder: Path, lines: Iterator[Record]) -> str:
    return write_page(save(folder, lines), folder / "page", command="surefoot compare iconshift").read_text(encoding="utf-8")


def dots(svg: str) -> list[ET.Element]:
    return [group for group in ET.fromstring(svg).iter(f"{SVG}g") if group.get("class") == "dot"]


def test_cell_is_the_mean_and_the_sample_deviation_over_seeds() -> None:
    table = rows(evaluation("tp_ft", seed, 1.0, {"test": value}) for seed, value in enumerate([0.80, 0.81, 0.85]))
    (row,) = table
    assert row.cells["test"].mean == pytest.approx(0.82)
    assert row.cells["test"].spread == pytest.approx(((0.02**2 + 0.01**2 + 0.03**2) / 2) ** 0.5)
    assert (row.cells["test"].num_seeds, str(row.cells["test"])) == (3, "82.0 ± 2.6")


def test_rows_and_columns_stand_in_reading_order() -> None:
    table = rows(comparison())
    labels = ["zero-shot"] + [f"{name}{end}" for name in ("TP-FT", "FLYP") for end in ("", " + WiSE-FT 0.5", " + WiSE-FT (ID val.)")]
    assert [row.label for row in table] == labels
    shown = columns(table)
    assert [header(column, shown) for column in shown] == ["ID", "Avg. shifts", "emoji", "solid", "Unseen", "Context", "Context, own text"]


def test_chosen_row_takes_each_seed_at_its_own_alpha() -> None:
    chosen = next(row for row in rows(comparison()) if row.label == "FLYP + WiSE-FT (ID val.)")
    by_hand = [along("flyp", seed, alpha)["test"] for seed, alpha in CHOSEN.items()]
    assert chosen.cells["test"].mean == pytest.approx(sum(by_hand) / 3)
    assert chosen.cells["test"].mean != pytest.approx(sum(along("flyp", seed, 0.6)["test"] for seed in CHOSEN) / 3)


@pytest.mark.parametrize(("chosen", "nearest"), [(0.04, 0.0), (0.06, 0.1), (0.25, 0.2), (0.97, 1.0)])
def test_choice_takes_the_nearest_alpha_and_zero_shot_stands_in_for_zero(chosen: float, nearest: float) -> None:
    lines: list[Record] = [evaluation("zero_shot", 0, 0.0, {"test": 0.5})]
    lines += [evaluation("tp_ft", 0, alpha, {"test": 0.5 + alpha / 10}) for alpha in ALPHAS[1:]]
    row = rows([*lines, Choice(method="tp_ft", seed=0, alpha=chosen, argmax=1.0)])[-1]
    assert row.label == "TP-FT + WiSE-FT (ID val.)"
    assert row.cells["test"].mean == pytest.approx(0.5 + nearest / 10)


def test_markdown_is_what_the_readme_shows() -> None:
    zero = evaluation("zero_shot", 0, 0.0, {"test": 0.5, "context": 0.7})
    tuned = [evaluation("mine|a", seed, 1.0, {"test": 0.6 + seed / 100, "context": 0.7}) for seed in (0, 1)]
    assert markdown(rows([zero, *tuned])) == (
        "|  | ID | Context |\n"
        "| --- | ---: | ---: |\n"
        "| zero-shot | 50.0 | **70.0** |\n"
        "| mine\\|a | **60.5 ± 0.7** | **70.0 ± 0.0** |\n"
    )  # fmt: skip
    assert "**" not in markdown(rows([zero]))


def test_row_says_when_seeds_are_missing() -> None:
    text = markdown(rows(comparison(keep=lambda method, seed, alpha: method == "tp_ft" or seed == 0)))
    assert "| FLYP (1 of 3 seeds) |" in text
    assert "| TP-FT |" in text


def test_terminal_table_fits_eighty_letters() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    table = rows(comparison())
    console.print(rich_table(table))
    text = console.export_text()
    assert "…" not in text
    assert all(str(row.cells[column]) in text for row in table for column in ("test", "avg_shifts", "unseen/icons", "context"))
    assert len(rich_table(table, each_shift=True).columns) == len(columns(table)) + 1


def test_later_records_count() -> None:
    first = [evaluation("tp_ft", 0, alpha, {"test": 0.6}) for alpha in (0.5, 1.0)]
    again = evaluation("tp_ft", 0, 1.0, {"test": 0.7})
    assert [str(row.cells["test"]) for row in rows([*first, again])] == ["70.0", "60.0"]
    other_settings = evaluation("tp_ft", 0, 1.0, {"test": 0.8}, settings_hash="other")
    assert [str(row.cells["test"]) for row in rows([*first, other_settings])] == ["80.0"]
    other_data = evaluation("flyp", 0, 1.0, {"test": 0.9}, provenance={"data": "data-2"})
    assert [row.label for row in rows([*first, other_data])] == ["FLYP"]


def test_several_datasets_are_an_error() -> None:
    lines = [evaluation("tp_ft", 0, 1.0, {"test": 0.6}, dataset=name) for name in ("birds", "cars")]
    with pytest.raises(DataError, match=r"'birds' and 'cars'.*folder of its own"):
        rows(lines)


def test_page_shows_the_numbers_of_the_table(tmp_path: Path) -> None:
    table = rows(comparison())
    shown = columns(table)
    found = Tables(written(tmp_path, comparison())).tables[0]
    assert found[0] == ["", *(header(column, shown) for column in shown)]
    numbers = [[re.sub(r"(?<=\d) [+−0].*", "", text) for text in line] for line in found[1:]]  # without the intervals below them
    assert numbers == [[row.label, *(str(row.cells[column]) for column in shown)] for row in table]


def test_cells_show_the_interval_of_their_difference_to_zero_shot(tmp_path: Path) -> None:
    (line,) = [line for line in Tables(written(tmp_path, comparison())).tables[0] if line[0] == "TP-FT"]
    assert [text for text in line if "to" in text] == ["78.0 ± 1.0 +7.0 to +9.0", "48.0 ± 1.0 −14.0 to +0.1"]


def test_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = written(tmp_path, comparison())
    assert not re.search(r"https?:|@import|url\(", page)
    for tag, attributes in Tables(page).tags:
        assert tag not in ("script", "iframe", "object", "embed")
        assert all((attributes.get(name) or "data:").startswith(("data:", "#")) for name in ("src", "href"))


def test_colours_of_the_page_are_defined_in_both_schemes(tmp_path: Path) -> None:
    page = written(tmp_path, comparison())
    light, dark = page.split("@media (prefers-color-scheme: dark)", 1)
    used = set(re.findall(r"var\(--([\w-]+)\)", page))
    assert {"m0", "m1", "paper"} <= used
    for scheme in (light, dark):
        assert used <= set(re.findall(r"--([\w-]+):", scheme))


def test_page_is_readable_without_eyes(tmp_path: Path) -> None:
    tags = Tables(written(tmp_path, comparison())).tags
    assert all(attributes.get("scope") in ("row", "col", "rowgroup") for tag, attributes in tags if tag == "th")
    pictures = [attributes for tag, attributes in tags if tag == "svg" and attributes.get("class") == "frontier"]
    assert len(pictures) == 4, "average of the shifts (wide and narrow), unseen, context"
    assert all("FLYP at α = 1: ID 80.0 ± 1.0" in str(picture["aria-label"]) for picture in pictures)
    curves = [attributes for tag, attributes in tags if tag == "g" and str(attributes.get("class")).startswith("curve m")]
    assert len(curves) == 2 * 4
    assert all((curve["tabindex"], curve["role"]) == ("0", "img") and curve["aria-label"] for curve in curves)


def test_names_cannot_inject_markup(tmp_path: Path) -> None:
    evil = "<script>alert('1')</script>"
    lines: list[Record] = [evaluation("zero_shot", 0, 0.0, {"test": 0.5, f"shifts/{evil}": 0.4}, dataset=evil)]
    for alpha in (0.5, 1.0):
        lines.append(evaluation(evil, 0, alpha, {"test": 0.6, f"shifts/{evil}": 0.3}, dataset=evil, settings={evil: evil}))
    lines.append(Difference(a=evil, b="zero_shot", on=f"shifts/{evil}", mean=0.1, low=0.0, high=0.2, num_seeds=1, num_images=9))
    page = write_page(save(tmp_path, iter(lines)), tmp_path / "a.html", command=evil, notes=[evil]).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in markdown(rows(lines))
    svg = frontier_svg(lines)
    assert "<script" not in svg
    assert evil in "".join(ET.fromstring(svg).itertext())


def test_differences_that_hold_zero_read_undecided(tmp_path: Path) -> None:
    contrasts = next(table for table in Tables(written(tmp_path, comparison())).tables if table[1][0] == "TP-FT minus zero-shot")
    assert contrasts[0][1:] == ["ID", "Context"]
    assert contrasts[1][1:] == ["+8.0 +7.0 to +9.0", "−12.0 −14.0 to +0.1 undecided"]


def test_verdict_is_made_from_the_numbers() -> None:
    assert sentences(collect(comparison())) == [
        "FLYP gains 10.0 points on ID and loses 22.0 points on context recognition; "
        "WiSE-FT 0.5 gives back 13.5 and is 7.5 points above zero-shot on ID.",
        "TP-FT gains 8.0 points on ID and loses 12.0 points on context recognition (undecided); "
        "WiSE-FT 0.5 gives back 8.5 and is 6.5 points above zero-shot on ID.",
    ]


@pytest.mark.parametrize(
    "keep",
    [
        lambda method, seed, alpha: False,
        lambda method, seed, alpha: method == "flyp" and seed == 1,
        lambda method, seed, alpha: alpha == 1.0,
        lambda method, seed, alpha: 0.0 < alpha < 0.45 and seed == 0,
    ],
    ids=["zero-shot only", "one seed", "one alpha", "cut off"],
)
def test_incomplete_runs_give_a_page(tmp_path: Path, keep: Callable[[str, int, float], bool]) -> None:
    page = written(tmp_path, (line for line in comparison(keep) if not isinstance(line, Difference)))
    table = rows(comparison(keep))
    found = Tables(page).tables[0]
    assert [line[0].split(" (")[0] for line in found[1:]] == [row.label.split(" (")[0] for row in table]
    assert "No differences have been written yet" in page
    assert page.rstrip().endswith("</html>")


def test_page_works_without_zero_shot_and_with_id_only(tmp_path: Path) -> None:
    page = written(tmp_path, iter([evaluation("tp_ft", 0, 1.0, {"test": 0.6}, num_images={}, settings={}, provenance={})]))
    assert "TP-FT reaches 60.0% on ID; no zero-shot model has been evaluated yet" in page
    assert 'class="frontier"' not in page


@pytest.mark.parametrize("lines", [[], [Choice(method="tp_ft", seed=0, alpha=0.5, argmax=0.5)]])
def test_no_evaluations_is_an_error_that_says_what_to_do(tmp_path: Path, lines: list[Record]) -> None:
    with pytest.raises(DataError, match="run `surefoot compare` first"):
        write_page(save(tmp_path, iter(lines)), tmp_path / "page", command="")
    assert not (tmp_path / "page").exists()
    with pytest.raises(DataError, match="run `surefoot compare` first"):
        rows(lines)


@pytest.mark.parametrize("on", ["avg_shifts", "unseen/icons", "context"])
@pytest.mark.parametrize("own_zero", [True, False])
def test_picture_has_a_dot_for_each_alpha_of_each_method(on: str, own_zero: bool) -> None:
    found = dots(frontier_svg(comparison(lambda method, seed, alpha: own_zero or alpha > 0), on))
    assert len(found) == 2 * len(ALPHAS)
    titles = [dot.findtext(f"{SVG}title") or "" for dot in found]
    assert [title.split(":")[0] for title in titles] == [f"{name}, α = {alpha:g}" for name in ("TP-FT", "FLYP") for alpha in ALPHAS]
    assert titles[-1] == f"FLYP, α = 1: ID 80.0 ± 1.0, {header(on)} {rows(comparison())[4].cells[on]}"


def test_dots_stand_where_the_axes_say() -> None:
    root = ET.fromstring(frontier_svg(comparison(), "context"))
    ticks = [text for text in root.iter(f"{SVG}text") if text.get("class") == "tick"]
    across = [(float(tick.text or ""), float(tick.get("x", ""))) for tick in ticks if tick.get("text-anchor") == "middle"]
    up = [(float(tick.text or ""), float(tick.get("y", "")) - 4) for tick in ticks if tick.get("text-anchor") == "end"]  # 4: half a letter
    circles = [circle for circle in root.iter(f"{SVG}circle") if circle.get("class") == "hit"]
    for axis, name, pixel in ((across, "test", "cx"), (up, "context", "cy")):
        (first, start), (last, end) = axis[0], axis[-1]
        means = [100 * sum(along(method, seed, alpha)[name] for seed in CHOSEN) / 3 for method in CHANGE for alpha in ALPHAS]
        by_hand = [start + (mean - first) / (last - first) * (end - start) for mean in means]
        assert [float(circle.get(pixel, "")) for circle in circles] == pytest.approx(by_hand, abs=0.3)


def test_picture_rings_the_chosen_alphas_and_names_the_chord() -> None:
    svg = frontier_svg(comparison())
    ringed = [dot.findtext(f"{SVG}title") or "" for dot in dots(svg) if any(path.get("class") == "ring" for path in dot)]
    assert [re.sub(r":.*;", ";", title) for title in ringed] == [
        f"{name}, α = {alpha}; chosen on ID validation by {count}"
        for name in ("TP-FT", "FLYP")
        for alpha, count in ((0.6, "2 seeds"), (0.7, "1 seed"))
    ]
    texts = [text.text for text in ET.fromstring(svg).iter(f"{SVG}text")]
    assert texts.count("chord") == 2
    assert "effective robustness" not in svg


def test_picture_alone_brings_its_own_colours() -> None:
    svg = frontier_svg(comparison())
    assert re.findall(r"https?://[^\"' ]*", svg) == ["http://www.w3.org/2000/svg"]
    assert "var(" not in svg
    assert all(colour in svg for colour in list(palette("light").values())[:2])
    box = next(rect for rect in ET.fromstring(svg).iter(f"{SVG}rect"))
    assert (box.get("class"), box.get("width")) == ("box", ET.fromstring(svg).get("width"))


def test_picture_of_an_unknown_accuracy_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'context_owm'.*Known: avg_shifts, shifts/emoji.*Name one of these"):
        frontier_svg(comparison(), "context_owm")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_method_stands_out_from_the_page(scheme: str) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    colours = palette(scheme)
    for name, least in [*((name, 3.0) for name in colours if re.fullmatch(r"m\d", name)), ("muted", 4.5), ("ink", 7.0)]:
        bright, dim = sorted((luminance(colours[name]), luminance(colours["paper"])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= least, name
