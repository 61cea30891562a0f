"""Runs rollouts in the user's executor (`concurrent.futures`, dask): in processes, or on machines.

The executor is the user's: it is never shut down. What its workers do is in `worker`.
"""

import asyncio
import functools
import itertools
import uuid
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any

from tfgrpo_dspy.budget import Ledger, Reservation, Shares
from tfgrpo_dspy.errors import RunStopped, SettingsError, described
from tfgrpo_dspy.rollout import Failure, Rollout
from tfgrpo_dspy.run.loop import Loop, Priority, Result, Slots, TimedOutError
from tfgrpo_dspy.run.worker import Bundle, Reply, Request, run_request

MAX_LOST_WORKERS = 3
"""A request that lost this many workers is not sent again."""
POLL_S = 0.02
"""How often a request that waits for budget checks whether reserved calls were given back."""


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


class RequestCancelledError(Exception):
    """The executor cancelled a request that the run still needs."""


class RemoteRollouts:
    """Runs rollouts in the user's executor.

    Args:
        loop: the event loop of the run.
        executor: any `concurrent.futures.Executor`; its workers need this package.
        n_at_once: how many requests are under way at once.
        timeout_s: how long a rollout may take; None: any time.
    """

    def __init__(
        self, loop: Loop, executor: Executor, n_at_once: int, timeout_s: float | None
    ) -> None:
        self._loop = loop
        self._ledger: Ledger = loop.ledger
        self._shares = Shares(loop.ledger, n_at_once)
        self._executor = executor
        self._n_at_once = n_at_once
        self._timeout_s = timeout_s
        self._slots: tuple[asyncio.AbstractEventLoop, Slots] | None = None
        self._name = uuid.uuid4().hex
        self._count = itertools.count()

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
            self._slots[1], priority, lambda: self._rollout(bundle, request), record
        )
        return self._loop.spawn(held)

    async def _rollout(self, bundle: Bundle, request: Request) -> Rollout | TimedOutError:
        """The rollout that the request asks for; a request whose worker is lost is made again."""
        n_losses = 0
        while n_losses < MAX_LOST_WORKERS:
            while (share := self._shares.take()) is None:
                await asyncio.sleep(POLL_S)
            try:
                reply = await self._send_with_bundle(bundle, request, share)
            except TimeoutError:
                return TimedOutError(f"took over {self._timeout_s:g} s")
            except Exception as error:  # noqa: BLE001 - whatever an executor raises
                self._ledger.forfeit(share)
                self._check_usable(error)
                why = f"the executor raised {described(error)}"
                n_losses += 1
                continue
            if reply.was_started_before:
                self._ledger.forfeit(share)
                why = "its worker died"
                n_losses += 1
            elif (rollout := self._rollout_or_retry(share, reply)) is not None:
                return rollout
        failure = Failure(
            "worker", f"the executor lost this rollout {n_losses} times; last reason: {why}"
        )
        return Rollout(request.index, request.rollout_id, failure=failure)

    async def _send_with_bundle(
        self, bundle: Bundle, request: Request, share: Reservation
    ) -> Reply:
        """The reply to the request; the bundle is sent only to a worker that lacks it.

        Raises:
            TimeoutError: it took too long; what it used is settled when it comes after all.
        """
        async with asyncio.timeout(self._timeout_s):
            packed = request.packed()
            reply = await self._send(share, bundle.key, None, packed)
            if reply.lacks_bundle:
                reply = await self._send(share, bundle.key, bundle.blob, packed)
            return reply

    async def _send(self, share: Reservation, key: str, blob: bytes | None, packed: bytes) -> Reply:
        name = f"{self._name}/{next(self._count)}"  # dask runs tasks of equal arguments only once
        budget = self._shares.as_budget(share)
        try:
            future = self._executor.submit(run_request, key, blob, packed, budget, name)
        except Exception as error:  # closed, shut down, or whatever it raises then
            raise BrokenExecutor(described(error)) from error
        try:
            reply: Reply = await asyncio.wrap_future(future)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():  # the run goes on without this reply
                raise RequestCancelledError(f"the executor cancelled request {name}") from error
            self._ledger.forfeit(share)
            future.add_done_callback(functools.partial(self._settle_when_done, share))
            raise
        return reply

    def _settle_when_done(self, share: Reservation, future: "Future[Reply]") -> None:
        if not future.cancelled() and future.exception() is None:
            self._settle(share, future.result())

    def _settle(self, share: Reservation, reply: Reply) -> None:
        if not reply.was_started_before:
            self._shares.settle(share, reply.n_calls, reply.cost, reply.n_metric_calls)

    def _rollout_or_retry(self, share: Reservation, reply: Reply) -> Rollout | None:
        """The rollout; None: its share was too small, and a larger one can be had.

        Raises:
            RunStopped: the budget does not reach, or the run has failed.
        """
        n_calls, cost = share.n_calls, share.cost
        self._settle(share, reply)
        self._shares.learn(reply.most_calls, reply.most_cost)
        if reply.rollout is not None:
            return Rollout.from_dict(reply.rollout)
        limit = reply.stopped_because.partition("=")[0]
        if reply.is_failure:
            self._ledger.stop(reply.stopped_because, is_failure=True)
        elif self._shares.grow(limit, n_calls, cost):
            return None
        else:
            self._ledger.stop(f"{limit}={getattr(self._ledger.budget, limit, None)} is used up")
        raise RunStopped(reply.stopped_because)

    def _check_usable(self, error: Exception) -> None:
        """End the run if the executor is broken.

        Raises:
            RunStopped: the executor is broken, or its workers lack a package.
            SettingsError: the request cannot be packed.
        """
        if isinstance(error, SettingsError):
            raise error
        if isinstance(error, BrokenExecutor | ImportError):
            needs = "; install this package and dspy on its workers" * isinstance(
                error, ImportError
            )
            message = f"the executor is broken: {described(error)}{needs}"
            self._ledger.stop(message, is_failure=True)
            self._ledger.check()
