"""The page of an evaluation protocol: its table over all parts, a picture, differences, and the way to each part's own report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from urllib.parse import quote

from markupsafe import Markup
from rich.table import Table

from surefoot.errors import DataError
from surefoot.folders import put_text
from surefoot.records import FILE, Record, read
from surefoot.report import contrasts, marks
from surefoot.report.page import lines_of
from surefoot.report.runs import display_name
from surefoot.report.series_picture import legend_of, picture_svg, pictures_of
from surefoot.report.series_rows import Standing, sentences, standing_of
from surefoot.report.table import markdown_of, terminal_of
from surefoot.report.templates import render

PICTURE = "picture.svg"
TERMINAL_COLUMNS = 7
WHAT = {
    "shift": "Trained on the ID images, and judged on the ID test images and on every shift.",
    "context": "How often the image tower, alone or with the model's own text tower, recognises the context that the images are drawn in.",
    "few-shot": "Trained on a few images of each class, a new draw for each seed, and judged on all test images.",
    "base-to-new": "Trained on the first half of the classes; base and new classes are judged each among their own names. "
    "HM is the harmonic mean of both.",
    "domains": "Each column is a domain that was held out: trained and chosen on all other domains, judged on this one.",
    "cross": "Trained on the base classes of the first data set; base and new classes of the others are judged each among their own names.",
    "zeroshot-transfer": "Trained on the first data set; the test images of the others are judged among their own names.",
    "transfer": "Trained on each data set in turn, and judged on its own test images.",
}
SOURCE_FIRST = ("cross", "zeroshot-transfer")  # the first data set is trained on, the others are not


def write_series_page(folder: Path, out: Path, *, command: str) -> Path:
    """Write the report of a protocol, and beside it its picture alone, picture.svg.

    Args:
        folder: of the protocol, with its records.jsonl and a folder for each part.
        out: the file to write if it ends in ".html", otherwise the folder that gets an index.html; made if it does not exist.
        command: what was typed to make it; shown, never executed.

    Returns:
        The path of the page.

    Raises:
        DataError: the protocol is not finished, so that it has no table yet.
    """
    found = list(read(folder))
    try:
        table = standing_of(found)
    except DataError as error:
        raise DataError(_unfinished(folder)) from error
    path = out if out.suffix.lower() == ".html" else out / "index.html"
    put_text(path, series_html(table, folder, path.parent, command=command))
    put_text(path.parent / PICTURE, picture_svg(table, _title(table)))
    return path


def parts_in(folder: Path) -> list[str]:
    """The folders below this one that hold records."""
    return sorted(path.parent.name for path in folder.glob(f"*/{FILE}"))


def series_html(table: Standing, folder: Path, beside: Path, *, command: str) -> str:
    """The page as text; it lies in the folder `beside`, the parts in `folder`."""
    shown = list(table.columns)
    return render(
        "series.html.j2",
        title=_title(table),
        eyebrow=f"Surefoot protocol: {table.series.protocol}",
        heading=_heading(table),
        verdict=sentences(table),
        notes=[*([what] if (what := WHAT.get(table.series.protocol)) else []), *table.series.notes],
        tables=[{"headers": list(table.names.values()), "spans": table.spans, "lines": lines_of(table.rows, shown, table.differences)}],
        spread=any(cell.spread is not None for row in table.rows for cell in row.cells.values()),
        along=table.series.along,
        merge=table.merge.removeprefix(" + "),
        pictures=[(picture.title, picture.svg()) for picture in pictures_of(table)],
        legend=legend_of(table),
        contrasts=_contrasts(table),
        parts=[_part(folder, beside, part) for part in table.series.parts],
        command=command,
        facts=_facts(table),
        colours=marks.variables(),
        palettes={scheme: marks.palette(scheme) for scheme in ("light", "dark")},
        robustness=None,
        picture_css=Markup(render("series.css.j2", colours=marks.variables())),
    )


def series_markdown(records: Iterable[Record]) -> str:
    """The table in Markdown: percent, mean ± standard deviation over seeds, the best mean of a column in bold.

    Raises:
        DataError: no finished protocol among the records.
    """
    table = standing_of(records)
    return markdown_of(table.rows, table.headings) + (f"\nColumns of a group: {table.series.along}.\n" if table.series.along else "")


def series_table(records: Iterable[Record]) -> Table:
    """The table for the terminal; of many columns the last one of each group, or the last ones.

    Raises:
        DataError: no finished protocol among the records.
    """
    table = standing_of(records)
    shown = list(table.columns)
    if len(shown) > TERMINAL_COLUMNS:
        last = [columns[-1] for columns in table.groups.values()]
        shown = (last if len(last) > 1 else shown)[-TERMINAL_COLUMNS:]
    view = terminal_of(table.rows, {column: table.headings[column].replace(": ", ":\n") for column in shown})
    said = [f"Columns of a group: {table.series.along}."] * bool(table.series.along)
    said += [f"{len(shown)} of {len(table.columns)} columns."] * (len(shown) < len(table.columns))
    view.caption = " ".join(said) or None
    return view


def _unfinished(folder: Path) -> str:
    parts = parts_in(folder)
    there = f" Of the parts there are {', '.join(parts)}; for the report of one type: surefoot report {folder / parts[0]}." if parts else ""
    return (
        f"{folder / FILE} holds no table of a protocol; it is written when all parts are done. "
        f"Run the protocol's command, such as surefoot domains, again with --out {folder}: what is done is kept.{there}"
    )


def _contrasts(table: Standing) -> dict[str, object] | None:
    return contrasts.grouped(table.differences.values(), table.names, table.spans) if table.differences else None


def _names(given: Sequence[str]) -> list[str]:
    """Data sets as a heading calls them: without their folders, as long as that tells them apart."""
    short = [PurePath(one).name or one for one in given]
    return short if len(set(short)) == len(given) else list(given)


def _title(table: Standing) -> str:
    return f"{table.series.protocol}: {', '.join(_names(table.series.datasets))}"


def _heading(table: Standing) -> str:
    first, *others = _names(table.series.datasets) or [""]
    if others and table.series.protocol in SOURCE_FIRST:
        return f"Fine-tuning on {first}, judged on {_listed(others)}"
    return f"Fine-tuning on {_listed([first, *others])}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _part(folder: Path, beside: Path, part: str) -> tuple[str, str]:
    """A part, and the address of its report as seen from the page; none while there is no report."""
    page = folder / part / "report" / "index.html"
    return part, quote(Path(os.path.relpath(page, beside)).as_posix()) if page.is_file() else ""


def _facts(table: Standing) -> dict[str, dict[str, str]]:
    """{heading: {name: value}}: data sets, seeds of each method, and the images behind each column."""
    return {
        "Protocol": {"protocol": table.series.protocol, "data": ", ".join(table.series.datasets), "parts": str(len(table.series.parts))},
        "Seeds": {display_name(name): ", ".join(map(str, table.seeds[name])) for name in table.methods if name in table.seeds},
        "Images judged on": {
            table.headings[column]: str(table.num_images[column]) for column in table.columns if column in table.num_images
        },
    }
