"""Other optimizers' rules of acceptance as gates, simplified, for `benchmarks/gates.py`.

They see a run as our gates do. The operations of an update are the candidates.
"""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.gate import Decision, Trial, TrialEvidence, Trials


def _mean(evidence: TrialEvidence, trials: Sequence[Trial]) -> float:
    return statistics.fmean(evidence.scores[trial] or 0.0 for trial in trials)


def _rises(
    evidence: TrialEvidence, old: Sequence[Trial], new: Sequence[Trial], min_errors: float
) -> bool:
    """The mean gain is above 0 by more than so many standard errors."""
    gains = [
        (evidence.scores[b] or 0.0) - (evidence.scores[a] or 0.0)
        for a, b in zip(old, new, strict=True)
    ]
    error = statistics.stdev(gains) / len(gains) ** 0.5
    return statistics.fmean(gains) > min_errors * error


def _unpaid(evidence: TrialEvidence, trials: Sequence[Trial]) -> Trials | None:
    missing = tuple(trial for trial in trials if trial not in evidence.scores)
    return Trials(missing) if missing else None


def _whole(evidence: TrialEvidence, library: ExperienceLibrary) -> list[Trial]:
    return [Trial(library, i) for i in range(evidence.n_examples)]


@dataclass(frozen=True)
class MeanRises:
    """The whole update stays if its mean on the validation set is above the incumbent's."""

    min_errors: float = 0.0
    metric: Callable[..., Any] | None = None

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        old, new = (_whole(evidence, lib) for lib in (evidence.incumbent, evidence.proposed))
        if unpaid := _unpaid(evidence, [*old, *new]):
            return unpaid
        rises = _rises(evidence, old, new, self.min_errors)
        return Decision(evidence.proposed if rises else evidence.incumbent, "mean")


@dataclass(frozen=True)
class GepaRule:
    """One candidate after the other, each on top of what stands.

    Parent and child on a minibatch of 3 training examples; a child whose sum is strictly higher is
    tried on the whole validation set, and stands if its mean is above its parent's. (GEPA draws the
    parent from a Pareto front and returns the program with the best mean; in a run that proposes
    given lessons in turn that is the last one that stands.) `min_errors` above 0 makes it stricter
    than GEPA's: by how many of its standard errors the mean must be above.
    """

    minibatch: int = 3
    min_errors: float = 0.0
    metric: Callable[..., Any] | None = None

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        standing = evidence.incumbent
        for k, operation in enumerate(evidence.operations):
            child = standing.apply([operation], evidence.limits)
            rng = random.Random(f"{evidence.update}/{k}")
            few = rng.sample(evidence.training_examples, self.minibatch)
            index = evidence.update * 100 + k
            old = [Trial(standing, i, index, "training") for i in few]
            new = [Trial(child, i, index, "training") for i in few]
            if unpaid := _unpaid(evidence, [*old, *new]):
                return unpaid
            if _mean(evidence, new) <= _mean(evidence, old):
                continue
            old, new = _whole(evidence, standing), _whole(evidence, child)
            if unpaid := _unpaid(evidence, [*old, *new]):
                return unpaid
            if _rises(evidence, old, new, self.min_errors):
                standing = child
        return Decision(standing, "gepa")


@dataclass(frozen=True)
class SimbaRule:
    """The best of the candidates on a minibatch of 32 stands if it beats the incumbent there.

    After the last update everything that ever stood is tried on the whole set, and the best mean is
    returned. (SIMBA draws parents from its pool by softmax and takes 6 candidates a step.)
    `min_errors` makes it stricter, as above.
    """

    minibatch: int = 32
    min_errors: float = 0.0
    metric: Callable[..., Any] | None = None

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        stood: tuple[ExperienceLibrary, ...] = evidence.memory or (evidence.incumbent,)
        n = min(self.minibatch, evidence.n_examples)
        few = random.Random(f"{evidence.update}").sample(range(evidence.n_examples), n)
        incumbent = evidence.incumbent
        alone = [incumbent.apply([operation], evidence.limits) for operation in evidence.operations]
        index = 1 + evidence.update
        trials = {lib: [Trial(lib, i, index) for i in few] for lib in (incumbent, *alone)}
        if unpaid := _unpaid(evidence, [trial for of_one in trials.values() for trial in of_one]):
            return unpaid
        best = max(trials, key=lambda lib: _mean(evidence, trials[lib]))
        if not _rises(evidence, trials[incumbent], trials[best], self.min_errors):
            best = incumbent
        stood = tuple(dict.fromkeys((*stood, best)))
        if evidence.update < evidence.n_updates - 1:
            return Decision(best, "simba", memory=stood)
        full = {lib: _whole(evidence, lib) for lib in stood}
        if unpaid := _unpaid(evidence, [trial for of_one in full.values() for trial in of_one]):
            return unpaid
        return Decision(max(full, key=lambda lib: _mean(evidence, full[lib])), "simba")
