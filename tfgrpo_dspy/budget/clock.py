"""How long a run has taken. The limit in minutes, and what is kept of it, stand in the ledger."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """The time since a run began, but for the time in which its clock stood still."""

    def __init__(self) -> None:
        self._begun = self._stands_since = time.monotonic()
        self._stood_s, self._n_standing = 0.0, 0
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """How long the run has taken."""
        with self._lock:
            now = self._stands_since if self._n_standing else time.monotonic()
            return now - self._begun - self._stood_s

    @contextmanager
    def standing(self) -> Iterator[None]:
        """The clock of the run stands still within it, as while a person is asked."""
        with self._lock:
            self._stands_since = self._stands_since if self._n_standing else time.monotonic()
            self._n_standing += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_standing -= 1
                if not self._n_standing:
                    self._stood_s += time.monotonic() - self._stands_since
