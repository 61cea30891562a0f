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
from functools import partial
from typing import Any, Generic, TypeVar

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.dspy_seam import unstreamed
from tfgrpo_dspy.errors import RunStopped, TrainingCut, described
from tfgrpo_dspy.user_code import ABANDONED, NOT_WANTED, check_cancelled, check_wanted

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Given = TypeVar("Given")
Priority = tuple[int, ...]
"""Of two jobs that wait, the lower priority is begun first; of equals, the earlier job."""

GRACE_S, GRACE_SHARE = 2.0, 1 / 3
"""The time that calls in flight get when a budget is reached, so that they are not lost; of the
time that is kept for the end of the run at most this share."""
HANGS_AFTER = 1.5  # of that time; what then keeps the training from its end is no call
PATIENCE_S = 60.0  # after so long without a result, the log says once where a job is
WATCH_S = 0.1  # how often who waits looks whether the run has ended, or a job takes too long
TURN_S = 1.0
"""The longest that a thread leaves the next job to those whom its last result has woken (a gate may
be among them): what they submit may come first, and what they decide says what is kept."""


@dataclass(slots=True, eq=False)
class Job(Generic[Result]):
    """A call of `do` in a thread; `keep` makes its result of what that gave, under the lock.

    `keep` is given a `TimeoutError` where it took too long, a `TrainingCut` where a limit cut it.
    As text, it is what it is doing, such as "tool 'read'".
    """

    do: Callable[["Job[Any]"], Any]
    keep: Callable[[Any], Result]
    place: str = "threads"
    about: str = ""  # for messages
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
        self.lock = threading.RLock()
        self.on_wait: Callable[[], None] = lambda: None  # called while the caller waits
        self._ledger, self._executor, self._timeout_s = ledger, executor, timeout_s or math.inf
        self._patience_s, self._has_named = patience_s, False
        self._caller, self._count = threading.current_thread(), itertools.count()
        with unstreamed():
            self._context = copy_context()
        self._n_free = {"threads": n_threads, "remote": n_remote}
        self._waiting: dict[str, list[tuple[Priority, int, Job[Any]]]] = {
            "threads": [],
            "remote": [],
        }
        self._running: set[Job[Any]] = set()
        self._awake: set[threading.Thread] = set()  # who coordinates, and does not wait
        self._asleep: dict[threading.Thread, tuple[Callable[[], bool], threading.Event]] = {}
        self._all_asleep = threading.Condition(self.lock)
        self._is_over, self._failed = threading.Event(), list[BaseException]()
        self._moved_s = 0.0  # when the last job has ended

    # ------------------------------------------------------------------ those who wait

    def wait(
        self, holds: Callable[[], bool], give: Callable[[], Given], *, is_watched: bool = True
    ) -> Given:
        """Wait until this holds, which the end of a job brings about. Raises what ends the run."""
        me, woken = threading.current_thread(), threading.Event()
        with self.lock:
            if not (is_there := holds()):
                self._asleep[me] = holds, woken
                self._rest(me)
        try:
            while not is_there:
                woken.wait(self._pause_s())
                is_there = woken.is_set() or holds()
                why = self._look()
                if why is None and is_watched:
                    why = self._watched()
                if why is not None:
                    raise why
        finally:
            with self.lock:
                self._asleep.pop(me, None)
        return give()

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until this holds. Raises RunStopped: the run has ended."""
        self.wait(holds, lambda: None)

    def result(self, job: Job[Result]) -> Result:
        """The result of a job, for which this thread waits; raises what that, or the run, raised.

        Raises RunStopped: the run has ended.
        """
        return self.wait(lambda: job.is_done, job.result)

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
        return self.wait(lambda: job.is_done, job.result, is_watched=False)

    def beside(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Begin work that mostly waits; what is given waits for it. What it raises ends the run."""
        job = self._begun(work)
        return partial(self.wait, lambda: job.is_done, job.result)

    def _begun(self, work: Callable[[], Result], *, is_users: bool = False) -> Job[Result]:
        """A job that a thread of its own does."""
        job: Job[Result] = Job(lambda _: None, lambda result: result, abandoned=self._is_over)
        context = self._context.copy()
        context.run(ABANDONED.set, job.abandoned)

        def do() -> None:
            result, error = None, None
            try:
                result = context.run(work)
            except BaseException as raised:  # noqa: BLE001 - raised where it is waited for
                error = raised
            with self.lock:
                self._end(job, result, error, is_users=is_users)
                self._rest(thread)

        thread = threading.Thread(target=do, daemon=True, name="tfgrpo")
        with self.lock:
            check_wanted()
            self._awake.add(thread)
        thread.start()
        return job

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

    def _look(self) -> BaseException | None:
        """Why the run is over though something hangs. Raises KeyboardInterrupt."""
        check_cancelled()
        if threading.current_thread() is self._caller:
            self.on_wait()
        grace_s, late_s = self._grace_s, -self._ledger.seconds_left()
        is_still = time.monotonic() > self._moved_s + grace_s / 2
        return self._ledger.ended() if late_s > HANGS_AFTER * grace_s and is_still else None

    def _pause_s(self) -> float:
        """Until there may be something to look after."""
        with self.lock:
            soonest = min((job.latest_s for job in self._running), default=math.inf)
        left_s = self._ledger.seconds_left()
        return max(
            0.001, min(WATCH_S, soonest - time.monotonic(), left_s if left_s > 0 else WATCH_S)
        )

    def _watched(self) -> BaseException | None:
        """What has ended the run. What takes too long, or outlasts the training, is given up."""
        with self.lock:
            is_callers, now = threading.current_thread() is self._caller, time.monotonic()
            if self._failed:
                return self._failed[0] if is_callers else RunStopped(NOT_WANTED)
            ended = self._ledger.ended()
            if ended is not None and not isinstance(ended, TrainingCut):
                return ended
            for job in [*self._running]:
                job.latest_s = min(job.latest_s, now + self._grace_s) if ended else job.latest_s
                if job.latest_s <= now:
                    self._leave(job)
                    late = TimeoutError(f"took over {self._timeout_s:g} s")
                    self._end(job, ended or late)
                    self._start(job.place)
                elif job.about and not self._has_named and now > job.begun_s + self._patience_s:
                    self._has_named = True
                    logger.warning(
                        "%s has no result after %g s: it is in %s; if that waits for something "
                        "that cannot come, pass Execution(rollout_timeout_s=...)",
                        job.about,
                        self._patience_s,
                        job,
                    )
        return None

    @property
    def _grace_s(self) -> float:
        return min(GRACE_S, GRACE_SHARE * self._ledger.seconds_kept or GRACE_S)

    def _leave(self, job: Job[Any]) -> None:
        """Wait for a job no more: its next call is refused, and its place is free."""
        job.abandoned.set()
        self._running.discard(job)
        self._n_free[job.place] += 1

    # ------------------------------------------------------------------ those who work

    def submit(self, job: Job[Result], priority: Priority) -> Job[Result]:
        """Do the job when its place has a free thread. Raises RunStopped: none can start."""
        with self.lock:
            check_wanted()
            heapq.heappush(self._waiting[job.place], (priority, next(self._count), job))
            self._start(job.place)
        return job

    def _start(self, place: str) -> None:
        """Start a thread if one may run, and a job waits."""
        if not (self._n_free[place] and self._waiting[place]):
            return
        self._n_free[place] -= 1
        if self._executor is None or place != "threads":
            threading.Thread(target=self._serve, args=(place,), daemon=True, name="tfgrpo").start()
            return
        try:
            served = self._executor.submit(self._serve, place)
        except RuntimeError as error:
            self._ledger.fail(f"the executor is broken: {error}", error)
        served.add_done_callback(lambda ended: self._note_broken(ended.exception()))

    def _note_broken(self, error: BaseException | None) -> None:
        if error is not None:
            self._ledger.stop(f"the executor is broken: {described(error)}", is_failure=True)

    def _serve(self, place: str) -> None:
        """Do one job after the other, as long as any waits."""
        while (job := self._next(place)) is not None:
            context, result, error = self._context.copy(), None, None
            context.run(ABANDONED.set, job.abandoned)
            try:
                context.run(self._ledger.check)
                result = context.run(job.do, job)
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
            if not self._all_asleep.wait_for(lambda: not self._awake, TURN_S):
                self._awake.clear()  # such as a gate that hangs: it is waited for once
            if not self._waiting[place]:
                self._n_free[place] += 1
                return None
            *_, job = heapq.heappop(self._waiting[place])
            job.begun_s = time.monotonic()
            job.latest_s = job.begun_s + self._timeout_s
            self._running.add(job)
            return job

    def _end(
        self, job: Job[Any], result: Any, error: BaseException | None = None, is_users: bool = False
    ) -> None:
        """End the job, wake those who waited for it, and note what ends the run."""
        with self.lock:
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
                threading.Event().wait(WATCH_S / 10)
            raise
        finally:
            with self.lock:
                for job in [*self._running]:
                    self._leave(job)
                self._waiting = {place: [] for place in self._n_free}
                self._is_over.set()
                self._is_over = threading.Event()
                self._failed.clear()
                self._awake.clear()
