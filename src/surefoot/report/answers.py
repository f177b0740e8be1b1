"""What was answered to the images, read from beside the records; what is not there any more is noted, never an error."""

from __future__ import annotations

from collections.abc import Mapping
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
        self._found: dict[str, Mapping[str, Answers]] = {}

    def test(self, evaluation: Evaluation) -> Answers | None:
        """The answers to the ID test images, or None if there are none to be had."""
        return self.all(evaluation).get("test")

    def all(self, evaluation: Evaluation) -> Mapping[str, Answers]:
        """{evaluation set: answers}, without sets that hold no image; nothing if there are none to be had."""
        name = evaluation.answers
        if name not in self._found:
            self._found[name] = self._load(name)
            if "test" not in self._found[name]:
                self.missing.append(name)
        return self._found[name]

    def _load(self, name: str) -> Mapping[str, Answers]:
        try:
            return {of: given for of, given in load_answers(self.folder, name).items() if len(given.label)}
        except DataError:
            return {}
