"""Which operations a library accepts, and why it refuses the others."""

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tfgrpo_dspy.experience.values import ALL, Add, Delete, Experience, Modify, Operation, Refusal


@dataclass(frozen=True, slots=True)
class Limits:
    """What a library may hold: `max_experiences` of at most `max_experience_words` words each."""

    max_experiences: int = 30
    max_experience_words: int = 40


DEFAULT_LIMITS = Limits()
_WORD = re.compile(
    r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\s\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+"
)
# What a normalized text keeps: letters, marks (in many scripts the vowels), digits, `<`, `$`, `_`.
_MEANING = ("L", "M", "N", "Sm", "Sc", "Pc")


@functools.lru_cache(maxsize=4096)
def normalized(text: str) -> str:
    """The text without case, punctuation and spacing; the signs of mathematics and money stay."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = (c if unicodedata.category(c).startswith(_MEANING) else " " for c in folded)
    return " ".join("".join(kept).split()) or text.strip()


def n_words(text: str) -> int:
    """How many words the text has; a character of a script without spaces counts as one."""
    return len(_WORD.findall(text))


def carry_out(
    operations: Sequence[Operation],
    library: Iterable[Experience],
    next_number: int,
    limits: Limits,
) -> tuple[list[Experience], list[Operation], list[Refusal]]:
    """The experiences after the operations; the operations that are accepted; those refused."""
    before = {experience.id: experience for experience in library}
    first = {each.id: each for each in reversed(operations) if not isinstance(each, Add)}
    now = {id_: before[id_] for id_ in before if not isinstance(first.get(id_), Delete)}
    accepted: list[Operation] = []
    refused: list[Refusal] = []
    for operation in operations:
        if reason := _reason(operation, before, now, first, limits):
            refused.append(Refusal(operation, reason))
            continue
        accepted.append(operation)
        if isinstance(operation, Delete):
            continue
        if isinstance(operation, Add):
            new = Experience(f"E{next_number}", operation.text, operation.scope)
            next_number += 1
        else:
            new = now[operation.id]
        if isinstance(operation, Modify):  # what was measured of the old text is not kept
            new = Experience(new.id, operation.text, operation.scope or new.scope, new.evidence)
        now[new.id] = new.with_evidence(operation.evidence)
    return [*now.values()], accepted, refused


def _reason(
    operation: Operation,
    before: Mapping[str, Experience],
    now: Mapping[str, Experience],
    first: Mapping[str, Operation],
    limits: Limits,
) -> str:
    """Why the operation is refused; "" if it is accepted."""
    if isinstance(operation, Add):
        if len(now) >= limits.max_experiences:
            return f"the library is full: {len(now)} experiences"
        return _text_reason(operation.text, operation.scope, now.values(), limits)
    if operation.id not in before:
        return f"there is no {operation.id}"
    if first[operation.id] is not operation:
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
