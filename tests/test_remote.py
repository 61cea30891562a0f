"""The coordinator's side of an executor, step by step: whose turn it is, what leases become of.

The executor is one that keeps what it is given, until the test says what came of it.
"""

import math
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import replace
from typing import Any

import dspy
import pytest
from scripted import scripted_lm
from test_dspy_contract import is_polite, polite_rules, questions
from tfgrpo_dspy.pipeline.errands import Errand, Outcome, Parcel, packed_library
from tfgrpo_dspy.pipeline.remote import FIRST_CALLS, MOST_LOSSES, RemoteTask, RemoteWorkers
from tfgrpo_dspy.pipeline.workers import Done, Workers

from tfgrpo_dspy import ExperienceLibrary
from tfgrpo_dspy.budget import Budget, Ledger
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.rollout import Rollout


class Held(Executor):
    """What it was given, in order: the future, the budget, the name of the lease."""

    def __init__(self) -> None:
        self.given: list[tuple[Future[Any], Budget, str]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ARG002
        future: Future[Any] = Future()
        self.given.append((future, args[3], args[4]))
        return future


class Coordinator:
    """RemoteWorkers over a Held executor, fed with errands on one example."""

    def __init__(self, n_workers: int, n_in_flight: int, **limits: Any) -> None:
        self.held, self.workers = Held(), Workers(1)
        self.ledger = Ledger(Budget(**limits))
        self.remote = RemoteWorkers(
            self.held, n_workers, n_in_flight, self.ledger, self.workers.finished
        )
        with dspy.context(lm=scripted_lm(polite_rules())):
            self.parcel = Parcel.of(dspy.Predict("question -> answer"), is_polite, 0.7, {})
        self.errand = Errand(packed_library(ExperienceLibrary()), questions(1)[0], 0, 7)

    def start(self, n: int) -> list[RemoteTask]:
        tasks = [self.remote.new_task() for _ in range(n)]
        for task in tasks:
            self.remote.start(task, self.parcel, self.errand, (0,))
        return tasks

    def comes(self, index: int, outcome: Outcome | Exception) -> Done | None:
        """What the errand that was handed over as so many-th came to."""
        future = self.held.given[index][0]
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
        done = self.workers.finished.get(timeout=1.0)
        received = self.remote.received(done)
        if received is not None:
            received.task.end()
        return received

    def lease(self, index: int) -> int | None:
        return self.held.given[index][1].max_lm_calls


def made(n_calls: int = 1, **changes: Any) -> Outcome:
    record = Rollout(0, 7, score=1.0).to_dict()
    return replace(Outcome(record, n_calls=n_calls, most_calls=n_calls), **changes)


def refused(n_calls: int = 0) -> Outcome:
    return Outcome(n_calls=n_calls, stopped_because="max_lm_calls=1 is used up")


def test_the_clock_of_an_errand_begins_when_its_turn_comes() -> None:
    run = Coordinator(n_workers=1, n_in_flight=2)
    first, second, third = run.start(3)
    assert len(run.held.given) == 2
    assert first.started_s is not None
    assert second.started_s is None
    assert run.comes(0, made()) is not None
    assert second.started_s is not None
    assert third.started_s is None
    run.remote.abandon(second)  # it took too long
    assert third.started_s is not None


def test_a_lease_that_did_not_reach_is_followed_by_a_greater_one_also_where_nothing_was_used() -> (
    None
):
    run = Coordinator(1, 32, max_lm_calls=64)
    run.start(1)
    sizes = [run.lease(0)]
    while run.comes(len(sizes) - 1, refused()) is None:
        sizes.append(run.lease(len(sizes)))
    assert sizes == [2, 4, 8, 16, 32, 64]
    with pytest.raises(RunStopped, match="max_lm_calls=64 is used up"):
        run.ledger.check()
    assert run.ledger.n_lm_calls == 0


def test_leases_are_about_twice_what_errands_take_and_never_more_than_are_left() -> None:
    run = Coordinator(1, 4, max_lm_calls=1000)
    run.start(6)
    assert [run.lease(i) for i in range(4)] == [FIRST_CALLS] * 4
    run.comes(0, made(30))
    assert run.lease(4) == 60
    run.comes(1, made(2))
    assert run.lease(5) == 60
    assert run.ledger.n_lm_calls == 30 + 2 + 2 * FIRST_CALLS + 2 * 60


def test_a_lost_workers_lease_counts_as_spent_and_the_errand_is_begun_again_so_many_times() -> None:
    run = Coordinator(1, 1, max_lm_calls=1000)
    run.start(1)
    for _ in range(MOST_LOSSES - 1):
        assert run.comes(len(run.held.given) - 1, Outcome(was_begun=True)) is None
    done = run.comes(len(run.held.given) - 1, RuntimeError("killed worker"))
    assert done is not None
    assert done.result.failure.kind == "worker"
    assert len(run.held.given) == MOST_LOSSES
    assert run.ledger.n_lm_calls == MOST_LOSSES * FIRST_CALLS
    assert len({name for _, _, name in run.held.given}) == MOST_LOSSES


def test_what_comes_late_of_an_abandoned_errand_is_no_result_but_corrects_its_lease() -> None:
    run = Coordinator(1, 1, max_lm_calls=100)
    (task,) = run.start(1)
    run.held.given[0][0].set_running_or_notify_cancel()
    run.remote.abandon(task)
    assert run.ledger.n_lm_calls == FIRST_CALLS
    assert run.comes(0, made(3, n_metric_calls=1)) is None
    assert run.ledger.n_lm_calls == 3
    assert run.ledger.n_metric_calls_made == 1


def test_who_hangs_with_a_lease_keeps_nobody_waiting_for_it() -> None:
    run = Coordinator(2, 2, max_lm_calls=8)
    hanging, _ = run.start(2)
    assert [run.lease(0), run.lease(1)] == [4, 2]
    run.held.given[0][0].set_running_or_notify_cancel()
    run.remote.abandon(hanging)
    assert run.comes(1, refused()) is None
    assert run.lease(2) == 4  # all that is left: what hangs will not bring anything back
    assert run.comes(2, refused()) is not None


@pytest.mark.parametrize("error", [BrokenExecutor("gone"), ModuleNotFoundError("No module 'x'")])
def test_an_executor_that_cannot_do_anything_ends_the_run(error: Exception) -> None:
    run = Coordinator(1, 1)
    run.start(1)
    done = run.comes(0, error)
    assert done is not None
    assert isinstance(done.error, RunStopped)
    assert run.ledger.is_failure
    assert str(error) in run.ledger.stopped_because


def test_a_share_is_given_when_another_is_back_not_when_too_little_is_left() -> None:
    ledger = Ledger(Budget(max_lm_calls=10))
    first = ledger.take_share(1, (6, 0.0), (6, math.inf))
    assert first is not None
    assert ledger.take_share(1, (6, 0.0), (6, math.inf)) is None
    ledger.settle(first, 2, 0.0)
    second = ledger.take_share(1, (6, 0.0), (6, math.inf))
    assert second is not None
    assert (second.n_calls, ledger.n_lm_calls) == (6, 8)
