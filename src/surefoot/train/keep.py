"""Which epoch's weights are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from surefoot.metrics import Score
from surefoot.train.settings import Keep
from surefoot.train.state import State


class Keeper:
    """Holds the weights of every epoch that may still be chosen.

    "best": the first of those with the highest score. "one_standard_error": the first whose score is not below the best score minus
    that score's standard error; an epoch that once fell below stays out, even if a later best has a larger error. "last": the newest.
    Of the epochs that may still be chosen only those are held that beat all held before them: no other can ever become the first.

    Examples:
        >>> from surefoot.metrics import Score
        >>> keeper = Keeper("one_standard_error")
        >>> for epoch, value in enumerate([0.5, 0.79, 0.8], start=1):
        ...     keeper.see(epoch, Score(value, 0.02), dict)
        >>> keeper.epoch
        2
    """

    def __init__(self, rule: Keep) -> None:
        self.rule = rule
        self.scores: dict[int, Score] = {}
        self.weights: dict[int, State] = {}

    def see(self, epoch: int, score: Score, snapshot: Callable[[], Mapping[str, Tensor]]) -> None:
        """Note an epoch; `snapshot` copies the trained weights and is called only if they may be needed."""
        self.scores[epoch] = score
        keep = self._candidates()
        self.weights = {kept: weights for kept, weights in self.weights.items() if kept in keep}
        if epoch in keep and self.rule != "last":  # the last weights are those that the model holds
            self.weights[epoch] = dict(snapshot())

    def put_back(self, scores: Mapping[int, Sequence[float]], kept: Mapping[str, Tensor]) -> None:
        """What was seen before an interruption: {epoch: score and its error}, and the weights "EPOCH.NAME" that were held."""
        self.scores = {epoch: Score(*score) for epoch, score in scores.items()}
        for name, tensor in kept.items():
            epoch, _, parameter_name = name.partition(".")
            self.weights.setdefault(int(epoch), {})[parameter_name] = tensor

    @property
    def epoch(self) -> int:
        """The epoch that is chosen among those seen."""
        return self._candidates()[0]

    def _candidates(self) -> list[int]:
        newest = max(self.scores)
        if self.rule == "last":
            return [newest]
        best = max(self.scores.values(), key=lambda score: score.value)
        floor, found = best.value - (best.error if self.rule == "one_standard_error" else 0.0), list[int]()
        for epoch in sorted({*self.weights, newest}):
            if self.scores[epoch].value >= floor and (not found or self.scores[epoch].value > self.scores[found[-1]].value):
                found.append(epoch)
        return found
