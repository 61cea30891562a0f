"""Scores of candidates on a set that they are not trained on: each rollout is made once."""

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.results import ExampleScores
from tfgrpo_dspy.rollout import Rollout, rollout_id_for
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.rollouts import Rollouts, Sample
from tfgrpo_dspy.sampling.demos import Demo

PRIORITY = (1,)
"""These rollouts are begun before reflections and training rollouts."""

Pair = tuple[int, int]
"""The place of a candidate, and that of an example in the order in which the set is measured."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A program that may be returned: the student with a library, and with demos or without."""

    library: ExperienceLibrary
    has_demos: bool = False


class Measurements:
    """Rollouts of candidates on a set, at the LM's own temperature.

    The rollout id of an example is the same for every candidate, so that two are compared pair by
    pair. The examples are measured in an order that the seed mixes, as a budget may reach for the
    first ones only.
    """

    def __init__(
        self,
        run: RunContext,
        role: str,
        examples: Sequence[Any],
        candidates: Sequence[Candidate],
        demos: Sequence[Demo],
    ) -> None:
        self.candidates = candidates
        self.n_examples = len(examples)
        self._run = run
        mixed = random.Random(f"{role}/{run.settings.seed}")
        self._order = mixed.sample(range(len(examples)), len(examples))
        self._maker = Rollouts(run, role, examples, None, demos)
        self._rollouts: dict[Pair, Rollout] = {}

    def make(self, pairs: Sequence[Pair]) -> Sequence[Rollout]:
        """Make these rollouts.

        Raises:
            RunStopped: a budget does not reach, or the run has ended.
        """
        samples = []
        for candidate, place in pairs:
            what, example = self.candidates[candidate], self._order[place]
            rollout_id = rollout_id_for(self._run.settings.seed, 0, example, 0, "validation")
            samples.append(Sample(what.library, example, rollout_id, what.has_demos))
        self._maker.admit(len(samples))
        rollouts = self._run.loop.run(self._maker.make(samples, PRIORITY))
        self._maker.settle(rollouts)
        self._rollouts |= zip(pairs, rollouts, strict=True)
        return rollouts

    def make_all(self) -> None:
        """Make the rollouts of every candidate on the whole set, as far as the budget reaches."""
        with suppress(RunStopped):
            for candidate in range(len(self.candidates)):
                self.make([(candidate, place) for place in range(self.n_examples)])

    def scores(self) -> Mapping[Pair, float | None]:
        """The score of each rollout.

        The program's own failure counts as the lowest score of all, or 0.0 if that is lower. Where
        the provider, the clock or the metric failed there is no score.
        """
        floor = min([0.0, *(r.score for r in self._rollouts.values() if r.score is not None)])
        return {
            pair: floor if rollout.failure and rollout.failure.is_of_program else rollout.score
            for pair, rollout in self._rollouts.items()
        }

    def scores_of(self, candidate: int) -> ExampleScores:
        """The candidate's scores, in the order of the measurement."""
        return [score for (c, _), score in self.scores().items() if c == candidate]

    def bake(self, candidate: Candidate) -> Any:
        """The program of a candidate."""
        return self._maker.bake(candidate.library, candidate.has_demos)
