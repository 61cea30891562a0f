"""SIGTERM ends a run as Ctrl-C does: what is recorded stays, what is in flight is dropped."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class _Terminated(BaseException):
    """SIGTERM has come."""


@contextmanager
def handing_on_sigterm() -> Iterator[None]:
    """Within it, SIGTERM ends what the main thread does; then the previous handler is run.

    In other threads, and where SIGTERM is ignored, nothing is changed.

    Raises:
        KeyboardInterrupt: SIGTERM came, and the previous handler has returned.
    """
    previous: Any = signal.getsignal(signal.SIGTERM)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or previous in (None, signal.SIG_IGN):
        yield
        return

    def handler(*_: Any) -> NoReturn:
        raise _Terminated

    signal.signal(signal.SIGTERM, handler)
    frame = None
    try:
        yield
    except _Terminated as terminated:
        frame = terminated.__traceback__.tb_frame if terminated.__traceback__ else None
        signal.signal(signal.SIGTERM, previous)
        if callable(previous):
            previous(signal.SIGTERM, frame)
        else:
            signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, previous)
