"""What answers of the reflection LM become: lessons, refused lessons, operations on the library."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.errors import LibraryError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import (
    ALL,
    Add,
    Delete,
    Evidence,
    Keep,
    Modify,
    Operation,
    Refusal,
    operation_from,
)
from tfgrpo_dspy.reflection.lessons import (
    CopyGuard,
    Lesson,
    is_same_lesson,
    names_unknown_predictor,
    read_lesson,
    sources_of,
    unfit_reason,
    unsafe_reason,
)
from tfgrpo_dspy.reflection.proposals import read_operations
from tfgrpo_dspy.reflection.reading import read_lessons, resolve_scope
from tfgrpo_dspy.reflection.texts import encodable, estimate_tokens, lessons_text

LESSONS_PER_EXAMPLE = 10
"""So many lessons of an answer are read for each example that it was shown."""
REASON_TOKENS = 60
"""How long (estimated) the reason of a lesson may be in the prompt of an update."""


def lessons_in(
    output: Any,
    reason: str,
    predictors: Sequence[str],
    evidence: Sequence[Evidence],
    unknown_scope: Callable[[str], None],
) -> tuple[list[Lesson], list[str]]:
    """The lessons that an answer holds, and one text for those above the limit.

    Args:
        output: what the module gave.
        reason: the semantic advantage, or critique, that it gave beside them.
        predictors: the names of the program's predictors.
        evidence: the groups, or the examples, that it was shown, in their order.
        unknown_scope: called with a message for each scope that names no predictor.
    """
    try:
        lines = [encodable(line) for line in read_lessons(output)]
    except ValueError:  # a module of the user's own may answer anything
        lines = []
    most = LESSONS_PER_EXAMPLE * len(evidence)
    lessons = [read_lesson(line, predictors, evidence) for line in lines[:most]]
    for lesson in lessons:
        if names_unknown_predictor(lesson, predictors):
            unknown_scope(f"{lesson.text!r} names none of {list(predictors)}; it is taken for all")
    reason = shortened(reason, REASON_TOKENS)
    refused = (
        f"{len(lines) - most} more lessons "
        f"({LESSONS_PER_EXAMPLE} lessons of an answer are read for each example)"
    )
    found = [replace(lesson, reason=reason) for lesson in lessons if lesson.text]
    return found, [refused] if len(lines) > most else []


def check_lessons(
    lessons: Sequence[Lesson], guard: CopyGuard, max_words: int
) -> tuple[list[Lesson], list[str]]:
    """The lessons that are taken; the texts of those that are refused, each with the reason."""
    kept, refused = [], []
    for lesson in lessons:
        if reason := guard.reason(lesson.text) or unfit_reason(lesson, max_words):
            refused.append(f"{lesson.text} ({reason})")
        else:
            kept.append(lesson)
    return kept, refused


def shortened(text: str, max_tokens: int) -> str:
    """The beginning of the text, on one line."""
    line = " ".join(text.split())
    if estimate_tokens(line) <= max_tokens:
        return line
    while estimate_tokens(line) > max_tokens:
        line = line[: len(line) * 9 // 10]
    return f"{line.rstrip()} ..."


def known_lessons(
    lessons: Iterable[Lesson], library: ExperienceLibrary
) -> tuple[list[Keep], list[Lesson]]:
    """A KEEP for each lesson that the library has already, in nearly the same words; the others."""
    keeps, new = [], []
    for lesson in lessons:
        same = (e for e in library if is_same_lesson(Lesson(e.text, e.scope), lesson))
        experience = next(same, None)
        if experience is None:
            new.append(lesson)
        else:
            keeps.append(Keep(experience.id, "seen again", lesson.evidence))
    return keeps, new


def packed_lessons(lessons: Iterable[Lesson], max_tokens: int) -> list[list[Lesson]]:
    """The lessons in their order, in as few prompts as the size of one allows."""
    chunks: list[list[Lesson]] = []
    room = 0
    for lesson in lessons:
        size = estimate_tokens(lessons_text([lesson])) + 2  # its number may have more digits
        if size > room:
            chunks.append([])
            room = max_tokens
        chunks[-1].append(lesson)
        room -= size
    return chunks


def additions(lessons: Iterable[Lesson]) -> list[Add]:
    """The lessons as they stand, as ADDs."""
    return [Add(lesson.text, lesson.scope, "", lesson.evidence) for lesson in lessons]


def operations_in(
    output: Any,
    lessons: Sequence[Lesson],
    library: ExperienceLibrary,
    predictors: Sequence[str],
    guard: CopyGuard,
    unknown_scope: Callable[[str], None],
) -> list[Operation | Refusal]:
    """The operations that an answer of UpdateLibrary holds; what is refused stands in its place.

    Where nothing can be read, they are the lessons as ADDs. The evidence of an operation is that of
    the lessons that it names or, if it names none, resembles.

    Args:
        output: what the module gave; None: nothing.
        lessons: what it was shown.
        library: the library that it was shown.
        predictors: the names of the program's predictors.
        guard: refuses copies of the examples that the lessons come from.
        unknown_scope: called with a message for each scope that names no predictor.
    """
    try:
        items = None if output is None else read_operations(output)
    except ValueError:  # a module of the user's own may answer anything
        items = None
    if items is None:
        return [*additions(lessons)]
    found: list[Operation | Refusal] = []
    for item in items:
        operation = _operation_in(item, predictors, guard, unknown_scope)
        if not isinstance(operation, Refusal):
            text = _text_of(operation, library)
            named = [lessons[n - 1] for n in sorted(set(item["lessons"])) if 0 < n <= len(lessons)]
            sources = named or sources_of(text, lessons)
            evidence = dict.fromkeys(e for lesson in sources for e in lesson.evidence)
            operation = replace(operation, evidence=tuple(evidence))
        found.append(operation)
    return found


def _operation_in(
    item: Any, predictors: Sequence[str], guard: CopyGuard, unknown_scope: Callable[[str], None]
) -> Operation | Refusal:
    if isinstance(item, Mapping):
        scope = _scope_of(item, predictors, unknown_scope)
        text = " ".join(item["text"].split())  # an experience is one line
        item = {**item, "text": text, "scope": scope}
    try:
        operation = operation_from(item)
    except LibraryError as error:
        return Refusal(item, str(error))
    if isinstance(operation, Delete | Keep):
        return operation
    reason = guard.reason(operation.text) or unsafe_reason(operation.text)
    return Refusal(item, reason) if reason else operation


def _text_of(operation: Operation, library: ExperienceLibrary) -> str:
    """The text that the operation gives, or that of the experience that it names."""
    if isinstance(operation, Add | Modify):
        return operation.text
    return library[operation.id].text if operation.id in library else ""


def _scope_of(
    item: Mapping[str, Any], predictors: Sequence[str], unknown_scope: Callable[[str], None]
) -> str | None:
    """The predictor that is named, "*" for all; None, which leaves it as it is, if none is."""
    if item["scope"] is None or len(predictors) == 1:
        return item["scope"] and ALL
    scope = resolve_scope(item["scope"], predictors)
    if scope is None:
        unknown_scope(f"scope {item['scope']!r} of {item['text']!r} names none of {[*predictors]}")
    return scope


def merge_keeps(operations: Sequence[Operation]) -> list[Operation]:
    """The KEEPs of an experience as one, or as evidence of the operation that changes it."""
    support: dict[str, list[Evidence]] = {}
    for operation in operations:
        if isinstance(operation, Keep):
            support.setdefault(operation.id, []).extend(operation.evidence)
    changing = {op.id for op in operations if isinstance(op, Modify | Delete)}
    merged: list[Operation] = []
    for operation in operations:
        if isinstance(operation, Add):
            merged.append(operation)
        elif not isinstance(operation, Keep) or operation.id in support.keys() - changing:
            evidence = dict.fromkeys((*operation.evidence, *support.pop(operation.id, ())))
            merged.append(replace(operation, evidence=tuple(evidence)))
    return merged
