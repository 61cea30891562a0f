"""The values that the steps of a run pass on: a batch, its groups, their lessons."""

from dataclasses import dataclass

from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.gate.protocol import Decision, Measured
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.rollout import Group, Rollout
from tfgrpo_dspy.sampling.demos import Additions

TEACHING = ("contrast", "failure analysis", "no ground truth")
"""The uses of a group that is sent to ExtractAdvantage."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The examples (positions in the training set) of one update.

    Its rollouts are made with the library of `decision`, which lacks at most the last
    `max_staleness` updates; `best` are the best rollouts by then, for making demos. A draft has no
    examples: its lessons come from labels.
    """

    update: int
    epoch: int
    examples: tuple[int, ...]
    decision: Decision
    is_draft: bool = False
    best: tuple[Rollout, ...] = ()

    @property
    def library(self) -> ExperienceLibrary:
        """The library that its rollouts are made with."""
        return self.decision.library


@dataclass(frozen=True, slots=True)
class SampledGroup:
    """A group, and what each of `group.all_rollouts` was given: some lack what is on trial."""

    group: Group
    given: tuple[Additions, ...]

    def measured(self, floor: float) -> list[Measured]:
        """The scores of its rollouts as gates see them.

        A failed rollout counts as the `floor`: the advice may be to blame. Where the provider or
        the worker failed, there is no score.
        """
        found = []
        for given, rollout in zip(self.given, self.group.all_rollouts, strict=True):
            failed = rollout.failure and rollout.failure.kind not in ("provider", "worker")
            score = floor if failed else rollout.score
            found.append(Measured(given.library, self.group.example, score, bool(given.demos)))
        return found


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a batch teaches: lessons; refused texts with reasons; the `used_as` of each group."""

    lessons: tuple[Lesson, ...]
    refused: tuple[str, ...]
    groups: tuple[SampledGroup, ...] = ()
    uses: tuple[str, ...] = ()

    @property
    def rollouts(self) -> list[Rollout]:
        """All rollouts of its groups."""
        return [rollout for sampled in self.groups for rollout in sampled.group.all_rollouts]
