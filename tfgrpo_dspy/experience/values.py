"""Experiences, the operations on them and what refuses an operation: plain values, no behaviour.

What is not legal cannot be built: every constructor checks its arguments. What an operation does
to a library, and when it is refused, is decided in `library`.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from tfgrpo_dspy.errors import LibraryError

ALL = "*"
"""The scope of an experience that every predictor of the program is given."""

ANNOTATIONS = frozenset({"evidence", "effect", "price", "is_on_trial"})
"""The fields of an experience that take no part in equality."""

_ID = re.compile(r"E([1-9][0-9]*)")


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "rollout_ids", tuple(self.rollout_ids))
        object.__setattr__(self, "scores", tuple(self.scores))

    def to_dict(self) -> dict[str, Any]:
        """Its fields by name."""
        return {name: getattr(self, name) for name in self.__slots__}


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
    evidence: tuple[Evidence, ...] = ()
    effect: Effect | None = None
    price: int | None = None
    is_on_trial: bool = False

    def __post_init__(self) -> None:
        _check_id(self.id)
        object.__setattr__(self, "text", _checked_text(self.text))
        _check_scope(self.scope)
        object.__setattr__(self, "evidence", tuple(self.evidence))

    @property
    def number(self) -> int:
        """The number in the id: 7 for "E7"."""
        return int(self.id[1:])

    @property
    def content(self) -> tuple[str, str, str]:
        """What takes part in equality: id, text and scope."""
        return (self.id, self.text, self.scope)

    def to_dict(self) -> dict[str, Any]:
        """Its fields by name, the evidence too; what was not measured is left out."""
        evidence = tuple(item.to_dict() for item in self.evidence)
        values: dict[str, Any] = {
            "id": self.id,
            "text": self.text,
            "scope": self.scope,
            "evidence": evidence,
        }
        if self.effect is not None:
            values["effect"] = asdict(self.effect)
        if self.price is not None:
            values["price"] = self.price
        if self.is_on_trial:
            values["is_on_trial"] = True
        return values

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, Experience)
            and self.text == other.text
            and self.id == other.id
            and self.scope == other.scope
        )

    def __hash__(self) -> int:
        return hash(self.content)


@dataclass(frozen=True, slots=True)
class Add:
    """Put a new experience at the end of the library; the library gives it its id."""

    op: ClassVar[str] = "ADD"
    text: str
    scope: str = ALL
    reason: str = ""
    evidence: tuple[Evidence, ...] = ()

    def __post_init__(self) -> None:
        _check_strings(self, "text", "reason")
        _check_scope(self.scope)


@dataclass(frozen=True, slots=True)
class Modify:
    """Give an experience another text (and another scope, unless `scope` is None)."""

    op: ClassVar[str] = "MODIFY"
    id: str
    text: str
    scope: str | None = None
    reason: str = ""
    evidence: tuple[Evidence, ...] = ()

    def __post_init__(self) -> None:
        _check_id(self.id)
        _check_strings(self, "text", "reason")
        if self.scope is not None:
            _check_scope(self.scope)


@dataclass(frozen=True, slots=True)
class Delete:
    """Take an experience out of the library; its id is never used again."""

    op: ClassVar[str] = "DELETE"
    id: str
    reason: str = ""
    evidence: tuple[Evidence, ...] = ()

    def __post_init__(self) -> None:
        _check_id(self.id)
        _check_strings(self, "reason")


@dataclass(frozen=True, slots=True)
class Keep:
    """Change no text; record that this evidence supports the experience."""

    op: ClassVar[str] = "KEEP"
    id: str
    reason: str = ""
    evidence: tuple[Evidence, ...] = ()

    def __post_init__(self) -> None:
        _check_id(self.id)
        _check_strings(self, "reason")


Operation = Add | Modify | Delete | Keep
_OPERATIONS: dict[str, type[Operation]] = {kind.op: kind for kind in (Add, Modify, Delete, Keep)}
_FIELDS = {
    "ADD": ("text", "scope", "reason"),
    "MODIFY": ("id", "text", "scope", "reason"),
    "DELETE": ("id", "reason"),
    "KEEP": ("id", "reason"),
}
_SYNONYMS = {"UPDATE": "MODIFY", "REMOVE": "DELETE", "NONE": "KEEP"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An operation that was left out, as it was given, and the reason in words."""

    operation: Any
    reason: str


def operation_from(given: Mapping[str, Any], evidence: tuple[Evidence, ...] = ()) -> Operation:
    """The operation that a mapping stands for, as an LM writes it.

    `{"op": "modify", "id": "[e2]", "text": "Ask first."} -> Modify("E2", "Ask first.")`.
    The case of `op`, brackets around an id and a number instead of an id are forgiven; UPDATE and
    REMOVE are read as MODIFY and DELETE. Fields that the operation does not have are not looked
    at (an ADD gets its id from the library). Fields that are absent or None, and an empty scope,
    take their defaults.

    Raises:
        LibraryError: no such operation, or a field that it needs is absent or of the wrong type.
    """
    name = str(given.get("op", "")).strip().upper()
    name = _SYNONYMS.get(name, name)
    if name not in _OPERATIONS:
        raise LibraryError(f"op={given.get('op')!r}: the operations are ADD, MODIFY, DELETE, KEEP.")
    fields = {key: given[key] for key in _FIELDS[name] if given.get(key) is not None}
    if fields.get("scope") == "":
        del fields["scope"]
    if "id" in _FIELDS[name]:
        fields["id"] = _forgiven_id(given.get("id"))
    if "text" in _FIELDS[name] and "text" not in fields:
        raise LibraryError(f"op={name!r} needs a text, and has none.")
    return _OPERATIONS[name](**fields, evidence=evidence)


def _forgiven_id(given: object) -> str:
    found = re.fullmatch(r"[\[(]?\s*[eE]?([1-9][0-9]*)\*?\s*[\])]?", str(given).strip())
    return f"E{found[1]}" if found else str(given)


def _check_id(given: object) -> None:
    if not isinstance(given, str) or not _ID.fullmatch(given):
        raise LibraryError(f"id={given!r}: an id is 'E' and a number from 1, such as 'E1'.")


def _check_strings(operation: object, *names: str) -> None:
    for name in names:
        value = getattr(operation, name)
        if not isinstance(value, str):
            raise LibraryError(f"{name}={value!r} of an operation: give a string.")
        _check_characters(name, value)


def _check_scope(given: object) -> None:
    if not isinstance(given, str) or not given:
        raise LibraryError(f"scope={given!r}: give a predictor's name, or '*' for all.")
    _check_characters("scope", given)


def _check_characters(name: str, given: str) -> None:
    try:
        given.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LibraryError(f"{name}={given!r} holds half a character ({error.reason}).") from error


def _checked_text(given: object) -> str:
    if not isinstance(given, str) or not given.strip():
        raise LibraryError(f"text={given!r}: an experience is one line of advice, not empty.")
    _check_characters("text", given)
    return given.strip()
