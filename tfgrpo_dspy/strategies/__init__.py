"""Strategies: ways to learn more from the same calls; `base` says what one may decide.

docs/strategies.md says which problem calls for which strategy, and how to write one.
"""

from tfgrpo_dspy.strategies.base import (
    Ask,
    Attempt,
    BatchPlan,
    GroupContext,
    Proposed,
    Scored,
    Strategy,
    UpdateContext,
)

__all__ = [
    "Ask",
    "Attempt",
    "BatchPlan",
    "GroupContext",
    "Proposed",
    "Scored",
    "Strategy",
    "UpdateContext",
]
