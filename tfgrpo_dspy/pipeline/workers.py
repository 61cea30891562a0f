"""The threads: run a task on many items, each result as soon as it is there.

The threads are daemons, and not those of `concurrent.futures`, which Python waits for when it
ends: a call that hangs for minutes must hold up neither Ctrl-C nor the end of a script.
"""

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tfgrpo_dspy.budget import CURRENT_TASK, Ledger, Task
from tfgrpo_dspy.errors import RunStopped

Item = TypeVar("Item")
Result = TypeVar("Result")

GRACE_S = 2.0
"""How long calls in flight are waited for when a budget is reached, so that they are not lost."""
MOST_THREADS = 8
"""How many threads there may be for each slot: those that only wait, or hang, hold none."""
LONGEST_POLL_S = 0.5


class TimedOutError(Exception):
    """The task took longer than it may; it was abandoned."""


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """What became of the item at that position: its result, or what was raised."""

    index: int
    result: Result | None = None
    error: BaseException | None = None


class Workers:
    """A pool of threads in which every task has the caller's `dspy.context`.

    Args:
        num_threads: how many tasks work at once.
        ledger: says when the run has ended.
        timeout_s: how long a task may take, from its start; None: as long as it takes.
    """

    def __init__(self, num_threads: int, ledger: Ledger, timeout_s: float | None = None) -> None:
        self._ledger = ledger
        self._timeout_s = timeout_s
        self._slots = threading.Semaphore(num_threads)
        self._num_threads = num_threads
        self._jobs: queue.SimpleQueue[Callable[[], bool] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._n_threads = 0
        self._running: dict[int, Task] = {}

    def run(self, task: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Done[Result]]:
        """What becomes of each item, in the order in which they are done.

        What a task raises comes as its `error`; one that takes too long is abandoned and comes as
        a `TimedOutError`; no thread is lost to it.

        Raises:
            RunStopped: the run has ended; what was done within `GRACE_S` came before.
        """
        finished: queue.SimpleQueue[Done[Result]] = queue.SimpleQueue()
        jobs = [self._job(task, item, i, finished) for i, item in enumerate(items)]
        running = {index: turn for index, (turn, _) in enumerate(jobs)}
        self._running = running  # before any of them is started: an interrupt may come at once
        for _, job in jobs:
            self._jobs.put(job)
            self._grow(self._num_threads)
        stopping_since: float | None = None
        while running:
            try:
                done = finished.get(timeout=self._poll_s(running))
            except queue.Empty:
                yield from self._overdue(running)
            else:
                yield from self._handed_over(running.pop(done.index, None), done)
            try:
                self._ledger.check()
            except RunStopped:
                stopping_since = stopping_since or time.monotonic()
                self._drop_unstarted(running)
                if time.monotonic() - stopping_since > GRACE_S:
                    break
        for left in running.values():
            self._abandon(left)
        self._ledger.check()

    def _handed_over(self, turn: Task | None, done: Done[Result]) -> Iterator[Done[Result]]:
        """The result of a task that is still wanted.

        Its slot is free when who takes the result has dealt with it: so no more results than there
        are slots are ever in flight or unrecorded.
        """
        if turn is None:
            return
        try:
            if not isinstance(done.error, RunStopped):
                yield done
        finally:
            turn.end()

    def _poll_s(self, running: dict[int, Task]) -> float:
        if self._timeout_s is None:
            return LONGEST_POLL_S
        now = time.monotonic()
        ends = [task.started_s + self._timeout_s for task in running.values() if task.started_s]
        return max(0.001, min([LONGEST_POLL_S, *(end - now for end in ends)]))

    def _overdue(self, running: dict[int, Task]) -> Iterator[Done[Any]]:
        if self._timeout_s is None:
            return
        now = time.monotonic()
        for index, task in list(running.items()):
            if task.started_s is not None and now - task.started_s >= self._timeout_s:
                del running[index]
                self._abandon(task)
                yield Done(index, error=TimedOutError(f"took over {self._timeout_s:g} s"))

    def _drop_unstarted(self, running: dict[int, Task]) -> None:
        for index in [i for i, task in running.items() if task.started_s is None]:
            self._abandon(running.pop(index))

    def _job(
        self,
        task: Callable[[Item], Result],
        item: Item,
        index: int,
        finished: "queue.SimpleQueue[Done[Result]]",
    ) -> tuple[Task, Callable[[], bool]]:
        turn = Task(self._slots, self._on_idle)
        context = contextvars.copy_context()
        context.run(CURRENT_TASK.set, turn)

        def job() -> bool:
            if not turn.begin():
                return True
            done: Done[Result]
            try:
                done = Done(index, context.run(task, item))
            except BaseException as error:  # noqa: BLE001 - it is handed to who waits for it
                done = Done(index, error=error)
            is_wanted = turn.is_done()
            finished.put(done)
            return is_wanted

        return turn, job

    def _on_idle(self) -> None:
        self._grow(MOST_THREADS * self._num_threads)

    def _grow(self, limit: int) -> None:
        """One thread more, if there are not so many yet and a job waits for one."""
        with self._lock:
            if self._n_threads >= limit or self._jobs.empty():
                return
            self._n_threads += 1
        threading.Thread(target=self._work, daemon=True, name="tfgrpo").start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job():
                return  # another thread works in its place since its task was abandoned

    def _abandon(self, task: Task) -> None:
        if task.abandon():
            with self._lock:
                self._n_threads -= 1
        self._on_idle()

    def close(self) -> None:
        """Start nothing more; what runs is not waited for."""
        while not self._jobs.empty():
            self._jobs.get()
        for task in self._running.values():
            self._abandon(task)
        for _ in range(self._n_threads):
            self._jobs.put(None)
