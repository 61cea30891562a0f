"""The identity of programs, LMs, metrics, data: what a result depends on, as JSON-like values.

Code counts by its source, and by the functions and plain constants of the user's own modules that
it names. What has no source, and objects that are no plain values, count by their name. Never in
an identity: API keys, headers, addresses in memory, clocks. Programs and LMs are known by their
shape only, so that no DSPy has to be imported.
"""

import enum
import functools
import hashlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import pydantic

from tfgrpo_dspy.errors import written
from tfgrpo_dspy.experience.programs import is_lm
from tfgrpo_dspy.text import without_secret_names
from tfgrpo_dspy.user_code import is_users_own, named_by

NOT_IN_IDENTITY = frozenset({"history", "callbacks", "detailed_results", "format_demos"})
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
SILENT = {"builtins", "dspy", "pydantic", "typing", "tfgrpo_dspy", "logging", "_thread"}
"""Modules of whose values nobody is told that they are known by name only."""
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
            return self._code(value) if callable(value) else self._data(value)
        finally:
            self.path.pop()

    def whole(self, value: Any) -> Any:
        """An object by its class and by what it holds, in its dict and in its slots."""
        slots = [name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ())]
        held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        held |= getattr(value, "__dict__", {})  # DSPy logs a warning where `module.forward` is read
        others = NOT_IN_IDENTITY | (NOT_OF_PREDICTORS if hasattr(value, "demos") else set())
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
        held = [parts, function.__defaults__, function.__kwdefaults__, self._names_in(function)]
        return [_name_of(function), self._source(function), self.of(held)]

    def _class(self, kind: type) -> Any:
        """A class of the user's and its bases: source, and what their methods name."""
        parts = []
        for base in (each for each in kind.__mro__ if is_users_own(each.__module__)):
            methods = [getattr(each, "fget", each) for each in vars(base).values()]
            named = dict(pair for method in methods for pair in self._names_in(method).items())
            parts.append([_name_of(base), self._source(base), self.of(named)])
        return parts

    def _names_in(self, method: Any) -> dict[str, Any]:
        """The values that a function closes over, and names in the user's own modules, by name."""
        function = getattr(method, "__func__", method)
        named = named_by(function) if isinstance(function, FunctionType) else ()
        return {name: value for name, value in named if name[:2] != "__" and _counts(value)}

    def _lm(self, lm: Any) -> Any:
        """An LM: class, model, sampling parameters, engine; not where it is reached, no key."""
        others = NOT_IN_IDENTITY | LM_PLUMBING
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


def _counts(value: Any) -> bool:
    """True for a value that counts where code names it: no module, no code of a library."""
    is_code = isinstance(value, FunctionType | BuiltinFunctionType | type)
    if is_code and not _is_signature(value):
        is_generated = value.__qualname__.startswith("__create_fn__")  # by dataclasses
        return is_users_own(str(value.__module__)) and not is_generated
    return not isinstance(value, ModuleType)


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
