"""One piece of work in a thread: whether somebody still waits for its result, and its clock.

A task that takes too long is abandoned: every further call of it is refused. While it waits for a
provider that asked for a pause, its clock stands still.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Task:
    """A task and the time that it has worked."""

    def __init__(self) -> None:
        self.is_abandoned = False
        self._began_s = time.monotonic()
        self._paused_s = self._pause_began_s = 0.0
        self._n_pauses = 0
        self._lock = threading.Lock()

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """A pause; of several at once, in threads of the program, each moment counts once."""
        with self._lock:
            self._n_pauses += 1
            if self._n_pauses == 1:
                self._pause_began_s = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._n_pauses -= 1
                if not self._n_pauses:
                    self._paused_s += time.monotonic() - self._pause_began_s

    def seconds_left(self, timeout_s: float | None) -> float:
        """How long the task may still work; infinite without a limit."""
        if timeout_s is None:
            return math.inf
        with self._lock:
            until = self._pause_began_s if self._n_pauses else time.monotonic()
            return timeout_s - (until - self._began_s - self._paused_s)


CURRENT_TASK: ContextVar[Task | None] = ContextVar("tfgrpo_task", default=None)
"""The task that this thread works on."""
