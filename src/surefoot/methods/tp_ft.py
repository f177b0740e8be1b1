"""TP-FT: text-prompt initialised fine-tuning, the baseline that others call FT or full fine-tuning; and FT from a random head."""

from __future__ import annotations

from surefoot.methods.terms import cross_entropy
from surefoot.objective import Method, Objective, Stage


def tp_ft(*, label_smoothing: float = 0.0, logit_adjustment: float = 0.0) -> Method:
    """Cross-entropy on the image tower and a linear head that starts as the zero-shot head.

        L = CE(W^T f(x), y),   W at the start = scale * W_cls, bias 0

    The text tower stays as it was; the trained head answers. Unseen classes are answered by the text tower's prompts.

    Args:
        label_smoothing: weight of the uniform distribution in the targets; 0 in the papers.
        logit_adjustment: tau of the logit adjustment for unbalanced classes; 0 in the papers.

    Needs: image, label.
    Relations: `ft` starts from a random head, `lp_ft` from a trained one; `l2_sp` adds a pull towards the start; `flyp` trains as CLIP was.

    References:
        Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, section 3 ("end-to-end fine-tuning", head from text prompts).
    """
    objective = Objective((cross_entropy(label_smoothing, logit_adjustment),))
    return Method(name="tp_ft", stages=(Stage(objective=objective, trains=("visual", "head"), head="zero_shot"),), predict="head")


def ft(*, label_smoothing: float = 0.0, logit_adjustment: float = 0.0) -> Method:
    """Cross-entropy on the image tower and a linear head that starts at random.

        L = CE(W^T f(x), y),   W at the start = scale * random directions, bias 0

    What fine-tuning was before text prompts: the head's random start distorts the features that are learnt first.

    Args:
        label_smoothing: weight of the uniform distribution in the targets; 0 in the papers.
        logit_adjustment: tau of the logit adjustment for unbalanced classes; 0 in the papers.

    Needs: image, label.
    Relations: `tp_ft` but for the head's start. At WiSE-FT's alpha 0 stands the zero-shot head, as for every method.
    Differences: the papers do not say how the head is drawn; here each class gets a random direction of the length that a zero-shot head's
        row has, so that logits have the pre-trained size from the first step.

    References:
        Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", ICLR 2022 ("FT").
    """
    objective = Objective((cross_entropy(label_smoothing, logit_adjustment),))
    return Method(name="ft", stages=(Stage(objective=objective, trains=("visual", "head"), head="random"),), predict="head")
