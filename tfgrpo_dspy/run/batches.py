"""The examples of one update, and what came of them so far."""

import math
from dataclasses import dataclass, field

from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.gate import Decision
from tfgrpo_dspy.reflection import Lesson, RefusedLesson
from tfgrpo_dspy.rollout import Group

TEACHING = ("contrast", "failure analysis", "no ground truth")
"""What a group that is sent to ExtractAdvantage is used as."""


@dataclass(slots=True)
class Batch:
    """The examples (positions in the training set) of one update, and what came of them so far.

    Its rollouts are made with the library of `decision`, which is `max_staleness` updates older
    than the last one. `assigned` are the libraries of a group's rollouts, by example, where they
    differ: the gate gives experiences on trial to some of them only, or the rollouts were made
    elsewhere. A draft has no groups: its lessons come from labels. `n_rollouts` are those that the
    run makes for the batch: 0 where they were made elsewhere. `scores` are those of all its
    rollouts, `n_asked` says about how many groups ExtractAdvantage was asked, `n_unread` how many
    of its answers could not be read.
    """

    update: int
    epoch: int
    n_updates: int
    examples: tuple[int, ...]
    decision: Decision
    is_draft: bool = False
    n_rollouts: int = 0
    is_sampled: bool = False
    scores: list[float] = field(default_factory=list)
    assigned: dict[int, tuple[ExperienceLibrary, ...]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    uses: list[str] = field(default_factory=list)
    n_asked: int = 0
    n_unread: int = 0
    lessons: list[Lesson] = field(default_factory=list)
    refused_lessons: list[RefusedLesson] = field(default_factory=list)

    @property
    def library(self) -> ExperienceLibrary:
        """The library that its rollouts are made with."""
        return self.decision.library

    @property
    def best_score(self) -> float:
        """The highest score of its rollouts."""
        return max(self.scores, default=-math.inf)

    @property
    def teaches(self) -> bool:
        """Whether any of its groups was sent to ExtractAdvantage, or labels taught it."""
        return self.is_draft or any(use in TEACHING for use in self.uses)
