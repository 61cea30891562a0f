"""Rollouts in other processes, by the user's executor (`concurrent.futures`, dask).

All rollouts of one set of examples share a bundle (program, metric, LMs, settings, API keys
included), which travels as bytes and is never written to a disk; cloudpickle packs it, as plain
pickle cannot hold DSPy programs. Each rollout has a request. A worker keeps the bundles that it has
seen; a request comes without its bundle, and asks for it where it is unknown. The executor is the
user's: it is never shut down.
"""

import asyncio
import functools
import hashlib
import itertools
import math
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import dspy

from tfgrpo_dspy.budget import Budget, Lease, Ledger
from tfgrpo_dspy.errors import RunStopped, SettingsError, described
from tfgrpo_dspy.experience import ExperienceLibrary, copy_program, language_models
from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.pipeline.loop import Loop, Priority, Result, Slots, TimedOutError
from tfgrpo_dspy.redaction import cleaned, known_secrets, redacted
from tfgrpo_dspy.rollout import Failure, Rollout
from tfgrpo_dspy.sampling import Outline, RolloutTask, run_rollout, score_again

OF_ONE_CALL = frozenset(
    "trace caller_modules caller_predict usage_tracker send_stream stream_listeners".split()  # noqa: SIM905
)
"""DSPy settings that belong to the call they were made for, not to the user's context."""
KEPT_BUNDLES = 8
KEPT_PROGRAMS = 32
MOST_LOSSES = 3
"""A request over which so many workers were lost is not made again."""
POLL_S = 0.02
"""How often a request that waits for calls of the budget looks whether others gave some back."""
FIRST_CALLS = 16
"""At most so many calls are reserved before it is known what a request takes."""
HEADROOM = 2.0
"""How much more than any request took so far is reserved, where there is enough."""
GREATER = 1.01
"""A request is made again with more dollars only if there are so many times as many."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What the rollouts of one set of examples have in common, as bytes, and its hash."""

    key: str
    blob: bytes = field(repr=False)

    @classmethod
    def of(
        cls,
        student: Any,
        metric: Any,
        temperature: float | None,
        prices: Mapping[str, tuple[float, float]],
    ) -> "Bundle":
        """Program, metric and the settings of this thread's `dspy.context`, packed.

        Raises:
            SettingsError: a part of it cannot be sent to another process.
        """
        context = {k: v for k, v in dspy.settings.copy().items() if k not in OF_ONE_CALL}
        if isinstance(context["lm"], dspy.BaseLM):
            context["lm"] = context["lm"].copy()  # without the history of its calls
        lms = {id(lm): lm.copy() for lm in language_models(student)}
        parts = {
            "the program": copy_program(student, lms),
            "the metric": metric,
            "the settings of dspy.context (LM, adapter, callbacks)": context,
        }
        try:
            blob = cloudpickle.dumps((*parts.values(), temperature, dict(prices)))
        except Exception as error:  # whatever a user's object raises
            culprits = [name for name, part in parts.items() if not _can_be_sent(part)]
            raise SettingsError(
                f"executor: {' and '.join(culprits) or 'this run'} cannot be sent to other "
                f"processes ({described(error)}); leave the lock, connection or "
                f"client out that it holds, or pass num_threads instead of executor."
            ) from error
        return cls(hashlib.blake2b(blob, digest_size=16).hexdigest(), blob)


@dataclass(frozen=True, slots=True)
class Request:
    """One rollout that is to be made, or only scored where `recorded` has its outputs.

    `library` is a `packed_library`.
    """

    library: bytes
    example: Any
    index: int
    rollout_id: int
    recorded: Rollout | None = None

    def packed(self) -> bytes:
        """As bytes. Raises SettingsError: the example cannot be sent."""
        try:
            return bytes(cloudpickle.dumps(self))
        except Exception as error:  # whatever a user's object raises
            raise SettingsError(
                f"executor: example {self.index} cannot be sent to other processes "
                f"({described(error)})."
            ) from error


@functools.lru_cache(KEPT_PROGRAMS)
def packed_library(library: ExperienceLibrary) -> bytes:
    """A library without annotations, as bytes: packed once for all its requests."""
    return bytes(cloudpickle.dumps(library.bare()))


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request.

    `rollout` is its record, where it was made; `n_calls` and `cost` what of the reservation was
    used, `most_calls` and `most_cost` what of it was taken at some moment. `lacks_bundle`: the
    worker has not seen the bundle; `was_begun`: a worker before was lost over the request, with the
    reservation; `stopped_because`: why the rollout was not finished.
    """

    rollout: dict[str, Any] | None = None
    n_calls: int = 0
    cost: float = 0.0
    most_calls: int = 0
    most_cost: float = 0.0
    n_metric_calls: int = 0
    stopped_because: str = ""
    is_failure: bool = False
    lacks_bundle: bool = False
    was_begun: bool = False


# ---------------------------------------------------------------------- in the run's process


def workers_of(executor: Executor) -> int | None:
    """How many tasks an executor runs at once; None: it does not say."""
    n_workers = getattr(executor, "_max_workers", None)
    if n_workers is not None:
        return int(n_workers)
    nthreads = getattr(getattr(executor, "_client", None), "nthreads", None)  # dask's
    try:
        return sum(nthreads().values()) or None if callable(nthreads) else None
    except Exception:  # noqa: BLE001 - a client that is closed; the first request will say so
        return None


class RemoteRollouts:
    """Has rollouts made by an executor.

    Args:
        loop: of the run.
        executor: any of `concurrent.futures`; its workers need this package.
        n_at_once: how many requests are under way at once.
        timeout_s: how long a rollout may take; None: any time.
    """

    def __init__(
        self, loop: Loop, executor: Executor, n_at_once: int, timeout_s: float | None
    ) -> None:
        self._loop = loop
        self._ledger: Ledger = loop.ledger
        self._executor = executor
        self._n_at_once = n_at_once
        self._timeout_s = timeout_s
        self._slots: tuple[asyncio.AbstractEventLoop, Slots] | None = None
        self._name = uuid.uuid4().hex
        self._count = itertools.count()
        self._least: tuple[int, float] = (1, 0.0)
        self._most: tuple[float, float] = (FIRST_CALLS, math.inf)

    def submit(
        self,
        bundle: Bundle,
        request: Request,
        priority: Priority,
        record: Callable[[Any], Result],
    ) -> "asyncio.Task[Result]":
        """As `Loop.submit`: the rollout of the request, or a `TimedOutError`, is recorded."""
        loop = asyncio.get_running_loop()
        if self._slots is None or self._slots[0] is not loop:
            self._slots = (loop, Slots(self._n_at_once))
        held = self._loop.holding(
            self._slots[1], priority, lambda: self._made(bundle, request), record
        )
        return self._loop.spawn(held)

    async def _made(self, bundle: Bundle, request: Request) -> Rollout | TimedOutError:
        n_losses = 0
        while n_losses < MOST_LOSSES:
            lease = await self._reserved()
            try:
                reply = await self._replied(bundle, request, lease)
            except TimeoutError:
                return TimedOutError(f"took over {self._timeout_s:g} s")
            except Exception as error:  # noqa: BLE001 - whatever an executor raises
                self._ledger.give_up(lease)
                self._check_usable(error)
                why = f"the executor gave it up: {described(error)}"
                n_losses += 1
                continue
            if reply.was_begun:
                self._ledger.give_up(lease)
                why = "a worker was lost over it"
                n_losses += 1
            elif (rollout := self._settled(lease, reply)) is not None:
                return rollout
        failure = Failure("worker", f"{why}, {n_losses} times")
        return Rollout(request.index, request.rollout_id, failure=failure)

    async def _reserved(self) -> Lease:
        """A share of what is left of the budget. Raises RunStopped: nothing is left."""
        while True:
            lease = self._ledger.take_share(self._n_at_once, self._least, self._most)
            if lease is not None:
                return lease
            await asyncio.sleep(POLL_S)

    async def _replied(self, bundle: Bundle, request: Request, lease: Lease) -> Reply:
        """The reply to the request; the bundle is sent only to a worker that lacks it.

        Raises:
            TimeoutError: it took too long; what it used is settled when it comes after all.
        """
        async with asyncio.timeout(self._timeout_s):
            packed = request.packed()
            reply = await self._sent(lease, bundle.key, None, packed)
            if reply.lacks_bundle:
                reply = await self._sent(lease, bundle.key, bundle.blob, packed)
            return reply

    async def _sent(self, lease: Lease, key: str, blob: bytes | None, packed: bytes) -> Reply:
        name = f"{self._name}/{next(self._count)}"  # dask does equal tasks once
        budget = self._budget(lease)
        try:
            future = self._executor.submit(run_request, key, blob, packed, budget, name)
        except Exception as error:  # closed, shut down, or whatever it raises then
            raise BrokenExecutor(described(error)) from error
        try:
            reply: Reply = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._ledger.give_up(lease)
            future.add_done_callback(functools.partial(self._settle_late, lease))
            raise
        return reply

    def _budget(self, lease: Lease) -> Budget:
        """The reservation as the worker's budget."""
        limits = self._ledger.budget
        return Budget(
            max_lm_calls=lease.n_calls if limits.max_lm_calls is not None else None,
            max_cost=lease.cost if limits.max_cost is not None else None,
            max_minutes=self._ledger.minutes_left(),
        )

    def _settle_late(self, lease: Lease, future: "Future[Reply]") -> None:
        if not future.cancelled() and future.exception() is None:
            self._settle(lease, future.result())

    def _settle(self, lease: Lease, reply: Reply) -> None:
        if not reply.was_begun:
            self._ledger.settle(lease, reply.n_calls, reply.cost)
            for _ in range(reply.n_metric_calls):
                self._ledger.note_metric_call()

    def _settled(self, lease: Lease, reply: Reply) -> Rollout | None:
        """The rollout; None: its reservation was too small, and a larger one can be had.

        Raises:
            RunStopped: the budget does not reach, or the run has failed.
        """
        n_calls, cost = lease.n_calls, lease.cost
        self._settle(lease, reply)
        self._learn(reply.most_calls, reply.most_cost)
        if reply.rollout is not None:
            return Rollout.from_dict(reply.rollout)
        limit = reply.stopped_because.partition("=")[0]
        if reply.is_failure:
            self._ledger.stop(reply.stopped_because, is_failure=True)
        elif self._may_have_more(limit, n_calls, cost):
            is_calls = limit == "max_lm_calls"
            self._learn(2 * n_calls if is_calls else 0, 0.0 if is_calls else 2 * cost)
            return None
        else:
            self._ledger.stop(f"{limit}={getattr(self._ledger.budget, limit, None)} is used up")
        raise RunStopped(reply.stopped_because)

    def _learn(self, n_calls: int, cost: float) -> None:
        """A request needs a reservation of so much."""
        self._least = max(self._least[0], n_calls), max(self._least[1], cost)
        calls = max(FIRST_CALLS, HEADROOM * self._least[0])
        self._most = calls, HEADROOM * self._least[1] or math.inf

    def _may_have_more(self, limit: str, n_calls: int, cost: float) -> bool:
        """Whether a larger reservation than one that was too small can be had."""
        if limit == "max_minutes":
            return False
        if limit == "max_lm_calls":
            return self._ledger.may_reach(n_calls + 1, 0.0)
        return self._ledger.may_reach(0, GREATER * cost)

    def _check_usable(self, error: Exception) -> None:
        """Raises RunStopped: no request of this executor can be made any more."""
        if isinstance(error, SettingsError):
            raise error
        if isinstance(error, BrokenExecutor | ImportError):
            needs = " (its workers need this package, and dspy)" * isinstance(error, ImportError)
            message = f"{described(error)}{needs}"
            self._ledger.stop(f"the executor cannot go on: {message}", is_failure=True)
            self._ledger.check()


# ---------------------------------------------------------------------- in a worker's process


@dataclass(slots=True)
class _Unpacked:
    student: Any
    score: Any
    context: dict[str, Any]
    temperature: float | None
    prices: Mapping[str, tuple[float, float]]
    secrets: list[str]
    programs: dict[bytes, tuple[Any, Outline]] = field(default_factory=dict)

    def baked(self, library: bytes) -> tuple[Any, Outline]:
        """The program with this (packed) library; a few are kept."""
        found = self.programs.get(library)
        if found is None:
            if len(self.programs) >= KEPT_PROGRAMS:
                self.programs.clear()
            program = cloudpickle.loads(library).bake(self.student)
            found = self.programs[library] = (program, Outline.of(program))
        return found

    def record(self, rollout: Rollout) -> dict[str, Any]:
        """The rollout without the secrets of this machine, which the run does not know."""
        values = rollout.to_dict()
        if not self.secrets:
            return values
        return dict(cleaned(values, lambda text: redacted(text, self.secrets)))


_bundles: dict[str, _Unpacked] = {}
_unpacking = threading.Lock()


def run_request(key: str, blob: bytes | None, packed: bytes, budget: Budget, name: str) -> Reply:
    """Make a rollout in this process; nothing but memory is written.

    Args:
        key, blob: the bundle; None: as this worker is thought to have it.
        packed: the `Request`.
        budget: the reservation, as a budget.
        name: of the request, which must be used once only.
    """
    if _was_begun(name):  # first of all: a new worker in a lost one's place lacks the bundle too
        return Reply(was_begun=True)
    try:
        unpacked = _unpacked(key, blob)
        request = cloudpickle.loads(packed)
    except Exception as error:  # noqa: BLE001 - told to the run
        message = (
            f"a worker of the executor cannot read the program: {described(error)}. "
            f"It needs this package, dspy, and every module that program and metric come from."
        )
        return Reply(stopped_because=message, is_failure=True)
    if unpacked is None:
        return Reply(lacks_bundle=True)
    return _run(unpacked, request, Ledger(budget))


def _run(unpacked: _Unpacked, request: Request, ledger: Ledger) -> Reply:
    rollout = None
    try:
        with dspy.context(**unpacked.context):
            program, outline = unpacked.baked(request.library)
            task = RolloutTask(
                program=program,
                example=request.example,
                index=request.index,
                rollout_id=request.rollout_id,
                temperature=unpacked.temperature,
                score=unpacked.score,
                ledger=ledger,
                prices=unpacked.prices,
                outline=outline,
            )
            if request.recorded is None:
                rollout = run_rollout(task)
            else:
                rollout = score_again(task, request.recorded)
    except RunStopped:
        pass  # the reply says why
    return Reply(
        rollout=None if rollout is None else unpacked.record(rollout),
        n_calls=ledger.n_lm_calls,
        cost=ledger.cost,
        most_calls=ledger.most_calls,
        most_cost=ledger.most_cost,
        n_metric_calls=ledger.n_metric_calls_made,
        stopped_because="" if rollout is not None else ledger.stopped_because,
        is_failure=ledger.is_failure,
    )


def _unpacked(key: str, blob: bytes | None) -> _Unpacked | None:
    """The bundle of that key; None where it is not here."""
    with _unpacking:
        if key not in _bundles:
            if blob is None:
                return None
            if len(_bundles) >= KEPT_BUNDLES:
                _bundles.clear()
            student, metric, context, temperature, prices = cloudpickle.loads(blob)
            score = None if metric is None else adapt_metric(metric)
            secrets = known_secrets([*language_models(student), context["lm"]])
            _bundles[key] = _Unpacked(student, score, context, temperature, prices, secrets)
        return _bundles[key]


def _was_begun(name: str) -> bool:
    """Whether this request was begun before: dask makes those of a lost worker again by itself.

    Other executors never run a task twice.
    """
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return False
    try:
        distributed.get_worker()
    except ValueError:  # not in a worker of dask
        return False
    begun = distributed.Event(f"tfgrpo/{name}")
    if begun.is_set():
        return True
    begun.set()
    return False


def _can_be_sent(part: Any) -> bool:
    try:
        cloudpickle.dumps(part)
    except Exception:  # noqa: BLE001 - as above
        return False
    return True
