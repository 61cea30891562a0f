"""Lessons as values: how a line is read, which ones are held back, which say the same."""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tfgrpo_dspy.experience.operations import n_words
from tfgrpo_dspy.experience.values import ALL, Evidence
from tfgrpo_dspy.reflection.reading import resolve_scope
from tfgrpo_dspy.reflection.signatures import SAMPLES

COPIED_WORDS = 8
"""A lesson that has this many words in a row from a training input or label copies it."""
COPIED_LABEL_WORDS = 4
"""A lesson that holds a whole label of at least this many words copies it."""
COPIED_INPUT_WORDS = 5
"""A lesson that holds a whole input of at least this many words copies it."""
COPIED_EXAMPLE_WORDS = 5
"""A lesson that holds all inputs and labels of an example, so many words together, copies it."""
LONGEST_LESSON = 3
"""How many times as long as an experience may be a lesson may be: UpdateLibrary may shorten it."""
NEAR_DUPLICATE = 0.8
"""Share of a lesson's words that a shorter one must have, to be taken for the same."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_SCOPED = re.compile(r"[\[\u3010]([^\]\u3011]+)[\]\u3011]\s*[:\uff1a]?\s*(.+)")
_SOURCES = re.compile(
    r"\s*[\[(\uff08](?:from |see |for )?(?:examples?|groups?|cases?|ex\.?|beispiele?|exemples?"
    r"|ejemplos?|esempi[oe]?|exemplos?|примеры?|示例|例子?)\s*#?"
    r"\d{1,3}(?:\s*(?:,|;|\u3001|&|and|und|et|y|e|и|和)\s*#?\d{1,3})*\s*[\])\uff09]\s*[.\u3002]?$",
    re.IGNORECASE,
)
_ADDRESS = re.compile(
    r"[a-z][a-z0-9+.-]*://(?=\w)|\bwww\.(?=\w)|[\w.+-]+@[\w-]+\.\w|\b\d{1,3}(?:\.\d{1,3}){3}\b"
    r"|\b[\w-]+\.(?-i:com|net|org|io|ru|cn|xyz|dev|app|info|biz)\b",
    re.IGNORECASE,
)
_SECRET = re.compile(
    r"\b(?:reveal|disclose|leak|exfiltrate|print|repeat|output|show|send|forward|share|include)\b"
    r".{0,40}\b(?:system prompt|api[ _-]?keys?|passwords?|credentials|access tokens?)\b",
    re.IGNORECASE,
)
_OVERRIDE = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b.{0,40}\b(?:instructions?|prompts?|rules)\b"
    r"|\b(?:ignorier\w*|vergiss)\b.{0,40}\b(?:anweisung\w*|regeln)\b"
    r"|\b(?:ignore[rz]?|oublie[rz]?|ignora[r]?|olvida[r]?)\b.{0,40}\binstruc\w+"
    r"|(?:忽略|无视|無視).{0,20}(?:指令|指示|说明|規則|规则|提示)",
    re.IGNORECASE,
)
_FORBIDS = re.compile(
    r"(?:\b(?:never|not|don't|cannot|without|nie|nicht|jamais|nunca)\s+(?:\w+\s+)?|[不勿别]要?)$",
    re.IGNORECASE,
)
_HELD_BACK = {
    "holds an address": _ADDRESS,
    "asks to give a secret away": _SECRET,
    "asks to ignore instructions": _OVERRIDE,
}
_TURNING = frozenset(
    "not no never t avoid without instead unless except cannot nor".split()  # noqa: SIM905
    + "nicht kein keine nie ohne ne pas jamais sans nunca sin non senza não sem".split()  # noqa: SIM905
    + list("不没沒别別勿未莫無无非")
)
"""Words that turn the meaning; the t is that of "don't"."""


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


def read_lesson(line: str, predictors: Sequence[str]) -> tuple[str, str]:
    """Text and scope of the lesson in a line without bullet: `[name]` gives the scope.

    Brackets that name none of the program's predictors stay in the text, and the lesson is for
    all. A note on its sources, such as "(examples 1, 3)", is left out.
    """
    text = _SOURCES.sub("", " ".join(line.split()))
    scoped = _SCOPED.fullmatch(text)
    scope = resolve_scope(scoped[1], predictors) if scoped else None
    if scoped is None or scope is None:
        return text, ALL
    return scoped[2], scope if len(predictors) > 1 else ALL


def names_unknown_predictor(text: str, predictors: Sequence[str]) -> bool:
    """Whether it begins with brackets that name none of several predictors."""
    return len(predictors) > 1 and _SCOPED.fullmatch(text) is not None


def unsafe_reason(text: str) -> str:
    """Why advice is held back for the user to see: it may not serve the task; "" if it is not.

    Whoever writes a training input can write what the reflection LM reads. So no web or mail
    address, no call to give a secret away and none to ignore instructions comes from there into a
    prompt. Advice that forbids such a thing ("Never ignore the instructions.") is not held back.
    """
    if text in SAMPLES:
        return "repeats the sample answer of the prompt"
    for what, pattern in _HELD_BACK.items():
        for found in pattern.finditer(text):
            if pattern is _ADDRESS or not _FORBIDS.search(text[: found.start()]):
                return f"held back: it {what} ({found[0]!r})"
    return ""


def unfit_reason(text: str, max_words: int) -> str:
    """Why a lesson is none, or is held back; "" if nothing speaks against it."""
    if text.endswith(":"):
        return "a heading"
    if n_words(text) > LONGEST_LESSON * max_words:
        return f"more than {LONGEST_LESSON} times as long as an experience"
    return unsafe_reason(text)


class CopyGuard:
    """Knows training examples and refuses what copies one, or long runs of words from one.

    Args:
        examples: the texts of the input fields and those of the labels of each example.
    """

    def __init__(self, examples: Iterable[tuple[Iterable[str], Iterable[str]]]) -> None:
        self._runs: set[tuple[str, ...]] = set()
        self._wholes: set[tuple[str, ...]] = set()
        self._short: list[list[tuple[str, ...]]] = []
        for inputs, labels in examples:
            input_words, label_words = [*map(_words, inputs)], [*map(_words, labels)]
            for words in (*input_words, *label_words):
                self._runs.update(_runs(words, COPIED_WORDS))
            self._wholes.update(w for w in input_words if len(w) >= COPIED_INPUT_WORDS)
            self._wholes.update(w for w in label_words if len(w) >= COPIED_LABEL_WORDS)
            fields = [*input_words, *label_words]
            if all(fields) and label_words and sum(map(len, fields)) >= COPIED_EXAMPLE_WORDS:
                self._short.append(fields)
        self._lengths = sorted({COPIED_WORDS, *map(len, self._wholes)})

    def reason(self, text: str) -> str:
        """Why the text is refused, with the words that it copies; "" if it is not."""
        words = _words(text)
        for length in self._lengths:
            for run in _runs(words, length):
                if run in self._wholes or run in self._runs:
                    return f"copies the training data: '{' '.join(run)}'"
        for fields in self._short:
            if all(field in _runs(words, len(field)) for field in fields):
                return f"copies the training data: '{' ... '.join(map(' '.join, fields))}'"
        return ""


def merge_lessons(lessons: Iterable[Lesson]) -> list[Lesson]:
    """The lessons, near-duplicates as one with the evidence of all; the best supported first."""
    merged: list[Lesson] = []
    for lesson in lessons:
        same = next((i for i, known in enumerate(merged) if is_same_lesson(known, lesson)), None)
        if same is None:
            merged.append(lesson)
        else:
            evidence = dict.fromkeys((*merged[same].evidence, *lesson.evidence))
            merged[same] = replace(merged[same], evidence=tuple(evidence))
    return sorted(merged, key=lambda lesson: -len(lesson.evidence))


def is_same_lesson(one: Lesson, other: Lesson) -> bool:
    """Whether two lessons of one scope say the same: one is the other with a few words more.

    Never when those have a number or a word that turns the meaning ("not", "never") among them;
    nor when a word or the order is another ("short" and "long", "before" and "after").
    """
    shorter, longer = _words(one.text), _words(other.text)
    if len(shorter) > len(longer):
        shorter, longer = longer, shorter
    if one.scope != other.scope or len(shorter) < NEAR_DUPLICATE * len(longer):
        return False
    rest = iter(longer)
    if not all(word in rest for word in shorter):
        return False
    more = Counter(longer) - Counter(shorter)
    return not any(word in _TURNING or any(map(str.isdigit, word)) for word in more)


LIKE_SHARE = 0.5
"""Share of a lesson's letter groups that a text must have, to rest on the lesson for sure."""
LEAST_SHARE = 0.2
"""Share that the lesson with most must have, where no lesson has that many."""


def sources_of(text: str, lessons: Sequence[Lesson]) -> list[Lesson]:
    """The lessons that a text rests on, by what they have in common; maybe none.

    The share of a lesson's letter pairs and triples that the text has, in any language; those that
    all lessons have count next to nothing, so lessons of one form are told apart. Lessons above
    `LIKE_SHARE` count; if there is none, the best one, from `LEAST_SHARE` on. A single lesson
    always does.
    """
    if len(lessons) < 2:
        return list(lessons)
    weights, totals = _weights(tuple(lesson.text for lesson in lessons))
    in_text = _letter_groups(text)
    shares = [
        math.fsum(weights[gram] for gram in _letter_groups(lesson.text) & in_text) / (total or 1.0)
        for lesson, total in zip(lessons, totals, strict=True)
    ]
    least = LIKE_SHARE if max(shares) >= LIKE_SHARE else max(LEAST_SHARE, *shares)
    return [lesson for lesson, share in zip(lessons, shares, strict=True) if share >= least]


@functools.lru_cache(maxsize=8)
def _weights(texts: tuple[str, ...]) -> tuple[dict[str, float], list[float]]:
    """How much each letter group of the texts tells, and the sum of it for each text."""
    uses = Counter(gram for text in texts for gram in _letter_groups(text))
    weights = {gram: math.log((len(texts) + 0.1) / n) for gram, n in uses.items()}
    return weights, [math.fsum(weights[gram] for gram in _letter_groups(t)) for t in texts]


@functools.lru_cache(maxsize=4096)
def _letter_groups(text: str) -> frozenset[str]:
    folded = f" {' '.join(_words(text))} "
    return frozenset(folded[i : i + n] for n in (2, 3) for i in range(len(folded) - n + 1))


@functools.lru_cache(maxsize=4096)
def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))
