"""What goes into a program and comes out of it, as text for people and as JSON for the store."""

import copy
import functools
import json
import math
import re
import types
from collections.abc import Mapping
from typing import Any

import dspy
import pydantic

REMOTE = ("data:", "http:", "https:", "gs:")
"""What an image's url begins with. Given anything else, `dspy.Image` looks for a file."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def as_text(value: Any) -> str:
    """A value as the reflection LM is shown it; media by their name, never their content."""
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
        return _json_text(dict(value))
    if isinstance(value, set | frozenset):  # their order is another in each process
        return _json_text(sorted(value, key=as_text))
    if isinstance(value, list | tuple | bool | int | float | types.NoneType):
        return _json_text(value)
    if isinstance(value, pydantic.BaseModel):
        return _json_text(value.model_dump())
    return str(value)


def _json_text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=as_text)
    except (TypeError, ValueError):  # keys that JSON does not have, a list that holds itself
        return str(value)


def as_fields(value: Any) -> dict[str, str]:
    """The fields of an example, a prediction or a mapping, each as text; of None: none."""
    if value is None:
        return {}
    if isinstance(value, Mapping | dspy.Example):  # a Prediction is an Example
        return {str(name): as_text(item) for name, item in value.items()}
    return {"output": as_text(value)}


def encode(value: Any, annotation: Any = None) -> dict[str, Any]:
    """The value as JSON, in a form from which `decode` makes an equal one; else as text.

    Args:
        value: a field of a prediction or of an example.
        annotation: the type of the field, where it is known.
    """
    try:
        if _is_json(value):
            return {"json": value}
        if isinstance(value, dspy.Image):
            return {"image": value.url}
        if annotation is not None:
            dumped = _adapter(annotation).dump_python(value, mode="json", warnings="error")
            if isinstance(value, set | frozenset):  # their order is another in each process
                dumped = sorted(dumped, key=json.dumps)
            if _adapter(annotation).validate_python(dumped) == value and _is_json(dumped):
                return {"typed": dumped}
    except Exception:  # noqa: BLE001 - a user's type may raise anything, a list may hold itself
        pass
    return {"text": _ADDRESS.sub("", as_text(value))}


def decode(encoded: Mapping[str, Any], annotation: Any = None) -> Any:
    """The value that was encoded. Raises ValueError: it cannot be had from the record."""
    if "json" in encoded:
        return encoded["json"]
    if str(encoded.get("image")).startswith(REMOTE):
        return dspy.Image(encoded["image"])
    if "typed" in encoded and annotation is not None:
        return _adapter(annotation).validate_python(encoded["typed"])
    raise ValueError(str(encoded.get("text", encoded.get("typed"))))


def encode_fields(values: Any, annotations: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each field of an example or a prediction, encoded."""
    return {str(name): encode(value, annotations.get(name)) for name, value in values.items()}


def decode_fields(
    encoded: Mapping[str, Mapping[str, Any]], annotations: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of the fields. Raises ValueError."""
    return {name: decode(value, annotations.get(name)) for name, value in encoded.items()}


def copied_example(example: dspy.Example) -> dspy.Example:
    """The example with copies of its values: a program or a metric may write into them.

    What refuses to be copied (a lock, a connection) is shared.
    """
    return example.copy(**{name: _copied(value) for name, value in example.items()})


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - a user's type may raise anything
        return value


def field_annotations(program: Any) -> dict[str, Any]:
    """The type of every input and output field of the program's predictors, by name."""
    found: dict[str, Any] = {}
    for _, predictor in program.named_sub_modules(dspy.Predict):
        signature = predictor.signature
        found.update({name: info.annotation for name, info in signature.fields.items()})
    return found


def _is_json(value: Any) -> bool:
    """Whether JSON gives back just this value."""
    kind = type(value)
    if kind is dict:
        return all(type(k) is str and _is_json(item) for k, item in value.items())
    if kind is list:
        return all(map(_is_json, value))
    if kind is float:
        return math.isfinite(value)
    return value is None or kind in (str, int, bool)


@functools.lru_cache(maxsize=1000)
def _adapter(annotation: Any) -> Any:
    return pydantic.TypeAdapter(annotation)
