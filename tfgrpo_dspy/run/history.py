"""What the updates of a run decided, and what follows from it for the updates to come.

A batch depends only on the updates that are decided for sure when it is made, `max_staleness` ones
behind it. So it is the same for any number of threads.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from tfgrpo_dspy.budget.account import Amount
from tfgrpo_dspy.errors import GateError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import Keep, Operation, Refusal
from tfgrpo_dspy.gate.model import score_sd
from tfgrpo_dspy.gate.protocol import Decision, GroupPlan, Measured, RunEvidence
from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.results import REFLECTIONS
from tfgrpo_dspy.rollout import FailureKind, Group, Rollout, Usage, fields_text, floored
from tfgrpo_dspy.run.batches import TEACHING, Batch, Extracted
from tfgrpo_dspy.run.changes import Changes
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.strategies import Strategies
from tfgrpo_dspy.sampling.additions import Additions, SampledGroup
from tfgrpo_dspy.sampling.demos import BestRollouts, DemoPool
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.scores import NO_SCORES, ScoreRange
from tfgrpo_dspy.settings.checks import inputs_text
from tfgrpo_dspy.strategies.base import BatchPlan, UpdateContext

MAX_EXAMPLES_BEFORE_DRAFTS = 8  # before drafts are decided: more would mostly teach what they say
SATURATED_GROUPS = 20
"""After so many groups in a row that had the best score throughout, no more is expected, whatever
is on trial. With 10, some simulated runs ended too early (`benchmarks/recipe.py`)."""
ASKED_IN_VAIN, ASKING_SHARE = 3, 0.2
"""A metric that said nothing of the predictors of so many rollouts is asked of the whole only. In a
program of one predictor, the first batches ask if that takes at most so much of the budget."""
FLAT_GROUPS = 40
"""The same after so many groups if the run has seen one score only: it may as well be the lowest,
and then the lessons of failures need time to be tried."""
UNCHANGED_EPOCHS, UNCHANGED_UPDATES = 2, 16
"""After so many epochs, and updates, without a change of the result no more is expected."""


class History:
    """The batches and decisions of one run.

    `decisions`, `accounts`, `best` (rollouts), `known` and `measured` (see `Batch`) have one entry
    more than there are decided updates: the first is the state before the first update.
    """

    def __init__(
        self,
        run: RunContext,
        strategies: Strategies,
        start: ExperienceLibrary,
        training: Sequence[int],
        is_recorded: bool,
    ) -> None:
        settings = run.settings
        self.start = start
        self.batches: list[Batch] = []
        self.decisions = [Decision(start, "the library of the student")]
        self.accounts = [run.reserve.account]
        run.reserve.lessons = self._lessons_to_come
        self._run, self._strategies = run, strategies
        self._training = tuple(training)
        self._group_size = 0 if is_recorded else settings.group_size  # rollouts to pay for
        self._size = settings.batch_size
        self._n_batches = math.ceil(len(training) / self._size)
        proposes = any(each.proposes_first for each in strategies.overriding("propose"))
        self.n_drafts = int(settings.drafts > 0 or (proposes and not is_recorded))
        self.n_updates = self.n_drafts + (1 if is_recorded else settings.epochs) * self._n_batches
        self.best: list[tuple[Rollout, ...]] = [()]
        self.known, self.measured = [NO_SCORES], [NO_SCORES]
        self._best_rollouts = BestRollouts()
        self._measured: list[Measured] = []
        self._groups: list[SampledGroup] = []
        self._visits: Counter[int] = Counter()
        self.first: tuple[Rollout, ...] = ()  # of the first batch, where rewards depend on it
        self.changes = Changes(self._texts)

    def _lessons_to_come(self) -> Amount:
        """What the lessons of the batches under way still need, and an answer for each update."""
        settings, report = self._run.settings, self._run.report
        n = 0
        for batch in self.batches[len(self.decisions) - 1 :]:
            n_lessons = math.ceil(len(batch.examples) / settings.groups_per_call)
            n_lessons += sum(batch.sizes) * settings.reflection.summarize_always
            planned = 1 + (settings.drafts if batch.is_draft else n_lessons)
            n += max(0, planned - report.n_asked[batch.update])
        used = sum((report.usage[stage] for stage in REFLECTIONS), start=Usage())
        cost = n * used.cost_usd / max(1, used.n_lm_calls)
        return Amount(n, cost=cost)

    @property
    def last(self) -> Decision:
        """The latest decision."""
        return self.decisions[-1]

    def n_awaited(self, update: int) -> int:
        """How many updates are decided before the batch of this one is made."""
        n_known = self._n_known(update)
        is_after_drafts = self.n_drafts and update * self._size > MAX_EXAMPLES_BEFORE_DRAFTS
        return max(n_known, 1) if is_after_drafts else n_known

    def _n_known(self, update: int) -> int:
        return max(0, update - self._run.settings.max_staleness)

    def batch(self, update: int) -> Batch | None:
        """The batch of this update, which may be a draft; None where the run ends."""
        settings, report = self._run.settings, self._run.report
        n_awaited = self.n_awaited(update)
        if self._run.ledger.cut_because:
            return None
        decision, best = self.decisions[n_awaited], self.best[n_awaited]
        if update < self.n_drafts:
            return Batch(update, 0, (), decision, is_draft=True)
        if finished := self._why_finished(update):
            report.ended_because = finished
            return None
        epoch, index = divmod(update - self.n_drafts, self._n_batches)
        examples = self.order(epoch)[index * self._size : (index + 1) * self._size]
        n, limit = self._n_affordable(update)
        if n < len(examples):
            value = getattr(settings, limit)
            report.ended_because = f"{limit}={value} is spent as planned"
        if n < 1:
            return None
        chosen = dict.fromkeys(examples[: int(min(n, self._size))], self._group_size)
        sizes = self._sizes(update, chosen)
        visits = tuple(self._visits[example] for example in sizes)
        self._visits.update(sizes.keys())
        given = tuple(sizes), decision, False, best, tuple(sizes.values()), visits
        ranges = self.known[n_awaited], self.measured[n_awaited]
        asks_predictors = self.asks_predictors(n_awaited)
        planned = self.accounts[self._n_known(update)].per_rollout
        return Batch(update, epoch, *given, n_awaited, asks_predictors, *ranges, planned)

    def order(self, epoch: int) -> list[int]:
        """The training examples in the order of this epoch's batches."""
        order = list(self._training)
        random.Random(f"{self._run.settings.seed}/{epoch}").shuffle(order)
        return order

    def asks_predictors(self, n_known: int) -> bool:
        """Whether the metric is also asked about each predictor in the rollouts of the next batch.

        It is until it was asked about a few rollouts that could have been better, and said nothing
        but what it says of the whole.
        """
        settings, known = self._run.settings, self.known[n_known]
        if settings.metric is None or not adapt_metric(settings.metric).asks_predictors:
            return False
        past = self.groups_before(n_known)
        asked = [r for each in past for r in each.group.all_rollouts if r.n_metric_calls > 1]
        if any(step.feedback for rollout in asked for step in rollout.steps):
            return True
        n_first = settings.rollouts_of_update * (1 + settings.max_staleness)
        n_more = n_first * (1 + len(self._run.predictors) - settings.data.n_metric_calls)
        if n_more > ASKING_SHARE * (settings.max_metric_calls or math.inf):
            return False
        best = math.inf if known.is_flat else known.highest - known.least_contrast
        scores = [rollout.score for rollout in asked if rollout.score is not None]
        return sum(score < best for score in scores) < ASKED_IN_VAIN

    def _sizes(self, update: int, sizes: dict[int, int]) -> Mapping[int, int]:
        """How many rollouts each example of the batch gets, by the strategies."""
        if not self._group_size:
            return sizes
        n_known, run = self.n_awaited(update), self._run
        plan = BatchPlan(
            sizes,
            self.groups_before(n_known),
            tuple(i for batch in self.batches[n_known:update] for i in batch.examples),
            self._training,
            run.trainset,
            self._group_size,
            update,
            run.settings.seed,
        )
        return self._strategies.sizes(plan)

    def context(self, batch: Batch, extracted: Extracted) -> UpdateContext:
        """What strategies know of the update that is decided next."""
        run = self._run
        return UpdateContext(
            batch.update,
            self.last.library,
            tuple(decision.library for decision in self.decisions),
            extracted.lessons,
            extracted.groups,
            tuple(self._groups),
            self._training,
            run.trainset,
            tuple(run.predictors),
            self.shows_labels,
        )

    @property
    def shows_labels(self) -> bool:
        """Whether the reflection LM may be shown labels."""
        settings = self._run.settings
        return settings.reflection.use_labels and settings.metric is not None

    def reward(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Rollouts that compare student and result, with what they count with."""
        return self._strategies.rewarded(rollouts, self.first)

    @property
    def rollouts(self) -> list[Rollout]:
        """The rollouts of all updates that are decided."""
        return [r for sampled in self._groups for r in sampled.group.all_rollouts]

    def groups_before(self, update: int) -> tuple[SampledGroup, ...]:
        """The groups of the updates before this one, which are decided."""
        return tuple(sampled for sampled in self._groups if sampled.update < update)

    def _why_finished(self, update: int) -> str:
        """Why no more is to be expected of further updates; "" if more is."""
        n_known, run = self._n_known(update), self._run
        latest, before = self.decisions[n_known], self.decisions[self.n_drafts : n_known]
        if finished := self._why_saturated(n_known):
            return finished
        if latest.is_open or len(before) < self._n_batches:
            return ""
        n_idle = self._n_batches * (1 + bool(run.settings.strategies))  # they may learn from it
        idle = run.report.updates[max(0, n_known - n_idle) : n_known]
        is_taught = any(group.used_as in TEACHING for record in idle for group in record.groups)
        if len(before) >= n_idle and not is_taught:
            epochs = "two epochs" if n_idle > self._n_batches else "a whole epoch"
            return f"no group of {epochs} had anything to teach"
        n = max(UNCHANGED_EPOCHS * self._n_batches, UNCHANGED_UPDATES)
        is_unchanged = all(list(one.result) == list(latest.result) for one in before[-n:])
        demos = [[one.score for one in best[: run.settings.max_demos]] for best in self.best]
        is_unchanged &= demos[n_known] == demos[max(0, n_known - n)]
        if run.settings.measures and len(before) >= n and is_unchanged:
            return f"the last {n} updates did not change what a program would be given"
        return ""

    def _why_saturated(self, n_known: int) -> str:
        """Why the latest groups leave nothing to gain; "" if they leave something.

        All of their rollouts have the best score of the run so far; or the run has seen one score
        only, which nobody knows to be the best, for long enough that advice was tried.
        """
        known, n = self.known[n_known], SATURATED_GROUPS
        groups = [replace(each.unaided, known=known) for each in self.groups_before(n_known)]
        if len(groups) >= n and all(map(self._is_at_best, groups[-n:])):
            return f"all rollouts of the last {n} groups had the best score"
        n = FLAT_GROUPS
        if known.is_flat and len(groups) >= n and not any(g.has_contrast for g in groups[-n:]):
            return f"all rollouts of the last {n} groups had the same score"
        return ""

    def _is_at_best(self, group: Group) -> bool:
        return group.is_at_best(as_fields(self._run.trainset[group.example].labels()))

    def _n_affordable(self, update: int) -> tuple[float, str]:
        """How many examples the next batch may have; and the limit that says so ("": none)."""
        n_known = self._n_known(update)
        account = self.accounts[n_known]
        under_way = self.batches[n_known:update]  # they take what is expected of them
        each = account.per_example(self._group_size)
        operations = Amount(1.0) * (len(under_way) + 1)  # an answer for each update
        lost = Amount(self._run.ledger.n_lost, cost=self._run.ledger.lost)  # before this start
        n, limit = account.n_fitting(each, self._run.reserve.amount(account) + lost + operations)
        if update == 0:  # what a rollout takes is only assumed
            return max(1.0, n), limit
        return n - sum(map(self._n_usual, under_way)), limit

    def _n_usual(self, batch: Batch, examples: Sequence[int] | None = None) -> float:
        """How many groups of the usual size have as many rollouts as these of the batch."""
        made = batch.examples if examples is None else examples
        sizes = [batch.size_and_visit(example)[0] for example in made]
        return sum(sizes) / self._group_size if self._group_size else len(made)

    def assigned(self, batch: Batch, example: int, n: int) -> list[Additions]:
        """What each rollout of a group is given. Raises GateError: the gate gave no such.

        Demos are given from the second epoch on: before, there are few rollouts to choose from.
        """
        gate = self._run.settings.gate
        plan = GroupPlan(batch.decision, example, batch.update, n)
        libraries: Sequence[ExperienceLibrary] = (batch.library,) * n
        if any(experience.is_on_trial for experience in batch.library):
            told = f"return {n} libraries, one for each rollout of the group"
            libraries = _answers(gate, "assigned", gate.assign(plan), told, n)
        demos = self.demos.choose(batch.best if batch.epoch else (), {self._inputs[example]})
        shown: Sequence[bool] = (False,) * n
        if demos:
            told = f"return {n} booleans, one for each rollout of the group"
            shown = _answers(gate, "showed demos", gate.shows_demos(plan), told, n, bool)
        each = zip(libraries, shown, strict=True)
        return [Additions(library, demos if is_shown else ()) for library, is_shown in each]

    @cached_property
    def demos(self) -> DemoPool:
        """What demos the run may show."""
        return DemoPool(
            self._run.student,
            self._run.trainset,
            self._inputs,
            self._training if self.shows_labels else (),
            self._run.settings.max_demos,
            self._run.settings.seed,
        )

    @cached_property
    def _inputs(self) -> list[str]:
        return list(map(inputs_text, self._run.trainset))

    def decide(
        self, batch: Batch, extracted: Extracted, proposed: Sequence[Operation | Refusal]
    ) -> ExperienceLibrary:
        """The library after the gate has decided. Raises GateError: it gave no decision."""
        before, run = self.last, self._run
        unaided = [sampled.unaided for sampled in extracted.groups]
        for group in unaided:
            self._best_rollouts.add(group)
        self._groups += extracted.groups
        floor = self.known[-1].failure_score
        self.known.append(_with_scores(self.known[-1], unaided))
        by_metric = [sampled.by_metric for sampled in extracted.groups]
        self.measured.append(_with_scores(self.measured[-1], by_metric))
        new: Sequence[SampledGroup] = extracted.groups
        if self.known[-1].failure_score != floor:  # failures of earlier groups count this, too
            self._measured, new = [], self._groups
        for each in new:
            self._measured += _measured(each, self.known[-1])
        self.best.append(self._best_rollouts.above_mean())
        evidence = RunEvidence(
            previous=before,
            operations=tuple(op for op in proposed if not isinstance(op, Refusal)),
            rollouts=tuple(self._measured),
            texts=self._texts,
            training=self._training,
            limits=run.settings.limits,
        )
        self.decisions.append(self._decision(evidence))
        made = extracted.rollouts if self._group_size else []
        reflections = run.report.reflection_usage[batch.update]
        n_examples = self._n_usual(batch, [each.group.example for each in extracted.groups])
        account = self.accounts[-1].after_update(made, reflections, n_examples)
        self.accounts.append(account)
        run.reserve.renew()
        args = (before.library, evidence.operations, extracted, self.last)
        changes = self.changes.of_update(*args)
        record = run.report.add_update(batch, extracted, proposed, self.last, changes, account.used)
        run.manifest.note_update(record)
        run.manifest.note(Additions(self.result()), "")
        return self.last.library

    def _decision(self, evidence: RunEvidence) -> Decision:
        """The gate's decision, with the evidence of all KEEPs."""
        gate = self._run.settings.gate
        decision = gate.decide(evidence)
        is_one = isinstance(decision, Decision)
        found = (decision.library, decision.result) if is_one else decision
        _answers(gate, "decided", found, "return a Decision on a library")
        keeps = [op for op in evidence.operations if isinstance(op, Keep)]

        def kept(library: ExperienceLibrary) -> ExperienceLibrary:
            return library.apply([op for op in keeps if op.id in library], evidence.limits)

        deployable = decision.deployable and kept(decision.deployable)
        return replace(decision, library=kept(decision.library), deployable=deployable)

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        """The inputs of each example, and its labels where the reflection LM may see them."""
        is_labelled = self.shows_labels
        seen = [(e.inputs(), e.labels() if is_labelled else {}) for e in self._run.trainset]
        return tuple(fields_text({**as_fields(given), **as_fields(told)}) for given, told in seen)

    @property
    def _n_whole(self) -> int:
        """How many updates come before the first one that the budget has made smaller."""
        whole = (s for s in self._groups if not any(map(_is_cut, s.group.all_rollouts)))
        made = Counter(sampled.update for sampled in whole)
        for batch in self.batches[self.n_drafts :]:
            index = (batch.update - self.n_drafts) % self._n_batches
            planned = min(self._size, len(self._training) - index * self._size)
            if min(len(batch.examples), made[batch.update]) < planned:
                return batch.update
        return len(self.batches)

    @property
    def kept(self) -> Amount:
        """What counts in a later start with a larger budget, too, before the final choice.

        That budget makes the first smaller update larger, and what follows it may be another.
        """
        return self.accounts[min(self._n_whole, len(self.accounts) - 1)].used

    def result(self) -> ExperienceLibrary:
        """What a program would be given if the run ended here."""
        return self._like_start(self.last.result)

    def finalists(self) -> list[ExperienceLibrary]:
        """The libraries that are compared with the student at the end. Raises GateError."""
        gate = self._run.settings.gate
        proposed = _answers(
            gate, "gave as finalists", gate.finalists(self.last), "return a sequence of libraries"
        )
        if not self.accounts[-1].n_rollouts:  # of rollouts made elsewhere none has tried it
            proposed = (*proposed, self.last.library)
        return [self._like_start(library) for library in proposed]

    def _like_start(self, library: ExperienceLibrary) -> ExperienceLibrary:
        """The library, with the next free id of the student's where it has the same experiences."""
        is_like = list(library) == list(self.start)  # ids retired since were never in a program
        return self.start.holding(library) if is_like else library

    @property
    def score_sd(self) -> float:
        """The standard deviation of the training scores."""
        return score_sd([one.score for one in self._measured if one.score is not None])

    def dropped(self) -> list[Lesson]:
        """The advice that was tried and is in the library no more, the most tried first."""
        held = {experience.advice for experience in self.last.library}
        beliefs = sorted(self.last.beliefs.items(), key=lambda item: -item[1].n_rollouts)
        return [
            Lesson(*advice, reason=belief.in_words())
            for advice, belief in beliefs
            if belief.n_rollouts and advice not in held
        ]


def _with_scores(known: ScoreRange, groups: Iterable[Group]) -> ScoreRange:
    return known.including(r.score for group in groups for r in group.all_rollouts)


def _measured(sampled: SampledGroup, known: ScoreRange) -> Iterator[Measured]:
    """The scores of the rollouts as gates see them, without those that had aid."""
    additions = [one for one, aid in zip(sampled.given, sampled.aids, strict=True) if not aid]
    scores = floored(sampled.unaided.all_rollouts, known, for_advice=True)
    for one, score in zip(additions, scores, strict=True):
        yield Measured(one.library, sampled.group.example, score, bool(one.demos))


def _is_cut(rollout: Rollout) -> bool:
    return rollout.failure is not None and rollout.failure.kind is FailureKind.BUDGET


def _answers(
    gate: Any, verb: str, given: Any, told: str, n: int | None = None, of: type = ExperienceLibrary
) -> tuple[Any, ...]:
    """What a gate gave, if these are (so many) of that kind. Raises GateError: they are not."""
    is_sequence = isinstance(given, Sequence) and len(given) == (len(given) if n is None else n)
    if is_sequence and all(isinstance(each, of) for each in given):
        return tuple(given)
    raise GateError(f"{gate!r} {verb} {given!r}; {told}.")
