"""Strategies: ways to learn more from the same calls; `base` says what one may decide.

docs/strategies.md says which problem calls for which strategy, and how to write one.
"""

from tfgrpo_dspy.sampling.replay import replay_only
from tfgrpo_dspy.strategies.attribution_prior import AttributionPrior
from tfgrpo_dspy.strategies.base import (
    Ask,
    Attempt,
    BatchPlan,
    Credit,
    GroupContext,
    Play,
    Proposed,
    Scored,
    Shown,
    Strategy,
    UpdateContext,
)
from tfgrpo_dspy.strategies.bayesian_allocation import BayesianAllocation
from tfgrpo_dspy.strategies.branching_rollouts import BranchingRollouts
from tfgrpo_dspy.strategies.clipped_diversity import ClippedDiversity
from tfgrpo_dspy.strategies.conflict_aware import ConflictAware
from tfgrpo_dspy.strategies.domain_bandit import DomainBandit
from tfgrpo_dspy.strategies.extrapolate import Extrapolate
from tfgrpo_dspy.strategies.global_constraint import GlobalConstraint
from tfgrpo_dspy.strategies.hard_sample_weights import HardSampleWeights
from tfgrpo_dspy.strategies.implicit_step_rewards import ImplicitStepRewards
from tfgrpo_dspy.strategies.induction import Induction
from tfgrpo_dspy.strategies.information_gain import InformationGain
from tfgrpo_dspy.strategies.learning_frontier import LearningFrontier
from tfgrpo_dspy.strategies.monte_carlo_credit import MonteCarloCredit
from tfgrpo_dspy.strategies.objectives import Objectives
from tfgrpo_dspy.strategies.state_tasks import StateTasks
from tfgrpo_dspy.strategies.step_order import StepOrder
from tfgrpo_dspy.strategies.teacher_marks import TeacherMarks
from tfgrpo_dspy.strategies.teacher_rollouts import TeacherRollouts
from tfgrpo_dspy.strategies.tiered_hints import TieredHints

__all__ = [
    "Ask", "Attempt", "AttributionPrior", "BatchPlan", "BayesianAllocation", "BranchingRollouts",
    "ClippedDiversity", "ConflictAware", "Credit", "DomainBandit", "Extrapolate",
    "GlobalConstraint", "GroupContext", "HardSampleWeights", "ImplicitStepRewards", "Induction",
    "InformationGain", "LearningFrontier", "MonteCarloCredit", "Objectives", "Play", "Proposed",
    "Scored", "Shown", "StateTasks", "StepOrder", "Strategy", "TeacherMarks", "TeacherRollouts",
    "TieredHints", "UpdateContext", "replay_only",
]  # fmt: skip
