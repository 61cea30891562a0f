"""The calls of a run: replayed, or done and then recorded. It ends where too many of them fail."""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import TypeAdapter

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.calls.reserve import Reserve
from tfgrpo_dspy.errors import TrainingCut, sentence
from tfgrpo_dspy.listeners.run_report import RunReport
from tfgrpo_dspy.outside import printable
from tfgrpo_dspy.reflection.modules import Answer
from tfgrpo_dspy.rollout import OWN, Failure, FailureKind, Rollout, Usage
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.store.journal import Journal
from tfgrpo_dspy.tasks.executors import RemoteRollouts, workers_of
from tfgrpo_dspy.tasks.pool import Job, Pool, Priority
from tfgrpo_dspy.wording import shortened

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
