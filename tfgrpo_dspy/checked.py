"""Dataclasses that verify their arguments by pydantic, and its faults in words for people."""

import functools
import inspect
import reprlib
import typing
from collections.abc import Callable
from dataclasses import field
from typing import Any, TypeVar

from pydantic import AfterValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from tfgrpo_dspy.errors import written
from tfgrpo_dspy.wording import shortened

T = TypeVar("T")
SHOWN_BYTES = 80  # of a value in a message
OF_NAMES = {
    "missing": "it is missing",
    "unexpected_keyword_argument": "there is no field of this name",
    "extra_forbidden": "there is no field of this name",
}
"""By pydantic's type of a fault that is in the name of a field: what is wrong."""


def such_that(is_usable: Callable[[Any], bool], hint: str) -> Any:
    """What a value must be beside its type; `hint` says what to pass."""

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


def faults_in(error: ValidationError, depth: int | None = None) -> list[str]:
    """A sentence for each value that cannot be used: where it stands, the value, what to write.

    `depth`: how much of a place is named; the faults of one place are alternatives then.
    """
    hints: dict[str, dict[str, None]] = {}
    for fault in error.errors(include_url=False):
        parts = (f"[{p}]" if isinstance(p, int) else f".{p[:40]}" for p in fault["loc"][:depth])
        place = "".join(parts).removeprefix(".")
        hint = fault["msg"].removeprefix("Value error, ").removesuffix(".")
        hint = OF_NAMES.get(fault["type"], hint.replace("Input should", "it should", 1))
        is_value = fault["type"] not in OF_NAMES
        place += f"{place and '='}{shown(fault['input'])}" * is_value
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
        settings = ConfigDict(arbitrary_types_allowed=True, **config)  # type: ignore[typeddict-item]
        made: Any = dataclass(frozen=True, slots=slots, config=settings)(kind)
        signature, init = inspect.signature(made), made.__init__

        @functools.wraps(init)
        def verified(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                init(self, **signature.bind(*args, **kwargs).arguments)
            except ValidationError as error:
                raise error_type(prefix + " ".join(faults_in(error, depth=1))) from None

        plain = typing.get_type_hints(kind)  # without the bounds, for people
        parameters = [p.replace(annotation=plain[p.name]) for p in signature.parameters.values()]
        made.__init__, made.__signature__ = verified, signature.replace(parameters=parameters)
        return made  # type: ignore[no-any-return]

    return decorate
