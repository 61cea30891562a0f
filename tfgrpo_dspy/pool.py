"""The threads of a run, which make its calls by priority, and the user's executor.

The main loop stands in the caller's thread. Each batch has a thread beside it, which waits for its
rollouts and asks for its lessons. All are daemon threads: a call that hangs holds up neither Ctrl-C
nor the end of the script; what takes too long is given up. `lock` is the one lock of all that
coordinates; no code of the user runs under it.

In an executor (`concurrent.futures`, dask), which is never shut down, rollouts are made by requests
of three parts: a bundle (program, metric, LMs, settings, API keys included), which all rollouts of
one set of examples share, a library, and what is its own. All travel as bytes and are never written
to a disk; cloudpickle packs them, as plain pickle cannot hold DSPy programs.
"""

import functools
import heapq
import itertools
import math
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, wait
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import cloudpickle
import dspy

from tfgrpo_dspy import user_code
from tfgrpo_dspy.budget import LIMITS, NOTHING, Amount, Budget, Ledger, Reservation
from tfgrpo_dspy.dspy_seam import OF_ONE_CALL, unstreamed
from tfgrpo_dspy.errors import RunStopped, SettingsError, TrainingCut, described
from tfgrpo_dspy.rollout import Failure, FailureKind, Rollout, adapt_metric, held_lms
from tfgrpo_dspy.sampling.one_rollout import RolloutTask, run_rollout
from tfgrpo_dspy.text import cleaned, known_secrets, redacted
from tfgrpo_dspy.user_code import ABANDONED, LOOP, NOT_WANTED, check_cancelled, check_wanted

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
KEPT = 8  # bundles, which may be large
MAX_LOST_WORKERS = 3  # A request that lost this many workers is not sent again
POLL_S = 0.02  # how often a request that waits for budget looks for calls given back
LEAST, FIRST = Amount(1, cost=1e-9), Amount(16)
"""The most that is reserved for a rollout before any cost is known; 0: a part of what is left."""
HEADROOM = 2.0  # how much more than any rollout took so far is reserved, where there is enough


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
    calls: dict[str, str] = field(default_factory=dict)  # that have begun and not ended, by id
    abandoned: threading.Event = field(default_factory=threading.Event)  # nobody waits for it
    is_users: bool = False  # what it raises is raised where it is waited for, and ends no run
    begun_s: float = math.inf
    latest_s: float = math.inf  # when it is given up
    is_done: bool = False
    value: Any = None  # its result
    error: BaseException | None = None  # that it raised, if it is the user's

    def __str__(self) -> str:
        return [*self.calls.copy().values()][-1]


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
        self._asleep: dict[threading.Thread, tuple[Callable[[], bool], threading.Event, bool]] = {}
        self._all_asleep = threading.Condition(self.lock)
        self._is_over, self._failed = threading.Event(), list[BaseException]()
        self._moved_s = 0.0  # when the last job has ended

    # ------------------------------------------------------------------ those who wait

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until this holds, which the end of a job brings about. Raises what ends the run."""
        if (error := self._waited(holds)) is not None:
            raise error

    def result(self, job: Job[Result]) -> Result:
        """The result of a job, for which this thread waits; raises what that, or the run, raised.

        Raises RunStopped: the run has ended.
        """
        error = self._waited(lambda: job.is_done, is_watched=not job.is_users)
        if (error := job.error if error is None else error) is not None:
            raise error
        return job.value  # type: ignore[no-any-return]

    def as_done(self, jobs: Iterable[Job[Result]]) -> Iterator[Result]:
        """The results, each as soon as it is there."""
        left = [*jobs]
        while left:
            self.until(lambda: any(job.is_done for job in left))
            left.sort(key=lambda job: not job.is_done)
            yield self.result(left.pop(0))

    def call(self, work: Callable[[], Result]) -> Result:
        """The result of a user's function. Raises RunStopped: it hangs, and the run is over."""
        return self.beside(work, is_users=True)()

    def beside(self, work: Callable[[], Result], *, is_users: bool = False) -> Callable[[], Result]:
        """Begin work that mostly waits; what is given waits for it."""
        job = Job[Result](lambda _: work(), abandoned=self._is_over, is_users=is_users)

        def do() -> None:
            self._do(job)
            with self.lock:
                self._rest(thread)

        with self.lock:
            check_wanted()
            thread = threading.Thread(target=do, daemon=True, name="tfgrpo")
            self._awake.add(thread)
        thread.start()
        return functools.partial(self.result, job)

    def wake(self) -> None:
        """Let those go on who wait for what holds now, or for a run that has failed."""
        with self.lock:
            for thread, (holds, woken, is_watched) in self._asleep.items():
                if holds() or (self._failed and is_watched):
                    self._awake.add(thread)
                    woken.set()

    def _rest(self, thread: threading.Thread) -> None:
        self._awake.discard(thread)
        if not self._awake:
            self._all_asleep.notify()

    def _waited(self, holds: Callable[[], bool], is_watched: bool = True) -> BaseException | None:
        """Wait until this holds; gives what has ended the run before that, or None."""
        me, woken = threading.current_thread(), threading.Event()
        with self.lock:
            if holds():
                return None
            self._asleep[me] = holds, woken, is_watched
            self._rest(me)
            if self._failed:
                self.wake()
        try:
            while True:
                woken.wait(WATCH_S)
                error = self._look(is_watched)
                if error is not None or woken.is_set() or holds():
                    return error
        finally:
            with self.lock:
                self._asleep.pop(me)

    def _look(self, is_watched: bool) -> BaseException | None:
        check_cancelled()
        if is_callers := threading.current_thread() is self._caller:
            self.on_wait()
        with self.lock:
            now, grace_s, ended = time.monotonic(), self._grace_s, None
            try:
                self._ledger.check()
            except RunStopped as why:
                ended = why
            is_late = -self._ledger.seconds_left() > HANGS_AFTER * grace_s
            if ended is not None and is_late and now > self._moved_s + grace_s / 2:
                return ended
            if not is_watched:
                return None
            if self._failed:
                return self._failed[0] if is_callers else RunStopped(NOT_WANTED)
            if ended is not None and not isinstance(ended, TrainingCut):
                return ended
            for job in [*self._running]:
                job.latest_s = min(job.latest_s, now + grace_s) if ended else job.latest_s
                if job.latest_s <= now:
                    self._leave(job)
                    self._end(job, ended or TimeoutError(f"took over {self._timeout_s:g} s"))
                    self._start()
        return None

    @property
    def _grace_s(self) -> float:
        return min(GRACE_S, GRACE_SHARE * self._ledger.seconds_kept or GRACE_S)

    def _leave(self, job: Job[Any]) -> None:
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
        job = None
        while job is None or not job.abandoned.is_set():
            with self._all_asleep:
                if not self._all_asleep.wait_for(lambda: not self._awake, TURN_S):
                    self._awake.clear()  # such as a gate that hangs: it is waited for once
                self._all_asleep.notify()  # the next one, which takes the lock after this one
                if not self._waiting:
                    self._n_free += 1
                    return
                *_, job = heapq.heappop(self._waiting)
                job.begun_s = time.monotonic()
                job.latest_s = job.begun_s + self._timeout_s
                self._running.add(job)
            self._do(job, self._ledger.check)

    def _do(self, job: Job[Any], check: Callable[[], None] = check_wanted) -> None:
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
                self._end(job, result, error)
                self._running.discard(job)

    def _end(self, job: Job[Any], result: Any, error: BaseException | None = None) -> None:
        try:
            job.value = None if error else job.keep(result)
            del job.do, job.keep  # and what they hold
        except BaseException as raised:  # noqa: BLE001 - raised where it is waited for
            error = raised
        self._moved_s = time.monotonic()
        if error is None or job.is_users:
            came_first = isinstance(error, RunStopped) and self._failed
            job.error, job.is_done = self._failed[0] if came_first else error, True
        else:
            self._failed.append(error)
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


# ---------------------------------------------------------------------- the user's executor


def packed_bundle(
    student: Any,
    metric: Any,
    prices: Mapping[str, tuple[float, float]],
    plain: Sequence[str],  # what would be secrets, but stands in the user's own data
) -> bytes:
    """Program, metric and the settings of this thread's `dspy.context`. Raises SettingsError."""
    context = {k: v for k, v in dspy.settings.copy().items() if k not in OF_ONE_CALL}
    if isinstance(context["lm"], dspy.BaseLM):
        context["lm"] = context["lm"].copy()  # without the history of its calls
    program = user_code.copy_program(student, lambda lm: lm.copy())
    packed(program, "the program")
    packed(metric, "the metric")
    packed(context, "the settings of dspy.context (LM, adapter, callbacks)")
    return packed((program, metric, context, dict(prices), [*plain]), "this run")


def packed(part: Any, name: str) -> bytes:
    """The part as bytes. Raises SettingsError: it cannot be sent to another process."""
    try:
        return bytes(cloudpickle.dumps(part))
    except Exception as error:  # whatever a user's object raises
        raise SettingsError(
            f"executor: {name} cannot be sent to other processes ({described(error)}); leave the "
            f"lock, connection or client out that it holds, or pass num_threads, not executor."
        ) from error


Request = tuple[bytes, bytes, bytes]
"""A bundle (`packed_bundle`), additions, and the fields of a `RolloutTask` that are its own."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request."""

    rollout: dict[str, Any] | None = None  # its record, where one was made
    used: Amount = NOTHING  # of the reservation
    stopped_because: str = ""  # why none was made
    is_failure: bool = False
    was_started_before: bool = False  # a worker died while it ran this request
    left_out: Mapping[tuple[str, str], str] = field(default_factory=dict)  # as in a ledger


def run_request(request: Request, budget: Budget, name: str) -> Reply:
    """Make a rollout here within the budget; no other request may have the `name`."""
    if _was_started_before(name):
        return Reply(was_started_before=True)
    bundle, additions, packed_sample = request
    try:
        program, metric, context, prices, left_out, secrets = _unpacked(bundle)
        sample = cloudpickle.loads(packed_sample) | {"additions": cloudpickle.loads(additions)}
    except Exception as error:  # noqa: BLE001 - the reply says it
        message = (
            f"a worker of the executor cannot read the program: {described(error)}. "
            f"It needs this package, dspy, and every module that program and metric come from."
        )
        return Reply(stopped_because=message, is_failure=True)
    ledger, record = Ledger(budget), None
    ledger.left_out = left_out
    LOOP.set(None)  # a fork has that of the process that it comes from
    task = RolloutTask(program=program, metric=metric, ledger=ledger, prices=prices, **sample)
    with suppress(RunStopped), dspy.context(**context):
        record = cleaned(run_rollout(task).to_dict(), lambda text: redacted(text, secrets))
    refused = {about: redacted(text, secrets) for about, text in left_out.items()}
    return Reply(record, ledger.taken, ledger.stopped_because, ledger.is_failure, left_out=refused)


@functools.lru_cache(KEPT)
def _unpacked(bundle: bytes) -> tuple[Any, ...]:
    student, metric, context, prices, plain = cloudpickle.loads(bundle)
    scoring = None if metric is None else adapt_metric(metric)
    held = (*held_lms(metric), *held_lms(context.get("adapter")))
    secrets = known_secrets(
        [*user_code.language_models(student), *held, context["lm"]], "\n".join(plain)
    )
    return student, scoring, context, prices, dict[tuple[str, str], str](), secrets


def _was_started_before(name: str) -> bool:
    """True: the request was begun before; dask begins those of a lost worker again."""
    distributed = sys.modules.get("distributed")
    try:
        begun = distributed and distributed.get_worker() and distributed.Event(f"tfgrpo/{name}")
    except ValueError:  # not in a worker of dask
        begun = None
    is_begun = bool(begun and begun.is_set())
    if begun:
        begun.set()
    return is_begun


def workers_of(executor: Executor) -> int | None:
    """The number of tasks that an executor runs at once; None: it does not say."""
    with suppress(Exception):  # a client of dask that is closed; the first request will say so
        n_workers = getattr(executor, "_max_workers", None)
        client: Any = getattr(executor, "_client", None)
        return n_workers or sum(client.nthreads().values()) or None
    return None


class RemoteRollouts:
    """Runs rollouts in the user's executor.

    Workers cannot ask the ledger for each call. So calls and dollars are reserved for a request,
    and what it did not need comes back. A rollout whose reservation was too small is made again.
    """

    def __init__(self, ledger: Ledger, executor: Executor, n_at_once: int) -> None:
        self._ledger, self._executor, self._n_at_once = ledger, executor, n_at_once
        self._largest = NOTHING
        self._name, self._count = uuid.uuid4().hex, itertools.count()

    def rollout(self, request: Request, n_metric_calls: int = 0) -> Rollout | Failure:
        """The rollout, or a failure if too many workers are lost to it. Raises RunStopped."""
        ledger, n_losses, why = self._ledger, 0, ""
        while n_losses < MAX_LOST_WORKERS:
            while (share := self._reserve(n_metric_calls)) is None:
                threading.Event().wait(POLL_S)
            why = "its worker died"
            try:
                reply = self._reply(share, request)
            except (BrokenExecutor, ImportError) as error:
                needs = "; install this package and dspy on its workers"
                message = f"the executor is broken: {described(error)}"
                ledger.fail(message + needs * isinstance(error, ImportError), error)
            except Exception as error:  # noqa: BLE001 - whatever an executor raises
                reply = Reply(was_started_before=True)
                why = f"the executor raised {described(error)}"
            if reply.was_started_before:
                share.abandoned.set()  # it counts as spent
                n_losses += 1
                continue
            ledger.settle(share, reply.used)
            ledger.left_out |= reply.left_out
            self._largest |= reply.used
            if reply.rollout is not None:
                return Rollout.from_dict(reply.rollout)
            if reply.is_failure:
                ledger.stop(reply.stopped_because, is_failure=True)
            ledger.check()
            self._grow(share, reply.stopped_because.partition("=")[0])
        message = f"the executor lost this rollout {n_losses} times; last reason: {why}"
        return Failure(FailureKind.WORKER, message)

    def _reserve(self, n_metric_calls: int) -> Reservation | None:
        """Reserve an equal part of what is left, at least as much as any rollout took so far.

        None if that is not there now. Raises RunStopped.
        """

        def wanted(left: float, reach: float, largest: float, first: float, least: float) -> float:
            most = max(first, HEADROOM * largest) or math.inf
            part = max(largest, min(left / self._n_at_once, most))
            return 0 if math.isinf(left) else max(least, min(part, reach))

        left, reach = self._ledger.left(True), self._ledger.reach(True)
        n_calls, _, cost = map(wanted, left, reach, self._largest, FIRST, LEAST)
        amount = Amount(math.ceil(n_calls), n_metric_calls, cost)
        return self._ledger.take(None, True, amount, is_share=True)

    def _grow(self, share: Reservation, limit: str) -> None:
        """Reserve twice as much of a limit from now on. Raises RunStopped: there is no more."""
        reserved, most = (
            dict(zip(LIMITS, amount, strict=True))
            for amount in (share.amount, self._ledger.reach(True))
        )
        if limit in most and most[limit] <= reserved[limit]:
            self._ledger.use_up(limit)
        self._largest |= Amount(*(2.0 * n * (name == limit) for name, n in reserved.items()))

    def _reply(self, share: Reservation, request: Request) -> Reply:
        limits, seconds_left = self._ledger.budget, self._ledger.seconds_left()
        budget = Budget(
            max_lm_calls=None if limits.max_lm_calls is None else int(share.amount.n_lm_calls),
            max_cost=None if limits.max_cost is None else share.amount.cost,
            max_minutes=None if math.isinf(seconds_left) else max(0.0, seconds_left) / 60,
        )
        name = f"{self._name}/{next(self._count)}"  # dask runs tasks of equal arguments only once
        try:
            reply = self._executor.submit(run_request, request, budget, name)
            while not reply.done():
                wait([reply], WATCH_S)
                check_wanted()
        except RunStopped:  # it took too long, or the run has ended
            reply.cancel()
            share.abandoned.set()
            raise
        except Exception as error:  # closed, or whatever it raises then; or this is no future
            raise BrokenExecutor(described(error)) from error
        try:
            return reply.result()
        except CancelledError as error:
            raise RuntimeError(f"the executor cancelled request {name}") from error
