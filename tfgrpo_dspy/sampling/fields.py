"""What goes into a program and comes out of it, as text; copies of examples."""

import copy
import dataclasses
import enum
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, get_args

import dspy
import pydantic

from tfgrpo_dspy.dspy_seam import (
    can_be_saved,
    custom_types_in,
    has_log_probabilities,
    parse_value,
    stored_in,
)
from tfgrpo_dspy.errors import written
from tfgrpo_dspy.identity import without_addresses

MEDIA = (dspy.Image, dspy.Audio, dspy.File)
JSONABLE = pydantic.TypeAdapter(Any)


def as_text(value: Any) -> str:
    """A value in the form in which DSPy's adapters write it: an Enum by its value, a date in ISO.

    Images and other media are only `<image>`, ... A model whose fields are read by their aliases
    alone is written with them, as the LM has to write it. A value has the same text in each
    process: sets are in a fixed order, and of objects that show their address it is left out.
    """
    return written(value, _text_of)


def _text_of(value: Any) -> str:
    if type(value) is str:
        return value
    try:
        value = _as_json(value)
        is_container = isinstance(value, dict | list)
        return json.dumps(value, ensure_ascii=False) if is_container else str(value)
    except (TypeError, ValueError):  # keys that JSON does not have, a list that holds itself
        return str(value)


def _as_json(value: Any) -> Any:
    return JSONABLE.dump_python(
        _plain(value),
        mode="json",
        by_alias=_has_aliases(value),
        warnings=False,  # a list stands where a model has a set
        fallback=lambda item: without_addresses(written(item)),
    )


def _has_aliases(value: Any) -> bool:
    """Whether it is or holds a model that reads a field by its alias, and not by its name."""
    kinds = {type(each) for each in _all_in(value) if isinstance(each, pydantic.BaseModel)}
    by_name = ("populate_by_name", "validate_by_name")
    return any(
        field.alias is not None and field.alias == field.validation_alias
        for kind in kinds
        if not any(map(kind.model_config.get, by_name))
        for field in kind.model_fields.values()
    )


def _plain(value: Any) -> Any:
    """The value without media, wherever it holds them; sets as lists in a fixed order."""
    if isinstance(value, MEDIA):
        return f"<{type(value).__name__.lower()}>"
    if _has_fields(value) and _holds(value, (*MEDIA, set, frozenset)):
        fields = _plain(_fields_of(value))
        is_model = isinstance(value, pydantic.BaseModel) and not _holds(value, MEDIA)
        return value.model_copy(update=fields) if is_model else fields
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):  # their order differs between processes
        return sorted(map(_plain, value), key=as_text)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _has_fields(value: Any) -> bool:
    """Whether it is a pydantic model or a dataclass."""
    is_one = isinstance(value, pydantic.BaseModel) or dataclasses.is_dataclass(value)
    return is_one and not isinstance(value, type)


def _fields_of(value: Any) -> dict[str, Any]:
    """Its fields by name; what iterates over a model, such as `dict`, may see something else."""
    if isinstance(value, pydantic.BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _holds(value: Any, kinds: tuple[type, ...]) -> bool:
    return any(isinstance(each, kinds) for each in _all_in(value))


def _all_in(value: Any) -> Iterator[Any]:
    """The value and all that it holds, in their order; what holds itself, or much, once."""
    waiting, seen = [value], set[int]()
    while waiting:
        value = waiting.pop()
        yield value
        if id(value) not in seen and not isinstance(value, MEDIA):
            seen.add(id(value))
            waiting += reversed(_items(value))


def _items(value: Any) -> list[Any]:
    if _has_fields(value):
        return list(_fields_of(value).values())
    if isinstance(value, Mapping | dspy.Example):
        return [item for _, item in named_items(value)]
    return list(value) if isinstance(value, list | tuple | set | frozenset) else []


def named_items(value: Mapping[Any, Any] | dspy.Example) -> list[tuple[str, Any]]:
    """The fields by name; DSPy's own way to them takes no names that are no texts."""
    if isinstance(value, dspy.Example):  # a Prediction is one
        fields = {written(name): item for name, item in stored_in(value).items()}
        return [(name, item) for name, item in fields.items() if not name.startswith("dspy_")]
    return [(written(name), item) for name, item in value.items()]


def media_in(value: Any) -> list[Any]:
    """The images and other media that a value is or holds, in their order."""
    return [each for each in _all_in(value) if isinstance(each, MEDIA)]


def as_fields(value: Any) -> dict[str, str]:
    """The fields of an example, prediction or mapping as texts, no log-probabilities; None: {}."""
    if value is None:
        return {}
    if isinstance(value, Mapping | dspy.Example):
        return {
            name: as_text(item)
            for name, item in named_items(value)
            if name != "logprobs" or not has_log_probabilities(item)
        }
    return {"output": as_text(value)}


def parsed(text: str, annotation: Any) -> Any:
    """The value that was written as this text. Raises ValueError: no text holds it (an image)."""
    if annotation is str:
        return text
    if any(issubclass(k, MEDIA) for k in custom_types_in(annotation)):
        raise ValueError(f"{annotation} is written as a text that does not hold all of it")
    for read in (_nothing, _member, parse_value, _validated):
        with suppress(Exception):  # a user's type may raise anything
            value = read(text, annotation)
            if as_text(value) == text:
                return value
    raise ValueError(f"{text[:80]!r} is not the text of a {annotation}")


def parsed_for_demo(text: str, annotation: Any, is_output: bool) -> Any:
    """The value that was written as this text, in the form that a saved program has: sets as lists.

    DSPy's adapters write both alike. An output with aliases is a dict, as DSPy would write the
    model with names, which it does not read. Raises ValueError as `parsed` does.
    """
    value = parsed(text, annotation)
    if can_be_saved(value) and not (is_output and _has_aliases(value)):
        return value
    with suppress(TypeError, ValueError):
        if can_be_saved(plain := _as_json(value)):
            return plain
    return text


def _nothing(text: str, annotation: Any) -> None:
    """None, where the type has it: as a text, DSPy would take `None` for a word."""
    if text != "None" or not has_none(annotation):
        raise ValueError(text)


def has_none(annotation: Any) -> bool:
    """Whether a field of this type may be None."""
    return type(None) in get_args(annotation) or None in get_args(annotation)


def _member(text: str, annotation: Any) -> Any:
    """The member of an Enum whose value is written so; DSPy knows texts as values only."""
    return next(member for member in annotation if as_text(member) == text)


def _validated(text: str, annotation: Any) -> Any:
    """The value without DSPy's repairs, which take the text of a Decimal for a float."""
    return pydantic.TypeAdapter(annotation).validate_python(text)


def with_values(text: str, *holders: Any) -> str:
    """The text with members of the holders' Enums as DSPy writes them, not as `Bay.NORTH`."""
    if "." not in text:
        return text
    held = itertools.chain(*map(_all_in, holders))
    kinds = {type(each) for each in held if isinstance(each, enum.Enum)}
    names: dict[str, str] = {}
    for kind in kinds:
        for name, member in kind.__members__.items():
            names |= {repr(member): as_text(member), f"{kind.__name__}.{name}": as_text(member)}
    if not names:
        return text
    forms = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    return re.sub(rf"(?:{forms})(?!\w)", lambda match: names[match[0]], text)


def containers_copied(value: Any) -> Any:
    """The value with copies of its containers, and of models that hold some; the rest is shared."""
    if isinstance(value, pydantic.BaseModel) and not isinstance(value, dspy.Tool):
        copies = {name: containers_copied(item) for name, item in vars(value).items()}
        changed = {name: item for name, item in copies.items() if item is not vars(value)[name]}
        return value.model_copy(update=changed) if changed else value
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
