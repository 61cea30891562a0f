"""What goes into a program and comes out of it, as text; copies of examples."""

import copy
import json
import types
from collections.abc import Mapping
from typing import Any

import dspy
import pydantic
from dspy.adapters.types.base_type import Type
from dspy.adapters.utils import parse_value

from tfgrpo_dspy.budget.surprisal import has_log_probabilities

MEDIA = (dspy.Image, dspy.Audio, dspy.File)


def as_text(value: Any) -> str:
    """A value as the reflection LM is shown it; images and other media only as `<image>`, ..."""
    try:
        return _text_of(value)
    except Exception:  # noqa: BLE001 - what a program returns may raise anything when it is shown
        return f"<{type(value).__name__}>"


def _text_of(value: Any) -> str:
    value = _plain(value)
    if isinstance(value, str):
        return value
    if isinstance(value, set | frozenset):  # their order differs between processes
        value = sorted(value, key=as_text)
    elif not isinstance(value, dict | list | tuple | bool | int | float | types.NoneType):
        return str(value)
    try:
        return json.dumps(value, ensure_ascii=False, default=as_text)
    except (TypeError, ValueError):  # keys that JSON does not have, a list that holds itself
        return str(value)


def _plain(value: Any) -> Any:
    """The value without media, wherever it holds them: DSPy would write them out as text."""
    if isinstance(value, MEDIA):
        return f"<{type(value).__name__.lower()}>"
    if isinstance(value, pydantic.BaseModel):
        value = value.model_dump() if not media_in(value) else dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def media_in(value: Any) -> list[Any]:
    """The images and other media that a value is or holds, in their order."""
    if isinstance(value, MEDIA):
        return [value]
    if isinstance(value, pydantic.BaseModel):
        value = dict(value)
    items = value.values() if isinstance(value, Mapping) else value
    is_sequence = isinstance(value, Mapping | list | tuple)
    return [found for item in items for found in media_in(item)] if is_sequence else []


def as_fields(value: Any) -> dict[str, str]:
    """The fields of an example, a prediction or a mapping, each as text; {} for None.

    The log-probabilities that DSPy adds to a prediction are no field of the program's.
    """
    if value is None:
        return {}
    if isinstance(value, Mapping | dspy.Example):  # a Prediction is an Example
        return {
            str(name): as_text(item)
            for name, item in value.items()
            if name != "logprobs" or not has_log_probabilities(item)
        }
    return {"output": as_text(value)}


def parsed(text: str, annotation: Any) -> Any:
    """The value whose text this is. Raises ValueError: it does not come back, as an image."""
    if Type.extract_custom_type_from_annotation(annotation):
        raise ValueError(f"{annotation} is written as a text that does not hold all of it")
    try:
        value = parse_value(text, annotation)
    except Exception as error:  # a user's type may raise anything
        raise ValueError(f"{text[:80]!r} is no {annotation}") from error
    if as_text(value) != text:
        raise ValueError(f"{text[:80]!r} is read as {as_text(value)[:80]!r}")
    return value


def containers_copied(value: Any) -> Any:
    """The value with copies of the dicts, lists, tuples and sets in it; the rest is shared."""
    if type(value) is dict:
        return {key: containers_copied(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(containers_copied(item) for item in value)
    return value


def copied_example(example: dspy.Example) -> dspy.Example:
    """The example with copies of its values; what cannot be copied (a lock) is shared."""
    return example.copy(**{name: _copied(value) for name, value in example.items()})


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - a user's type may raise anything
        return value
