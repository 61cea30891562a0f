"""What a run decides: each update, by the gate; at the end, by a race, the program it returns."""

import functools
import logging
import math
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import dspy

from tfgrpo_dspy import listeners
from tfgrpo_dspy import results as records
from tfgrpo_dspy.budget import Amount, token_price
from tfgrpo_dspy.calls import Account, Calls, Rollouts, Sample
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.events import RunEnded, UpdateDecided
from tfgrpo_dspy.experience import ALL, Add, Applied, ExperienceLibrary, Keep, Modify, supported
from tfgrpo_dspy.gate.bayesian import LIKELY, Decision, Measured, RunEvidence, uncovered
from tfgrpo_dspy.gate.model import BRIEFS_PRICE, DEMOS_PRICE, Race, Scores, score_sd
from tfgrpo_dspy.pool import Job
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.modules import LEAST_SHOWN
from tfgrpo_dspy.rollout import NO_SCORES, FailureKind, Rollout, ScoreRange, floored, rollout_id_for
from tfgrpo_dspy.run.groups import Groups
from tfgrpo_dspy.run.planning import TEACHING, Batch, Brief, Extracted, Planner, Update, record_of
from tfgrpo_dspy.run.reflecting import leading
from tfgrpo_dspy.sampling.examples import Additions, Example
from tfgrpo_dspy.settings import MIN_PROGRAMS_MEASURED, MIN_VALIDATION, RunInputs
from tfgrpo_dspy.settings.preparation import policy_lms
from tfgrpo_dspy.strategies.attempts import Auto, needs_hints, unlike_spreads
from tfgrpo_dspy.text import estimate_tokens
from tfgrpo_dspy.user_code import instructions_of, named_predictors

logger = logging.getLogger(__name__)

PRIORITY = (1,)  # these rollouts are begun before reflections and training rollouts
DEMOS_SD = 0.3
"""How much demos that no training rollout showed may add, in standard deviations of the score."""
DEMOS_ERROR = 0.25
"""How far the effect of demos on validation may be from that in training, in the same unit."""
BRIEF = "brief"  # the first part of the name of one, among the parts of a candidate
BRIEFS_ERROR, BRIEFS_MEASURED = 0.1, 3
"""The same error of briefs; how many of them are candidates."""
SMALLEST_ROUND = MIN_PROGRAMS_MEASURED * MIN_VALIDATION  # the fewest rollouts of a round
Pair = tuple[int, int]
"""The place of a candidate, and that of an example in the order of the measurement."""


class Measurements:
    """Rollouts of candidates on a set; those of an example have the same rollout id.

    The examples are measured in an order that the seed mixes: a budget may reach for the first ones
    only.
    """

    def __init__(
        self,
        decisions: "Decisions",
        role: str,
        examples: Sequence[Example],
        candidates: list[Additions],
    ) -> None:
        self.candidates, self.examples, self._role = candidates, examples, role
        inputs, calls = decisions.inputs, decisions.calls
        self._settings, self._calls, self._decisions = inputs.settings, calls, decisions
        mixed = random.Random(f"{role}/{self._settings.seed}")
        self._order = mixed.sample(range(len(examples)), len(examples))
        self._maker = Rollouts(inputs, calls, role, examples)
        self._rollouts: dict[Pair, Rollout] = {}  # those that count

    def make(self, pairs: Sequence[Pair]) -> Sequence[Rollout]:
        """Make those of these rollouts that are not made yet, and give all.

        Raises RunStopped: a budget does not reach, or the run has ended.
        Then the first examples that every candidate of these pairs has finished still count.
        """
        samples, begun, seed = dict[Pair, Sample](), dict[Pair, Job[Rollout]](), self._settings.seed
        for candidate, place in pairs:
            example = self._order[place]
            rollout_id = rollout_id_for(seed, 0, example, 0, "validation")
            samples[candidate, place] = Sample(self.candidates[candidate], example, rollout_id)
        has_clock, pool = self._settings.max_minutes is not None, self._calls.pool
        try:
            with pool.running():
                while left := pairs[len(begun) :]:
                    part = left[: self._n_at_once(left, [job.value for job in begun.values()])]
                    # one candidate after the other: their prompts begin alike, which providers and
                    # llama.cpp read only once; with a clock, which may end it, one example after it
                    order = part if has_clock else sorted(part)
                    begun |= {pair: self._maker.begin(samples[pair], PRIORITY) for pair in order}
                    for pair in order:
                        pool.result(begun[pair])
                with suppress(RunStopped):  # what a budget does not pay for stays without a score
                    for pair, job in begun.items():
                        failure = job.value.failure
                        if failure and failure.kind in (FailureKind.PROVIDER, FailureKind.WORKER):
                            again = self._maker.again(samples[pair], PRIORITY)  # once more
                            begun[pair] = again if pool.result(again) else job
        finally:
            finished = {pair: job.value for pair, job in begun.items() if job.is_done}
            cut = min((pair[1] for pair in pairs if pair not in finished), default=math.inf)
            kept = [pair for pair in pairs if pair[1] < cut]
            reward = self._decisions.groups.rewarded
            rollouts = pool.call(lambda: reward([finished[pair] for pair in kept]))
            self._rollouts |= zip(kept, rollouts, strict=True)
        return rollouts

    def _n_at_once(self, pairs: Sequence[Pair], more: Iterable[Rollout]) -> int:
        """How many of these pairs are made next: those of whole examples.

        A budget can cut the pairs of one example only: the first is made alone, and then as many
        as there is budget for if each takes what the dearest has taken. So which examples are
        finished does not depend on the number of threads.
        """
        left = self._calls.ledger.left()
        n_of_one = sum(place == pairs[0][1] for _, place in pairs)
        if math.isinf(left.n_lm_calls) and math.isinf(left.cost):
            return len(pairs)
        usages = [r.usage + r.metric_usage for r in (*self._rollouts.values(), *more)]
        if len(usages) < n_of_one:
            return n_of_one
        dearest = max(usage.n_answers for usage in usages), max(usage.cost_usd for usage in usages)
        pairs_left = zip((left.n_lm_calls, left.cost), dearest, strict=True)
        fitting = [most / each for most, each in pairs_left if each]
        return int(max(1, min([len(pairs), *fitting]) // n_of_one) * n_of_one)

    def make_all(self, n_examples: int) -> None:
        """Make the rollouts of all candidates on `n_examples`, as far as the budget reaches."""
        places = range(len(self.candidates))
        n_left = self._calls.ledger.left().n_metric_calls / len(places)
        n = int(min(n_examples, max(1, n_left)))
        with suppress(RunStopped):
            self.make([(c, place) for place in range(n) for c in places])

    def scores(self) -> Scores:
        """The score that each rollout counts with, by `floored` and the training scores.

        What a candidate has more than the student may be the cause of its failures.
        """
        rollouts, scores = [*self._rollouts.values()], self._decisions.latest.score_range
        of_student, of_rival = (floored(rollouts, scores, is_rival) for is_rival in (False, True))
        triples = zip(self._rollouts, of_student, of_rival, strict=True)
        return {pair: rival if pair[0] else student for pair, student, rival in triples}

    def scores_of(self, candidate: int) -> list[float | None]:
        """The candidate's scores, in the order of the measurement."""
        return [score for (c, _), score in self.scores().items() if c == candidate]

    @property
    def scale(self) -> ScoreRange:
        """The lowest and the highest score that was measured."""
        return NO_SCORES.including(self.scores().values())

    def objectives_of(self, candidate: int) -> dict[str, float]:
        """The means of the candidate's objectives, over the rollouts that have them."""
        rollouts = self._rollouts.items()
        return listeners.objective_means(r.objectives for (c, _), r in rollouts if c == candidate)

    @property
    def rows(self) -> list[records.Row]:
        """The rows of the rollouts of all candidates."""
        rollouts = sorted(self._rollouts.items(), key=lambda pair: pair[0][0])
        return [listeners.rollout_row(r, self._role, self.candidates[c]) for (c, _), r in rollouts]

    def example_rows(self, candidate: int) -> list[records.ExampleRow]:
        """What the student and this candidate gave and scored on each example."""
        scores, rollouts = self.scores(), self._rollouts.items()
        student, result = (
            {self._order[p]: (r, scores[c, p]) for (c, p), r in rollouts if c == which}
            for which in (0, candidate)
        )
        return listeners.example_rows(self._role, self.examples, student, result)

    def outcome(self, candidate: int) -> dict[str, Any]:
        """The mean scores of the student and of this candidate, and the gain."""
        before, after, scale = self.scores_of(0), self.scores_of(candidate), self.scale
        if len(before) == len(after):  # what one of them has no score on is left out of both
            pairs = [*zip(before, after, strict=True)]
            before, after = ([None if None in p else p[k] for p in pairs] for k in (0, 1))
        return {
            "student": records.ScoreSummary.of(before, scale),
            "best": records.ScoreSummary.of(after, scale),
            "gain": records.Gain.between(before, after, scale),
        }


class Decisions:
    """The updates of one run, from the student's library `start` on; the choice of its result."""

    def __init__(self, inputs: RunInputs, calls: Calls, groups: Groups) -> None:
        self.start = ExperienceLibrary.from_program(inputs.student)
        self.updates = [Update(0, Decision(self.start, "the library of the student"), calls.so_far)]
        self.plan = Planner(inputs, groups.sizes, calls.ledger, self.updates)
        calls.lessons = self._lessons_to_come
        self.inputs, self.calls, self._settings = inputs, calls, inputs.settings
        self.groups = groups
        shows = inputs.settings.shows_labels  # the labels, to the reflection LM
        parts = [(each.text, each.labels_text * shows) for each in inputs.examples]
        self._texts = tuple("\n".join(filter(None, of_example)) for of_example in parts)
        self.changes = listeners.Changes(self._texts)
        self._measured: list[Measured] = []
        self._bake = functools.cache(lambda lib: Additions(lib).bake(inputs.student, lambda lm: lm))

    def _lessons_to_come(self) -> Amount:
        settings, n = self._settings, 0
        for batch in self.plan.batches[self.latest.number :]:
            planned = 1 + math.ceil(len(batch.examples) / settings.groups_per_call)
            planned += sum(batch.sizes.values()) * settings.reflection.summarize_always
            if batch.is_draft:
                planned += settings.drafts + settings.n_briefs * len(self.inputs.predictors)
            n += max(0, planned - self.calls.n_asked[batch.update])
        return self.latest.account.per_answer * n

    @property
    def latest(self) -> Update:
        """The latest decided update, or the start."""
        return self.updates[-1]

    @property
    def decision(self) -> Decision:
        """The latest decision."""
        return self.latest.decision

    def decide(self, batch: Batch, extracted: Extracted, proposed: Applied) -> None:
        """The gate decides on the next update. Raises GateError: it gave no decision."""
        calls, before, new = self.calls, self.latest, extracted.groups
        groups = (*before.groups, *new)
        rollouts = (rollout for sampled in new for rollout in sampled.unaided.all_rollouts)
        scores = before.score_range.including(rollout.score for rollout in rollouts)
        rollouts = (rollout for sampled in new for rollout in sampled.by_metric.all_rollouts)
        by_metric = before.by_metric.including(rollout.score for rollout in rollouts)
        # failures of all groups count as the lowest score so far
        is_other = scores.failure_score != before.score_range.failure_score
        self._measured = [] if is_other else self._measured
        for sampled in groups if is_other else new:  # those that had aid are no evidence
            pairs = zip(sampled.additions, sampled.aids, strict=True)
            counted = floored(sampled.unaided.all_rollouts, scores, for_advice=True)
            for one, score in zip([a for a, aid in pairs if not aid], counted, strict=True):
                example, demo_set, brief = sampled.group.example, one.demo_set, one.brief
                self._measured.append(Measured(one.library, example, score, demo_set, brief))
        n_examples = self.plan.n_usual(batch, [sampled.group.example for sampled in new])
        taken = {brief.texts for brief in before.briefs} | {()}
        written = {brief.texts: brief for brief in proposed.briefs if brief.texts not in taken}
        briefs = (*before.briefs, *written.values())
        n_asked = sum(use in TEACHING for use in extracted.uses)
        is_new = any(isinstance(operation, Add | Modify) for operation in proposed.operations)
        update = Update(
            number=before.number + 1,
            decision=calls.pool.call(lambda: self._decision(proposed, briefs)),
            account=before.account.after(calls.journal.of(batch.update), n_examples),
            extracted=extracted, score_range=scores, by_metric=by_metric,
            n_in_vain=0 if is_new else before.n_in_vain + n_asked, groups=groups, briefs=briefs,
            n_unwritten=before.n_unwritten + len(proposed.briefs) - len(written),
        )  # fmt: skip
        self.updates.append(update)
        calls.renew()
        library, decision = before.decision.library, update.decision
        changes = self.changes.of_update(library, proposed, new, extracted.lessons, decision)
        rows = listeners.training_rows(batch.update, new)
        record = record_of(batch, update, proposed, changes)
        calls.report.add_update(UpdateDecided(record, decision.library, rows))
        calls.journal.note_update(self.result(), record, rows, calls.ledger)

    @property
    def switched(self) -> tuple[str, ...]:
        """What strategies have switched on by themselves, by the decided updates."""
        is_auto = any(isinstance(one, Auto) for one in self._settings.strategies)
        has_hints = needs_hints(self.latest.groups) and self._settings.shows_labels
        on = {"TieredHints": has_hints, "Objectives": unlike_spreads(self.groups.first or ())}
        return tuple(f"auto: {name} is on" for name, why in on.items() if is_auto and why)

    def _decision(self, proposed: Applied, briefs: Sequence[Brief]) -> Decision:
        evidence = RunEvidence(
            previous=self.decision, operations=proposed.operations,
            rollouts=tuple(self._measured), texts=self._texts, training=self.inputs.training,
            limits=self._settings.limits, n_demo_sets=self.groups.demos.n_sets,
            parents=tuple(brief.parent for brief in briefs),
        )  # fmt: skip
        wanted = "return a Decision on a library"
        decision: Decision = self.groups.ask_gate("decide", evidence, wanted)
        keeps = {op.id: op for op in proposed.operations if isinstance(op, Keep)}

        def kept(library: ExperienceLibrary) -> ExperienceLibrary:
            return library.holding(supported(e, keeps.get(e.id, e)) for e in library)

        deployable = decision.deployable and kept(decision.deployable)
        return replace(decision, library=kept(decision.library), deployable=deployable)

    def result(self) -> Additions:
        """What a program would get if the run ended here."""
        lead = leading(self.decision)
        return Additions(self._like_start(self._briefed(self.decision.result, lead)), brief=lead)

    def _briefed(self, library: ExperienceLibrary, number: int) -> ExperienceLibrary:
        """The library with the brief of this number (0: none), less what experiences say, too."""
        briefs = dict(self.latest.briefs[number - 1].texts if number else ())
        for name, predictor in named_predictors(self.inputs.student):
            if name in briefs:
                held = [each for each in library if each.scope in (ALL, name)]
                fields = predictor.signature.fields
                briefs[name] = uncovered(briefs[name], held, self._texts, fields)
        return library.briefed(briefs.items())

    def finalists(self) -> list[ExperienceLibrary]:
        """The libraries that are compared with the student at the end. Raises GateError."""
        proposed: Sequence[ExperienceLibrary] = (self.decision.result,)
        wanted = "return a sequence of libraries"
        with suppress(RunStopped):  # it hangs
            ask = functools.partial(self.groups.ask_gate, "finalists", self.decision, wanted)
            proposed = self.calls.pool.call(ask)
        if not self.latest.account.n_rollouts:  # of rollouts made elsewhere none has tried it
            proposed = (*proposed, self.decision.consistent)
        return [self._like_start(library) for library in proposed]

    def _like_start(self, library: ExperienceLibrary) -> ExperienceLibrary:
        """The library; if it has the student's experiences, also with the student's next free id.

        Then nothing appears changed: ids retired since were never in a program.
        """
        is_like = list(library) == list(self.start) and library.briefs == self.start.briefs
        return self.start.holding(library) if is_like else library

    def dropped(self) -> list[Lesson]:
        """The advice that was tried and is in the library no more, the most tried first."""
        library = self.decision.library
        held = {experience.advice for experience in library}
        beliefs = sorted(self.decision.beliefs.items(), key=lambda item: -item[1].n_rollouts)
        id_of = {e.advice: e.id for update in self.updates for e in update.decision.library}
        lessons = []
        for advice, belief in beliefs:
            if belief.n_rollouts and advice not in held:
                did = "did harm" if belief.mean + belief.sd < 0 else "did not help enough"
                reason = f"{did}: {belief.in_words()}"
                if (id_ := id_of.get(advice)) in library:
                    reason = f"replaced by {id_}"
                elif belief.n_rollouts < LEAST_SHOWN:
                    reason = "hardly tried"
                lessons.append(Lesson(advice[0], advice[1], reason=reason))
        return lessons

    def finish(self, ended_because: str) -> Any:
        """The student with the library that wins on validation, and `detailed_results` on it.

        With `NoGate`, or without a metric or a validation set, there is no race, and the last
        library is returned, whether it is better or not.
        """
        self.plan.ended_because = ended_because or self.plan.ended_because
        valset = () if self._settings.metric is None else self.inputs.valset
        is_race = self._settings.measures and bool(valset)
        candidates = self._candidates() if is_race else self._with_student(self.result())
        self.calls.ledger.open_reserve()  # not before: a gate that hangs could spend it
        measured = Measurements(self, "validation", valset, candidates)
        place, entries = len(candidates) - 1, dict[int, records.Candidate]()
        why = "the last library, be it better or worse: there is no race"
        if is_race:
            place, entries, why = self._race(measured)
        else:
            measured.make_all(self._settings.n_validation)
        best = candidates[place]
        priced = [
            replace(e, n_tokens=estimate_tokens(f"[{e.id}*] {e.text}\n")) for e in best.library
        ]
        best = replace(best, library=best.library.holding(priced))
        tested = self._tested(best)
        tested.make_all(len(tested.examples))
        last = len(tested.candidates) - 1
        outcome = tested.outcome(last)
        is_tested = outcome["student"] and outcome["best"]
        if tested.examples and not is_tested:
            logger.warning("the test set was not measured: %s", self.calls.ledger.stopped_because)
        rows = [*measured.example_rows(place), *tested.example_rows(last)]
        return self._reported(
            best, [*measured.rows, *tested.rows],
            "" if self.calls.ledger.is_failure else self.plan.ended_because,
            **measured.outcome(place), candidates=tuple(entries.values()), taken_because=why,
            test=records.HeldOut(**outcome) if is_tested else None,
            examples=listeners.worst_first(rows),
        )  # fmt: skip

    def unmeasured(self, ended_because: str) -> Any:
        """The student with the library of an interrupted run, which no validation checked."""
        self.plan.ended_because = ended_because
        return self._reported(self.result(), student=None, best=None)

    def _reported(
        self,
        additions: Additions,
        rows: Sequence[records.Row] = (),
        finished_because: str = "",
        **fields: Any,
    ) -> Any:
        student, latest, report = self.inputs.student, self.latest, self.calls.report
        optimized, library = additions.bake(student), additions.library
        tried, demos = latest.decision.beliefs.items(), additions.demos
        briefs = []
        pairs = zip(latest.briefs, latest.decision.briefs, strict=True)
        for number, (brief, b) in enumerate(pairs, start=1):
            is_best, texts = number == additions.brief, dict(brief.texts)
            if is_best:  # less what its experiences say
                texts = {name: text for name, text in library.briefs if name in texts}
            briefs.append(records.BriefRecord(texts, b.effect, b.chance, is_best))
        lms = policy_lms(student), [self._settings.reflection_lm]
        of_lms = [dict.fromkeys(str((lm or dspy.settings.lm).model) for lm in each) for each in lms]
        results = report.results(
            ended_because=self.plan.ended_because,
            is_student=additions == Additions(self.start),
            tried=tuple(records.TriedAdvice(*a, b.effect, b.chance) for a, b in tried if b.effect),
            switched=self.switched,
            n_demos=len(demos),
            briefs=tuple(briefs),
            demos=tuple(records.DemoRecord(demo.predictor, dict(demo.fields)) for demo in demos),
            program=type(student).__name__,
            origin=self.calls.journal.origin,
            added=self._added_by(additions),
            library=library.to_dict(),
            instructions=instructions_of(student, optimized),
            lms=tuple(map(", ".join, of_lms)),
            **fields,
        )
        self.calls.journal.note_end(additions, finished_because, results, rows, self.calls.ledger)
        report.tell(RunEnded(results, tuple(rows)))
        logger.info("the run ended (%s): %s", results.ended_because, results.in_a_line)
        optimized.detailed_results = results
        return optimized

    def _added_by(self, additions: Additions) -> records.Added:
        """The tokens that these add to each call of the student, and the dollars, where known."""

        def sizes(program: Any) -> Counter[str]:
            predictors = named_predictors(program)
            return Counter({n: estimate_tokens(p.signature.instructions) for n, p in predictors})

        student, library, demos = self.inputs.student, additions.library, Counter[str]()
        for demo in additions.demos:
            shown = "\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in demo.fields)
            demos[demo.predictor] += estimate_tokens(shown)
        bare, briefed, whole = (
            sizes(self._bake(added))
            for added in (ExperienceLibrary(), library.holding(()), library)
        )
        before, dollars, of_briefs = sizes(student), 0.0, briefed.total() - bare.total()
        for name, predictor in named_predictors(student):
            lm, prices = predictor.lm or dspy.settings.lm, self._settings.execution.prices or {}
            price, n_more = token_price(lm, prices), whole[name] - before[name] + demos[name]
            dollars += math.nan if isinstance(price, str) else 1000 * n_more * price.prompt
        n_lines, is_priced = whole.total() - before.total() - of_briefs, not math.isnan(dollars)
        return records.Added(n_lines, of_briefs, demos.total(), dollars if is_priced else None)

    def _tested(self, best: Additions) -> Measurements:
        """The student, which is first, and the result, which is last, for the test set.

        One that came after the run was finished is paid for beyond its limits.
        """
        testset = self.inputs.testset
        n_more = 2 * (len(testset) - self._settings.data.n_test)
        if n_more > 0:
            account = self.latest.account
            more = account.of_later(n_more) + Amount(cost=account.last_call)
            n_calls, n_metric_calls = map(math.ceil, (more.n_lm_calls, more.n_metric_calls))
            self.calls.journal.cut_because = ""
            self.calls.ledger.open_reserve(Amount(n_calls, n_metric_calls, more.cost))
        return Measurements(self, "test", testset, self._with_student(best))

    def _with_student(self, result: Additions) -> list[Additions]:
        student = Additions(self.start)
        return [result] if result == student else [student, result]

    def _candidates(self) -> list[Additions]:
        """The student and its rivals, each without and with the likeliest set of demos.

        The other sets are there without advice, and so are the briefs, but for the likeliest one.
        """
        latest, start, decision = self.latest, self.start, self.decision
        finalists = self.finalists()
        hidden = {example.identity for example in self.inputs.valset}
        means = {k: b.mean for k, b in enumerate(decision.briefs, start=1) if b.chance > LIKELY}
        briefs = sorted(means, key=lambda k: -means[k])
        bare = [Additions(library) for library in (start, *finalists)]
        if leading(decision):
            bare.insert(1, self.result())
        for place, number in enumerate(briefs[:BRIEFS_MEASURED]):
            beside = (start, *finalists) if place == 0 else (start,)
            bare += [Additions(self._briefed(each, number), brief=number) for each in beside]
        candidates = {(each.library, each.demos): each for each in bare}
        beliefs = dict(enumerate(decision.demos, start=1))
        numbers = range(1, self.groups.demos.n_sets + 1)
        for number in sorted(numbers, key=lambda k: -beliefs[k].mean if beliefs else k):
            demos = self.groups.demos.choose(number, latest.best, hidden)
            for each in bare if demos else ():
                shown = replace(each, demos=demos, demo_set=number)
                candidates.setdefault((each.library, demos), shown)
            bare = bare[:1]
        return list(candidates.values())

    def _race(self, measured: Measurements) -> tuple[int, dict[int, records.Candidate], str]:
        """The winner's place (0: student), all that took part by their places, and why it won."""
        candidates = measured.candidates
        race, account = self._race_of(measured), self.latest.account
        with suppress(RunStopped):  # what was measured by then decides
            while pairs := self._next_round(race, account, measured.scores()):
                if not measured.scores():
                    measured.make(pairs[:1])  # the student alone: maybe it does not reach for both
                account = account.after(measured.make(pairs))
        scores = measured.scores()
        best, why = race.winner(scores), race.why(scores)
        entries: dict[int, records.Candidate] = {}
        for c, additions in enumerate(candidates):
            if (c, 0) not in scores:
                continue
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
                added=self._added_by(additions),
                bake=functools.partial(additions.bake, self.inputs.student),
            )
        result = entries.get(best)
        if result and result.objectives and result not in records.front_of([*entries.values()]):
            why = f"{why}; another is better in every objective, and not surely in the score"
        if len(entries) < 2 <= len(candidates) and not self.calls.ledger.is_failure:
            logger.warning(
                "the result could not be measured, so the student is returned: %s; allow more, or "
                "pass a smaller valset",
                self.plan.ended_because,
            )
        return best, entries, why

    def _race_of(self, measured: Measurements) -> Race:
        decision, every = self.decision, measured.candidates
        sd = score_sd([one.score for one in self._measured if one.score is not None])
        sets = range(1, self.groups.demos.n_sets + 1)
        candidates = []
        for one in every:
            of_one: set[Hashable] = {experience.advice for experience in one.library}
            of_one |= {(BRIEF, one.brief)} if one.brief > 0 else set()
            candidates.append(frozenset(of_one | ({one.demo_set} if one.demos else set())))
        parts = {part: (0.0, sd) for candidate in candidates for part in candidate}
        parts |= {advice: (b.mean, b.sd) for advice, b in decision.beliefs.items()}
        demos: dict[Hashable, tuple[float, float]] = dict.fromkeys(sets, (0.0, DEMOS_SD * sd))
        if any(belief.n_rollouts for belief in decision.demos):
            pairs = zip(sets, decision.demos, strict=True)
            demos |= {k: (b.mean, math.hypot(b.sd, DEMOS_ERROR * sd)) for k, b in pairs}
        briefs: dict[Hashable, tuple[float, float]] = {
            (BRIEF, number): (belief.mean, math.hypot(belief.sd, BRIEFS_ERROR * sd))
            for number, belief in enumerate(decision.briefs, start=1)
        }
        prices = dict.fromkeys(demos, DEMOS_PRICE * sd) | dict.fromkeys(briefs, BRIEFS_PRICE * sd)
        doubtful = {advice for advice, b in decision.beliefs.items() if b.chance < LIKELY}
        return Race(
            tuple(candidates),
            parts | demos | briefs,
            prices,
            sd,
            n_examples=len(measured.examples),
            n_tokens=tuple(self._added_by(each).n_tokens for each in every),
            first=min(1, leading(decision)),  # what training alone would choose
            doubtful=frozenset(doubtful - candidates[0]),  # what the student had is not of this run
        )

    def _next_round(self, race: Race, account: Account, scores: Scores) -> list[Pair]:
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
            pairs = race.next(scores, self._n_left(account, data.n_test))
        return pairs

    def _n_left(self, account: Account, n_reserved: int) -> int | None:
        # calls that came to nothing, and the worst that the last call may cost
        lost = replace((self.calls.ledger.taken - account.used) | Amount(), cost=account.last_call)
        n, _ = account.n_fitting(account.later, account.later * n_reserved + lost)
        return None if math.isinf(n) else int(n)
