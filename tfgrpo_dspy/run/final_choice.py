"""The end of a run: a race on the validation set says which program is returned."""

import functools
import logging
import math
import random
import statistics
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from typing import Any

import dspy

from tfgrpo_dspy.budget.ledger import Amount
from tfgrpo_dspy.budget.prices import Prices, token_price
from tfgrpo_dspy.calls.paid import Account, Calls, Rollouts, Sample
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.events import RunEnded
from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.experience.programs import instructions_of, named_predictors
from tfgrpo_dspy.gate.bayesian import LIKELY
from tfgrpo_dspy.gate.model import BRIEFS_PRICE, DEMOS_PRICE
from tfgrpo_dspy.gate.race import Race, Scores
from tfgrpo_dspy.listeners import example_rows, objective_means, rollout_row, worst_first
from tfgrpo_dspy.reflection.texts import estimate_tokens
from tfgrpo_dspy.results import records
from tfgrpo_dspy.rollout import FailureKind, Rollout, floored, rollout_id_for
from tfgrpo_dspy.run.briefing import leading
from tfgrpo_dspy.run.history import History
from tfgrpo_dspy.sampling.additions import Additions
from tfgrpo_dspy.sampling.fields import Example
from tfgrpo_dspy.settings.checks import policy_lms
from tfgrpo_dspy.settings.schedule import MIN_PROGRAMS_MEASURED, MIN_VALIDATION, RunInputs
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
        left = self._calls.ledger.left()
        n_of_one = sum(place == places[0] for place in places)
        if math.isinf(left.n_lm_calls) and math.isinf(left.cost):
            return len(places)
        usages = [r.usage + r.metric_usage for r in (*self._rollouts.values(), *more)]
        if not usages:
            return n_of_one
        calls = max(usage.n_answers for usage in usages)
        cost = max(usage.cost_usd for usage in usages)
        fitting = [math.inf if not each else most / each
                   for most, each in ((left.n_lm_calls, calls), (left.cost, cost))]  # fmt: skip
        n_examples = max(1, min(len(places), *fitting) // n_of_one)
        return int(n_examples * n_of_one)

    def make_all(self, n_examples: int) -> None:
        """Make the rollouts of all candidates on `n_examples`, as far as the budget reaches."""
        n_candidates = len(self.candidates)
        n_left = self._calls.ledger.left().n_metric_calls / n_candidates
        n = int(min(n_examples, max(1, n_left)))
        with suppress(RunStopped):
            self.make([(c, place) for place in range(n) for c in range(n_candidates)])
        means = self._means()
        if (result := means.get(n_candidates - 1)) is not None:
            self._calls.report.show_scores(student=means[0], result=result)

    def scores(self) -> Scores:
        """The score that each rollout counts with, by `floored` and the training scores.

        What a candidate has more than the student may be the cause of its failures.
        """
        rollouts = [*self._rollouts.values()]
        of_student = floored(rollouts, self._score_range)
        of_rival = floored(rollouts, self._score_range, for_advice=True)
        triples = zip(self._rollouts, of_student, of_rival, strict=True)
        return {pair: rival if pair[0] else student for pair, student, rival in triples}

    def scores_of(self, candidate: int) -> records.ExampleScores:
        """The candidate's scores, in the order of the measurement."""
        return [score for (c, _), score in self.scores().items() if c == candidate]

    @property
    def scale(self) -> records.Scale:
        """The lowest and the highest score that was measured."""
        scores = [score for score in self.scores().values() if score is not None]
        return (min(scores), max(scores)) if scores else records.UNBOUNDED

    def objectives_of(self, candidate: int) -> dict[str, float]:
        """The means of the candidate's objectives, over the rollouts that have them."""
        rollouts = self._rollouts.items()
        return objective_means(r.objectives for (c, _), r in rollouts if c == candidate)

    def show(self) -> None:
        """Show the mean scores of the student and of the best candidate so far."""
        if means := self._means():
            self._calls.report.show_scores(student=means[0], best=max(means.values()))

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
    def rollouts(self) -> list[records.Row]:
        """The rollouts of all candidates."""
        return [
            rollout_row(rollout, self._role, candidate)
            for c, candidate in enumerate(self.candidates)
            for rollout, _ in self._by_example(c).values()
        ]

    def examples(self, place: int) -> list[records.ExampleRow]:
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
        student, best = (
            records.ScoreSummary.of(before, scale),
            records.ScoreSummary.of(after, scale),
        )
        return {
            "student": student,
            "best": best,
            "gain": records.Gain.between(before, after, scale),
        }


def _is_passing(rollout: Rollout) -> bool:
    """Whether it failed by no fault of the program, so that it may go well the next time."""
    failure = rollout.failure
    return failure is not None and failure.kind in (FailureKind.PROVIDER, FailureKind.WORKER)


logger = logging.getLogger(__name__)

DEMOS_SD = 0.3
"""How much demos that no training rollout showed may add, in standard deviations of the score."""
DEMOS_ERROR = 0.25
"""How far the effect of demos on validation may be from that in training, in the same unit."""
BRIEF = "brief"  # the first part of the name of one, among the parts of a candidate
BRIEFS_ERROR, BRIEFS_MEASURED = 0.1, 3
"""The same error of briefs; how many of them are candidates."""
SMALLEST_ROUND = MIN_PROGRAMS_MEASURED * MIN_VALIDATION  # the fewest rollouts of a round


class FinalChoice:
    """Chooses the program that a run returns, which ended for this reason."""

    def __init__(
        self, inputs: RunInputs, calls: Calls, history: History, ended_because: str
    ) -> None:
        self._inputs, self._settings, self._calls = inputs, inputs.settings, calls
        self._ledger, self._journal, self._report = calls.ledger, calls.journal, calls.report
        self._history, self._ended_because = history, ended_because

    def finish(self) -> Any:
        """The student with the library that wins on validation, and `detailed_results` on it.

        With `NoGate`, or without a metric or a validation set, there is no race, and the last
        library is returned, whether it is better or not.
        """
        valset = () if self._settings.metric is None else self._inputs.valset
        entries: dict[int, records.Candidate] = {}
        why = "the last library, be it better or worse: there is no race"
        if is_race := self._settings.measures and bool(valset):
            candidates = _candidates(self._history, {example.identity for example in valset})
        else:
            candidates = _with_student(self._history, Additions(self._history.result()))
        self._ledger.open_reserve()  # not before: a gate that hangs could spend it
        measured = self._measurements("validation", valset, candidates)
        if is_race:
            place, entries, why = self._race(measured)
        else:
            place = len(candidates) - 1
            measured.make_all(self._settings.n_validation)
        best = _priced(candidates[place])
        tested = self._tested(best)
        last = len(tested.candidates) - 1
        examples = [*measured.examples(place), *tested.examples(last)]
        return self._reported(
            best,
            [*measured.rollouts, *tested.rollouts],
            "" if self._ledger.is_failure else self._ended_because,
            **measured.outcome(place),
            candidates=tuple(entries.values()),
            taken_because=_reason(why, place, entries),
            test=self._held_out(tested),
            examples=worst_first(examples),
        )

    def unmeasured(self) -> Any:
        """The student with the library of an interrupted run, which no validation checked."""
        best = Additions(self._history.result())
        return self._reported(best, student=None, best=None)

    def _reported(
        self,
        additions: Additions,
        rollouts: Sequence[records.Row] = (),
        finished_because: str = "",
        **fields: Any,
    ) -> Any:
        """The student with these additions, and `detailed_results`, which are recorded, too."""
        optimized = additions.bake(self._inputs.student)
        results = self._report.results(
            ended_because=self._ended_because,
            is_student=additions == Additions(self._history.start),
            tried=tuple(
                records.TriedAdvice(text, scope, belief.effect, belief.chance)
                for (text, scope), belief in self._history.decision.beliefs.items()
                if belief.effect
            ),
            switched=self._history.switched,
            n_demos=len(additions.demos),
            briefs=tuple(self._brief_records(additions)),
            demos=tuple(
                records.DemoRecord(demo.predictor, dict(demo.fields)) for demo in additions.demos
            ),
            program=type(self._inputs.student).__name__,
            origin=self._journal.origin,
            added=self._added(additions),
            library=additions.library.to_dict(),
            instructions=instructions_of(self._inputs.student, optimized),
            lms=(_names(policy_lms(self._inputs.student)), _names([self._settings.reflection_lm])),
            **fields,
        )
        self._journal.note_end(additions, finished_because, results, rollouts, self._ledger)
        self._report.tell(RunEnded(results, tuple(rollouts)))
        logger.info("the run ended (%s): %s", results.ended_because, results.in_a_line)
        optimized.detailed_results = results
        return optimized

    def _brief_records(self, result: Additions) -> Iterator[records.BriefRecord]:
        latest = self._history.latest
        for brief, belief in zip(latest.briefs, latest.decision.briefs, strict=True):
            texts = dict(brief.texts)
            is_best = texts.items() <= dict(result.library.briefs).items()
            yield records.BriefRecord(texts, belief.effect, belief.chance, is_best)

    def _added(self, additions: Additions) -> records.Added:
        prices = self._settings.execution.prices or {}
        return added_by(additions, self._inputs.student, prices)

    def _measurements(
        self, role: str, examples: Sequence[Example], candidates: list[Additions]
    ) -> Measurements:
        history = self._history
        return Measurements(self._inputs, self._calls, role, examples, candidates, history)

    def _tested(self, best: Additions) -> Measurements:
        """The student, which is first, and the result, which is last, on the test set.

        One that came after the run was finished is paid for beyond its limits.
        """
        testset = self._inputs.testset
        n_more = 2 * (len(testset) - self._settings.data.n_test)
        if n_more > 0:
            account = self._history.latest.account
            more = account.of_later(n_more) + Amount(cost=account.last_call)
            n_calls, n_metric_calls = map(math.ceil, (more.n_lm_calls, more.n_metric_calls))
            self._journal.cut_because = ""
            self._ledger.open_reserve(Amount(n_calls, n_metric_calls, more.cost))
        candidates = _with_student(self._history, best)
        measured = self._measurements("test", testset, candidates)
        measured.make_all(len(testset))
        return measured

    def _held_out(self, tested: Measurements) -> records.HeldOut | None:
        """The scores on the test set, if there are any of both."""
        outcome = tested.outcome(len(tested.candidates) - 1)
        if outcome["student"] and outcome["best"]:
            return records.HeldOut(**outcome)
        if tested.n_examples:
            logger.warning("the test set was not measured: %s", self._ledger.stopped_because)
        return None

    def _race(self, measured: Measurements) -> tuple[int, dict[int, records.Candidate], str]:
        """The winner's place (0: student), all that took part by their places, and why it won."""
        account, sd = self._history.latest.account, self._history.score_sd
        candidates = [_parts(candidate) for candidate in measured.candidates]
        parts: dict[Hashable, tuple[float, float]] = {
            part: (0.0, sd) for candidate in candidates for part in candidate
        }
        parts |= {advice: (b.mean, b.sd) for advice, b in self._history.decision.beliefs.items()}
        sets = range(1, self._history.demos.n_sets + 1)
        parts |= {number: (0.0, DEMOS_SD * sd) for number in sets}
        briefs: dict[Hashable, tuple[float, float]] = {
            (BRIEF, number): (belief.mean, math.hypot(belief.sd, BRIEFS_ERROR * sd))
            for number, belief in enumerate(self._history.decision.briefs, start=1)
        }
        parts |= briefs
        beliefs = self._history.decision.demos
        if any(belief.n_rollouts for belief in beliefs):
            errors = (math.hypot(belief.sd, DEMOS_ERROR * sd) for belief in beliefs)
            parts |= zip(sets, zip((b.mean for b in beliefs), errors, strict=True), strict=True)
        prices: dict[Hashable, float] = dict.fromkeys(sets, DEMOS_PRICE * sd)
        prices |= dict.fromkeys(briefs, BRIEFS_PRICE * sd)
        of_lines = self._history.decision.beliefs.items()
        doubtful = frozenset(advice for advice, b in of_lines if b.chance < LIKELY)
        doubtful -= candidates[0]  # what the student had is not of this run
        first = int(leading(self._history.decision) > 0)  # what training alone would choose
        n_tokens = tuple(self._added(each).n_tokens for each in measured.candidates)
        race = Race(
            tuple(candidates), parts, prices, sd, measured.n_examples, n_tokens, first, doubtful
        )
        is_untried = measured.candidates[1:] == [Additions(self._history.untried)]
        with suppress(RunStopped):  # what was measured by then decides
            while pairs := self._next_round(race, account, measured.scores()):
                if is_untried and not measured.scores():
                    measured.make(pairs[:1])  # the student alone: maybe it does not reach for both
                account = account.after_rollouts(measured.make(pairs))
                measured.show()
        scores = measured.scores()
        best = race.winner(scores)
        entries: dict[int, records.Candidate] = {}
        for c, additions in enumerate(measured.candidates):
            if (c, 0) in scores:
                n_others = sum(bool(place) and place != best for place in entries) + 1
                entries[c] = records.Candidate(
                    name="student" if not c else "result" if c == best else f"candidate {n_others}",
                    ids=tuple(experience.id for experience in additions.library),
                    demo_set=additions.demo_set,
                    brief=additions.brief,
                    score=records.ScoreSummary.of(measured.scores_of(c), measured.scale),
                    chance=race.chance(c, 0, scores),
                    is_best=c == best,
                    objectives=measured.objectives_of(c),
                    added=self._added(additions),
                    bake=functools.partial(additions.bake, self._inputs.student),
                )
        if len(entries) < 2 <= len(candidates) and not self._ledger.is_failure:
            logger.warning(
                "the result could not be measured, so the student is returned: %s; allow more, or "
                "pass a smaller valset",
                self._ended_because,
            )
        return best, entries, race.why(scores)

    def _next_round(self, race: Race, account: Account, scores: Scores) -> list[tuple[int, int]]:
        """The rollouts that the race measures next, beside what the test set needs.

        Where that leaves hardly anything, the first round has half of all, and begins with one
        example in any case: the ledger says whether that can be paid. While the student leads, the
        test set needs half of what both need: the race goes on with the other half. A candidate
        that wins by it is measured on fewer test examples, and the student on the same.
        """
        data = self._settings.data
        n_left = self._n_left(account, data.n_of_test_set)
        if n_left is not None and not scores and n_left < SMALLEST_ROUND:
            n_in_all = self._n_left(account, 0) or 0
            n_left = max(MIN_PROGRAMS_MEASURED, n_left, n_in_all // 2)
        pairs = race.next(scores, n_left)
        if scores and not pairs and race.winner(scores) == 0:
            n_left = self._n_left(account, data.n_test)
            pairs = race.next(scores, n_left)
        return pairs

    def _n_left(self, account: Account, n_reserved: int) -> int | None:
        """How many rollouts the budget pays for beside these; None: it sets no limit."""
        later, lost = account.later, (self._ledger.taken - account.used) | Amount()
        # calls that came to nothing, and the worst that the last call may cost
        kept = later * n_reserved + replace(lost, cost=account.last_call)
        n, _ = account.n_fitting(later, kept)
        return None if math.isinf(n) else int(n)


def _priced(result: Additions) -> Additions:
    """The result, each experience with the tokens that it adds to a call."""
    priced = [replace(e, n_tokens=estimate_tokens(f"[{e.id}*] {e.text}\n")) for e in result.library]
    return replace(result, library=result.library.holding(priced))


def added_by(additions: Additions, student: Any, prices: Prices) -> records.Added:
    """The tokens that these add to each call of the student, and the dollars, where known."""
    library, demos = additions.library, Counter[str]()
    for demo in additions.demos:
        shown = "\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in demo.fields)
        demos[demo.predictor] += estimate_tokens(shown)
    bare, briefed, whole = (
        _sizes(each.bake(student)) for each in (ExperienceLibrary(), library.holding(()), library)
    )
    before, dollars = _sizes(student), list[float | None]()
    for name, predictor in named_predictors(student):
        price = token_price(predictor.lm or dspy.settings.lm, prices)
        n_more = whole[name] - before[name] + demos[name]
        dollars.append(None if isinstance(price, str) else 1000 * n_more * price.prompt)
    of_briefs = briefed.total() - bare.total()
    return records.Added(
        lines=whole.total() - before.total() - of_briefs,
        briefs=of_briefs,
        demos=demos.total(),
        dollars=None if None in dollars else sum(each or 0.0 for each in dollars),
    )


def _sizes(program: Any) -> Counter[str]:
    """The tokens of the instructions of each predictor."""
    predictors = named_predictors(program)
    return Counter({name: estimate_tokens(p.signature.instructions) for name, p in predictors})


def _reason(why: str, place: int, entries: Mapping[int, records.Candidate]) -> str:
    """Why the result was taken, also where another candidate beats it in every objective."""
    result, others = entries.get(place), entries.values()
    if result is None or not any(other.dominates(result) for other in records.compared([*others])):
        return why
    return f"{why}; another is better in every objective, and not surely in the score"


def _names(lms: Sequence[Any]) -> str:
    return ", ".join(dict.fromkeys(str((lm or dspy.settings.lm).model) for lm in lms))


def _with_student(history: History, result: Additions) -> list[Additions]:
    """The student and the result; the result alone where it is the student."""
    student = Additions(history.start)
    return [result] if result == student else [student, result]


def _candidates(history: History, hidden: Set[str]) -> list[Additions]:
    """The student and its rivals, each without and with the likeliest set of demos.

    The other sets are there without advice, and so are the briefs, but for the likeliest one.
    """
    latest, finalists = history.latest, history.finalists()
    beliefs_of_briefs = enumerate(latest.decision.briefs, start=1)
    means = {k: b.mean for k, b in beliefs_of_briefs if b.chance > LIKELY}
    briefs = sorted(means, key=lambda k: -means[k])
    bare = [Additions(library) for library in (history.start, *finalists)]
    if lead := leading(latest.decision):
        bare.insert(1, Additions(history.result(), brief=lead))
    for place, number in enumerate(briefs[:BRIEFS_MEASURED]):
        beside = (history.start, *finalists) if place == 0 else (history.start,)
        bare += [Additions(latest.briefed(each, number), brief=number) for each in beside]
    candidates = {(each.library, each.demos): each for each in bare}
    beliefs = dict(enumerate(history.decision.demos, start=1))
    numbers = range(1, history.demos.n_sets + 1)
    for number in sorted(numbers, key=lambda k: -beliefs[k].mean if beliefs else k):
        demos = history.demos.choose(number, history.latest.best, hidden)
        for each in bare if demos else ():
            shown = replace(each, demos=demos, demo_set=number)
            candidates.setdefault((each.library, demos), shown)
        bare = bare[:1]
    return list(candidates.values())


def _parts(candidate: Additions) -> frozenset[Hashable]:
    """What a candidate adds to the bare program: a part for each advice, one for its demos."""
    advice: set[Hashable] = {experience.advice for experience in candidate.library}
    advice |= {(BRIEF, candidate.brief)} if candidate.brief else set()
    return frozenset(advice | {candidate.demo_set} if candidate.demos else advice)
