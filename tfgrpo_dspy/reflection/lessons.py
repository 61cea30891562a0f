"""Lessons as values: how an answer is read, which lessons are held back, which say the same."""

import functools
import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tfgrpo_dspy.experience.values import ALL, WORD, Evidence, n_words, normalized, supported
from tfgrpo_dspy.reflection.reading import read_lessons, resolve_scope
from tfgrpo_dspy.reflection.signatures import SAMPLES

LESSONS_PER_EXAMPLE = 10  # are read of an answer, for each example that it was shown
LONGEST_LESSON = 3  # times as long as an experience: UpdateLibrary may shorten it
COPIED_WORDS, COPIED_LABEL, COPIED_INPUT, COPIED_EXAMPLE = 8, 4, 5, 5
"""So many words make a copy: in a row; a whole label; a whole input; a whole example. Of a script
without spaces, where each character is counted as a word, twice as many."""
NEAR_DUPLICATE = 0.8  # of the words of a lesson stand in one that counts as the same
LIKE_SHARE, LEAST_SHARE = 0.5, 0.2
"""Share of a lesson's letter groups that a text which rests on it has: for sure; at least."""

_SCOPED = re.compile(r"[\[\u3010]([^\]\u3011]+)[\]\u3011]\s*[:\uff1a]?\s*(.+)")
_SOURCES = re.compile(
    r"\s*[\[(\uff08](?:from |see |for )?(?:examples?|groups?|cases?|ex\.?|beispiele?|exemples?"
    r"|ejemplos?|esempi[oe]?|exemplos?|примеры?|示例|例子?)\s*#?"
    r"\d{1,3}(?:\s*(?:,|;|\u3001|&|and|und|et|y|e|и|和)\s*#?\d{1,3})*\s*[\])\uff09]\s*[.\u3002]?$",
    re.IGNORECASE,
)
_ADDRESS = "holds an address"
_HELD_BACK = {
    _ADDRESS: r"[a-z][a-z0-9+.-]{0,30}://(?=\w)|\bwww\.(?=\w)|[\w.+-]{1,64}@[\w-]{1,63}\.\w"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}\b"
    r"|\b[\w-]{1,63}\.(?-i:com|net|org|io|ru|cn|xyz|dev|app|biz|info(?!\())\b",
    "asks to give a secret away": r"\b(?:reveal|disclose|leak|exfiltrate|print|repeat|output|show"
    r"|send|forward|share|include)\b.{0,40}\b(?:system prompt|api[ _-]?keys?|credentials"
    r"|access tokens?|(?<!reset )(?<!reset the )(?<!reset a )passwords?(?! reset\b))\b",
    "asks to ignore instructions": r"\b(?:ignore|disregard|forget|override|bypass)\b.{0,40}"
    r"\b(?:instructions?|prompts?|rules)\b"
    r"|\b(?:ignorier\w*|vergiss)\b.{0,40}\b(?:anweisung\w*|regeln)\b"
    r"|\b(?:ignore[rz]?|oublie[rz]?|ignora[r]?|olvida[r]?)\b.{0,40}\binstruc\w+"
    r"|(?:忽略|无视|無視).{0,20}(?:指令|指示|说明|規則|规则|提示)",
}
_FORBIDS = re.compile(
    r"(?:\b(?:never|not|don't|cannot|without|nie|nicht|jamais|nunca)\s+(?:\w+\s+)?|[不勿别]要?)$",
    re.IGNORECASE,
)
_TURNING = re.compile(
    r"not?|never|t|avoid|without|instead|unless|except|cannot|nor|nicht|keine?|nie|ohne|ne|pas"
    r"|jamais|sans|nunca|sin|non|senza|não|sem|[不没沒别別勿未莫無无非]|.*\d.*"
)
"""Words that turn the meaning, and numbers; the t is that of "don't"."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A candidate for an experience, with the groups that it was drawn from.

    `reason` is the semantic advantage that it rests on, or why it was dropped after a trial;
    `example` is how its first example begins.
    """

    text: str
    scope: str = ALL
    evidence: tuple[Evidence, ...] = ()
    reason: str = ""
    example: str = ""


def lessons_in(
    output: Any,
    blank: Lesson,
    predictors: Sequence[str],
    guard: "Guard",
    n_examples: int,
    max_words: int,
    unknown_scope: Callable[[str], None],
) -> tuple[list[Lesson], list[str]]:
    """The lessons of an answer; the texts of those that are refused, each with the reason.

    `blank` has the evidence, reason and example of all of them, and the scope of those that name
    none. `unknown_scope` is told of each
    scope that names no predictor.
    """
    try:
        lines = read_lessons(output)
    except ValueError:  # a module of the user's own may answer anything
        lines = []
    most = LESSONS_PER_EXAMPLE * n_examples
    taken, refused = [], []
    if len(lines) > most:
        allowed = f"({LESSONS_PER_EXAMPLE} lessons of an answer are read for each example)"
        refused.append(f"{len(lines) - most} more lessons {allowed}")
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
            taken.append(replace(blank, text=text, scope=scope))
    return taken, refused


def read_lesson(line: str, predictors: Sequence[str], usual: str = ALL) -> tuple[str, str]:
    """Text and scope of the lesson in a line without bullet: `[name]` gives the scope.

    Brackets that name none of the program's predictors stay in the text, and the lesson has the
    `usual` scope. A note on its sources, such as "(examples 1, 3)", is left out.
    """
    text = _SOURCES.sub("", " ".join(line.split()))
    scoped = _SCOPED.fullmatch(text)
    if scoped is None or (scope := resolve_scope(scoped[1], predictors)) is None:
        return text, usual
    return scoped[2], scope if len(predictors) > 1 else ALL


def unsafe_reason(text: str) -> str:
    """Why advice is held back, for the user to see; "" if it is not held back.

    Whoever writes a training input can influence what the reflection LM writes. Advice that forbids
    a bad thing ("Never ignore the instructions.") is not held back.
    """
    if text in SAMPLES:
        return "repeats the sample answer of the prompt"
    for what, pattern in _HELD_BACK.items():
        for found in re.finditer(pattern, text, re.IGNORECASE):
            if what == _ADDRESS or not _FORBIDS.search(text[: found.start()]):
                return f"held back: it {what} ({found[0]!r})"
    return ""


class Guard:
    """Refuses what copies an example, or long runs of words from one, and unsafe advice.

    `examples` holds the input fields and the labels of each, as texts by name.
    """

    def __init__(self, examples: Iterable[tuple[Mapping[str, str], Mapping[str, str]]]) -> None:
        self._runs: set[tuple[str, ...]] = set()
        self._wholes: list[list[str]] = []  # a copy holds all texts of one of these
        for fields in examples:
            inputs, labels = ([_words_of(text) for text in each.values()] for each in fields)
            for words in (*inputs, *labels):
                self._runs.update(_runs(words, _scale(words)))
            wholes = [[words] for words in inputs if len(words) >= COPIED_INPUT * _scale(words)]
            wholes += [[words] for words in labels if len(words) >= COPIED_LABEL * _scale(words)]
            example, said = [*inputs, *labels], [*itertools.chain(*inputs, *labels)]
            if labels and all(example) and len(said) >= COPIED_EXAMPLE * _scale(said):
                wholes.append(example)
            self._wholes += [[*map(" ".join, whole)] for whole in wholes]

    def reason(self, text: str) -> str:
        """Why the text is refused, with the words that are the reason; "" if it is not."""
        words = _words(text)
        copied = [[" ".join(run)] for n in (1, 2) for run in _runs(words, n) if run in self._runs]
        said = f" {' '.join(words)} "
        copied += [whole for whole in self._wholes if all(f" {part} " in said for part in whole)]
        if copied:
            return f"copies the training data: '{' ... '.join(copied[0])}'"
        return unsafe_reason(text)


def merge_lessons(lessons: Iterable[Lesson]) -> list[Lesson]:
    """The lessons, near-duplicates as one with the evidence of all; the best supported first."""
    merged: list[Lesson] = []
    for lesson in lessons:
        same = next((i for i, known in enumerate(merged) if is_same_lesson(known, lesson)), None)
        if same is None:
            merged.append(lesson)
        else:
            merged[same] = supported(merged[same], lesson)
    return sorted(merged, key=lambda lesson: -len(lesson.evidence))


def is_same_lesson(one: Lesson, other: Lesson) -> bool:
    """Whether two lessons of one scope say the same: one is the other with a few words more.

    Those may not be numbers or signs ("<"), nor turn the meaning ("not", "never").
    """
    shorter, longer = sorted((_words(one.text), _words(other.text)), key=len)
    if one.scope != other.scope or len(shorter) < NEAR_DUPLICATE * len(longer):
        return False
    if _signs(one.text) != _signs(other.text):
        return False
    rest = iter(longer)
    if not all(word in rest for word in shorter):
        return False
    more = Counter(longer) - Counter(shorter)
    return not any(map(_TURNING.fullmatch, more))


def sources_of(text: str, lessons: Sequence[Lesson]) -> list[Lesson]:
    """The lessons that a text rests on: a single one, or those of whose words it has enough.

    It compares letter pairs and triples, which works in any language. Those that all lessons have
    count next to nothing. Where no lesson reaches `LIKE_SHARE`, it is the best one, if any.
    """
    if len(lessons) < 2:
        return list(lessons)
    groups = [_letter_groups(lesson.text) for lesson in lessons]
    uses = Counter(gram for of_lesson in groups for gram in of_lesson)
    weights = {gram: math.log((len(lessons) + 0.1) / n) for gram, n in uses.items()}

    def weight(grams: set[str]) -> float:
        return math.fsum(weights[gram] for gram in grams)

    in_text = _letter_groups(text)
    shares = [weight(grams & in_text) / (weight(grams) or 1.0) for grams in groups]
    least = LIKE_SHARE if max(shares) >= LIKE_SHARE else max(LEAST_SHARE, *shares)
    return [lesson for lesson, share in zip(lessons, shares, strict=True) if share >= least]


def _letter_groups(text: str) -> set[str]:
    folded = f" {' '.join(_words(text))} "
    return {folded[i : i + n] for n in (2, 3) for i in range(len(folded) - n + 1)}


def _words_of(text: str) -> tuple[str, ...]:
    found = WORD.findall(normalized.__wrapped__(text))
    return tuple(word for word in found if any(map(str.isalnum, word)))


_words = functools.lru_cache(maxsize=4096)(_words_of)  # each lesson is compared with each other


def _signs(text: str) -> list[str]:
    """The signs of mathematics and of currencies, and #."""
    return [char for char in text if unicodedata.category(char) in ("Sm", "Sc") or char == "#"]


def _scale(words: Sequence[str]) -> int:
    """2 where most words are single characters of a script without spaces, else 1."""
    n_single = sum(len(word) == 1 and word >= "\u0e00" for word in words)
    return 2 if n_single > len(words) / 2 else 1


def _runs(words: tuple[str, ...], scale: int) -> Iterator[tuple[str, ...]]:
    n = COPIED_WORDS * scale
    return (words[start : start + n] for start in range(len(words) - n + 1))
