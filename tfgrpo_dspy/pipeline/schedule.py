"""Which task runs when: coroutines that wait for each other and for the workers' tasks.

One thread steps them, the caller's, in an order that depends on what is done only: a coroutine goes
on as soon as what it waits for is there, and of several that may go on, the one that waited first.
There is no event loop of asyncio in it, as a notebook has one running already, and a task here
costs a few microseconds.
"""

import queue
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from tfgrpo_dspy.budget import Ledger, Task
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.pipeline.garbage import looking_at_new_objects_only
from tfgrpo_dspy.pipeline.remote import RemoteTask, RemoteWorkers
from tfgrpo_dspy.pipeline.workers import Done, Order, Workers

Result = TypeVar("Result")
AnyTask = Task | RemoteTask
Place = Workers | RemoteWorkers
Step = tuple[Coroutine[Any, Any, Any], "Handle[Any]"]

GRACE_S = 2.0
"""How long calls in flight are waited for when a budget is reached, so that they are not lost."""
LONGEST_POLL_S = 0.5


class TimedOutError(Exception):
    """The task took longer than it may; it was abandoned."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """What waits for a task."""

    handle: "Handle[Any]"
    then: "Callable[[Done], Any]"
    place: "Place"


class Handle(Generic[Result]):
    """What will be there: `await` gives it, as soon as it is."""

    __slots__ = ("_result", "is_done", "waiting")

    def __init__(self) -> None:
        self.is_done = False
        self.waiting: list[Step] = []
        self._result: Result | None = None

    def __await__(self) -> Generator["Handle[Result]", None, Result]:
        if not self.is_done:
            yield self
        return self.result

    @property
    def result(self) -> Result:
        """What is there; only when it is."""
        return cast(Result, self._result)

    def fulfil(self, result: Result) -> None:
        """It is there."""
        self._result = result
        self.is_done = True


class Turn:
    """`await Turn()`: go on when everything else that can go on now has."""

    def __await__(self) -> Generator[Handle[None], None, None]:
        nothing: Handle[None] = Handle()
        nothing.fulfil(None)
        yield nothing


class Schedule:
    """Runs coroutines over a pool of workers.

    Args:
        workers: do the tasks.
        remote: does those that are submitted to it; None: there is no executor.
        ledger: says when the run has ended.
        timeout_s: how long a task may take, from its start; None: as long as it takes.
        together: around what is done with results that came at once, such as a transaction.
    """

    def __init__(
        self,
        workers: Workers,
        ledger: Ledger,
        timeout_s: float | None,
        remote: RemoteWorkers | None = None,
        together: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.remote = remote
        self._workers = workers
        self._places: list[Place] = [workers] if remote is None else [workers, remote]
        self._together = together
        self._ledger = ledger
        self._timeout_s = timeout_s
        self._ready: deque[Step] = deque()
        self._done: deque[Done] = deque()
        self._dealt_with: list[AnyTask] = []
        self._ends_because = "nothing is left to wait for"
        self._running: dict[AnyTask, _Waiting] = {}
        self._alive: dict[Handle[Any], Coroutine[Any, Any, Any]] = {}

    # ------------------------------------------------------------------ for coroutines

    def spawn(self, coroutine: Coroutine[Any, Any, Result]) -> Handle[Result]:
        """Begin a coroutine; what it returns will be in the handle. What it raises ends `run`."""
        handle: Handle[Result] = Handle()
        self._alive[handle] = coroutine
        self._ready.append((coroutine, handle))
        return handle

    def submit(
        self,
        work: Any,
        item: Any,
        order: Order,
        then: Callable[[Done], Result],
        place: Place | None = None,
    ) -> Handle[Result]:
        """Have `work(item)` done; in `remote`, the errand `item` with the parcel `work`.

        `then` makes of it what will be in the handle, in this thread, at once. The task's slot is
        free when `then` has dealt with it and what waited for it has gone on: so no more results
        than there are slots are ever in flight or unrecorded, and what follows from a result is
        chosen from with the rest. (Where nothing is recorded, `Workers` may let go of it before.)
        A task that takes too long is abandoned, and comes as a `TimedOutError`.
        """
        handle: Handle[Result] = Handle()
        where: Any = place or self._workers
        task = where.new_task()
        self._running[task] = _Waiting(handle, then, where)
        where.start(task, work, item, order)
        return handle

    def never(self, why: str) -> Handle[None]:
        """What will not be there; the run ends, for this reason, when it can only wait for such."""
        self._ends_because = why
        return Handle()

    # ------------------------------------------------------------------ the caller's thread

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Step coroutines until this one is done; gives what it returns.

        Raises:
            RunStopped: the run has ended; what was done within `GRACE_S` was dealt with.
        """
        main = self.spawn(coroutine)
        try:
            with looking_at_new_objects_only():
                self._run_until_done(main)
            return main.result
        finally:
            self.abandon_all()

    def _run_until_done(self, main: Handle[Any]) -> None:
        while not main.is_done:
            while self._ready and not main.is_done:
                self._step(*self._ready.popleft())
            self._give_slots_back()
            if not main.is_done:
                self._wait()

    def abandon_all(self) -> None:
        """Drop what is in flight, and every coroutine."""
        self._drop_waiting()  # a slot that is given up must not begin another
        for task, waiting in self._running.items():
            self._abandon(task, waiting)
        self._give_slots_back()
        self._running.clear()
        self._ready.clear()
        for coroutine in list(self._alive.values()):
            coroutine.close()
        self._alive.clear()

    def close(self) -> None:
        """Drop everything; begin nothing more."""
        self.abandon_all()
        for place in self._places:
            place.close()

    def _abandon(self, task: AnyTask, waiting: _Waiting) -> None:
        place: Any = waiting.place
        place.abandon(task)

    def _drop_waiting(self) -> None:
        for place in self._places:
            place.drop_waiting()

    def _step(self, coroutine: Coroutine[Any, Any, Any], handle: Handle[Any]) -> None:
        try:
            waits_for: Handle[Any] = coroutine.send(None)
        except StopIteration as returned:
            del self._alive[handle]
            self._fulfil(handle, returned.value)
            return
        if waits_for.is_done:
            self._ready.append((coroutine, handle))
        else:
            waits_for.waiting.append((coroutine, handle))

    def _fulfil(self, handle: Handle[Any], result: Any) -> None:
        handle.fulfil(result)
        self._ready.extend(handle.waiting)
        handle.waiting.clear()

    def _wait(self) -> None:
        """Until something is done, a task is overdue, or the run has ended."""
        try:
            self._ledger.check()
            if not self._running:
                self._ledger.stop(self._ends_because)
                self._ledger.check()
            if self.remote is not None:
                self.remote.pump()  # what a reflection gave back may be a lease now
            self._take(self._poll_s())
        except RunStopped:
            self._drain()
            raise

    def _take(self, seconds: float) -> None:
        """Deal with what is done, all of it at once, as soon as there is any."""
        self._give_slots_back()
        finished = self._workers.finished
        if not self._done:
            try:
                self._done.append(finished.get(timeout=seconds))
            except queue.Empty:
                self._take_overdue()
                return
        self._done.extend(finished.get() for _ in range(finished.qsize()))
        with self._together():
            while self._done:
                self._receive(self._done.popleft())

    def _receive(self, done: Done) -> None:
        place = self.remote if isinstance(done.task, RemoteTask) else self._workers
        received = place.received(done) if place is not None else None
        if received is not None and done.task in self._running:
            self._deal_with(received)

    def _deal_with(self, done: Done) -> None:
        waiting = self._running.pop(done.task)
        self._dealt_with.append(done.task)
        if not isinstance(done.error, RunStopped):
            self._fulfil(waiting.handle, waiting.then(done))

    def _give_slots_back(self) -> None:
        """Those of the tasks that were dealt with."""
        for task in self._dealt_with:
            task.end()
        self._dealt_with.clear()

    def _drain(self) -> None:
        """Let what is in flight come in, for a moment; nothing is begun any more."""
        self._drop_waiting()
        for task in [task for task in self._running if task.started_s is None]:
            self._abandon(task, self._running.pop(task))
        until = time.monotonic() + GRACE_S
        while self._running and (left := until - time.monotonic()) > 0:
            self._take(min(left, self._poll_s()))

    def _poll_s(self) -> float:
        if self._timeout_s is None:
            return LONGEST_POLL_S
        now = time.monotonic()
        ends = [task.started_s + self._timeout_s for task in self._running if task.started_s]
        return max(0.001, min([LONGEST_POLL_S, *(end - now for end in ends)]))

    def _take_overdue(self) -> None:
        if self._timeout_s is None:
            return
        now = time.monotonic()
        for task, waiting in list(self._running.items()):
            if task.started_s is not None and now - task.started_s >= self._timeout_s:
                self._abandon(task, waiting)
                self._give_slots_back()
                error = TimedOutError(f"took over {self._timeout_s:g} s")
                self._deal_with(Done(task, error=error))
