"""The calls of a run: replayed where they are recorded, else done, and recorded when done."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

from tfgrpo_dspy.calls.context import RunContext
from tfgrpo_dspy.errors import TrainingCut
from tfgrpo_dspy.rollout import Failure
from tfgrpo_dspy.tasks.loop import Priority
from tfgrpo_dspy.tasks.whereabouts import Whereabouts

Result = TypeVar("Result")


def _raised(why: TrainingCut | TimeoutError) -> Any:
    raise why


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidCall(Generic[Result]):
    """A rollout, a reflection or an approval, which a run pays for once.

    `role` is its role in the report; "": it has none. `do` does it; `without` is the result where a
    limit or the clock leaves none. `taken` is what a result cost: LM calls, dollars, metric calls.
    A result whose failure (`failure_of`) is not recorded is noted, and made again by a later start;
    one that is void is neither noted nor counted. `count` counts a result, with the seconds that it
    took; None: it was recorded before.
    """

    name: str
    key: str
    kind: TypeAdapter[Result]
    do: Callable[[], Awaitable[Result]]
    role: str = ""
    where: Whereabouts | None = None
    without: Callable[[TrainingCut | TimeoutError], Result] = _raised
    taken: Callable[[Result], tuple[int, float, int]] = lambda _: (0, 0.0, 0)
    failure_of: Callable[[Result], Failure | None] = lambda _: None
    is_void: Callable[[Result], bool] = lambda _: False
    count: Callable[[Result, float | None], None] = lambda *_: None


def recorded(
    run: RunContext, call: PaidCall[Result], priority: Priority | None, place: str = "threads"
) -> Awaitable[Result]:
    """The recorded result of the call; or the result of doing it, which is then recorded.

    It is done when there is a slot in that place; without a priority, at once. Raises RunStopped:
    the run has ended; MissingRecordError: offline, and there is no record.
    """
    record = _found(run, call)
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
            result = run.records.keep(call.key, result, call.kind, is_lost)
            _count(run, call, result, time.monotonic() - begun_s)
        return result

    async def at_once() -> Result:
        return keep(await begin())

    if priority is None:
        return at_once()
    return run.loop.submit(begin, priority, keep, place, call.where)


def _found(run: RunContext, call: PaidCall[Result]) -> Result | None:
    """The recorded result, which costs what it cost when it was made."""
    record = run.records.find(call.key, call.kind)
    try:
        if record is not None:
            run.ledger.spend(*call.taken(record))
        elif run.settings.offline:
            run.stop_for_missing_record(call.name)
    except TrainingCut as cut:
        return call.without(cut)
    if record is not None:
        _count(run, call, record, None)
    return record


def _count(run: RunContext, call: PaidCall[Result], result: Result, seconds: float | None) -> None:
    """Count a result as it is kept, without secrets."""
    call.count(result, seconds)
    if call.role and seconds is None:
        run.report.replayed[call.role] += 1
    elif call.role:
        run.errors.check(call.failure_of(result))


def _there(result: Result) -> "asyncio.Future[Result]":
    future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    future.set_result(result)
    return future
