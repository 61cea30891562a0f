"""Tells listeners what happens, each in a thread of its own: nothing that they do changes a run.

A listener that is slow, hangs, raises or ends its thread's work costs a line in the log, and at the
end the time that `LONGEST_S` and `PATIENCE_S` allow. DSPy's callbacks are listeners, too: they are
told of the measurements of student and result, as by `dspy.Evaluate`, so that MLflow shows them.
"""

import contextlib
import functools
import logging
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import dspy

from tfgrpo_dspy.dspy_seam import EvaluationResult, with_callbacks
from tfgrpo_dspy.errors import described
from tfgrpo_dspy.user_code import settled

logger = logging.getLogger(__name__)

LONGEST_S, PATIENCE_S = 30.0, 5.0
"""How long the end of a run waits for a listener in all, and for each event."""
FOR_FAILURES_S = 1.0  # how long the results wait for what a listener may raise
Row = tuple[Any, Any, float]  # an example, its prediction, and the score


class Listening:
    """One listener behind a queue. It is told nothing more after `most_failures`."""

    def __init__(
        self,
        listener: Callable[[Any], Any],
        name: str,
        most_failures: float = float("inf"),
        clean: Callable[[str], str] = str,  # takes secrets out of what it raises
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
                    settled(self._listener(event))
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


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a program scores on a set; callbacks know the metric by the name of the set."""

    set: str
    program: Any
    rows: Sequence[Row]


class _Measured(dspy.Evaluate):
    """An evaluation whose rollouts were made before; its score is a percentage."""

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__(devset=[example for example, _, _ in rows])
        mean = statistics.fmean(score for _, _, score in rows)
        self._result = EvaluationResult(score=round(100 * mean, 2), results=list(rows))

    @with_callbacks  # type: ignore[untyped-decorator]
    def __call__(self, program: Any, callback_metadata: Any = None) -> Any:  # noqa: ARG002
        """The result. The callbacks are told of it, and of the arguments."""
        return self._result


def callback_listeners(clean: Callable[[str], str]) -> list[Listening]:
    """A listener to evaluations for each callback of DSPy, with the MLflow runs of this thread."""
    stack = getattr(sys.modules.get("mlflow.tracking.fluent"), "_active_run_stack", None)
    runs = [*stack.get()] if stack else []

    def tell(callback: Any, evaluation: Evaluation) -> None:
        if stack:
            stack.set([*runs])
        try:
            with dspy.context(callbacks=[callback]):
                metadata = {"metric_key": evaluation.set}
                _Measured(evaluation.rows)(evaluation.program, callback_metadata=metadata)
        finally:
            if stack:
                stack.set([])

    return [
        Listening(functools.partial(tell, callback), type(callback).__name__, clean=clean)
        for callback in dspy.settings.callbacks
    ]
