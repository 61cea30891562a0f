"""The event loop of a run, in a thread of its own, and the threads that do its tasks.

A notebook has an event loop running already, so the run's loop cannot be in the caller's thread.
Tasks are done in daemon threads: a call that hangs for minutes holds up neither Ctrl-C nor the end
of a script.
"""

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import math
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tfgrpo_dspy.budget import CURRENT_TASK, Ledger, Task
from tfgrpo_dspy.errors import RunStopped

Result = TypeVar("Result")
Priority = tuple[int, ...]
"""Of two tasks that wait, the lower priority is begun first; of equals, the earlier task."""

GRACE_S = 2.0
"""How long calls in flight are waited for when a budget is reached, so that they are not lost."""
WATCH_S = 0.1
"""How often the loop looks whether the run has ended, and whether a paused task took too long."""
TURNS = 5
"""So many turns of the loop after a result its slot is free: what follows from it waits by then."""


class TimedOutError(Exception):
    """The task took longer than it may; it was abandoned."""


class _Interrupted(BaseException):
    """Carries what a thread raised, such as KeyboardInterrupt, which would break asyncio's loop."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Slots:
    """As many holders at once as there are slots; of those that wait, the lowest priority is next.

    For coroutines of one loop.
    """

    def __init__(self, n_slots: int) -> None:
        self._n_free = n_slots
        self._waiting: list[tuple[Priority, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    async def acquire(self, priority: Priority) -> None:
        """Wait for a slot."""
        if self._n_free:
            self._n_free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._count), turn))
        await turn

    def release(self) -> None:
        """Give a slot to the next that waits."""
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._n_free += 1


class Loop:
    """Runs the coroutines of a run, and does their tasks in threads.

    Args:
        ledger: says when the run has ended.
        n_threads: how many tasks are done at once.
        timeout_s: how long a task may work, a provider's pauses apart; None: any time.
        pool: threads of the user's; None: a new daemon thread for each task.
    """

    def __init__(
        self,
        ledger: Ledger,
        n_threads: int,
        timeout_s: float | None = None,
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        self.ledger = ledger
        self._n_threads = n_threads
        self._timeout_s = timeout_s
        self._pool = pool
        self._slots: Slots
        self._in_flight: set[asyncio.Task[Any]] = set()
        self._tasks: set[Task] = set()
        self._spawned: set[asyncio.Task[Any]] = set()
        self._failed: asyncio.Future[None]

    # ------------------------------------------------------------------ the caller's thread

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """What the coroutine returns; it has the caller's `dspy.context`.

        Raises:
            RunStopped: the run has ended; what was done within `GRACE_S` is recorded.
        """
        loop = asyncio.new_event_loop()
        main = loop.create_task(self._supervised(coroutine))
        ended = threading.Event()

        def work() -> None:
            while not main.done():  # a KeyboardInterrupt leaves the loop at each that awaits it
                with contextlib.suppress(BaseException):  # raised in the caller's thread
                    loop.run_until_complete(main)
            loop.close()
            ended.set()

        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(work,), daemon=True, name="tfgrpo loop")
        thread.start()
        try:
            while not ended.wait(WATCH_S):  # a wait without end may miss a Ctrl-C
                pass
            return main.result()
        except _Interrupted as interrupted:
            raise interrupted.error from None
        except BaseException:
            if thread.is_alive():  # the caller's thread was interrupted
                with contextlib.suppress(RuntimeError):  # the loop has closed in this moment
                    loop.call_soon_threadsafe(main.cancel)
                thread.join(GRACE_S)
            raise

    # ------------------------------------------------------------------ for coroutines

    def spawn(self, coroutine: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        """Begin a coroutine. What it raises ends `run`, whether somebody awaits it or not."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._spawned.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._spawned.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._failed.done():
            self._failed.set_exception(error)

    def submit(
        self, work: Callable[[], Any], priority: Priority, record: Callable[[Any], Result]
    ) -> "asyncio.Task[Result]":
        """Have `work()` done in a thread; what `record` makes of its result, in the loop's thread.

        A task holds its slot until its result is recorded: so no more results than there are slots
        are ever in flight or unrecorded. Where the work took too long, `record` is given a
        `TimedOutError`.
        """
        return self.spawn(self.holding(self._slots, priority, lambda: self._worked(work), record))

    async def holding(
        self,
        slots: Slots,
        priority: Priority,
        begin: Callable[[], Awaitable[Any]],
        record: Callable[[Any], Result],
    ) -> Result:
        """The recorded result of what is begun when there is a slot."""
        await slots.acquire(priority)
        self.ledger.check()
        task: Any = asyncio.current_task()
        self._in_flight.add(task)
        try:
            result = record(await begin())
        finally:  # an error ends the run: nothing is to be begun in its slot
            self._in_flight.discard(task)
        self.spawn(_released_later(slots))
        return result

    async def _worked(self, work: Callable[[], Any]) -> Any:
        """What the work gave, or a `TimedOutError`."""
        task = Task()
        self._tasks.add(task)
        done = asyncio.wrap_future(self._in_thread(task, work))
        try:
            while not done.done() and (left := task.seconds_left(self._timeout_s)) > 0:
                await asyncio.wait({done}, timeout=None if math.isinf(left) else max(left, WATCH_S))
            if done.done():
                return done.result()
            task.is_abandoned = True
            return TimedOutError(f"took over {self._timeout_s:g} s")
        finally:
            done.cancel()
            self._tasks.discard(task)

    def _in_thread(self, task: Task, work: Callable[[], Any]) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_running_or_notify_cancel()
        context = contextvars.copy_context()
        context.run(CURRENT_TASK.set, task)

        def job() -> None:
            try:
                done.set_result(context.run(work))
            except (Exception, RunStopped) as error:  # noqa: BLE001 - raised where it is awaited
                done.set_exception(error)
            except BaseException as error:  # noqa: BLE001 - the same
                done.set_exception(_Interrupted(error))

        if self._pool is None:
            threading.Thread(target=job, daemon=True, name="tfgrpo").start()
            return done
        try:
            self._pool.submit(job)
        except RuntimeError as error:
            self.ledger.stop(f"the executor is broken: {error}", is_failure=True)
            self.ledger.check()
        return done

    # ------------------------------------------------------------------ the end

    async def _supervised(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        self._slots = Slots(self._n_threads)
        self._failed = asyncio.get_running_loop().create_future()
        main = self.spawn(coroutine)
        self.spawn(self._watch())
        try:
            ends: set[asyncio.Future[Any]] = {main, self._failed}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            return main.result()
        except RunStopped:
            if self._in_flight:
                await asyncio.wait(self._in_flight.copy(), timeout=GRACE_S)
            raise
        finally:
            await self._drop()

    async def _watch(self) -> None:
        """Raises RunStopped when the run has ended, though every call may hang."""
        while True:
            await asyncio.sleep(WATCH_S)
            self.ledger.check()

    async def _drop(self) -> None:
        """End every coroutine, and abandon what is in flight."""
        for task in self._tasks:
            task.is_abandoned = True
        while spawned := list(self._spawned):
            for coroutine in spawned:
                coroutine.cancel()
            await asyncio.gather(*spawned, return_exceptions=True)
        if self._failed.done():
            self._failed.exception()  # read, so that asyncio does not warn of it
        self._in_flight.clear()
        self._tasks.clear()


async def _released_later(slots: Slots) -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)
    slots.release()
