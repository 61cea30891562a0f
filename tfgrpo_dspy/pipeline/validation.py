"""The validation set: measures libraries on it, as deployed, each on the same examples."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.pipeline.rollouts import Rollouts, Sample
from tfgrpo_dspy.pipeline.run import Run
from tfgrpo_dspy.results import ScoreSummary
from tfgrpo_dspy.rollout import Rollout, rollout_id_for

ORDER = (1,)
"""Trials are begun before reflections and training rollouts: an update waits for them."""


class Validation:
    """What has been measured on the validation set so far; nothing is measured twice.

    One rollout for each example and library, at the LM's own temperature, with an id that is the
    same for every library: so two libraries are compared pair by pair.
    """

    def __init__(self, run: Run, valset: Sequence[Any]) -> None:
        settings = run.settings
        self.valset = valset
        self._maker = Rollouts(run, "gate", valset, settings.gate_metric, None)
        self._seed = settings.seed
        self._failure_score = settings.failure_score
        self._rollouts: dict[ExperienceLibrary, dict[int, Rollout]] = {}

    async def run(self, libraries: Sequence[ExperienceLibrary], examples: Sequence[int]) -> int:
        """Measure what is not measured yet; gives the number of rollouts that it took.

        Raises:
            RunStopped: a budget does not reach, or the run has ended.
        """
        missing = [
            Sample(library, example, rollout_id_for(self._seed, 0, example, 0, "validation"))
            for library in dict.fromkeys(libraries)
            for example in examples
            if example not in self._rollouts.get(library, {})
        ]
        self._maker.admit(len(missing))
        rollouts = await self._maker.make(missing, ORDER)
        self._maker.settle(rollouts)
        for sample, rollout in zip(missing, rollouts, strict=True):
            score_only = replace(rollout, outputs={}, steps=(), encoded={})
            self._rollouts.setdefault(sample.library, {})[sample.example] = score_only
        return len(missing)

    @property
    def scores(self) -> Mapping[ExperienceLibrary, Mapping[int, float | None]]:
        """The score of each library on each example.

        The program's own failure stands at `failure_score`, or at the lowest score of all where
        that is lower; a provider's or the metric's failure is None.
        """
        floor = min([self._failure_score, *self._all_scores()])
        return {
            library: {
                example: floor if rollout.failure and rollout.failure.is_own else rollout.score
                for example, rollout in rollouts.items()
            }
            for library, rollouts in self._rollouts.items()
        }

    def _all_scores(self) -> list[float]:
        all_rollouts = (r for rollouts in self._rollouts.values() for r in rollouts.values())
        return [rollout.score for rollout in all_rollouts if rollout.score is not None]

    def summary(self, library: ExperienceLibrary) -> ScoreSummary | None:
        """The library's mean score on the whole validation set; None if it was not tried on all."""
        if not self.valset or len(self._rollouts.get(library, {})) < len(self.valset):
            return None
        scores = list(self.scores[library].values())
        known = [score for score in scores if score is not None]
        mean = statistics.fmean(known) if known else None
        return ScoreSummary(mean, len(known), len(scores) - len(known))

    def best(self, libraries: Sequence[ExperienceLibrary]) -> ExperienceLibrary:
        """Of those tried on the whole set, the one that gains most on the first, the start library.

        Gains are means over the examples on which both have a score; the earliest of several
        wins, so the student itself where none is better.
        """
        scores, start = self.scores, libraries[0]
        whole = [lib for lib in libraries if len(scores.get(lib, {})) == len(self.valset)]

        def gain(library: ExperienceLibrary) -> float:
            pairs = [(scores[library][i], scores[start][i]) for i in range(len(self.valset))]
            gains = [new - old for new, old in pairs if new is not None and old is not None]
            return statistics.fmean(gains) if gains else 0.0

        return max(whole, key=gain, default=start)
