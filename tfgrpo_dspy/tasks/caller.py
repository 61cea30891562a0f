"""The task that awaits `acompile` or `alearn`: the run is in a thread, and ends with the task."""

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from concurrent import futures
from contextvars import ContextVar, copy_context
from typing import Any, Concatenate, ParamSpec, TypeVar

from tfgrpo_dspy.user_code import LOOP

Result = TypeVar("Result")
Owner = TypeVar("Owner")
Arguments = ParamSpec("Arguments")
CANCELLED: ContextVar[threading.Event | None] = ContextVar("tfgrpo_cancelled", default=None)
"""Set when the task that awaits this run was cancelled."""
LOOK_S = 1.0  # how often the loop wakes by itself, lest a wake-up from a thread is lost


def awaited(
    method: Callable[Concatenate[Owner, Arguments], Result],
) -> Callable[Concatenate[Owner, Arguments], Coroutine[Any, Any, Result]]:
    """The method for async code, with the same signature."""

    @functools.wraps(method)
    async def run(self: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return await in_thread(functools.partial(getattr(self, name), *args, **kwargs))

    name = method.__name__
    run.__name__, run.__qualname__ = f"a{name}", method.__qualname__.replace(name, f"a{name}")
    run.__doc__ = f"""The result of `{name}` for these arguments, without blocking the event loop.

        The run is in threads. Async tools, such as those of an MCP session, async metrics, and
        programs that have `aforward` only, run in this event loop.

        Raises:
            CancelledError: the task that awaits this was cancelled. The run has ended as by Ctrl-C:
                what was finished is kept in `log_dir`, and `.program` is the best so far, if any.
            SettingsError, StoreError, RunFailedError, ...: as `{name}`.
        """
    return run


def in_own_thread(work: Callable[[], Result]) -> "futures.Future[Result]":
    """A future of the work's result; a daemon thread does it, in the context of the caller."""
    done: futures.Future[Result] = futures.Future()
    done.set_running_or_notify_cancel()  # nobody can cancel it
    run = functools.partial(copy_context().run, fulfil, done, work)
    threading.Thread(target=run, daemon=True, name="tfgrpo").start()
    return done


def fulfil(done: "futures.Future[Result]", work: Callable[[], Result]) -> None:
    """Give the future what the work gives, or raises."""
    try:
        done.set_result(work())
    except BaseException as error:  # noqa: BLE001 - raised where it is awaited
        done.set_exception(error)


async def in_thread(work: Callable[[], Result]) -> Result:
    """The result of the work, done in a thread of its own; its async code runs in this loop.

    Raises CancelledError: this was cancelled, and the work has ended; `program` is its result, or
    that of its exception.
    """
    is_cancelled, context = threading.Event(), copy_context()
    context.run(CANCELLED.set, is_cancelled)
    context.run(LOOP.set, asyncio.get_running_loop())
    ended: asyncio.Future[Result] = asyncio.wrap_future(context.run(in_own_thread, work))
    cancelled: asyncio.CancelledError | None = None
    while not ended.done():
        try:
            await asyncio.wait({ended}, timeout=LOOK_S)
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
