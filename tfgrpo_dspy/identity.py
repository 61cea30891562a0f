"""The identity of programs, LMs, metrics, data: what a result depends on, as JSON-like values.

Code counts by its source; what has no source, and objects that are no plain values, count by their
name, and are collected in `Unseen`, so that the run can say so once. Never in an identity: API
keys, headers, addresses in memory, absolute paths, clocks. Programs and LMs are known by their
shape only, so that no DSPy has to be imported.
"""

import enum
import functools
import hashlib
import inspect
import json
import re
import textwrap
import types
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pydantic

from tfgrpo_dspy.errors import written
from tfgrpo_dspy.experience.programs import is_lm
from tfgrpo_dspy.redaction import without_secret_names

NOT_IN_IDENTITY = frozenset({"history", "callbacks", "detailed_results"})
"""What modules and LMs hold that does not change what they answer."""
NOT_OF_PREDICTORS = frozenset({"stage", "traces", "train", "fields"})
"""What DSPy's predictors hold besides: a random name, logs of other optimizers."""
LM_PLUMBING = frozenset({"timeout", "num_retries", "cache", "rollout_id", "seed", "n_workers"})
"""What LMs hold that does not change what they answer, or that each sample sets anew."""
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
MAX_DEPTH = 30
LONGEST_INT = 2_000  # bits; Python writes no decimals of numbers that are much longer


@dataclass
class Unseen:
    """Names of what identities know by name only, and what was looked up with it."""

    names: set[str] = field(default_factory=set)
    path: list[int] = field(default_factory=list)
    """Ids of the objects that are being looked at, outermost first, to stop at cycles."""
    first: dict[int, tuple[Any, "Look", list[int], Any]] = field(default_factory=dict)
    """By id, each thing that rollouts may share, where it was, and its identity at first."""

    def add(self, name: str) -> str:
        """Remember the name and give it back."""
        self.names.add(name)
        return name

    def once(self, value: Any, look: "Look") -> Any:
        """The identity that `look` gave at first, whatever rollouts have made of the value since.

        A tool, say, that closes over a cache is shared by all rollouts. What an earlier run has
        left as it is now counts as what that run began with.
        """
        if id(value) not in self.first:
            identity = look(value, self)
            left, before = _LEFT_BEHIND.get(id(value), ("", None))
            identity = before if left == digest(identity) else identity
            self.first[id(value)] = (value, look, [*self.path], identity)
        return self.first[id(value)][-1]

    def leave(self) -> None:
        """Note what has become of all that was looked up, for the next run of this process."""
        now = Unseen()
        for value, look, now.path, before in self.first.values():
            with suppress(RuntimeError):  # a rollout that was dropped is changing it
                if (after := look(value, now)) != before:
                    with suppress(TypeError):  # its type allows no weak reference
                        weakref.finalize(value, _LEFT_BEHIND.pop, id(value), None).atexit = False
                        _LEFT_BEHIND[id(value)] = (digest(after), before)


Look = Callable[[Any, Unseen], Any]
_LEFT_BEHIND: dict[int, tuple[str, Any]] = {}
"""By the id of what a run has changed, as long as that lives: the digest of what the run left, and
the identity that it began with."""


def digest(*parts: Any) -> str:
    """A hash of JSON-like values: 32 hexadecimal digits, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def without_addresses(text: str) -> str:
    """The text of a value, without its address in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def object_identity(value: Any, unseen: Unseen) -> Any:
    """The identity of a program, a metric, an LM, an example, or of anything that these hold."""
    if type(value) is int and value.bit_length() > LONGEST_INT:
        return hex(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if len(unseen.path) > MAX_DEPTH:
        return unseen.add(f"something nested deep in a {type(value).__name__}")
    if id(value) in unseen.path:
        return ["itself", len(unseen.path) - unseen.path.index(id(value))]
    unseen.path.append(id(value))
    try:
        return _code(value, unseen) if callable(value) else _data(value, unseen)
    finally:
        unseen.path.pop()


def instance_identity(value: Any, unseen: Unseen) -> Any:
    """An object by its class and by what it holds, in its dict and in its slots."""
    slots = [vars(kind).get("__slots__") or () for kind in type(value).__mro__]
    names = {name for slot in slots for name in ([slot] if isinstance(slot, str) else slot)}
    names |= vars(value).keys() if hasattr(value, "__dict__") else set()
    names -= NOT_IN_IDENTITY
    if hasattr(value, "demos"):
        names -= NOT_OF_PREDICTORS
    held = getattr(value, "__dict__", {})  # DSPy logs a warning where `module.forward` is read
    missing = {n: getattr(value, n) for n in names - held.keys() if hasattr(value, n)}
    state = {n: each for n, each in {**held, **missing}.items() if n in names and n[:2] != "__"}
    if getattr(state.get("format_demos"), "__module__", "") == "tfgrpo_dspy.dspy_seam":
        del state["format_demos"]  # in a rollout, the adapter keeps messages
    return [object_identity(type(value), unseen), object_identity(state, unseen)]


def _data(value: Any, unseen: Unseen) -> Any:
    kind = type(value)
    if isinstance(value, Mapping) or hasattr(kind, "with_inputs"):  # of an example its fields
        return {
            written(name): object_identity(item, unseen)
            for name, item in value.items()
            if not _SURELY_SECRET.search(written(name))
        }
    if isinstance(value, list | tuple):
        return [object_identity(item, unseen) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(object_identity(item, unseen)) for item in value)
    if isinstance(value, enum.Enum):
        return [_name_of(kind), value.name]
    names = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", None)
    if names is not None:  # of a pydantic model or a dataclass
        return unseen.once(value, _fields_identity)
    if getattr(value, "fingerprint", None) is not None:  # such as an LM's engine
        fingerprint = value.fingerprint
        return [_name_of(kind), str(fingerprint() if callable(fingerprint) else fingerprint)]
    if kind.__module__ in ("builtins", "datetime", "decimal", "re"):
        return without_addresses(repr(value))
    return _name_of(kind) if _is_library(kind) else unseen.add(_name_of(kind))


def _fields_identity(value: Any, unseen: Unseen) -> Any:
    """A pydantic model or a dataclass by its class and its fields."""
    kind = type(value)
    names = getattr(kind, "model_fields", None) or kind.__dataclass_fields__
    fields = {name: getattr(value, name, None) for name in names}
    return [object_identity(kind, unseen), object_identity(fields, unseen)]


def _code(value: Any, unseen: Unseen) -> Any:
    if is_lm(value):
        return _lm_identity(value, unseen)
    if isinstance(value, type):
        is_signature = hasattr(value, "instructions") and hasattr(value, "output_fields")
        return _signature_identity(value) if is_signature else unseen.once(value, _class_identity)
    if isinstance(value, functools.partial):
        parts = ["partial", value.func, value.args, value.keywords]
        return unseen.once(value, lambda _, now: object_identity(parts, now))
    if isinstance(value, types.MethodType):
        return _method_identity(value, unseen)
    if isinstance(value, types.FunctionType):
        return unseen.once(value, _function_identity)
    if hasattr(value, "__wrapped__"):  # wrapped by an object, such as `functools.lru_cache`
        return object_identity(value.__wrapped__, unseen)
    if isinstance(value, types.BuiltinFunctionType):
        return _name_of(value)
    is_module = hasattr(value, "named_predictors")  # of which each rollout has its own
    return instance_identity(value, unseen) if is_module else unseen.once(value, instance_identity)


def _method_identity(method: types.MethodType, unseen: Unseen) -> Any:
    owner, look = method.__self__, instance_identity
    of_owner = object_identity(owner, unseen) if callable(owner) else unseen.once(owner, look)
    return ["method", method.__name__, of_owner]


def _function_identity(function: types.FunctionType, unseen: Unseen) -> Any:
    """A function: its name, source, defaults, and what it closes over."""
    code = function.__code__
    parts: list[Any] = []
    if code.co_name == "<lambda>":  # several on one line have the same source
        plain = [value for value in code.co_consts if not isinstance(value, types.CodeType)]
        parts = [code.co_code.hex(), code.co_names, plain]
    held = [parts, function.__defaults__, function.__kwdefaults__, _closure(function)]
    return [_name_of(function), _source(function, unseen), object_identity(held, unseen)]


def _class_identity(kind: type, unseen: Unseen) -> Any:
    """A class by its source, that of its bases, its closures; one of a library by its name."""
    parts = []
    for base in (each for each in kind.__mro__ if not _is_library(each)):
        methods = [each for each in vars(base).values() if isinstance(each, types.FunctionType)]
        closures = object_identity([_closure(method) for method in methods], unseen)
        parts.append([_name_of(base), _source(base, unseen), closures])
    return parts or _name_of(kind)


def _signature_identity(signature: Any) -> Any:
    fields = [
        [
            name,
            without_addresses(str(info.annotation)),
            schema_of(info.annotation),
            {k: without_addresses(str(v)) for k, v in (info.json_schema_extra or {}).items()},
        ]
        for name, info in signature.fields.items()
    ]
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


def _lm_identity(lm: Any, unseen: Unseen) -> Any:
    """An LM: class, model, sampling parameters, engine; not where it is reached, no key."""

    def counts(name: str) -> bool:
        return name not in NOT_IN_IDENTITY | LM_PLUMBING and not ENDPOINT.match(name)

    held = {k: v for k, v in vars(lm).items() if counts(k) and k[0] != "_"}
    parameters = {
        name: _without_url_secrets(value) if isinstance(value, str) else value
        for name, value in getattr(lm, "kwargs", {}).items()
        if counts(name) and value is not None
    }
    held |= {"kwargs": parameters, "engine": getattr(lm, "engine", None)}
    return object_identity([type(lm), without_secret_names(held)], unseen)


def _without_url_secrets(text: str) -> str:
    """Of a URL scheme, host, port and path; the rest may hold a key."""
    return re.sub(r"^(\w+://)([^/]*@)?([^?#]*).*", r"\1\3", text)


def _is_library(kind: type) -> bool:
    top = kind.__module__.partition(".")[0]
    return top in ("builtins", "dspy", "pydantic", "abc", "typing", "tfgrpo_dspy")


def _source(named: Any, unseen: Unseen) -> str | None:
    text = _source_text(getattr(named, "__code__", named))
    if text is None:
        unseen.add(_name_of(named))
    return text


@functools.lru_cache(maxsize=10_000)
def _source_text(code: Any) -> str | None:
    try:
        return textwrap.dedent(inspect.getsource(code)).strip()
    except (OSError, TypeError, SyntaxError):
        return None


def _name_of(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _closure(function: types.FunctionType) -> dict[str, Any]:
    """What the function closes over, by name."""
    values = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not set yet
            values[name] = cell.cell_contents
    return values
