"""How training went: ID validation after each epoch, which epoch was kept, and how long it took."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from surefoot.records import Trained
from surefoot.report import marks
from surefoot.report.facts import duration, text
from surefoot.report.runs import Runs, display_name
from surefoot.report.templates import render

SIZE, LEFT, TOP, RIGHT, BOTTOM = (260, 104), 40.0, 10.0, 248.0, 82.0


def section(runs: Runs) -> list[dict[str, object]]:
    """A card for each method with a record of its training."""
    found = []
    for index, method in enumerate(runs.methods):
        trained = [runs.trained[method, seed] for seed in runs.seeds(method) if (method, seed) in runs.trained]
        if trained:
            found.append(_card(display_name(method), index, trained))
    return found


def _card(name: str, index: int, trained: Sequence[Trained]) -> dict[str, object]:
    kept = [str(one.kept_epoch) for one in trained]
    picture = _sparkline(name, index, trained)
    facts = {} if picture is None else {f"kept epoch{'s'[: len(set(kept)) > 1]}": kept[0] if len(set(kept)) == 1 else ", ".join(kept)}
    facts |= {
        "chosen by": " / ".join(dict.fromkeys(one.select_by.replace("_", " ") for one in trained)),
        "steps": " / ".join(dict.fromkeys(str(one.num_steps) for one in trained)),
        "time, mean" if len(trained) > 1 else "time": duration(statistics.fmean(one.seconds for one in trained)),
    }
    for choice in dict.fromkeys(name for one in trained for name in one.choices):
        facts[choice] = ", ".join(dict.fromkeys(text(one.choices[choice]) for one in trained if choice in one.choices))
    return {"name": name, "picture": picture, "facts": facts}


def _sparkline(name: str, index: int, trained: Sequence[Trained]) -> Markup | None:
    """A line of ID validation for each seed, its kept epoch marked; None where no epoch was validated."""
    histories = [[row for row in one.history if math.isfinite(row.get("val", math.nan))] for one in trained]
    values = [100 * row["val"] for history in histories for row in history]
    if not values:
        return None
    longest = max(histories, key=len)
    up = marks.Axis.around(values, BOTTOM, TOP)
    step = (RIGHT - LEFT) / max(len(longest) - 1, 1)
    return Markup(
        render(
            "sparkline.svg.j2",
            size=SIZE,
            bounds=(LEFT, TOP, RIGHT, BOTTOM),
            css=marks.css_class(index),
            ticks=up.ticks(4),
            lines=[_line(one, history, up, step, index) for one, history in zip(trained, histories, strict=True) if history],
            stages=_stages(longest, step),
            epochs=[(f"{longest[number].get('epoch', number + 1):g}", LEFT + step * number) for number in sorted({0, len(longest) - 1})],
            summary=f"ID validation of {name} after each epoch: "
            + "; ".join(
                f"seed {one.seed} kept epoch {one.kept_epoch} of {len(history)}" for one, history in zip(trained, histories, strict=True)
            ),
        )
    )


def _line(one: Trained, history: Sequence[Mapping[str, float]], up: marks.Axis, step: float, index: int) -> dict[str, str]:
    at = [(LEFT + step * number, up.at(100 * row["val"])) for number, row in enumerate(history)]
    last_stage = history[-1].get("stage")
    kept = [number for number, row in enumerate(history) if (row.get("stage"), row.get("epoch")) == (last_stage, one.kept_epoch)]
    title = "; ".join(f"epoch {row.get('epoch', number + 1):g}: {100 * row['val']:.1f}" for number, row in enumerate(history))
    return {
        "path": "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at) if len(at) > 1 else "",
        "kept": marks.marker(index, *at[kept[-1]], 4.2) if kept else "",
        "title": f"seed {one.seed}, ID validation {title}",
    }


def _stages(history: Sequence[Mapping[str, float]], step: float) -> list[float]:
    """Where another stage begins: half a step before its first epoch."""
    pairs = enumerate(itertools.pairwise(row.get("stage") for row in history), start=1)
    return [LEFT + step * (number - 0.5) for number, (before, after) in pairs if before != after]
