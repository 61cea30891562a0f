"""The task that awaits `acompile`: the run is in a thread, and ends when the task is cancelled."""

import asyncio
import threading
from collections.abc import Callable
from concurrent import futures
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

from tfgrpo_dspy.home import HOMES, Homes

Result = TypeVar("Result")
CANCELLED: ContextVar[threading.Event | None] = ContextVar("tfgrpo_cancelled", default=None)
"""Set when the task that awaits this run was cancelled."""


async def in_thread(work: Callable[[], Result]) -> Result:
    """What the work gives in a thread of its own; async code that it calls runs in this loop.

    Raises CancelledError: this was cancelled, and the work has ended; `program` is its result, or
    that of its exception.
    """
    is_cancelled, context = threading.Event(), copy_context()
    context.run(CANCELLED.set, is_cancelled)
    loop = asyncio.get_running_loop()
    context.run(HOMES.set, Homes((loop,), loop))
    done: futures.Future[Result] = futures.Future()

    def run() -> None:
        try:
            done.set_result(context.run(work))
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            done.set_exception(error)

    threading.Thread(target=run, daemon=True, name="tfgrpo").start()
    ended: asyncio.Future[Result] = asyncio.wrap_future(done)
    cancelled: asyncio.CancelledError | None = None
    while not ended.done():
        try:
            await asyncio.wait({ended})
        except asyncio.CancelledError as error:
            is_cancelled.set()
            cancelled = error
    if cancelled is None:
        return ended.result()
    interrupt = ended.exception()
    program: Any = getattr(interrupt, "program", None) if interrupt else ended.result()
    vars(cancelled)["program"] = program
    raise cancelled from interrupt


def check_cancelled() -> None:
    """Raises KeyboardInterrupt: the task that awaits this run was cancelled."""
    is_cancelled = CANCELLED.get()
    if is_cancelled is not None and is_cancelled.is_set():
        raise KeyboardInterrupt
