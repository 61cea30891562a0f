"""The operations in an answer of UpdateLibrary, each read by itself, in whatever form."""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.errors import LibraryError
from tfgrpo_dspy.experience import values
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import ALL, Add, Keep, Modify, Operation, Refusal
from tfgrpo_dspy.reflection import answer_forms
from tfgrpo_dspy.reflection.guard import Guard
from tfgrpo_dspy.reflection.lessons import Lesson, is_same_lesson, read_lesson, sources_of

_ONLY_FIELD = {"ADD": "text", "MODIFY": "text", "DELETE": "id", "KEEP": "id"}
"""The field that is meant by a bare value in place of the fields: `{"DELETE": "E3"}`."""
_OPERATION_LINE = re.compile(
    r"(ADD|MODIFY|UPDATE|DELETE|REMOVE|KEEP)\b[\s:\u2013-]*"
    r"(?:[\[(]?(E[1-9]\d*)\*?[\])]?(?: to\b)?)?[\s:\u2013-]*(.*)"
)
_NUMBER = re.compile(r"(?<![\d.])(?<!\W-)\d{1,6}(?!\d)")
_NAMES = {
    "op": ("op", "operation", "action", "type", "kind"),
    "id": ("id", "experience_id", "experience", "target"),
    "text": ("text", "new_text", "content", "advice", "lesson"),
    "lessons": ("lessons", "lesson_numbers", "lesson_ids", "sources", "from"),
    "scope": ("scope", "predictor"),
    "reason": ("reason", "why", "rationale"),
}
"""The names that LMs give the fields of an operation."""


def known_lessons(
    lessons: Iterable[Lesson], library: ExperienceLibrary
) -> tuple[list[Keep], list[Lesson]]:
    """A KEEP for each lesson that the library has already, in nearly the same words; the others."""
    keeps, new = [], []
    for lesson in lessons:
        same = (e.id for e in library if is_same_lesson(Lesson(e.text, e.scope), lesson))
        if id_ := next(same, ""):
            keeps.append(Keep(id_, reason="seen again", evidence=lesson.evidence))
        else:
            new.append(lesson)
    return keeps, new


def admitted(
    operations: Iterable[Operation], predictors: Sequence[str], guard: Guard
) -> tuple[list[Operation], list[Refusal]]:
    """The operations whose scope is a predictor and whose text the guard lets in; the others.

    Everybody's operations come through here: those of the reflection LM, of a person, of a
    strategy. A scope may be written as an LM writes it.
    """
    taken: list[Operation] = []
    refused: list[Refusal] = []
    for operation in operations:
        if isinstance(operation, Add | Modify) and operation.scope is not None:
            scope = answer_forms.resolve_scope(operation.scope, predictors)
            if scope is None:
                unknown = f"scope {operation.scope!r} names none of {[*predictors]}"
                refused.append(Refusal(operation, unknown))
                continue
            operation = replace(operation, scope=scope)
        if reason := guard.reason(getattr(operation, "text", "")):
            refused.append(Refusal(operation, reason))
        else:
            taken.append(operation)
    return taken, refused


def retold(operation: Operation, dropped: Iterable[Lesson]) -> Operation:
    """The operation; one that only rewords dropped advice says it as it was tried."""
    if not isinstance(operation, Add):
        return operation
    scope, text = operation.scope, operation.text
    same = (old for old in dropped if is_same_lesson(old, Lesson(text, scope)))
    return replace(operation, text=next(same, Lesson(text)).text)


def operations_in(
    items: Sequence[Any] | None,
    lessons: Sequence[Lesson],
    library: ExperienceLibrary,
    predictors: Sequence[str],
    guard: Guard,
    unknown_scope: Callable[[str], None],
) -> list[Operation | Refusal]:
    """The operations that these items are; what is refused stands in its place.

    Where nothing could be read, they are the lessons as ADDs. The evidence of an operation is that
    of the lessons that it names or, if it names none, resembles. An ADD that names no scope has
    the scope that they share.
    """
    if items is None:
        adds = [Add(each.text, each.scope, evidence=each.evidence) for each in lessons]
        return [*itertools.chain(*admitted(adds, predictors, guard))]
    texts = {experience.id: experience.text for experience in library}
    operations: list[Operation | Refusal] = []
    for item in items:
        if isinstance(item, Mapping):
            item = _scoped(item, predictors, unknown_scope)
        try:
            operation = values.operation_from(item)
        except LibraryError as error:
            operations.append(Refusal(item, str(error)))
            continue
        text = getattr(operation, "text", "")
        if refused := admitted([operation], predictors, guard)[1]:
            operations.append(Refusal(item, refused[0].reason))
            continue
        text = text or texts.get(getattr(operation, "id", ""), "")
        named = [lessons[n - 1] for n in sorted(set(item["lessons"])) if 0 < n <= len(lessons)]
        sources = named or sources_of(text, lessons)
        evidence = dict.fromkeys(e for lesson in sources for e in lesson.evidence)
        scopes = {lesson.scope for lesson in sources}
        if isinstance(operation, Add) and item["scope"] is None and len(scopes) == 1:
            operation = replace(operation, scope=scopes.pop())
        operations.append(replace(operation, evidence=tuple(evidence)))
    return operations


def _scoped(
    item: Mapping[str, Any], predictors: Sequence[str], unknown_scope: Callable[[str], None]
) -> dict[str, Any]:
    """The item with its text as that of a lesson; its scope a predictor, "*" or None (as it is)."""
    text, in_text = read_lesson(answer_forms.without_marks(item["text"]), predictors, "")
    named = scope = item["scope"] or in_text or None
    if named:
        scope = answer_forms.resolve_scope(named, predictors) if len(predictors) > 1 else ALL
    if named and not scope:
        unknown_scope(f"scope {named!r} of {text!r} names none of {[*predictors]}")
    return {**item, "text": text, "scope": scope}


def merge_keeps(operations: Sequence[Operation]) -> list[Operation]:
    """The KEEPs of an experience as one, or as evidence of the operation that changes it."""
    keeps: dict[str, Keep] = {}
    for keep in operations:
        if isinstance(keep, Keep):
            keeps[keep.id] = values.supported(keeps.get(keep.id, keep), keep)
    others = [operation for operation in operations if not isinstance(operation, Keep)]
    ids = [getattr(operation, "id", "") for operation in others]
    merged = [values.supported(op, keeps.get(id_, op)) for op, id_ in zip(others, ids, strict=True)]
    return [*(keep for id_, keep in keeps.items() if id_ not in ids), *merged]


def read_operations(answer: Any) -> list[Any]:
    """The operations of an answer as mappings: op, id, text, scope (maybe None), reason, lessons.

    An item that is no operation stays as it is, to be refused by itself. Raises ValueError:
    nothing in it can be read as an operation.
    """
    items = _items_in(answer) if isinstance(answer, str) else _items(answer)
    return [_operation(item) for item in items if item is not None]


def _items_in(answer: str) -> list[Any]:
    text = answer_forms.without_fences(answer)
    if answer_forms.is_nothing(text) and text.casefold() != "null":
        return []
    value = answer_forms.json_in(text)
    items = [None] if value is None else _items(value)
    if items and not any(isinstance(item, Mapping) for item in items):
        items = _operations_in_lines("\n".join(map(str, items))) or _operations_in_lines(text)
        if not items:
            raise ValueError(f"{text[:80]!r} holds no operation.")
    return items


def _items(value: Any) -> list[Any]:
    """The operations as a list: one object is a list of one, `{"ADD": ...}` names its op."""
    if isinstance(value, Mapping):
        named = {str(name).strip().upper(): value for name, value in value.items()}
        if isinstance(named.get("OPERATIONS"), list | Mapping):
            return _items(named["OPERATIONS"])
        if not named or not named.keys() <= _ONLY_FIELD.keys():
            return [value]
        return [
            {"op": op, **(item if isinstance(item, Mapping) else {_ONLY_FIELD[op]: item})}
            for op, items in named.items()
            for item in (items if isinstance(items, list) else [items])
        ]
    if not isinstance(value, list):
        raise ValueError(f"{value!r} holds no operation.")
    is_nested = (list, Mapping)
    return [p for item in value for p in (_items(item) if isinstance(item, is_nested) else [item])]


def _operations_in_lines(text: str) -> list[dict[str, Any]]:
    """The operations of lines such as "- ADD: Say please." or "KEEP [E1]"."""
    operations = []
    for line in text.splitlines():
        operation = _OPERATION_LINE.fullmatch(answer_forms.bare_line(line))
        if operation and any(operation.groups()[1:]):
            op, id_, rest = operation.groups()
            advice = None if op == "KEEP" else answer_forms.bare_line(rest)
            operations.append({"op": op, "id": id_, "text": advice})
    return operations


def _operation(item: Any) -> Any:
    if isinstance(item, str):
        item = next(iter(_operations_in_lines(item)), item)
    if not isinstance(item, Mapping):
        return item
    named = {str(name).strip().lower(): value for name, value in item.items() if value is not None}
    fields = {name: next((named[n] for n in names if n in named), "") for name, names in
             _NAMES.items()}  # fmt: skip
    texts = {name: _as_text(value) for name, value in fields.items()}
    return {
        **texts,
        "op": texts["op"].upper(),
        "text": "" if isinstance(fields["text"], int) else texts["text"],
        "lessons": [*map(int, _NUMBER.findall(str(fields["lessons"])))],
        "scope": texts["scope"] or None,
    }


def _as_text(value: Any) -> str:
    """A text as it is, a whole number as its digits; the first of several; "" for all else."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    text = str(value).strip()
    return "" if text.casefold() in ("null", "none") else text
