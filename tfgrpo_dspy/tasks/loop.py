"""The event loop of a run, in a thread of its own, and the threads that do its tasks.

A notebook has an event loop running already, so the run's loop cannot be in the caller's thread.
Tasks are done in daemon threads: a call that hangs holds up neither Ctrl-C nor the script's end.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent import futures
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.dspy_seam import unstreamed
from tfgrpo_dspy.errors import RunStopped, TrainingCut, UserCodeError, described
from tfgrpo_dspy.tasks.caller import check_cancelled, in_own_thread
from tfgrpo_dspy.user_code import ABANDONED, check_wanted

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Priority = tuple[int, ...]
"""Of two tasks that wait, the lower priority is begun first; of equals, the earlier task."""

GRACE_S, GRACE_SHARE = 2.0, 1 / 3
"""The time that calls in flight get when a budget is reached, so that they are not lost; of the
time that is kept for the end of the run at most this share."""
HANGS_AFTER = 1.5  # of that time; what then keeps the training from its end is no call
PATIENCE_S = 60.0  # after so long without a result, the log says once where a task is
WATCH_S = 0.1  # how often the loop looks whether the run has ended
TURNS = 5
"""After a result, a slot yields so often that the tasks which the result leads to are queued
before the slot takes its next task."""


@dataclass(slots=True)
class Activity:
    """The activity of one task, for messages; as text such as "tool 'read'"."""

    about: str  # the task, by name
    usual: str  # what it is in if it is in none of the calls
    calls: dict[str, str] = field(default_factory=dict)  # that have begun and not ended, by id

    def __str__(self) -> str:
        return [self.usual, *self.calls.copy().values()][-1]


class Loop:
    """Runs coroutines, and at most `n_threads` tasks in threads, `n_remote` in other processes."""

    def __init__(
        self,
        ledger: Ledger,
        n_threads: int,
        timeout_s: float | None = None,  # how long a task may take
        pool: futures.ThreadPoolExecutor | None = None,  # the user's threads, in place of ours
        n_remote: int = 0,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.ledger = ledger
        self._n_slots = {"threads": n_threads, "remote": n_remote}
        self._timeout_s = timeout_s
        self._pool = pool
        self._patience_s = patience_s
        self._has_named = False
        self.on_wait: Callable[[], None] = lambda: None  # ten times a second while the loop runs
        self._count = itertools.count()
        self._waiting: dict[str, asyncio.PriorityQueue[Any]]
        self._spawned: WeakKeyDictionary[Any, set[asyncio.Future[Any]]] = WeakKeyDictionary()
        self._in_flight: set[asyncio.Future[Any]] = set()
        self._timeouts: set[asyncio.Timeout] = set()
        self._abandoned: set[threading.Event] = set()  # of what is waited for
        self._failed: asyncio.Future[Any]

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """The coroutine's result, with the caller's `dspy.context`. Raises RunStopped: it ended."""
        loop, abandoned = asyncio.new_event_loop(), threading.Event()
        with unstreamed():
            context = copy_context()
        context.run(ABANDONED.set, abandoned)
        self._in_flight, self._timeouts, self._abandoned = set(), set(), {abandoned}
        main = loop.create_task(self._supervised(coroutine), context=context)

        def work() -> None:
            # each coroutine that awaits an interrupted task stops the loop once: run until all have
            while not main.done():
                with contextlib.suppress(BaseException):  # raised in the caller's thread
                    loop.run_until_complete(main)
            loop.close()

        ended = in_own_thread(work)
        try:
            self._wait(ended)
        except BaseException as error:  # the caller's thread was interrupted, or the loop hangs
            with contextlib.suppress(RuntimeError):  # the loop has closed in this moment
                loop.call_soon_threadsafe(main.cancel)
            futures.wait([ended], WATCH_S if isinstance(error, RunStopped) else GRACE_S)
            for each in self._abandoned.copy():
                each.set()
            raise
        return main.result()

    def call(self, work: Callable[[], Result]) -> Result:
        """The result of a user's function. Raises RunStopped: it hangs, and the run is over."""
        done = in_own_thread(work)
        self._wait(done)
        return done.result()

    def _wait(self, done: "futures.Future[Any]") -> None:
        """Wait for what is to end by itself. Raises RunStopped: it hangs, and the run is over."""
        while not done.done():  # a wait without end may miss a Ctrl-C
            futures.wait([done], WATCH_S)
            check_cancelled()
            if self.ledger.seconds_left() < -HANGS_AFTER * self._grace_s:
                self.ledger.check()

    @property
    def _grace_s(self) -> float:
        return min(GRACE_S, GRACE_SHARE * self.ledger.seconds_kept or GRACE_S)

    def spawn(self, coroutine: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        """Begin a coroutine. What it raises ends `run`, whether somebody awaits it or not."""
        task = asyncio.get_running_loop().create_task(coroutine)
        spawned = self._spawned.setdefault(task.get_loop(), set())
        spawned.add(task)
        task.add_done_callback(spawned.discard)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Future[Any]") -> None:
        error = None if task.cancelled() else task.exception()
        is_wanted = self._failed.get_loop() is task.get_loop()
        if error is not None and is_wanted and not self._failed.done():
            self._failed.set_exception(error)

    def submit(
        self,
        begin: Callable[[], Awaitable[Any]],
        priority: Priority,
        record: Callable[[Any], Result],
        place: str = "threads",
        activity: Activity | None = None,
    ) -> "asyncio.Future[Result]":
        """Begin a task once a slot of that place is free; a future of what `record` makes of it.

        A task holds its slot until its result is recorded: so no more results than there are slots
        are ever in flight or unrecorded. One that took too long is recorded as a `TimeoutError`,
        and the log says what it is doing.
        """
        check_wanted()
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        result.add_done_callback(self._ended)
        self._waiting[place].put_nowait(
            (priority, next(self._count), begin, record, activity, result)
        )
        return result

    async def _slot(self, waiting: "asyncio.PriorityQueue[Any]") -> None:
        """Does one task after the other."""
        while True:
            *_, begin, record, activity, result = await waiting.get()
            self._in_flight.add(result)
            try:
                result.set_result(record(await self._in_time(begin, activity)))
            except asyncio.CancelledError:
                result.cancel()
                raise
            except BaseException as error:  # noqa: BLE001 - it ends the run, in `_ended`
                result.set_exception(error)
                return
            finally:
                self._in_flight.discard(result)
            for _ in range(TURNS):
                await asyncio.sleep(0)

    async def _in_time(self, begin: Callable[[], Awaitable[Any]], activity: Activity | None) -> Any:
        """The result of the task, or the error of one that took too long or outlived training."""
        loop, timeout = asyncio.get_running_loop(), asyncio.timeout(self._timeout_s)
        naming = loop.call_later(self._patience_s, self._name_waiting, activity)
        try:
            self.ledger.check()
            async with timeout:
                self._timeouts.add(timeout)
                return await begin()
        except TrainingCut as cut:
            return cut
        except TimeoutError:
            if self.ledger.is_late:
                return TrainingCut(self.ledger.cut_because)
            return TimeoutError(f"took over {self._timeout_s:g} s")
        finally:
            self._timeouts.discard(timeout)
            naming.cancel()

    def _check(self) -> None:
        """Raises RunStopped: the run has ended. Where the training has, what is begun ends soon."""
        try:
            self.ledger.check()  # though every call may hang
        except TrainingCut:
            end = asyncio.get_running_loop().time() + self._grace_s
            for timeout in self._timeouts:
                if not timeout.expired():
                    timeout.reschedule(min(timeout.when() or math.inf, end))

    def _name_waiting(self, activity: Activity | None) -> None:
        """Say in the log, once in a run, where a task is that has no result yet."""
        if activity is not None and not self._has_named:
            self._has_named = True
            logger.warning(
                "%s has no result after %g s: it is in %s; if that waits for something that "
                "cannot come, pass Execution(rollout_timeout_s=...)",
                activity.about,
                self._patience_s,
                activity,
            )

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        """The result of the work; its calls are refused as soon as nobody waits for it."""
        check_wanted()
        abandoned, context = threading.Event(), copy_context()
        context.run(ABANDONED.set, abandoned)
        self._abandoned.add(abandoned)

        def guarded() -> Any:
            try:
                return work()
            except BaseException as error:
                is_usual = isinstance(error, Exception) and not isinstance(error, StopIteration)
                if is_usual or isinstance(error, RunStopped | KeyboardInterrupt):
                    raise
                raise UserCodeError(described(error)) from error  # it would end the run's own tasks

        try:
            if self._pool is None:
                done = context.run(in_own_thread, guarded)
            else:
                done = self._pool.submit(context.run, guarded)
        except RuntimeError as error:
            self.ledger.fail(f"the executor is broken: {error}", error)
        try:
            return await asyncio.wrap_future(done)
        finally:
            abandoned.set()
            self._abandoned.discard(abandoned)

    async def _supervised(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        # no asyncio.TaskGroup: its first failure would cancel calls in flight that are paid already
        failed = self._failed = asyncio.get_running_loop().create_future()
        self._waiting = {place: asyncio.PriorityQueue() for place in self._n_slots}
        for place, n_slots in self._n_slots.items():
            for _ in range(n_slots):
                self.spawn(self._slot(self._waiting[place]))
        main = self.spawn(coroutine)
        try:
            while not (main.done() or failed.done()):
                self._check()
                self.on_wait()
                ends = (main, failed)
                await asyncio.wait(ends, timeout=WATCH_S, return_when=asyncio.FIRST_COMPLETED)
            return failed.result() if failed.done() else main.result()
        except RunStopped:
            if self._in_flight:
                await asyncio.wait(self._in_flight.copy(), timeout=GRACE_S)
            raise
        finally:  # end every coroutine, which abandons what is in flight
            spawned = self._spawned[failed.get_loop()]
            while left := [task for task in spawned if task.cancel()]:
                await asyncio.gather(*left, return_exceptions=True)
            if failed.done():
                failed.exception()  # read, so that asyncio does not warn of it
