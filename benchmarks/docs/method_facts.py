"""What the page of a method says, derived from its factory (docstring, signature) and its Method value; the rest is in methods.toml."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surefoot.methods import METHODS, adapted, get
from surefoot.objective import GROUPS, Method, Stage
from surefoot.report.runs import display_name

HERE = Path(__file__).parent
SECTIONS = ("Args", "Returns", "Raises", "Needs", "Relations", "Differences", "Examples", "References")
NAMES = {
    "visual": "the image tower", "text": "the text tower", "logit_scale": "the logit scale",
    "logit_bias": "the logit bias of models that have one", "head": "a linear head",
}  # fmt: skip
STARTS = {
    "zero_shot": "The head starts as the zero-shot head.", "random": "The head starts at random.",
    "keep": "The head goes on from the stage before.", "from_text": "No head is trained.",
}  # fmt: skip
ANSWERS = {
    "head": "The trained head. Unseen classes are answered by prompts through the model's own text tower.",
    "text": "Prompts through the model's own text tower, so that unseen classes need only a name.",
}


@dataclass(frozen=True)
class Docstring:
    """A docstring in the house's order, taken apart."""

    summary: str
    prose: Sequence[str]
    equations: Sequence[str]
    sections: Mapping[str, str]

    @property
    def args(self) -> dict[str, str]:
        """{argument: what is said of it}."""
        found: dict[str, str] = {}
        for line in self.sections.get("Args", "").splitlines():
            if entry := re.match(r"(\w+): (.*)", line):
                found[entry[1]] = entry[2]
            elif line.strip() and found:
                found[list(found)[-1]] += " " + line.strip()
        return found


def taken_apart(function: Callable[..., Any]) -> Docstring:
    """The parts of a docstring."""
    lines = (inspect.getdoc(function) or "").splitlines()
    starts = [n for n, line in enumerate(lines) if line.partition(":")[0] in SECTIONS and ":" in line]
    sections = {}
    for begin, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        name, _, first = lines[begin].partition(":")
        body = textwrap.dedent("\n".join(lines[begin + 1 : end])).strip()
        sections[name] = body if name == "Args" else " ".join(f"{first} {body}".split())
    head = "\n".join(lines[1 : starts[0] if starts else len(lines)])
    blocks = [block for block in re.split(r"\n\s*\n", head) if block.strip()]
    indented = [textwrap.dedent(block).strip("\n") for block in blocks if block.lstrip("\n").startswith("    ")]
    prose = [" ".join(block.split()) for block in blocks if not block.lstrip("\n").startswith("    ")]
    return Docstring(lines[0], prose, indented, sections)


def stored() -> dict[str, Any]:
    """methods.toml."""
    return tomllib.loads((HERE / "methods.toml").read_text(encoding="utf-8"))


def names() -> list[str]:
    """The pages there are: every method, then the two that average weights."""
    return [*METHODS, *(name for name in stored()["page"] if name not in METHODS)]


def facts(name: str) -> dict[str, Any]:
    """All that the template is given for one page, results and costs left out.

    Raises:
        KeyError: methods.toml has no page of that name, or not all that it needs.
    """
    every = stored()
    page = every["page"][name]
    own = facts_of_method(name, every) if name in METHODS else facts_of_finish(page)
    equations = own["equations"] or [page["equation"]]
    return {
        "name": name, "title": page.get("title", display_name(name)), "choose": page["choose"], "run": page["run"],
        **own, "equations": equations, "symbols": symbols(equations, page, every["symbol"]),
    }  # fmt: skip


def facts_of_method(name: str, every: Mapping[str, Any]) -> dict[str, Any]:
    """Of a factory in the table of methods."""
    method, doc = get(name), taken_apart(METHODS[name])
    trained = bool(method.trains & {"visual", "text"})
    return {
        "summary": doc.summary, "prose": doc.prose, "equations": doc.equations, "reference": doc.sections["References"],
        "relations": doc.sections.get("Relations", ""), "differences": doc.sections.get("Differences", ""),
        "trains": [described(stage, number, len(method.stages)) for number, stage in enumerate(method.stages, start=1)],
        "trains_tower": trained, "frozen": frozen(method), "answers": ANSWERS[method.predict], "finish": method.finish,
        "needs": [entry for need in sorted(method.needs) if (entry := every["need"][need])["says"]],
        "settings": settings(METHODS[name], doc), "common": settings(adapted, taken_apart(adapted)) if trained else [],
    }  # fmt: skip


def facts_of_finish(page: Mapping[str, Any]) -> dict[str, Any]:
    """Of a function that averages weights, and the words of methods.toml."""
    doc = taken_apart(_function(page["finish"]))
    differences = taken_apart(_function(page["differences_of"])).sections["Differences"] if "differences_of" in page else ""
    return {
        "summary": doc.summary, "prose": [*doc.prose, *page.get("prose", ())], "equations": doc.equations,
        "reference": doc.sections["References"], "relations": doc.sections.get("Relations", ""),
        "differences": differences or page["differences"],
        "trains": [page["trains"]], "trains_tower": False, "frozen": "", "answers": page["answers"], "finish": None,
        "needs": [{"says": page["needs"]}], "settings": [], "common": [],
    }  # fmt: skip


def described(stage: Stage, number: int, total: int) -> str:
    """What one stage trains, in words."""
    groups = [group for group in GROUPS if group in stage.groups]
    terms = " + ".join(f"{'' if term.weight == 1 else f'{term.weight:g} '}{term.name}" for term in stage.objective.terms if term.weight)
    tried = f", one of {len(stage.candidates)} strengths by ID validation" if stage.candidates else ""
    lead = f"Stage {number}: " if total > 1 else ""
    text = f"{lead}{_listed([NAMES[group] for group in groups])}, by `{terms}`{tried}. {STARTS[stage.head]}"
    return text[0].upper() + text[1:]


def frozen(method: Method) -> str:
    """The groups that never move, the head and the bias that few models have left out."""
    return _listed([NAMES[group] for group in GROUPS if group not in {*method.trains, "head", "logit_bias"}])


def settings(function: Callable[..., Any], doc: Docstring) -> list[dict[str, str]]:
    """Name, default and meaning of every setting."""
    known = {name: p.default for name, p in inspect.signature(function).parameters.items() if p.default is not inspect.Parameter.empty}
    return [{"name": name, "default": _shown(default), "says": doc.args[name]} for name, default in known.items()]


def tokens(equation: str) -> list[str]:
    """What in an equation may need a word of explanation: everything but plain words of two or more small letters.

    Examples:
        >>> tokens("L = CE(W^T f(x), y) at the start")
        ['L', 'CE', 'W', 'T', 'f', 'x', 'y', 'at', 'the', 'start']
    """
    return list(dict.fromkeys(re.findall(r"(?<!')(?<![A-Za-z])[A-Za-z]\w*", equation)))


def is_word(token: str) -> bool:
    """Whether a token reads as English."""
    return token.islower() and token.isalpha() and len(token) > 1


def symbols(equations: Sequence[str], page: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> list[str]:
    """What every symbol of the equations means.

    Raises:
        KeyError: one that nobody explains.
    """
    found: list[str] = list(page["symbols"])
    used = [token for block in equations for token in tokens(block) if token not in page.get("tokens", ())]
    for token in used:
        entry = next((one["means"] for one in known if token in one["tokens"]), None)
        if entry is None and not is_word(token):
            raise KeyError(f"nobody explains '{token}' of {equations}")
        if entry and entry not in found:
            found.append(entry)
    return found


def _function(path: str) -> Callable[..., Any]:
    """What MODULE:NAME names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return "[" + ", ".join(f"{value:g}" for value in default) + "]"
    return {"True": "true", "False": "false", "None": "none", "": '""'}.get(str(default), str(default))


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""
