"""Batches and updates as values; which batch comes next, and whether the budget pays for it.

A batch depends only on the updates that are decided for sure when it is made, `max_staleness` ones
behind it. So it is the same for any number of threads. None comes where the program can never work,
or there is nothing more to learn.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import dspy

from tfgrpo_dspy.budget import Ledger
from tfgrpo_dspy.calls import Account
from tfgrpo_dspy.errors import sentence
from tfgrpo_dspy.experience import Applied, ExperienceLibrary, Operation, Refusal
from tfgrpo_dspy.gate.bayesian import Decision
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.modules import FILTERED, Answer
from tfgrpo_dspy.results import Change, GroupRecord, OperationRecord, UpdateRecord
from tfgrpo_dspy.rollout import NO_SCORES, FailureKind, Rollout, ScoreRange, adapt_metric, mean_of
from tfgrpo_dspy.sampling.examples import SampledGroup, best_rollouts
from tfgrpo_dspy.settings import RunInputs, RunSettings
from tfgrpo_dspy.strategies.attempts import may_rescue
from tfgrpo_dspy.strategies.base import BatchPlan
from tfgrpo_dspy.text import shortened

TEACHING = ("contrast", "failure analysis", "no ground truth")
"""The uses of a group of which the reflection LM is asked for lessons."""
NOT_ASKED, LEFT, EXPLAINED = "no lesson of late", "left to the brief", "explained"
"""The uses of a group of which it is not asked: because the groups before gave no lesson; because
the brief that leads is revised instead; because its best attempts had more advice than the others.
"""
MOST_UNWRITTEN = 3  # briefs that were asked for in vain, before no more are asked for


@dataclass(frozen=True, slots=True)
class Brief:
    """By predictor, the text that takes the place of its instructions; none: it was not written."""

    texts: tuple[tuple[str, str], ...] = ()
    parent: int = 0  # the number of the brief that it revises; 0: the student's own instructions


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a batch teaches: lessons; refused texts with reasons; the `used_as` of each group."""

    lessons: tuple[Lesson, ...] = ()
    refused: tuple[str, ...] = ()
    groups: tuple[SampledGroup, ...] = ()
    uses: tuple[str, ...] = ()
    briefs: tuple[Brief, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The examples (positions in the training set) of one update; numbers are counted from 0.

    `base` is the latest update that is decided by then however fast the threads are. Its library,
    which lacks at most the last `max_staleness` updates, is that of the rollouts. They, their
    groups and the lessons rest on `base` and the updates before it alone; the operations and the
    decision rest on every update before their own.
    """

    update: int
    base: "Update" = field(repr=False)
    epoch: int = 0
    sizes: Mapping[int, int] = field(default_factory=dict)  # rollouts by example
    visits: Mapping[int, int] = field(default_factory=dict)  # earlier batches, by example
    is_draft: bool = False  # the batch has no examples: its lessons come from labels
    asks_predictors: bool = False  # whether the metric is also asked about each predictor

    @property
    def examples(self) -> tuple[int, ...]:
        """Its examples in their order."""
        return tuple(self.sizes)

    @property
    def library(self) -> ExperienceLibrary:
        """The library that its rollouts are made with."""
        return self.base.decision.library


@dataclass(frozen=True, eq=False)
class Update:
    """A decided update, and what the run knows with it; the first one is the start of the run."""

    number: int  # how many updates are decided with it: 0 at the start
    decision: Decision  # the gate's; at the start, the library of the student
    account: Account  # what the run has taken
    extracted: Extracted = Extracted()  # what the batch taught
    score_range: ScoreRange = NO_SCORES  # that of the scores of the run
    by_metric: ScoreRange = NO_SCORES  # of the metric's scores, where strategies change those
    n_in_vain: int = 0  # how many groups in a row were asked for lessons and gave nothing new
    groups: tuple[SampledGroup, ...] = ()  # of the run: its own, and those of all updates before
    briefs: tuple[Brief, ...] = ()  # of the run, in the order of their numbers
    n_unwritten: int = 0  # how many briefs were asked for in vain

    @cached_property
    def best(self) -> tuple[Rollout, ...]:
        """The best rollouts of the run, for making demos."""
        return best_rollouts(sampled.unaided for sampled in self.groups)

    @property
    def may_brief(self) -> bool:
        """Whether the reflection LM can write a brief, as far as is known."""
        return self.n_unwritten < (MOST_UNWRITTEN if self.briefs else 1)


def rollouts_of(groups: Sequence[SampledGroup]) -> list[Rollout]:
    """All rollouts of these groups."""
    return [rollout for sampled in groups for rollout in sampled.group.all_rollouts]


def record_of(
    batch: Batch, update: Update, proposed: Applied, changes: tuple[Change, ...]
) -> UpdateRecord:
    """What the results say of the update that this batch led to."""
    extracted, used, groups = update.extracted, update.account.used, list[GroupRecord]()
    for sampled, use in zip(extracted.groups, extracted.uses, strict=True):
        group, unaided = sampled.group, sampled.unaided.rollouts
        ids = {rollout.rollout_id for rollout in unaided}
        failures = tuple(str(r.failure.kind) for r in group.all_rollouts if r.failure is not None)
        aided = tuple(r.score for r in group.rollouts if r.rollout_id not in ids)
        scores = tuple(rollout.score for rollout in unaided)
        groups.append(GroupRecord(group.example, scores, failures, use, aided))
    return UpdateRecord(
        update=batch.update, epoch=batch.epoch, groups=tuple(groups),
        lessons=tuple(lesson.text for lesson in extracted.lessons),
        refused_lessons=extracted.refused,
        operations=tuple(map(_operation_record, (*proposed.operations, *proposed.refused))),
        reason=update.decision.reason, library_size=len(update.decision.library),
        changes=changes, n_lm_calls=int(used.n_lm_calls), cost_usd=used.cost,
    )  # fmt: skip


def _operation_record(operation: Operation | Refusal) -> OperationRecord:
    written: Any = operation.operation if isinstance(operation, Refusal) else operation
    get: Any = written.get if isinstance(written, Mapping) else partial(getattr, written)
    values = {name: str(get(name, None) or "") for name in ("op", "id", "text", "scope", "reason")}
    refused = operation.reason if isinstance(operation, Refusal) else ""
    return OperationRecord(**values, refused=refused)


N_FIRST = 3  # rollouts that show whether the metric works at all
FIRST_ROLLOUTS = 10
"""A program is given up after 10 rollouts none of whose answers can be read."""
ANSWERS_IN_A_ROW = 8
"""A reflection LM is given up after 8 answers in a row that are of no use."""
SHOWN_BYTES = 400  # the most of the first such answer that the reason quotes
SATURATED_GROUPS = 20  # in a row that had the best score throughout: no more is expected then
FLAT_GROUPS = 40  # the same where only one score was seen: it may as well be the lowest
LEAST_ALIKE, NOISE_SHARE = 20, 0.7
"""Pairs of attempts that did the same, and how much of the variance of all scores theirs is, for
the metric to say nothing of what an attempt did."""
TARGET_GROUPS = 10  # in a row, which must have the target score on average
UNCHANGED_EPOCHS, UNCHANGED_UPDATES = 2, 16
"""After 2 epochs, and 16 updates, without a change of the result no more is expected."""


def why_unscored(rollouts: Sequence[Rollout]) -> str:
    """Why a metric can never work that failed on all of these rollouts; "": it did not."""
    failures = [rollout.failure for rollout in rollouts if rollout.failure]
    messages = [failure.message for failure in failures if failure.kind is FailureKind.METRIC]
    none = f"the metric gave no score to any of the first {len(rollouts)} rollouts"
    return f"{none}: {min(messages)}" if len(messages) == len(rollouts) > 0 else ""


def why_unreadable(rollouts: Sequence[Rollout], lms: Iterable[Any]) -> str:
    """Why a program can never work that gave no answer, or empty ones of one score; "": it may."""
    scores = {rollout.score for rollout in rollouts if rollout.score is not None}
    if not rollouts or len(scores) > 1 or not all(rollout.is_unreadable for rollout in rollouts):
        return ""
    example = getattr(rollouts[0].failure, "message", "all outputs are empty")
    return (
        f"none of the first {len(rollouts)} answers of the program could be read. The first: "
        f"{sentence(shortened(example, SHOWN_BYTES))} {_advice(lms)}"
    )


def why_useless(answers: Mapping[int, Sequence[Answer]], last: int, settings: RunSettings) -> str:
    """Why a reflection LM can never work, by its answers up to the `last` update; "": it may."""
    useless: list[Answer] = []
    # the clock decides which answers for later updates are there
    for update in sorted(update for update in answers if update <= last):
        are_useless = all(answer.is_useless for answer in answers[update])
        useless = [*useless, *answers[update]] if are_useless else []
    if len(useless) < ANSWERS_IN_A_ROW:
        return ""
    first = useless[0]
    example = first.error or f"it could not be read: {first.unread or '(empty)'}"
    ending = (
        f"the reflection LM gave {len(useless)} answers in a row that are of no use. The first: "
        f"{sentence(shortened(example, SHOWN_BYTES))}"
    )
    if first.unread == FILTERED:
        return f"{ending} Pass another reflection_lm"
    way = _advice([settings.reflection_lm])
    return ending.removesuffix(".") if first.error else f"{ending} {way}"


def why_finished(
    updates: Sequence[Update], n_drafts: int, n_batches: int, inputs: RunInputs
) -> str:
    """Why no more is to be expected after these updates, start and drafts included; "": more is.

    The target score is reached; the latest groups leave nothing to gain: all of their rollouts have
    the best score of the run so far, or the run has seen one score only, which nobody knows to be
    the best, for long enough that advice was tried; nothing teaches, or nothing changes any more.
    """
    latest, settings = updates[-1], inputs.settings
    target, groups = settings.execution.target_score, latest.groups
    last = [sampled.by_metric for sampled in groups[-TARGET_GROUPS:]]
    mean = mean_of([score for group in last for score in group.scores])
    is_whole = len(last) == TARGET_GROUPS
    if is_whole and target is not None and mean is not None and mean >= target:
        of_last = f"the last {TARGET_GROUPS} groups have a mean score of {mean:z.3f}"
        return f"target_score={target} is reached: {of_last}"
    scale = latest.score_range
    late = [replace(one.unaided, score_range=scale) for one in groups[-FLAT_GROUPS:]]
    n = SATURATED_GROUPS
    of_labels = [group.is_at_best(inputs.examples[group.example].labels) for group in late[-n:]]
    if len(late) >= n and all(of_labels):
        return f"all rollouts of the last {n} groups had the best score"
    if len(late) >= FLAT_GROUPS and _is_noise([group.rollouts for group in late]):
        return f"in the last {FLAT_GROUPS} groups equal answers were scored as unlike as others"
    if scale.is_flat and len(late) >= FLAT_GROUPS and not any(g.has_contrast for g in late):
        return f"all rollouts of the last {FLAT_GROUPS} groups had the same score"
    n_trained = len(updates) - 1 - n_drafts
    if latest.decision.is_open or n_trained < n_batches:
        return ""
    n_idle = n_batches * (1 + may_rescue(settings.strategies, groups))  # what failed in one
    uses = {use for update in updates[1:][-n_idle:] for use in update.extracted.uses}
    if n_trained >= n_idle and uses.isdisjoint((*TEACHING, NOT_ASKED, LEFT, EXPLAINED)):
        epochs = "two epochs" if n_idle > n_batches else "a whole epoch"
        return f"no group of {epochs} had anything to teach"
    n = max(UNCHANGED_EPOCHS * n_batches, UNCHANGED_UPDATES)
    if settings.measures and n_trained >= n:
        before = updates[-1 - n : -1]
        is_unchanged = all(list(u.decision.result) == list(latest.decision.result) for u in before)
        shown = (tuple(r.score for r in u.best[: settings.max_demos]) for u in (before[0], latest))
        if is_unchanged and len({*shown}) == 1:
            return f"the last {n} updates did not change what a program would be given"
    return ""


def _is_noise(groups: Sequence[Sequence[Rollout]]) -> bool:
    """Whether attempts at an example that did the same are scored as unlike as all attempts."""
    scores, squares = [r.score or 0.0 for group in groups for r in group], list[float]()
    for group in groups:
        did = [(r.outputs, [(step.name, step.outputs) for step in r.steps]) for r in group]
        pairs = ((k, other) for k in range(len(did)) for other in range(k) if did[k] == did[other])
        squares += [((group[k].score or 0) - (group[n].score or 0)) ** 2 / 2 for k, n in pairs]
    mean = mean_of(scores) or 0.0
    variance = mean_of([(score - mean) ** 2 for score in scores]) or 0.0
    is_enough = len(squares) >= LEAST_ALIKE and variance > 0
    return is_enough and (mean_of(squares) or 0.0) >= NOISE_SHARE * variance


def _advice(lms: Iterable[Any]) -> str:
    kwargs = [getattr(lm or dspy.settings.lm, "kwargs", {}) for lm in lms]
    limits = [k.get("max_tokens") or k.get("max_completion_tokens") for k in kwargs]
    now = ", ".join(dict.fromkeys(str(limit) for limit in limits if limit))
    return (
        f"Answers that are cut or empty need a higher max_tokens{now and f' (now {now})'} or a "
        f"larger context; an LM that does not keep to the form may keep to that of another adapter,"
        f" such as dspy.JSONAdapter()"
    )


MAX_EXAMPLES_BEFORE_DRAFTS = 8  # that are sampled; lessons of more would mostly repeat the drafts
ASKED_IN_VAIN, ASKING_SHARE = 3, 0.2
"""A metric that said nothing of the predictors of 3 rollouts is asked of the whole only. In a
program of one predictor, the first batches ask if that takes at most a fifth of the budget."""
LATE_SHARE = 0.5  # of the calls assumed; a program that takes less calls few of its predictors


class Planner:
    """Plans the batches of one run; `ended_because` says why none follows the last of them."""

    def __init__(
        self,
        inputs: RunInputs,
        sizes: Callable[[BatchPlan], dict[int, int]],  # as strategies choose
        ledger: Ledger,
        updates: Sequence[Update],  # the start and the decided ones, which somebody else appends
    ) -> None:
        settings = self._settings = inputs.settings
        is_recorded = settings.data.is_recorded
        self.ended_because = "all epochs are done"
        self.batches: list[Batch] = []
        self.n_batches = math.ceil(len(inputs.training) / settings.batch_size)  # of an epoch
        self.n_drafts = int(settings.drafts > 0)
        self.n_updates = self.n_drafts + self.n_batches * (1 if is_recorded else settings.epochs)
        self._inputs, self._sizes, self._updates = inputs, sizes, updates
        self._ledger = ledger
        self._group_size = 0 if is_recorded else settings.group_size
        self._visits: Counter[int] = Counter()
        self._is_over = False
        self._late: set[int] = set()  # numbers of updates planned when all earlier are decided

    def next(self) -> Batch | None:
        """The next batch, maybe a draft; None: not before another update is decided, or none."""
        number, n_decided = len(self.batches), len(self._updates) - 1
        if self._is_over or number == self.n_updates or n_decided < self._n_awaited(number):
            return None
        if not self._ledger.cut_because and (batch := self._planned(number)) is not None:
            self.batches.append(batch)
            return batch
        # Where nothing but an assumption says what a rollout takes, a batch that is not paid for is
        # planned again when all before it are decided: a program may take far fewer calls.
        is_first = not self._updates[self._n_decided(number)].account.n_rollouts
        may_come = is_first and not self._ledger.cut_because and number > self.n_drafts
        self._is_over = not may_come or number in self._late
        self._late |= {number} if may_come else set()
        return None

    def _n_awaited(self, number: int) -> int:
        """How many updates are decided before the batch of the update with this number is made."""
        n_decided, n_examples = self._n_decided(number), number * self._settings.batch_size
        is_after_drafts = self.n_drafts and n_examples > MAX_EXAMPLES_BEFORE_DRAFTS
        return max(n_decided, 1) if is_after_drafts else n_decided

    def _n_decided(self, number: int) -> int:
        return number if number in self._late else max(0, number - self._settings.max_staleness)

    def _planned(self, number: int) -> Batch | None:
        settings, inputs = self._settings, self._inputs
        base = self._updates[self._n_awaited(number)]
        if number < self.n_drafts:
            return Batch(number, base, is_draft=True)
        decided = self._updates[: base.number + 1]
        if finished := why_finished(decided, self.n_drafts, self.n_batches, inputs):
            self.ended_because = finished
            return None
        epoch, index = divmod(number - self.n_drafts, self.n_batches)
        order = list(inputs.training)
        random.Random(f"{settings.seed}/{epoch}").shuffle(order)
        examples = order[index * settings.batch_size :][: settings.batch_size]
        n, limit = self._n_affordable(number)
        if n < len(examples):
            self.ended_because = f"{limit}={getattr(settings, limit)} is spent as planned"
        if n < 1:
            return None
        sizes = dict.fromkeys(examples[: int(min(n, settings.batch_size))], self._group_size)
        if self._group_size:
            batches = self.batches[base.number : number]
            plan = BatchPlan(
                sizes=sizes, past=base.groups,
                under_way=tuple(example for batch in batches for example in batch.examples),
                training=inputs.training, trainset=inputs.trainset, group_size=self._group_size,
                update=number, seed=settings.seed,
            )  # fmt: skip
            sizes = self._sizes(plan)
        visits = {example: self._visits[example] for example in sizes}
        self._visits.update([*sizes])
        asks = self._asks_predictors(base)
        return Batch(number, base, epoch, sizes, visits, asks_predictors=asks)

    def _asks_predictors(self, base: Update) -> bool:
        """Whether the metric is also asked about each predictor in the rollouts of the next batch.

        It is until it was asked about a few rollouts that could have been better, and said nothing
        but what it says of the whole.
        """
        settings = self._settings
        if settings.metric is None or not adapt_metric(settings.metric).asks_predictors:
            return False
        asked = [rollout for rollout in rollouts_of(base.groups) if rollout.n_metric_calls > 1]
        if any(step.feedback for rollout in asked for step in rollout.steps):
            return True
        n_first = settings.rollouts_of_update * (1 + settings.max_staleness)
        n_more = n_first * (1 + len(self._inputs.predictors) - settings.data.n_metric_calls)
        if n_more > ASKING_SHARE * (settings.max_metric_calls or math.inf):
            return False
        range_ = base.score_range
        best = math.inf if range_.is_flat else range_.highest - range_.least_contrast
        scores = [rollout.score for rollout in asked if rollout.score is not None]
        return sum(score < best for score in scores) < ASKED_IN_VAIN

    def _n_affordable(self, number: int) -> tuple[float, str]:
        n_decided = self._n_decided(number)
        account = self._updates[n_decided].account
        under_way = self.batches[n_decided:number]  # they take what is expected of them
        of_draft = self._settings.drafts + self._settings.n_briefs * len(self._inputs.predictors)
        n_drafts = of_draft * sum(batch.is_draft for batch in under_way)
        operations = account.per_answer * (len(under_way) + 1 + n_drafts)  # one for each update
        n, limit = account.n_fitting(account.per_example, account.of_end + operations)
        assumed = self._settings.data.calls_per_rollout
        if number in self._late and account.per_rollout.n_lm_calls >= LATE_SHARE * assumed:
            return 0, limit
        if number == 0:  # what a rollout takes is only assumed
            return max(1.0, n), limit
        return n - sum(self.n_usual(batch, batch.examples) for batch in under_way), limit

    def n_usual(self, batch: Batch, examples: Sequence[int]) -> float:
        """How many groups of the usual size have as many rollouts as these of the batch."""
        n_rollouts = sum(batch.sizes[example] for example in examples)
        return n_rollouts / self._group_size if self._group_size else len(examples)
