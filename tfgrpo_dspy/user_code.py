"""The user's functions: what they refer to, and the event loop in which the async ones run.

All async programs, tools, metrics and callbacks of a run are awaited in one event loop: that of who
awaits `acompile`, or the only one that runs beside it, else one that this process has for all its
runs. Rollouts are made in threads, which wait for it.
"""

import asyncio
import dis
import functools
import gc
import inspect
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from types import CodeType, FunctionType, ModuleType
from typing import Any, Concatenate, ParamSpec, TypeVar

from tfgrpo_dspy.errors import RunStopped, UserCodeError, described

Result = TypeVar("Result")
Owner = TypeVar("Owner")
Arguments = ParamSpec("Arguments")
LOOP: ContextVar[asyncio.AbstractEventLoop | None] = ContextVar("tfgrpo_loop", default=None)
"""In which the async code of the run is awaited; None: in the common one."""
ABANDONED: ContextVar[threading.Event | None] = ContextVar("tfgrpo_abandoned", default=None)
"""Set when nobody waits for the task of this thread any more; then its calls are refused."""
NOT_WANTED = "nobody waits for this any more"
HAS_ENDED = "The event loop that this async code needs has ended; keep it running until the end."
CANCELLED: ContextVar[threading.Event | None] = ContextVar("tfgrpo_cancelled", default=None)
"""Set when the task that awaits this run was cancelled."""
LOOK_S = 1.0  # how often the loop wakes by itself, lest a wake-up from a thread is lost
POLL_S = 0.1  # how often a thread that waits looks whether that is still wanted, and can still come
LIBRARIES = sys.stdlib_module_names | {"dspy", "tfgrpo_dspy"}


def check_wanted() -> None:
    """Raises RunStopped: nobody waits for what this thread does any more."""
    abandoned = ABANDONED.get()
    if abandoned is not None and abandoned.is_set():
        raise RunStopped(NOT_WANTED)


def without_partials(code: Any) -> Any:
    """The function in a partial, which may stand in others; all else as it is."""
    while isinstance(code, functools.partial):
        code = code.func
    return code


def is_coroutine_function(code: Any) -> bool:
    """True where the result of a function, or of an object that is called, is to be awaited."""
    return any(map(inspect.iscoroutinefunction, (code, getattr(code, "__call__", None))))  # noqa: B004


def is_users_own(module: str) -> bool:
    """True for a module that is neither part of Python nor installed."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    is_installed = "site-packages" in file or "dist-packages" in file
    top = module.partition(".")[0]
    return not (is_installed or top in LIBRARIES)


def named_by(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The values that a function closes over, and names as globals or in the user's modules."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it is not assigned yet
            yield name, cell.cell_contents
    names, attributes = _names(function.__code__)
    for name in (each for each in names if each in function.__globals__):
        named, modules = {name: function.__globals__[name]}, list[ModuleType]()
        for path in (paths := [name]):  # the user's modules, and those in them
            value = named[path]
            yield path, value
            is_module = isinstance(value, ModuleType) and is_users_own(value.__name__)
            if is_module and value not in modules:
                modules.append(value)
                within = {f"{path}.{a}": vars(value)[a] for a in attributes if a in vars(value)}
                named |= within
                paths += within


@functools.lru_cache(10_000)
def _names(code: CodeType) -> tuple[list[str], list[str]]:
    """The globals and the attributes that a function, and those in it, name."""
    loads = [each for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"]
    names, attributes = [str(each.argval) for each in loads], [*code.co_names]
    for inner in (each for each in code.co_consts if isinstance(each, CodeType)):
        names += _names(inner)[0]
        attributes += _names(inner)[1]
    return [*dict.fromkeys(names)], [*dict.fromkeys(attributes)]


def held_by(value: Any) -> Iterator[Any]:
    """The values that a function closes over, names or has as defaults; or an object holds."""
    if isinstance(value, functools.partial):
        yield from (*value.args, *value.keywords.values(), *held_by(value.func))
        return
    owner = getattr(value, "__self__", value)
    yield from (owner, *getattr(owner, "__dict__", {}).values())
    function = getattr(value, "__func__", value)
    if not isinstance(function, FunctionType):
        function = inspect.getattr_static(type(value), "__call__", None)
    if isinstance(function, FunctionType):
        yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        yield from (each for _, each in named_by(function))


def loops_here() -> list[asyncio.AbstractEventLoop]:
    """The event loops of who awaits the run, and of this thread: a copy would be half a loop."""
    return [loop for loop in (LOOP.get(), running_loop()) if loop is not None]


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, which `compile` blocks; None: there is none."""
    return asyncio._get_running_loop()  # noqa: SLF001 - the public function raises if there is none


_ONE_AT_A_TIME = threading.Lock()  # a cache alone may make two loops at once


@functools.cache
def _common_loop(_process: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="tfgrpo-async").start()
    return loop


@contextmanager
def loop_of(code: Sequence[Any]) -> Iterator[None]:
    """Await the async code of a run, if it has some, in the loop of who awaits the run.

    Else in the only loop that runs in another thread, to which it may be bound, such as a session
    of MCP; if none or several do, in the common one.
    """
    loop = LOOP.get()
    if code and loop is None:
        ours, every = (_common_loop(os.getpid()), running_loop()), gc.get_objects()
        loops = [each for each in every if issubclass(type(each), asyncio.AbstractEventLoop)]
        beside = [each for each in loops if each.is_running() and each not in ours]
        loop = beside[0] if len(beside) == 1 else None
    token = LOOP.set(loop)
    try:
        yield
    finally:
        LOOP.reset(token)


async def in_loop(awaitable: Awaitable[Result]) -> Result:
    """The result of the awaitable, which is awaited in the event loop of the run.

    Raises RunStopped: nobody waits for it any more; RuntimeError: that loop has ended.
    """
    with _ONE_AT_A_TIME:
        loop = LOOP.get() or _common_loop(os.getpid())
    if loop is asyncio.get_running_loop():
        return await awaitable
    done = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_guarded(awaitable), loop))
    try:
        while not done.done():
            await asyncio.wait({done}, timeout=POLL_S)
            check_wanted()
            if not (done.done() or loop.is_running()):
                break
        if not done.done() or done.cancelled():
            raise RuntimeError(HAS_ENDED)
        return done.result()
    finally:
        done.cancel()


async def _guarded(awaitable: Awaitable[Result]) -> Result:
    try:
        return await awaitable
    except SystemExit as error:  # it would end the loop
        raise UserCodeError(described(error)) from error


def settled(returned: Any) -> Any:
    """The value that code returned; of an awaitable its result."""
    return asyncio.run(in_loop(returned)) if inspect.isawaitable(returned) else returned


def awaited(
    method: Callable[Concatenate[Owner, Arguments], Result],
) -> Callable[Concatenate[Owner, Arguments], Coroutine[Any, Any, Result]]:
    """The method for async code, with the same signature."""

    @functools.wraps(method)
    async def run(self: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return await _in_thread(functools.partial(getattr(self, name), *args, **kwargs))

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


async def _in_thread(work: Callable[[], Result]) -> Result:
    """The result of the work, done in a thread of its own; its async code runs in this loop.

    Raises CancelledError: this was cancelled, and the work has ended; `program` is its result, or
    that of its exception.
    """
    is_cancelled, context = threading.Event(), copy_context()
    context.run(CANCELLED.set, is_cancelled)
    context.run(LOOP.set, asyncio.get_running_loop())
    executor = futures.ThreadPoolExecutor(1, "tfgrpo")
    ended = asyncio.wrap_future(executor.submit(context.run, work))
    executor.shutdown(wait=False)
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
