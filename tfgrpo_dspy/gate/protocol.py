"""What a gate decides, and the values that its methods take and return.

A gate makes no calls. Its answers are pure functions: a run that is replayed decides the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tfgrpo_dspy.experience import Advice, Effect, Experience, ExperienceLibrary, Limits, Operation

MODEL_ERROR = 0.3
"""The relative error of an effect that remains however many rollouts there are. With
0.3, 90 % intervals held the true effect in 85 to 87 % of 1,600 cases (simulated, seeds 0 to 2)."""


@dataclass(frozen=True, slots=True)
class Belief:
    """What a gate believes of one experience, brief or set of demos.

    `mean` and `sd` are those of what it adds to the score on examples like the training examples;
    `chance` is the probability that this is worth its tokens, by `n_rollouts` rollouts. What is
    stated of it is within `widest`, the difference of the highest and the lowest score.
    """

    mean: float
    sd: float
    chance: float
    n_rollouts: int
    widest: float = math.inf

    @property
    def effect(self) -> Effect | None:
        """The measured effect; None if no rollout was given the experience.

        Its standard error includes the error of the model: which examples an experience is about
        is estimated from texts only.
        """
        if not self.n_rollouts:
            return None
        error = math.hypot(self.sd, MODEL_ERROR * self.mean)
        widest = self.widest if math.isfinite(self.widest) else None
        return Effect(self._stated, error, self.n_rollouts, widest)

    @property
    def _stated(self) -> float:
        return max(-self.widest, min(self.widest, self.mean))

    def in_words(self) -> str:
        """The effect, and how likely it is worth its tokens."""
        return (
            f"effect {self._stated:+z.3f} (standard error {self.sd:.3f}, {self.n_rollouts} "
            f"rollouts): worth its tokens with probability {self.chance:.2f}"
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """The score of one rollout with a library on one example.

    `example` is the example's position in its set. The score is None where the rollout has none,
    for instance because the provider failed. `demo_set`: which of the run's sets of demos the
    program showed, from 1; 0: none. `brief`: which brief it had; 0: the student's instructions.
    """

    library: ExperienceLibrary
    example: int
    score: float | None
    demo_set: int = 0
    brief: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """The library after an update.

    Args:
        library: the experiences that stay; those that are still uncertain are on trial.
        reason: the decision in words, for people.
        deployable: the experiences that a program would be given if the run ended here; None: the
            whole library.
        dropped: by id, why an experience is not in the library any more.
        beliefs: what is believed of each advice that the run has tried, or will try.
        rivals: by id, the other text of an experience that an operation has modified, while it is
            undecided which of the two is better.
        places: by id, the experience about the same case that is likely better: a rollout, and a
            result, has at most one of the two.
        is_open: whether further rollouts could still change what a program would be given.
        demos: what is believed of each of the run's sets of demos; empty: nothing.
        briefs: what is believed of each of its briefs.
    """

    library: ExperienceLibrary
    reason: str
    deployable: ExperienceLibrary | None = None
    dropped: Mapping[str, str] = field(default_factory=dict)
    beliefs: Mapping[Advice, Belief] = field(default_factory=dict)
    rivals: Mapping[str, Experience] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    is_open: bool = False
    demos: tuple[Belief, ...] = ()
    briefs: tuple[Belief, ...] = ()

    @property
    def result(self) -> ExperienceLibrary:
        """The library that a program would be given if the run ended here."""
        return self.library if self.deployable is None else self.deployable

    @property
    def consistent(self) -> ExperienceLibrary:
        """The library without those of `places`."""
        return self.library.holding(e for e in self.library if e.id not in self.places)


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """Everything that a gate knows when an update is to be decided.

    Args:
        previous: the decision on the update before; at first one with the student's library.
        operations: the operations that the previous library would accept.
        rollouts: all training rollouts of the run so far, in the order of their updates.
        texts: every example of the training set as text: its inputs, and its labels if they are
            known.
        training: the positions of the examples that are trained on.
        limits: what the library may hold.
        n_demo_sets: how many sets of demos the run may show.
        parents: for each of its briefs, the number of the one that it revises; 0: none.
    """

    previous: Decision
    operations: tuple[Operation, ...] = ()
    rollouts: tuple[Measured, ...] = ()
    texts: tuple[str, ...] = ()
    training: tuple[int, ...] = ()
    limits: Limits = field(default_factory=Limits)
    n_demo_sets: int = 0
    parents: tuple[int, ...] = ()

    @property
    def proposed(self) -> ExperienceLibrary:
        """The previous library with all operations applied."""
        return self.previous.library.apply(self.operations, self.limits)


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """A training group that is about to be made: `n_rollouts` of one example.

    `decision` is the latest one made in time for the group; `update` counts the updates from 0.
    `n_demo_sets`: how many sets of demos the rollouts may show; `n_briefs`: how many briefs they
    may have.
    """

    decision: Decision
    example: int
    update: int
    n_rollouts: int
    n_demo_sets: int = 0
    n_briefs: int = 0


class Gate:
    """Decides on the updates of a run; a subclass overrides the methods that decide differently.

    `measures` says whether student and results are compared on a validation set.
    """

    measures: bool = True

    def decide(self, evidence: RunEvidence) -> Decision:
        """The library after an update; by default every operation is applied."""
        return Decision(evidence.proposed, "every operation is applied")

    def assign(self, plan: GroupPlan) -> Sequence[ExperienceLibrary]:
        """The library of each rollout of a group; by default the whole library."""
        return (plan.decision.library,) * plan.n_rollouts

    def demo_sets(self, plan: GroupPlan) -> Sequence[int]:
        """Which set of demos each rollout of a group shows, from 1; by default 0: none."""
        return (0,) * plan.n_rollouts

    def briefs(self, plan: GroupPlan) -> Sequence[int]:
        """Which brief each rollout of a group has, from 1; by default 0: the instructions."""
        return (0,) * plan.n_rollouts

    def finalists(self, decision: Decision) -> Sequence[ExperienceLibrary]:
        """The libraries that are compared with the student at the end, the most promising first."""
        return (decision.result,)


@dataclass(frozen=True, slots=True)
class NoGate(Gate):
    """Applies every operation, as in the paper; the last library is always returned."""

    measures = False
