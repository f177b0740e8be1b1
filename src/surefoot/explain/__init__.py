"""What a model looks at, and which context it sees: maps of attention, contexts, and the images that are shown."""

from surefoot.explain.attention import relevance, rollout
from surefoot.explain.choice import chosen, some
from surefoot.explain.showing import FOLDER, Pick, check_folder, picks, show
from surefoot.explain.views import Question, Version, View, generic_contexts, views

__all__ = [
    "FOLDER",
    "Pick",
    "Question",
    "Version",
    "View",
    "check_folder",
    "chosen",
    "generic_contexts",
    "picks",
    "relevance",
    "rollout",
    "show",
    "some",
    "views",
]
