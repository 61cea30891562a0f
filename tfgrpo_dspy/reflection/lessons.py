"""Lessons as values: how a line is read, which ones copy the training data, which are the same."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tfgrpo_dspy.experience import ALL, Evidence

COPIED_WORDS = 8
"""A lesson that has this many words in a row from a training input or label copies it."""
COPIED_LABEL_WORDS = 4
"""A lesson that holds a whole label of at least this many words copies it."""
NEAR_DUPLICATE = 0.8
"""Share of a lesson's words that a shorter one must have, to be taken for the same."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_SCOPED = re.compile(r"\[([^\]]+)\]\s*:?\s*(.+)")
_BULLET = re.compile(r"^(?:[-*\u2022]|\(?\d{1,2}[.):])(?:\s+|$)")
_TURNING = frozenset(
    "not no never t avoid without instead unless except cannot nor".split()  # noqa: SIM905
    + "nicht kein keine nie ohne ne pas jamais sans nunca sin non senza não sem".split()  # noqa: SIM905
    + list("不没沒别別勿未莫無无非")
)
"""Words that turn the meaning; the t is that of "don't"."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A candidate for an experience, with the groups that it was drawn from."""

    text: str
    scope: str = ALL
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class RefusedLesson:
    """A lesson that was left out, and why."""

    text: str
    reason: str


def read_lesson(line: str, predictors: Sequence[str], evidence: Evidence) -> Lesson:
    """The lesson that a line stands for: white space and bullets go, `[name]` gives the scope.

    A name that is no predictor's stays in the text, and the lesson is for all.
    """
    text = _BULLET.sub("", " ".join(line.split()))
    scoped = _SCOPED.fullmatch(text)
    if scoped and scoped[1] in predictors:
        scope = scoped[1] if len(predictors) > 1 else ALL
        return Lesson(scoped[2], scope, (evidence,))
    return Lesson(text, ALL, (evidence,))


class CopyGuard:
    """Knows the training texts and refuses what copies long runs of words from them.

    Args:
        inputs: the text of every input field of every training example.
        labels: the text of every label.
    """

    def __init__(self, inputs: Iterable[str], labels: Iterable[str]) -> None:
        self._runs: set[tuple[str, ...]] = set()
        self._labels: set[tuple[str, ...]] = set()
        for text in inputs:
            self._runs.update(_runs(_words(text), COPIED_WORDS))
        for text in labels:
            words = tuple(_words(text))
            self._runs.update(_runs(words, COPIED_WORDS))
            if len(words) >= COPIED_LABEL_WORDS:
                self._labels.add(words)
        self._label_lengths = sorted({len(label) for label in self._labels})

    def reason(self, text: str) -> str:
        """Why the text is refused, with the words that it copies; "" if it is not."""
        words = _words(text)
        copied = next((run for run in _runs(words, COPIED_WORDS) if run in self._runs), None)
        if copied is None:
            for length in self._label_lengths:
                copied = next((r for r in _runs(words, length) if r in self._labels), copied)
        return f"copies the training data: '{' '.join(copied)}'" if copied else ""


def merge_lessons(lessons: Iterable[Lesson]) -> list[Lesson]:
    """The lessons, near-duplicates as one with the evidence of all; the best supported first."""
    merged: list[Lesson] = []
    for lesson in lessons:
        twin = next((i for i, known in enumerate(merged) if is_same_lesson(known, lesson)), None)
        if twin is None:
            merged.append(lesson)
        else:
            evidence = dict.fromkeys((*merged[twin].evidence, *lesson.evidence))
            merged[twin] = replace(merged[twin], evidence=tuple(evidence))
    return sorted(merged, key=lambda lesson: -len(lesson.evidence))


def is_same_lesson(one: Lesson, other: Lesson) -> bool:
    """Whether two lessons of one scope say the same: one is the other with a few words more.

    Never when those have a number or a word that turns the meaning ("not", "never") among them;
    nor when a word or the order is another ("short" and "long", "before" and "after").
    """
    shorter, longer = sorted((_words(one.text), _words(other.text)), key=len)
    if one.scope != other.scope or len(shorter) < NEAR_DUPLICATE * len(longer):
        return False
    rest = iter(longer)
    if not all(word in rest for word in shorter):
        return False
    more = Counter(longer) - Counter(shorter)
    return not any(word in _TURNING or any(map(str.isdigit, word)) for word in more)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs(words: Sequence[str], length: int) -> Iterable[tuple[str, ...]]:
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))
