"""The settings of a method, chosen on ID validation and nothing else."""

from surefoot.tune.choice import choose
from surefoot.tune.search import Tuned, Watcher, search, train_and_val
from surefoot.tune.space import Between, OneOf, Range, default_space, parse_space
from surefoot.tune.trials import FILE as TRIALS
from surefoot.tune.trials import Run, Trial

__all__ = [
    "TRIALS",
    "Between",
    "OneOf",
    "Range",
    "Run",
    "Trial",
    "Tuned",
    "Watcher",
    "choose",
    "default_space",
    "parse_space",
    "search",
    "train_and_val",
]
