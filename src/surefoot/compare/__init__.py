"""Methods x seeds x alpha on one data set, as records."""

from surefoot.compare.comparison import Comparison, check_room, description, evaluation, weights_file
from surefoot.compare.conclusions import choices, difference, differences
from surefoot.compare.plan import Plan, Watcher

__all__ = [
    "Comparison",
    "Plan",
    "Watcher",
    "check_room",
    "choices",
    "description",
    "difference",
    "differences",
    "evaluation",
    "weights_file",
]
