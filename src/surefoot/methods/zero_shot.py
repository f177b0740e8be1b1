"""Zero-shot: the pre-trained model and its text prompts, nothing trained."""

from __future__ import annotations

from surefoot.objective import Method


def zero_shot() -> Method:
    """The model as it was pre-trained.

    Every prompt embedding is normalised, averaged over templates and normalised again; the class with the most similar text wins.

    Relations: what every other method becomes at WiSE-FT's alpha = 0.

    References:
        Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021, section 3.1.
    """
    return Method(name="zero_shot", stages=(), predict="text")
