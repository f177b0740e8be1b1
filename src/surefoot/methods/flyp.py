"""FLYP: fine-tune like you pre-train."""

from __future__ import annotations

from surefoot.methods.terms import contrastive, text_cross_entropy
from surefoot.objective import Method, Objective, Stage

PRE_TRAINED = ("visual", "text", "logit_scale", "logit_bias")  # the bias where the model has one


def flyp() -> Method:
    """CLIP's own contrastive loss between images and prompts of their classes; both towers and logit_scale train.

        L = 1/2 [ -1/B sum_i log softmax_j(scale f(x_i).g(t_j))_i  -  1/B sum_i log softmax_j(scale f(x_j).g(t_i))_i ]

    For each image one prompt t_i is drawn uniformly from the templates of its class. Items of one class stay each other's negatives.
    The zero-shot head, rebuilt from the trained text tower over all templates, answers.

    Needs: image, prompt.
    Relations: `flyp_ce` takes the same texts as the rows of a classifier.
    Differences: a model with a logit bias was pre-trained with SigLIP's sigmoid loss; it is fine-tuned with that one, its bias trained too.
        The printed eq. 1 sums over the batch; this follows the release and takes means.

    References:
        Goyal et al., "Finetune like you pretrain: improved finetuning of zero-shot vision models", CVPR 2023, eq. 1, algorithm 1.
    """
    stage = Stage(objective=Objective((contrastive("prompt"),)), trains=PRE_TRAINED, head="from_text")
    return Method(name="flyp", stages=(stage,), predict="text")


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
