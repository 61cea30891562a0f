"""Examples: their inputs and labels as texts, and the text with which a field shows a value."""

import decimal
import math
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pydantic

from tfgrpo_dspy.errors import written
from tfgrpo_dspy.identity import Identities, digest
from tfgrpo_dspy.rollout import fields_text
from tfgrpo_dspy.sampling.fields import as_fields, as_text, has_none, named_items, parsed

_MISSING = ("NAType", "NaTType")  # of pandas


def is_missing(value: Any) -> bool:
    """Whether a value says that there is none: None, NaN, or what pandas writes for them."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, decimal.Decimal):
        return value.is_nan()
    return value is None or type(value).__name__ in _MISSING


@dataclass(frozen=True, eq=False)
class Example:
    """An example of the user's. Its texts are made when they are first asked for."""

    raw: Any  # the user's own object
    nullable: Set[str] = frozenset()  # the labels that may be None

    @cached_property
    def inputs(self) -> dict[str, str]:
        """The inputs, as texts by name."""
        return as_fields(self.raw.inputs())

    @cached_property
    def labels(self) -> dict[str, str]:
        """The labels that are there, as texts by name; None is one if it is `nullable`."""
        return as_fields({
            name: value
            for name, value in named_items(self.raw.labels())
            if not is_missing(value) or (value is None and name in self.nullable)
        })  # fmt: skip

    @property
    def text(self) -> str:
        """The inputs in one text."""
        return fields_text(self.inputs)

    @property
    def labels_text(self) -> str:
        """The labels in one text."""
        return fields_text(self.labels)

    @cached_property
    def identity(self) -> str:
        """The inputs as a text that tells them from others, also those of media."""
        inputs = dict(self.raw.inputs().items())
        return f"{written(sorted(inputs.items()), repr)} {digest(Identities().of(inputs))}"


def label_text(value: Any, annotation: Any) -> str | None:
    """The text with which an output field of this type shows a label; None: it cannot.

    Of a list of accepted answers, where the field takes no list, the first is shown.
    """
    if isinstance(value, list | tuple) and as_type(value, annotation) is None:
        value = value[0] if value else None
    return input_text(value, annotation)


def input_text(value: Any, annotation: Any) -> str | None:
    """The text with which a field of this type shows a value of an example; None: it cannot.

    A value that the type takes in another form is shown in that of the type: 4 as 4.0, a dict with
    the defaults of its model.
    """
    if is_missing(value) and not (value is None and has_none(annotation)):
        return None
    if comes_back(text := as_text(value), annotation):
        return text
    text = as_text(as_type(value, annotation))
    return text if text != "None" and comes_back(text, annotation) else None


def as_type(value: Any, annotation: Any) -> Any:
    """The value as this type takes it; None: it does not."""
    with suppress(Exception):  # a user's type may raise anything
        return pydantic.TypeAdapter(annotation).validate_python(value)
    return None


def comes_back(text: str, annotation: Any) -> bool:
    """Whether a field of this type that is written so has the same value again."""
    try:
        text.encode()  # half of a pair of surrogates cannot be sent to an LM
        parsed(text, annotation)
    except ValueError:
        return False
    return True
