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


def lessons_in(
    output: Any,
    blank: Lesson,
    predictors: Sequence[str],
    guard: CopyGuard,
    n_examples: int,
    max_words: int,
    unknown_scope: Callable[[str], None],
) -> tuple[list[Lesson], list[str]]:
    """The lessons of an answer; the texts of those that are refused, each with the reason.

    Args:
        output: what the module gave.
        blank: evidence, reason and example of all of them.
        predictors: the names of the program's predictors.
        guard: refuses copies of the examples that the module was shown.
        n_examples: how many these were.
        max_words: how many words one experience may have.
        unknown_scope: called with a message for each scope that names no predictor.
    """
    try:
        lines = [encodable(line) for line in read_lessons(output)]
    except ValueError:  # a module of the user's own may answer anything
        lines = []
    most = LESSONS_PER_EXAMPLE * n_examples
    refused = [
        f"{len(lines) - most} more lessons "
        f"({LESSONS_PER_EXAMPLE} lessons of an answer are read for each example)"
    ] * (len(lines) > most)
    taken = []
    for line in lines[:most]:
        text, scope = read_lesson(line, predictors)
        if not text:
            continue
        if names_unknown_predictor(text, predictors):
            unknown_scope(f"{text!r} names none of {list(predictors)}; it is taken for all")
        if reason := guard.reason(text) or unfit_reason(text, max_words):
            refused.append(f"{text} ({reason})")
        else:
            taken.append(replace(blank, text=text, scope=scope))
    return taken, refused


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
