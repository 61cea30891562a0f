"""The home of the user's async code: the event loop in which its sessions, tasks and queues live.

A rollout runs in a thread, and what waits there on an object of another loop waits for ever. So
async tools, programs and metrics are run in their home, while the thread waits. The home is the
loop of the caller of `acompile`, or a running loop that the code holds.
"""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any, TypeVar

import dspy
from dspy.utils.callback import BaseCallback

from tfgrpo_dspy.budget.ledger import ABANDONED, NOT_WANTED
from tfgrpo_dspy.errors import RunStopped, SettingsError, UserCodeError, described
from tfgrpo_dspy.references import is_async, loops_of

Result = TypeVar("Result")
HOMES: ContextVar[tuple[asyncio.AbstractEventLoop, ...]] = ContextVar("tfgrpo_homes", default=())
"""The loops that the user's async code may need; the first is that of the caller of `acompile`."""
REPLAY = "tfgrpo_replay"
"""Under this name DSPy's settings hold the `Replay` of the rollout that is being made."""
POLL_S = 0.1  # how often a thread that waits looks whether that is still wanted, and can still come
HAS_ENDED = (
    "The event loop that this async code needs has ended; keep it running until the run is over."
)


@contextmanager
def at_homes(student: Any, metric: Any, is_offline: bool) -> Iterator[None]:
    """Look for the homes of the user's code, for all that runs within.

    Raises SettingsError: code needs the loop of this thread, which is blocked until the run is
    over; names all of it.
    """
    blocked = asyncio._get_running_loop()  # noqa: SLF001 - the public function raises if there is none
    homes, faults = [*HOMES.get()], []
    for name, code in _user_code(student, metric):
        found = [loop for loop in loops_of(code) if loop.is_running()]
        homes += found
        if blocked in found and is_async(code) and not is_offline:
            faults.append(name)
    if faults:
        raise SettingsError(
            f"{', '.join(faults)}: needs the event loop that is running here, and compile blocks "
            f"it until the run is over; call `await optimizer.acompile(...)`, or run compile in a "
            f"thread: `await asyncio.to_thread(optimizer.compile, ...)`."
        )
    token = HOMES.set(tuple(dict.fromkeys(homes)))
    try:
        yield
    finally:
        HOMES.reset(token)


def _user_code(student: Any, metric: Any) -> Iterator[tuple[str, Any]]:
    """The functions of the user that rollouts call, with names for errors."""
    for _, tool in student.named_sub_modules(dspy.Tool):
        yield f"tool {tool.name!r}", tool.func
    for _, module in student.named_sub_modules():
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
    if len(homes) < 2:
        return homes[0] if homes else None
    return next((loop for loop in loops_of(code) if loop in homes), homes[0])


async def at_home(awaitable: Awaitable[Result], home: asyncio.AbstractEventLoop | None) -> Result:
    """What comes of the awaitable, which is awaited in its home (None: in the loop that runs).

    Raises RunStopped: nobody waits for it any more; RuntimeError: its home has ended.
    """
    if home is None or home is asyncio.get_running_loop():
        return await awaitable
    if not home.is_running():
        if asyncio.iscoroutine(awaitable):
            awaitable.close()
        raise RuntimeError(HAS_ENDED)
    abandoned = ABANDONED.get()
    done = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_guarded(awaitable), home))
    try:
        while not done.done():
            await asyncio.wait({done}, timeout=POLL_S)
            if abandoned is not None and abandoned.is_set():
                raise RunStopped(NOT_WANTED)
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
    """What comes of the awaitable that this code gave, awaited in its home or in a new loop."""
    return asyncio.run(at_home(awaitable, home_of(code)))


class _Dispatcher:
    """Stands in a tool for its function while a rollout calls the tool."""

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.n_users = 0

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        replay = dspy.settings.get(REPLAY)
        if replay is None:
            result = self.function(*args, **arguments)
        else:
            result = replay.called(self.function, arguments)
        home = home_of(self.function) if asyncio.iscoroutine(result) else None
        return result if home is None else at_home(result, home)


class _AsyncDispatcher(_Dispatcher):
    """The same for a function that DSPy is to know as async."""

    async def __call__(self, *args: Any, **arguments: Any) -> Any:
        result = super().__call__(*args, **arguments)
        return await result if asyncio.iscoroutine(result) else result


class DispatchedTools(BaseCallback):
    """Has the tools that a rollout calls run in their home, wherever it takes them from.

    The rollout's `Replay`, if there is one, says what they give.
    """

    def __init__(self) -> None:
        self._changed: list[dspy.Tool] = []  # tools that hold a dispatcher

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002
        """Change the tool before its function is called."""
        with dspy.settings.lock:
            if not isinstance(instance.func, _Dispatcher):
                is_async = inspect.iscoroutinefunction(instance.func)
                kind = _AsyncDispatcher if is_async else _Dispatcher
                vars(instance)["func"] = kind(instance.func)
            instance.func.n_users += 1
            self._changed.append(instance)

    def close(self) -> None:
        """Give the tools their functions back, unless another rollout needs the dispatchers."""
        with dspy.settings.lock:
            for tool in self._changed:
                tool.func.n_users -= 1
                if not tool.func.n_users:
                    vars(tool)["func"] = tool.func.function
