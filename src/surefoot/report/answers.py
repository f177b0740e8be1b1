"""What was answered to the ID test images, read from beside the records; what is not there any more is noted, never an error."""

from __future__ import annotations

from pathlib import Path

from surefoot.errors import DataError
from surefoot.records import Answers, Evaluation, load_answers


class Stored:
    """The answers in a records' folder, each file read once.

    Attributes:
        missing: the files that could not be read, or that hold no answers to the ID test set, in the order they were asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing: list[str] = []
        self._found: dict[str, Answers | None] = {}

    def test(self, evaluation: Evaluation) -> Answers | None:
        """The answers to the ID test images, or None if there are none to be had."""
        name = evaluation.answers
        if name not in self._found:
            self._found[name] = self._load(name)
            if self._found[name] is None:
                self.missing.append(name)
        return self._found[name]

    def _load(self, name: str) -> Answers | None:
        try:
            found = load_answers(self.folder, name).get("test")
        except DataError:
            return None
        return found if found is not None and len(found.label) else None
