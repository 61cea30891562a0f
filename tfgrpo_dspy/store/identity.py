"""What a record's key is made of: all that the result depends on, and nothing else.

Identities are JSON-like values. Code counts by its source; what has no source, and objects that
are no plain values, count by their name, and are collected in `Unseen`, so that the run can say
so once. Never in an identity: API keys, headers, addresses in memory, absolute paths, clocks.
Programs and LMs are known by their shape only, so that no DSPy has to be imported.
"""

import enum
import functools
import hashlib
import inspect
import json
import re
import textwrap
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pydantic

from tfgrpo_dspy.redaction import without_secret_names

NOT_IN_IDENTITY = frozenset({"history", "callbacks", "detailed_results", "lm"})
"""What modules hold that does not change what they answer; an LM has an entry of its own."""
NOT_OF_PREDICTORS = frozenset({"stage", "traces", "train", "fields"})
"""What DSPy's predictors hold besides: a random name, logs of other optimizers."""
LM_PLUMBING = frozenset({"timeout", "num_retries", "cache", "rollout_id", "seed", "n_workers"})
"""Arguments of an LM that do not change what it answers, or that each sample sets anew."""
_SURELY_SECRET = re.compile(
    r"^_*(\w+_)?(api_?key|password|headers|authorization|bearer"
    r"|(access|auth|refresh|hf|session)_token)$",
    re.IGNORECASE,
)
"""Names of secrets in what a program or a metric holds. `key`, `header`, `secret_answer` are none
there: results depend on them."""
LM_ATTRIBUTES = NOT_IN_IDENTITY | {"model", "model_type", "cache", "num_retries", "kwargs"}
LM_ATTRIBUTES |= {"provider", "launch_kwargs", "train_kwargs", "finetuning_model"}
LM_ATTRIBUTES |= {"use_developer_role"}
"""What every LM holds; an LM class of the user's own may hold more, on which answers depend."""
MAX_DEPTH = 12


@dataclass
class Unseen:
    """Names of what identities know by name only."""

    names: set[str] = field(default_factory=set)
    path: list[int] = field(default_factory=list)
    """What is being looked at, from the outside in: of what holds itself one round is enough."""

    def add(self, name: str) -> str:
        """Remember the name and give it back."""
        self.names.add(name)
        return name


def without_addresses(text: str) -> str:
    """The text of a value, without its address in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def digest(*parts: Any) -> str:
    """A hash of JSON-like values: 32 hexadecimal digits, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def object_identity(value: Any, unseen: Unseen, depth: int = 0) -> Any:
    """The identity of anything that a program, a metric or an LM may hold."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > MAX_DEPTH:
        return unseen.add(f"something nested deep in a {type(value).__name__}")
    if id(value) in unseen.path:
        return ["itself", len(unseen.path) - unseen.path.index(id(value))]
    unseen.path.append(id(value))
    try:
        return _held_identity(value, unseen, depth)
    finally:
        unseen.path.pop()


def _held_identity(value: Any, unseen: Unseen, depth: int) -> Any:  # noqa: C901, PLR0912
    """The identity of what is no plain value; the first case that fits counts."""

    def held(items: Iterable[Any]) -> list[Any]:
        return [object_identity(item, unseen, depth + 1) for item in items]

    if isinstance(value, Mapping):
        names = [name for name in value if not _SURELY_SECRET.search(str(name))]
        return dict(zip(map(str, names), held(value[name] for name in names), strict=True))
    if isinstance(value, list | tuple):
        return held(value)
    if isinstance(value, set | frozenset):
        return sorted(map(json.dumps, held(value)))
    if _is_lm(value):
        return lm_identity(value, unseen)
    if hasattr(type(value), "with_inputs"):  # an example, such as a demo
        return ["example", *held([dict(value.items())])]
    if isinstance(value, type):
        return class_identity(value, unseen)
    if hasattr(value, "named_predictors"):
        return program_identity(value, unseen)
    if callable(value):
        return callable_identity(value, unseen, depth + 1)
    fields = _fields_of(value)
    if fields:
        return [class_identity(type(value), unseen), *held([fields])]
    name = _name_of(type(value))
    if isinstance(value, enum.Enum):
        return [name, value.name]
    if type(value).__module__ in ("builtins", "datetime", "decimal", "re"):
        return without_addresses(repr(value))
    return name if _is_library(type(value)) else unseen.add(name)


def _fields_of(value: Any) -> dict[str, Any]:
    """The fields of a pydantic model or a dataclass."""
    kind = type(value)
    names = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {})
    return {name: getattr(value, name, None) for name in names}


def callable_identity(function: Any, unseen: Unseen, depth: int = 0) -> Any:
    """A function or callable object: its name, source, defaults, and what it closes over."""
    if depth > MAX_DEPTH:
        return unseen.add(_name_of(function))
    if isinstance(function, functools.partial):
        inner = callable_identity(function.func, unseen, depth + 1)
        given = object_identity([function.args, function.keywords], unseen, depth + 1)
        return {"partial": inner, "given": given}
    if isinstance(function, types.MethodType):
        owner = object_identity(function.__self__, unseen, depth + 1)
        return {"method": function.__name__, "of": owner}
    if isinstance(function, types.FunctionType):
        return _function_identity(function, unseen, depth)
    if hasattr(function, "__wrapped__"):  # by something that is no function, such as a cache
        return callable_identity(function.__wrapped__, unseen, depth + 1)
    if isinstance(function, types.BuiltinFunctionType | type):
        return _name_of(function)
    return {
        "class": class_identity(type(function), unseen, depth + 1),
        "state": object_identity(_state(function), unseen, depth + 1),
    }


def _function_identity(function: types.FunctionType, unseen: Unseen, depth: int) -> Any:
    code = function.__code__
    is_lambda = code.co_name == "<lambda>"  # of several in one line the source is the same
    plain = [value for value in code.co_consts if not isinstance(value, types.CodeType)]
    constants = object_identity(plain, unseen, depth + 1)
    return {
        "function": _name_of(function),
        "source": _source(function, unseen, code),
        "code": [code.co_code.hex(), code.co_names, constants] if is_lambda else None,
        "defaults": object_identity(
            [function.__defaults__, function.__kwdefaults__], unseen, depth + 1
        ),
        "closure": object_identity(_closure(function), unseen, depth + 1),
    }


def _state(value: Any) -> dict[str, Any]:
    """What an object holds, in its dict and in its slots."""
    slots = [vars(kind).get("__slots__") or () for kind in type(value).__mro__]
    names = {name for own in slots for name in ([own] if isinstance(own, str) else own)}
    names = names | vars(value).keys() if hasattr(value, "__dict__") else names
    names -= NOT_IN_IDENTITY | {"__dict__", "__weakref__"}
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def class_identity(kind: type, unseen: Unseen, depth: int = 0) -> Any:
    """A class: its name, the source of it and of its bases, what its methods close over.

    Of libraries' own classes only the name.
    """
    own = [k for k in kind.__mro__ if not _is_library(k)]
    return [
        [_name_of(k), _source(k, unseen), object_identity(_method_closures(k), unseen, depth + 1)]
        for k in own
    ] or _name_of(kind)


def program_identity(program: Any, unseen: Unseen) -> dict[str, Any]:
    """Everything of a program that its answers depend on: code, predictors, tools, state.

    One entry for each sub-module, so that one can say where two programs differ.
    """
    modules = {}
    for name, module in program.named_sub_modules():
        own_lm = getattr(module, "lm", None)
        held = {k: v for k, v in vars(module).items() if k not in NOT_IN_IDENTITY}
        signature = held.pop("signature", None)
        if hasattr(module, "demos"):
            held = {k: v for k, v in held.items() if k not in NOT_OF_PREDICTORS}
        held = {k: _without_modules(v) for k, v in held.items()}
        modules[name] = {
            "class": class_identity(type(module), unseen),
            "signature": None if signature is None else signature_identity(signature),
            "state": object_identity(held, unseen),
            "lm": lm_identity(own_lm, unseen) if _is_lm(own_lm) else None,
        }
    return modules


def signature_identity(signature: Any) -> Any:
    """A signature: its instructions and, in order, the fields that a prompt is made of."""
    fields = [
        [
            name,
            without_addresses(str(info.annotation)),
            _schema(info.annotation),
            {k: without_addresses(str(v)) for k, v in (info.json_schema_extra or {}).items()},
        ]
        for name, info in signature.fields.items()
    ]
    return [signature.instructions, fields]


@functools.lru_cache(maxsize=1000)
def _schema(annotation: Any) -> Any:
    """What prompts say of a type: the fields of a model, the members of an enumeration."""
    try:
        return pydantic.TypeAdapter(annotation).json_schema()
    except Exception:  # noqa: BLE001 - there is none of this type; it counts by its name
        return None


def lm_identity(lm: Any, unseen: Unseen) -> Any:
    """An LM: class, model, endpoint, sampling parameters, engine; no key, no header."""
    if not _is_lm(lm):
        return None if lm is None else unseen.add(_name_of(type(lm)))
    kwargs = without_secret_names(getattr(lm, "kwargs", None) or {})
    endpoint = kwargs.pop("api_base", None) or kwargs.pop("base_url", None)
    parameters = {k: v for k, v in kwargs.items() if k not in LM_PLUMBING and v is not None}
    held = {k: v for k, v in vars(lm).items() if k not in LM_ATTRIBUTES and k[0] != "_"}
    return {
        "class": class_identity(type(lm), unseen),
        "held": {}
        if _is_library(type(lm))
        else object_identity(without_secret_names(held), unseen),
        "model": lm.model,
        "type": getattr(lm, "model_type", None),
        "endpoint": _endpoint(endpoint),
        "parameters": object_identity(parameters, unseen),
        "engine": engine_fingerprint(getattr(lm, "engine", None), unseen),
    }


def engine_fingerprint(engine: Any, unseen: Unseen) -> Any:
    """An engine by its name, or its class with its own `fingerprint`, if it has one."""
    if engine is None or isinstance(engine, str):
        return engine
    fingerprint = getattr(engine, "fingerprint", None)
    fingerprint = fingerprint() if callable(fingerprint) else fingerprint
    if fingerprint is None:
        unseen.add(_name_of(type(engine)))
    return [_name_of(type(engine)), None if fingerprint is None else str(fingerprint)]


def _endpoint(url: Any) -> str | None:
    """Scheme, host, port and path; the rest may hold a key."""
    if not isinstance(url, str):
        return None
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_lm(value: Any) -> bool:
    return hasattr(value, "num_retries") and callable(getattr(value, "copy", None))


def _without_modules(value: Any) -> Any:
    """The value with a word in place of each sub-module: those have entries of their own."""
    if hasattr(value, "named_predictors") and not isinstance(value, type):
        return "(module)"
    if type(value) is dict:
        return {name: _without_modules(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return [_without_modules(item) for item in value]
    return value


def _is_library(kind: type) -> bool:
    top = kind.__module__.partition(".")[0]
    return top in ("builtins", "dspy", "pydantic", "abc", "typing", "tfgrpo_dspy")


def _source(named: Any, unseen: Unseen, code: Any = None) -> str | None:
    text = _source_text(code or named)
    if text is None:
        unseen.add(_name_of(named))
    return text


@functools.lru_cache(maxsize=10_000)
def _source_text(code: Any) -> str | None:
    """The source of a code object or a class; None where there is none."""
    try:
        return textwrap.dedent(inspect.getsource(code)).strip()
    except (OSError, TypeError, SyntaxError):
        return None


def _name_of(thing: Any) -> str:
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)
    name = name or type(thing).__qualname__
    return f"{getattr(thing, '__module__', '')}.{name}"


def _closure(function: types.FunctionType) -> dict[str, Any]:
    """What the function closes over, by name, but for itself."""
    values = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not set yet
            values[name] = cell.cell_contents
    return {name: value for name, value in values.items() if value is not function}


def _method_closures(kind: type) -> dict[str, Any]:
    """What the methods of a class close over, besides the class itself."""
    return {
        name: values
        for name, method in vars(kind).items()
        if isinstance(method, types.FunctionType)
        and (values := {k: v for k, v in _closure(method).items() if v is not kind})
    }
