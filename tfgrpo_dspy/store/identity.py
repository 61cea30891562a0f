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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tfgrpo_dspy.redaction import without_secret_names

NOT_IN_IDENTITY = frozenset({"history", "callbacks", "detailed_results", "lm"})
"""What modules hold that does not change what they answer; an LM has an entry of its own."""
NOT_OF_PREDICTORS = frozenset({"stage", "traces", "train", "fields"})
"""What DSPy's predictors hold besides: a random name, logs of other optimizers."""
LM_PLUMBING = frozenset({"timeout", "num_retries", "cache", "rollout_id", "seed", "n_workers"})
"""Arguments of an LM that do not change what it answers, or that each sample sets anew."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
MAX_DEPTH = 12


@dataclass
class Unseen:
    """Names of what identities know by name only."""

    names: set[str] = field(default_factory=set)

    def add(self, name: str) -> str:
        """Remember the name and give it back."""
        self.names.add(name)
        return name


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
    if isinstance(value, Mapping):
        items = without_secret_names(value).items()
        return {name: object_identity(item, unseen, depth + 1) for name, item in items}
    if isinstance(value, list | tuple):
        return [object_identity(item, unseen, depth + 1) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(object_identity(v, unseen, depth + 1)) for v in value)
    return _thing_identity(value, unseen, depth)


def _thing_identity(value: Any, unseen: Unseen, depth: int) -> Any:
    """What is no plain value and no container."""
    if _is_lm(value):
        return lm_identity(value, unseen)
    if isinstance(value, type):
        return class_identity(value, unseen)
    if hasattr(value, "named_predictors"):
        return program_identity(value, unseen)
    if hasattr(type(value), "model_fields"):
        return [_name_of(type(value)), _model_fields(value, unseen, depth)]
    if callable(value):
        return callable_identity(value, unseen, depth + 1)
    if type(value).__module__ in ("datetime", "decimal", "re"):
        return repr(value)
    if isinstance(value, enum.Enum):
        return [_name_of(type(value)), value.name]
    return _name_of(type(value)) if _is_library(type(value)) else unseen.add(_name_of(type(value)))


def _model_fields(value: Any, unseen: Unseen, depth: int) -> Any:
    fields = {name: getattr(value, name, None) for name in type(value).model_fields}
    return object_identity(fields, unseen, depth + 1)


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
    function = inspect.unwrap(function) if hasattr(function, "__wrapped__") else function
    if isinstance(function, types.FunctionType):
        return {
            "function": _name_of(function),
            "source": _source(function, unseen, function.__code__),
            "defaults": object_identity(
                [function.__defaults__, function.__kwdefaults__], unseen, depth + 1
            ),
            "closure": object_identity(_closure(function), unseen, depth + 1),
        }
    if isinstance(function, types.BuiltinFunctionType) or not hasattr(function, "__dict__"):
        return _name_of(function)
    held = {k: v for k, v in vars(function).items() if k not in NOT_IN_IDENTITY}
    return {
        "class": class_identity(type(function), unseen),
        "state": object_identity(held, unseen, depth + 1),
    }


def class_identity(kind: type, unseen: Unseen) -> Any:
    """A class: its name, and the source of it and of its bases, but for libraries' own."""
    return [[_name_of(k), _source(k, unseen)] for k in kind.__mro__ if not _is_library(k)] or (
        _name_of(kind)
    )


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
        held = {k: v for k, v in held.items() if not _holds_modules(v)}
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
        [name, str(info.annotation), {k: str(v) for k, v in (info.json_schema_extra or {}).items()}]
        for name, info in signature.fields.items()
    ]
    return [signature.instructions, fields]


def lm_identity(lm: Any, unseen: Unseen) -> Any:
    """An LM: class, model, endpoint, sampling parameters, engine; no key, no header."""
    if not _is_lm(lm):
        return None if lm is None else unseen.add(_name_of(type(lm)))
    kwargs = without_secret_names(getattr(lm, "kwargs", None) or {})
    endpoint = kwargs.pop("api_base", None) or kwargs.pop("base_url", None)
    parameters = {k: v for k, v in kwargs.items() if k not in LM_PLUMBING and v is not None}
    return {
        "class": _name_of(type(lm)),
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
    """Scheme, host and path: a port may be another tomorrow, the rest may hold a key."""
    if not isinstance(url, str):
        return None
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def _is_lm(value: Any) -> bool:
    return hasattr(value, "num_retries") and callable(getattr(value, "copy", None))


def _holds_modules(value: Any) -> bool:
    """Whether it is a sub-module, or a list or dict of them: those have entries of their own."""
    if hasattr(value, "named_predictors") and not isinstance(value, type):
        return True
    if isinstance(value, Mapping):
        return any(map(_holds_modules, value.values()))
    return isinstance(value, list | tuple) and any(map(_holds_modules, value))


def _closure(function: types.FunctionType) -> dict[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    values = {}
    for name, cell in cells:
        try:
            values[name] = cell.cell_contents
        except ValueError:  # not set yet
            values[name] = None
    return {name: value for name, value in values.items() if value is not function}


def _is_library(kind: type) -> bool:
    top = kind.__module__.partition(".")[0]
    return top in ("builtins", "dspy", "pydantic", "abc", "typing", "tfgrpo_dspy")


@functools.lru_cache(maxsize=10_000)
def _source_text(code: Any) -> str | None:
    try:
        return textwrap.dedent(inspect.getsource(code)).strip()
    except (OSError, TypeError, SyntaxError, IndentationError):
        return None


def _source(named: Any, unseen: Unseen, code: Any = None) -> str | None:
    text = _source_text(code or named)
    if text is None:
        unseen.add(_name_of(named))
    return text


def _name_of(thing: Any) -> str:
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)
    name = name or _ADDRESS.sub("", repr(thing))
    return f"{getattr(thing, '__module__', '')}.{name}"
