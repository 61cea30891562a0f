"""The values that the verbs of the loop pass on: a batch, its groups, what they teach."""

from dataclasses import dataclass

from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.gate.protocol import Decision, Measured
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.rollout import Group, Rollout
from tfgrpo_dspy.sampling.demos import Additions

TEACHING = ("contrast", "failure analysis", "no ground truth")
"""What a group that is sent to ExtractAdvantage is used as."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The examples (positions in the training set) of one update.

    Its rollouts are made with the library of `decision`, which is `max_staleness` updates older
    than the last one; `best` are the best rollouts by then, of which demos are made. A draft has no
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
    """A group, and what each of `group.all_rollouts` was given: not all get what is on trial."""

    group: Group
    given: tuple[Additions, ...]

    def measured(self) -> list[Measured]:
        """The scores of its rollouts as gates see them.

        A rollout that timed out, or whose metric failed, counts as the lowest of the group: the
        advice may be to blame. Where the provider failed, there is no score.
        """
        floor = min([0.0, *self.group.scores])
        scores = {rollout.rollout_id: rollout.score for rollout in self.group.rollouts}
        for rollout in self.group.all_rollouts:
            if rollout.failure is not None and rollout.failure.kind in ("timeout", "metric"):
                scores[rollout.rollout_id] = floor
        found = [scores.get(rollout.rollout_id) for rollout in self.group.all_rollouts]
        return [
            Measured(given.library, self.group.example, score, bool(given.demos))
            for given, score in zip(self.given, found, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a batch teaches: its lessons; the texts of refused ones, each with the reason.

    `uses` says what each of its groups was used as.
    """

    lessons: tuple[Lesson, ...]
    refused: tuple[str, ...]
    groups: tuple[SampledGroup, ...] = ()
    uses: tuple[str, ...] = ()

    @property
    def rollouts(self) -> list[Rollout]:
        """All rollouts of its groups."""
        return [rollout for sampled in self.groups for rollout in sampled.group.all_rollouts]
