"""The event loop of a run by itself: what is begun when, what is raised where, what hangs."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.budget.meter import Meter
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.tasks.loop import Loop

WAIT_S = 10.0
"""How long a test waits for what should come; it does not come where something waits in vain."""
NEVER = threading.Event()


def submitted(loop: Loop, work: Any, priority: tuple[int, ...], record: Any) -> Any:
    return loop.submit(lambda: loop.in_thread(work), priority, record)


def as_it_is(result: Any) -> Any:
    return result


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
@settings(max_examples=30)
def test_of_tasks_that_wait_the_lowest_priority_is_begun_first_and_of_equals_the_earlier(
    priorities: list[tuple[int, int]],
) -> None:
    loop, may_begin = Loop(Ledger(), 1), threading.Event()
    begun: list[Any] = []

    async def main() -> None:
        first = submitted(loop, lambda: may_begin.wait(WAIT_S), (0,), as_it_is)
        await asyncio.sleep(0)
        rest = [
            submitted(loop, lambda entry=(priority, i): begun.append(entry), priority, as_it_is)
            for i, priority in enumerate(priorities)
        ]
        await asyncio.sleep(0)
        may_begin.set()
        await asyncio.gather(first, *rest)

    loop.run(main())
    assert begun == sorted((priority, i) for i, priority in enumerate(priorities))


@pytest.mark.parametrize("where", ["a coroutine", "a task", "what records the result"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_is_raised_anywhere_ends_the_run_and_leaves_nothing_running(
    where: str, error: type[BaseException]
) -> None:
    """Two slots: one task hangs, others wait for its slot; then the error is raised."""
    loop, hangs, released = Loop(Ledger(), 2), threading.Event(), threading.Event()
    begun: list[int] = []
    closed: list[bool] = []

    def hang(i: int) -> None:
        begun.append(i)
        hangs.set()
        released.wait(WAIT_S)

    def fail(_: Any = None) -> Any:
        assert hangs.wait(WAIT_S)
        raise error

    async def failing() -> None:
        work = fail if where == "a task" else lambda: None
        record = fail if where == "what records the result" else as_it_is
        await submitted(loop, work, (0,), record)
        fail()

    async def main() -> None:
        try:
            loop.spawn(failing())
            tasks = [submitted(loop, partial(hang, i), (1,), as_it_is) for i in range(5)]
            await asyncio.gather(*tasks)  # nobody awaits what fails
        finally:
            closed.append(True)

    async def again() -> Any:
        return [await submitted(loop, lambda i=i: i, (0,), as_it_is) for i in range(4)]

    with pytest.raises(error):
        loop.run(main())
    n_begun = len(begun)
    assert closed and 1 <= n_begun <= 2
    assert loop.run(again()) == [0, 1, 2, 3]
    released.set()  # what hung finds nobody, and nothing that waited for its slot
    assert loop.run(again()) == [0, 1, 2, 3]
    assert len(begun) == n_begun


def test_a_stopped_run_records_what_comes_soon_and_begins_nothing_more() -> None:
    ledger, begun = Ledger(), []
    loop, may_end = Loop(ledger, 2), threading.Event()

    def work(i: int) -> int:
        begun.append(i)
        may_end.wait(WAIT_S)
        return i

    recorded: list[int] = []

    async def main() -> None:
        tasks = [submitted(loop, lambda i=i: work(i), (0,), recorded.append) for i in range(6)]
        await asyncio.sleep(0.05)
        ledger.stop("told to")
        threading.Timer(0.3, may_end.set).start()
        await asyncio.gather(*tasks)

    with pytest.raises(RunStopped, match="told to"):
        loop.run(main())
    assert sorted(begun) == sorted(recorded) == [0, 1]


@pytest.mark.parametrize("n_hung", [1, 12])
def test_a_task_that_takes_too_long_is_an_error_and_its_slot_is_free(n_hung: int) -> None:
    loop, released = Loop(Ledger(), 3, timeout_s=0.4), threading.Event()
    together = threading.Barrier(3)

    async def all_of(works: list[Callable[[], Any]]) -> list[Any]:
        return [await task for task in [submitted(loop, w, (0,), as_it_is) for w in works]]

    hung = loop.run(all_of([lambda: released.wait(60)] * n_hung))
    assert {str(result) for result in hung} == {"took over 0.4 s"}
    assert [type(result) for result in hung] == [TimeoutError] * n_hung
    wide = loop.run(all_of([lambda: together.wait(0.35)] * 3))  # while the others still hang
    assert sorted(wide) == [0, 1, 2]
    released.set()


def test_a_task_that_took_too_long_can_make_no_more_calls() -> None:
    loop, late, refused = Loop(Ledger(), 1, timeout_s=0.05), threading.Event(), threading.Event()

    def work() -> None:
        meter = Meter(loop.ledger)
        late.wait(WAIT_S)
        try:
            meter.check()
        except RunStopped:
            refused.set()

    async def main() -> Any:
        return await submitted(loop, work, (0,), as_it_is)

    assert isinstance(loop.run(main()), TimeoutError)
    late.set()
    assert refused.wait(WAIT_S)
