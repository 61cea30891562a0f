"""What a gate is asked and what it answers.

    while True:
        answer = gate.next(evidence)
        if it is a Decision: take its library
        evidence = evidence with the scores of answer.trials

So a gate is pure and replayable: it calls nothing, may stop early, chooses examples, and chooses
among subsets of the operations. `pipeline` runs the trials as deployed (at the LM's own
temperature); two libraries that are tried on one example with one index share the rollout id.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Protocol

from tfgrpo_dspy.experience import DEFAULT_LIMITS, Experience, ExperienceLibrary, Limits, Operation

DataSet = Literal["validation", "training"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One rollout that a gate wants: the library, and the example by its position in its set.

    `index` counts samples of one example: another index is another rollout id.
    """

    library: ExperienceLibrary
    example: int
    index: int = 0
    on: DataSet = "validation"


@dataclass(frozen=True, slots=True)
class Trials:
    """What a gate wants measured; what is measured already is not measured again."""

    trials: tuple[Trial, ...]

    @classmethod
    def of(cls, libraries: Iterable[ExperienceLibrary], examples: Iterable[int]) -> "Trials":
        """Each of the libraries on each of these validation examples."""
        everywhere = tuple(examples)
        return cls(tuple(Trial(library, i) for library in libraries for i in everywhere))


@dataclass(frozen=True, slots=True)
class Decision:
    """The library that stays, and why, in words for people.

    `library` may hold experiences on trial (`Experience.is_on_trial`): `exported` is then what the
    program would be given if the run ended here; None: the library itself. `dropped` says, by id,
    why an experience is not in it. `memory` is what the gate wants to be told at the next update.
    """

    library: ExperienceLibrary
    reason: str
    exported: ExperienceLibrary | None = None
    dropped: Mapping[str, str] = field(default_factory=dict)
    memory: Any = None


@dataclass(frozen=True, slots=True)
class GroupEvidence:
    """A training group as gates see it: each rollout's library and its score.

    `example` is its position in the training set; a score is None where the provider or the
    metric failed. The order of the rollouts is that of their indices.
    """

    example: int
    libraries: tuple[ExperienceLibrary, ...]
    scores: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class TrialEvidence:
    """What a gate knows when it is asked.

    `operations` are those that the incumbent would take; `n_examples` and `n_training` are the
    sizes of the validation and the training set; `update` counts the updates of the run from 0,
    of `n_updates` in all (a gate draws its examples by the one, and shares its error out over the
    other). `scores` are those of all trials of the run so far, None where the provider or the
    metric failed. `groups` are the training groups of this update, `concerns` the training
    examples that an experience, by its text, is thought to be about (None: nobody knows), and
    `memory` what the decision before left. `max_trials` is how many rollouts the run's budget
    leaves for this decision (None: there is no limit). `n_ahead` is how many training rollouts are
    to come in which what is put on trial now can be tried: as many as are planned, or as the budget
    has room for at the pace so far (None: there is no end). `training` are the positions of the
    examples that rollouts are made of; the others are held out (None: all of them). `order` are the
    validation examples, those first that the student was measured on where a budget leaves some out
    (None: it was measured on all).
    """

    incumbent: ExperienceLibrary
    operations: tuple[Operation, ...]
    n_examples: int
    update: int
    limits: Limits = DEFAULT_LIMITS
    scores: Mapping[Trial, float | None] = field(default_factory=dict)
    n_updates: int = 1
    n_training: int = 0
    groups: tuple[GroupEvidence, ...] = ()
    concerns: Mapping[str, frozenset[int]] | None = None
    memory: Any = None
    max_trials: int | None = None
    n_ahead: int | None = None
    training: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    @property
    def validation_order(self) -> Sequence[int]:
        """The validation examples in the order in which tests go through them."""
        return _mixed(self.n_examples) if self.order is None else self.order

    @property
    def training_examples(self) -> Sequence[int]:
        """The positions of the training examples."""
        return range(self.n_training) if self.training is None else self.training

    @property
    def proposed(self) -> ExperienceLibrary:
        """The incumbent with all operations applied."""
        return self.incumbent.apply(self.operations, self.limits)

    def has_tried(self, library: ExperienceLibrary, examples: Sequence[int]) -> bool:
        """Whether the library was tried on all of these validation examples."""
        return all(Trial(library, example) in self.scores for example in examples)

    def gains(self, library: ExperienceLibrary, examples: Sequence[int]) -> list[float]:
        """Score of the library minus score of the incumbent, where both have one."""
        pairs = [
            (self.scores.get(Trial(library, i)), self.scores.get(Trial(self.incumbent, i)))
            for i in examples
        ]
        return [new - old for new, old in pairs if new is not None and old is not None]


@lru_cache(maxsize=64)
def _mixed(n_examples: int) -> tuple[int, ...]:
    return tuple(random.Random("gate").sample(range(n_examples), n_examples))


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """A training group to be made: `n_rollouts` of an example, with a library.

    `concerned` are the experiences on trial that are thought to concern the example; `memory` is
    what the gate left when it decided on the library.
    """

    library: ExperienceLibrary
    example: int
    update: int
    n_rollouts: int
    concerned: tuple[Experience, ...] = ()
    memory: Any = None


class Gate(Protocol):
    """What decides over an update. `metric`, where not None, scores its trials instead of ours.

    A gate with experiences on trial also has `assign(plan: GroupPlan)`, which gives the library of
    each rollout of a training group, so that rollouts that are paid for anyway are evidence.
    """

    metric: Callable[..., Any] | None

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        """The trials that it wants, or its decision; a pure function of the evidence."""
        ...


@dataclass(frozen=True, slots=True)
class NoGate:
    """Every update stays, as in the paper; nothing is measured."""

    metric: Callable[..., Any] | None = None

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        """The proposed library, at once."""
        return Decision(evidence.proposed, "no gate")
