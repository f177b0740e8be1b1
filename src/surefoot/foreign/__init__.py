"""Checkpoints of other code, read without running any of it, and written as model folders of our own."""

from surefoot.foreign.convert import Imported, convert

__all__ = ["Imported", "convert"]
