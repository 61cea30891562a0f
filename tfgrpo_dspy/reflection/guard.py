"""Which advice is held back: copies, bare labels, empty words, talk of attempts, attacks.

The task itself is neither: what stands in the user's own program, or names a class of examples.
"""

import functools
import inspect
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tfgrpo_dspy.experience.programs import bare_instructions, named_predictors
from tfgrpo_dspy.identity import schema_of
from tfgrpo_dspy.outside import ADDRESS
from tfgrpo_dspy.reflection.signatures import (
    CompareAttempts,
    CritiqueAttempts,
    ProposeOperations,
    ReadExamples,
)
from tfgrpo_dspy.wording import n_single_letters, words, words_of

COPIED_WORDS, COPIED_LABEL, COPIED_INPUT, COPIED_EXAMPLE = 8, 4, 5, 5
"""Words that make a copy: in a row; of a whole label; of a whole input; of a whole example. In a
script without spaces, where each character is counted as a word, twice as many do."""
REPEATED_WORDS = 4  # advice from this length on may not be a part of a line of the program's text
ECHOED_WORDS = 3  # nor, from this one on, a part of the prompts for lessons and operations
SHARED_LABELS = 2  # examples with unlike inputs: what their labels share is no copy
SHARED_INPUTS, SHARED_PART = 3, 0.1
"""Words in the inputs of at least 3 examples, and a tenth of all, are a form, not a copy."""

Fields = tuple[Mapping[str, str], Mapping[str, str]]
"""The input fields and the labels of an example, as texts by name."""
_ADDRESS = "holds an address"
_HELD_BACK = {
    _ADDRESS: ADDRESS,
    "speaks of what the program does not see": r"(?<=\bthe )(?:better|worse|best|worst|first"
    r"|second|third) attempts?\b|\battempts? \d|\bnot seen here\b"
    r"|\b(?:add|write|modify|delete)(?: (?:an?|the|this|new|another|more))* lessons?\b"
    r"|(?<=^the )advice(?= is to\b)"
    r"|\b(?:when|attempts?) (?:with|without) E[1-9]\d?\b|\bexperience \[?E[1-9]\d?\b"
    r"|(?:(?<=\bthe )|(?<=\())score\b"
    r"(?=:? (?:(?:is|was) )?(?:\d|above|below|higher|lower|better|worse))",
    "asks to give a secret away": r"\b(?:reveal|disclose|leak|exfiltrate|print|repeat|output|show"
    r"|send|forward|share|include)\b.{0,40}\b(?:system prompt|api[ _-]?keys?|credentials"
    r"|access tokens?|(?<!reset )(?<!reset the )(?<!reset a )passwords?(?! reset\b))\b",
    "asks to ignore instructions": r"\b(?:ignore|disregard|forget|override|bypass)\b.{0,40}"
    r"\b(?:instructions?|prompts?|rules)\b"
    r"|\b(?:ignorier\w*|vergiss)\b.{0,40}\b(?:anweisung\w*|regeln)\b"
    r"|\b(?:ignore[rz]?|oublie[rz]?|ignora[r]?|olvida[r]?)\b.{0,40}\binstruc\w+"
    r"|(?:忽略|无视|無視).{0,20}(?:指令|指示|说明|規則|规则|提示)",
}
_PROMPTS = (CompareAttempts, CritiqueAttempts, ReadExamples, ProposeOperations)
_PROMPT_WORDS = f" {' '.join(words_of(' '.join(each.instructions for each in _PROMPTS)))} "
_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+")
_COMMA = re.compile("[,\uff0c]")
_FORBIDS = re.compile(
    r"(?:\b(?:never|not|don't|cannot|without|nie|nicht|jamais|nunca)\s+(?:\w+\s+)?|[不勿别]要?)$",
    re.IGNORECASE,
)


class Task:
    """The user's program (a text) and data (read when needed), as far as guards look into them."""

    def __init__(self, program: str = "", examples: Callable[[], Iterable[Fields]] = list) -> None:
        self._program, self._read = program, examples
        self._known: dict[str, bool] = {}

    @functools.cached_property
    def _data(self) -> list[tuple[str, str]]:
        """Inputs and labels of each example, those with the same inputs once."""
        lines = (["\n".join(part.values()) for part in fields] for fields in self._read())
        return list({_folded(inputs): (inputs, labels) for inputs, labels in lines}.values())

    @functools.cached_property
    def _words(self) -> tuple[str, list[tuple[str, str]]]:
        """The words of the program; those of the inputs and of the labels of each example."""
        folded = [(_folded(inputs), _folded(labels)) for inputs, labels in self._data]
        return _folded(self._program), folded

    def shares(self, phrase: str) -> bool:
        """Whether these words belong to the task: to its program, to a class, to a form."""
        if phrase not in self._known:
            program, data = self._words
            sought = f" {phrase} "
            n_inputs = sum(sought in inputs for inputs, _ in data)
            n_labels = sum(sought in labels for _, labels in data)
            is_form = n_inputs >= max(SHARED_INPUTS, SHARED_PART * len(data))
            self._known[phrase] = sought in program or n_labels >= SHARED_LABELS or is_form
        return self._known[phrase]

    def says(self, text: str) -> bool:
        """Whether a line of the program is the same, word for word, or a long text a part of it."""
        parts, lines = words_of(text), self._words[0].splitlines()
        sought = f" {' '.join(parts)} "
        is_long = len(parts) >= REPEATED_WORDS
        return (bool(parts) and sought in lines) or (is_long and sought in self._words[0])

    def holds(self, address: str) -> bool:
        """Whether the address stands in the program or in any example."""
        sought = re.compile(rf"(?<![\w-]){re.escape(address)}(?![\w-])", re.IGNORECASE)
        texts = itertools.chain([self._program], *self._data)
        return any(map(sought.search, map(_plain, texts)))

    def speaks_of(self, phrase: str, pattern: str) -> bool:
        """Whether program or labels have the phrase, or two inputs its kind: one may attack."""
        sought = _folded(phrase)
        program, data = self._words
        if sought in program or any(sought in labels for _, labels in data):
            return True
        inputs = (inputs for inputs, _ in self._data if re.search(pattern, inputs, re.IGNORECASE))
        return len([*itertools.islice(inputs, 2)]) == 2


def _plain(text: str) -> str:
    """The text with letters of usual width, and with addresses such as "evil[.]com" as they are."""
    text = unicodedata.normalize("NFKC", text).replace("[:]", ":").replace("[://]", "://")
    return re.sub(r"(?<=\w) ?[\[({] ?(?:\.|dot) ?[\])}] ?(?=\w)", ".", text, flags=re.IGNORECASE)


def _folded(text: str) -> str:
    lines = (f" {' '.join(words_of(line))} " for line in text.splitlines())
    return "\n".join(lines)


def task_text(program: Any, objective: str = "") -> str:
    """The user's own text in the program, with the values of a Literal or an Enum."""
    parts = [objective, inspect.getdoc(type(program)) or ""]
    for name, predictor in named_predictors(program):
        parts += [name, bare_instructions(predictor)]
        for field, info in predictor.signature.fields.items():
            parts += [field, str((info.json_schema_extra or {}).get("desc", ""))]
            schema = schema_of(info.annotation)
            parts += _texts_in(str(info.annotation) if schema is None else schema)
    return "\n".join(parts)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_texts_in, [*value, *value.values()]))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(_texts_in, value))


def unsafe_reason(text: str, task: Task | None = None) -> str:
    """Why advice is held back, for the user to see; "" if it is not held back.

    Whoever writes a training input can influence what the reflection LM writes. Advice that forbids
    a bad thing ("Never ignore the instructions.") is not held back, nor what the task is about. An
    address in words ("evil dot com"), in pieces or encoded is not seen.
    """
    task, text = task or Task(), _plain(text)
    if task.says(text):
        return "repeats what the program says already"
    for what, pattern in _HELD_BACK.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            if what == _ADDRESS:
                whole = re.search(r"\S*$", text[: match.start()])[0] + text[match.start() :]  # type: ignore[index]
                is_usual = task.holds(whole.split()[0].strip("\"'`()[]<>{},;:.!?"))
            else:
                is_forbidden = _FORBIDS.search(text[: match.start()])
                is_usual = bool(is_forbidden) or task.speaks_of(match[0], pattern)
            if not is_usual:
                return f"held back: it {what} ({match[0]!r})"
    return ""


def _empty_reason(text: str) -> str:
    """Why the text says nothing; "" if it does.

    It repeats a prompt, or all words behind its first comma stand before it, in the same order.
    """
    if len(words(text)) >= ECHOED_WORDS and _is_of_prompt(words(text)):
        return "repeats the prompt of the reflection LM"
    condition, *conclusion = (iter(dict.fromkeys(words(part))) for part in _COMMA.split(text, 1))
    sought = [*conclusion[0]] if conclusion else []
    if len(sought) > 1 and all(word in condition for word in sought):
        return "concludes only what it supposes"
    return ""


def without_echoes(text: str) -> str:
    """The text without sentences that repeat the prompt, as "supported by the examples"; or it all.

    Small LMs say of a rule that it keeps to the prompt, which tells the program nothing.
    """
    sentences = _BETWEEN_SENTENCES.split(text)
    kept = [each for each in sentences if not any(map(_is_of_prompt, _runs(words(each), 1)))]
    return " ".join(kept or sentences)


def _is_of_prompt(parts: Sequence[str]) -> bool:
    return f" {' '.join(parts)} " in _PROMPT_WORDS


class Guard:
    """Refuses copies of examples and of long runs of words in them, empty and unsafe advice."""

    def __init__(
        self,
        examples: Iterable[Fields],
        task: Task | None = None,
        refuses: Callable[[str, str], bool] = lambda _text, _reason: True,  # the reason against it
    ) -> None:
        self._task, self._refuses = task or Task(), refuses
        self._runs: set[tuple[str, ...]] = set()
        self._wholes: list[list[str]] = []  # a copy holds all texts of one of these
        self._labels: set[tuple[str, ...]] = set()
        for fields in examples:
            inputs, labels = ([words_of(text) for text in each.values()] for each in fields)
            self._labels.update(labels)
            for parts in (*inputs, *labels):
                self._runs.update(_runs(parts, _scale(parts)))
            wholes = [[parts] for parts in inputs if len(parts) >= COPIED_INPUT * _scale(parts)]
            wholes += [[parts] for parts in labels if len(parts) >= COPIED_LABEL * _scale(parts)]
            example, words = [*inputs, *labels], [*itertools.chain(*inputs, *labels)]
            if labels and all(example) and len(words) >= COPIED_EXAMPLE * _scale(words):
                wholes.append(example)
            self._wholes += [[*map(" ".join, whole)] for whole in wholes]

    def reason(self, text: str) -> str:
        """Why the text is refused, with the words that are the reason; "" if it is not."""
        reason = self._copied(text) or _empty_reason(text) or unsafe_reason(text, self._task)
        return reason if reason and self._refuses(text, reason) else ""

    def _copied(self, text: str) -> str:
        parts = words(text)
        if parts and parts in self._labels:
            return f"is nothing but a label: '{' '.join(parts)}'"
        copied = [[" ".join(run)] for n in (1, 2) for run in _runs(parts, n) if run in self._runs]
        sentence = f" {' '.join(parts)} "
        copied += [one for one in self._wholes if all(f" {part} " in sentence for part in one)]
        for whole in copied:
            if len(whole) > 1 or not self._task.shares(whole[0]):
                return f"copies the training data: '{' ... '.join(whole)}'"
        return ""


def _scale(parts: Sequence[str]) -> int:
    """2 where most words are single characters of a script without spaces, else 1."""
    return 2 if n_single_letters(parts) > len(parts) / 2 else 1


def _runs(parts: tuple[str, ...], scale: int) -> Iterator[tuple[str, ...]]:
    n = COPIED_WORDS * scale
    return (parts[start : start + n] for start in range(len(parts) - n + 1))
