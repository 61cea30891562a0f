"""What goes into a program and comes out of it, as text; copies of examples."""

import copy
import json
import types
from collections.abc import Mapping
from typing import Any

import dspy
import pydantic


def as_text(value: Any) -> str:
    """A value as the reflection LM is shown it; images and audio only as `<image>`, `<audio>`."""
    try:
        return _text_of(value)
    except Exception:  # noqa: BLE001 - what a program returns may raise anything when it is shown
        return f"<{type(value).__name__}>"


def _text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dspy.Image | dspy.Audio):
        return f"<{type(value).__name__.lower()}>"
    if isinstance(value, Mapping):
        value = dict(value)
    elif isinstance(value, set | frozenset):  # their order differs between processes
        value = sorted(value, key=as_text)
    elif isinstance(value, pydantic.BaseModel):
        value = value.model_dump()
    elif not isinstance(value, list | tuple | bool | int | float | types.NoneType):
        return str(value)
    try:
        return json.dumps(value, ensure_ascii=False, default=as_text)
    except (TypeError, ValueError):  # keys that JSON does not have, a list that holds itself
        return str(value)


def as_fields(value: Any) -> dict[str, str]:
    """The fields of an example, a prediction or a mapping, each as text; {} for None."""
    if value is None:
        return {}
    if isinstance(value, Mapping | dspy.Example):  # a Prediction is an Example
        return {str(name): as_text(item) for name, item in value.items()}
    return {"output": as_text(value)}


def copied_example(example: dspy.Example) -> dspy.Example:
    """The example with copies of its values; what cannot be copied (a lock) is shared."""
    return example.copy(**{name: _copied(value) for name, value in example.items()})


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - a user's type may raise anything
        return value
