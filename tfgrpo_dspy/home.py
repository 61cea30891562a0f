"""The home of the user's async code: the event loop in which its sessions, tasks and queues live.

A rollout runs in a thread, and what waits there on an object of another loop waits for ever. So
async tools, programs and metrics are run in their home, while the thread waits. The home is the
loop of the caller of `acompile`, or a running loop that the code holds.
"""

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType, MethodType
from typing import Any, TypeVar

import dspy

from tfgrpo_dspy.budget.ledger import check_wanted
from tfgrpo_dspy.errors import SettingsError, UserCodeError, described
from tfgrpo_dspy.references import async_needs, is_async, is_coroutine_function

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Homes:
    """The loops in which the user's async code may have to run."""

    loops: tuple[asyncio.AbstractEventLoop, ...] = ()  # that of the caller comes first
    caller: asyncio.AbstractEventLoop | None = None  # of `acompile`; there runs what needs no other


NOWHERE = Homes()
HOMES: ContextVar[Homes] = ContextVar("tfgrpo_homes", default=NOWHERE)
POLL_S = 0.1  # how often a thread that waits looks whether that is still wanted, and can still come
HAS_ENDED = (
    "The event loop that this async code needs has ended; keep it running until the run is over."
)


@contextmanager
def at_homes(
    programs: Sequence[Any],
    metric: Any,
    is_offline: bool,
    callbacks: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[None]:
    """Look for the homes of the user's code, for all that runs within.

    `callbacks` are `approve` and `on_event`, by name.

    Raises SettingsError: code needs the loop of this thread, which is blocked until the run is
    over; names all of it.
    """
    blocked = asyncio._get_running_loop()  # noqa: SLF001 - the public function raises if there is none
    caller, loops, faults, shares = HOMES.get().caller, [*HOMES.get().loops], [], False
    awaited = [each for each in callbacks.items() if is_coroutine_function(each[1])]
    for name, code in (*_user_code(programs, metric), *awaited):
        needs, uses_loop = async_needs(code), is_async(code)
        running = [loop for loop in needs.loops if loop.is_running()]
        loops += running
        shares |= uses_loop and needs.shares
        waits_here = blocked in running or (needs.has_signals and not needs.loops)
        if blocked is not None and uses_loop and waits_here:
            faults.append(name)
    if faults and not is_offline:
        raise SettingsError(
            f"{', '.join(faults)}: needs the event loop that is running here, and compile blocks "
            f"it until the run is over; call `await optimizer.acompile(...)` (of `learn`: "
            f"`alearn`), or run compile in a thread: `await asyncio.to_thread(optimizer.compile, "
            f"...)`."
        )
    if shares and not loops:
        loops.append(_common_loop(os.getpid()))
    token = HOMES.set(Homes(tuple(dict.fromkeys(loops)), caller))
    try:
        yield
    finally:
        HOMES.reset(token)


def homes_in_worker(program: Any, metric: Any) -> Homes:
    """The homes in a process that others send rollouts to, in which no loop of theirs runs."""
    codes = [code for _, code in _user_code([program], metric)]
    shares = any(is_async(code) and async_needs(code).shares for code in codes)
    return Homes((_common_loop(os.getpid()),)) if shares else NOWHERE


@functools.cache
def _common_loop(_process: int) -> asyncio.AbstractEventLoop:
    """The loop, in a thread of its own, for async code whose calls share objects of no loop yet."""
    loop, is_running = asyncio.new_event_loop(), threading.Event()
    loop.call_soon(is_running.set)
    threading.Thread(target=loop.run_forever, daemon=True, name="tfgrpo-async").start()
    is_running.wait()
    return loop


def _user_code(programs: Sequence[Any], metric: Any) -> Iterator[tuple[str, Any]]:
    """The functions of the user that rollouts call, with names for errors."""
    for _, tool in (each for program in programs for each in program.named_sub_modules(dspy.Tool)):
        yield f"tool {tool.name!r}", tool.func
    for _, module in (each for program in programs for each in program.named_sub_modules()):
        kind = type(module)
        if not kind.__module__.startswith("dspy."):
            for name in ("aforward", "forward"):  # `getattr` would warn
                function = inspect.getattr_static(module, name, None)
                bound = MethodType(function, module) if inspect.isfunction(function) else function
                yield f"program {kind.__name__}", bound
    yield "metric", metric


def home_of(code: Any) -> asyncio.AbstractEventLoop | None:
    """The loop in which this async code is to run; None: in any."""
    homes = HOMES.get()
    if homes.loops in ((), (homes.caller,)):
        return homes.caller
    needs = async_needs(code)
    held = [loop for loop in needs.loops if loop in homes.loops]
    return [*held, homes.loops[0]][0] if held or needs.shares else homes.caller


async def at_home(awaitable: Awaitable[Result], home: asyncio.AbstractEventLoop | None) -> Result:
    """The result of the awaitable, which is awaited in its home (None: in the loop that runs).

    Raises RunStopped: nobody waits for it any more; RuntimeError: its home has ended.
    """
    if home is None or home is asyncio.get_running_loop():
        return await awaitable
    if not home.is_running():
        if asyncio.iscoroutine(awaitable):
            awaitable.close()
        raise RuntimeError(HAS_ENDED)
    done = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_guarded(awaitable), home))
    try:
        while not done.done():
            await asyncio.wait({done}, timeout=POLL_S)
            check_wanted()
            if not (done.done() or home.is_running()):
                raise RuntimeError(HAS_ENDED)
        if done.cancelled():
            raise RuntimeError(HAS_ENDED)
        return done.result()
    finally:
        done.cancel()


async def _guarded(awaitable: Awaitable[Result]) -> Result:
    try:
        return await awaitable
    except SystemExit as error:  # it would end the loop of the user
        raise UserCodeError(described(error)) from error


def run(awaitable: Awaitable[Result], code: Any) -> Result:
    """The result of the awaitable that this code gave, awaited in its home or in a new loop."""
    return asyncio.run(at_home(awaitable, home_of(code)))


def settled(returned: Any, code: Any) -> Any:
    """The value that this code returned; if it is an awaitable, its result."""
    return run(returned, code) if inspect.isawaitable(returned) else returned
