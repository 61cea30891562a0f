"""The threads of a run, which make its calls by priority; what takes too long is given up.

The main loop stands in the caller's thread. Each batch has a thread beside it, which waits for its
rollouts and asks for its lessons. All are daemon threads: a call that hangs holds up neither Ctrl-C
nor the end of the script. `lock` is the one lock of all that coordinates; no code of the user runs
under it.
"""

import heapq
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.dspy_seam import unstreamed
from tfgrpo_dspy.errors import RunStopped, TrainingCut, described
from tfgrpo_dspy.tasks.caller import check_cancelled
from tfgrpo_dspy.user_code import ABANDONED, NOT_WANTED, check_wanted

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Priority = tuple[int, ...]
"""Of two jobs that wait, the lower priority is begun first; of equals, the earlier job."""

GRACE_S, GRACE_SHARE = 2.0, 1 / 3
"""The time that calls in flight get when a budget is reached, so that they are not lost; of the
time that is kept for the end of the run at most this share."""
HANGS_AFTER = 1.5  # of that time; what then keeps the training from its end is no call
PATIENCE_S = 60.0  # after so long without a result, the log says once where a job is
WATCH_S = 0.1  # how often who waits looks whether the run has ended, or a job takes too long
TURN_S = 1.0
"""The longest that a thread leaves the next job to those whom its last result has woken: what they
submit may come first."""


@dataclass(slots=True)
class Activity:
    """The activity of one job, for messages; as text such as "tool 'read'"."""

    about: str  # the job, by name
    usual: str  # what it is in if it is in none of the calls
    calls: dict[str, str] = field(default_factory=dict)  # that have begun and not ended, by id

    def __str__(self) -> str:
        return [self.usual, *self.calls.copy().values()][-1]


@dataclass(slots=True, eq=False)
class Job(Generic[Result]):
    """A call of `do` in a thread; `keep` makes its result of what that gave, under the lock.

    `keep` is given a `TimeoutError` where it took too long, a `TrainingCut` where a limit cut it.
    """

    do: Callable[[], Any]
    keep: Callable[[Any], Result]
    place: str = "threads"
    activity: Activity | None = None
    abandoned: threading.Event = field(default_factory=threading.Event)  # nobody waits for it
    begun_s: float = math.inf
    latest_s: float = math.inf  # when it is given up
    is_done: bool = False
    _result: Any = None
    _error: BaseException | None = None

    def end(self, result: Any, error: BaseException | None = None) -> BaseException | None:
        """Keep what was done, or the error; gives the error with which it ended."""
        try:
            self._result, self._error = None if error else self.keep(result), error
        except BaseException as raised:  # noqa: BLE001 - raised again where it is waited for
            self._error = raised
        self.is_done = True
        return self._error

    @property
    def is_made(self) -> bool:
        """Whether it is done, and has a result."""
        return self.is_done and self._error is None

    def result(self) -> Result:
        """The result of a job that is done; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[no-any-return]


def done(result: Result) -> Job[Result]:
    """A job that is done already."""
    return Job(lambda: result, lambda result: result, is_done=True, _result=result)


class Pool:
    """At most `n_threads` jobs at a time in threads, `n_remote` more that wait for processes.

    They have the `dspy.context` in which the pool was made. `executor`: the user's own threads.
    """

    def __init__(
        self,
        ledger: Ledger,
        n_threads: int,
        timeout_s: float | None = None,  # how long a job may take
        executor: ThreadPoolExecutor | None = None,
        n_remote: int = 0,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.ledger = ledger
        self.lock = threading.RLock()
        self.on_wait: Callable[[], None] = lambda: (
            None
        )  # ten times a second, in the caller's thread
        self._timeout_s, self._executor, self._patience_s = timeout_s, executor, patience_s
        self._has_named = False
        self._caller = threading.current_thread()
        with unstreamed():
            self._context = copy_context()
        self._count = itertools.count()
        self._n_free = {"threads": n_threads, "remote": n_remote}
        self._waiting: dict[str, list[tuple[Priority, int, Job[Any]]]] = {
            place: [] for place in self._n_free
        }
        self._running: set[Job[Any]] = set()
        self._awake: set[threading.Thread] = set()  # who coordinates, and does not wait
        self._asleep: dict[threading.Thread, tuple[Callable[[], bool], threading.Event]] = {}
        self._all_asleep = threading.Condition(self.lock)
        self._is_over = threading.Event()
        self._failed: BaseException | None = None

    # ------------------------------------------------------------------ what waits

    def until(self, holds: Callable[[], bool], look: Callable[[], None] | None = None) -> None:
        """Wait until this holds, which the end of a job brings about. Raises RunStopped, ..."""
        me, woken = threading.current_thread(), threading.Event()
        with self.lock:
            if holds():
                return
            self._asleep[me] = holds, woken
            self._rest(me)
        try:
            is_there = False
            while not is_there:
                woken.wait(WATCH_S)
                is_there = woken.is_set() or holds()
                (look or self._watch)()
        finally:
            with self.lock:
                self._asleep.pop(me, None)

    def result(self, job: Job[Result]) -> Result:
        """The result of a job, for which this thread waits; raises what that, or the run, raised.

        Raises RunStopped: the run has ended.
        """
        self.until(lambda: job.is_done)
        if not job.is_made:
            self._watch()  # what came first has ended the run
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
        job = self._begun(work, is_users=True)
        self.until(lambda: job.is_done, self._look)
        return job.result()

    def beside(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Begin work that mostly waits; what is given waits for it. What it raises ends the run."""
        job = self._begun(work)
        return lambda: self.result(job)

    def _begun(self, work: Callable[[], Result], is_users: bool = False) -> Job[Result]:
        """A job that a thread of its own does."""
        job: Job[Result] = Job(work, lambda result: result, abandoned=self._is_over)
        context = self._context.copy()
        context.run(ABANDONED.set, job.abandoned)

        def do() -> None:
            result, error = None, None
            try:
                result = context.run(work)
            except BaseException as raised:  # noqa: BLE001 - raised where it is waited for
                error = raised
            with self.lock:
                self._end(job, result, error, is_users)
                self._rest(thread)

        thread = threading.Thread(target=do, daemon=True, name="tfgrpo")
        with self.lock:
            check_wanted()
            if not is_users:
                self._awake.add(thread)
        thread.start()
        return job

    def _rest(self, thread: threading.Thread) -> None:
        self._awake.discard(thread)
        if not self._awake:
            self._all_asleep.notify_all()

    def _look(self) -> None:
        """Raises KeyboardInterrupt, RunStopped: something hangs, and the run is over."""
        check_cancelled()
        if self._is_callers:
            self.on_wait()
        if self.ledger.seconds_left() < -HANGS_AFTER * self._grace_s:
            self.ledger.check()

    def _watch(self) -> None:
        """Give up what takes too long, or longer than the training. Raises what ended the run."""
        self._look()
        now = time.monotonic()
        with self.lock:
            if self._failed is not None:
                raise self._failed if self._is_callers else RunStopped(NOT_WANTED)
            try:
                self.ledger.check()
            except TrainingCut:
                for job in self._running:
                    job.latest_s = min(job.latest_s, now + self._grace_s)
            for job in [job for job in self._running if job.latest_s <= now]:
                self._give_up(job)
            for job in self._running:
                self._name_waiting(job, now)

    @property
    def _is_callers(self) -> bool:
        return threading.current_thread() is self._caller

    @property
    def _grace_s(self) -> float:
        return min(GRACE_S, GRACE_SHARE * self.ledger.seconds_kept or GRACE_S)

    def _give_up(self, job: Job[Any]) -> None:
        """Go on without a job that runs: its next call is refused, and its place is free."""
        self._leave(job)
        late = TimeoutError(f"took over {self._timeout_s or 0:g} s")
        self._end(job, TrainingCut(self.ledger.cut_because) if self.ledger.is_late else late)
        self._start(job.place)

    def _leave(self, job: Job[Any]) -> None:
        job.abandoned.set()
        self._running.discard(job)
        self._n_free[job.place] += 1

    def _name_waiting(self, job: Job[Any], now: float) -> None:
        """Say in the log, once in a run, where a job is that has no result yet."""
        if job.activity is None or self._has_named or now < job.begun_s + self._patience_s:
            return
        self._has_named = True
        logger.warning(
            "%s has no result after %g s: it is in %s; if that waits for something that "
            "cannot come, pass Execution(rollout_timeout_s=...)",
            job.activity.about,
            self._patience_s,
            job.activity,
        )

    # ------------------------------------------------------------------ what works

    def submit(self, job: Job[Result], priority: Priority) -> Job[Result]:
        """Do the job when its place has a free thread."""
        with self.lock:
            check_wanted()
            heapq.heappush(self._waiting[job.place], (priority, next(self._count), job))
            self._start(job.place)
        return job

    def _start(self, place: str) -> None:
        """Start a thread if one may run, and a job waits. Raises RunStopped: none can start."""
        if not (self._n_free[place] and self._waiting[place]):
            return
        self._n_free[place] -= 1
        if self._executor is None or place != "threads":
            threading.Thread(target=self._serve, args=(place,), daemon=True, name="tfgrpo").start()
            return
        try:
            served = self._executor.submit(self._serve, place)
        except RuntimeError as error:
            self.ledger.fail(f"the executor is broken: {error}", error)
        served.add_done_callback(lambda ended: self._note_broken(ended.exception()))

    def _note_broken(self, error: BaseException | None) -> None:
        if error is not None:
            self.ledger.stop(f"the executor is broken: {described(error)}", is_failure=True)

    def _serve(self, place: str) -> None:
        """Do one job after the other, as long as any waits."""
        while (job := self._next(place)) is not None:
            context, result, error = self._context.copy(), None, None
            context.run(ABANDONED.set, job.abandoned)
            try:
                context.run(self.ledger.check)
                result = context.run(job.do)
            except TrainingCut as cut:
                result = cut
            except BaseException as raised:  # noqa: BLE001 - it ends the run
                error = raised
            with self.lock:
                if job.abandoned.is_set():  # another thread has the place of this one
                    return
                self._end(job, result, error)
                self._running.discard(job)

    def _next(self, place: str) -> Job[Any] | None:
        """The job that is begun next; None: none waits, and its thread ends."""
        with self._all_asleep:
            self._all_asleep.wait_for(lambda: not self._awake, TURN_S)
            if not self._waiting[place]:
                self._n_free[place] += 1
                return None
            *_, job = heapq.heappop(self._waiting[place])
            job.begun_s = time.monotonic()
            job.latest_s = job.begun_s + (self._timeout_s or math.inf)
            self._running.add(job)
            return job

    def _end(
        self,
        job: Job[Any],
        result: Any,
        error: BaseException | None = None,
        is_users: bool = False,
    ) -> None:
        """End the job, wake those who waited for it, and note what ends the run."""
        with self.lock:
            raised = job.end(result, error)
            if raised is not None and not (is_users or self._failed or job.abandoned.is_set()):
                self._failed = raised
            self.wake()

    def wake(self) -> None:
        """Let those go on who wait for what holds now."""
        with self.lock:
            for thread, (holds, woken) in self._asleep.items():
                if holds():
                    self._awake.add(thread)
                    woken.set()

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
                threading.Event().wait(WATCH_S / 10)
            raise
        finally:
            with self.lock:
                for job in [*self._running]:
                    self._leave(job)
                self._waiting = {place: [] for place in self._n_free}
                self._is_over.set()
                self._is_over, self._failed = threading.Event(), None
                self._awake.clear()
