"""What is opened of files that a stranger may have made, and how much of it: texts, records, weights, arrays, places."""

from surefoot.guard.limits import limit
from surefoot.guard.shapes import made
from surefoot.guard.texts import parse_json, parse_toml, read_bytes, read_text

__all__ = ["limit", "made", "parse_json", "parse_toml", "read_bytes", "read_text"]
