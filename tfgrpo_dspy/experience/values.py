"""Experiences, the operations on them, and refusals: plain values.

What is not legal cannot be built: every constructor checks its arguments. What an operation does
to a library is decided in `library`, when it is refused in `operations`.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from tfgrpo_dspy.errors import LibraryError

ALL = "*"
"""The scope of an experience that every predictor of the program is given."""

_FORMS = {
    "id": (re.compile(r"E[1-9][0-9]*"), "an id is 'E' and a number from 1, such as 'E1'"),
    "text": (re.compile(r"(?s).*"), "give a string"),
    "scope": (re.compile(r"(?s).+"), "give a predictor's name, or '*' for all"),
    "reason": (re.compile(r"(?s).*"), "give a string"),
}
"""What the fields of experiences and operations must look like."""
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
    """What an experience's presence does to the score: an estimate with its standard error.

    The estimate is the mean over examples like the training examples; `n_rollouts` rollouts were
    given the experience.
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

    def __str__(self) -> str:
        known = [str(self.effect)] if self.effect is not None else []
        known += [f"{self.price} tokens"] if self.price is not None else []
        known += ["on trial"] if self.is_on_trial else []
        line = f"[{self.id}] {self.text}{scope_note(self.scope)}"
        return line + (f"  ({', '.join(known)})" if known else "")

    def to_dict(self) -> dict[str, Any]:
        """Its fields by name, the evidence too; what was not measured is left out."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value is not None and value is not False
        }


class _Operation:
    __slots__ = ()

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True)
class Add(_Operation):
    """Put a new experience at the end of the library; the library gives it its id."""

    op: ClassVar[str] = "ADD"
    text: str
    scope: str = ALL
    reason: str = ""
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Modify(_Operation):
    """Give an experience another text (and another scope, unless `scope` is None)."""

    op: ClassVar[str] = "MODIFY"
    id: str
    text: str
    scope: str | None = None
    reason: str = ""
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Delete(_Operation):
    """Take an experience out of the library; its id is never used again."""

    op: ClassVar[str] = "DELETE"
    id: str
    reason: str = ""
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Keep(_Operation):
    """Change no text; record that this evidence supports the experience."""

    op: ClassVar[str] = "KEEP"
    id: str
    reason: str = ""
    evidence: tuple[Evidence, ...] = ()


Operation = Add | Modify | Delete | Keep
_OPERATIONS: dict[str, type[Operation]] = {kind.op: kind for kind in (Add, Modify, Delete, Keep)}
_SYNONYMS = {"UPDATE": "MODIFY", "REMOVE": "DELETE", "NONE": "KEEP"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An operation that was left out, as it was given, and the reason in words."""

    operation: Any
    reason: str


def operation_from(given: Any) -> Operation:
    """The operation that a mapping stands for, as an LM writes it.

    `{"op": "modify", "id": "[e2]", "text": "Ask first."} -> Modify("E2", "Ask first.")`.
    The case of `op`, brackets around an id and a number instead of an id are forgiven; UPDATE and
    REMOVE are read as MODIFY and DELETE. Other fields are ignored; absent ones, None and an empty
    scope are the defaults.

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
    names = {"id", "text", "scope", "reason"} & set(kind.__match_args__)
    fields = {name: given[name] for name in names if given.get(name) is not None}
    if fields.get("scope") == "":
        del fields["scope"]
    if "id" in names:
        found = _WRITTEN_ID.fullmatch(str(given.get("id")).strip())
        fields["id"] = f"E{found[1]}" if found else str(given.get("id"))
    if "text" in names and "text" not in fields:
        raise LibraryError(f"op={kind.op!r} needs a text, and has none.")
    return kind(**fields)


def _check(checked: Any) -> None:
    """Raise LibraryError where a field is not of its form."""
    for name in [name for name in checked.__match_args__ if name in _FORMS]:
        value, (form, advice) = getattr(checked, name), _FORMS[name]
        if value is None and name == "scope" and isinstance(checked, Modify):
            continue
        if not (isinstance(value, str) and form.fullmatch(value)):
            raise LibraryError(f"{name}={value!r}: {advice}.")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise LibraryError(f"{name}={value!r} holds half a character.") from error
