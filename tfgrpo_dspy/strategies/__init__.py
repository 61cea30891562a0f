"""Strategies: ways to learn more from the same calls; `base` says what one may decide.

docs/strategies.md says which problem calls for which strategy, and how to write one.
"""

from tfgrpo_dspy.strategies.attribution_prior import AttributionPrior
from tfgrpo_dspy.strategies.base import (
    Ask,
    Attempt,
    BatchPlan,
    GroupContext,
    Proposed,
    Scored,
    Shown,
    Strategy,
    UpdateContext,
)
from tfgrpo_dspy.strategies.bayesian_allocation import BayesianAllocation
from tfgrpo_dspy.strategies.clipped_diversity import ClippedDiversity
from tfgrpo_dspy.strategies.conflict_aware import ConflictAware
from tfgrpo_dspy.strategies.domain_bandit import DomainBandit
from tfgrpo_dspy.strategies.extrapolate import Extrapolate
from tfgrpo_dspy.strategies.global_constraint import GlobalConstraint
from tfgrpo_dspy.strategies.hard_sample_weights import HardSampleWeights
from tfgrpo_dspy.strategies.learning_frontier import LearningFrontier
from tfgrpo_dspy.strategies.objectives import Objectives
from tfgrpo_dspy.strategies.step_order import StepOrder
from tfgrpo_dspy.strategies.teacher_rollouts import TeacherRollouts
from tfgrpo_dspy.strategies.tiered_hints import TieredHints

__all__ = [
    "Ask", "Attempt", "AttributionPrior", "BatchPlan", "BayesianAllocation", "ClippedDiversity",
    "ConflictAware", "DomainBandit", "Extrapolate", "GlobalConstraint", "GroupContext",
    "HardSampleWeights", "LearningFrontier", "Objectives", "Proposed", "Scored", "Shown",
    "StepOrder", "Strategy",
    "TeacherRollouts", "TieredHints", "UpdateContext",
]  # fmt: skip
