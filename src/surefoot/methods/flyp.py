"""FLYP: fine-tune like you pre-train."""

from __future__ import annotations

from surefoot.methods.terms import contrastive
from surefoot.objective import Method, Objective, Stage


def flyp() -> Method:
    """CLIP's own contrastive loss between images and prompts of their classes; both towers and logit_scale train.

        L = 1/2 [ -1/B sum_i log softmax_j(scale f(x_i).g(t_j))_i  -  1/B sum_i log softmax_j(scale f(x_j).g(t_i))_i ]

    For each image one prompt t_i is drawn uniformly from the templates of its class. Items of one class stay each other's negatives.
    The zero-shot head, rebuilt from the trained text tower over all templates, answers.

    Needs: image, prompt.
    Relations: with the text tower frozen and the loss taken over classes it is TP-FT without a free head.
    Differences: the printed eq. 1 sums over the batch; this follows the release and takes means.

    References:
        Goyal et al., "Finetune like you pretrain: improved finetuning of zero-shot vision models", CVPR 2023, eq. 1, algorithm 1.
    """
    stage = Stage(objective=Objective((contrastive("prompt"),)), trains=("visual", "text", "logit_scale"), head="from_text")
    return Method(name="flyp", stages=(stage,), predict="text")
