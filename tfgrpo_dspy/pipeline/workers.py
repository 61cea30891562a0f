"""The threads: run a task on many items, results in the order of the items."""

import contextvars
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """A pool of threads in which every task has the caller's `dspy.context`."""

    def __init__(self, num_threads: int) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="tfgrpo")

    def map(self, task: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """The task's result for every item, in the order of the items, whichever is done first."""
        futures = [self._pool.submit(contextvars.copy_context().run, task, item) for item in items]
        return [future.result() for future in futures]

    def close(self) -> None:
        """Start nothing more; what runs is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
