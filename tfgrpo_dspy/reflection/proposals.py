"""How the operations that a reflection LM proposes are read: JSON, Python's form, or plain lines.

One operation that cannot be understood costs itself only.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tfgrpo_dspy.reflection.reading import bare_line, is_nothing, json_in, without_fences

OPS = frozenset({"ADD", "MODIFY", "DELETE", "KEEP"})

_ALIASES = {
    "op": ("operation", "action", "type", "kind"),
    "id": ("experience_id", "experience", "target"),
    "text": ("new_text", "content", "advice", "lesson"),
    "lessons": ("lesson_numbers", "lesson_ids", "sources", "from"),
    "scope": ("predictor",),
    "reason": ("why", "rationale"),
}
_OPERATION_LINE = re.compile(
    r"(ADD|MODIFY|UPDATE|DELETE|REMOVE|KEEP)\b[\s:\u2013-]*(?:[\[(]?(E[1-9]\d*)\*?[\])]?)?"
    r"[\s:\u2013-]*(.*)"
)


def read_operations(given: Any) -> list[Any]:
    """The operations of an answer as mappings: op, id, text, scope, reason, lessons.

    An item that is no operation stays as it is, to be refused by itself. `scope` None: as it is, or
    for all.

    Raises:
        ValueError: nothing in it can be read as an operation.
    """
    if isinstance(given, str):
        text = without_fences(given)
        if is_nothing(text) and text.casefold() != "null":
            return []
        given = json_in(text)
        if not _has_mapping(given):
            given = _operations_in_lines(text) or given
        if given is None or (given and not _has_mapping(given)):
            raise ValueError(f"{text[:80]!r} holds no operation.")
    return [_operation(item) for item in _items(given) if item is not None]


def _items(given: Any) -> list[Any]:
    """The operations as a list: one object is a list of one, `{"ADD": ...}` names its op."""
    if isinstance(given, Mapping):
        named = {str(name).strip().upper(): value for name, value in given.items()}
        if isinstance(named.get("OPERATIONS"), list | tuple | Mapping):
            return _items(named["OPERATIONS"])
        if not named or not named.keys() <= OPS:
            return [given]
        return [
            {"op": op, **(item if isinstance(item, Mapping) else {"text": item})}
            for op, items in named.items()
            for item in (items if isinstance(items, list) else [items])
        ]
    if not isinstance(given, list | tuple):
        raise ValueError(f"{given!r} holds no operation.")
    nests = (list, tuple, Mapping)
    return [
        part for item in given for part in (_items(item) if isinstance(item, nests) else [item])
    ]


def _has_mapping(given: Any) -> bool:
    return isinstance(given, Mapping) or (
        isinstance(given, list | tuple) and any(map(_has_mapping, given))
    )


def _operations_in_lines(text: str) -> list[dict[str, Any]]:
    """The operations of lines such as "- ADD: Say please." or "KEEP [E1]"."""
    found = []
    for line in text.splitlines():
        operation = _OPERATION_LINE.fullmatch(bare_line(line))
        if operation and any(operation.groups()[1:]):
            op, id_, rest = operation.groups()
            found.append({"op": op, "id": id_, "text": bare_line(rest) if op != "KEEP" else None})
    return found


def _operation(item: Any) -> Any:
    if isinstance(item, str):
        item = next(iter(_operations_in_lines(item)), item)
    if not isinstance(item, Mapping):
        return item
    named = {str(name).strip().lower(): value for name, value in item.items()}
    found = {}
    for name, others in _ALIASES.items():
        values = (named.get(each) for each in (name, *others))
        found[name] = next((value for value in values if value is not None), None)
    if isinstance(found["text"], int):  # no advice; the others may be written as numbers
        found["text"] = None
    texts = {name: _as_text(found[name]) for name in found if name != "lessons"}
    read = {"op": texts["op"].upper(), "scope": texts["scope"] or None}
    return {**texts, **read, "lessons": _numbers_in(found["lessons"])}


def _as_text(value: Any) -> str:
    """A text as it is, a whole number as its digits; the first of several; "" for all else."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    text = str(value).strip()
    return "" if text.casefold() in ("null", "none") else text


def _numbers_in(value: Any) -> list[int]:
    """The numbers in a number, a text or a list of them: "examples 1 and 2" gives [1, 2]."""
    if isinstance(value, str):
        return [int(digits) for digits in re.findall(r"(?<![\d.])\d{1,6}(?![\d])", value)]
    if isinstance(value, Mapping):
        value = value.values()
    if isinstance(value, Iterable):
        return [number for item in value for number in _numbers_in(item)]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return [int(value)] if is_number and abs(value) < 10**6 else []
