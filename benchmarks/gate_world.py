"""The stated model behind `benchmarks/gates.py`: scores drawn at random, lessons of known worth."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tfgrpo_dspy.experience import Add, ExperienceLibrary, Limits
from tfgrpo_dspy.gate import Decision, Trial, TrialEvidence

N_UPDATES = 12
N_TRAINING = 100
LIMITS = Limits(max_experiences=500)
BASE = {"bernoulli": (0.2, 0.6), "rare": (0.01, 0.1), "skewed": (0.02, 0.2)}
"""Between which values the student's expected scores on the examples lie, by kind of score."""


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
    worth: dict[str, float] = field(default_factory=dict)
    scores: dict[Trial, float | None] = field(default_factory=dict)
    n_paid: int = 0

    def __post_init__(self) -> None:
        low, high = BASE[self.kind]
        sizes = {"validation": self.n_examples, "training": N_TRAINING}
        self._base = {
            on: low + (high - low) * self.rng.beta(2, 2, size) for on, size in sizes.items()
        }
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
                if self.kind == "skewed":
                    mean = min(max(mean, 1e-3), 1 - 1e-3)
                    self.scores[trial] = float(self.rng.beta(mean, 1 - mean))
                else:
                    self.scores[trial] = float(self.rng.random() < mean)


@dataclass(frozen=True)
class Outcome:
    """How a run of 12 updates ended: what was proposed, what is in the returned library."""

    proposed: Mapping[str, float]
    returned: tuple[str, ...]
    change: float
    n_paid: int

    def share(self, worth: float) -> tuple[int, int]:
        """Of the lessons of that worth: how many were returned, and how many proposed."""
        among = [name for name, value in self.proposed.items() if value == worth]
        return sum(name in self.returned for name in among), len(among)


def run(gate: Any, world: World, updates: Sequence[Sequence[float]]) -> Outcome:
    """A whole run: each update proposes lessons of these worths, and the gate decides.

    The student's score on the validation set is measured before, as the optimizer does.
    """
    student = library = ExperienceLibrary()
    world.pay_for([Trial(student, i) for i in range(world.n_examples)])
    world.n_paid, memory = 0, None
    for update, worths in enumerate(updates):
        names = [f"lesson{update}x{k}" for k in range(len(worths))]
        world.worth.update(zip(names, worths, strict=True))
        evidence = TrialEvidence(
            library,
            tuple(map(Add, names)),
            world.n_examples,
            update,
            LIMITS,
            world.scores,
            len(updates),
            N_TRAINING,
            memory=memory,
        )
        decision = decide(gate, evidence, world)
        library, memory = decision.library, decision.memory
    change = float((world.means(library) - world.means(student)).mean())
    returned = tuple(experience.text for experience in library)
    return Outcome(dict(world.worth), returned, change, world.n_paid)


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


def worlds(n_runs: int, n_examples: int, seed: int, kind: str = "bernoulli") -> Iterator[World]:
    """One world for each run, the same ones for every gate."""
    for number in range(n_runs):
        yield World(n_examples, np.random.default_rng([seed, n_examples, number]), kind)
