"""Strategies: ways to learn more from the same calls; `base` says what one may decide.

docs/strategies.md says which problem calls for which strategy, and how to write one.
"""

# isort: skip_file
from tfgrpo_dspy.sampling.one_rollout import replay_only
from tfgrpo_dspy.strategies.base import (
    Ask, Attempt, BatchPlan, Credit, GroupContext, Play, Proposed, Scored, Shown, Strategy,
    UpdateContext,
)  # fmt: skip
from tfgrpo_dspy.strategies.evidence import (
    AttributionPrior, BranchingRollouts, ConflictAware, ImplicitStepRewards, Induction,
    InformationGain, MonteCarloCredit, TeacherMarks,
)  # fmt: skip
from tfgrpo_dspy.strategies.attempts import (
    ClippedDiversity, DomainBandit, GlobalConstraint, HardSampleWeights, LearningFrontier,
    Objectives, StepOrder, TeacherRollouts, TieredHints,
)  # fmt: skip

__all__ = [
    "Ask", "Attempt", "AttributionPrior", "BatchPlan", "BranchingRollouts",
    "ClippedDiversity", "ConflictAware", "Credit", "DomainBandit",
    "GlobalConstraint", "GroupContext", "HardSampleWeights", "ImplicitStepRewards", "Induction",
    "InformationGain", "LearningFrontier", "MonteCarloCredit", "Objectives", "Play", "Proposed",
    "Scored", "Shown", "StepOrder", "Strategy", "TeacherMarks", "TeacherRollouts",
    "TieredHints", "UpdateContext", "replay_only",
]  # fmt: skip
