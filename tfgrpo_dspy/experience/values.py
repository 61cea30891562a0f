"""Experiences, the operations on them, and which operations a library accepts.

Every constructor checks its arguments, so that invalid values cannot exist.
"""

import html
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from tfgrpo_dspy.checked import checked, such_that, text_of
from tfgrpo_dspy.errors import LibraryError
from tfgrpo_dspy.outside import cleaned_text, printable
from tfgrpo_dspy.wording import counted, meaning, n_words

Z_95 = 1.96  # standard errors from an effect to the bounds of its 95 % interval
ALL = "*"  # the scope of an experience that every predictor of the program is given
Advice = tuple[str, str]
"""The text and the scope of an experience: what it says, whatever its id is."""

NUMBER = r"[1-9][0-9]{0,17}"  # of an id
_WRITTEN_ID = re.compile(rf"^[\[(]?\s*[eE]?({NUMBER})\*?\s*[\])]?$")  # `[e2]`, `E2*`, 2


Id = Annotated[
    str,
    such_that(
        lambda id_: re.fullmatch(f"E{NUMBER}", id_) is not None,
        "an id is 'E' and a number from 1, such as 'E1'",
    ),
]
Text = Annotated[
    str,
    such_that(
        lambda text: not re.search(r"[\ud800-\udfff]", text),
        "give a string without lone surrogates",
    ),
]
Line = Annotated[
    Text, AfterValidator(lambda text: cleaned_text(text).strip() or printable(text.strip()))
]
Scope = Annotated[Text, such_that(bool, "give a predictor's name, or '*' for all")]


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
    """The gain in score from an experience, as a mean over examples like the training examples.

    `n_rollouts` rollouts were given the experience. No effect is larger than `widest`, the
    difference of the highest and the lowest score of the run; None: that is not known.
    """

    estimate: float
    standard_error: float
    n_rollouts: int
    widest: float | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The 95 % interval, which is within what the scale of the scores allows."""
        half, most = Z_95 * self.standard_error, math.inf if self.widest is None else self.widest
        return max(-most, self.estimate - half), min(most, self.estimate + half)

    def __str__(self) -> str:
        measured = f"{self.estimate:+z.2f} \N{PLUS-MINUS SIGN} {self.standard_error:.2f}"
        return f"effect {measured} by {counted(self.n_rollouts, 'rollout')}"


@checked(LibraryError, slots=True, extra="forbid")
class Experience:
    """One line of advice with a stable id, a scope and its evidence.

    `id` is "E" and a number from 1; `text` is without outer white space and what nobody sees, and
    must not be empty; `scope` is a predictor's name, or "*" for all. Evidence, the measured effect,
    its `n_tokens` (that it adds to each call; None where they were not counted) and whether
    it is on trial are annotations: they take no part in equality.

    Raises:
        LibraryError: the id, the text or the scope is not of that form.
    """

    id: Id
    text: Annotated[Line, such_that(bool, "an experience is a line, not empty")]
    scope: Scope = ALL
    evidence: tuple[Evidence, ...] = field(default=(), compare=False, repr=False)
    effect: Effect | None = field(default=None, compare=False)
    n_tokens: int | None = field(default=None, compare=False)
    is_on_trial: bool = field(default=False, compare=False)

    @property
    def advice(self) -> Advice:
        """The text and the scope."""
        return (self.text, self.scope)

    @property
    def number(self) -> int:
        """The number in the id: 7 for "E7"."""
        return int(self.id[1:])

    def __str__(self) -> str:
        notes = [str(self.effect)] if self.effect is not None else []
        notes += [f"{self.n_tokens} tokens"] if self.n_tokens is not None else []
        notes += ["on trial"] if self.is_on_trial else []
        line = f"[{self.id}] {self.text}{scope_note(self.scope)}"
        return line + (f"  ({', '.join(notes)})" if notes else "")

    def __repr__(self) -> str:
        return f"<Experience {printable(str(self))}>"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(printable(str(self)))}</pre>"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    reason: Text = ""
    evidence: tuple[Evidence, ...] = field(default=(), repr=False)


OperationId = Annotated[
    Id, BeforeValidator(lambda id_: _WRITTEN_ID.sub(r"E\1", str(id_).strip()) if id_ else id_)
]


@checked(LibraryError, slots=True)
class Add(_Operation):
    """Put a new experience at the end of the library; the library gives it its id."""

    text: Line
    scope: Scope = ALL
    op: Literal["ADD"] = field(default="ADD", repr=False, kw_only=True)


@checked(LibraryError, slots=True)
class Modify(_Operation):
    """Give an experience another text (and another scope, unless `scope` is None)."""

    id: OperationId
    text: Line
    scope: Scope | None = None
    op: Literal["MODIFY"] = field(default="MODIFY", repr=False, kw_only=True)


@checked(LibraryError, slots=True)
class Delete(_Operation):
    """Take an experience out of the library; its id is never used again."""

    id: OperationId
    op: Literal["DELETE"] = field(default="DELETE", repr=False, kw_only=True)


@checked(LibraryError, slots=True)
class Keep(_Operation):
    """Change no text; record that this evidence supports the experience."""

    id: OperationId
    op: Literal["KEEP"] = field(default="KEEP", repr=False, kw_only=True)


Operation = Add | Modify | Delete | Keep
AnyOperation = Annotated[Operation, Field(discriminator="op")]
OPERATION: TypeAdapter[Operation] = TypeAdapter(AnyOperation)
_SYNONYMS = {"UPDATE": "MODIFY", "REMOVE": "DELETE", "NONE": "KEEP"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An operation that was left out (a malformed one as it was written), and why, in words."""

    operation: Any
    reason: str


def operation_from(written: Any) -> Operation:
    """The operation that a mapping stands for, as an LM writes it.

    `{"op": "update", "id": "[e2]", "text": "Ask first."} -> Modify("E2", "Ask first.")`.
    Other fields are ignored; absent ones, None and an empty scope mean the defaults.

    Raises:
        LibraryError: no such operation, or a field that it needs is absent or of the wrong type.
    """
    if isinstance(written, Mapping):
        op = str(written.get("op", "")).strip().upper()
        op = _SYNONYMS.get(op, op)
        if op not in ("ADD", "MODIFY", "DELETE", "KEEP"):
            raise LibraryError(
                f"op={written.get('op')!r}: the operations are ADD, MODIFY, DELETE, KEEP."
            )
        written = {k: v for k, v in written.items() if v is not None and (k, v) != ("scope", "")}
        written = {**written, "op": op, "evidence": ()}
    try:
        return OPERATION.validate_python(written)
    except ValidationError as error:
        raise LibraryError(text_of(error)) from None


def supported(value: Any, other: Any) -> Any:
    """The experience, operation or lesson with the evidence of the other, too."""
    return replace(value, evidence=tuple(dict.fromkeys((*value.evidence, *other.evidence))))


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a library: `max_experiences` of at most `max_experience_words` words each."""

    max_experiences: int = 30
    max_experience_words: int = 80


DEFAULT_LIMITS = Limits()
NO_LIMITS = Limits(sys.maxsize, sys.maxsize)  # where those of the run were checked before


def reason_against(
    operation: Operation,
    before: Mapping[str, Experience],
    now: Mapping[str, Experience],
    first: Mapping[str, Operation],
    limits: Limits,
) -> str:
    """The reason to refuse the operation; "" if it is accepted.

    `before` and `now` are the experiences at the start of the list and at its turn, `first` is the
    first operation of the list on each.
    """
    others, scope = [*now.values()], getattr(operation, "scope", None)
    if isinstance(operation, Add):
        if len(now) >= limits.max_experiences:
            return f"the library is full: {len(now)} experiences"
    elif operation.id not in before:
        return f"there is no {operation.id}"
    elif first[operation.id] is not operation:
        return f"an earlier operation of this list names {operation.id}; the first one counts"
    elif not isinstance(operation, Modify):
        return ""
    else:
        old = before[operation.id]
        scope = scope or old.scope
        if (operation.text, scope) == old.advice:
            return f"{old.id} says just this already"
        others = [experience for experience in others if experience.id != old.id]
    n = n_words(operation.text)
    if not 0 < n <= limits.max_experience_words:
        most = f"{n} words; at most {limits.max_experience_words} are allowed"
        return most if n else "the text is empty"
    same = (each.id for each in others if is_repeated(operation.text, scope or ALL, each))
    return next((f"{id_} says this already" for id_ in same), "")


def is_repeated(text: str, scope: str, other: Experience) -> bool:
    """True if a predictor that is given both would be told the same twice."""
    do_meet = ALL in (scope, other.scope) or scope == other.scope
    return do_meet and meaning(other.text) == meaning(text)
