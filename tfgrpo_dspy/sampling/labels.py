"""Labels of examples: which there are, and the text with which a field shows a value."""

import decimal
import math
from collections.abc import Set
from contextlib import suppress
from typing import Any

import pydantic

from tfgrpo_dspy.sampling.fields import as_fields, as_text, has_none, named_items, parsed

_MISSING = ("NAType", "NaTType")  # of pandas


def is_missing(value: Any) -> bool:
    """Whether a value says that there is none: None, NaN, or what pandas writes for them."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, decimal.Decimal):
        return value.is_nan()
    return value is None or type(value).__name__ in _MISSING


def labels_of(example: Any, nullable: Set[str] = frozenset()) -> dict[str, str]:
    """The labels of an example that are there, as texts by name; None is one if `nullable`."""
    labels = named_items(example.labels())
    return as_fields({
        name: value
        for name, value in labels
        if not is_missing(value) or (value is None and name in nullable)
    })  # fmt: skip


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
