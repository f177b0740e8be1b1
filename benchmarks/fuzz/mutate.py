"""Damaged copies of good files: at random places of their bytes, and in the structure of JSON, TOML and safetensors headers."""

from __future__ import annotations

import json
import random
import re
import struct
from typing import Any

NUMBERS = (
    0,
    1,
    -1,
    2**7,
    2**8,
    2**15,
    2**16,
    2**31,
    2**32,
    2**53,
    2**63,
    2**64,
    10**9,
    10**400,
    0.5,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
)
TEXTS = (
    "", " ", "\0", "\n", "\ud800", "\u202e", "\x1b]0;title\x07", "a" * 5000, "../../etc/passwd", "/etc/passwd", "~", "C:\\x",
    "{}", "{}{}", "{0.__class__}",
    "local-dir:/", "hf-hub:a/b", "<script>", "nan", "none", "[1", "a=b", "+", "tp_ft+", "tp_ft+x=1", "shards:0", "é" * 300, "\u0130",
)  # fmt: skip
WORDS = (
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b"'",
    b"\r",
    b"\n",
    b",",
    b"[",
    b"{",
    b"=",
    b"1e999",
    b"nan",
    b"\x7f\xff\xff\xff",
    b"\xff" * 8,
)


def mutated(draw: random.Random, name: str, content: bytes, others: list[bytes]) -> bytes:
    """A damaged copy."""
    if draw.random() < 0.6:
        if name.endswith((".json", ".jsonl")):
            content = _json_lines(draw, content)
        elif name.endswith(".toml"):
            content = _toml(draw, content)
        elif name.endswith(".safetensors"):
            content = _header(draw, content)
        elif name.endswith(".csv"):
            content = _cells(draw, content)
        else:
            content = _bytes(draw, content, others)
        if draw.random() < 0.8:
            return content
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        content = _bytes(draw, content, others)
    return content


def _bytes(draw: random.Random, content: bytes, others: list[bytes]) -> bytes:
    place = draw.randrange(len(content) + 1)
    end = min(len(content), place + draw.choice((1, 2, 4, 16, 200)))
    way = draw.randrange(8)
    if way == 0 and content:
        place = min(place, len(content) - 1)
        return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
    if way == 1:
        return content[:place] + bytes(draw.randrange(256) for _ in range(end - place)) + content[end:]
    if way == 2:
        return content[:place]
    if way == 3:
        return content[:place] + content[place:end] * draw.choice((2, 10, 1000)) + content[end:]
    if way == 4:
        other = draw.choice(others)
        start = draw.randrange(len(other) + 1)
        return content[:place] + other[start : start + draw.choice((8, 100, 10_000))] + content[end:]
    if way == 5:
        number = draw.choice((0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1))
        kind = draw.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
        packed = struct.pack(kind, number & (1 << 8 * struct.calcsize(kind)) - 1)
        return content[:place] + packed + content[place + len(packed) :]
    if way == 6:
        return content[:place] + draw.choice(WORDS) * draw.choice((1, 1, 70, 3000)) + content[place:]
    return content[:place] + content[end:]


def _value(draw: random.Random, depth: int = 0) -> Any:  # noqa: ANN401
    way = draw.randrange(9)
    if way < 3:
        return draw.choice(NUMBERS)
    if way < 6:
        return draw.choice(TEXTS)
    if way == 6 or depth > 2:
        return draw.choice((None, True, False, [], {}))
    if way == 7:
        nested: Any = 1
        for _ in range(draw.choice((2, 50, 70, 200))):
            nested = [nested] if draw.random() < 0.5 else {"a": nested}
        return nested
    return [_value(draw, depth + 1) for _ in range(draw.choice((1, 3, 300)))]


def _changed(draw: random.Random, found: Any) -> Any:  # noqa: ANN401
    """One place of a JSON value replaced, doubled or taken away."""
    if isinstance(found, (dict, list)) and found and draw.random() < 0.85:
        key = draw.choice(list(found) if isinstance(found, dict) else range(len(found)))
        way = draw.random()
        if way < 0.12:
            del found[key]
        elif way < 0.2 and isinstance(found, dict):
            found[str(draw.choice(TEXTS))] = _value(draw)
        else:
            found[key] = _changed(draw, found[key])
        return found
    return _value(draw)


def _json_lines(draw: random.Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    place = draw.randrange(max(1, len(lines) - 1))
    try:
        lines[place] = json.dumps(_changed(draw, json.loads(lines[place]))).encode()
    except ValueError:
        lines[place] = draw.choice(WORDS)
    return b"\n".join(lines)


def _literal(draw: random.Random, value: Any) -> str:  # noqa: ANN401
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {_literal(draw, one)}' for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_literal(draw, one) for one in value) + "]"
    return {None: '"none"', True: "true", False: "false"}.get(value, str(value)) if not isinstance(value, str) else json.dumps(value)


def _toml(draw: random.Random, content: bytes) -> bytes:
    lines = content.decode().split("\n")
    place = draw.randrange(len(lines))
    key = lines[place].partition("=")[0].strip() or "x"
    way = draw.randrange(6)
    if way == 0:
        lines[place] = draw.choice(
            ("[training]", "[[training]]", "[a.b]", "a.b.c = 1", "[" + ".".join("a" * draw.choice((3, 60, 70, 3000))) + "]")
        )
    elif way == 1:
        lines.insert(place, lines[draw.randrange(len(lines))])
    else:
        lines[place] = f"{key} = {_literal(draw, _value(draw))}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _header(draw: random.Random, content: bytes) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    name = draw.choice(list(header))
    way = draw.randrange(5)
    if way == 0:
        header[name]["shape"] = [draw.choice((0, 1, -1, 2**31, 2**62, 2**64, 10**9, 10**30)) for _ in range(draw.randrange(5))]
    elif way == 1:
        header[name]["data_offsets"] = [draw.choice((0, 8, 2**40, 2**64 - 1, -1)) for _ in range(2)]
    elif way == 2:
        header[name]["dtype"] = draw.choice(("F64", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "U8", "C64", "nothing"))
    elif way == 3:
        header[draw.choice(TEXTS)] = header.pop(name)
    else:
        header = _changed(draw, header)
    packed = json.dumps(header).encode()
    return struct.pack("<Q", draw.choice((len(packed), len(packed), len(packed), 0, 2**62))) + packed + content[8 + size :]


def _cells(draw: random.Random, content: bytes) -> bytes:
    lines = content.decode().split("\n")
    place = draw.randrange(len(lines))
    cells = lines[place].split(",")
    cells[draw.randrange(len(cells))] = re.sub("[\ud800-\udfff]", "?", str(_value(draw)))
    lines[place] = ",".join(cells)
    return "\n".join(lines).encode()
