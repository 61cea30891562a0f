"""The arguments of a strategy: a pydantic dataclass whose faults are one SettingsError."""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from tfgrpo_dspy.errors import SettingsError

T = TypeVar("T")
Share = Annotated[float, Field(ge=0, le=1)]
Least0 = Annotated[int, Field(ge=0)]
Least1 = Annotated[int, Field(ge=1)]
Least2 = Annotated[int, Field(ge=2)]
Numbers = Mapping[str, Annotated[float, Field(allow_inf_nan=False, ge=-1e150, le=1e150)]]


def such_that(is_usable: Callable[[Any], bool], hint: str) -> Any:
    """What a value must be beside its type; `hint` says what to pass."""

    def checked(value: Any) -> Any:
        if not is_usable(value):
            raise ValueError(hint)
        return value

    return AfterValidator(checked)


@typing.dataclass_transform(frozen_default=True, field_specifiers=(field,))
def strategy(kind: type[T]) -> type[T]:
    """The class as a frozen dataclass that verifies its arguments. Raises SettingsError."""
    config = ConfigDict(strict=True, arbitrary_types_allowed=True)
    made: Any = dataclass(frozen=True, config=config)(kind)
    signature, init = inspect.signature(made), made.__init__

    @functools.wraps(init)
    def verified(self: Any, *args: Any, **kwargs: Any) -> None:
        arguments = signature.bind(*args, **kwargs).arguments
        try:
            init(self, **arguments)
        except ValidationError as error:
            hints: dict[Any, dict[str, None]] = {}
            for fault in error.errors(include_url=False):
                hint = fault["msg"].removeprefix("Value error, ").replace("Input", "it")
                name = str(fault["loc"][0]) if fault["loc"] else ""  # "": of several arguments
                value = f"{name}={arguments[name]!r}: " if name else ""
                hints.setdefault(value, {})[hint.removesuffix(".")] = None
            faults = (f"{value}{' or '.join(of_one)}." for value, of_one in hints.items())
            raise SettingsError(f"{kind.__name__}: {' '.join(faults)}") from None

    plain = typing.get_type_hints(kind)  # without the bounds, for people
    parameters = [p.replace(annotation=plain[p.name]) for p in signature.parameters.values()]
    made.__init__, made.__signature__ = verified, signature.replace(parameters=parameters)
    return made  # type: ignore[no-any-return]
