"""Rollouts of student and candidates on a validation or test set, and what they score."""

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from tfgrpo_dspy.calls.paid import Calls
from tfgrpo_dspy.calls.rollouts import Rollouts, Sample
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.gate.race import Scores
from tfgrpo_dspy.listeners.rows import example_rows, objective_means, rollout_row
from tfgrpo_dspy.results.records import (
    UNBOUNDED,
    ExampleRow,
    ExampleScores,
    Gain,
    Row,
    Scale,
    ScoreSummary,
)
from tfgrpo_dspy.rollout import FailureKind, Rollout, floored, rollout_id_for
from tfgrpo_dspy.run.history import History
from tfgrpo_dspy.sampling.additions import Additions
from tfgrpo_dspy.sampling.fields import Example
from tfgrpo_dspy.settings.schedule import RunInputs
from tfgrpo_dspy.tasks.pool import Job

PRIORITY = (1,)  # these rollouts are begun before reflections and training rollouts


class Measurements:
    """Rollouts of candidates on a set; those of an example have the same rollout id.

    The examples are measured in an order that the seed mixes: a budget may reach for the first ones
    only. A pair is the place of a candidate, and that of an example in this order. `history`
    gives the rollouts with what they count with.
    """

    def __init__(
        self,
        inputs: RunInputs,
        calls: Calls,
        role: str,
        examples: Sequence[Example],
        candidates: list[Additions],
        history: History,
    ) -> None:
        self.candidates = candidates
        self.n_examples = len(examples)
        self._inputs, self._settings, self._calls = inputs, inputs.settings, calls
        self._role, self._examples = role, examples
        mixed = random.Random(f"{role}/{inputs.settings.seed}")
        self._order = mixed.sample(range(len(examples)), len(examples))
        self._maker = Rollouts(inputs, calls, role, examples)
        self._reward, self._score_range = history.reward, history.latest.score_range
        self._rollouts: dict[tuple[int, int], Rollout] = {}  # by pair, those that count

    def make(self, pairs: Sequence[tuple[int, int]]) -> Sequence[Rollout]:
        """Make those of these rollouts that are not made yet, and give all.

        Raises RunStopped: a budget does not reach, or the run has ended.
        Then the first examples that every candidate of these pairs has finished still count.
        """
        samples = []
        for candidate, place in pairs:
            example = self._order[place]
            rollout_id = rollout_id_for(self._settings.seed, 0, example, 0, "validation")
            samples.append(Sample(self.candidates[candidate], example, rollout_id))
        begun: dict[int, Job[Rollout]] = {}
        has_clock, pool = self._settings.max_minutes is not None, self._calls.pool
        places = [place for _, place in pairs]
        try:
            with pool.running():
                while (n_begun := len(begun)) < len(pairs):
                    more = [job.result() for job in begun.values()]
                    last = n_begun + self._n_at_once(places[n_begun:], more)
                    # one candidate after the other: their prompts begin alike, which providers and
                    # llama.cpp read only once; with a clock, which may end it, one example after it
                    order = sorted(
                        range(n_begun, last), key=lambda k: (0, k) if has_clock else pairs[k]
                    )
                    begun |= {k: self._maker.begin(samples[k], PRIORITY) for k in order}
                    for k in order:
                        pool.result(begun[k])
                for k in [k for k, job in begun.items() if _is_passing(job.result())]:  # once more
                    again = self._maker.again(samples[k], PRIORITY)
                    pool.result(again)
                    begun[k] = again
        finally:
            rollout_of = {
                k: job.result() for k, job in begun.items() if job.is_done and not job.error
            }
            cut = {place for k, (_, place) in enumerate(pairs) if k not in rollout_of}
            kept = [k for k, (_, place) in enumerate(pairs) if place < min(cut, default=math.inf)]
            rollouts = pool.call(lambda: self._reward([rollout_of[k] for k in kept]))
            self._rollouts |= zip([pairs[k] for k in kept], rollouts, strict=True)
        return rollouts

    def _n_at_once(self, places: Sequence[int], more: Iterable[Rollout]) -> int:
        """How many of the pairs at these places are made next: those of whole examples.

        A budget can cut the pairs of one example only: the first is made alone, and then as many
        as there is budget for if each takes what the dearest has taken. So which examples are
        finished does not depend on the number of threads.
        """
        ledger = self._calls.ledger
        n_of_one = sum(place == places[0] for place in places)
        if not ledger.limits_lm_calls:
            return len(places)
        usages = [r.usage + r.metric_usage for r in (*self._rollouts.values(), *more)]
        if not usages:
            return n_of_one
        calls = max(usage.n_answers for usage in usages)
        cost = max(usage.cost_usd for usage in usages)
        fitting = [math.inf if not each else ledger.left(name) / each
                   for name, each in (("max_lm_calls", calls), ("max_cost", cost))]  # fmt: skip
        n_examples = max(1, min(len(places), *fitting) // n_of_one)
        return int(n_examples * n_of_one)

    def make_all(self, n_examples: int) -> None:
        """Make the rollouts of all candidates on `n_examples`, as far as the budget reaches."""
        n_candidates = len(self.candidates)
        n_left = self._calls.ledger.left("max_metric_calls") / n_candidates
        n = int(min(n_examples, max(1, n_left)))
        with suppress(RunStopped):
            self.make([(c, place) for place in range(n) for c in range(n_candidates)])
        means = self._means()
        if (result := means.get(n_candidates - 1)) is not None:
            self._calls.report.progress.show_scores(student=means[0], result=result)

    def scores(self) -> Scores:
        """The score that each rollout counts with, by `floored` and the training scores.

        What a candidate has more than the student may be the cause of its failures.
        """
        rollouts = [*self._rollouts.values()]
        of_student = floored(rollouts, self._score_range)
        of_rival = floored(rollouts, self._score_range, for_advice=True)
        triples = zip(self._rollouts, of_student, of_rival, strict=True)
        return {pair: rival if pair[0] else student for pair, student, rival in triples}

    def scores_of(self, candidate: int) -> ExampleScores:
        """The candidate's scores, in the order of the measurement."""
        return [score for (c, _), score in self.scores().items() if c == candidate]

    @property
    def scale(self) -> Scale:
        """The lowest and the highest score that was measured."""
        scores = [score for score in self.scores().values() if score is not None]
        return (min(scores), max(scores)) if scores else UNBOUNDED

    def objectives_of(self, candidate: int) -> dict[str, float]:
        """The means of the candidate's objectives, over the rollouts that have them."""
        rollouts = self._rollouts.items()
        return objective_means(r.objectives for (c, _), r in rollouts if c == candidate)

    def show(self) -> None:
        """Show the mean scores of the student and of the best candidate so far."""
        if means := self._means():
            self._calls.report.progress.show_scores(student=means[0], best=max(means.values()))

    def _means(self) -> dict[int, float]:
        """The mean scores of the candidates that were measured on all examples of the student."""
        scores = {c: self.scores_of(c) for c in range(len(self.candidates))}
        whole = {c: each for c, each in scores.items() if len(each) == len(scores[0])}
        scores_of = {c: [s for s in each if s is not None] for c, each in whole.items()}
        means = {c: statistics.fmean(each) for c, each in scores_of.items() if each}
        return means if 0 in means else {}

    def _by_example(self, candidate: int) -> dict[int, tuple[Rollout, float | None]]:
        """The candidate's rollouts, with what they count with."""
        scores = self.scores()
        return {
            self._order[place]: (rollout, scores.get((c, place)))
            for (c, place), rollout in self._rollouts.items()
            if c == candidate
        }

    @property
    def rollouts(self) -> list[Row]:
        """The rollouts of all candidates."""
        return [
            rollout_row(rollout, self._role, candidate)
            for c, candidate in enumerate(self.candidates)
            for rollout, _ in self._by_example(c).values()
        ]

    def examples(self, place: int) -> list[ExampleRow]:
        """What the student and this candidate gave and scored on each example."""
        student, result = self._by_example(0), self._by_example(place)
        return example_rows(self._role, self._examples, student, result)

    def outcome(self, place: int) -> dict[str, Any]:
        """The mean scores of the student and of this candidate, and the gain."""
        before, after = self.scores_of(0), self.scores_of(place)
        if len(before) == len(after):  # what one of them has no score on is left out of both
            pairs = [
                (a, b) if None not in (a, b) else (None, None)
                for a, b in zip(before, after, strict=True)
            ]
            before, after = [a for a, _ in pairs], [b for _, b in pairs]
        scale = self.scale
        student, best = ScoreSummary.of(before, scale), ScoreSummary.of(after, scale)
        return {"student": student, "best": best, "gain": Gain.between(before, after, scale)}


def _is_passing(rollout: Rollout) -> bool:
    """Whether it failed by no fault of the program, so that it may go well the next time."""
    failure = rollout.failure
    return failure is not None and failure.kind in (FailureKind.PROVIDER, FailureKind.WORKER)
