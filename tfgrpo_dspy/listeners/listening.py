"""Tells listeners what happens, each in a thread of its own: nothing that they do changes a run.

A listener that is slow, hangs, raises or ends its thread's work costs a line in the log, and at the
end the time that `LONGEST_S` and `PATIENCE_S` allow.
"""

import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from tfgrpo_dspy.errors import described
from tfgrpo_dspy.home import settled

logger = logging.getLogger(__name__)

LONGEST_S, PATIENCE_S = 30.0, 5.0
"""How long the end of a run waits for a listener in all, and for each event."""
FOR_FAILURES_S = 1.0  # how long the results wait for what a listener may raise


class Listening:
    """One listener behind a queue. It is told nothing more after `most_failures`.

    `clean` takes secrets out of what it raises.
    """

    def __init__(
        self,
        listener: Callable[[Any], Any],
        name: str,
        most_failures: float = float("inf"),
        clean: Callable[[str], str] = str,
    ) -> None:
        self._clean = clean
        self.n_failures = 0
        self._listener, self._name, self._most_failures = listener, name, most_failures
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._n_left, self._changed = 0, threading.Condition()
        serve, name = functools.partial(copy_context().run, self._serve), "tfgrpo-listener"
        threading.Thread(target=serve, daemon=True, name=name).start()

    def tell(self, event: Any) -> None:
        """Have the listener told of the event, after those before it."""
        with self._changed:
            self._n_left += 1
        self._events.put(event)

    def _serve(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                if self.n_failures < self._most_failures:
                    settled(self._listener(event), self._listener)
            except BaseException as error:  # noqa: BLE001 - whatever it raises ends nothing
                self._note(error)
            with self._changed:
                self._n_left -= 1
                self._changed.notify_all()

    def _note(self, error: BaseException) -> None:
        self.n_failures += 1
        if self.n_failures == 1:
            is_last = self.n_failures >= self._most_failures
            then = "; it is told nothing more of this run" if is_last else ""
            logger.warning("%s raised %s%s", self._name, self._clean(described(error)), then)

    def drain(self, longest_s: float, patience_s: float) -> int:
        """Wait until the listener has been told everything; how many events are left."""
        end = time.monotonic() + longest_s
        with self._changed:
            while (n_left := self._n_left) and (left_s := end - time.monotonic()) > 0:
                self._changed.wait(min(patience_s, left_s))
                if self._n_left >= n_left:  # it has taken no event within `patience_s`
                    break
            return self._n_left

    def close(self) -> None:
        """Wait up to `LONGEST_S` for the listener; log how many events it has not taken."""
        with contextlib.suppress(KeyboardInterrupt):  # the wait is interrupted, the run is over
            if n_left := self.drain(LONGEST_S, PATIENCE_S):
                message = "%s has not taken the last %d events yet; the run does not wait for it"
                logger.warning(message, self._name, n_left)
        self._events.put(None)
