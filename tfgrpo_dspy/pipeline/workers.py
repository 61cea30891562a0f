"""The threads: they take tasks by their order, and tell when each is done.

They are daemons, and not those of `concurrent.futures`, which Python waits for when it ends: a call
that hangs for minutes must hold up neither Ctrl-C nor the end of a script.
"""

import contextvars
import heapq
import itertools
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tfgrpo_dspy.budget import CURRENT_TASK, Task

MOST_THREADS = 8
"""How many threads there may be for each slot: those that only wait, or hang, hold none."""

Order = tuple[int, ...]
"""Of two tasks that wait, the one with the lower order is begun first; of equals, the earlier."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a task: its result, or what was raised."""

    task: Any
    result: Any = None
    error: BaseException | None = None


def _begin_daemon(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True, name="tfgrpo").start()


class Workers:
    """A pool of threads in which every task has the caller's `dspy.context`.

    Args:
        num_threads: how many tasks work at once.
        begin_thread: has a function run in a thread of its own; default: a new daemon thread. It
            is asked for `num_threads` of them; what replaces threads that hang are daemons.
        until_recorded: every task keeps its slot until who takes it from `finished` ends it, so
            that no more results than slots can be lost. If not, the slot is free already when
            others wait there: behind a coordinator that lags no thread stands still.
    """

    def __init__(
        self,
        num_threads: int,
        begin_thread: Callable[[Callable[[], None]], Any] | None = None,
        *,
        until_recorded: bool = True,
    ) -> None:
        self.finished: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._until_recorded = until_recorded
        self._num_threads = num_threads
        self._begin_thread = begin_thread or _begin_daemon
        self._n_asked_for = 0
        self._slots = threading.Semaphore(num_threads)
        self._waiting: list[tuple[Order, int, Callable[[], bool]]] = []
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._count = itertools.count()
        self._lock = threading.Lock()
        self._n_threads = 0

    def new_task(self) -> Task:
        """A task to start; known before to who waits for it, as an interrupt may come between."""
        return Task(self._slots, self._on_idle)

    def start(self, task: Task, work: Callable[[Any], Any], item: Any, order: Order) -> None:
        """Have `work(item)` done; what becomes of it comes to `finished`."""
        context = contextvars.copy_context()
        context.run(CURRENT_TASK.set, task)

        def job() -> bool:
            if not task.begin():
                return True
            try:
                done = Done(task, context.run(work, item))
            except BaseException as error:  # noqa: BLE001 - it is handed to who waits for it
                done = Done(task, error=error)
            if not (self._until_recorded or self.finished.empty()):
                task.end()
            is_wanted = task.is_done()
            self.finished.put(done)
            return is_wanted

        with self._lock:
            heapq.heappush(self._waiting, (order, next(self._count), job))
        self._tokens.put(True)
        self._grow(self._num_threads)

    def received(self, done: Done) -> Done | None:
        """What came to `finished`, when it is dealt with."""
        return done

    def drop_waiting(self) -> None:
        """Begin none of those that wait, whatever slots get free."""
        with self._lock:
            self._waiting.clear()

    def abandon(self, task: Task) -> None:
        """Nobody waits for it any more: its slot is free, the thread that it holds replaced."""
        if task.abandon():
            with self._lock:
                self._n_threads -= 1
        self._on_idle()

    def _on_idle(self) -> None:
        self._grow(MOST_THREADS * self._num_threads)

    def _grow(self, limit: int) -> None:
        """One thread more, if there are not so many yet and a job waits for one."""
        with self._lock:
            if self._n_threads >= limit or not self._waiting:
                return
            self._n_threads += 1
            self._n_asked_for += 1
            is_first = self._n_asked_for <= self._num_threads
        (self._begin_thread if is_first else _begin_daemon)(self._work)

    def _work(self) -> None:
        while self._tokens.get():
            self._slots.acquire()  # before the choice, or what comes meanwhile could not go first
            with self._lock:
                job = heapq.heappop(self._waiting)[2] if self._waiting else None
            if job is None:
                self._slots.release()
            elif not job():
                return  # another thread works in its place since its task was abandoned

    def close(self) -> None:
        """Start nothing more; what runs is not waited for."""
        self.drop_waiting()
        with self._lock:
            n_threads = self._n_threads
        for _ in range(n_threads):
            self._tokens.put(False)
