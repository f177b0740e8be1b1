"""Loss functions: features and logits in, a scalar out.

Every function is pure and takes `scale` = exp(logit_scale), never the parameter. Features are l2-normalised by the caller.

    image_text      contrastive, supervised_contrastive, sigmoid_contrastive                images with the texts of the batch
    classification  cross_entropy                                                           logits with class ids
    distillation    context_kl, similarity_distillation                                     the model with the pre-trained one
    discrepancies   context_mmd, context_wasserstein                                        the same, knowing which contexts are alike
    distances       half_squared_distance, half_squared_norm                                parameters with their start, or with zero
"""

from surefoot.losses.classification import cross_entropy
from surefoot.losses.discrepancies import context_mmd, context_wasserstein
from surefoot.losses.distances import half_squared_distance, half_squared_norm
from surefoot.losses.distillation import context_kl, similarity_distillation
from surefoot.losses.image_text import contrastive, sigmoid_contrastive, supervised_contrastive

__all__ = [
    "context_kl",
    "context_mmd",
    "context_wasserstein",
    "contrastive",
    "cross_entropy",
    "half_squared_distance",
    "half_squared_norm",
    "sigmoid_contrastive",
    "similarity_distillation",
    "supervised_contrastive",
]
