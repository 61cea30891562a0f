"""The stated model behind `benchmarks/gates.py`: scores drawn at random, lessons of known worth.

A run has 12 updates. Before each decision 8 training groups of 5 rollouts are made, 480 rollouts in
all, with libraries of `staleness` updates before, as the optimizer's are: where the gate has
experiences on trial, it says which rollout is given which. They are made whatever the gate, because
the optimizer learns from them; `Outcome.n_paid` counts only what a gate asks for besides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tfgrpo_dspy.experience import Add, ExperienceLibrary, Limits
from tfgrpo_dspy.gate import Decision, GroupEvidence, GroupPlan, Trial, TrialEvidence

N_UPDATES = 12
N_TRAINING = 100
LIMITS = Limits(max_experiences=500)
BASE = {"bernoulli": (0.2, 0.6), "rare": (0.01, 0.1), "skewed": (0.02, 0.2)}
"""Between which values the student's expected scores on the examples lie, by kind of score."""


@dataclass(frozen=True, slots=True)
class Training:
    """How many groups of how many rollouts an update has.

    `staleness`: what is proposed in one update is first in the library of so many updates later,
    and one more; the optimizer's default is 1.
    """

    n_groups: int = 8
    group_size: int = 5
    staleness: int = 1

    @property
    def n_rollouts(self) -> int:
        """Of an update."""
        return self.n_groups * self.group_size


TRAINING = Training()


@dataclass
class World:
    """One run's examples and lessons. Every rollout's score is drawn once, independently.

    The student's expected score on an example is `low + (high - low) * Beta(2, 2)`; a lesson adds
    its worth to it, on every example, and sums are cut to [0, 1]. A score is 0 or 1 with that mean
    (bernoulli, rare), or `Beta(m, 1 - m)` (skewed: most scores near 0, a few near 1).
    """

    n_examples: int
    rng: np.random.Generator
    kind: str = "bernoulli"
    n_training: int = N_TRAINING
    worth: dict[str, float] = field(default_factory=dict)
    scores: dict[Trial, float | None] = field(default_factory=dict)
    n_paid: int = 0

    def __post_init__(self) -> None:
        low, high = BASE[self.kind]
        sizes = {"validation": self.n_examples, "training": self.n_training}
        self._base = {
            on: low + (high - low) * self.rng.beta(2, 2, size) for on, size in sizes.items()
        }
        self._for_groups = self.rng.spawn(1)[0]  # so that trials' luck is the same without them
        self._order: list[int] = []
        self._means: dict[tuple[ExperienceLibrary, str], np.ndarray[Any, Any]] = {}

    def means(self, library: ExperienceLibrary, on: str = "validation") -> np.ndarray[Any, Any]:
        """The expected score of a library on each example."""
        if (library, on) not in self._means:
            added = sum(self.worth[experience.text] for experience in library)
            self._means[library, on] = np.clip(self._base[on] + added, 0.0, 1.0)
        return self._means[library, on]

    def pay_for(self, trials: Sequence[Trial]) -> None:
        """Draw the scores of those that have none yet."""
        for trial in trials:
            if trial not in self.scores:
                self.n_paid += 1
                mean = self.means(trial.library, trial.on)[trial.example]
                self.scores[trial] = self._score(mean, self.rng)

    def group(self, example: int, libraries: tuple[ExperienceLibrary, ...]) -> GroupEvidence:
        """A training group: a fresh rollout with each of the libraries; nobody is charged."""
        scores = [
            self._score(self.means(library, "training")[example], self._for_groups)
            for library in libraries
        ]
        return GroupEvidence(example, libraries, tuple(scores))

    def batch(self, n: int) -> list[int]:
        """The next training examples: all of them in random order, then all in another."""
        while len(self._order) < n:
            self._order += self._for_groups.permutation(self.n_training).tolist()
        taken, self._order = self._order[:n], self._order[n:]
        return taken

    def _score(self, mean: float, rng: np.random.Generator) -> float:
        if self.kind == "skewed":
            mean = min(max(mean, 1e-3), 1 - 1e-3)
            return float(rng.beta(mean, 1 - mean))
        return float(rng.random() < mean)


@dataclass(frozen=True, slots=True)
class Lesson:
    """One that was proposed; `effect` and its error are what the gate says of one it returned."""

    worth: float
    update: int
    is_returned: bool = False
    effect: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run of 12 updates ended: what became of each lesson, and what the program gained."""

    lessons: tuple[Lesson, ...]
    change: float
    n_paid: int

    @property
    def n_returned(self) -> int:
        """How many lessons are in the returned library."""
        return sum(lesson.is_returned for lesson in self.lessons)

    def of_worth(self, worth: float, n_updates: int = N_UPDATES) -> list[Lesson]:
        """The lessons of that worth that the first so many updates proposed."""
        return [own for own in self.lessons if own.worth == worth and own.update < n_updates]


@dataclass(frozen=True, slots=True)
class _State:
    """What an update leaves: the library, what the program would be given, the gate's memory."""

    library: ExperienceLibrary
    exported: ExperienceLibrary
    memory: Any = None


def run(
    gate: Any, world: World, updates: Sequence[Sequence[float]], training: Training = TRAINING
) -> Outcome:
    """A whole run: each update proposes lessons of these worths, and the gate decides.

    The student's score on the validation set is measured before, as the optimizer does.
    """
    student = ExperienceLibrary()
    world.pay_for([Trial(student, i) for i in range(world.n_examples)])
    world.n_paid = 0
    states = [_State(student, student)]
    for update, worths in enumerate(updates):
        names = [f"lesson{update}x{k}" for k in range(len(worths))]
        world.worth.update(zip(names, worths, strict=True))
        seen = states[max(0, update - training.staleness)]
        evidence = TrialEvidence(
            states[-1].library,
            tuple(map(Add, names)),
            world.n_examples,
            update,
            LIMITS,
            world.scores,
            len(updates),
            world.n_training,
            groups=_groups(gate, world, seen, update, training),
            concerns=None if getattr(gate, "concern", None) is None else {},  # nobody knows
            memory=states[-1].memory,
            n_ahead=max(0, len(updates) - 1 - update - training.staleness) * training.n_rollouts,
        )
        decision = decide(gate, evidence, world)
        exported = decision.library if decision.exported is None else decision.exported
        states.append(_State(decision.library, exported, decision.memory))
    return _outcome(world, updates, student, states[-1].exported)


def _groups(
    gate: Any, world: World, seen: _State, update: int, training: Training
) -> tuple[GroupEvidence, ...]:
    """An update's training groups, with the libraries that the gate assigns."""
    is_assigned = hasattr(gate, "assign") and any(own.is_on_trial for own in seen.library)
    groups = []
    for example in world.batch(training.n_groups):
        libraries = (seen.library,) * training.group_size
        if is_assigned:
            plan = GroupPlan(seen.library, example, update, training.group_size, memory=seen.memory)
            libraries = tuple(gate.assign(plan))
        groups.append(world.group(example, libraries))
    return tuple(groups)


def _outcome(
    world: World,
    updates: Sequence[Sequence[float]],
    student: ExperienceLibrary,
    returned: ExperienceLibrary,
) -> Outcome:
    by_text = {own.text: own for own in returned}
    lessons = []
    for update, worths in enumerate(updates):
        for k, worth in enumerate(worths):
            own = by_text.get(f"lesson{update}x{k}")
            effect = None if own is None else own.effect
            lessons.append(
                Lesson(
                    worth,
                    update,
                    own is not None,
                    None if effect is None else effect.estimate,
                    None if effect is None else effect.standard_error,
                )
            )
    change = float((world.means(returned) - world.means(student)).mean())
    return Outcome(tuple(lessons), change, world.n_paid)


def decide(gate: Any, evidence: TrialEvidence, world: World) -> Decision:
    """Ask, pay, ask again."""
    while True:
        answer = gate.next(evidence)
        if isinstance(answer, Decision):
            return answer
        before = world.n_paid
        world.pay_for(answer.trials)
        if world.n_paid == before:
            raise RuntimeError(f"{gate} asks again for what it has")
        evidence = replace(evidence, scores=world.scores)


def world(number: int, n_examples: int, kind: str = "bernoulli", seed: int = 1) -> World:
    """The world of one run, the same one for every gate."""
    return World(n_examples, np.random.default_rng([seed, n_examples, number]), kind)
