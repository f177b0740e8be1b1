"""Reference models: the same architecture without pre-training, which say what accuracy under shift an ID accuracy lets expect."""

from __future__ import annotations

from types import MappingProxyType

from surefoot.methods.terms import cross_entropy
from surefoot.objective import Method, Objective, Stage

REFERENCE = "reference"
FROM_SCRATCH = MappingProxyType({"learning_rate": 1e-3})
"""Training settings that a reference has unless it is given others: at a rate for fine-tuning random weights hardly move."""


def reference() -> Method:
    """Cross-entropy on an image tower and a linear head that both start at random.

        L = CE(W^T f(x), y),   f and W at the start random, bias 0

    No pre-trained weight is left in what answers, so it has no zero-shot ability; it is no method to fine-tune with, and not in the table
    of methods. Several of them, trained on different shares of the training images, give the points that
    `robustness.Baseline` is fit to.

    Needs: image, label.
    Relations: `ft` but for the image tower's start.

    References:
        Taori et al., "Measuring robustness to natural distribution shifts in image classification", NeurIPS 2020 (models trained on the
        ID data alone are its baseline).
    """
    objective = Objective((cross_entropy(),))
    stage = Stage(objective=objective, trains=("visual", "head"), head="random", restart=True)
    return Method(name=REFERENCE, stages=(stage,), predict="head")
