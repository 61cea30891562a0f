"""Lessons and operations as values: which are held back, which say the same, what they rest on.

Advice that copies an example is held back; the gate judges all other advice by what it adds. What
belongs to the task is no copy: what stands in the user's own program, a label that names a class, a
form that many inputs have.
"""

import functools
import inspect
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tfgrpo_dspy.errors import LibraryError
from tfgrpo_dspy.experience import (
    ALL,
    Add,
    Evidence,
    ExperienceLibrary,
    Keep,
    Modify,
    Operation,
    Refusal,
    operation_from,
    supported,
)
from tfgrpo_dspy.experience.programs import bare_instructions, named_predictors
from tfgrpo_dspy.identity import schema_of
from tfgrpo_dspy.reflection.reading import bare_line
from tfgrpo_dspy.text import letter_groups, n_single_letters, n_words, says_same, words_of

LESSONS_PER_EXAMPLE = 10  # are read of an answer, for each example that it was shown
TOO_MANY = f"({LESSONS_PER_EXAMPLE} lessons of an answer are read for each example)"
LONGEST_LESSON = 3  # times as long as an experience: UpdateLibrary may shorten it
LIKE_SHARE, LEAST_SHARE = 0.5, 0.2
"""A text rests on each lesson of which it holds the first share of letter groups; if there is
none, on the lesson of which it holds the most, from the second share on."""
COPIED_WORDS, COPIED_LABEL, COPIED_INPUT, COPIED_EXAMPLE = 8, 4, 5, 5
"""Words that make a copy: in a row; of a whole label; of a whole input; of a whole example. In a
script without spaces, where each character is counted as a word, twice as many do."""
SHARED_LABELS = 2  # examples with unlike inputs: what their labels share is no copy
SHARED_INPUTS, SHARED_PART = 3, 0.1
"""Words in the inputs of at least 3 examples, and a tenth of all, are a form, not a copy."""
SETTING = 'Reflection(guard="warn") takes it'
_FOR_ALL = ("", "*", "all", "any", "both", "every", "everything", "program", "the program")
_SCOPED = re.compile(r"[\[\u3010][^\]\u3011]+[\]\u3011]\s*[:\uff1a]?\s*.+")
_END_OF_SCOPE = re.compile(r"[\]\u3011]\s*[:\uff1a]?\s*(?=\S)")  # maybe: a name is `steps[0]`, too
_SOURCES = re.compile(
    r"\s*[\[(\uff08](?:from |see |for )?(?:examples?|groups?|cases?|ex\.?|beispiele?|exemples?"
    r"|ejemplos?|esempi[oe]?|exemplos?|примеры?|示例|例子?)\s*#?"
    r"\d{1,3}(?:\s*(?:,|;|\u3001|&|and|und|et|y|e|и|和)\s*#?\d{1,3})*\s*[\])\uff09]\s*[.\u3002]?$",
    re.IGNORECASE,
)
Fields = tuple[Mapping[str, str], Mapping[str, str]]
"""The input fields and the labels of an example, as texts by name."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A candidate for an experience, with the groups that it was drawn from."""

    text: str
    scope: str = ALL
    evidence: tuple[Evidence, ...] = ()
    reason: str = ""  # the semantic advantage that it rests on, or why it was dropped
    example: str = ""  # how its first one begins


class Task:
    """The user's program (a text) and examples (read when needed): what is no copy."""

    def __init__(self, program: str = "", examples: Callable[[], Iterable[Fields]] = list) -> None:
        self._program, self._read = program, examples
        self.shares = functools.cache(self._shares)

    @functools.cached_property
    def _words(self) -> tuple[str, list[tuple[str, str]]]:
        """The words of the program; of inputs and labels of each example, of equal inputs once."""
        lines = (["\n".join(part.values()) for part in fields] for fields in self._read())
        folded = [(_folded(inputs), _folded(labels)) for inputs, labels in lines]
        return _folded(self._program), [*dict(folded).items()]

    def _shares(self, phrase: str) -> bool:
        """True if these words belong to the task: to its program, to a class, to a form."""
        program, data = self._words
        sought = f" {phrase} "
        n_inputs = sum(sought in inputs for inputs, _ in data)
        n_labels = sum(sought in labels for _, labels in data)
        is_form = n_inputs >= max(SHARED_INPUTS, SHARED_PART * len(data))
        return sought in program or n_labels >= SHARED_LABELS or is_form


def _folded(text: str) -> str:
    return "\n".join(f" {' '.join(words_of(line))} " for line in text.splitlines())


def task_text(program: Any, objective: str = "") -> str:
    """The user's own text in the program, with the values of a Literal or an Enum."""
    parts = [objective, inspect.getdoc(type(program)) or ""]
    for name, predictor in named_predictors(program):
        parts += [name, bare_instructions(predictor)]
        for field, info in predictor.signature.fields.items():
            parts += [field, str((info.json_schema_extra or {}).get("desc", ""))]
            schema = schema_of(info.annotation)
            parts.append(str(info.annotation if schema is None else schema))
    return "\n".join(parts)


class Guard:
    """Refuses copies of these examples, of their labels, and of long runs of words in them."""

    def __init__(
        self,
        examples: Iterable[Fields],
        task: Task | None = None,
        refuses: Callable[[str, str], bool] = lambda _text, _reason: True,  # the reason against it
    ) -> None:
        self._task, self._refuses = task or Task(), refuses
        self._runs: set[tuple[str, ...]] = set()
        self._wholes: list[tuple[str, ...]] = []  # a copy holds all texts of one of these
        self._labels: set[tuple[str, ...]] = set()
        for fields in examples:
            inputs, labels = ([words_of(text) for text in each.values()] for each in fields)
            self._labels.update(labels)
            sizes = [COPIED_INPUT] * len(inputs) + [COPIED_LABEL] * len(labels)
            for parts, size in zip(example := [*inputs, *labels], sizes, strict=True):
                if len(parts) >= size * _scale(parts):
                    self._wholes.append((" ".join(parts),))
                self._runs.update(_runs(parts, _scale(parts)))
            every = [*itertools.chain(*example)]
            if labels and all(example) and len(every) >= COPIED_EXAMPLE * _scale(every):
                self._wholes.append(tuple(map(" ".join, example)))

    def reason(self, text: str) -> str:
        """The reason to refuse the text, with the words that it copies; "" if there is none."""
        parts = words_of(text)
        runs = (run for n in (1, 2) for run in _runs(parts, n) if run in self._runs)
        copied: list[tuple[str, ...]] = [(" ".join(run),) for run in runs]
        sentence = f" {' '.join(parts)} "
        copied += [one for one in self._wholes if all(f" {part} " in sentence for part in one)]
        copied = [one for one in copied if len(one) > 1 or not self._task.shares(one[0])]
        reason = f"copies the training data: '{' ... '.join(copied[0])}'" if copied else ""
        if parts and parts in self._labels:
            reason = f"is nothing but a label: '{' '.join(parts)}'"
        return f"{reason}; {SETTING}" if reason and self._refuses(text, reason) else ""


def _scale(parts: Sequence[str]) -> int:
    """2 where most words are single characters of a script without spaces, else 1."""
    return 2 if n_single_letters(parts) > len(parts) / 2 else 1


def _runs(parts: tuple[str, ...], scale: int) -> Iterator[tuple[str, ...]]:
    n = COPIED_WORDS * scale
    return (parts[start : start + n] for start in range(len(parts) - n + 1))


def lessons_in(
    lines: Sequence[str],
    blank: Lesson,
    predictors: Sequence[str],
    guard: Guard,
    examples: Sequence[str],
    max_words: int,
) -> tuple[list[Lesson], list[str]]:
    """The lessons of these lines; the texts of those that are refused, each with the reason.

    `blank` has the reason of all of them, the scope of those that name none, and the evidence of
    those that name no examples.
    """
    most = LESSONS_PER_EXAMPLE * len(examples)
    taken = []
    refused = [f"{len(lines) - most} more lessons {TOO_MANY}"] if len(lines) > most else []
    for line in lines[:most]:
        text, scope = read_lesson(line, predictors, blank.scope)
        reason = f"more than {LONGEST_LESSON} times as long as an experience"
        if n_words(text) <= LONGEST_LESSON * max_words:
            reason = guard.reason(text)
        if reason:
            refused.append(f"{text} ({reason})")
        elif text:
            note = _SOURCES.search(" ".join(line.split()))
            named = {*map(int, re.findall(r"\d+", note[0]))} if note else set()
            places = [n for n in range(len(blank.evidence)) if n + 1 in named]
            evidence = tuple(blank.evidence[n] for n in places) or blank.evidence
            taken.append(Lesson(text, scope, evidence, blank.reason, examples[(places or [0])[0]]))
    return taken, refused


def read_lesson(line: str, predictors: Sequence[str], usual: str = ALL) -> tuple[str, str]:
    """Text and scope of the lesson in a line without bullet: `[name]` gives the scope.

    Brackets that name none of the program's predictors stay in the text, and the lesson has the
    `usual` scope. A note on its sources, such as "(examples 1, 3)", is left out.
    """
    text = _SOURCES.sub("", " ".join(line.split()))
    if _SCOPED.fullmatch(text):
        for end in _END_OF_SCOPE.finditer(text):
            if (scope := resolve_scope(text[1 : end.start()], predictors)) is not None:
                return text[end.end() :], scope if len(predictors) > 1 else ALL
    return text, usual


def resolve_scope(name: str, predictors: Sequence[str]) -> str | None:
    """The predictor that a name, or its only beginning or end, stands for; "*": all; None: none."""
    wanted = name.strip(" \"'`*:").removeprefix("predictor ").casefold()
    wanted = wanted[1:-1] if wanted[:1] + wanted[-1:] == "[]" else wanted
    if wanted in _FOR_ALL:
        return ALL
    part, dotted = f".{wanted}.", {each: f".{each}.".casefold() for each in predictors}
    same = [each for each in predictors if dotted[each] == part]
    near = [p for p in predictors if dotted[p].startswith(part) or dotted[p].endswith(part)]
    return (same or near)[0] if len(same or near) == 1 else None


def is_same_lesson(lesson: Lesson, other: Lesson) -> bool:
    """True if two lessons of one scope say the same."""
    return lesson.scope == other.scope and says_same(lesson.text, other.text)


def merge_lessons(lessons: Iterable[Lesson]) -> list[Lesson]:
    """The lessons, near-duplicates as one with the evidence of all; the best supported first."""
    merged: list[Lesson] = []
    for lesson in lessons:
        places = (i for i, earlier in enumerate(merged) if is_same_lesson(earlier, lesson))
        if (same := next(places, None)) is None:
            merged.append(lesson)
        else:
            merged[same] = supported(merged[same], lesson)
    return sorted(merged, key=lambda lesson: -len(lesson.evidence))


def sources_of(text: str, lessons: Sequence[Lesson]) -> list[Lesson]:
    """The lessons that a text rests on: a single one, or those of whose words it has enough.

    It compares letter pairs and triples, which works in any language. Those that all lessons have
    count next to nothing. Where no lesson reaches `LIKE_SHARE`, it is the best one, if any.
    """
    if len(lessons) < 2:
        return list(lessons)
    groups = [letter_groups(lesson.text) for lesson in lessons]
    uses = Counter(gram for of_lesson in groups for gram in of_lesson)
    weights = {gram: math.log((len(lessons) + 0.1) / n) for gram, n in uses.items()}

    def weight(grams: frozenset[str]) -> float:
        return math.fsum(weights[gram] for gram in grams)

    in_text = letter_groups(text)
    shares = [weight(grams & in_text) / (weight(grams) or 1.0) for grams in groups]
    least = LIKE_SHARE if max(shares) >= LIKE_SHARE else max(LEAST_SHARE, *shares)
    return [lesson for lesson, share in zip(lessons, shares, strict=True) if share >= least]


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


def operations_in(
    items: Sequence[Any] | None,
    lessons: Sequence[Lesson],
    library: ExperienceLibrary,
    predictors: Sequence[str],
    guard: Guard,
) -> list[Operation | Refusal]:
    """The operations that these items are; what is refused stands in its place.

    Where nothing could be read, they are the lessons as ADDs. The evidence of an operation is that
    of the lessons that it names or, if it names none, resembles. An ADD that names no scope has
    the scope that they share.
    """
    if items is None:
        adds = (Add(each.text, each.scope, evidence=each.evidence) for each in lessons)
        return [admitted(add, predictors, guard) for add in adds]
    operations: list[Operation | Refusal] = []
    for item in items:
        if isinstance(item, Mapping):
            text, in_text = read_lesson(bare_line(item["text"]), predictors, "")
            if scope := item["scope"] or in_text or None:
                scope = resolve_scope(scope, predictors) if len(predictors) > 1 else ALL
            item = {**item, "text": text, "scope": scope}
        try:
            operation = admitted(operation_from(item), predictors, guard)
        except LibraryError as error:
            operation = Refusal(item, str(error))
        if not isinstance(operation, Refusal):
            id_ = getattr(operation, "id", "")
            text = getattr(operation, "text", "") or (library[id_].text if id_ in library else "")
            numbers = sorted({*item["lessons"]})
            based = [lessons[n - 1] for n in numbers if 0 < n <= len(lessons)]
            based = based or sources_of(text, lessons)
            if isinstance(operation, Add) and item["scope"] is None:
                first, *others = {lesson.scope for lesson in based} or {ALL}
                operation = replace(operation, scope=ALL if others else first)
            for lesson in based:
                operation = supported(operation, lesson)
        operations.append(operation)
    return operations


def admitted(operation: Operation, predictors: Sequence[str], guard: Guard) -> Operation | Refusal:
    """The operation, if its scope is a predictor and the guard lets its text in; else why not.

    Everybody's operations come through here: those of the reflection LM, of a person, of a
    strategy. A scope may be written as an LM writes it.
    """
    if isinstance(operation, Add | Modify) and operation.scope is not None:
        scope = resolve_scope(operation.scope, predictors)
        if scope is None:
            names = f"scope {operation.scope!r} names none of {[*predictors]}"
            return Refusal(operation, names)
        operation = replace(operation, scope=scope)
    reason = guard.reason(getattr(operation, "text", ""))
    return Refusal(operation, reason) if reason else operation


def settled(operations: Sequence[Operation], dropped: Sequence[Lesson]) -> list[Operation]:
    """The operations, an ADD that only rewords dropped advice in the words that were tried.

    The KEEPs of an experience are one, or evidence of the operation that changes it.
    """
    keeps: dict[str, Keep] = {}
    others: list[Operation] = []
    for operation in operations:
        if isinstance(operation, Keep):
            keeps[operation.id] = supported(keeps.get(operation.id, operation), operation)
            continue
        if isinstance(operation, Add):
            new = Lesson(operation.text, operation.scope)
            same = (old.text for old in dropped if is_same_lesson(old, new))
            operation = replace(operation, text=next(same, new.text))
        others.append(operation)
    ids = {getattr(operation, "id", "") for operation in others}
    changed = [supported(op, keeps.get(getattr(op, "id", ""), op)) for op in others]
    return [*(keep for id_, keep in keeps.items() if id_ not in ids), *changed]
