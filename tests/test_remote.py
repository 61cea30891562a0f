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


class Coordinator:
    """RemoteRollouts over a Held executor, with requests for one example."""

    def __init__(self, n_at_once: int, timeout_s: float | None = None, **limits: Any) -> None:
        self.held, self.ledger = Held(), Ledger(Budget(**limits))
        self.pool = Pool(self.ledger, n_at_once, timeout_s)
        self.remote = RemoteRollouts(self.ledger, self.held, n_at_once)

    def start(self, n: int = 1) -> list[Job[Any]]:
        def do(_: Any) -> Any:
            return self.remote.rollout((b"", b"", b""))

        return [self.pool.submit(Job(do), (0,)) for _ in range(n)]

    def comes(self, *replies: Reply | BaseException) -> None:
        """What the requests came to, in the order in which they were handed over."""
        for reply in replies:
            self.handed_over(self.held.n_answered + 1)
            self.held.answer(reply)

    def handed_over(self, n: int) -> list[int | None]:
        """The calls that are reserved for each request, when so many are handed over."""
        while len(self.held.given) < n:
            threading.Event().wait(0.001)
        return [budget.max_lm_calls for _, budget, _ in self.held.given]

    def result_after(self, *replies: Reply | BaseException) -> Any:
        """What becomes of one request, when these replies have come."""
        with self.pool.running():
            (job,) = self.start()
            self.comes(*replies)
            return self.pool.result(job)


def test_a_worker_that_cannot_read_its_request_says_why_and_what_it_needs() -> None:
    reply = run_request((b"no pickle", b"", b""), Budget(), "1")
    assert reply.is_failure
    assert "cannot read the program: UnpicklingError" in reply.stopped_because
    assert "needs this package, dspy" in reply.stopped_because


def test_a_lost_workers_reservation_counts_as_spent_and_the_request_is_made_three_times() -> None:
    run = Coordinator(1, max_lm_calls=1000)
    lost = Reply(was_started_before=True)
    failure = run.result_after(lost, lost, RuntimeError("killed worker"))
    assert failure.kind == "worker"
    assert "3 times" in failure.message and "killed worker" in failure.message
    assert run.ledger.taken.n_lm_calls == 3 * FIRST
    assert len({name for _, _, name in run.held.given}) == 3
