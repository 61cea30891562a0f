"""One piece of work in a worker: does it hold one of the run's slots, is it still wanted?

As many tasks work at once as there are slots. A task that only waits (for a provider that asked
for a pause) gives its slot to another; one that takes too long is abandoned: its slot is free, and
every further call of it is refused.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Task:
    """A task and its slot.

    Args:
        slots: one for each task that may work at once.
        on_idle: called when the task gives its slot away, so that a thread is there to use it.
    """

    def __init__(self, slots: threading.Semaphore, on_idle: Callable[[], None]) -> None:
        self.is_abandoned = False
        self.started_s: float | None = None
        self._slots = slots
        self._on_idle = on_idle
        self._lock = threading.Lock()
        self._holds_slot = False
        self._is_over = False
        self._thread = 0

    def begin(self) -> bool:
        """Take over the thread's slot; False where it was abandoned before: the slot is free."""
        self._thread = threading.get_ident()
        with self._lock:
            if self.is_abandoned:
                self._slots.release()
                return False
            self._holds_slot = True
            self.started_s = time.monotonic()
            return True

    def is_done(self) -> bool:
        """Said by the thread when its work is done; gives whether it is still wanted."""
        with self._lock:
            self._is_over = True
            return not self.is_abandoned

    def end(self) -> None:
        """Give the slot back."""
        with self._lock:
            self._give_slot_back()

    def _give_slot_back(self) -> None:
        if self._holds_slot:
            self._holds_slot = False
            self._slots.release()

    def abandon(self) -> bool:
        """Nobody waits for it any more; gives whether a thread is at work on it."""
        with self._lock:
            self.is_abandoned = True
            self._give_slot_back()
            return self.started_s is not None and not self._is_over

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Without a slot while it waits; only the task's own thread can give it away."""
        if threading.get_ident() != self._thread or not self._holds_slot:
            yield
            return
        with self._lock:
            self._give_slot_back()
        self._on_idle()
        try:
            yield
        finally:
            self._slots.acquire()
            with self._lock:
                self._holds_slot = not self.is_abandoned
                if self.is_abandoned:
                    self._slots.release()


CURRENT_TASK: ContextVar[Task | None] = ContextVar("tfgrpo_task", default=None)
"""The task that this thread works on."""
