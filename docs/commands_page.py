"""Every command with its options as Markdown, from the command line itself, so that the page cannot say anything else."""

from __future__ import annotations

import re
from typing import Any

import typer.main

from surefoot import cli


def every_command() -> str:
    """A section for each command: what it does, how it is called, its arguments and options, an example."""
    group: Any = typer.main.get_command(cli.app)
    return "\n" + "\n".join(section(name, group.commands[name]) for name in group.commands)


def section(name: str, command: Any) -> str:  # noqa: ANN401
    """One command's section.

    Args:
        name: what is typed after `surefoot`.
        command: as the command line's parser holds it.
    """
    shown = [one for one in command.params if not getattr(one, "hidden", False) and one.name != "help"]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    options = [one for one in shown if one.param_type_name == "option"]
    needed = [f"{one.opts[0]} {_kind(one)}" for one in options if one.required]
    usage = " ".join(["surefoot", name, *map(_called, arguments), *needed, *(["[OPTIONS]"] if options else [])])
    example = str(command.epilog or "").removeprefix("Example: ")
    parts = [f"## surefoot {name}", _plain(command.help or ""), f"```text\n{usage}\n```"]
    rows = [f"| `{_called(one)}` | {_plain(one.help or '')} | {'' if one.required else _default(one)} |" for one in arguments]
    rows += [f"| `{_names(one)}` | {_plain(one.help or '')} | {_default(one)} |" for one in options]
    parts.append("\n".join(["| given | what it says | default |", "|---|---|---|", *rows]))
    if example:
        parts.append(f"For example:\n\n```sh\n{example}\n```")
    return "\n\n".join(parts) + "\n"


def _called(argument: Any) -> str:  # noqa: ANN401
    name = str(argument.metavar or argument.name).upper()
    name += "..." if argument.nargs == -1 else ""
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:  # noqa: ANN401
    names = ", ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {_kind(option)}"


def _kind(option: Any) -> str:  # noqa: ANN401
    told = str(option.type_descriptor.annotation)
    return next((word for kind, word in (("int", "N"), ("float", "X"), ("Path", "PATH")) if kind in told), "TEXT")


def _default(option: Any) -> str:  # noqa: ANN401
    """What holds where it is not given; nothing where the help says it, or where there is none."""
    value = option.default
    return "" if value is None or isinstance(value, bool) or not str(value) else f"`{value}`"


def _plain(text: str) -> str:
    """In one line of a table: marks of the table and of HTML are meant as they stand."""
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"([|<>*_\[\]])", r"\\\1", text)
