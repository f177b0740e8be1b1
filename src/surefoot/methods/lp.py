"""LP and LP-FT: a linear probe on frozen features, and fine-tuning that starts from it."""

from __future__ import annotations

from typing import Literal

from surefoot.errors import SettingError
from surefoot.methods.terms import cross_entropy, head_norm
from surefoot.objective import Method, Objective, Stage

L2 = (1e-3, 1e-4, 1e-5, 1e-6, 0.0)


def lp(
    *,
    l2: tuple[float, ...] = L2,
    head: Literal["zero_shot", "random"] = "zero_shot",
    head_learning_rate: float = 0.1,
    head_epochs: int = 20,
    label_smoothing: float = 0.0,
    logit_adjustment: float = 0.0,
) -> Method:
    """A linear head on the frozen image tower; ID validation chooses the strength of its l2 penalty.

        L = CE(W^T f(x), y) + l2/2 ||W||^2

    Features are computed once, without augmentation. Unseen classes and contexts are answered as by the zero-shot model, exactly.

    Args:
        l2: strengths tried, each from the same start; the strongest within one standard error of the best is kept.
        head: where it starts.
        head_learning_rate: peak of its schedule, in units of the head's weight, which holds the scale.
        head_epochs: passes over the features.
        label_smoothing: weight of the uniform distribution in the targets.
        logit_adjustment: tau of the logit adjustment for unbalanced classes.

    Raises:
        SettingError: no strength, or a negative one.

    Needs: image, label.
    Relations: the first stage of `lp_ft`. Interpolating its head with the zero-shot head averages the two models' logits.

    References:
        Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, section 3 ("linear classifier").
    """
    stage = _probe(l2, head, head_learning_rate, head_epochs, label_smoothing, logit_adjustment)
    return Method(name="lp", stages=(stage,), predict="head")


def lp_ft(
    *,
    l2: tuple[float, ...] = L2,
    head: Literal["zero_shot", "random"] = "zero_shot",
    head_learning_rate: float = 0.1,
    head_epochs: int = 20,
    label_smoothing: float = 0.0,
    logit_adjustment: float = 0.0,
) -> Method:
    """Stage 1: the linear probe of `lp`. Stage 2: image tower and head together, from the probe's head.

    A head that fits the features first leaves them less reason to be distorted.

    Args:
        l2: strengths tried in stage 1.
        head: where stage 1 starts.
        head_learning_rate: of stage 1.
        head_epochs: of stage 1.
        label_smoothing: weight of the uniform distribution in the targets, in both stages.
        logit_adjustment: tau of the logit adjustment for unbalanced classes, in both stages.

    Raises:
        SettingError: no strength, or a negative one.

    Needs: image, label.
    Relations: `tp_ft` but for the head's start.

    References:
        Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", ICLR 2022, section 3.3.
    """
    probe = _probe(l2, head, head_learning_rate, head_epochs, label_smoothing, logit_adjustment)
    objective = Objective((cross_entropy(label_smoothing, logit_adjustment),))
    return Method(name="lp_ft", stages=(probe, Stage(objective=objective, trains=("visual", "head"), head="keep")), predict="head")


def _probe(
    l2: tuple[float, ...], head: Literal["zero_shot", "random"], rate: float, epochs: int, smoothing: float, adjustment: float
) -> Stage:
    if not l2 or min(l2) < 0:
        raise SettingError(f"l2 is {list(l2)}; it must be a list of strengths of 0 or more. Write one to fix it, such as l2=[1e-5].")
    if rate <= 0 or epochs < 1:
        raise SettingError(f"head_learning_rate is {rate} and head_epochs is {epochs}; they must be above 0, and 1 or more.")
    candidates = {
        f"l2={strength:g}": cross_entropy(smoothing, adjustment) + strength * head_norm() for strength in sorted(set(l2), reverse=True)
    }
    return Stage(
        objective=next(iter(candidates.values())),
        trains=("head",),
        head=head,
        candidates=candidates,
        # the l2 penalty is all that holds the head: decay beside it would make the weakest strength, 0, the strongest
        training={"learning_rate": rate, "epochs": epochs, "steps": None, "keep": "last", "weight_decay": 0.0},
    )
