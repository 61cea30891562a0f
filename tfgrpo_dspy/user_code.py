"""The user's programs and code: their parts and copies, identity, and the loop of async code.

All async programs, tools, metrics and callbacks of a run are awaited in one event loop: that of who
awaits `acompile`, or the only one that runs beside it, else one that this process has for all its
runs. Rollouts are made in threads, which wait for it.

The identity of programs, LMs, metrics and data is what a result depends on, as JSON-like values.
Code counts by its source, and by the functions and plain constants of the user's own modules that
it names. What has no source, and objects that are no plain values, count by their name. Never in
an identity: API keys, headers, addresses in memory, clocks. Programs and LMs are known by their
shape only, so that no DSPy has to be imported.
"""

import asyncio
import copy
import dis
import enum
import functools
import gc
import hashlib
import inspect
import itertools
import json
import os
import re
import sys
import textwrap
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from importlib import import_module
from importlib.util import find_spec
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Concatenate, ParamSpec, TypeVar

import pydantic

from tfgrpo_dspy.errors import LibraryError, RunStopped, UserCodeError, described, written
from tfgrpo_dspy.text import without_secret_names

ProgramT = TypeVar("ProgramT")
RESULTS = "detailed_results"  # what GEPA and this package set on the program that they return
_REFUSING: set[type] = set()  # types that refused to be copied, which may take long to find out
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
GROWING = (list, deque, dict, set)


def named_predictors(program: Any) -> list[tuple[str, Any]]:
    """The program's predictors by name, as DSPy lists them (frozen sub-modules are left out).

    Raises LibraryError: it is no program.
    """
    if not hasattr(program, "named_predictors") or isinstance(program, type):
        raise LibraryError(f"program={program!r:.100}: pass a dspy.Module, not its file or class.")
    return list(program.named_predictors())


def instructions_of(before: Any, after: Any) -> dict[str, tuple[str, str]]:
    """The instructions of each predictor in a program and in a copy of it."""
    pairs = zip(named_predictors(before), named_predictors(after), strict=True)
    return {
        name: (p.signature.instructions, q.signature.instructions) for (name, p), (_, q) in pairs
    }


def copy_program(program: ProgramT, lm_for: Callable[[Any], Any] = lambda lm: lm) -> ProgramT:
    """A deep copy; in place of each LM stands what `lm_for` gives for it, by default the same LM.

    Results of an earlier optimizer stay behind. What refuses to be copied (a lock, a connection, an
    event loop) is shared, but never a module (DSPy's own copy would share the predictors of a list
    that holds such a thing), nor a tool, whose function is shared.
    """
    modules = _modules_of(program)
    held_things = _held_by(modules)
    shared: dict[int, Any] = {id(loop): loop for loop in (LOOP.get(), running_loop()) if loop}
    for held in held_things:
        if is_lm(held):
            shared[id(held)] = lm_for(held)
        elif type(held).__module__ == "dspy.primitives.example":  # such as a demo
            if all(type(value) is str for value in vars(held)["_store"].values()):
                shared[id(held)] = held.copy()
        elif type(held) in _REFUSING:
            shared[id(held)] = _shared(held)
    try:
        copied = copy.deepcopy(program, dict(shared))
    except Exception:  # noqa: BLE001 - anything that a program holds may refuse to be copied
        before = dict(shared)
        for held in held_things:
            try:
                copy.deepcopy(held, dict(before))
            except Exception as error:  # noqa: BLE001 - as above
                if isinstance(error, TypeError):  # such as that of a lock; another error may pass
                    _REFUSING.add(type(held))
                shared[id(held)] = _shared(held)
        copied = copy.deepcopy(program, dict(shared))
    for module in _modules_of(copied) if any(RESULTS in vars(m) for m in modules) else ():
        results = vars(module).get(RESULTS)  # a program may use the name, too
        is_read = isinstance(results, dict) and "ended_because" in results
        if is_read or type(results).__module__.startswith(("tfgrpo_dspy.", "dspy.teleprompt.")):
            del vars(module)[RESULTS]
    return copied


def _shared(held: Any) -> Any:
    is_tool = hasattr(held, "func") and hasattr(held, "model_copy")
    return held.model_copy() if is_tool else held


def copy_to_change(program: ProgramT) -> ProgramT:
    """A copy that may be changed. Raises LibraryError: it shares a predictor with the program."""
    originals, copied = dict(named_predictors(program)), copy_program(program)
    if kept := [name for name, each in named_predictors(copied) if each is originals.get(name)]:
        fault = f"program={type(program).__name__}: a copy of it has the same predictor {kept[0]!r}"
        way = "let __deepcopy__ of the module that holds it give a new module"
        raise LibraryError(f"{fault}, which would be changed with the copy; {way}.")
    return copied


def _modules_of(program: Any) -> list[Any]:
    return [module for _, module in program.named_sub_modules()]


def shared_sizes(program: Any) -> dict[str, int]:
    """By name, the size of each list, deque, dict and set that copies of the program may share.

    Classes hold them, and objects that cannot be copied; the program's code names others.
    """
    held = (*(modules := _modules_of(program)), *_held_by(modules))
    roots = [(type(o).__qualname__, getattr(o, "func", o)) for o in held if not is_lm(o)]
    return {name: _size(each) for name, each in reached(roots) if isinstance(each, GROWING)}


def _size(value: Any) -> int:
    inside = {id(value): value}  # each once: it may hold itself
    for each in (waiting := [value]):  # it grows
        parts = [*(each.values() if isinstance(each, dict) else each)]
        new = {id(part): part for part in parts if isinstance(part, GROWING)}
        waiting += [part for key, part in new.items() if key not in inside]
        inside |= new
    return sum(map(len, waiting))


def language_models(program: Any) -> list[Any]:
    """Every LM that a module of the program holds, as an attribute or in a list or dict of one."""
    return [held for held in _held_by(_modules_of(program)) if is_lm(held)]


def is_lm(value: Any) -> bool:
    """True if it is an LM, of DSPy or like one."""
    return hasattr(value, "num_retries") and callable(getattr(value, "copy", None))


def _held_by(modules: Sequence[Any]) -> list[Any]:
    """The objects that these modules hold besides modules, once each, where DSPy looks."""
    seen = {id(module) for module in modules}
    lms: list[Any] = []
    waiting: list[Any] = [vars(module) for module in modules]
    while waiting:
        container = waiting.pop(0)
        for item in container.values() if isinstance(container, dict) else container:
            if id(item) not in seen:
                seen.add(id(item))
                (waiting if isinstance(item, dict | list | tuple) else lms).append(item)
    return lms


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
    file, top = getattr(sys.modules.get(module), "__file__", None) or "", module.partition(".")[0]
    if module not in sys.modules and top not in LIBRARIES:
        with suppress(ImportError, ValueError):
            file = str(find_spec(top))
    is_installed = "site-packages" in file or "dist-packages" in file
    return not (is_installed or top in LIBRARIES)


def named_by(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The values that a function closes over, and names as globals or in the user's modules.

    These modules are imported here, if the function imports them.
    """
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it is not assigned yet
            yield name, cell.cell_contents
    names, attributes, imports = _names(function.__code__)
    values = {name: function.__globals__[name] for name in names if name in function.__globals__}
    for path in imports:
        with suppress(Exception, SystemExit):  # it may never come so far, or name no text
            if is_users_own(function.__module__ if path[0] == "." else path):
                values[path] = import_module(path, function.__globals__.get("__package__"))
    for name, first in values.items():
        named, modules = {name: first}, list[Any]()
        for path in (paths := [name]):  # the user's modules, and those in them
            value = named[path]
            yield path, value
            is_module = isinstance(value, ModuleType) and is_users_own(value.__name__)
            is_class = isinstance(value, type) and is_users_own(value.__module__)
            if (is_module or is_class) and value not in modules:
                modules.append(value)
                held = [(f"{path}.{a}", vars(value)[a]) for a in attributes if a in vars(value)]
                is_plain = [is_module or type(v) in CONSTANTS or _is_set_later(v) for _, v in held]
                within = dict(itertools.compress(held, is_plain))
                named |= within
                paths += within


@functools.lru_cache(10_000)
def _names(code: CodeType) -> tuple[list[str], list[str], list[str]]:
    """The globals, the attributes and the imported modules that a function, or one in it, names."""
    names, attributes, imports, codes = list[str](), list[str](), list[str](), [code]
    for one in codes:
        codes += [each for each in one.co_consts if isinstance(each, CodeType)]
        steps = [each for each in dis.get_instructions(one) if each.opname != "EXTENDED_ARG"]
        names += [str(each.argval) for each in steps if each.opname == "LOAD_GLOBAL"]
        attributes += one.co_names
        for k, step in enumerate(steps):
            if step.opname == "IMPORT_NAME":
                level, taken, module = (each.argval for each in steps[k - 2 : k + 1])
                path = "." * level + module
                imports += [path, *(f"{path}.{name}" for name in taken or ())]
            elif step.opname[:5] == "LOAD_" and step.argval in ("import_module", "__import__"):
                pairs = zip(steps[k + 1 : k + 3], steps[k + 2 : k + 4], strict=False)
                texts = [a.argval for a, b in pairs if "CONST" in a.opname and "CALL" in b.opname]
                imports.append(texts[0] if texts else "")  # "": a name that is computed
    return [*dict.fromkeys(names)], [*dict.fromkeys(attributes)], [*dict.fromkeys(imports)]


def reached(roots: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """By name the roots, and what they and the user's code among it hold, name or have as defaults.

    The package of the first root is the user's, too. Programs and LMs are only yielded.
    """
    waiting, seen = [*roots], set[int]()
    package = {_module_of(roots[0][1]).partition(".")[0]} - LIBRARIES

    def is_own(value: Any) -> bool:
        module = _module_of(value)
        return module.partition(".")[0] in package or is_users_own(module)

    for place, (name, value) in enumerate(waiting):  # it grows
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield name, value
        if isinstance(value, functools.partial):
            waiting += [(name, v) for v in (value.func, *value.args, *value.keywords.values())]
        elif isinstance(value, MethodType | staticmethod | classmethod):
            owner = getattr(value, "__self__", None)
            waiting += [(name, value.__func__), (type(owner).__qualname__, owner)]
        elif place >= len(roots) and not is_own(value):
            continue
        elif isinstance(value, FunctionType):
            defaults = (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
            waiting += [*named_by(value), *((name, each) for each in defaults)]
            waiting += [(f"{name}.{key}", each) for key, each in [*vars(value).items()]]
        else:  # rollouts that are still under way may change what is looked at
            kind = value if isinstance(value, type) else type(value)
            every = (value, *filter(is_own, kind.__mro__))
            holders = [getattr(each, "__dict__", {}) for each in every]
            is_closed = hasattr(kind, "named_sub_modules") or "num_retries" in holders[0]
            if place < len(roots) or not is_closed:
                held = [pair for each in holders for pair in [*each.items()]]
                waiting += [(f"{name}.{key}", each) for key, each in held]


def _module_of(value: Any) -> str:
    kind = value if isinstance(value, type | FunctionType) else type(value)
    return str(kind.__module__)


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

    async def guarded() -> Result:
        try:
            return await awaitable
        except SystemExit as error:  # it would end the loop
            raise UserCodeError(described(error)) from error

    done = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(guarded(), loop))
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


def settled(returned: Any) -> Any:
    """The value that code returned; of an awaitable its result."""
    return asyncio.run(in_loop(returned)) if inspect.isawaitable(returned) else returned


def awaited(
    method: Callable[Concatenate[Owner, Arguments], Result],
) -> Callable[Concatenate[Owner, Arguments], Coroutine[Any, Any, Result]]:
    """The method for async code, with the same signature."""

    @functools.wraps(method)
    async def run(self: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        is_cancelled, context = threading.Event(), copy_context()
        context.run(CANCELLED.set, is_cancelled)
        context.run(LOOP.set, asyncio.get_running_loop())
        executor = futures.ThreadPoolExecutor(1, "tfgrpo")
        work: Callable[[], Result] = functools.partial(getattr(self, name), *args, **kwargs)
        ended, cancelled = asyncio.wrap_future(executor.submit(context.run, work)), None
        executor.shutdown(wait=False)
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


def check_cancelled() -> None:
    """Raises KeyboardInterrupt: the task that awaits this run was cancelled."""
    is_cancelled = CANCELLED.get()
    if is_cancelled is not None and is_cancelled.is_set():
        raise KeyboardInterrupt


NOT_COUNTED = frozenset({"history", "callbacks", RESULTS, "format_demos", "format_field_structure"})
"""Attributes of modules, LMs and adapters that do not change what they answer."""
NOT_OF_PREDICTORS = frozenset({"stage", "traces", "train", "fields"})
"""Attributes of DSPy's predictors besides: a random name, logs of other optimizers."""
LM_PLUMBING = frozenset({"timeout", "num_retries", "cache", "rollout_id", "seed", "n_workers"})
"""Attributes of LMs that do not change what they answer, or that each sample sets anew."""
ENDPOINT = re.compile(
    r"^(api_base|base_url|api_version|organization|project|host|port|server"
    r"|(\w+_)?(endpoint|region|region_name|location)|vertex_project)$"
)
"""Names of where an LM is reached. A model is the same on another port, account or server."""
_SURELY_SECRET = re.compile(
    r"^_*(\w+_)?(api_?key|password|headers|authorization|bearer"
    r"|(access|auth|refresh|hf|session)_token)$",
    re.IGNORECASE,
)
"""Names of secrets in what a program or a metric holds. `key`, `header`, `secret_answer` are none
there: results depend on them."""
PLAIN = ("builtins", "datetime", "decimal", "re")  # modules whose values their `repr` tells
SILENT = {"builtins", "dataclasses", "typing", "logging", "_thread"}
SILENT |= {"dspy", "pydantic", "tfgrpo_dspy"}
"""Modules of whose values nobody is told that they are known by name only."""
HIDING = {"", "eval", "exec", "open", "read_text", "read_bytes", "globals", "environ", "getenv"}
HIDING |= {"connect", "run_path", "subprocess"}
"""What code names that does more than its source says; "": it imports a name that it computes."""
CONSTANTS = {bool, int, float, str}  # of classes; rollouts may fill others
HOLDING = (Mapping, list, tuple, set, frozenset, enum.Enum)  # kinds whose class may say more
MAX_DEPTH = 100


def digest(*parts: Any) -> str:
    """A hash of JSON-like values: 32 hexadecimal digits, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def without_addresses(text: str) -> str:
    """The text of a value, without its address in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


class Identities:
    """The identities of what one run depends on; rollouts that change a thing do not change its.

    A tool, say, that closes over a cache is shared by all rollouts.
    """

    def __init__(self) -> None:
        self.by_name = set[str]()  # names of what is known by its name only
        self.path = list[int]()  # ids of what is being looked at, outermost first
        self._first = dict[int, tuple[Any, str]]()

    def of(self, value: Any) -> Any:
        """The identity of a program, a metric, an LM, an example, or of anything they hold."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if len(self.path) > MAX_DEPTH:
            return self._named(f"something nested deep in a {type(value).__name__}")
        if id(value) in self.path:
            return ["itself", len(self.path) - self.path.index(id(value))]
        self.path.append(id(value))
        try:
            if callable(value):
                return self._code(value)
            is_own = isinstance(value, HOLDING) and is_users_own(type(value).__module__)
            return [self.of(type(value)), self._data(value)] if is_own else self._data(value)
        finally:
            self.path.pop()

    def whole(self, value: Any) -> Any:
        """An object by its class and by what it holds, in its dict and in its slots."""
        slots = [name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ())]
        held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        held |= getattr(value, "__dict__", {})  # DSPy logs a warning where `module.forward` is read
        others = NOT_COUNTED | (NOT_OF_PREDICTORS if hasattr(value, "demos") else set())
        state = {n: each for n, each in held.items() if n not in others and n[:2] != "__"}
        return [self.of(type(value)), self.of(state)]

    def _once(self, value: Any, look: Callable[[Any], Any]) -> str:
        """The digest of what `look` gave at first, whatever rollouts have made of it since."""
        if id(value) not in self._first:
            self._first[id(value)] = value, digest(look(value))
        return self._first[id(value)][1]

    def _named(self, thing: Any) -> str:
        self.by_name.add(name := thing if isinstance(thing, str) else _name_of(thing))
        return name

    def _data(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, Mapping) or hasattr(kind, "with_inputs"):  # of an example its fields
            pairs = ((written(name), item) for name, item in value.items())
            return {name: self.of(item) for name, item in pairs if not _SURELY_SECRET.search(name)}
        if isinstance(value, list | tuple):
            return [self.of(item) for item in value]
        if isinstance(value, set | frozenset):
            return sorted(json.dumps(self.of(item)) for item in value)
        if isinstance(value, enum.Enum):
            return [_name_of(kind), value.name]
        names = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", None)
        if names:
            fields = {name: getattr(value, name, None) for name in names}
            return self._once(value, lambda _: [self.of(kind), self.of(fields)])
        if (fingerprint := getattr(value, "fingerprint", None)) is not None:  # as of an LM's engine
            return [_name_of(kind), str(fingerprint() if callable(fingerprint) else fingerprint)]
        if kind.__module__ in PLAIN:
            return without_addresses(repr(value))
        return _name_of(kind) if _is_silent(kind) else [self._named(kind), self.of(kind)]

    def _code(self, value: Any) -> Any:
        if is_lm(value):
            return self._lm(value)
        if _is_signature(value):
            return signature_identity(value)
        if isinstance(value, type | BuiltinFunctionType):
            is_own = isinstance(value, type) and is_users_own(value.__module__)
            return self._once(value, self._class) if is_own else _name_of(value)
        if isinstance(value, functools.partial):
            parts = [value.func, value.args, value.keywords]
            return self._once(value, lambda _: ["partial", *map(self.of, parts)])
        if isinstance(value, MethodType):
            return ["method", value.__name__, self._once(value.__self__, self.whole)]
        if isinstance(value, FunctionType):
            return self._once(value, self._function)
        if hasattr(value, "__wrapped__"):  # wrapped by an object, such as `functools.lru_cache`
            return self.of(value.__wrapped__)
        if hasattr(value, "named_predictors"):  # of a module each rollout has its own
            return self.whole(value)
        is_known = is_users_own(type(value).__module__) or _is_silent(type(value))
        return self._once(value, self.whole) if is_known else self._named(type(value))

    def _function(self, function: FunctionType) -> Any:
        code, parts = function.__code__, list[Any]()
        if code.co_name == "<lambda>":  # several on one line have the same source
            plain = [value for value in code.co_consts if not isinstance(value, CodeType)]
            parts = [code.co_code.hex(), code.co_names, plain]
        parts += vars(function)["registry"].values() if hasattr(function, "dispatch") else ()
        held = [parts, function.__defaults__, function.__kwdefaults__, self._names_in(function)]
        return [_name_of(function), self._source(function), self.of(held)]

    def _class(self, kind: type) -> Any:
        """A class of the user's and its bases: source, and what their methods name."""
        parts, used = list[Any](), set[str]()
        for base in (each for each in kind.__mro__ if is_users_own(each.__module__)):
            attributes = vars(base).values()
            methods = [getattr(each, "fget", getattr(each, "func", each)) for each in attributes]
            named = dict(pair for method in methods for pair in self._names_in(method).items())
            functions = [getattr(each, "__func__", each) for each in methods]
            codes = [each.__code__ for each in functions if isinstance(each, FunctionType)]
            used |= {name for code in codes for name in _names(code)[1]}
            parts.append([_name_of(base), self._source(base), self.of(named)])
        held = {name: inspect.getattr_static(kind, name, None) for name in sorted(used)}
        plain = {name: value for name, value in held.items() if type(value) in CONSTANTS}
        later = {name: self.of(value) for name, value in held.items() if _is_set_later(value)}
        return [*parts, *filter(None, (plain, later))]

    def _names_in(self, method: Any) -> dict[str, Any]:
        """The values that a function closes over, and names in the user's own modules, by name."""
        function = getattr(method, "__func__", method)
        named = named_by(function) if isinstance(function, FunctionType) else ()
        if named and any(not HIDING.isdisjoint(each) for each in _names(function.__code__)):
            self._named(f"what {_name_of(function)} reads or evaluates")
        return {name: value for name, value in named if name[:2] != "__" and _is_data(value)}

    def _lm(self, lm: Any) -> Any:
        """An LM: class, model, sampling parameters, engine; not where it is reached, no key."""
        others = NOT_COUNTED | LM_PLUMBING
        held, parameters = (
            {k: v for k, v in values.items() if k not in others and not ENDPOINT.match(k)}
            for values in (vars(lm), getattr(lm, "kwargs", {}))
        )
        for name, value in parameters.items():  # of a URL scheme, host, port and path: no key
            if isinstance(value, str):
                parameters[name] = re.sub(r"^(\w+://)([^/]*@)?([^?#]*).*", r"\1\3", value)
        held = {name: value for name, value in held.items() if name[0] != "_"}
        held["kwargs"] = {name: value for name, value in parameters.items() if value is not None}
        held["engine"] = getattr(lm, "engine", None)
        return self.of([type(lm), without_secret_names(held)])

    def _source(self, code: Any) -> str | None:
        text = _source_text(getattr(code, "__code__", code))
        return self._named(code) and None if text is None else text


def _is_data(value: Any) -> bool:
    """True for a value that counts where code names it: no module, no code of a library."""
    is_code = isinstance(value, FunctionType | BuiltinFunctionType | type)
    if is_code and not _is_signature(value):
        is_generated = value.__qualname__.startswith("__create_fn__")  # by dataclasses
        return is_users_own(str(value.__module__)) and not is_generated
    return not isinstance(value, ModuleType)


def _is_set_later(value: Any) -> bool:
    """True for an attribute that the source of its class may not show, and no rollout fills."""
    is_function = isinstance(value, FunctionType) and "." not in value.__qualname__
    return is_function or isinstance(value, tuple | frozenset)


def _is_silent(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in SILENT


def _is_signature(value: Any) -> bool:
    return hasattr(value, "instructions") and hasattr(value, "output_fields")


def signature_identity(signature: Any) -> Any:
    """The instructions and the fields of a signature."""
    fields = []
    for name, info in signature.fields.items():
        kind, extra = info.annotation, (info.json_schema_extra or {}).items()
        texts = {k: without_addresses(str(v)) for k, v in extra}
        fields.append([name, without_addresses(str(kind)), schema_of(kind), texts])
    return [signature.instructions, fields]


def schema_of(annotation: Any) -> Any:
    """The JSON schema of a type; None where it has none."""
    try:
        return _schema(annotation)
    except TypeError:  # it holds a dict, say, and cannot be looked up
        return _schema.__wrapped__(annotation)


@functools.lru_cache(maxsize=1000)
def _schema(annotation: Any) -> Any:
    try:
        return pydantic.TypeAdapter(annotation).json_schema()
    except Exception:  # noqa: BLE001 - a user's own type may raise anything
        return None


@functools.lru_cache(maxsize=10_000)
def _source_text(code: Any) -> str | None:
    try:
        return textwrap.dedent(inspect.getsource(code)).strip()
    except (OSError, TypeError, SyntaxError):
        return None


def _name_of(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
