"""Which operations a library accepts, and why it refuses the others."""

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tfgrpo_dspy.errors import LibraryError
from tfgrpo_dspy.experience.values import (
    ALL,
    Add,
    Delete,
    Evidence,
    Experience,
    Keep,
    Modify,
    Operation,
    Refusal,
    operation_from,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a library may hold: `max_experiences` of at most `max_experience_words` words each."""

    max_experiences: int = 30
    max_experience_words: int = 40


DEFAULT_LIMITS = Limits()
_WORD = re.compile(
    r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\s\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+"
)
_MEANING = ("L", "M", "N", "Sm", "Sc", "Pc")
"""Unicode categories of the characters that a normalized text keeps."""


@functools.lru_cache(maxsize=4096)
def normalized(text: str) -> str:
    """The text without case, punctuation and spacing: two texts with the same result say the same.

    What stays are letters, digits, marks (in many scripts the vowels) and the signs of
    mathematics and money: `x > 0` is not `x < 0`.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = (c if unicodedata.category(c).startswith(_MEANING) else " " for c in folded)
    return " ".join("".join(kept).split()) or text.strip()


def n_words(text: str) -> int:
    """How many words the text has; a character of a script without spaces counts as one."""
    return len(_WORD.findall(text))


def with_evidence(experience: Experience, evidence: Iterable[Evidence]) -> Experience:
    """The experience with more evidence; what it has already is not repeated."""
    return replace(experience, evidence=tuple(dict.fromkeys((*experience.evidence, *evidence))))


def changed(experience: Experience, operation: Modify | Keep) -> Experience:
    """The experience after a MODIFY or a KEEP.

    What was measured of one text says nothing of another: a MODIFY voids effect, price and being
    on trial, and keeps evidence.
    """
    supported = with_evidence(experience, operation.evidence)
    if isinstance(operation, Keep):
        return supported
    scope = operation.scope or experience.scope
    return Experience(experience.id, operation.text, scope, supported.evidence)


def check_operations(
    library: Iterable[Experience],
    operations: Iterable[Operation | Mapping[str, Any]],
    limits: Limits,
) -> tuple[list[Operation], list[Refusal]]:
    """The operations that the library accepts, in their order, and those that it refuses."""
    parsed: list[tuple[Any, Operation | Refusal]] = []
    for given in [operations] if isinstance(operations, Mapping) else operations:
        try:
            parsed.append((given, operation_from(given)))
        except LibraryError as error:
            parsed.append((given, Refusal(given, str(error))))
    valid = [operation for _, operation in parsed if not isinstance(operation, Refusal)]
    checker = _Checker(library, valid, limits)
    accepted: list[Operation] = []
    refused: list[Refusal] = []
    for given, operation in parsed:
        if isinstance(operation, Refusal):
            refused.append(operation)
        elif reason := checker.reason(operation):
            refused.append(Refusal(given, reason))
        else:
            checker.accept(operation)
            accepted.append(operation)
    return accepted, refused


class _Checker:
    """Why an operation is refused, given those before it in the list."""

    def __init__(
        self, library: Iterable[Experience], operations: Iterable[Operation], limits: Limits
    ) -> None:
        self.by_id = {experience.id: experience for experience in library}
        self.limits = limits
        self.named: set[str] = set()
        self.added: list[Add] = []
        first: dict[str, Operation] = {}
        for operation in operations:
            if not isinstance(operation, Add):
                first.setdefault(operation.id, operation)
        deleted = {id_ for id_, operation in first.items() if isinstance(operation, Delete)}
        self.staying = self.by_id.keys() - deleted

    def reason(self, operation: Operation) -> str:
        """The reason, or "" for an operation that is accepted."""
        if isinstance(operation, Add):
            n_experiences = len(self.staying) + len(self.added)
            is_full = n_experiences >= self.limits.max_experiences
            full = f"the library is full: {n_experiences} experiences" if is_full else ""
            return full or self._about_text(operation, operation.scope)
        if operation.id not in self.by_id:
            return f"there is no {operation.id}"
        if operation.id in self.named:
            return f"an earlier operation of this list names {operation.id}; the first one counts"
        self.named.add(operation.id)
        if isinstance(operation, Modify):
            old = self.by_id[operation.id]
            if (operation.text.strip(), operation.scope or old.scope) == (old.text, old.scope):
                return f"{operation.id} says just this already"
            return self._about_text(operation, operation.scope or old.scope)
        return ""

    def accept(self, operation: Operation) -> None:
        """Count the operation in what is said of the later ones."""
        if isinstance(operation, Add):
            self.added.append(operation)
        elif isinstance(operation, Modify):
            self.by_id[operation.id] = changed(self.by_id[operation.id], operation)

    def _about_text(self, operation: Add | Modify, scope: str) -> str:
        words = n_words(operation.text)
        if not words:
            return "the text is empty"
        if words > self.limits.max_experience_words:
            return f"{words} words; at most {self.limits.max_experience_words} are allowed"
        own_id = operation.id if isinstance(operation, Modify) else ""
        others: list[tuple[str, Experience | Add]] = [
            (id_, known) for id_, known in self.by_id.items() if id_ in self.staying - {own_id}
        ]
        others += [("an earlier ADD of this list", add) for add in self.added]
        text = normalized(operation.text)
        for id_, other in others:
            meets = ALL in (scope, other.scope) or scope == other.scope
            if meets and normalized(other.text) == text:
                return f"{id_} says this already"
        return ""
