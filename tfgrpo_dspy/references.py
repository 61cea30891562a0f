"""What the user's code refers to, as far as Python tells: closures, globals, attributes, items."""

import asyncio
import functools
import inspect
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from gc import get_referents, is_tracked
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

MOST_OBJECTS = 2_000  # so many are looked at on the way to event loops, the nearest first
MOST_ITEMS = 500  # a longer list or mapping holds data
FOLLOWED = {"builtins", "asyncio", "_asyncio", "collections", "functools", "contextlib"}
"""Of the standard library, the modules whose objects may lead to a loop that the code needs."""
NOT_FOLLOWED = {"IPython", "ipykernel", "ipywidgets", "traitlets", "tornado", "zmq"} | (
    sys.stdlib_module_names - FOLLOWED
)
FUNCTIONS = (FunctionType, MethodType, functools.partial)
SIGNALS = (asyncio.Queue, asyncio.Event, asyncio.Condition)
TO_LOOPS = {"run_coroutine_threadsafe", "call_soon_threadsafe", "from_mcp_tool"}


def held_by(value: Any) -> Iterator[Any]:
    """What a function closes over, names as globals or has as defaults; what an object holds."""
    if isinstance(value, functools.partial):
        yield from (*value.args, *value.keywords.values(), *held_by(value.func))
        return
    owner = getattr(value, "__self__", value)
    yield from (owner, *getattr(owner, "__dict__", {}).values())
    function = getattr(value, "__func__", value)
    if not isinstance(function, FunctionType):
        function = inspect.getattr_static(type(value), "__call__", None)
    if isinstance(function, FunctionType):
        yield from _named_by(function)


def _named_by(function: FunctionType) -> Iterator[Any]:
    """What a function has as defaults, names as globals (also of modules), or closes over."""
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    names = [*dict.fromkeys(_names(function.__code__))]
    named = [function.__globals__[name] for name in names if name in function.__globals__]
    yield from named
    modules = [vars(each) for each in named if isinstance(each, ModuleType)]
    yield from (module[name] for module in modules for name in names if name in module)
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a name that is not assigned yet
            yield cell.cell_contents


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, of its comprehensions and of its inner functions."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names(code: CodeType) -> Iterator[str]:
    return (name for each in _codes(code) for name in each.co_names)


@dataclass(frozen=True, slots=True)
class AsyncNeeds:
    """What ties code to one event loop.

    It holds loops (the nearest first); objects with which tasks signal to each other; others that
    all its calls share, such as clients and locks.
    """

    loops: tuple[asyncio.AbstractEventLoop, ...]
    has_signals: bool
    shares: bool


def async_needs(code: Any) -> AsyncNeeds:
    """What ties the code to one event loop.

    LMs, classes, data, and what belongs to the standard library or a notebook tie it to none.
    """
    found = [*_reached(code)]
    loops = tuple(each for each in found if issubclass(type(each), asyncio.AbstractEventLoop))
    has_signals = any(issubclass(type(each), SIGNALS) for each in found)
    shares = any(hasattr(type(each), "__aenter__") for each in found)
    return AsyncNeeds(loops, has_signals, has_signals or shares)


def _reached(code: Any) -> Iterator[Any]:
    """What the code leads to, the nearest first."""
    waiting: deque[Iterable[Any]] = deque([held_by(code)] if _is_followed(code) else [])
    seen = {id(code): code}  # the objects too, so that no other one gets the id of one
    while waiting and len(seen) < MOST_OBJECTS:
        for held in waiting.popleft():
            if id(held) not in seen and _is_followed(held):
                seen[id(held)] = held
                yield held
                is_function = issubclass(type(held), FUNCTIONS)
                waiting.append(held_by(held) if is_function else get_referents(held))


def _is_followed(held: Any) -> bool:
    """Whether it is an event loop, or may lead to one, unlike numbers, texts, LMs, other data."""
    kind = type(held)
    if not is_tracked(held) or not _is_followed_kind(kind):  # type: ignore[arg-type]
        return False
    if issubclass(kind, (list, dict, tuple, set, frozenset)):
        return len(held) <= MOST_ITEMS
    return not issubclass(kind, FunctionType) or _is_followed_module(held.__module__)


@functools.lru_cache
def _is_followed_kind(kind: type) -> bool:
    is_lm = any(each.__name__ == "BaseLM" for each in kind.__mro__)  # of DSPy
    if is_lm or issubclass(kind, (type, ModuleType)):
        return False
    return issubclass(kind, asyncio.AbstractEventLoop) or _is_followed_module(kind.__module__)


def _is_followed_module(name: Any) -> bool:
    return str(name).partition(".")[0] not in NOT_FOLLOWED


def is_async(code: Any) -> bool:
    """Whether a function surely hands work to an event loop, or is such work itself."""
    while isinstance(code, functools.partial):
        code = code.func
    called = code if inspect.isroutine(code) else getattr(code, "__call__", None)  # noqa: B004
    function = inspect.unwrap(getattr(called, "__func__", called))  # type: ignore[arg-type]
    if not isinstance(function, FunctionType):
        return False
    inner = [*_codes(function.__code__)]
    names = {*_names(function.__code__)}
    if any(each.co_flags & inspect.CO_COROUTINE for each in inner) or names & TO_LOOPS:
        return True
    held = [each for each in _named_by(function) if not isinstance(each, type | ModuleType)]
    held.append(getattr(called, "__self__", None))
    return any(
        inspect.iscoroutinefunction(inspect.getattr_static(type(each), name, None))
        for each in held
        for name in names
    ) or any(map(inspect.iscoroutinefunction, held))
