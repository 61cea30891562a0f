"""Experiences, the operations on them, and refusals: plain values.

What is not legal cannot be built: every constructor checks its arguments.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from tfgrpo_dspy.errors import LibraryError

ALL = "*"  # the scope of an experience that every predictor of the program is given

_TEXT = (r"[^\ud800-\udfff]*", "give a string of whole characters")
# The form of the fields of experiences and operations, and what to do about another.
_FORMS = {
    "id": (r"E[1-9][0-9]*", "an id is 'E' and a number from 1, such as 'E1'"),
    "text": _TEXT,
    "scope": (r"[^\ud800-\udfff]+", "give a predictor's name, or '*' for all"),
    "reason": _TEXT,
}
_WRITTEN_ID = re.compile(r"[\[(]?\s*[eE]?([1-9][0-9]*)\*?\s*[\])]?")


def scope_note(scope: str) -> str:
    """` (for solve)` for the scope of one predictor, "" for that of all."""
    return "" if scope == ALL else f" (for {scope})"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One group that an experience was learned from.

    `example` is the example's position in the training set (from 0), `rollout_ids` and `scores`
    run in parallel; a score is None where there was no metric.
    """

    update: int
    example: int
    rollout_ids: tuple[int, ...]
    scores: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Effect:
    """What an experience adds to the score, as a mean over examples like the training examples.

    `n_rollouts` rollouts were given the experience.
    """

    estimate: float
    standard_error: float
    n_rollouts: int

    def __str__(self) -> str:
        measured = f"{self.estimate:+.2f} \N{PLUS-MINUS SIGN} {self.standard_error:.2f}"
        return f"effect {measured} by {self.n_rollouts} rollouts"


@dataclass(frozen=True, slots=True)
class Experience:
    """One line of advice with a stable id, a scope and its evidence.

    `id` is "E" and a number from 1; `text` is stripped of outer white space and must not be
    empty; `scope` is a predictor's name, or "*" for all. Evidence, the measured effect, its price
    (the tokens that it adds to each call; None where they were not counted) and whether it is on
    trial are annotations: they take no part in equality.

    Raises:
        LibraryError: the id, the text or the scope is not of that form.
    """

    id: str
    text: str
    scope: str = ALL
    evidence: tuple[Evidence, ...] = field(default=(), compare=False)
    effect: Effect | None = field(default=None, compare=False)
    price: int | None = field(default=None, compare=False)
    is_on_trial: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        _check(self)
        if not self.text.strip():
            raise LibraryError(f"text={self.text!r}: an experience is a line, not empty.")
        object.__setattr__(self, "text", self.text.strip())

    @property
    def number(self) -> int:
        """The number in the id: 7 for "E7"."""
        return int(self.id[1:])

    def with_evidence(self, evidence: Iterable[Evidence]) -> "Experience":
        """The experience with more evidence; what it has already is not repeated."""
        return replace(self, evidence=tuple(dict.fromkeys((*self.evidence, *evidence))))

    def __str__(self) -> str:
        known = [str(self.effect)] if self.effect is not None else []
        known += [f"{self.price} tokens"] if self.price is not None else []
        known += ["on trial"] if self.is_on_trial else []
        line = f"[{self.id}] {self.text}{scope_note(self.scope)}"
        return line + (f"  ({', '.join(known)})" if known else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    reason: str = ""
    evidence: tuple[Evidence, ...] = ()

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True)
class Add(_Operation):
    """Put a new experience at the end of the library; the library gives it its id."""

    op: ClassVar[str] = "ADD"
    text: str
    scope: str = ALL


@dataclass(frozen=True, slots=True)
class Modify(_Operation):
    """Give an experience another text (and another scope, unless `scope` is None)."""

    op: ClassVar[str] = "MODIFY"
    id: str
    text: str
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class Delete(_Operation):
    """Take an experience out of the library; its id is never used again."""

    op: ClassVar[str] = "DELETE"
    id: str


@dataclass(frozen=True, slots=True)
class Keep(_Operation):
    """Change no text; record that this evidence supports the experience."""

    op: ClassVar[str] = "KEEP"
    id: str


Operation = Add | Modify | Delete | Keep
_OPERATIONS: dict[str, type[Operation]] = {kind.op: kind for kind in (Add, Modify, Delete, Keep)}
_SYNONYMS = {"UPDATE": "MODIFY", "REMOVE": "DELETE", "NONE": "KEEP"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An operation that was left out (a malformed one as it was given), and why, in words."""

    operation: Any
    reason: str


def operation_from(given: Any) -> Operation:
    """The operation that a mapping stands for, as an LM writes it.

    `{"op": "update", "id": "[e2]", "text": "Ask first."} -> Modify("E2", "Ask first.")`.
    Other fields are ignored; absent ones, None and an empty scope are the defaults.

    Raises:
        LibraryError: no such operation, or a field that it needs is absent or of the wrong type.
    """
    if isinstance(given, Operation):
        return given
    if not isinstance(given, Mapping):
        raise LibraryError(f"{given!r} is no operation; give a mapping with an 'op'")
    name = str(given.get("op", "")).strip().upper()
    kind = _OPERATIONS.get(_SYNONYMS.get(name, name))
    if kind is None:
        raise LibraryError(f"op={given.get('op')!r}: the operations are ADD, MODIFY, DELETE, KEEP.")
    fields = {
        name: given[name]
        for name in _FORMS.keys() & kind.__dataclass_fields__.keys()
        if given.get(name) is not None and (name, given[name]) != ("scope", "")
    }
    if kind is not Add:
        found = _WRITTEN_ID.fullmatch(str(given.get("id")).strip())
        fields["id"] = f"E{found[1]}" if found else str(given.get("id"))
    if kind in (Add, Modify) and "text" not in fields:
        raise LibraryError(f"op={kind.op!r} needs a text, and has none.")
    return kind(**fields)


def _check(checked: Any) -> None:
    """Raise LibraryError where a field is not of its form."""
    for name, (form, advice) in _FORMS.items():
        if not hasattr(checked, name):
            continue
        value = getattr(checked, name)
        is_default = value is None and name == "scope" and isinstance(checked, Modify)
        if not (is_default or (isinstance(value, str) and re.fullmatch(form, value))):
            raise LibraryError(f"{name}={value!r}: {advice}.")
