"""Lessons as values: how an answer is read, which lessons are held back, which say the same."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tfgrpo_dspy.experience.values import ALL, Evidence, supported
from tfgrpo_dspy.reflection.answer_forms import resolve_scope
from tfgrpo_dspy.reflection.guard import Guard
from tfgrpo_dspy.wording import letter_groups, n_words, says_same

LESSONS_PER_EXAMPLE = 10  # are read of an answer, for each example that it was shown
TOO_MANY = f"({LESSONS_PER_EXAMPLE} lessons of an answer are read for each example)"
LONGEST_LESSON = 3  # times as long as an experience: UpdateLibrary may shorten it
LIKE_SHARE, LEAST_SHARE = 0.5, 0.2
"""A text rests on each lesson of which it holds the first share of letter groups; if there is
none, on the lesson of which it holds the most, from the second share on."""
_SCOPED = re.compile(r"[\[\u3010][^\]\u3011]+[\]\u3011]\s*[:\uff1a]?\s*.+")
_END_OF_SCOPE = re.compile(r"[\]\u3011]\s*[:\uff1a]?\s*(?=\S)")  # maybe: a name is `steps[0]`, too
_SOURCES = re.compile(
    r"\s*[\[(\uff08](?:from |see |for )?(?:examples?|groups?|cases?|ex\.?|beispiele?|exemples?"
    r"|ejemplos?|esempi[oe]?|exemplos?|примеры?|示例|例子?)\s*#?"
    r"\d{1,3}(?:\s*(?:,|;|\u3001|&|and|und|et|y|e|и|和)\s*#?\d{1,3})*\s*[\])\uff09]\s*[.\u3002]?$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Lesson:
    """A candidate for an experience, with the groups that it was drawn from."""

    text: str
    scope: str = ALL
    evidence: tuple[Evidence, ...] = ()
    reason: str = ""  # the semantic advantage that it rests on, or why it was dropped
    example: str = ""  # how its first one begins


def lessons_in(
    lines: Sequence[str],
    blank: Lesson,
    predictors: Sequence[str],
    guard: Guard,
    examples: Sequence[str],
    max_words: int,
    unknown_scope: Callable[[str], None],
) -> tuple[list[Lesson], list[str]]:
    """The lessons of these lines; the texts of those that are refused, each with the reason.

    `blank` has the reason of all of them, the scope of those that name none, and the evidence of
    those that name no examples. `unknown_scope` is told of each scope that names no predictor.
    """
    most = LESSONS_PER_EXAMPLE * len(examples)
    taken, refused = [], []
    if len(lines) > most:
        refused.append(f"{len(lines) - most} more lessons {TOO_MANY}")
    for line in lines[:most]:
        text, scope = read_lesson(line, predictors, blank.scope)
        if len(predictors) > 1 and _SCOPED.fullmatch(text):
            unknown_scope(f"{text!r} names none of {list(predictors)}; it is taken for all")
        reason = f"more than {LONGEST_LESSON} times as long as an experience"
        if n_words(text) <= LONGEST_LESSON * max_words:
            reason = guard.reason(text)
        if reason:
            refused.append(f"{text} ({reason})")
        elif text:
            evidence = _named(line, blank.evidence)
            place = blank.evidence.index(evidence[0]) if evidence else 0
            taken.append(Lesson(text, scope, evidence, blank.reason, examples[place]))
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


def _named(line: str, evidence: tuple[Evidence, ...]) -> tuple[Evidence, ...]:
    """The groups that the note on its sources names, by their places in the call; else all."""
    note = _SOURCES.search(" ".join(line.split()))
    numbers = set(map(int, re.findall(r"\d+", note[0]))) if note else set()
    return tuple(one for n, one in enumerate(evidence, 1) if n in numbers) or evidence


def merge_lessons(lessons: Iterable[Lesson]) -> list[Lesson]:
    """The lessons, near-duplicates as one with the evidence of all; the best supported first."""
    merged: list[Lesson] = []
    for lesson in lessons:
        places = (i for i, earlier in enumerate(merged) if is_same_lesson(earlier, lesson))
        same = next(places, None)
        if same is None:
            merged.append(lesson)
        else:
            merged[same] = supported(merged[same], lesson)
    return sorted(merged, key=lambda lesson: -len(lesson.evidence))


def is_same_lesson(lesson: Lesson, other: Lesson) -> bool:
    """True if two lessons of one scope say the same."""
    return lesson.scope == other.scope and says_same(lesson.text, other.text)


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
