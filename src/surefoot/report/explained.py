"""Images with the maps of attention that `explain` made of them, in the report of their run and on a page of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from surefoot.errors import DataError
from surefoot.folders import put_text
from surefoot.records import FILE, Evaluation, Explained, read
from surefoot.report import contexts, marks, reliability
from surefoot.report.answers import Stored
from surefoot.report.before_after import before_after
from surefoot.report.gallery import data_uri
from surefoot.report.runs import Runs, collect, display_name
from surefoot.report.table import header
from surefoot.report.templates import render

FOLDER = "explain"
WHY = {"drawn": "drawn by seed", "changed": "answer changed", "given": ""}


def section(folder: Path, runs: Runs | None) -> dict[str, object] | None:
    """What the section shows, or None where nothing was explained: the images of the folder explain/ that are of a run that stands.

    Args:
        folder: of the records of a run, which holds explain/.
        runs: what stands in it.
    """
    return shown_of(folder / FOLDER, runs)


def shown_of(folder: Path, runs: Runs | None) -> dict[str, object] | None:
    """The same for a folder that `explain` wrote into; every image where `runs` is None."""
    found = [one for one in read(folder) if isinstance(one, Explained) and (runs is None or _stands(one, runs))]
    cards = [card for one in found if (card := _card(one, folder))]
    if not cards:
        return None
    heats = [any(view["heat"] for view in one.views) for one in found]
    return {
        "cards": cards,
        "models": _listed([view["label"] for view in found[0].views]),
        "method": display_name(found[0].method) if found[0].method else "",
        "maps": any(heats),
        "drawn": any(one.why == "drawn" for one in found),
        "num_missing": len(found) - len(cards),
    }


def write_explained_page(folder: Path, run: Path | None, *, command: str, method: str = "", seed: int | None = None) -> Path:
    """The page of what `explain` wrote into a folder: contexts and reliability of the run, as far as its records tell, and the images.

    Args:
        folder: what was written into; gets the page as index.html.
        run: the folder of the run that is explained; None for a model alone.
        command: what was typed.
        method: whose contexts and reliability; the best on ID validation if empty.
        seed: of that run; the first if None.

    Returns:
        The path of the page.

    Raises:
        DataError: nothing was explained there.
    """
    shown = shown_of(folder, None)
    if shown is None:
        raise DataError(f"{folder / FILE} holds no image that was explained, or its pictures are gone. Run `surefoot explain` again.")
    runs = collect(read(run)) if run and any(isinstance(one, Evaluation) for one in read(run)) else None
    stored = Stored(run) if run else None
    found = before_after(runs, method, seed) if runs else None
    told = runs is not None and stored is not None and found is not None
    page = render(
        "explain.html.j2",
        title=f"{shown['method'] or 'a model'} explained",
        eyebrow="Surefoot explain",
        heading=f"What {shown['method'] or 'the model'} looks at" if shown["maps"] else f"What {shown['method'] or 'the model'} sees",
        verdict=[f"{len(shown['cards'])} image{'s'[: len(shown['cards']) != 1]} as {shown['models']} see them."],  # type: ignore[arg-type]
        notes=[],
        explained=shown,
        contexts=contexts.section_of(found, runs, stored) if told else None,  # type: ignore[arg-type]
        reliability=reliability.section_of(found, runs, stored) if told else None,  # type: ignore[arg-type]
        robustness=None,
        command=command,
        picture_css="",
        colours=marks.variables(),
        palettes={scheme: marks.palette(scheme) for scheme in ("light", "dark")},
    )
    path = folder / "index.html"
    put_text(path, page)
    return path


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def _stands(one: Explained, runs: Runs) -> bool:
    run = runs.runs.get((one.method, one.seed))
    return run is not None and run.settings_hash == one.settings_hash


def _card(one: Explained, folder: Path) -> dict[str, object] | None:
    """An image with what each model makes of it, or None if its picture is not there (any more)."""
    source = data_uri(folder, one.image)
    if source is None:
        return None
    rows: Sequence[dict[str, object]] = [
        {
            "name": view["label"],
            "heat": data_uri(folder, view["heat"]) if view["heat"] else None,
            "answer": f"{view['answer']} ({100 * view['confidence']:.0f}%)",
            "css": "" if not one.label else "right" if view["answer"] == one.label else "wrong",
            "context": view["context"],
            "right_context": not one.context or view["context"] == one.context,
        }
        for view in one.views
    ]
    return {
        "source": source,
        "title": one.path,
        "label": one.label or one.path,
        "of": one.of,
        "on": "" if not one.on else "ID test" if one.on == "test" else header(one.on),
        "why": WHY.get(one.why, one.why),
        "rows": rows,
    }
