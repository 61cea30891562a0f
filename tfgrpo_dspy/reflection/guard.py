"""Refuses advice that copies an example; the gate judges all other advice by what it adds.

What belongs to the task is no copy: what stands in the user's own program, a label that names a
class, a form that many inputs have.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tfgrpo_dspy.experience.programs import bare_instructions, named_predictors
from tfgrpo_dspy.identity import schema_of
from tfgrpo_dspy.text import n_single_letters, words_of

COPIED_WORDS, COPIED_LABEL, COPIED_INPUT, COPIED_EXAMPLE = 8, 4, 5, 5
"""Words that make a copy: in a row; of a whole label; of a whole input; of a whole example. In a
script without spaces, where each character is counted as a word, twice as many do."""
SHARED_LABELS = 2  # examples with unlike inputs: what their labels share is no copy
SHARED_INPUTS, SHARED_PART = 3, 0.1
"""Words in the inputs of at least 3 examples, and a tenth of all, are a form, not a copy."""
SETTING = 'Reflection(guard="warn") takes it'

Fields = tuple[Mapping[str, str], Mapping[str, str]]
"""The input fields and the labels of an example, as texts by name."""


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
        self._wholes: list[list[str]] = []  # a copy holds all texts of one of these
        self._labels: set[tuple[str, ...]] = set()
        for fields in examples:
            inputs, labels = ([words_of(text) for text in each.values()] for each in fields)
            self._labels.update(labels)
            example = [*inputs, *labels]
            sizes = [COPIED_INPUT] * len(inputs) + [COPIED_LABEL] * len(labels)
            wholes = [[parts] for parts, n in zip(example, sizes, strict=True) if _has(parts, n)]
            if labels and all(example) and _has([*itertools.chain(*example)], COPIED_EXAMPLE):
                wholes.append(example)
            self._wholes += [[*map(" ".join, whole)] for whole in wholes]
            for parts in example:
                self._runs.update(_runs(parts, _scale(parts)))

    def reason(self, text: str) -> str:
        """The reason to refuse the text, with the words that it copies; "" if there is none."""
        reason = self._copied(text)
        return f"{reason}; {SETTING}" if reason and self._refuses(text, reason) else ""

    def _copied(self, text: str) -> str:
        parts = words_of(text)
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


def _has(parts: Sequence[str], n: int) -> bool:
    return len(parts) >= n * _scale(parts)


def _runs(parts: tuple[str, ...], scale: int) -> Iterator[tuple[str, ...]]:
    n = COPIED_WORDS * scale
    return (parts[start : start + n] for start in range(len(parts) - n + 1))
