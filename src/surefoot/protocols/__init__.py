"""Evaluation: what is asked of a set of weights, and how it is counted."""

from surefoot.protocols.judge import AGREEMENT, Judge, Member, answers
from surefoot.protocols.outcome import MEANS, Outcome, members

__all__ = ["AGREEMENT", "MEANS", "Judge", "Member", "Outcome", "answers", "members"]
