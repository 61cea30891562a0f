"""What the user's code refers to, as far as Python tells: closures, globals, attributes, items."""

import asyncio
import dis
import functools
import inspect
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from gc import get_referents, is_tracked
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

MOST_OBJECTS = 2_000  # that are looked at on the way to event loops, the nearest first
MOST_FUNCTIONS = 50  # that are read, to see which names they set
MOST_ITEMS = 500  # a longer list or mapping holds data
FOLLOWED = {"builtins", "asyncio", "_asyncio", "collections", "functools", "contextlib"}
"""Of the standard library, the modules whose objects may lead to a loop that the code needs."""
NOT_FOLLOWED = {"IPython", "ipykernel", "ipywidgets", "traitlets", "tornado", "zmq"} | (
    sys.stdlib_module_names - FOLLOWED
)
FUNCTIONS = (FunctionType, MethodType, functools.partial)
SIGNALS = (asyncio.Queue, asyncio.Event, asyncio.Condition)
DATA = (bool, int, float, str, bytes, list, tuple, dict, set)
STORES = ("STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR", "STORE_SUBSCR")
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
    """What ties code to one event loop."""

    code: Any
    loops: tuple[asyncio.AbstractEventLoop, ...]  # that it holds, the nearest first
    has_signals: bool  # objects with which tasks signal to each other
    has_shared: bool  # others that all its calls share, such as clients and locks

    @property
    def shares(self) -> bool:
        """Whether its calls share such objects, also those that the first call will make."""
        return self.has_signals or self.has_shared or _makes_later(self.code)


def async_needs(code: Any) -> AsyncNeeds:
    """What ties the code to one event loop: not LMs, classes, data, or the standard library."""
    names = [*_reached(code)]
    loops = tuple(each for each in names if issubclass(type(each), asyncio.AbstractEventLoop))
    has_signals = any(issubclass(type(each), SIGNALS) for each in names)
    has_shared = any(hasattr(type(each), "__aenter__") for each in names)
    return AsyncNeeds(code, loops, has_signals, has_shared)


def _makes_later(code: Any) -> bool:
    """Whether a call makes what later calls find: in a name not set yet, a dict, or a cache.

    Numbers, texts and other data that are set already, such as a count, are tied to no loop.
    """
    waiting, seen = deque([code]), set[int]()
    while waiting and len(seen) < MOST_FUNCTIONS:
        called: Any = waiting.popleft()
        if isinstance(called, functools._lru_cache_wrapper):  # noqa: SLF001 - it has no other name
            return True
        called = called if inspect.isroutine(called) else getattr(called, "__call__", None)  # noqa: B004
        function, owner = getattr(called, "__func__", called), getattr(called, "__self__", None)
        if id(function) in seen or not _is_of_user(function):
            continue
        seen.add(id(function))
        named = [owner, *_attributes(owner).values(), *_named_by(function)]
        if _sets(function, named):
            return True
        pairs = ((held, name) for held in named for name in _names(function.__code__))
        methods = ((inspect.getattr_static(type(held), name, None), held) for held, name in pairs)
        waiting += filter(callable, named)
        waiting += (MethodType(each, held) for each, held in methods if _is_of_user(each))
    return False


def _is_of_user(function: Any) -> bool:
    module = str(getattr(function, "__module__", ""))
    is_function = isinstance(function, FunctionType)
    return is_function and not module.startswith("dspy.") and _is_followed_module(module)


def _attributes(holder: Any) -> Mapping[str, Any]:
    return {} if isinstance(holder, ModuleType) else getattr(holder, "__dict__", {})


def _sets(function: FunctionType, named: Iterable[Any]) -> bool:
    """Whether it sets a global, a name that it closes over, an attribute, or an item of a dict."""
    stored, holders = _stored(function.__code__), [*filter(None, map(_attributes, named))]
    values = [function.__globals__.get(name) for name in stored["STORE_GLOBAL"]]
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for _, cell in (pair for pair in cells if pair[0] in stored["STORE_DEREF"]):
        values.append(None if cell == CellType() else cell.cell_contents)
    for name in stored["STORE_ATTR"] if holders else ():
        values += [held[name] for held in holders if name in held] or [None]
    sets_item = bool(stored["STORE_SUBSCR"]) and any(isinstance(each, dict) for each in named)
    return sets_item or not all(isinstance(value, DATA) for value in values)


@functools.lru_cache
def _stored(code: CodeType) -> dict[str, set[str]]:
    """The names that the code sets, by the kind of the operation."""
    stored: dict[str, set[str]] = {name: set() for name in STORES}
    for instruction in (each for inner in _codes(code) for each in dis.get_instructions(inner)):
        if instruction.opname in stored:
            stored[instruction.opname].add(str(instruction.argval))
    if "setdefault" in _names(code):
        stored["STORE_SUBSCR"].add("setdefault")
    return stored


def _reached(code: Any) -> Iterator[Any]:
    """The objects that the code refers to: directly first, then through others."""
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


def is_coroutine_function(code: Any) -> bool:
    """Whether what it returns, a function or an object that is called, has to be awaited."""
    return any(map(inspect.iscoroutinefunction, (code, getattr(code, "__call__", None))))  # noqa: B004


def without_partials(code: Any) -> Any:
    """The function in a partial, which may stand in others; all else as it is."""
    while isinstance(code, functools.partial):
        code = code.func
    return code


def is_async(code: Any) -> bool:
    """Whether a function surely hands work to an event loop, or is such work itself."""
    code = without_partials(code)
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
