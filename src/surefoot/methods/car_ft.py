"""CAR-FT: fine-tuning that keeps the context of an image recognisable."""

from __future__ import annotations

from typing import Literal

from surefoot.errors import SettingError
from surefoot.methods.terms import context_divergence, cross_entropy
from surefoot.objective import Method, Stage

Contexts = Literal["openai80", "random7", "searched7", "own", "templates"]
Divergence = Literal["kl", "mmd", "wasserstein"]


def car_ft(
    *,
    context_weight: float = 1.0,
    contexts: Contexts = "openai80",
    class_contexts: bool = False,
    divergence: Divergence = "kl",
    context_scale: float | None = None,
    label_smoothing: float = 0.0,
    logit_adjustment: float = 0.0,
) -> Method:
    """Cross-entropy, and a pull of the image's context distribution to the one that the pre-trained model sees.

        L = CE(W_f^T f(x), y) + alpha KL[ p_ctx(x; theta_0) || p_ctx(x; theta) ],   p_ctx(x; theta) = softmax(s W_ctx^T f(x; theta))

    W_ctx has one column a context template: its prompt embeddings, averaged over the classes. It and theta_0 are fixed; the image tower and
    the head W_f train, W_f from the zero-shot head. Both models see the same crop.

    Args:
        context_weight: alpha; 1 in the paper.
        contexts: the templates. CLIP's 80, 7 drawn from them, the 7 that were searched (table 5); "own", the contexts that the data set
            names, as the paper does for DomainBed; "templates", the data set's own prompts. "own" may name the very shifts that are
            measured: report it beside a generic set.
        class_contexts: context prompts of the ground-truth class instead of the mean over classes (section 5).
        divergence: KL, or maximum mean discrepancy or Wasserstein distance over the contexts (section 5).
        context_scale: s; the pre-trained exp(logit_scale) if None. The paper prints none, which would make p_ctx almost uniform.
        label_smoothing: weight of the uniform distribution in the targets; 0 in the paper.
        logit_adjustment: tau of the logit adjustment for unbalanced classes; 0 in the paper.

    Raises:
        SettingError: a negative weight, a scale of 0 or less.

    Needs: image, label, reference, contexts.
    Relations: `tp_ft`, bit for bit, when alpha is 0.

    References:
        Mao, Chen, Jia, Zhang, Xue, Li, "Context-aware robust fine-tuning", IJCV 2024, eqs. 2-6, algorithm 1.
    """
    if context_weight < 0 or (context_scale is not None and context_scale <= 0):
        raise SettingError(f"context_weight is {context_weight} and context_scale {context_scale}; they must be 0 or more, and above 0.")
    context = context_weight * context_divergence(contexts, divergence, context_scale, class_contexts)
    objective = cross_entropy(label_smoothing, logit_adjustment) + context
    return Method(name="car_ft", stages=(Stage(objective=objective, trains=("visual", "head"), head="zero_shot"),), predict="head")
