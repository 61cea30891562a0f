"""Where a task is that takes long: what it is about, which call it is in, and in which line."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
NOT_THE_USERS = sys.stdlib_module_names | {"dspy", "tfgrpo_dspy"}


class Whereabouts:
    """Where one task is; as text such as "tool 'read', line 12 of tools.py (look_up)".

    `about` names the task, `usual` what it is in if it is in none of `calls`: those that have begun
    and not ended, by their ids.
    """

    def __init__(self, about: str, usual: str) -> None:
        self.about = about
        self.calls: dict[str, str] = {}
        self._usual = usual
        self._thread: int | None = None

    def noted(self, work: Callable[[], Result]) -> Result:
        """What the work gives, which is done in this thread."""
        self._thread = threading.get_ident()
        try:
            return work()
        finally:
            self._thread = None

    def __str__(self) -> str:
        *_, call = [self._usual, *self.calls.copy().values()]
        line = self._line()
        return f"{call}, {line}" if line else call

    def _line(self) -> str:
        """The line of the user's code in which the thread is; "" if it is in none."""
        frames = sys._current_frames()  # noqa: SLF001 - the only way to look into another thread
        frame = frames.get(self._thread or -1)
        while frame is not None:
            module, path = str(frame.f_globals.get("__name__")), frame.f_code.co_filename
            if module.partition(".")[0] not in NOT_THE_USERS and "site-packages" not in path:
                return f"line {frame.f_lineno} of {Path(path).name} ({frame.f_code.co_qualname})"
            frame = frame.f_back
        return ""
