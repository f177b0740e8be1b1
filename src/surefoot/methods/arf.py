"""ARF: fine-tuning held by anchors, texts that say more than the class."""

from __future__ import annotations

from surefoot.errors import SettingError
from surefoot.methods.flyp import PRE_TRAINED
from surefoot.methods.terms import anchor_contrastive, contrastive
from surefoot.objective import Method, Stage


def arf(*, caption_weight: float = 1.0, retrieval_weight: float = 1.0) -> Method:
    """Three symmetric contrastive losses of one form: with class prompts, with captions, and between retrieved image-text pairs.

        L = L_CL + L_Cap + L_Ret

    L_CL is FLYP's. L_Cap takes the same images with captions that a pre-trained captioner wrote (TCAG). L_Ret takes the pairs of a pool
    that the images of the batch retrieved before training, by f_0(image).g_0(text) (ITAR); each pair once in a batch. Both towers and
    logit_scale train; the zero-shot head, rebuilt from the trained text tower over all templates, answers.

    Args:
        caption_weight: of L_Cap; 1 in the paper, 0 for retrieved pairs alone (table 3).
        retrieval_weight: of L_Ret; 1 in the paper, 0 for captions alone (table 3).

    Raises:
        SettingError: a negative weight.

    Needs: image, prompt, caption (by `surefoot caption`), anchor_image and anchor_text (by `surefoot retrieve`).
    Relations: `flyp`, bit for bit, when both weights are 0.
    Differences: eq. 1 prints one denominator twice; f(x_i).g(t_j) and f(x_j).g(t_i) are meant. It sums the two directions, this is their
        mean, and so are the other two losses: the whole is half of what is printed, to which AdamW is indifferent. The paper is silent on
        a pair that several images of a batch retrieved.

    References:
        Han et al., "Anchor-based robust finetuning of vision-language models", CVPR 2024, eqs. 1, 4, 5.
    """
    if caption_weight < 0 or retrieval_weight < 0:
        raise SettingError(f"caption_weight is {caption_weight} and retrieval_weight {retrieval_weight}; both must be 0 or more.")
    objective = contrastive("prompt") + caption_weight * contrastive("caption") + retrieval_weight * anchor_contrastive()
    return Method(name="arf", stages=(Stage(objective=objective, trains=PRE_TRAINED, head="from_text"),), predict="text")
