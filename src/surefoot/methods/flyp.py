"""FLYP: fine-tune like you pre-train."""

from __future__ import annotations

from surefoot.errors import SettingError
from surefoot.methods.terms import contrastive, supervised_contrastive, text_cross_entropy
from surefoot.objective import Method, Objective, Stage

PRE_TRAINED = ("visual", "text", "logit_scale", "logit_bias")  # the bias where the model has one


def flyp(
    *, frozen_text: bool = False, single_template: bool = False, mask_collisions: bool = False, cross_entropy_weight: float = 0.0
) -> Method:
    """CLIP's own contrastive loss between images and prompts of their classes; both towers and logit_scale train.

        L = 1/2 [ -1/B sum_i log softmax_j(scale f(x_i).g(t_j))_i  -  1/B sum_i log softmax_j(scale f(x_j).g(t_i))_i ]

    For each image one prompt t_i is drawn uniformly from the templates of its class. Items of one class stay each other's negatives.
    The zero-shot head, rebuilt from the trained text tower over all templates, answers.

    Args:
        frozen_text: only the image tower and logit_scale train (section 5; worse in the paper).
        single_template: always the data's first template (section 5).
        mask_collisions: items of one class are no negatives of each other (section 5; worse in the paper).
        cross_entropy_weight: of FLYP-CE's loss, added (appendix A); it draws one prompt of every class at each step.

    Raises:
        SettingError: a negative weight.

    Needs: image, prompt (first_prompt with a single template), label where collisions are masked or cross-entropy is added, class_prompt
        for the latter.
    Relations: `flyp_ce` takes the same texts as the rows of a classifier; `arf` adds anchors.
    Differences: a model with a logit bias was pre-trained with SigLIP's sigmoid loss; it is fine-tuned with that one, its bias trained too.
        The printed eq. 1 sums over the batch; this follows the release and takes means.

    References:
        Goyal et al., "Finetune like you pretrain: improved finetuning of zero-shot vision models", CVPR 2023, eq. 1, algorithm 1.
    """
    if cross_entropy_weight < 0:
        raise SettingError(f"cross_entropy_weight is {cross_entropy_weight}; it must be 0 or more. 0 is FLYP itself.")
    text = "first_prompt" if single_template else "prompt"
    contrast = supervised_contrastive(text) if mask_collisions else contrastive(text)
    objective = contrast + cross_entropy_weight * text_cross_entropy("first_class_prompt" if single_template else "class_prompt")
    trains = tuple(group for group in PRE_TRAINED if group != "text") if frozen_text else PRE_TRAINED
    return Method(name="flyp", stages=(Stage(objective=objective, trains=trains, head="from_text"),), predict="text")


def flyp_ce(*, label_smoothing: float = 0.0, logit_adjustment: float = 0.0) -> Method:
    """FLYP's ablation: cross-entropy over the live text head, both towers and logit_scale training.

        L = CE(scale f(x).g(t_c) over all classes c, y),   t_c = one prompt of class c, drawn anew at every step

    Args:
        label_smoothing: weight of the uniform distribution in the targets; 0 in the paper.
        logit_adjustment: tau of the logit adjustment for unbalanced classes; 0 in the paper.

    Needs: image, label, class_prompt.
    Relations: `flyp` contrasts within the batch instead of with all classes; `tp_ft` trains a free head instead of the text tower.

    References:
        Goyal et al., "Finetune like you pretrain: improved finetuning of zero-shot vision models", CVPR 2023, section 5 ("FLYP-CE").
    """
    objective = Objective((text_cross_entropy("class_prompt", label_smoothing, logit_adjustment),))
    stage = Stage(objective=objective, trains=("visual", "text", "logit_scale"), head="from_text")
    return Method(name="flyp_ce", stages=(stage,), predict="text")
