"""The threads of a run, which make its calls by priority; what takes too long is given up.

The main loop stands in the caller's thread. Each batch has a thread beside it, which waits for its
rollouts and asks for its lessons. All are daemon threads: a call that hangs holds up neither Ctrl-C
nor the end of the script. `lock` is the one lock of all that coordinates; no code of the user runs
under it.
"""

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.dspy_seam import unstreamed
from tfgrpo_dspy.errors import RunStopped, TrainingCut
from tfgrpo_dspy.user_code import ABANDONED, NOT_WANTED, check_cancelled, check_wanted

Result = TypeVar("Result")
Priority = tuple[int, ...]
"""Of two jobs that wait, the lower priority is begun first; of equals, the earlier job."""

GRACE_S, GRACE_SHARE = 2.0, 1 / 3
"""The time that calls in flight get when a budget is reached, so that they are not lost; of the
time that is kept for the end of the run at most this share."""
HANGS_AFTER = 1.5  # of that time; what then keeps the training from its end is no call
WATCH_S = 0.05  # how often who waits looks whether the run has ended, or a job takes too long
TURN_S = 1.0
"""The longest that a thread leaves the next job to those whom its last result has woken (a gate may
be among them): what they submit may come first, and what they decide says what is kept."""


def _as_it_is(result: Any) -> Any:
    if isinstance(result, TrainingCut):
        raise result
    return result


@dataclass(slots=True, eq=False)
class Job(Generic[Result]):
    """A call of `do` in a thread; `keep` makes its result of what that gave, under the lock.

    `keep` is given a `TimeoutError` where it took too long, a `TrainingCut` where a limit cut it.
    As text, it is what it is doing, such as "tool 'read'".
    """

    do: Callable[["Job[Any]"], Any]
    keep: Callable[[Any], Result] = _as_it_is
    usual: str = ""  # what it is in if it is in none of the calls
    calls: dict[str, str] = field(default_factory=dict)  # that have begun and not ended, by id
    abandoned: threading.Event = field(default_factory=threading.Event)  # nobody waits for it
    begun_s: float = math.inf
    latest_s: float = math.inf  # when it is given up
    is_done: bool = False
    _result: Any = None
    error: BaseException | None = None

    def __str__(self) -> str:
        return [self.usual, *self.calls.copy().values()][-1]

    def end(self, result: Any, error: BaseException | None) -> None:
        """Keep what was done, or the error."""
        try:
            self._result, self.error = None if error else self.keep(result), error
        except BaseException as raised:  # noqa: BLE001 - raised again where it is waited for
            self.error = raised
        self.is_done = True

    def ended(self, result: Result) -> "Job[Result]":
        """The job, with a result that was there already."""
        self._result, self.is_done = result, True
        return self

    def result(self) -> Result:
        """The result of a job that is done; raises what it raised."""
        if self.error is not None:
            raise self.error
        return self._result  # type: ignore[no-any-return]


class Pool:
    """At most `n_threads` jobs at a time, in the `dspy.context` in which the pool was made.

    A job may take `timeout_s`.
    """

    def __init__(self, ledger: Ledger, n_threads: int, timeout_s: float | None = None) -> None:
        self.lock = threading.RLock()
        self.on_wait: Callable[[], None] = lambda: None  # called while the caller waits
        self._ledger, self._n_free, self._timeout_s = ledger, n_threads, timeout_s or math.inf
        self._caller, self._count = threading.current_thread(), itertools.count()
        with unstreamed():
            self._context = copy_context()
        self._waiting: list[tuple[Priority, int, Job[Any]]] = []
        self._running: set[Job[Any]] = set()
        self._awake: set[threading.Thread] = set()  # who coordinates, and does not wait
        self._asleep: dict[threading.Thread, tuple[Callable[[], bool], threading.Event]] = {}
        self._all_asleep = threading.Condition(self.lock)
        self._is_over, self._failed = threading.Event(), list[BaseException]()
        self._moved_s = 0.0  # when the last job has ended

    # ------------------------------------------------------------------ those who wait

    def until(self, holds: Callable[[], bool], *, is_watched: bool = True) -> None:
        """Wait until this holds, which the end of a job brings about. Raises what ends the run."""
        me, woken = threading.current_thread(), threading.Event()
        with self.lock:
            if holds():
                return
            self._asleep[me] = holds, woken
            self._rest(me)
        try:
            while not (woken.is_set() or holds()):
                woken.wait(WATCH_S)
                self._look(is_watched)
        finally:
            with self.lock:
                self._asleep.pop(me)

    def result(self, job: Job[Result], *, is_watched: bool = True) -> Result:
        """The result of a job, for which this thread waits; raises what that, or the run, raised.

        Raises RunStopped: the run has ended.
        """
        self.until(lambda: job.is_done, is_watched=is_watched)
        return job.result()

    def as_done(self, jobs: Iterable[Job[Result]]) -> Iterator[Result]:
        """The results, each as soon as it is there."""
        left = [*jobs]
        while left:
            self.until(lambda: any(job.is_done for job in left))
            for job in [job for job in left if job.is_done]:
                left.remove(job)
                yield job.result()

    def call(self, work: Callable[[], Result]) -> Result:
        """The result of a user's function. Raises RunStopped: it hangs, and the run is over."""
        return self.beside(work, is_users=True)()

    def beside(self, work: Callable[[], Result], *, is_users: bool = False) -> Callable[[], Result]:
        """Begin work that mostly waits; what is given waits for it.

        What it raises ends the run, but for a user's function, which raises it where it is called.
        """
        job: Job[Result] = Job(lambda _: work(), abandoned=self._is_over)

        def do() -> None:
            self._do(job, is_users=is_users)
            with self.lock:
                self._rest(thread)

        with self.lock:
            check_wanted()
            thread = threading.Thread(target=do, daemon=True, name="tfgrpo")
            self._awake.add(thread)
        thread.start()
        return lambda: self.result(job, is_watched=not is_users)

    def wake(self) -> None:
        """Let those go on who wait for what holds now."""
        with self.lock:
            for thread, (holds, woken) in self._asleep.items():
                if holds():
                    self._awake.add(thread)
                    woken.set()

    def _rest(self, thread: threading.Thread) -> None:
        self._awake.discard(thread)
        if not self._awake:
            self._all_asleep.notify_all()

    def _look(self, is_watched: bool) -> None:
        """Give up what takes too long, or outlasts the training. Raises what has ended the run."""
        check_cancelled()
        if is_callers := threading.current_thread() is self._caller:
            self.on_wait()
        with self.lock:
            now, grace_s, ended = time.monotonic(), self._grace_s, self._ledger.ended()
            is_late = -self._ledger.seconds_left() > HANGS_AFTER * grace_s
            if ended is not None and is_late and now > self._moved_s + grace_s / 2:
                raise ended
            if not is_watched:
                return
            if self._failed:
                raise self._failed[0] if is_callers else RunStopped(NOT_WANTED)
            if ended is not None and not isinstance(ended, TrainingCut):
                raise ended
            for job in [*self._running]:
                job.latest_s = min(job.latest_s, now + grace_s) if ended else job.latest_s
                if job.latest_s <= now:
                    self._leave(job)
                    self._end(job, ended or TimeoutError(f"took over {self._timeout_s:g} s"))
                    self._start()

    @property
    def _grace_s(self) -> float:
        return min(GRACE_S, GRACE_SHARE * self._ledger.seconds_kept or GRACE_S)

    def _leave(self, job: Job[Any]) -> None:
        """Wait for a job no more: its next call is refused, and its place is free."""
        job.abandoned.set()
        self._running.discard(job)
        self._n_free += 1

    # ------------------------------------------------------------------ those who work

    def submit(self, job: Job[Result], priority: Priority) -> Job[Result]:
        """Do the job when a thread is free. Raises RunStopped: none can start."""
        with self.lock:
            check_wanted()
            heapq.heappush(self._waiting, (priority, next(self._count), job))
            self._start()
        return job

    def _start(self) -> None:
        if self._n_free and self._waiting:
            self._n_free -= 1
            threading.Thread(target=self._serve, daemon=True, name="tfgrpo").start()

    def _serve(self) -> None:
        """Do one job after the other, as long as any waits, and nobody else has this place."""
        job = None
        while job is None or not job.abandoned.is_set():
            with self._all_asleep:
                if not self._all_asleep.wait_for(lambda: not self._awake, TURN_S):
                    self._awake.clear()  # such as a gate that hangs: it is waited for once
                if not self._waiting:
                    self._n_free += 1
                    return
                *_, job = heapq.heappop(self._waiting)
                job.begun_s = time.monotonic()
                job.latest_s = job.begun_s + self._timeout_s
                self._running.add(job)
            self._do(job, self._ledger.check)

    def _do(
        self, job: Job[Any], check: Callable[[], None] = check_wanted, *, is_users: bool = False
    ) -> None:
        context, result, error = self._context.copy(), None, None
        context.run(ABANDONED.set, job.abandoned)
        try:
            context.run(check)
            result = context.run(job.do, job)
        except TrainingCut as cut:
            result = cut
        except BaseException as raised:  # noqa: BLE001 - raised where it is waited for
            error = raised
        with self.lock:
            if not job.abandoned.is_set():
                self._end(job, result, error, is_users=is_users)
                self._running.discard(job)

    def _end(
        self, job: Job[Any], result: Any, error: BaseException | None = None, is_users: bool = False
    ) -> None:
        """End the job, wake those who waited for it, and note what ends the run."""
        if isinstance(error, RunStopped) and self._failed:  # what came first
            error = self._failed[0]
        job.end(result, error)
        self._moved_s = time.monotonic()
        if job.error is not None and not (is_users or job.abandoned.is_set()):
            self._failed.append(job.error)
        self.wake()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it, jobs are done; at its end, those that are not are left, and begin no call.

        Where the run was stopped, those that are under way have a little time to end.
        """
        try:
            yield
        except RunStopped:
            until = time.monotonic() + self._grace_s
            while self._running and time.monotonic() < until:
                threading.Event().wait(WATCH_S / 5)
            raise
        finally:
            with self.lock:
                for job in [*self._running]:
                    self._leave(job)
                self._waiting = []
                self._is_over.set()
                self._is_over = threading.Event()
                self._failed.clear()
                self._awake.clear()
