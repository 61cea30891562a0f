"""The calls of a run: replayed, or done and then recorded; and what is kept for its end.

A run ends where too many of them fail. What is kept pays for measuring student and result. It
follows what rollouts take: the account of the decided updates says how the next batch is planned,
that of all rollouts so far (which depends on the clock) what the ledger refuses.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import TypeAdapter

from tfgrpo_dspy.budget.ledger import COST_MARGIN, LIMITS, Account, Amount, Budget, Ledger
from tfgrpo_dspy.errors import TrainingCut, sentence
from tfgrpo_dspy.listeners import RunReport
from tfgrpo_dspy.outside import printable
from tfgrpo_dspy.reflection.modules import Answer
from tfgrpo_dspy.rollout import OWN, Failure, FailureKind, Rollout, Usage
from tfgrpo_dspy.settings.schedule import (
    CALLS_FOR_AN_ANSWER,
    MIN_PROGRAMS_MEASURED,
    MOST_SHARE,
    RunSettings,
)
from tfgrpo_dspy.store.journal import Journal
from tfgrpo_dspy.tasks.executors import RemoteRollouts, workers_of
from tfgrpo_dspy.tasks.pool import Job, Pool, Priority
from tfgrpo_dspy.wording import shortened

BESIDE_S = 1.0  # of the time at the end, for what is no rollout
TIME_MARGIN = 2.0  # how much longer than expected the end may take, and what is under way then


class Reserve:
    """Keeps in the ledger what the end of a run needs; `account` holds all rollouts so far."""

    def __init__(self, settings: RunSettings, ledger: Ledger, pool: Pool) -> None:
        data = settings.data
        dollars = 0.0 if math.isnan(data.dollars_per_rollout) else data.dollars_per_rollout
        assumed = Amount(data.calls_per_rollout, data.n_metric_calls)
        answer = Amount(1.0, 0, dollars)
        self.account = Account(settings.budget, assumed=assumed, assumed_answer=answer)
        self._settings, self._ledger, self._pool = settings, ledger, pool
        self._seconds: list[float] = []
        self.lessons: Callable[[], Amount] = Amount  # what the batches under way still need
        self.n_begun = 0  # training rollouts that are under way
        self._turns: list[object] = []
        self.renew()

    def n_rollouts(self, account: Account) -> int:
        """How many rollouts the end needs; fewer where one takes more than was assumed."""
        settings, per_rollout = self._settings, account.per_rollout
        if settings.metric is None:
            return 0
        data, times = settings.data, [1.0]
        if settings.max_lm_calls is not None:
            times.append(per_rollout.n_lm_calls / data.calls_per_rollout)
        if settings.max_cost is not None and data.dollars_per_rollout > 0:
            times.append(per_rollout.cost / data.dollars_per_rollout)
        return max(min(settings.reserve, data.smallest_end), int(settings.reserve / max(times)))

    def amount(self, account: Account, dearest: float = 0.0) -> Amount:
        """The amount that the end needs: of a limit at most `MOST_SHARE`, and the test set.

        The last call is made only if the worst that it may cost is left. Where rollouts take as
        many calls as was assumed, the schedule has looked whether they are there; it refuses no
        limit that would be too small for what is only assumed.
        """
        settings, data = self._settings, self._settings.data
        of_test = account.later * (data.n_of_test_set if settings.metric else 0)
        kept = account.reserve(self.n_rollouts(account))
        kept += Amount(cost=max(data.dollars_of_dearest_call, dearest))
        limits = (settings.max_lm_calls, None, settings.max_cost)
        are_there = kept.n_lm_calls + of_test.n_lm_calls < (settings.max_lm_calls or math.inf)
        if are_there and account.per_rollout.n_lm_calls <= data.calls_per_rollout:
            limits = (None, None, settings.max_cost)
        rows = zip(limits, kept, of_test, strict=True)
        return Amount(*(_at_most(limit, more, test) + test for limit, more, test in rows))

    def note(self, rollout: Rollout, seconds: float | None) -> None:
        """Count a training rollout and the seconds that it took; None if it was replayed."""
        self.account = self.account.after_rollouts([rollout])
        is_cut = rollout.failure is not None and rollout.failure.kind.is_cut_short
        self.n_begun -= seconds is not None
        if seconds is not None and not is_cut:
            self._seconds.append(seconds)
        self.renew()

    def renew(self) -> None:
        """Let nothing else take what the end of the run needs, by what rollouts took so far."""
        with self._pool.lock:
            account, data = self.account, self._settings.data
            amount = self.amount(account, self._ledger.dearest)
            if not account.n_rollouts and self.n_rollouts(account):  # nobody knows what one takes
                dearest = MIN_PROGRAMS_MEASURED * CALLS_FOR_AN_ANSWER * data.most_calls_per_rollout
                half = MOST_SHARE * (self._settings.max_lm_calls or math.inf)
                dollars = dearest * account.per_answer.cost / data.calls_per_rollout
                most = MOST_SHARE * (self._settings.max_cost or math.inf)
                amount |= Amount(min(dearest, half), cost=min(dollars, most))
            self._ledger.set_reserve(
                Budget(
                    max_lm_calls=math.ceil(amount.n_lm_calls),
                    max_metric_calls=math.ceil(amount.n_metric_calls),
                    max_cost=self._dollars(account, amount.cost),
                    max_minutes=self._minutes(self.n_rollouts(account) + data.n_of_test_set),
                ),
                n_lessons=math.ceil(self.lessons().n_lm_calls),
            )

    def _dollars(self, account: Account, planned: float) -> float:
        """Less than planned with, to cut no batch, but the smallest end, and two dear rollouts."""
        last = self.dearest_call
        n = min(self.n_rollouts(account), self._settings.data.smallest_end)
        n_of_test = self._settings.data.n_of_test_set if n else 0
        smallest = last + account.per_rollout.cost * (n + n_of_test)
        two = last + COST_MARGIN * max(account.dearest.cost, account.per_rollout.cost) * min(2, n)
        return max(MOST_SHARE * planned, min(planned, smallest), two)

    @property
    def dearest_call(self) -> float:
        """The most dollars that one call may cost, as far as is known; a replay knows as much."""
        return max(self._settings.data.dollars_of_dearest_call, self._ledger.dearest)

    def _minutes(self, n_rollouts: int) -> float:
        """For these though they are slower, and for what is under way when the training ends."""
        most = MOST_SHARE * (self._settings.max_minutes or math.inf)
        if not self._seconds or not n_rollouts:  # nobody knows what one takes
            return most if n_rollouts else 0.0
        mean, longest = sum(self._seconds) / len(self._seconds), max(self._seconds)
        seconds = (n_rollouts * mean / self._settings.threads + longest) * TIME_MARGIN
        return min((seconds + BESIDE_S) / 60, most)

    @property
    def is_tight(self) -> bool:
        """Whether the first batches may not fit if a rollout takes twice what is assumed."""
        n = self.n_rollouts(self.account) + 2 * self._settings.rollouts_of_update
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
            self._pool.until(
                lambda: turns[0] is turn and (not self.n_begun or self._pays_for(n_rollouts))
            )
            yield self._pays_for(n_rollouts)
        finally:
            turns.remove(turn)
            self._pool.wake()

    def _pays_for(self, n_rollouts: int) -> bool:
        needed = self.account.expected(self.n_begun + n_rollouts) + self.lessons()
        pairs = zip(LIMITS, needed, strict=True)
        return not n_rollouts or all(n <= self._ledger.left(name) for name, n in pairs)


def _at_most(limit: float | None, kept: float, of_test: float) -> float:
    return kept if limit is None else max(0.0, min(kept, MOST_SHARE * (limit - of_test)))


Kept = TypeVar("Kept")
Result = TypeVar("Result", Rollout, Answer)
NOT_ASKED = Answer(None)  # a limit has ended the training; it is neither recorded nor counted
ERRORS_ALLOWED = 20  # up to this number errors do not end a run, unless `max_errors` says so
QUOTED_BYTES = 500  # of an error, whose message may quote a whole answer of an LM


class Calls:
    """Makes and counts the calls of a run, under the limits of its ledger. Raises StoreError."""

    def __init__(self, settings: RunSettings, journal: Journal) -> None:
        self.ledger = Ledger(settings.budget)
        self.ledger.clean = journal.redacted
        self.journal = journal
        self.pool, self.remote = _pool_of(settings, self.ledger)
        self.reserve = Reserve(settings, self.ledger, self.pool)
        self.report = RunReport(settings, self.ledger, journal.redacted)
        self.pool.on_wait = self.report.progress.tick
        self._max_errors, self._is_offline = settings.execution.max_errors, settings.offline
        self._n_done, self._errors = 0, Counter[str]()

    def begin(
        self,
        *,
        about: str,  # for messages
        key: str,
        kind: TypeAdapter[Result],
        role: str,  # in the report
        do: Callable[[Job[Result]], Result],
        without: Callable[[TrainingCut | TimeoutError, str], Result],  # by a limit or the clock
        count: Callable[[Result, float | None], None],  # with its seconds; None: it was replayed
        priority: Priority,
        usual: str,  # what it is in if it is in no call
        place: str = "threads",
    ) -> Job[Result]:
        """A rollout or an answer, for which the run pays once: recorded, or done now and recorded.

        A result whose failure is not recorded is noted, and made again by a later start. The job
        raises RunStopped: the run has ended. Raises MissingRecordError: offline, and there is no
        record.
        """

        def counted(result: Result, seconds: float | None) -> Result:
            self._count(role, result, seconds)
            count(result, seconds)
            return result

        def keep(outcome: Any) -> Any:
            is_cut = isinstance(outcome, TrainingCut | TimeoutError)
            result: Any = without(outcome, str(job)) if is_cut else outcome
            if result is NOT_ASKED:
                return result
            failure = failure_of(result)
            is_lost = failure is not None and not failure.kind.is_recorded
            kept = self.journal.keep(key, result, kind, is_lost)
            return counted(kept, time.monotonic() - job.begun_s)

        job: Job[Result] = Job(do, keep, place, f"the {about}", usual)
        with self.pool.lock:
            try:
                record = self.lookup(about, key, kind)
            except TrainingCut as cut:
                return job.ended(without(cut, ""))
            if record is None:
                return self.pool.submit(job, priority)
            return job.ended(counted(record, None))

    def lookup(self, name: str, key: str, kind: TypeAdapter[Kept]) -> Kept | None:
        """The recorded result, which costs what it cost when it was made. Raises RunStopped."""
        record = self.journal.find(key, kind)
        if record is not None:
            n_calls, cost, n_metric_calls = taken(record)
            self.ledger.spend(n_calls, cost, n_metric_calls)
        elif self.journal.cut_because:
            self.ledger.end(self.journal.cut_because)
        elif self._is_offline:
            raise self.journal.missing(name)
        return record

    def _count(self, role: str, result: Rollout | Answer, seconds: float | None) -> None:
        """Count a result as it is kept, without secrets."""
        n_calls, cost, _ = taken(result)
        self.ledger.note_used(n_calls, cost)
        self._n_done += 1  # also what an earlier start did: its failures are tried again
        self.report.count(role, result, is_replayed=seconds is None)
        if seconds is not None:
            self._check_errors(failure_of(result))

    def _check_errors(self, failure: Failure | None) -> None:
        """Count a failure of this start; end the run where too much of all that is done failed."""
        if failure is None or not failure.kind.is_error:
            return
        message = failure.message.partition(" on the example ")[0]  # equal but for the example
        self._errors[shortened(printable(message), QUOTED_BYTES)] += 1
        max_errors = self._max_errors
        allowed = max(ERRORS_ALLOWED, self._n_done // 2) if max_errors is None else max_errors
        n_errors = self._errors.total()
        if n_errors > allowed:
            ((message, times),) = self._errors.most_common(1)
            rule = "without max_errors the run" if max_errors is None else "max_errors"
            self.ledger.stop(
                f"{n_errors} of {self._n_done} rollouts and reflections failed, and {rule} allows "
                f"{allowed}. The most frequent error ({times} of {n_errors}): {sentence(message)} "
                f"Fix its cause ({_way_out(failure)}), or pass a higher Execution(max_errors=).",
                is_failure=True,
            )


def failure_of(result: Rollout | Answer) -> Failure | None:
    """The failure of a rollout, or of an answer that was lost."""
    if isinstance(result, Rollout):
        return result.failure
    return Failure(FailureKind.PROVIDER, result.error) if result.is_lost else None


def taken(result: Any) -> tuple[int, float, int]:
    """The LM calls, dollars and metric calls of a rollout or an answer; none of an approval."""
    usage, n_metric_calls = getattr(result, "usage", Usage()), 0
    if isinstance(result, Rollout):
        usage, n_metric_calls = usage + result.metric_usage, result.n_metric_calls
    return usage.n_lm_calls, usage.cost_usd, n_metric_calls


def _pool_of(settings: RunSettings, ledger: Ledger) -> tuple[Pool, RemoteRollouts | None]:
    """The threads (new ones, or those of the user's pool); the other processes."""
    executor, timeout_s = settings.execution.executor, settings.execution.rollout_timeout_s
    if executor is None:
        return Pool(ledger, settings.threads, timeout_s), None
    n_at_once = settings.num_threads or workers_of(executor) or settings.threads
    if isinstance(executor, ThreadPoolExecutor):
        return Pool(ledger, n_at_once, timeout_s, executor), None
    pool = Pool(ledger, settings.threads, timeout_s, n_remote=n_at_once)
    return pool, RemoteRollouts(ledger, executor, n_at_once)


def _way_out(failure: Failure) -> str:
    """The argument that most often helps against such failures, or where their cause is."""
    ways = {
        "provider": "arguments of dspy.LM such as the name of the model, api_key or num_retries, a "
        f'lower num_threads where a rate limit is reached, temperature="{OWN}" where a sampling '
        "parameter is refused",
        "timeout": "a higher Execution(rollout_timeout_s=), or a lower num_threads",
        "worker": "the memory and the packages of the executor's workers",
    }
    return ways.get(failure.kind, f"in the {failure.kind}")
