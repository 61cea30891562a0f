"""Rollouts in the user's executor: processes, or machines. The coordinator's side of `errands`.

Everything here runs in the coordinator's thread, but for the one line that is called when a future
is done. The executor is the user's: it is never shut down.
"""

import functools
import heapq
import itertools
import math
import queue
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any

from tfgrpo_dspy.budget import Budget, Lease, Ledger
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.pipeline.errands import Errand, Outcome, Parcel, run_errand
from tfgrpo_dspy.pipeline.workers import Done, Order
from tfgrpo_dspy.rollout import Failure, Rollout

MOST_LOSSES = 3
"""An errand over which so many workers were lost is not begun again."""
IN_FLIGHT_PER_WORKER = 2
"""So that a worker has its next errand when it is done with one."""
FIRST_CALLS = 16
"""At most so many calls are in a lease before it is known what an errand takes."""
HEADROOM = 2.0
"""How much more than any errand took so far is in a lease, where there is enough."""
GREATER = 1.01
"""A lease is tried again with more dollars only if there are so many times as many."""


def workers_of(executor: Executor) -> int | None:
    """How many tasks an executor runs at once; None: it does not tell."""
    n_workers = getattr(executor, "_max_workers", None)
    if n_workers is not None:
        return int(n_workers)
    nthreads = getattr(getattr(executor, "_client", None), "nthreads", None)  # dask's
    try:
        return sum(nthreads().values()) or None if callable(nthreads) else None
    except Exception:  # noqa: BLE001 - a client that is closed; handing over an errand will say so
        return None


class RemoteTask:
    """An errand on its way; what a `Task` is for threads.

    `started_s` is when its turn came among those that were handed over; None: not yet.
    """

    def __init__(self, on_end: Callable[["RemoteTask"], None]) -> None:
        self.started_s: float | None = None
        self.parcel: Parcel
        self.errand: Errand
        self.future: Future[Outcome] | None = None
        self.lease: Lease | None = None
        self.n_losses = 0
        self.is_abandoned = False
        self.holds_place = False
        self._on_end = on_end

    def end(self) -> None:
        """What came of it is dealt with."""
        self._on_end(self)


class RemoteWorkers:
    """Hands errands to an executor, by their order, and takes what comes of them.

    Args:
        executor: any of `concurrent.futures`; its workers need this package.
        n_workers: how many errands it does at once.
        n_in_flight: how many errands are handed over at once.
        ledger: what leases are taken from.
        finished: where it is told that an errand is done.
    """

    def __init__(
        self,
        executor: Executor,
        n_workers: int,
        n_in_flight: int,
        ledger: Ledger,
        finished: queue.SimpleQueue[Done],
    ) -> None:
        self._executor = executor
        self._n_workers = n_workers
        self._n_in_flight = n_in_flight
        self._ledger = ledger
        self._finished = finished
        self._waiting: list[tuple[Order, int, RemoteTask]] = []
        self._begun: set[RemoteTask] = set()
        self._queued: deque[RemoteTask] = deque()
        self._n_held = 0
        self._count = itertools.count()
        self._name = uuid.uuid4().hex
        self._least: tuple[int, float] = (1, 0.0)
        self._most: tuple[float, float] = (FIRST_CALLS, math.inf)

    def new_task(self) -> RemoteTask:
        """A task to start; known before to who waits for it, as an interrupt may come between."""
        return RemoteTask(self._leave)

    def start(self, task: Any, parcel: Parcel, errand: Errand, order: Order) -> None:
        """Have the errand run; what becomes of it comes to `finished`."""
        task.parcel, task.errand = parcel, errand
        heapq.heappush(self._waiting, (order, next(self._count), task))
        self.pump()

    def pump(self) -> None:
        """Hand over what waits, as far as there are places and leases."""
        while self._waiting and self._n_held < self._n_in_flight:
            task = self._waiting[0][2]
            if not task.is_abandoned and not self._has_lease(task):
                return
            heapq.heappop(self._waiting)
            if not task.is_abandoned:
                task.holds_place = True
                self._n_held += 1
                self._hand_over(task, None)

    def _has_lease(self, task: RemoteTask) -> bool:
        try:
            task.lease = self._ledger.take_share(self._n_in_flight, self._least, self._most)
        except RunStopped:  # who waits is told by the ledger
            return False
        return task.lease is not None

    def _hand_over(self, task: RemoteTask, blob: bytes | None) -> None:
        packed, budget = task.errand.packed(), self._budget(task)
        name = f"{self._name}/{next(self._count)}"  # no other is equal: dask does equal tasks once
        try:
            task.future = self._executor.submit(
                run_errand, task.parcel.key, blob, packed, budget, name
            )
        except Exception as error:  # noqa: BLE001 - broken, shut down, or whatever it raises then
            task.future = Future()
            task.future.set_exception(BrokenExecutor(f"{type(error).__name__}: {error}"))
        self._queued.append(task)
        self._begin_next()
        task.future.add_done_callback(functools.partial(self._tell, task))

    def _begin_next(self) -> None:
        """Those whose turn it is are at work: executors take what they are given in that order."""
        while self._queued and len(self._begun) < self._n_workers:
            task = self._queued.popleft()
            if not task.is_abandoned:
                task.started_s = time.monotonic()
                self._begun.add(task)

    def _is_back(self, task: RemoteTask) -> None:
        if task in self._begun:
            self._begun.discard(task)
        elif task in self._queued:
            self._queued.remove(task)
        self._begin_next()

    def _tell(self, task: RemoteTask, future: "Future[Outcome]") -> None:
        """Called by whatever thread the executor has for it."""
        self._finished.put(Done(task, future))

    def _budget(self, task: RemoteTask) -> Budget:
        """The lease as the worker's budget."""
        limits, lease = self._ledger.budget, task.lease
        return Budget(
            max_lm_calls=lease.n_calls if lease and limits.max_lm_calls is not None else None,
            max_cost=lease.cost if lease and limits.max_cost is not None else None,
            max_minutes=self._ledger.minutes_left(),
        )

    # ------------------------------------------------------------------ what comes back

    def received(self, done: Done) -> Done | None:
        """What an errand came to: a rollout or the end of the run; None: nobody waits, or not yet.

        It may have been begun again.
        """
        task: Any = done.task
        task.future = None  # which knows the task: a circle would keep the result on its worker
        self._is_back(task)
        try:
            outcome: Outcome = done.result.result()
        except Exception as error:  # noqa: BLE001 - errands themselves raise none
            return None if task.is_abandoned else self._failed(task, error)
        if task.is_abandoned:  # what it took is known now
            self._settle(task, outcome)
            return None
        if outcome.lacks:
            self._hand_over(task, task.parcel.blob)
            return None
        if outcome.was_begun:
            return self._lost(task, "a worker was lost over it")
        return self._settled(task, outcome)

    def _settle(self, task: RemoteTask, outcome: Outcome) -> None:
        lease, task.lease = task.lease, None
        if lease is not None and not outcome.was_begun:
            self._ledger.settle(lease, outcome.n_calls, outcome.cost)
            for _ in range(outcome.n_metric_calls):
                self._ledger.note_metric_call()

    def _settled(self, task: RemoteTask, outcome: Outcome) -> Done | None:
        size = (task.lease.n_calls, task.lease.cost) if task.lease is not None else (0, 0.0)
        self._settle(task, outcome)
        self._learn(outcome.most_calls, outcome.most_cost)
        if outcome.rollout is not None:
            return Done(task, Rollout.from_dict(outcome.rollout))
        limit = outcome.stopped_because.partition("=")[0]
        if outcome.is_failure:
            self._ledger.stop(outcome.stopped_because, is_failure=True)
        elif self._may_have_more(limit, *size):
            is_calls = limit == "max_lm_calls"
            self._learn(2 * size[0] if is_calls else 0, 0.0 if is_calls else 2 * size[1])
            self._again(task)
            return None
        else:
            self._ledger.stop(f"{limit}={getattr(self._ledger.budget, limit, None)} is used up")
        return Done(task, error=RunStopped(outcome.stopped_because))

    def _learn(self, n_calls: int, cost: float) -> None:
        """An errand needs a lease of so much."""
        self._least = max(self._least[0], n_calls), max(self._least[1], cost)
        calls = max(FIRST_CALLS, HEADROOM * self._least[0])
        self._most = calls, HEADROOM * self._least[1] or math.inf

    def _may_have_more(self, limit: str, n_calls: int, cost: float) -> bool:
        """Whether a greater lease than one that did not reach can be had."""
        if limit == "max_minutes":
            return self._ledger.minutes_left() != 0.0
        if limit == "max_lm_calls":
            return self._ledger.may_reach(n_calls + 1, 0.0)
        return self._ledger.may_reach(0, GREATER * cost)

    def _failed(self, task: RemoteTask, error: Exception) -> Done | None:
        """The executor gave up this errand, or all of them."""
        message = f"{type(error).__name__}: {error}"
        if not isinstance(error, BrokenExecutor | ImportError):
            return self._lost(task, f"the executor gave it up: {message}")
        self._give_up_lease(task)
        needs = " (its workers need this package, and dspy)" * isinstance(error, ImportError)
        why = f"the executor cannot go on: {message}{needs}"
        self._ledger.stop(why, is_failure=True)
        return Done(task, error=RunStopped(why))

    def _lost(self, task: RemoteTask, why: str) -> Done | None:
        """A worker is gone, and the lease with it; another does its errand."""
        self._give_up_lease(task)
        task.n_losses += 1
        if task.n_losses < MOST_LOSSES:
            self._again(task)
            return None
        return self._without_result(task, f"{why}, {task.n_losses} times")

    def _without_result(self, task: RemoteTask, message: str) -> Done:
        failure = Failure("worker", message)
        return Done(task, Rollout(task.errand.index, task.errand.rollout_id, failure=failure))

    def _again(self, task: RemoteTask) -> None:
        """With a new lease, before all that waits."""
        task.started_s = None
        heapq.heappush(self._waiting, ((), next(self._count), task))
        self._leave(task)

    def _give_up_lease(self, task: RemoteTask) -> None:
        """Nobody knows what of it was used: all of it counts as spent."""
        if task.lease is not None:
            self._ledger.give_up(task.lease)
            task.lease = None

    def _leave(self, task: RemoteTask) -> None:
        """Its place is free."""
        if task.holds_place:
            task.holds_place = False
            self._n_held -= 1
        self.pump()

    # ------------------------------------------------------------------ the end

    def abandon(self, task: RemoteTask) -> None:
        """Nobody waits for it any more; where it goes on all the same, its lease is still its."""
        task.is_abandoned = True
        if task.lease is not None:
            self._ledger.give_up(task.lease)
        if task.future is not None:
            self._is_back(task)
            task.future.cancel()
            task.future = None
        self._leave(task)

    def drop_waiting(self) -> None:
        """Begin none of those that wait."""
        self._waiting.clear()

    def close(self) -> None:
        """Start nothing more; what runs is not waited for."""
        self.drop_waiting()
