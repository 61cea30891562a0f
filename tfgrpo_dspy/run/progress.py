"""The progress bar of a run: it moves with every rollout, and at least every second."""

import contextlib
import logging
import math
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.results.records import UpdateRecord, counted
from tfgrpo_dspy.settings.plan import plan_of
from tfgrpo_dspy.settings.schedule import RunSettings

PHASES = {"rollout": "training", "validation": "final choice", "test": "test set"}
REFRESH_S = 1.0
LOGGERS = ("", "dspy", "tfgrpo_dspy")  # whose lines on a terminal would tear the bar


class _Bar(tqdm):
    """A bar that is not drawn while it is hidden; it goes on counting."""

    is_hidden = False

    def display(self, *args: Any, **kwargs: Any) -> Any:
        return None if self.is_hidden else super().display(*args, **kwargs)


class Progress:
    """Shows phase, update, scores, experiences, and what was used of the budget.

    Until the final choice the scores are means of training updates, `student` that of the first.
    """

    def __init__(self, settings: RunSettings, ledger: Ledger) -> None:
        self._ledger = ledger
        self._max_lm_calls = settings.max_lm_calls
        self._scores: dict[str, float] = {}
        self._phase, self._about = PHASES["rollout"], ""
        self._shown_s = 0.0
        self._cleanup = contextlib.ExitStack()
        if settings.progress:
            self._cleanup.enter_context(_lines_above_bars())
        total = math.ceil(plan_of(settings).total.likely.n_rollouts)
        disabled = not settings.progress
        self._bar = _Bar(total=total, unit="rollout", desc=self._phase, disable=disabled)
        self._cleanup.callback(self._bar.close)

    def show_rollout(self, role: str) -> None:
        """Move on by one rollout of this role."""
        self._phase = PHASES[role]
        if self._bar.total is not None and self._bar.n >= self._bar.total:
            self._bar.total = self._bar.n + 1  # more than was planned
        self._bar.update()
        self.tick()

    def show_update(self, record: UpdateRecord) -> None:
        """Show the scores and the size of the library after an update."""
        if record.scores:
            mean = statistics.fmean(record.scores)
            self._scores.setdefault("student", mean)
            self.show_scores(best=max(mean, self._scores.get("best", mean)))
        self._about = f"update {record.update + 1}, {counted(record.library_size, 'experience')}, "
        self._show()

    def show_scores(self, **scores: float) -> None:
        """Show these mean scores, by "student" and "best"."""
        self._scores |= scores
        self._show()

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """No bar within it: somebody is asked something on the same terminal."""
        self._bar.clear()
        self._bar.is_hidden = True
        try:
            yield
        finally:
            self._bar.is_hidden = False
            self._show()

    def tick(self) -> None:
        """Refresh the bar, if it was not refreshed for a second."""
        if time.monotonic() - self._shown_s >= REFRESH_S:
            self._show()

    def _show(self) -> None:
        if self._bar.disable:
            return
        self._shown_s = time.monotonic()
        limit = "" if self._max_lm_calls is None else f"/{self._max_lm_calls}"
        scores = "".join(f"{name} {score:.3f}, " for name, score in self._scores.items())
        calls = f"{self._ledger.n_lm_calls}{limit} LM calls, ${self._ledger.cost:.4f}"
        self._bar.set_description_str(self._phase, refresh=False)
        self._bar.set_postfix_str(f"{self._about}{scores}{calls}")

    def close(self) -> None:
        """End the bar."""
        self._show()
        self._cleanup.close()


class _AboveBars:
    """A stream that writes the lines of a log handler above the bars of tqdm."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        with tqdm.external_write_mode(file=sys.stderr):  # DSPy's stream writes there
            self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


class _Redirection:
    """Writes log lines above the bars while there is a bar; several compiles may run at once.

    `logging_redirect_tqdm` does not know DSPy's log handler, and prints the lines of other loggers
    twice.
    """

    def __init__(self) -> None:
        self._lock, self._n_bars = threading.Lock(), 0
        self._handlers: list[tuple[Any, Any]] = []

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._n_bars += 1
            if self._n_bars == 1:
                self._handlers = list(_on_terminals())
                for handler, stream in self._handlers:
                    handler.setStream(_AboveBars(stream))
        try:
            yield
        finally:
            with self._lock:
                self._n_bars -= 1
                for handler, stream in self._handlers if not self._n_bars else ():
                    handler.setStream(stream)


def _on_terminals() -> Iterator[tuple[Any, Any]]:
    """The handlers that write to a stream, and not to a file; each with its stream."""
    handlers = [handler for name in LOGGERS for handler in logging.getLogger(name).handlers]
    for handler in dict.fromkeys(handlers):
        is_file = isinstance(handler, logging.FileHandler)
        if isinstance(handler, logging.StreamHandler) and not is_file:
            yield handler, handler.stream


_lines_above_bars = _Redirection()
