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


def carry_out(
    operations: Iterable[Operation | Mapping[str, Any]],
    library: Iterable[Experience],
    next_number: int,
    limits: Limits,
) -> tuple[list[Experience], list[Operation], list[Refusal]]:
    """The experiences after the operations; the operations that are accepted; those refused."""
    before = {experience.id: experience for experience in library}
    parsed = [(given, _parsed(given)) for given in operations]
    first: dict[str, Operation] = {}
    for _, operation in parsed:
        if not isinstance(operation, Add | Refusal):
            first.setdefault(operation.id, operation)
    deleted = {id_ for id_, operation in first.items() if isinstance(operation, Delete)}
    now = {id_: experience for id_, experience in before.items() if id_ not in deleted}
    accepted: list[Operation] = []
    refused: list[Refusal] = []
    for given, operation in parsed:
        if isinstance(operation, Refusal):
            refused.append(operation)
        elif reason := _reason(operation, before, now, first, limits):
            refused.append(Refusal(given, reason))
        else:
            accepted.append(operation)
            if isinstance(operation, Add):
                new = Experience(f"E{next_number}", operation.text, operation.scope)
                now[new.id] = with_evidence(new, operation.evidence)
                next_number += 1
            elif not isinstance(operation, Delete):
                now[operation.id] = _changed(now[operation.id], operation)
    return [*now.values()], accepted, refused


def _parsed(given: Operation | Mapping[str, Any]) -> Operation | Refusal:
    try:
        return operation_from(given)
    except LibraryError as error:
        return Refusal(given, str(error))


def _changed(experience: Experience, operation: Modify | Keep) -> Experience:
    """What was measured of one text says nothing of another: a MODIFY keeps only the evidence."""
    supported = with_evidence(experience, operation.evidence)
    if isinstance(operation, Keep):
        return supported
    scope = operation.scope or experience.scope
    return Experience(experience.id, operation.text, scope, supported.evidence)


def _reason(
    operation: Operation,
    before: Mapping[str, Experience],
    now: Mapping[str, Experience],
    first: dict[str, Operation],
    limits: Limits,
) -> str:
    """Why the operation is refused, or "". Takes its id out of `first`, where later ones look."""
    if isinstance(operation, Add):
        if len(now) >= limits.max_experiences:
            return f"the library is full: {len(now)} experiences"
        return _text_reason(operation.text, operation.scope, now.values(), limits)
    if operation.id not in before:
        return f"there is no {operation.id}"
    if first.pop(operation.id, None) is None:
        return f"an earlier operation of this list names {operation.id}; the first one counts"
    if not isinstance(operation, Modify):
        return ""
    old = before[operation.id]
    scope = operation.scope or old.scope
    if (operation.text.strip(), scope) == (old.text, old.scope):
        return f"{old.id} says just this already"
    others = [experience for experience in now.values() if experience.id != old.id]
    return _text_reason(operation.text, scope, others, limits)


def _text_reason(text: str, scope: str, others: Iterable[Experience], limits: Limits) -> str:
    words = n_words(text)
    if not words:
        return "the text is empty"
    if words > limits.max_experience_words:
        return f"{words} words; at most {limits.max_experience_words} are allowed"
    for other in others:
        if normalized(other.text) == normalized(text) and (
            ALL in (scope, other.scope) or scope == other.scope
        ):
            return f"{other.id} says this already"
    return ""
