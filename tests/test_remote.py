"""The run's side of an executor, step by step: what is reserved, and what becomes of it.

The executor is one that keeps what it is given, until the test says what came of it.
"""

import threading
from concurrent.futures import Executor, Future
from typing import Any

from tfgrpo_dspy.budget import Budget, Ledger
from tfgrpo_dspy.pool import Job, Pool, RemoteRollouts, Reply, run_request

FIRST = 16
"""So many calls are reserved before it is known what a request takes."""


class Held(Executor):
    """What it was given, in order: the future, the budget, the name of the request."""

    def __init__(self) -> None:
        self.given: list[tuple[Future[Any], Budget, str]] = []
        self.n_answered = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ARG002
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self.given.append((future, args[1], args[2]))
        return future

    def answer(self, reply: Reply | BaseException) -> None:
        future = self.given[self.n_answered][0]
        self.n_answered += 1
        if isinstance(reply, BaseException):
            future.set_exception(reply)
        else:
            future.set_result(reply)


def test_a_worker_that_cannot_read_its_request_says_why_and_what_it_needs() -> None:
    reply = run_request((b"no pickle", b"", b""), Budget(), "1")
    assert reply.is_failure
    assert "cannot read the program: UnpicklingError" in reply.stopped_because
    assert "needs this package, dspy" in reply.stopped_because


def test_a_lost_workers_reservation_counts_as_spent_and_the_request_is_made_three_times() -> None:
    held, ledger = Held(), Ledger(Budget(max_lm_calls=1000))
    pool, remote = Pool(ledger, 1), RemoteRollouts(ledger, held, 1)
    lost = Reply(was_started_before=True)
    with pool.running():
        job = pool.submit(Job(lambda _: remote.rollout((b"", b"", b""))), (0,))
        for n, reply in enumerate([lost, lost, RuntimeError("killed worker")]):
            while len(held.given) <= n:
                threading.Event().wait(0.001)
            held.answer(reply)
        failure: Any = pool.result(job)
    assert failure.kind == "worker"
    assert "3 times" in failure.message and "killed worker" in failure.message
    assert ledger.taken.n_lm_calls == 3 * FIRST
    assert len({name for _, _, name in held.given}) == 3
