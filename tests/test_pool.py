"""The threads of a run by themselves: what is begun when, what is raised where, what hangs."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.tasks.pool import Job, Pool

WAIT_S = 10.0
"""How long a test waits for what should come; it does not come where something waits in vain."""


def as_it_is(result: Any) -> Any:
    return result


def all_of(pool: Pool, works: list[Callable[[], Any]]) -> list[Any]:
    with pool.running():
        jobs = [pool.submit(Job(lambda _, work=work: work(), as_it_is), (0,)) for work in works]
        return [pool.result(job) for job in jobs]


@pytest.mark.parametrize("where", ["beside", "a job", "what records the result"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_is_raised_anywhere_ends_the_run_and_leaves_nothing_running(
    where: str, error: type[BaseException]
) -> None:
    """Two threads: one job hangs, others wait for its place; then the error is raised."""
    pool, hangs, released = Pool(Ledger(), 2), threading.Event(), threading.Event()
    begun: list[int] = []

    def hang(i: int, _: Any) -> None:
        begun.append(i)
        hangs.set()
        released.wait(WAIT_S)

    def fail(_: Any = None) -> Any:
        assert where == "what records the result" or hangs.wait(WAIT_S)  # that is under the lock
        raise error

    with pytest.raises(error), pool.running():
        work = fail if where == "a job" else lambda _: None
        record = fail if where == "what records the result" else as_it_is
        failing = pool.submit(Job(work, record), (0,))
        pool.beside(fail if where == "beside" else lambda: pool.result(failing))
        jobs = [pool.submit(Job(partial(hang, i), as_it_is), (1,)) for i in range(5)]
        for job in jobs:  # nobody waits for what fails
            pool.result(job)
    n_begun = len(begun)
    assert n_begun <= 2
    assert all_of(pool, [partial(int, i) for i in range(4)]) == [0, 1, 2, 3]
    released.set()  # what hung finds nobody, and nothing that waited for its place
    assert all_of(pool, [partial(int, i) for i in range(4)]) == [0, 1, 2, 3]
    assert len(begun) == n_begun


def test_a_stopped_run_records_what_comes_soon_and_begins_nothing_more() -> None:
    ledger, begun = Ledger(), []
    pool, may_end, has_begun = Pool(ledger, 2), threading.Event(), threading.Barrier(3)

    def work(i: int, _: Any) -> int:
        begun.append(i)
        has_begun.wait(WAIT_S)
        may_end.wait(WAIT_S)
        return i

    recorded: list[int] = []
    with pytest.raises(RunStopped, match="told to"), pool.running():
        jobs = [pool.submit(Job(partial(work, i), recorded.append), (0,)) for i in range(6)]
        has_begun.wait(WAIT_S)
        ledger.stop("told to")
        threading.Timer(0.3, may_end.set).start()
        pool.result(jobs[5])
    assert sorted(begun) == sorted(recorded) == [0, 1]
