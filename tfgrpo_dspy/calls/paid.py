"""The calls of a run: replayed, or done and then recorded. It ends where too many of them fail."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.calls.reserve import Reserve
from tfgrpo_dspy.errors import TrainingCut, sentence
from tfgrpo_dspy.listeners.run_report import RunReport
from tfgrpo_dspy.outside import printable
from tfgrpo_dspy.rollout import OWN, Failure
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.store.journal import Journal
from tfgrpo_dspy.tasks.executors import RemoteRollouts, workers_of
from tfgrpo_dspy.tasks.loop import Activity, Loop, Priority
from tfgrpo_dspy.wording import shortened

Result = TypeVar("Result")
ERRORS_ALLOWED = 20  # up to this number errors do not end a run, unless `max_errors` says so
QUOTED_BYTES = 500  # of an error, whose message may quote a whole answer of an LM


def _raised(why: TrainingCut | TimeoutError) -> Any:
    raise why


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidCall(Generic[Result]):
    """A rollout, a reflection or an approval, which a run pays for once.

    A result whose failure (`failure_of`) is not recorded is noted, and made again by a later start;
    one that is void is neither noted nor counted. `count` is given a result and the seconds that it
    took, None if it was replayed.
    """

    name: str
    key: str
    kind: TypeAdapter[Result]
    do: Callable[[], Awaitable[Result]]
    role: str = ""  # in the report; "": it has none
    activity: Activity | None = None
    without: Callable[[TrainingCut | TimeoutError], Result] = _raised  # by a limit or the clock
    taken: Callable[[Result], tuple[int, float, int]] = lambda _: (0, 0.0, 0)  # as `Ledger.spend`
    failure_of: Callable[[Result], Failure | None] = lambda _: None
    is_void: Callable[[Result], bool] = lambda _: False
    count: Callable[[Result, float | None], None] = lambda *_: None


class Calls:
    """Makes and counts the calls of a run, under the limits of its ledger. Raises StoreError."""

    def __init__(self, settings: RunSettings, journal: Journal) -> None:
        self.ledger = Ledger(settings.budget)
        self.ledger.clean = journal.redacted
        self.reserve = Reserve(settings, self.ledger)
        self.journal = journal
        self.loop, self.remote = _loop_of(settings, self.ledger)
        self.report = RunReport(settings, self.ledger, journal.redacted)
        self.loop.on_wait = self.report.progress.tick
        self._max_errors, self._is_offline = settings.execution.max_errors, settings.offline
        self._n_done, self._errors = 0, Counter[str]()

    def recorded(
        self, call: PaidCall[Result], priority: Priority | None, place: str = "threads"
    ) -> Awaitable[Result]:
        """The recorded result of the call; or the result of doing it, which is then recorded.

        It is done when there is a slot in that place; without a priority, at once. Raises
        RunStopped: the run has ended; MissingRecordError: offline, and there is no record.
        """
        record = self._found(call)
        if record is not None:
            return _there(record)
        begun_s = time.monotonic()

        async def begin() -> Any:
            nonlocal begun_s
            begun_s = time.monotonic()
            try:
                return await call.do()
            except TrainingCut as cut:
                return cut

        def keep(done: Any) -> Result:
            result = call.without(done) if isinstance(done, TrainingCut | TimeoutError) else done
            if not call.is_void(result):
                failure = call.failure_of(result)
                is_lost = failure is not None and not failure.kind.is_recorded
                result = self.journal.keep(call.key, result, call.kind, is_lost)
                self._count(call, result, time.monotonic() - begun_s)
            return result

        async def at_once() -> Result:
            return keep(await begin())

        if priority is None:
            return at_once()
        return self.loop.submit(begin, priority, keep, place, call.activity)

    def _found(self, call: PaidCall[Result]) -> Result | None:
        """The recorded result, which costs what it cost when it was made."""
        record = self.journal.find(call.key, call.kind)
        try:
            if record is not None:
                n_calls, cost, n_metric_calls = call.taken(record)
                self.ledger.spend(n_calls, cost, n_metric_calls)
            elif self.journal.cut_because:
                self.ledger.end(self.journal.cut_because)
            elif self._is_offline:
                raise self.journal.missing(call.name)
        except TrainingCut as cut:
            return call.without(cut)
        if record is not None:
            self._count(call, record, None)
        return record

    def _count(self, call: PaidCall[Result], result: Result, seconds: float | None) -> None:
        """Count a result as it is kept, without secrets."""
        n_calls, cost, _ = call.taken(result)
        self.ledger.note_used(n_calls, cost)
        call.count(result, seconds)
        if not call.role:
            return
        self._n_done += 1  # also what an earlier start did: its failures are tried again
        self.report.count(call.role, result, is_replayed=seconds is None)
        if seconds is not None:
            self._check_errors(call.failure_of(result))

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


def _there(result: Result) -> "asyncio.Future[Result]":
    future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    future.set_result(result)
    return future


def _loop_of(settings: RunSettings, ledger: Ledger) -> tuple[Loop, RemoteRollouts | None]:
    """The loop with its threads (new ones, or those of the user's pool); the other processes."""
    executor, timeout_s = settings.execution.executor, settings.execution.rollout_timeout_s
    if executor is None:
        return Loop(ledger, settings.threads, timeout_s), None
    n_at_once = settings.num_threads or workers_of(executor) or settings.threads
    if isinstance(executor, ThreadPoolExecutor):
        return Loop(ledger, n_at_once, timeout_s, executor), None
    loop = Loop(ledger, settings.threads, timeout_s, n_remote=n_at_once)
    return loop, RemoteRollouts(ledger, executor, n_at_once)


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
