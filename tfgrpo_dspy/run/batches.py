"""The values that the steps of a run pass on: a batch, its groups, their lessons."""

from dataclasses import dataclass

from tfgrpo_dspy.budget.account import Amount
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.gate.protocol import Decision
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.scores import NO_SCORES, ScoreRange

TEACHING = ("contrast", "failure analysis", "no ground truth")
"""The uses of a group that is sent to ExtractAdvantage."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The examples (positions in the training set) of one update.

    Its rollouts are made with the library of `decision`, which lacks at most the last
    `max_staleness` updates; `best` are the best rollouts by then, for making demos, and `known` is
    the range of the scores by then (`measured`: of the metric's, where strategies change those).
    `n_decided` updates were decided by then. `sizes` are the numbers of rollouts of the examples,
    `visits` how many earlier batches had each of them, `planned` is what each rollout was expected
    to take. A draft has no examples: its lessons come from labels.
    """

    update: int
    epoch: int
    examples: tuple[int, ...]
    decision: Decision
    is_draft: bool = False
    best: tuple[Rollout, ...] = ()
    sizes: tuple[int, ...] = ()
    visits: tuple[int, ...] = ()
    n_decided: int = 0
    asks_predictors: bool = False
    known: ScoreRange = NO_SCORES
    measured: ScoreRange = NO_SCORES
    planned: Amount | None = None

    def size_and_visit(self, example: int) -> tuple[int, int]:
        """How many rollouts the example gets here, and how many batches it was in before."""
        place = self.examples.index(example)
        return self.sizes[place], self.visits[place]

    @property
    def library(self) -> ExperienceLibrary:
        """The library that its rollouts are made with."""
        return self.decision.library


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a batch teaches: lessons; refused texts with reasons; the `used_as` of each group."""

    lessons: tuple[Lesson, ...]
    refused: tuple[str, ...]
    groups: tuple[SampledGroup, ...] = ()
    uses: tuple[str, ...] = ()

    @property
    def rollouts(self) -> list[Rollout]:
        """All rollouts of its groups, and those that helped to value their steps."""
        return [
            rollout
            for sampled in self.groups
            for rollout in (*sampled.group.all_rollouts, *sampled.probes)
        ]
