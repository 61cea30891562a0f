"""What has been measured so far: each trial once; and how libraries did on a whole set."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.gate import Trial, Trials
from tfgrpo_dspy.pipeline.heldout import summary_of
from tfgrpo_dspy.pipeline.rollouts import Rollouts, Sample
from tfgrpo_dspy.pipeline.run import Run
from tfgrpo_dspy.pipeline.shares import order_of
from tfgrpo_dspy.results import ScoreSummary
from tfgrpo_dspy.rollout import Rollout, rollout_id_for

ORDER = (1,)
"""Trials are begun before reflections and training rollouts: an update waits for them."""
PURPOSE = {"validation": "validation", "training": "probe"}


class Measurements:
    """Trials that are made, on one set or two.

    Those on validation (or test) examples are made as deployed, at the LM's own temperature; those
    on training examples at that of training rollouts, so that groups can be compared with them.
    The rollout id of an example and index is the same for every library: so two libraries are
    compared pair by pair. A library is measured as a whole on the examples in their `order`, which
    is drawn where `limit` may make them fewer, as a budget is small; gates are free to use all.
    """

    def __init__(
        self,
        run: Run,
        makers: Mapping[str, Rollouts],
        n_examples: int,
        order: tuple[int, ...] | None = None,
    ) -> None:
        self.n_examples = n_examples
        self.order = order
        self._whole = tuple(range(n_examples)) if order is None else order
        self._makers = makers
        self._seed = run.settings.seed
        self._failure_score = run.settings.failure_score
        self._rollouts: dict[Trial, Rollout] = {}
        self._scores: dict[Trial, float | None] = {}

    @classmethod
    def of_gate(cls, run: Run, valset: Sequence[Any], trainset: Sequence[Any]) -> "Measurements":
        """Trials on the validation set, and on training examples."""
        settings = run.settings
        makers = {
            "validation": Rollouts(run, "gate", valset, settings.gate_metric, None),
            "training": Rollouts(run, "gate", trainset, settings.metric, settings.temperature),
        }
        return cls(run, makers, len(valset), order_of(len(valset), settings))

    @classmethod
    def of_test(cls, run: Run, testset: Sequence[Any]) -> "Measurements":
        """Trials on a set that chooses nothing."""
        makers = {"validation": Rollouts(run, "test", testset, run.settings.gate_metric, None)}
        return cls(run, makers, len(testset))

    def beside(self, run: Run) -> "Measurements":
        """The same examples in the same order, for the student of this run; nothing is tried."""
        makers = {on: maker.beside(run) for on, maker in self._makers.items()}
        return Measurements(run, makers, self.n_examples, self._whole)

    async def run(self, trials: Iterable[Trial]) -> int:
        """Make those that are not made yet; gives their number.

        Raises:
            RunStopped: a budget does not reach, or the run has ended.
        """
        missing = [trial for trial in dict.fromkeys(trials) if trial not in self._rollouts]
        for on, maker in self._makers.items():
            await self._make([trial for trial in missing if trial.on == on], on, maker)
        return len(missing)

    async def _make(self, trials: Sequence[Trial], on: str, maker: Rollouts) -> None:
        samples = [
            Sample(
                trial.library,
                trial.example,
                rollout_id_for(self._seed, 0, trial.example, trial.index, PURPOSE[on]),
            )
            for trial in trials
        ]
        maker.admit(len(samples))
        rollouts = await maker.make(samples, ORDER)
        maker.settle(rollouts)
        for trial, rollout in zip(trials, rollouts, strict=True):
            self._rollouts[trial] = replace(rollout, outputs={}, steps=(), encoded={})

    async def run_everywhere(
        self, libraries: Sequence[ExperienceLibrary], most: int | None = None
    ) -> int:
        """Try each of them on the whole set, or on its first examples, at most so many."""
        return await self.run(Trials.of(libraries, self._whole[:most]).trials)

    def limit(self, n_examples: int) -> int:
        """From now on libraries are measured on so many examples; gives their number."""
        self._whole = self._whole[:n_examples]
        return len(self._whole)

    @property
    def n_rollouts(self) -> int:
        """How many trials were made."""
        return len(self._rollouts)

    @property
    def scores(self) -> Mapping[Trial, float | None]:
        """The score of each trial.

        The program's own failure stands at `failure_score`, or at the lowest score of all where
        that is lower; a provider's or the metric's failure is None.
        """
        if len(self._scores) < len(self._rollouts):
            known = [r.score for r in self._rollouts.values() if r.score is not None]
            floor = min([self._failure_score, *known])
            self._scores = {
                trial: floor if rollout.failure and rollout.failure.is_own else rollout.score
                for trial, rollout in self._rollouts.items()
            }
        return self._scores

    def everywhere(self, library: ExperienceLibrary) -> list[float | None]:
        """The library's scores on the whole set; empty if it was not tried on all of it."""
        trials = [Trial(library, example) for example in self._whole]
        if any(trial not in self._rollouts for trial in trials):
            return []
        scores = self.scores
        return [scores[trial] for trial in trials]

    def summary(self, library: ExperienceLibrary) -> ScoreSummary | None:
        """The library's mean score on the whole set; None if it was not tried on all of it."""
        return summary_of(self.everywhere(library))

    def best(self, libraries: Sequence[ExperienceLibrary]) -> ExperienceLibrary:
        """Of those tried on the whole set, the one that gains most on the first, the start library.

        Gains are means over the examples on which both have a score. Of several the latest wins:
        a gate let it stand for a reason. The student itself, where none is as good.
        """
        start = self.everywhere(libraries[0])

        def gain(library: ExperienceLibrary) -> float:
            pairs = zip(self.everywhere(library), start, strict=True)
            gains = [new - old for new, old in pairs if new is not None and old is not None]
            return statistics.fmean(gains) if gains else 0.0

        whole = [lib for lib in dict.fromkeys(libraries) if start and self.everywhere(lib)]
        return max(reversed(whole), key=gain, default=libraries[0])
