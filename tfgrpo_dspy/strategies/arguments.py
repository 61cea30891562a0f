"""The arguments of a strategy: a pydantic dataclass whose faults are one SettingsError."""

import typing
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, TypeVar

from pydantic import Field

from tfgrpo_dspy.checked import checked, such_that
from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.user_code import is_coroutine_function

T = TypeVar("T")
Share = Annotated[float, Field(ge=0, le=1)]
Least0 = Annotated[int, Field(ge=0)]
Least1 = Annotated[int, Field(ge=1)]
Least2 = Annotated[int, Field(ge=2)]
Magnitude = Annotated[float, Field(ge=0.01, le=100)]
"""A temperature, a weight or an entropy."""
Multiple = Annotated[float, Field(ge=0.1, le=10)]
"""Of the LM calls of a group's rollouts, how many a strategy may make."""
NOT_ASYNC = such_that(lambda code: not is_coroutine_function(code), "it should not be async")
"""What a function that a strategy calls must be."""
Numbers = Mapping[str, Annotated[float, Field(allow_inf_nan=False, ge=-1e150, le=1e150)]]


@typing.dataclass_transform(frozen_default=True, field_specifiers=(field,))
def strategy(kind: type[T]) -> type[T]:
    """The class as a frozen dataclass that verifies its arguments. Raises SettingsError."""
    return checked(SettingsError, f"{kind.__name__}: ", strict=True)(kind)
