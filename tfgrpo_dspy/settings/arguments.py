"""Arguments: a constructor that takes those of a settings class; checks of numbers and types."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from tfgrpo_dspy.errors import SettingsError

Arguments = ParamSpec("Arguments")
SettingsT = TypeVar("SettingsT")


def number_faults(
    settings: Any,
    whole: Mapping[str, float],
    real: Mapping[str, float],
    hints: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """A sentence for each attribute that is no number as it should be.

    Puts Python's own numbers in place of `np.int64(3)`, `1e3` and `np.float32(0.7)`. None is
    allowed where it is the default.

    Args:
        settings: a frozen dataclass.
        whole: attributes that are whole numbers, and how small each may be.
        real: attributes that are numbers above 0, and how large each may be.
        hints: what to pass instead, by attribute, where more can be said than what is allowed.
    """
    defaults = {field.name: field.default for field in fields(settings)}
    for name in (*whole, *real):
        value = _plain(getattr(settings, name))
        if name in whole and isinstance(value, float) and value.is_integer():
            value = int(value)
        object.__setattr__(settings, name, value)
        if value is None and defaults[name] is None:
            continue
        if name in whole:
            is_right = is_whole(value) and value >= whole[name]
            hint = f"pass a whole number of at least {whole[name]}."
        else:
            is_right = is_finite(value) and 0 < value <= real[name]
            hint = "pass a number above 0, or None."
        if not is_right:
            yield f"{name}={value!r}: {(hints or {}).get(name, hint)}"


def type_faults(settings: Any, kinds: Mapping[str, tuple[Any, str]]) -> Iterator[str]:
    """A sentence for each attribute that is neither None nor of its kind.

    Args:
        settings: what has the attributes.
        kinds: by attribute its type, and what to pass.
    """
    for name, (kind, hint) in kinds.items():
        value = getattr(settings, name)
        if isinstance(value, type):
            yield f"{name}={value.__name__} is a class: pass {value.__name__}()."
        elif value is not None and not isinstance(value, kind):
            yield f"{name}={value!r}: pass {hint}."


def refuse(faults: list[str]) -> None:
    """Raises SettingsError: there are faults; the message names them all."""
    if faults:
        raise SettingsError(" ".join(faults))


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def is_whole(value: object) -> bool:
    """Whether it is an integer, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """Whether it is a finite int or float, and no bool."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


def taking(
    settings_class: Callable[Arguments, SettingsT],
) -> Callable[[Callable[[Any, SettingsT], None]], Callable[Concatenate[Any, Arguments], None]]:
    """Make `__init__(self, settings)` take what `settings_class` takes.

    Editors, type checkers and `inspect.signature` see the arguments of the class, with their types
    and defaults.
    """

    def decorate(
        init: Callable[[Any, SettingsT], None],
    ) -> Callable[Concatenate[Any, Arguments], None]:
        @functools.wraps(init)
        def constructor(self: Any, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            init(self, settings_class(*args, **kwargs))

        own = inspect.signature(settings_class)
        this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        constructor.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[this, *own.parameters.values()]
        )
        takes: Any = constructor
        return cast(Callable[Concatenate[Any, Arguments], None], takes)

    return decorate
