"""Rollouts in the user's executor: processes, or machines. The coordinator's side of `errands`.

Everything here runs in the coordinator's thread, but for the one line that is called when a future
is done. The executor is the user's: it is never shut down.
"""

import functools
import heapq
import itertools
import queue
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
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


class RemoteTask:
    """An errand on its way; what a `Task` is for threads."""

    def __init__(self, on_end: Callable[["RemoteTask"], None]) -> None:
        self.started_s: float | None = None
        self.parcel: Parcel
        self.errand: Errand
        self.packed = b""
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
        n_in_flight: how many errands are handed over at once.
        ledger: what leases are taken from.
        finished: where it is told that an errand is done.
    """

    def __init__(
        self,
        executor: Executor,
        n_in_flight: int,
        ledger: Ledger,
        finished: queue.SimpleQueue[Done],
    ) -> None:
        self._executor = executor
        self._n_in_flight = n_in_flight
        self._ledger = ledger
        self._finished = finished
        self._waiting: list[tuple[Order, int, RemoteTask]] = []
        self._flying: set[RemoteTask] = set()
        self._n_held = 0
        self._count = itertools.count()
        self._most = (1, 0.0)

    def new_task(self) -> RemoteTask:
        """A task to start; known before to who waits for it, as an interrupt may come between."""
        return RemoteTask(self._leave)

    def start(self, task: Any, parcel: Parcel, errand: Errand, order: Order) -> None:
        """Have the errand run; what becomes of it comes to `finished`."""
        task.parcel, task.errand = parcel, errand
        task.packed = errand.packed()
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
        if task.lease is None:
            try:
                task.lease = self._ledger.take_share(self._n_in_flight, self._most)
            except RunStopped:  # who waits is told by the ledger
                return False
        return task.lease is not None

    def _hand_over(self, task: RemoteTask, blob: bytes | None) -> None:
        budget, name = self._budget(task)
        task.started_s = time.monotonic()
        self._flying.add(task)
        try:
            task.future = self._executor.submit(
                run_errand, task.parcel.key, blob, task.packed, budget, name
            )
        except Exception as error:  # noqa: BLE001 - broken, shut down, or whatever it raises then
            task.future = Future()
            task.future.set_exception(BrokenExecutor(f"{type(error).__name__}: {error}"))
        task.future.add_done_callback(functools.partial(self._tell, task))

    def _tell(self, task: RemoteTask, future: "Future[Outcome]") -> None:
        """Called by whatever thread the executor has for it."""
        self._finished.put(Done(task, future))

    def _budget(self, task: RemoteTask) -> tuple[Budget, str]:
        """The lease as the worker's budget, and its name where it must not be used twice."""
        limits, lease = self._ledger.budget, task.lease
        is_limited = limits.max_lm_calls is not None or limits.max_cost is not None
        budget = Budget(
            max_lm_calls=lease.n_calls if lease and limits.max_lm_calls is not None else None,
            max_cost=lease.cost if lease and limits.max_cost is not None else None,
            max_minutes=self._ledger.minutes_left(),
        )
        return budget, f"{id(self)}/{next(self._count)}" if is_limited else ""

    # ------------------------------------------------------------------ what comes back

    def received(self, done: Done) -> Done | None:
        """What an errand came to: a rollout or the end of the run; None: it was begun again."""
        task: Any = done.task
        self._flying.discard(task)
        if task.is_abandoned:
            return None
        try:
            outcome: Outcome = done.result.result()
        except (Exception, CancelledError) as error:  # noqa: BLE001 - errands themselves raise none
            return self._failed(task, error)
        if outcome.lacks:
            self._hand_over(task, task.parcel.blob)
            return None
        return self._lost(task) if outcome.was_begun else self._settled(task, outcome)

    def _settled(self, task: RemoteTask, outcome: Outcome) -> Done | None:
        lease, task.lease = task.lease, None
        if lease is not None:
            self._ledger.settle(lease, outcome.n_calls, outcome.cost)
        used = (outcome.n_calls, outcome.cost)
        self._most = (max(self._most[0], used[0]), max(self._most[1], used[1]))
        for _ in range(outcome.n_metric_calls):
            self._ledger.note_metric_call()
        if outcome.rollout is not None:
            return Done(task, Rollout.from_dict(outcome.rollout))
        if outcome.is_failure:
            self._ledger.stop(outcome.stopped_because, is_failure=True)
        elif lease is not None and not self._grow(lease):
            self._ledger.stop(outcome.stopped_because)
        else:
            self._again(task)
            return None
        return Done(task, error=RunStopped(outcome.stopped_because))

    def _grow(self, lease: Lease) -> bool:
        """Whether a greater lease than one that did not reach can be had."""
        self._most = (max(self._most[0], 2 * lease.n_calls), max(self._most[1], 2 * lease.cost))
        limits = self._ledger.budget
        few_calls = limits.max_lm_calls is not None and 2 * lease.n_calls > limits.max_lm_calls
        few_dollars = limits.max_cost is not None and 2 * lease.cost > limits.max_cost
        return not few_calls and not few_dollars and self._ledger.minutes_left() != 0.0

    def _failed(self, task: RemoteTask, error: BaseException) -> Done:
        """The executor gave up this errand, or all of them."""
        self._give_up_lease(task)
        message = f"{type(error).__name__}: {error}"
        if isinstance(error, BrokenExecutor):
            why = f"the executor cannot go on: {message}"
            self._ledger.stop(why, is_failure=True)
            return Done(task, error=RunStopped(why))
        return self._without_result(task, f"the executor gave it up: {message}")

    def _lost(self, task: RemoteTask) -> Done | None:
        """A worker is gone, and the lease with it; another does its errand."""
        self._give_up_lease(task)
        task.n_losses += 1
        if task.n_losses < MOST_LOSSES:
            self._again(task)
            return None
        return self._without_result(task, f"{task.n_losses} workers were lost over it")

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
            self._ledger.settle(task.lease, task.lease.n_calls, task.lease.cost)
            task.lease = None

    def _leave(self, task: RemoteTask) -> None:
        """Its place is free."""
        if task.holds_place:
            task.holds_place = False
            self._n_held -= 1
        self.pump()

    # ------------------------------------------------------------------ the end

    def abandon(self, task: RemoteTask) -> None:
        """Nobody waits for it any more."""
        task.is_abandoned = True
        if task.future is not None and task in self._flying:
            self._give_up_lease(task)
            task.future.cancel()
        self._leave(task)

    def drop_waiting(self) -> None:
        """Begin none of those that wait."""
        self._waiting.clear()

    def close(self) -> None:
        """Start nothing more; what runs is not waited for."""
        self.drop_waiting()
