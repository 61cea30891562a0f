"""Scores of programs on a set that they are not trained on: each rollout is made once."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.budget import Amount
from tfgrpo_dspy.rollout import Rollout, rollout_id_for
from tfgrpo_dspy.run.candidates import Candidate
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.rollouts import Rollouts, Sample
from tfgrpo_dspy.sampling.demos import Demo

PRIORITY = (1,)
"""These rollouts are begun before reflections and training rollouts."""


Pair = tuple[Candidate, int]
"""A candidate, and an example by its place in the order in which the set is measured."""


class Measurements:
    """Rollouts of candidates on a set, at the LM's own temperature.

    The rollout id of an example is the same for every candidate, so that two are compared pair by
    pair. The examples are measured in an order that the seed mixes, as a budget may reach for the
    first ones only.

    Args:
        run: whose student the libraries are baked into.
        role: of the report: "validation" or "test".
        examples: the set.
        demos: those of candidates that have demos.
    """

    def __init__(
        self, run: RunContext, role: str, examples: Sequence[Any], demos: Sequence[Demo]
    ) -> None:
        self.n_examples = len(examples)
        self._seed = run.settings.seed
        mixed = random.Random(f"{role}/{self._seed}")
        self._order = mixed.sample(range(len(examples)), len(examples))
        self._maker = Rollouts(run, role, examples, None, demos)
        self._rollouts: dict[Pair, Rollout] = {}

    def bake(self, candidate: Candidate) -> Any:
        """The program of a candidate."""
        return self._maker.bake(candidate.library, candidate.has_demos)

    async def run(self, pairs: Iterable[Pair]) -> tuple[Amount, int]:
        """Make the rollouts that are not made yet; what they have taken, and how many they are.

        Raises:
            RunStopped: a budget does not reach, or the run has ended.
        """
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._rollouts]
        samples = [self._sample(candidate, self._order[place]) for candidate, place in missing]
        self._maker.admit(len(samples))
        rollouts = await self._maker.make(samples, PRIORITY)
        self._maker.settle(rollouts)
        for pair, rollout in zip(missing, rollouts, strict=True):
            self._rollouts[pair] = replace(rollout, outputs={}, steps=())
        return amount_of(rollouts), len(rollouts)

    def _sample(self, candidate: Candidate, example: int) -> Sample:
        rollout_id = rollout_id_for(self._seed, 0, example, 0, "validation")
        return Sample(candidate.library, example, rollout_id, candidate.has_demos)

    def scores(self) -> Mapping[Pair, float | None]:
        """The score of each rollout.

        The program's own failure counts as the lowest score of all, or 0.0 if that is lower. Where
        the provider, the clock or the metric failed there is no score.
        """
        known = [r.score for r in self._rollouts.values() if r.score is not None]
        floor = min([0.0, *known])
        return {
            pair: floor if rollout.failure and rollout.failure.is_of_program else rollout.score
            for pair, rollout in self._rollouts.items()
        }

    def on_all_examples(self, candidate: Candidate) -> list[float | None]:
        """The candidate's scores on the whole set; empty if one is missing."""
        scores = self.scores()
        pairs = [(candidate, place) for place in range(self.n_examples)]
        return [scores[pair] for pair in pairs] if all(pair in scores for pair in pairs) else []


def amount_of(rollouts: Iterable[Rollout]) -> Amount:
    """What rollouts have taken; their metric was called unless the program failed."""
    amounts = (Amount.of(r.usage + r.metric_usage, int(r.was_scored)) for r in rollouts)
    return sum(amounts, Amount())
