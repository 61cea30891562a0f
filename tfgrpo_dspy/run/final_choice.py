"""The end of a run: a race on the validation set says which program is returned."""

import logging
import math
import random
import statistics
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple, replace
from typing import Any

import dspy

from tfgrpo_dspy.budget.account import Account, Amount
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.events import RunEnded
from tfgrpo_dspy.experience.programs import named_predictors
from tfgrpo_dspy.gate.model import DEMOS_PRICE
from tfgrpo_dspy.gate.race import Race, Scores, scored
from tfgrpo_dspy.listeners.evaluations import Row, tell_evaluations
from tfgrpo_dspy.reflection.texts import estimate_tokens
from tfgrpo_dspy.results.records import (
    UNBOUNDED,
    DemoRecord,
    ExampleScores,
    Finalist,
    Gain,
    HeldOut,
    Scale,
    ScoreSummary,
    TriedAdvice,
)
from tfgrpo_dspy.results.rows import ExampleRow, RolloutRow
from tfgrpo_dspy.rollout import Rollout, floored, rollout_id_for
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.history import History
from tfgrpo_dspy.run.rollouts import Rollouts, Sample
from tfgrpo_dspy.run.rows import example_rows, measured_rows, worst_first
from tfgrpo_dspy.sampling.additions import Additions
from tfgrpo_dspy.sampling.demos import Demo
from tfgrpo_dspy.settings.checks import inputs_text, policy_lms

logger = logging.getLogger(__name__)

PRIORITY = (1,)  # these rollouts are begun before reflections and training rollouts
DEMOS_SD = 0.3
"""How much demos that no training rollout showed may add, in standard deviations of the score."""
DEMOS_ERROR = 0.25
"""How far the effect of demos on validation may be from that in training, in the same unit."""
DEMOS = "demos"  # the name of the demos among the parts of a candidate


class Measurements:
    """Rollouts of candidates on a set; those of an example have the same rollout id.

    The examples are measured in an order that the seed mixes: a budget may reach for the first ones
    only. A pair is the place of a candidate, and that of an example in this order. `history`
    gives the rollouts with what they count with.
    """

    def __init__(
        self,
        run: RunContext,
        role: str,
        examples: Sequence[Any],
        candidates: Sequence[Additions],
        history: History,
    ) -> None:
        self.candidates = candidates
        self.n_examples = len(examples)
        self._run, self._role, self._examples = run, role, examples
        mixed = random.Random(f"{role}/{run.settings.seed}")
        self._order = mixed.sample(range(len(examples)), len(examples))
        self._maker = Rollouts(run, role, examples, None)
        self._reward, self._known = history.reward, history.latest.known
        self._rollouts: dict[tuple[int, int], Rollout] = {}

    def make(self, pairs: Sequence[tuple[int, int]]) -> Sequence[Rollout]:
        """Make these rollouts. Raises RunStopped: a budget does not reach, or the run has ended.

        Then the first examples that every candidate of these pairs has finished still count.
        """
        samples = []
        for candidate, place in pairs:
            example = self._order[place]
            rollout_id = rollout_id_for(self._run.settings.seed, 0, example, 0, "validation")
            samples.append(Sample(self.candidates[candidate], example, rollout_id))
        made: dict[int, Rollout] = {}

        async def one(k: int) -> None:
            (made[k],) = await self._maker.make([samples[k]], PRIORITY)

        async def every() -> None:
            places = [place for _, place in pairs]
            done = 0
            while done < len(pairs):
                n = self._n_at_once(places[done:], made.values())
                for task in [self._run.loop.spawn(one(k)) for k in range(done, done + n)]:
                    await task
                done += n

        try:
            self._run.loop.run(every())
        finally:
            cut = {place for k, (_, place) in enumerate(pairs) if k not in made}
            kept = [k for k, (_, place) in enumerate(pairs) if place < min(cut, default=math.inf)]
            rollouts = self._reward([made[k] for k in kept])
            self._rollouts |= zip([pairs[k] for k in kept], rollouts, strict=True)
        return rollouts

    def _n_at_once(self, places: Sequence[int], made: Iterable[Rollout]) -> int:
        """How many of the pairs at these places are made next: those of whole examples.

        A budget can cut the pairs of one example only: the first is made alone, and then as many
        as there is budget for if each takes what the dearest has taken. So which examples are
        finished does not depend on the number of threads.
        """
        ledger = self._run.ledger
        n_of_one = sum(place == places[0] for place in places)
        if not ledger.limits_lm_calls:
            return len(places)
        usages = [r.usage + r.metric_usage for r in (*self._rollouts.values(), *made)]
        if not usages:
            return n_of_one
        calls = max(usage.n_lm_calls + usage.n_cached_calls for usage in usages)
        cost = max(usage.cost_usd for usage in usages)
        fitting = [math.inf if not each else ledger.left(name) / each
                   for name, each in (("max_lm_calls", calls), ("max_cost", cost))]  # fmt: skip
        n_examples = max(1, min(len(places), *fitting) // n_of_one)
        return int(n_examples * n_of_one)

    def make_all(self, n_examples: int) -> None:
        """Make the rollouts of all candidates on so many examples, as far as the budget reaches."""
        n_candidates = len(self.candidates)
        n_left = self._run.ledger.left("max_metric_calls") / n_candidates
        n = int(min(n_examples, max(1, n_left)))
        with suppress(RunStopped):
            self.make([(c, place) for place in range(n) for c in range(n_candidates)])
        means = self._means()
        if (result := means.get(n_candidates - 1)) is not None:
            self._run.report.progress.show_scores(student=means[0], result=result)

    def scores(self) -> Scores:
        """The score of each rollout.

        The program's own failure has the `failure_score` of these and the training scores. Where
        the provider, the clock or the metric failed there is no score.
        """
        scores = floored([*self._rollouts.values()], self._known)
        return dict(zip(self._rollouts, scores, strict=True))

    def scores_of(self, candidate: int) -> ExampleScores:
        """The candidate's scores by `scored`, in the order of the measurement."""
        return [score for (c, _), score in scored(self.scores()).items() if c == candidate]

    @property
    def scale(self) -> Scale:
        """The lowest and the highest score that was measured."""
        scores = [score for score in self.scores().values() if score is not None]
        return (min(scores), max(scores)) if scores else UNBOUNDED

    def objectives_of(self, candidate: int) -> dict[str, float]:
        """The means of the candidate's objectives, over the rollouts that have them."""
        found = [r.objectives for (c, _), r in self._rollouts.items() if c == candidate]
        names = dict.fromkeys(name for objectives in found for name in objectives)
        return {n: statistics.fmean(each[n] for each in found if n in each) for n in names}

    def show(self) -> None:
        """Show the mean scores of the student and of the best candidate so far."""
        if means := self._means():
            self._run.report.progress.show_scores(student=means[0], best=max(means.values()))

    def _means(self) -> dict[int, float]:
        """The mean scores of the candidates that were measured on all examples of the student."""
        scores = {c: self.scores_of(c) for c in range(len(self.candidates))}
        whole = {c: each for c, each in scores.items() if len(each) == len(scores[0])}
        known = {c: [s for s in each if s is not None] for c, each in whole.items()}
        return {c: statistics.fmean(each) for c, each in known.items() if each} if known[0] else {}

    def rows(self, candidate: int) -> list[Row]:
        """The candidate's scored examples with predictions and scores, in the set's order."""
        return [
            (self._examples[i], dspy.Prediction(**rollout.outputs), score)
            for i, (rollout, score) in sorted(self._by_example(candidate).items())
            if score is not None
        ]

    def _by_example(self, candidate: int) -> dict[int, tuple[Rollout, float | None]]:
        """The candidate's rollouts, with what they count with."""
        scores = self.scores()
        return {
            self._order[place]: (rollout, scores.get((c, place)))
            for (c, place), rollout in self._rollouts.items()
            if c == candidate
        }

    @property
    def rollouts(self) -> list[RolloutRow]:
        """The rollouts of all candidates."""
        return [
            row
            for c, candidate in enumerate(self.candidates)
            for row in measured_rows(self._role, candidate, self._by_example(c))
        ]

    def examples(self, place: int) -> list[ExampleRow]:
        """What the student and this candidate gave and scored on each example."""
        of = (self._by_example(0), self._by_example(place))
        return example_rows(self._role, self._examples, *of)

    def tell(self, *places: int) -> None:
        """Tell DSPy's callbacks what these candidates score, each once."""
        rows = ((self.candidates[place], self.rows(place)) for place in dict.fromkeys(places))
        tell_evaluations(self._role, self._run.student, rows)

    def outcome(self, place: int) -> dict[str, Any]:
        """The mean scores of the student and of this candidate, and the gain."""
        before, after = self.scores_of(0), self.scores_of(place)
        scale = self.scale
        student, best = ScoreSummary.of(before, scale), ScoreSummary.of(after, scale)
        return {"student": student, "best": best, "gain": Gain.between(before, after, scale)}


def finish(run: RunContext, history: History, valset: Sequence[Any], testset: Sequence[Any]) -> Any:
    """The student with the library that wins on validation, and `detailed_results` on it.

    With `NoGate`, the last library is returned, whether it is better or not.
    """
    demos = history.demos.choose(history.latest.best, set(map(inputs_text, valset)))
    run.ledger.open_reserve()
    if run.settings.metric is None:
        valset = testset = ()
    finalists: tuple[Finalist, ...] = ()
    candidates = _with_student(history, Additions(history.result()))
    if run.settings.measures and valset:
        candidates = _candidates(history, demos)
    measured = Measurements(run, "validation", valset, candidates, history)
    place = len(candidates) - 1
    if place and run.settings.measures and valset:
        place, finalists = _race(run, history, measured)
    else:
        measured.make_all(run.settings.n_validation)
    measured.tell(0, place)
    library = candidates[place].library  # with the tokens that each experience adds to a call
    priced = [replace(e, price=estimate_tokens(f"[{e.id}*] {e.text}\n")) for e in library]
    best = replace(candidates[place], library=library.holding(priced))
    ended_because = "" if run.ledger.is_failure else run.report.ended_because
    run.manifest.note(best, ended_because, history.repeated)
    n_more = 2 * (len(testset) - run.settings.data.n_test)  # of a run that was finished before
    if n_more > 0:
        run.ledger.raise_limits(*astuple(history.latest.account.reserve(n_more)))
    tested = _tested(run, history, testset, best)
    examples = [*measured.examples(place), *tested.examples(len(tested.candidates) - 1)]
    return _reported(
        run,
        history,
        best,
        [*measured.rollouts, *tested.rollouts],
        **measured.outcome(place),
        finalists=finalists,
        test=_held_out(run, tested),
        examples=worst_first(examples),
    )


def unmeasured(run: RunContext, history: History) -> Any:
    """The student with what it would be given if the run ended now, which no validation checked."""
    run.report.ended_because = "interrupted"
    best = Additions(history.result())
    return _reported(run, history, best, student=None, best=None)


def _reported(
    run: RunContext,
    history: History,
    given: Additions,
    rollouts: Sequence[RolloutRow] = (),
    **found: Any,
) -> Any:
    """The student with these additions, and `detailed_results`, which are recorded, too."""
    optimized = given.bake(run.student)
    results = run.report.results(
        is_student=given == Additions(history.start),
        tried=tuple(
            TriedAdvice(*advice, belief.effect, belief.chance)
            for advice, belief in history.decision.beliefs.items()
            if belief.effect
        ),
        n_demos=len(given.demos),
        demos=tuple(DemoRecord(demo.predictor, dict(demo.fields)) for demo in given.demos),
        program=type(run.student).__name__,
        origin=run.manifest.origin,
        library=given.library.to_dict(),
        instructions=_instructions(run.student, optimized),
        lms=(_names(policy_lms(run.student)), _names([run.settings.reflection_lm])),
        **found,
    )
    run.manifest.note_results(results, rollouts)
    run.report.tell(RunEnded(results, tuple(rollouts)))
    logger.info("the run ended (%s): %s", results.ended_because, results.in_a_line)
    optimized.detailed_results = results
    return optimized


def _instructions(student: Any, optimized: Any) -> dict[str, tuple[str, str]]:
    """The instructions of each predictor, before and after."""
    after = dict(named_predictors(optimized))
    return {
        name: (predictor.signature.instructions, after[name].signature.instructions)
        for name, predictor in named_predictors(student)
    }


def _names(lms: Sequence[Any]) -> str:
    return ", ".join(dict.fromkeys(str((lm or dspy.settings.lm).model) for lm in lms))


def _with_student(history: History, result: Additions) -> list[Additions]:
    """The student and the result; the result alone where it is the student."""
    student = Additions(history.start)
    return [result] if result == student else [student, result]


def _candidates(history: History, demos: tuple[Demo, ...]) -> list[Additions]:
    """The student and its rivals, each without and with demos."""
    candidates = [Additions(library) for library in (history.start, *history.finalists())]
    candidates += [replace(each, demos=demos) for each in candidates]
    return list(dict.fromkeys(candidates))


def _tested(
    run: RunContext, history: History, testset: Sequence[Any], best: Additions
) -> Measurements:
    """The student, which is first, and the result, which is last, on the test set."""
    candidates = _with_student(history, best)
    measured = Measurements(run, "test", testset, candidates, history)
    measured.make_all(len(testset))
    measured.tell(0, len(candidates) - 1)
    return measured


def _held_out(run: RunContext, tested: Measurements) -> HeldOut | None:
    """The scores on the test set, if there are any of both."""
    outcome = tested.outcome(len(tested.candidates) - 1)
    if outcome["student"] and outcome["best"]:
        return HeldOut(**outcome)
    if tested.n_examples:
        logger.warning("the test set was not measured: %s", run.ledger.stopped_because)
    return None


def _race(
    run: RunContext, history: History, measured: Measurements
) -> tuple[int, tuple[Finalist, ...]]:
    """The winner's place (0: student), and all that took part."""
    account, sd = history.latest.account, history.score_sd
    candidates = [_parts(candidate) for candidate in measured.candidates]
    parts = {part: (0.0, sd) for candidate in candidates for part in candidate}
    parts |= {advice: (b.mean, b.sd) for advice, b in history.decision.beliefs.items()}
    belief = history.decision.demos
    parts[DEMOS] = (0.0, DEMOS_SD * sd)
    if belief and belief.n_rollouts:
        parts[DEMOS] = (belief.mean, math.hypot(belief.sd, DEMOS_ERROR * sd))
    prices = {DEMOS: DEMOS_PRICE * sd}
    race = Race(tuple(candidates), parts, prices, sd, measured.n_examples)
    with suppress(RunStopped):  # what was measured by then decides
        while pairs := _next_round(run, race, account, measured.scores()):
            account = account.after_rollouts(measured.make(pairs))
            measured.show()
    scores = measured.scores()
    best = race.winner(scores)
    finalists = [
        Finalist(
            ids=tuple(experience.id for experience in candidate.library),
            has_demos=bool(candidate.demos),
            score=ScoreSummary.of(measured.scores_of(c), measured.scale),
            chance=race.chance(c, 0, scores),
            is_best=c == best,
            objectives=measured.objectives_of(c),
        )
        for c, candidate in enumerate(measured.candidates)
        if (c, 0) in scores
    ]
    if len(finalists) < 2 <= len(candidates) and not run.ledger.is_failure:
        logger.warning(
            "the result could not be measured, so the student is returned: %s; allow more, or "
            "pass a smaller valset",
            run.report.ended_because,
        )
    return best, tuple(finalists)


def _next_round(
    run: RunContext, race: Race, account: Account, scores: Scores
) -> list[tuple[int, int]]:
    """What the race measures next; what the test set needs is kept.

    While the student leads, the test set needs half of that: the race goes on with the other half.
    A candidate that wins by it is measured on fewer test examples, and the student on the same.
    """
    data = run.settings.data
    pairs = race.next(scores, _n_left(run, account, data.n_of_test_set))
    if scores and not pairs and race.winner(scores) == 0:
        pairs = race.next(scores, _n_left(run, account, data.n_test))
    return pairs


def _parts(candidate: Additions) -> frozenset[Hashable]:
    """What it has more than the bare program: its advice, and the demos."""
    advice: set[Hashable] = {experience.advice for experience in candidate.library}
    return frozenset(advice | {DEMOS} if candidate.demos else advice)


def _n_left(run: RunContext, account: Account, n_reserved: int) -> int | None:
    """How many rollouts the budget pays for; None: it sets no limit."""
    each, used, ledger = account.later, account.used, run.ledger
    lost = Amount(  # calls that came to nothing, and the worst that the last call may cost
        ledger.n_lost + max(0.0, ledger.n_lm_calls - used.n_lm_calls),
        max(0.0, ledger.n_metric_calls - used.n_metric_calls),
        ledger.lost + max(run.settings.data.dollars_of_dearest_call, ledger.dearest),
    )
    n, _ = account.n_fitting(each, each * n_reserved + lost)
    return None if math.isinf(n) else int(n)
