"""Which operations a library takes, which it refuses and why; what one does to its experience."""

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
KEPT_GISTS = 4096
"""Of how many texts the gist is remembered: those of a library are compared at every update."""
_WORD = re.compile(
    r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\s\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+"
)
_MEANING = ("L", "M", "N", "Sm", "Sc", "Pc")
"""Unicode categories of the characters that a text's gist keeps."""


def sift(
    library: Iterable[Experience],
    operations: Iterable[Operation | Mapping[str, Any]],
    limits: Limits,
) -> tuple[list[Operation], list[Refusal]]:
    """The operations that the library takes, in their order, and those that it refuses."""
    accepted: list[Operation] = []
    refused: list[Refusal] = []
    given = [operations] if isinstance(operations, Mapping) else list(operations)
    parsed = [_parsed(operation) for operation in given]
    sieve = _Sieve(library, parsed, limits)
    for original, operation in zip(given, parsed, strict=True):
        if isinstance(operation, Refusal):
            refused.append(operation)
        elif reason := sieve.reason(operation):
            refused.append(Refusal(original, reason))
        else:
            accepted.append(operation)
    return accepted, refused


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


def with_evidence(experience: Experience, evidence: Iterable[Evidence]) -> Experience:
    """The experience with more evidence; what it has already is not repeated."""
    return replace(experience, evidence=tuple(dict.fromkeys((*experience.evidence, *evidence))))


@functools.lru_cache(maxsize=KEPT_GISTS)
def gist(text: str) -> str:
    """The text without case, punctuation and spacing: two texts of one gist say the same.

    What stays are letters, digits, marks (in many scripts the vowels) and the signs of
    mathematics and money: `x > 0` is not `x < 0`.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = (c if unicodedata.category(c).startswith(_MEANING) else " " for c in folded)
    return " ".join("".join(kept).split()) or text.strip()


def n_words(text: str) -> int:
    """How many words the text has; a character of a script without spaces counts as one."""
    return len(_WORD.findall(text))


class _Sieve:
    """Why an operation is refused, given those before it."""

    def __init__(
        self, library: Iterable[Experience], given: Iterable[Operation | Refusal], limits: Limits
    ) -> None:
        self.by_id = {experience.id: experience for experience in library}
        self.n_added = 0
        self.limits = limits
        self.named: set[str] = set()
        first: dict[str, Operation] = {}
        for operation in given:
            if isinstance(operation, Modify | Delete | Keep):
                first.setdefault(operation.id, operation)
        self.leaving = {id_ for id_, op in first.items() if isinstance(op, Delete)} & set(
            self.by_id
        )

    def reason(self, operation: Operation) -> str:
        """The reason, or "" for an operation that is accepted (and counts from now on)."""
        reason = self._about_id(operation) or self._about_text(operation)
        if not isinstance(operation, Add):
            self.named.add(operation.id)
        if not reason:
            self._count(operation)
        return reason

    def _about_id(self, operation: Operation) -> str:
        if isinstance(operation, Add):
            size = len(self.by_id) - len(self.leaving) + self.n_added
            full = size >= self.limits.max_experiences
            return f"the library is full: {self.limits.max_experiences} experiences" if full else ""
        if operation.id in self.named:
            return f"an earlier operation of this list names {operation.id}; the first one counts"
        return "" if operation.id in self.by_id else f"there is no {operation.id}"

    def _about_text(self, operation: Operation) -> str:
        if not isinstance(operation, Add | Modify):
            return ""
        words = n_words(operation.text)
        if not words:
            return "the text is empty"
        if words > self.limits.max_experience_words:
            return f"{words} words; at most {self.limits.max_experience_words} are allowed"
        if isinstance(operation, Modify):
            old = self.by_id[operation.id]
            if (operation.text.strip(), operation.scope or old.scope) == (old.text, old.scope):
                return f"{operation.id} says just this already"
        return self._about_repetition(operation)

    def _about_repetition(self, operation: Add | Modify) -> str:
        own_id = operation.id if isinstance(operation, Modify) else None
        scope = operation.scope or self.by_id[own_id or ""].scope
        for id_, other_scope in self._said.get(gist(operation.text), ()):
            meets = ALL in (scope, other_scope) or scope == other_scope
            if meets and id_ != own_id and id_ not in self.leaving:
                return f"{id_ or 'an earlier ADD of this list'} says this already"
        return ""

    @functools.cached_property
    def _said(self) -> dict[str, list[tuple[str, str]]]:
        """Who says what: ids ("" for an ADD of this list) and scopes by the gist of their text."""
        said: dict[str, list[tuple[str, str]]] = {}
        for id_, experience in self.by_id.items():
            said.setdefault(gist(experience.text), []).append((id_, experience.scope))
        return said

    def _count(self, operation: Operation) -> None:
        if isinstance(operation, Add):
            self.n_added += 1
            self._said.setdefault(gist(operation.text), []).append(("", operation.scope))
        elif isinstance(operation, Modify):
            old = self.by_id[operation.id]
            new = self.by_id[operation.id] = changed(old, operation)
            self._said[gist(old.text)].remove((old.id, old.scope))
            self._said.setdefault(gist(new.text), []).append((new.id, new.scope))


def _parsed(operation: Any) -> Operation | Refusal:
    if isinstance(operation, Operation):
        return operation
    if not isinstance(operation, Mapping):
        return Refusal(operation, f"{operation!r} is no operation; give a mapping with an 'op'")
    try:
        return operation_from(operation)
    except LibraryError as error:
        return Refusal(operation, str(error))
