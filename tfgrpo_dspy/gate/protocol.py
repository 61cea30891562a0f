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
    """What a gate believes that one experience, brief or set of demos adds to the score."""

    mean: float  # on examples like the training examples
    sd: float
    chance: float  # that this is worth its tokens
    n_rollouts: int  # that had it
    widest: float = math.inf  # the highest less the lowest score; no stated effect is larger

    @property
    def effect(self) -> Effect | None:
        """The measured effect; None if no rollout was given the experience.

        Its standard error includes that of the model, which guesses from texts only what an
        experience is about.
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
        measured = f"(standard error {self.sd:.3f}, {self.n_rollouts} rollouts)"
        worth = f"worth its tokens with probability {self.chance:.2f}"
        return f"effect {self._stated:+z.3f} {measured}: {worth}"


@dataclass(frozen=True, slots=True)
class Measured:
    """The score of one rollout with a library on one example."""

    library: ExperienceLibrary
    example: int  # the position in its set
    score: float | None  # None: the rollout has none, for instance because the provider failed
    demo_set: int = 0  # of those of the run, from 1; 0: the program showed no demos
    brief: int = 0  # of those of the run, from 1; 0: the student's instructions


@dataclass(frozen=True, slots=True)
class Decision:
    """The library after an update."""

    library: ExperienceLibrary  # the experiences that stay; the uncertain ones are on trial
    reason: str  # in words, for people
    deployable: ExperienceLibrary | None = None  # `result`, where that is not the whole library
    dropped: Mapping[str, str] = field(default_factory=dict)
    """By id, why an experience is not in the library any more."""
    beliefs: Mapping[Advice, Belief] = field(default_factory=dict)
    """Of each advice that the run has tried, or will try."""
    rivals: Mapping[str, Experience] = field(default_factory=dict)
    """By id, the other text of an experience, while it is undecided which of the two is better."""
    places: Mapping[str, str] = field(default_factory=dict)
    """By id, the experience about the same case that is likely better: a rollout, and a result, has
    at most one of the two."""
    is_open: bool = False  # whether further rollouts could still change what a program is given
    demos: tuple[Belief, ...] = ()  # of each of the run's sets of demos; empty: nothing
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
    """Everything that a gate knows when an update is to be decided."""

    previous: Decision  # on the update before; at first one with the student's library
    operations: tuple[Operation, ...] = ()  # that the previous library would accept
    rollouts: tuple[Measured, ...] = ()  # of training so far, in the order of their updates
    texts: tuple[str, ...] = ()  # of each training example: its inputs, and its labels if known
    training: tuple[int, ...] = ()  # the positions of the examples that are trained on
    limits: Limits = field(default_factory=Limits)
    n_demo_sets: int = 0  # that the run may show
    parents: tuple[int, ...] = ()  # for each brief, the number of the one that it revises; 0: none

    @property
    def proposed(self) -> ExperienceLibrary:
        """The previous library with all operations applied."""
        return self.previous.library.apply(self.operations, self.limits)


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """A training group that is about to be made: `n_rollouts` of one example."""

    decision: Decision  # the latest one made in time for the group
    example: int
    update: int  # from 0
    n_rollouts: int
    n_demo_sets: int = 0  # that the rollouts may show
    n_briefs: int = 0  # that they may have


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
