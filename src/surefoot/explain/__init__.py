"""What a model looks at, and which context it sees: heat maps of attention, contexts, and the images that are shown."""

from surefoot.explain.attention import relevance, rollout

__all__ = ["relevance", "rollout"]
