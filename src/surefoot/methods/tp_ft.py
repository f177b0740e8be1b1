"""TP-FT: text-prompt initialised fine-tuning, the baseline that others call FT or full fine-tuning."""

from __future__ import annotations

from surefoot.methods.terms import cross_entropy
from surefoot.objective import Method, Objective, Stage


def tp_ft() -> Method:
    """Cross-entropy on the image tower and a linear head that starts as the zero-shot head.

        L = CE(W^T f(x), y),   W at the start = scale * W_cls, bias 0

    The text tower stays as it was; the trained head answers. Unseen classes are answered by the text tower's prompts.

    Needs: image, label.
    Relations: FT starts from a random head, LP-FT from a trained one; L2-SP adds a pull towards the start; FLYP trains as CLIP was trained.

    References:
        Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, section 3 ("end-to-end fine-tuning", head from text prompts).
    """
    return Method(
        name="tp_ft", stages=(Stage(objective=Objective((cross_entropy(),)), trains=("visual", "head"), head="zero_shot"),), predict="head"
    )
