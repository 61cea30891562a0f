"""Checks of numbers and types, and a constructor that takes the arguments of a settings class."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, Concatenate, ParamSpec, TypeVar

from tfgrpo_dspy.errors import SettingsError

Arguments = ParamSpec("Arguments")
SettingsT = TypeVar("SettingsT")


def number_faults(
    settings: Any, whole: Mapping[str, float], positive: Mapping[str, float]
) -> Iterator[str]:
    """A sentence for each attribute that is not a number of the right kind and size.

    Replaces `np.int64(3)`, `1e3` and `np.float32(0.7)` by Python's own numbers. None is allowed
    where it is the default.

    Args:
        settings: a frozen dataclass.
        whole: the names of whole numbers, and the smallest value of each.
        positive: the names of numbers above 0, and the largest value of each.
    """
    defaults = {field.name: field.default for field in fields(settings)}
    for name in (*whole, *positive):
        value = _python_number(getattr(settings, name))
        if name in whole and isinstance(value, float) and value.is_integer():
            value = int(value)
        object.__setattr__(settings, name, value)
        if value is None and defaults[name] is None:
            continue
        if name in whole:
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            is_right = is_integer and value >= whole[name]
            hint = _with_bound("a whole number", "of at least", whole[name])
        else:
            is_right = is_finite(value) and 0 < value <= positive[name]
            hint = _with_bound("a number above 0", "and at most", positive[name]) + ", or None"
        if not is_right:
            yield f"{name}={value!r}: pass {hint}."


def _with_bound(kind: str, words: str, bound: float) -> str:
    return f"{kind} {words} {bound:g}" if math.isfinite(bound) else kind


def type_faults(settings: Any, kinds: Mapping[str, tuple[Any, str]]) -> Iterator[str]:
    """A sentence for each attribute that is neither None nor of its type.

    Args:
        settings: the object with the attributes.
        kinds: for each name the type, and what the message says to pass.
    """
    for name, (kind, hint) in kinds.items():
        value = getattr(settings, name)
        if isinstance(value, type):
            yield f"{name}={value.__name__} is a class: pass {value.__name__}()."
        elif value is not None and not isinstance(value, kind):
            yield f"{name}={value!r}: pass {hint}."


def refuse(faults: list[str]) -> None:
    """Raise a SettingsError that names all the faults, if there are any."""
    if faults:
        raise SettingsError(" ".join(faults))


def _python_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def is_finite(value: object) -> bool:
    """Whether the value is a finite int or float; a bool is neither."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


def taking(
    settings_class: Callable[Arguments, SettingsT],
) -> Callable[[Callable[[Any, SettingsT], None]], Callable[Concatenate[Any, Arguments], None]]:
    """Make `__init__(self, settings)` take the arguments of `settings_class`.

    Editors, type checkers and `inspect.signature` see these arguments with types and defaults.
    """

    def decorate(
        init: Callable[[Any, SettingsT], None],
    ) -> Callable[Concatenate[Any, Arguments], None]:
        def constructor(self: Any, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            init(self, settings_class(*args, **kwargs))

        signature = inspect.signature(settings_class)
        self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [self_parameter, *signature.parameters.values()]
        vars(constructor)["__signature__"] = signature.replace(parameters=parameters)
        return constructor

    return decorate
