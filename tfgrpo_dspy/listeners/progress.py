"""The progress bar of a run: a line that is rewritten every second, elsewhere a line a minute."""

import contextlib
import functools
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.results.records import UpdateRecord
from tfgrpo_dspy.settings.plan import plan_of
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.wording import counted

PHASES = {"rollout": "training", "validation": "final choice", "test": "test set"}
REFRESH_S, REFRESH_IN_FILES_S = 1.0, 60.0
BAR = "{desc}, {percentage:.0f}% |{bar:10}| {elapsed}<{remaining}{postfix}"
"""What matters most stands first: a narrow terminal shows the beginning."""
LOGGERS = ("", "dspy", "tfgrpo_dspy")  # whose lines on a terminal would tear the bar


class _Bar(tqdm):
    """A bar that counts while it is hidden; in a file, each of its states is a line of its own."""

    is_hidden = False

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if self.is_hidden:
            return None
        try:
            if _can_rewrite():
                return super().display(msg, pos)
            if msg is None:  # else it clears the line
                self.fp.write(f"{self}\n")
        except (OSError, ValueError):  # nobody reads on (a broken pipe, a closed terminal)
            self.disable = True
        return None


class Progress:
    """Shows phase, LM calls of the budget, scores, update, experiences, and dollars.

    In training there is one score: the mean of the latest update, with the advice that its rollouts
    were given. Student and best candidate are compared in the final choice, student and result on
    the test set: before, no two means are of the same examples.
    """

    def __init__(self, settings: RunSettings, ledger: Ledger) -> None:
        self._ledger = ledger
        self._max_lm_calls = settings.max_lm_calls
        self._scores: dict[str, float] = {}
        self._phase, self._about = PHASES["rollout"], "update 1"
        self._refresh_s = REFRESH_S if _can_rewrite() else REFRESH_IN_FILES_S
        self._shown_s = time.monotonic()
        self._cleanup = contextlib.ExitStack()
        disabled = not settings.progress or not _has_stream()
        if not disabled and _can_rewrite():  # in a file, each line would repeat the bar
            self._cleanup.enter_context(_lines_above_bars())
        total = max(1, math.ceil(plan_of(settings).total.likely.n_rollouts))
        self._bar = _Bar(
            total=total,
            bar_format=BAR,
            desc=self._state,
            disable=disabled,
            dynamic_ncols=True,
            mininterval=REFRESH_S if _can_rewrite() else math.inf,
        )
        self._cleanup.callback(self._bar.close)

    def show_rollout(self, role: str) -> None:
        """Move on by one rollout of this role."""
        if self._phase != PHASES[role]:  # scores of one phase are not those of another
            self._phase, self._scores = PHASES[role], {}
        if self._bar.total is not None and self._bar.n >= self._bar.total:
            self._bar.total = self._bar.n + 1  # more than was planned
        self._bar.update()
        self.tick()

    def show_update(self, record: UpdateRecord) -> None:
        """Show the scores and the size of the library after an update."""
        self._about = f"update {record.update + 1}, {counted(record.library_size, 'experience')}"
        if record.mean_score is not None:
            self._scores = {"score": record.mean_score}
        self._show_change()

    def show_scores(self, **scores: float) -> None:
        """Show these mean scores, by what they are of, in place of those before."""
        self._scores = scores
        self._show_change()

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
        """Refresh the bar, if it was not refreshed for a while."""
        if time.monotonic() - self._shown_s >= self._refresh_s:
            self._show()

    def _show_change(self) -> None:
        """Show at once what has changed; in a file, with the next line."""
        if _can_rewrite():
            self._show()
        else:
            self.tick()

    @property
    def _state(self) -> str:
        """The phase, the calls and the scores."""
        limit = "" if self._max_lm_calls is None else f"/{self._max_lm_calls}"
        scores = "".join(f", {name} {score:z.3f}" for name, score in self._scores.items())
        return f"{self._phase} {self._ledger.n_lm_calls}{limit} calls{scores}"

    def _show(self) -> None:
        if self._bar.disable:
            return
        self._shown_s = time.monotonic()
        dollars = f", ${self._ledger.cost:.4f}" if self._ledger.cost else ""
        self._bar.set_description_str(self._state, refresh=False)
        self._bar.set_postfix_str(f"{self._about}{dollars}")

    def close(self) -> None:
        """End the bar, which is full then, though a run may need fewer rollouts than planned."""
        self._bar.n = self._bar.total = max(1, self._bar.n)
        self._show()
        self._bar.leave = _can_rewrite()  # else its last state is a line already
        self._cleanup.close()


def _has_stream() -> bool:
    """Whether there is an error stream: a service may have none, or one that nobody reads."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # None, a broken pipe, closed
        sys.stderr.flush()
        return not getattr(sys.stderr, "closed", False)
    return False


def _can_rewrite() -> bool:
    """Whether the error stream is one that shows a line anew: a terminal, or a notebook."""
    if not _has_stream():
        return False
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or getattr(shell, "kernel", None) is not None


def _write_above_bars(emit: Callable[[logging.LogRecord], None], record: logging.LogRecord) -> None:
    """Write a log line above the bars of tqdm, also where their terminal has hung up."""
    with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as cleared:
        try:
            cleared.enter_context(tqdm.external_write_mode(file=sys.stderr))
        finally:
            emit(record)


class _Redirection:
    """Writes log lines, DSPy's too, above the bars; several compiles may run at once.

    `tqdm.contrib.logging` would print DSPy's lines twice, forget the levels of handlers, and leave
    its own behind where the compile that began first ends first.
    """

    def __init__(self) -> None:
        self._lock, self._n_bars = threading.Lock(), 0
        self._emits: list[tuple[Any, Any]] = []

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._n_bars += 1
            if self._n_bars == 1:
                self._emits = [(handler, handler.emit) for handler in _on_terminals()]
                for handler, emit in self._emits:
                    handler.emit = functools.partial(_write_above_bars, emit)
        try:
            yield
        finally:
            with self._lock:
                self._n_bars -= 1
                for handler, emit in () if self._n_bars else self._emits:
                    handler.emit = emit


def _on_terminals() -> Iterator[logging.Handler]:
    """The handlers that write to a stream, and not to a file."""
    handlers = [handler for name in LOGGERS for handler in logging.getLogger(name).handlers]
    for handler in dict.fromkeys([*handlers, logging.lastResort]):  # this where nobody set one up
        is_file = isinstance(handler, logging.FileHandler)
        if isinstance(handler, logging.StreamHandler) and not is_file:
            yield handler


_lines_above_bars = _Redirection()
