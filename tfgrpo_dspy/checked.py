"""Dataclasses that verify their arguments by pydantic, and its faults in words for people."""

import functools
import inspect
import reprlib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from tfgrpo_dspy.errors import written
from tfgrpo_dspy.wording import shortened

T = TypeVar("T")
SHOWN_BYTES = 80  # of a value in a message
OF_NAMES = ("missing", "unexpected_keyword_argument", "extra_forbidden")
"""Pydantic's types of faults that are in the name of a field, and not in its value."""


def such_that(is_usable: Callable[[Any], Any], hint: str) -> Any:
    """A condition on a value beside its type; `hint` says what to pass."""

    def checked_value(value: Any) -> Any:
        if not is_usable(value):
            raise ValueError(hint)
        return value

    return AfterValidator(checked_value)


def shown(value: Any) -> str:
    """The value for a message: short, whatever it holds."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict, short.maxstring, short.maxother = 2, 3, 3, 60, 60
    return shortened(written(value, short.repr), SHOWN_BYTES)


def faults_in(error: ValidationError, arguments: Mapping[str, Any] | None = None) -> list[str]:
    """A sentence for each value that cannot be used; of `arguments`, for each whole argument."""
    hints: dict[str, dict[str, None]] = {}
    for fault in error.errors(include_url=False):
        where, value, is_named = fault["loc"], fault["input"], fault["type"] in OF_NAMES
        if arguments and where and where[0] in arguments:
            where, value, is_named = where[:1], arguments[str(where[0])], False
        parts = (f"[{part}]" if isinstance(part, int) else f".{part[:40]}" for part in where)
        place = "".join(parts).removeprefix(".")
        place += "" if is_named else f"{place and '='}{shown(value)}"
        hint = fault["msg"].removesuffix(".").removeprefix("Value error, ")
        hint = hint.replace("Input should", "it should", 1)
        hints.setdefault(place, {})[hint[:1].lower() + hint[1:]] = None
    return [f"{place}: {' or '.join(of_place)}." for place, of_place in hints.items()]


def text_of(error: ValueError) -> str:
    """All faults of pydantic's in sentences; the message of any other error."""
    return " ".join(faults_in(error)) if isinstance(error, ValidationError) else str(error)


@typing.dataclass_transform(frozen_default=True, field_specifiers=(field,))
def checked(
    error_type: Callable[[str], Exception], prefix: str = "", slots: bool = False, **config: Any
) -> Callable[[type[T]], type[T]]:
    """Makes a class a frozen dataclass that verifies its arguments; one error names all faults."""

    def decorate(kind: type[T]) -> type[T]:
        result: Any = dataclass(frozen=True, slots=slots)(kind)
        result.__pydantic_config__ = ConfigDict(arbitrary_types_allowed=True, **config)  # type: ignore[typeddict-item]
        taken = inspect.signature(result)
        validator = functools.cache(lambda: TypeAdapter(result).validator)

        @functools.wraps(result.__init__)
        def verified(self: Any, *args: Any, **kwargs: Any) -> None:
            arguments = taken.bind(*args, **kwargs).arguments  # raises the usual TypeError
            try:
                validator().validate_python(arguments, self_instance=self)
            except ValidationError as error:
                raise error_type(prefix + " ".join(faults_in(error, arguments))) from None

        plain = typing.get_type_hints(result)  # without the bounds, for people
        parameters = [p.replace(annotation=plain[p.name]) for p in taken.parameters.values()]
        self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        vars(verified)["__signature__"] = inspect.Signature([self_parameter, *parameters])
        result.__init__ = verified
        return result  # type: ignore[no-any-return]

    return decorate
