"""Scores of programs on a set that they are not trained on: each rollout is made once."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.budget import Amount
from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.rollout import Rollout, rollout_id_for
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.deciding import amount_of
from tfgrpo_dspy.run.rollouts import Rollouts, Sample

ORDER = (1,)
"""These rollouts are begun before reflections and training rollouts."""

Pair = tuple[ExperienceLibrary, int]
"""A library, and an example by its place in `Measurements.order`."""


class Measurements:
    """Rollouts of the student with one library or another, at the LM's own temperature.

    The rollout id of an example is the same for every library, so that two libraries are compared
    pair by pair. `order` are the positions of the examples, mixed by the seed, as a budget may
    reach for the first ones only.

    Args:
        run: whose student the libraries are baked into.
        role: of the report: "validation" or "test".
        examples: the set.
    """

    def __init__(self, run: RunContext, role: str, examples: Sequence[Any]) -> None:
        self.n_examples = len(examples)
        seed = run.settings.seed
        self.order = random.Random(f"{role}/{seed}").sample(range(len(examples)), len(examples))
        self._run = run
        self._role = role
        self._examples = examples
        self._maker = Rollouts(run, role, examples, run.settings.metric, None)
        self._rollouts: dict[Pair, Rollout] = {}

    def beside(self, run: RunContext) -> "Measurements":
        """The same examples for the student of another run; nothing is measured yet."""
        return Measurements(run, self._role, self._examples)

    async def run(self, pairs: Iterable[Pair]) -> Amount:
        """Make the rollouts that are not made yet; gives what they have taken.

        Raises:
            RunStopped: a budget does not reach, or the run has ended.
        """
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._rollouts]
        samples = [self._sample(library, self.order[place]) for library, place in missing]
        self._maker.admit(len(samples))
        rollouts = await self._maker.make(samples, ORDER)
        self._maker.settle(rollouts)
        for pair, rollout in zip(missing, rollouts, strict=True):
            self._rollouts[pair] = replace(rollout, outputs={}, steps=(), encoded={})
        return sum(map(amount_of, rollouts), Amount())

    def _sample(self, library: ExperienceLibrary, example: int) -> Sample:
        rollout_id = rollout_id_for(self._run.settings.seed, 0, example, 0, "validation")
        return Sample(library, example, rollout_id)

    @property
    def lowest(self) -> float:
        """The lowest score of all; 0.0 if that is lower."""
        return min([0.0, *(r.score for r in self._rollouts.values() if r.score is not None)])

    def scores(self, floor: float) -> Mapping[Pair, float | None]:
        """The score of each rollout.

        The program's own failure counts as `floor`: the lowest score of all that are compared.
        Where the provider, the clock or the metric failed there is no score.
        """
        return {
            pair: floor if rollout.failure and rollout.failure.is_own else rollout.score
            for pair, rollout in self._rollouts.items()
        }

    def of_library(
        self, library: ExperienceLibrary, n_examples: int, floor: float
    ) -> list[float | None]:
        """The library's scores on the first examples of the order; empty if one is missing."""
        scores = self.scores(floor)
        pairs = [(library, place) for place in range(n_examples)]
        return [scores[pair] for pair in pairs] if all(pair in scores for pair in pairs) else []
