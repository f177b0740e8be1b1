"""What a model answered in, numbers out."""

from surefoot.metrics.answered import (
    By,
    Confusion,
    Correct,
    Ids,
    Score,
    accuracy,
    checked,
    confusions,
    harmonic_mean,
    macro_f1,
    mean_per_class,
    one_standard_error,
    score,
    standard_error,
    worst_group,
)
from surefoot.metrics.calibration import Bin, expected_calibration_error, overconfidence, reliability
from surefoot.metrics.changes import Change, change

__all__ = [
    "Bin",
    "By",
    "Change",
    "Confusion",
    "Correct",
    "Ids",
    "Score",
    "accuracy",
    "change",
    "checked",
    "confusions",
    "expected_calibration_error",
    "harmonic_mean",
    "macro_f1",
    "mean_per_class",
    "one_standard_error",
    "overconfidence",
    "reliability",
    "score",
    "standard_error",
    "worst_group",
]
