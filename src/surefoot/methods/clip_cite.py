"""CLIP-CITE: fine-tuning of both towers with few images."""

from __future__ import annotations

from typing import Literal

from surefoot.errors import SettingError
from surefoot.methods.terms import cross_entropy, similarity_distillation, supervised_contrastive
from surefoot.methods.wise_ft import REPORTED
from surefoot.objective import Method, Objective, Stage


def clip_cite(
    *,
    alignment_weight: float = 1.0,
    contrastive_weight: float = 0.7,
    distillation_weight: float = 0.1,
    frozen: Literal["nothing", "classifier", "text"] = "nothing",
    positive_in_denominator: bool = True,
    reverse_distillation: bool = False,
    single_template: bool = False,
    label_smoothing: float = 0.0,
    logit_adjustment: float = 0.0,
) -> Method:
    """Discriminative visual-text alignment, supervised contrast, and distillation of similarities; then WiSE-FT of both towers.

        L = L_DVA + lambda L_SCL + eta L_VLD

        L_DVA = CE(W^T f(x), y),   W at the start = scale * W_cls; its gradient reaches the image tower and W only
        L_SCL = contrast of images and prompts in both directions, in which other items of the same class are no negatives
        L_VLD = KL(p || p_0),   p over the batch's image-to-text similarities, p_0 that of the pre-trained towers

    The zero-shot head, rebuilt from the (merged) text tower, answers; W does not, so that unseen classes work. logit_scale is frozen.

    Args:
        alignment_weight: of L_DVA; 1 in the paper, 0 for the other losses alone (table 4).
        contrastive_weight: lambda; 0.7 in the paper.
        distillation_weight: eta; 0.1 in the paper.
        frozen: "nothing" (ALL), "classifier" (FrozenTC: W stays the text embeddings), "text" (FrozenTE: the text tower stays; fig. 4).
        positive_in_denominator: the positive counts in L_SCL's denominator, as the text says and eq. 4 does not.
        reverse_distillation: KL(p_0 || p) instead of the printed order.
        single_template: L_SCL and L_VLD take the data's first template, not one drawn for each image. The paper's data have one anyway.
        label_smoothing: weight of the uniform distribution in L_DVA's targets; 0 in the paper.
        logit_adjustment: tau of L_DVA's logit adjustment; 0 in the paper.

    Raises:
        SettingError: a negative weight, or nothing to minimise.

    Needs: image, label, prompt (or first_prompt), reference.
    Relations: with lambda = eta = 0 the image tower of `tp_ft`, bit for bit; with L_SCL alone at lambda = 0.5 and no class twice in a
        batch, `flyp` with a frozen scale.
    Differences: the printed losses are sums over the batch, here they are means, all three alike. L_SCL is the sum of its two directions,
        as printed. The paper freezes FrozenTE's text tower in eq. 4; here it is frozen in eq. 5 too.

    References:
        Liu, Li, Yu, "Fully fine-tuned CLIP models are efficient few-shot learners", arXiv 2024, eqs. 2-7.
    """
    weights = {"alignment_weight": alignment_weight, "contrastive_weight": contrastive_weight, "distillation_weight": distillation_weight}
    if min(weights.values()) < 0 or not any(weights.values()):
        raise SettingError(f"The weights are {weights}; each must be 0 or more, and one of them above 0.")
    text = "first_prompt" if single_template else "prompt"
    objective = Objective((alignment_weight * cross_entropy(label_smoothing, logit_adjustment),))
    objective += 2 * contrastive_weight * supervised_contrastive(text, positive_in_denominator)  # eq. 4 sums what the loss averages
    objective += distillation_weight * similarity_distillation(text, reverse_distillation)
    head = ("head",) if alignment_weight and frozen != "classifier" else ()
    tower = ("text",) if (contrastive_weight or distillation_weight) and frozen != "text" else ()
    stage = Stage(objective=objective, trains=("visual", *tower, *head), head="zero_shot")
    return Method(name="clip_cite", stages=(stage,), predict="text", finish=REPORTED)
