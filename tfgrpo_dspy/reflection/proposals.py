"""How the operations that a reflection LM proposes are read: JSON, Python's form, or plain lines.

One operation that cannot be understood costs itself only.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic

from tfgrpo_dspy.reflection.reading import bare_line, is_nothing, json_in, without_fences

OPS = ("ADD", "MODIFY", "DELETE", "KEEP")

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


class ProposedOperation(pydantic.BaseModel):
    """One operation on the library, as an LM proposes it; `scope=None`: as it is, or for all."""

    op: str = ""
    id: str = ""
    text: str = ""
    scope: str | None = None
    reason: str = ""
    lessons: list[int] = pydantic.Field(default_factory=list)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _forgiving(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        found = {str(name).strip().lower(): value for name, value in given.items()}
        for name, others in _ALIASES.items():
            for other in others:
                if found.get(name) is None and other in found:
                    found[name] = found[other]
        texts = {name: _as_text(found.get(name)) for name in ("op", "id", "text", "reason")}
        scope = _as_text(found.get("scope"))
        texts["op"] = texts["op"].upper()
        if isinstance(found.get("text"), int):  # no advice; the others may be written as numbers
            texts["text"] = ""
        return {**texts, "scope": scope or None, "lessons": _numbers_in(found.get("lessons"))}


def read_operations(given: Any) -> list[Any]:
    """The operations of an answer; an item that is none stays as it is, to be refused by itself.

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
        folded = {str(name).strip().lower(): value for name, value in given.items()}
        if isinstance(folded.get("operations"), list | tuple | Mapping):
            return _items(folded["operations"])
        if folded and all(name.upper() in OPS for name in folded):
            return [
                {"op": name, **(item if isinstance(item, Mapping) else {"text": item})}
                for name, items in folded.items()
                for item in (items if isinstance(items, list) else [items])
            ]
        return [given]
    if not isinstance(given, list | tuple):
        raise ValueError(f"{given!r} holds no operation.")
    return [part for item in given for part in (_items(item) if _nests(item) else [item])]


def _nests(item: Any) -> bool:
    if isinstance(item, Mapping):
        return all(str(name).strip().upper() in (*OPS, "OPERATIONS") for name in item) and bool(
            item
        )
    return isinstance(item, list | tuple)


def _has_mapping(given: Any) -> bool:
    return isinstance(given, Mapping) or (
        isinstance(given, list | tuple) and any(_has_mapping(item) for item in given)
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
    if isinstance(item, str) and (found := _operations_in_lines(item)):
        item = found[0]
    if isinstance(item, ProposedOperation) or not isinstance(item, Mapping):
        return item
    return ProposedOperation.model_validate(item)


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
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int | float):
        return [int(value)] if value == value and abs(value) < 10**6 else []
    if isinstance(value, str):
        return [int(digits) for digits in re.findall(r"(?<![\d.])\d{1,6}(?![\d])", value)]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [n for item in value for n in _numbers_in(item)] if isinstance(value, Iterable) else []
