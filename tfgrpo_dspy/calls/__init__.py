"""The calls of a run, rollouts among them: replayed, or done and recorded; what its end keeps.

A run ends where too many of them fail. What is kept pays for measuring student and result. It
follows what rollouts take: the account of the decided updates says how the next batch is planned,
that of all rollouts so far (which depends on the clock) what the ledger refuses. Whole updates are
counted in their order, and answers from a cache like calls: so a run that is repeated, with other
threads or a warm cache, plans the same batches.
"""

import functools
import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import TypeAdapter

from tfgrpo_dspy import settings
from tfgrpo_dspy.budget import LIMITS, NOTHING, Amount, Entry, Ledger
from tfgrpo_dspy.errors import TrainingCut, sentence
from tfgrpo_dspy.listeners import RunReport
from tfgrpo_dspy.pool import Job, Pool, Priority, RemoteRollouts, packed, packed_bundle, workers_of
from tfgrpo_dspy.reflection.modules import Answer
from tfgrpo_dspy.rollout import OWN, ROLLOUTS, Failure, FailureKind, Rollout, adapt_metric
from tfgrpo_dspy.sampling.examples import Additions, Example
from tfgrpo_dspy.sampling.one_rollout import RolloutTask, Start, run_rollout
from tfgrpo_dspy.settings import CALLS_FOR_AN_ANSWER, MIN_PROGRAMS_MEASURED, MOST_SHARE, RunSettings
from tfgrpo_dspy.store import Journal
from tfgrpo_dspy.text import printable, shortened

N_RECENT = 2  # an update is expected to cost as much as the dearer of the last two
COST_MARGIN = 1.5
"""Factor for dollars: a rollout with a library has a longer prompt than those before it."""
SPREADS = 2.0  # how many standard deviations above the mean is reckoned with
BESIDE_S = 1.0  # of the time at the end, for what is no rollout
TIME_MARGIN = 2.0  # how much longer than expected the end may take, and what is under way then


@dataclass(frozen=True)
class Account:
    """The amounts that a run has taken, and by them what it will need.

    The means leave out rollouts that go on from a step of another one, or did not end.
    """

    settings: RunSettings
    used: Amount = NOTHING
    rollouts: Amount = NOTHING  # of what was used, by the whole ones
    squares: Amount = NOTHING  # the sums of the squares of these
    dearest: Amount = NOTHING  # the most that one of them took
    n_rollouts: int = 0
    reflections: Amount = NOTHING
    recent: tuple[Amount, ...] = ()  # what each of the latest updates has taken for an example

    def after(self, results: Iterable[Rollout | Answer], n_examples: float = 0.0) -> "Account":
        """The account after these, too.

        With `n_examples`, they are those of a decided update of so many examples that have groups
        of the usual size.
        """
        used, rollouts, squares, answers = self.used, self.rollouts, self.squares, self.reflections
        dearest, n, recent = self.dearest, self.n_rollouts, self.recent
        for result in results:
            amount = Amount.of(result, with_cached=True)
            used += amount
            if isinstance(result, Answer):
                answers += amount
            elif result.n_replayed is None and not _is_cut_short(result):
                rollouts, n, dearest = rollouts + amount, n + 1, dearest | amount
                squares += Amount(*(number**2 for number in amount))
        if n_examples:
            recent = (*recent, (used - self.used) / n_examples)[-N_RECENT:]
        return Account(self.settings, used, rollouts, squares, dearest, n, answers, recent)

    @functools.cached_property
    def per_rollout(self) -> Amount:
        """What a rollout takes on average."""
        data = self.settings.data
        assumed = Amount(data.calls_per_rollout, data.n_metric_calls)
        return self.rollouts / self.n_rollouts if self.n_rollouts else assumed

    @property
    def per_answer(self) -> Amount:
        """What an answer of the reflection LM takes on average."""
        n, dollars = self.reflections.n_lm_calls, self.settings.data.dollars_per_rollout
        assumed = Amount(1, 0, 0.0 if math.isnan(dollars) else dollars)
        return self.reflections / n if n else assumed

    @property
    def per_example(self) -> Amount:
        """What an example of an update takes: rollouts, its part of a lesson, retries as before."""
        settings, answer = self.settings, self.per_answer
        group_size = 0 if settings.data.is_recorded else settings.group_size
        lesson = replace(answer, cost=answer.cost / settings.groups_per_call)
        return functools.reduce(operator.or_, self.recent, self.per_rollout * group_size + lesson)

    @functools.cached_property
    def later(self) -> Amount:
        """What a later rollout takes on average; its metric is not asked about predictors."""
        usual, n_metric_calls = self.per_rollout, min(1, self.settings.data.n_metric_calls)
        return replace(usual, n_metric_calls=n_metric_calls, cost=COST_MARGIN * usual.cost)

    def expected(self, n_rollouts: int) -> Amount:
        """An amount that `n_rollouts` hardly exceed: two standard deviations above the mean."""
        mean, n = self.per_rollout, max(1, self.n_rollouts)
        pairs = zip(self.squares, mean, strict=True)
        sds = Amount(*(math.sqrt(max(0.0, square / n - each**2)) for square, each in pairs))
        spread = sds * (SPREADS * math.sqrt(n_rollouts)) if self.n_rollouts else NOTHING
        return mean * n_rollouts + spread

    def of_later(self, n_rollouts: int) -> Amount:
        """The amount to keep for later rollouts: at least that of two as dear as the dearest."""
        two = min(2, n_rollouts) * self.dearest.n_lm_calls
        calls = max(self.expected(n_rollouts).n_lm_calls, two)
        return replace(self.later * n_rollouts, n_lm_calls=calls)

    @property
    def n_of_end(self) -> int:
        """How many rollouts the end needs; fewer where one takes more than was assumed."""
        settings, data, times = self.settings, self.settings.data, [1.0]
        if settings.metric is None:
            return 0
        if settings.max_lm_calls is not None:
            times.append(self.per_rollout.n_lm_calls / data.calls_per_rollout)
        if settings.max_cost is not None and data.dollars_per_rollout > 0:
            times.append(self.per_rollout.cost / data.dollars_per_rollout)
        return max(min(settings.reserve, data.smallest_end), int(settings.reserve / max(times)))

    @property
    def last_call(self) -> float:
        """The dollars that must be left for the last call to be made: twice the most so far."""
        return 2 * self.dearest.cost

    @property
    def of_end(self) -> Amount:
        """The amount that the end needs: of a limit at most `MOST_SHARE`, and the test set.

        Where rollouts take as many calls as was assumed, the schedule has looked whether they are
        there; it refuses no limit that would be too small for what is only assumed.
        """
        settings, data = self.settings, self.settings.data
        of_test = self.later * (data.n_of_test_set if settings.metric else 0)
        kept = self.of_later(self.n_of_end) + Amount(cost=self.last_call)
        are_there = kept.n_lm_calls + of_test.n_lm_calls < (settings.max_lm_calls or math.inf)
        is_as_assumed = are_there and self.per_rollout.n_lm_calls <= data.calls_per_rollout
        limits = (None if is_as_assumed else settings.max_lm_calls, None, settings.max_cost)
        parts = [
            more if most is None else max(0.0, min(more, MOST_SHARE * (most - test)))
            for most, more, test in zip(limits, kept, of_test, strict=True)
        ]
        return Amount(*parts) + of_test

    def n_fitting(self, amount: Amount, kept: Amount) -> tuple[float, str]:
        """How often it fits into what is left beside `kept`; and the limit that says so."""
        limits = (getattr(self.settings.budget, name) for name in LIMITS)
        fitting = {
            name: max(0.0, math.floor((limit - used) / one + 1e-9))
            for name, limit, used, one in zip(LIMITS, limits, self.used + kept, amount, strict=True)
            if limit is not None and one > 0
        }
        name = min(fitting, key=lambda name: fitting[name], default="")
        return fitting.get(name, math.inf), name


def _is_cut_short(rollout: Rollout) -> bool:
    return rollout.failure is not None and rollout.failure.kind.is_cut_short


Kept = TypeVar("Kept")
Result = TypeVar("Result", Rollout, Answer)
TRAINING = "rollout"  # the role of training rollouts
NOT_ASKED = Answer(None)  # a limit has ended the training; it is neither recorded nor counted
ERRORS_ALLOWED = 20  # up to this number errors do not end a run, unless `max_errors` says so
QUOTED_BYTES = 500  # of an error, whose message may quote a whole answer of an LM


class Calls:
    """Makes the calls of a run, under the limits of its ledger. Raises StoreError."""

    def __init__(self, settings: RunSettings, journal: Journal) -> None:
        self.ledger, self.journal, self._settings = Ledger(settings.budget), journal, settings
        self.ledger.clean = journal.redacted
        self.pool, self.remote = _pool_of(settings, self.ledger)
        self.report = RunReport(settings, self.ledger, journal)
        self.pool.on_wait = self.report.tick
        self.so_far = Account(settings)  # of all training rollouts
        self._timed = 0, 0.0, 0.0  # of those made here: how many, their seconds, the most of one
        self.lessons: Callable[[], Amount] = Amount  # what the batches under way still need
        self.n_begun = 0  # training rollouts that are under way
        self.n_asked: Counter[int] = Counter()  # questions that are begun or answered, by update
        self._turns: list[object] = []
        self.renew()

    def begin(
        self,
        entry: Entry,  # to be: it is one when its result is there
        kind: TypeAdapter[Result],
        do: Callable[[Job[Result]], Result],
        without: Callable[[TrainingCut | TimeoutError, str], Result],  # by a limit or the clock
        priority: Priority,
        usual: str = "",  # what it is in if it is in no call
    ) -> Job[Result]:
        """A rollout or an answer, for which the run pays once: recorded, or done now and recorded.

        A result whose failure is not recorded is noted, and made again by a later start. The job
        raises RunStopped: the run has ended. Raises MissingRecordError: offline, and there is no
        record.
        """

        def keep(outcome: Any) -> Any:
            is_cut = isinstance(outcome, TrainingCut | TimeoutError)
            result: Any = without(outcome, str(job)) if is_cut else outcome
            if result is NOT_ASKED:
                return result
            failure = _failure_of(result)
            is_lost = failure is not None and not failure.kind.is_recorded
            kept = self.journal.keep(entry.key, result, kind, is_lost)
            return self._added(entry, kept, time.monotonic() - job.begun_s)

        job: Job[Result] = Job(do, keep, {"": usual})
        with self.pool.lock:
            try:
                if (record := self.lookup(entry.about, entry.key, kind)) is not None:
                    job.value = self._added(entry, record, None)
            except TrainingCut as cut:
                job.value = without(cut, "")
            job.is_done = job.value is not None
            if not job.is_done:
                self.n_begun += entry.role == TRAINING
                self.pool.submit(job, priority)
        return job

    def lookup(self, name: str, key: str, kind: TypeAdapter[Kept]) -> Kept | None:
        """The recorded result, which costs what it cost when it was made. Raises RunStopped."""
        record = self.journal.find(key, kind)
        if record is not None:
            self.ledger.spend(Amount.of(record))
        elif self.journal.cut_because:
            self.ledger.end(self.journal.cut_because)
        elif self._settings.offline:
            raise self.journal.missing(name)
        return record

    def _added(self, entry: Entry, result: Result, seconds: float | None) -> Result:
        entry.value, entry.seconds = result, seconds
        self.journal.entries.append(entry)
        self.report.count(entry)
        failure = None if entry.is_replayed else _failure_of(result)
        if failure is not None and failure.kind.is_error:
            self._check_errors()
        if entry.role == TRAINING and isinstance(result, Rollout):
            self.so_far = self.so_far.after([result])
            self.n_begun -= seconds is not None
            if seconds is not None and not _is_cut_short(result):
                n, total, most = self._timed
                self._timed = n + 1, total + seconds, max(most, seconds)
            self.renew()
        elif entry.is_replayed and entry.update is not None:
            self.ask(entry.update)
        return result

    def ask(self, update: int) -> None:
        """Note that a question for this update has begun: less is kept for its others."""
        with self.pool.lock:
            self.n_asked[update] += 1
            self.renew()

    def _check_errors(self) -> None:
        new = [_failure_of(e.value) for e in self.journal.entries if not e.is_replayed]
        errors = [failure for failure in new if failure is not None and failure.kind.is_error]
        n_done, max_errors = len(self.journal.entries), self._settings.execution.max_errors
        allowed = max(ERRORS_ALLOWED, n_done // 2) if max_errors is None else max_errors
        if len(errors) > allowed:
            words = (e.message.partition(" on the example ")[0] for e in errors)  # where else equal
            often = Counter(shortened(printable(text), QUOTED_BYTES) for text in words)
            ((message, times),) = often.most_common(1)
            rule = "without max_errors the run" if max_errors is None else "max_errors"
            way_out = WAYS_OUT.get(errors[-1].kind, f"in the {errors[-1].kind}")
            self.ledger.stop(
                f"{len(errors)} of {n_done} rollouts and reflections failed, and {rule} allows "
                f"{allowed}. The most frequent error ({times} of {len(errors)}): "
                f"{sentence(message)} Fix its cause ({way_out}), or pass a higher "
                f"Execution(max_errors=).",
                is_failure=True,
            )

    # ------------------------------------------------------------------ what is kept for the end

    def renew(self) -> None:
        """Let nothing else take what the end of the run needs, by what rollouts took so far.

        In dollars that is less than is planned with, to cut no batch, but the smallest end, and two
        dear rollouts. In time it is enough for slower rollouts, and for what is under way then.
        """
        with self.pool.lock:
            account, settings, data = self.so_far, self._settings, self._settings.data
            n, last, amount = account.n_of_end, account.last_call, account.of_end
            calls, dollars, minutes = (
                MOST_SHARE * (limit or math.inf)
                for limit in (settings.max_lm_calls, settings.max_cost, settings.max_minutes)
            )
            if not account.n_rollouts and n:  # nobody knows what one takes
                most = MIN_PROGRAMS_MEASURED * CALLS_FOR_AN_ANSWER * data.most_calls_per_rollout
                cost = most * account.per_answer.cost / data.calls_per_rollout
                amount |= Amount(min(most, calls), cost=min(cost, dollars))
            usual, n_least = account.per_rollout.cost, min(n, data.smallest_end)
            smallest = last + usual * (n_least + data.n_of_test_set * (n_least > 0))
            two = last + COST_MARGIN * max(account.dearest.cost, usual) * min(2, n_least)
            cost = max(MOST_SHARE * amount.cost, min(amount.cost, smallest), two)
            n_and_test, seconds = n + data.n_of_test_set, 60 * minutes
            n_timed, total, longest = self._timed
            if n_timed and n_and_test:
                needed = (n_and_test * total / n_timed / settings.threads + longest) * TIME_MARGIN
                seconds = min(needed + BESIDE_S, seconds)
            n_calls, n_metric_calls, n_lessons = map(
                math.ceil, (amount.n_lm_calls, amount.n_metric_calls, self.lessons().n_lm_calls)
            )
            kept_s = seconds if n_and_test else 0.0
            self.ledger.keep(Amount(n_calls, n_metric_calls, cost), kept_s, n_lessons)

    @property
    def is_tight(self) -> bool:
        """Whether the first batches may not fit if a rollout takes twice what is assumed."""
        n = self.so_far.n_of_end + 2 * self._settings.rollouts_of_update
        return not self._pays_for(2 * n)

    @contextmanager
    def turn(self, n_rollouts: int) -> Iterator[bool]:
        """Whether so many further rollouts may begin within: all of them are paid for.

        They come out of what is left beside what is kept, and what the rollouts under way take.
        They are let in one after the other, in the order in which they ask; if the rollouts under
        way may leave enough, they are waited for.
        """
        turn, turns = object(), self._turns
        turns.append(turn)
        try:
            self.pool.until(
                lambda: turns[0] is turn and (not self.n_begun or self._pays_for(n_rollouts))
            )
            yield self._pays_for(n_rollouts)
        finally:
            turns.remove(turn)
            self.pool.wake()

    def _pays_for(self, n_rollouts: int) -> bool:
        needed = self.so_far.expected(self.n_begun + n_rollouts) + self.lessons()
        return not n_rollouts or all(map(operator.le, needed, self.ledger.left()))


def _failure_of(result: Rollout | Answer) -> Failure | None:
    if isinstance(result, Rollout):
        return result.failure
    return Failure(FailureKind.PROVIDER, result.error) if result.is_lost else None


def _pool_of(settings: RunSettings, ledger: Ledger) -> tuple[Pool, RemoteRollouts | None]:
    executor, timeout_s = settings.execution.executor, settings.execution.rollout_timeout_s
    if executor is None:
        return Pool(ledger, settings.threads, timeout_s), None
    n_at_once = settings.num_threads or workers_of(executor) or settings.threads
    is_local = isinstance(executor, ThreadPoolExecutor)
    remote = None if is_local else RemoteRollouts(ledger, executor, n_at_once)
    return Pool(ledger, n_at_once, timeout_s), remote


WAYS_OUT = {
    "provider": "arguments of dspy.LM such as the name of the model, api_key or num_retries, a "
    f'lower num_threads where a rate limit is reached, temperature="{OWN}" where a sampling '
    "parameter is refused",
    "timeout": "a higher Execution(rollout_timeout_s=), or a lower num_threads",
    "worker": "the memory and the packages of the executor's workers",
}
"""By kind of failure, the argument that most often helps, or where the cause is."""


# ---------------------------------------------------------------------- rollouts

KEPT_SENT, KEPT_DIGESTS = 64, 1024  # a library that is sent may hold a teacher, which is much
NO_MORE = Failure(
    FailureKind.BUDGET, "beside the final choice, the budget does not reach for more rollouts"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one rollout is made of."""

    additions: Additions
    example: int  # the example's position in its set
    rollout_id: int  # it depends on `start`, too
    temperature: float | str | None = None  # None, or "own": that of each LM and predictor
    start: Start | None = field(default=None, compare=False)  # None: it is a whole rollout
    update: int | None = field(default=None, compare=False)  # that pays for it, in training
    asks_predictors: bool = field(default=False, compare=False)

    def failed(self, failure: Failure) -> Rollout:
        """The rollout where it has failed before it began, or without a trace."""
        return Rollout(self.example, self.rollout_id, failure=failure)


class Rollouts:
    """Makes rollouts on a set of examples, for one role of the report ("rollout": training)."""

    def __init__(
        self, inputs: settings.RunInputs, calls: Calls, role: str, examples: Sequence[Example]
    ) -> None:
        settings, self._inputs, self._calls = inputs.settings, inputs, calls
        self._role, self._set = role, "training" if role == TRAINING else role
        self._examples, self._metric = examples, settings.metric
        self._scoring = None if self._metric is None else adapt_metric(self._metric)
        self._digest = functools.lru_cache(KEPT_DIGESTS)(
            lambda added: calls.journal.keys.program(added.bake(inputs.student, lambda lm: lm))
        )
        self._sent = functools.lru_cache(KEPT_SENT)(lambda sent: packed(sent, "the library"))
        self._prices, self._kept_demos = settings.execution.prices or {}, dict[Any, Any]()
        self._begun: dict[Sample, Job[Rollout]] = {}
        self._bundle = b""
        if calls.remote is not None and not settings.offline:
            plain = calls.journal.plain
            self._bundle = packed_bundle(inputs.student, self._metric, self._prices, plain)

    def begin(self, sample: Sample, priority: Priority) -> Job[Rollout]:
        """The rollout of the sample, recorded or to come; asked again, it is the same.

        One that a limit cuts in training has a failure of kind "budget".
        """
        if sample in self._begun:
            return self._begun[sample]
        set_, n, names = self._set, sample.example, self._inputs.predictors

        def without(why: TrainingCut | TimeoutError, where: str) -> Rollout:
            if isinstance(why, TrainingCut):
                return sample.failed(Failure(FailureKind.BUDGET, str(why)))
            message = f"the rollout {why}, which is rollout_timeout_s; it was in {where}"
            failure = Failure(FailureKind.TIMEOUT, f"{message} on the example {n} ({set_})")
            return sample.failed(failure)

        about, do = f"{set_} rollout of {set_} example {n}", functools.partial(self._done, sample)
        entry = Entry(self._key(sample), self._role, sample.update, about)
        entry.has_advice = sample.start is None and sample.additions.is_for_all(names)
        usual = "the program" if self._calls.remote is None else "another process"
        self._begun[sample] = self._calls.begin(entry, ROLLOUTS, do, without, priority, usual)
        return self._begun[sample]

    def begin_extra(
        self, samples: Sequence[Sample], priority: Priority
    ) -> list[Job[Rollout]] | None:
        """Further training rollouts; None if not all of them are paid for, which is noted.

        Those that are begun or recorded are.
        """
        journal, missing = self._calls.journal, list[Sample]()
        for sample in (each for each in samples if each not in self._begun):
            record = journal.find(self._key(sample), ROLLOUTS)
            missing += [] if record else [sample]
            if record is not None and record.failure == NO_MORE:
                return None
        with self._calls.turn(len(missing)) as is_paid:
            if is_paid:
                return [self.begin(sample, priority) for sample in samples]
        for sample in () if self._inputs.settings.offline else missing:
            journal.keep(self._key(sample), sample.failed(NO_MORE), ROLLOUTS, is_lost=True)
        return None

    def again(self, sample: Sample, priority: Priority) -> Job[Rollout]:
        """The rollout, made once more."""
        del self._begun[sample]
        return self.begin(sample, priority)

    def _key(self, sample: Sample) -> str:
        keys, example = self._calls.journal.keys, self._examples[sample.example].raw
        program = self._digest(sample.additions) if keys.is_used else ""
        return keys.rollout(program, example, self._metric, sample.rollout_id, sample.temperature)

    def _done(self, sample: Sample, job: Job[Rollout]) -> Rollout:
        calls = self._calls
        names = ("rollout_id", "temperature", "start", "asks_predictors")
        of_sample = {name: getattr(sample, name) for name in names}
        of_sample |= {"example": self._examples[sample.example].raw, "index": sample.example}
        if calls.remote is not None:
            of_example = packed(of_sample, f"example {sample.example}")
            n_metric_calls = 1 + len(self._inputs.predictors) * sample.asks_predictors
            n_metric_calls *= self._metric is not None
            request = self._bundle, self._sent(sample.additions), of_example
            reply = calls.remote.rollout(request, n_metric_calls)
            return reply if isinstance(reply, Rollout) else sample.failed(reply)
        task = RolloutTask(
            program=self._inputs.student, additions=sample.additions, metric=self._scoring,
            ledger=calls.ledger, prices=self._prices, is_training=self._role == TRAINING,
            calls=job.calls, kept_demos=self._kept_demos, **of_sample,
        )  # fmt: skip
        return run_rollout(task)
