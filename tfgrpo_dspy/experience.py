"""Experiences, the operations on them, and the library: an immutable, ordered set of them.

Every constructor checks its arguments, so that invalid values cannot exist. A library is baked into
instructions as a block, where what could end a line, the block or a section of the adapter stands
as `\\uXXXX`.
"""

import functools
import json
import math
import re
import sys
from abc import ABCMeta
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from tfgrpo_dspy import files
from tfgrpo_dspy.errors import LibraryError, LibraryFormatError, checked, faults_in, such_that
from tfgrpo_dspy.text import cleaned_text, counted, meaning, n_words, printable
from tfgrpo_dspy.user_code import ProgramT, copy_to_change, named_predictors

NUMBER = r"[1-9][0-9]{0,17}"  # of an id
BEGIN = "<experiences>"
END = "</experiences>"
BRIEF = "learned-brief"  # the tag around a text that has taken the place of the instructions
HEADER = "Advice learned from earlier attempts:"
_TRAILING = r"[ \t\r]*"  # what editors and prompt registries add to lines, or change their ends to
_BEGUN = re.compile(rf"{BEGIN}{_TRAILING}\n{HEADER}{_TRAILING}\n")
_BLOCK = re.compile(rf"^{_BEGUN.pattern}.*?\n{END}{_TRAILING}$", re.MULTILINE | re.DOTALL)
_LINE = re.compile(rf"\[(E{NUMBER})(\*?)\] (.+)")
_LAST_LINE = re.compile(rf"\(next id: E({NUMBER})\)")
BRIEF_BLOCK = re.compile(
    rf"^<{BRIEF}>{_TRAILING}\n(.*?)\n</{BRIEF}>{_TRAILING}$", re.MULTILINE | re.DOTALL
)
_ESCAPE = re.compile(r"\\u([0-9a-f]{4})")
_TO_ESCAPE = re.compile(
    r"\\(?=u[0-9a-f]{4})"  # a backslash that would read as one of our escapes
    r"|[\x00-\x1f\x7f-\x9f\u2028\u2029]"  # what ends a line somewhere, and other controls
    rf"|<(?=\s*/?\s*(?:experiences|{BRIEF}))"  # our own delimiters
    r"|\[(?=\[\s*##)",  # the section markers of DSPy's chat adapter
    re.IGNORECASE,
)
OF_ONE_CLASS = ("__dict__", "__weakref__", "_abc_impl")  # in the dict of a class
Z_95 = 1.96  # standard errors from an effect to the bounds of its 95 % interval
ALL = "*"  # the scope of an experience that every predictor of the program is given
Advice = tuple[str, str]
"""The text and the scope of an experience: what it says, whatever its id is."""

_WRITTEN_ID = re.compile(rf"^[\[(]?\s*[eE]?({NUMBER})\*?\s*[\])]?$")  # `[e2]`, `E2*`, 2

_is_id = re.compile(f"E{NUMBER}").fullmatch
Id = Annotated[str, such_that(_is_id, "an id is 'E' and a number from 1, such as 'E1'")]
_is_text = re.compile(r"[^\ud800-\udfff]*").fullmatch
Text = Annotated[str, such_that(_is_text, "give a string without lone surrogates")]
Line = Annotated[
    Text,
    pydantic.AfterValidator(lambda text: cleaned_text(text).strip() or printable(text.strip())),
]
Scope = Annotated[Text, such_that(bool, "give a predictor's name, or '*' for all")]


def scope_note(scope: str) -> str:
    """` (for solve)` for the scope of one predictor, "" for that of all."""
    return "" if scope == ALL else f" (for {scope})"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One group that an experience was learned from; a score is None where there was no metric."""

    update: int
    example: int  # the position in the training set, from 0
    rollout_ids: tuple[int, ...]
    scores: tuple[float | None, ...]  # of these rollouts


@dataclass(frozen=True, slots=True)
class Effect:
    """The gain in score from an experience, as a mean over examples like the training examples."""

    estimate: float
    standard_error: float
    n_rollouts: int  # that were given the experience
    widest: float | None = None  # the highest less the lowest score of the run, if it is known

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
    must not be empty; `scope` is a predictor's name, or "*" for all. Else a LibraryError is raised.
    The rest are annotations, which take no part in equality; `n_tokens` are added to each call.
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
        n_tokens = "" if self.n_tokens is None else f"{self.n_tokens} tokens"
        notes = [str(self.effect or ""), n_tokens, "on trial" * self.is_on_trial]
        measured = ", ".join(filter(None, notes))
        return f"[{self.id}] {self.text}{scope_note(self.scope)}" + (measured and f"  ({measured})")

    def __repr__(self) -> str:
        return f"<Experience {printable(str(self))}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    reason: Text = ""
    evidence: tuple[Evidence, ...] = field(default=(), repr=False)


OperationId = Annotated[
    Id,
    pydantic.BeforeValidator(lambda id_: _WRITTEN_ID.sub(r"E\1", str(id_).strip()) if id_ else id_),
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
AnyOperation = Annotated[Operation, pydantic.Field(discriminator="op")]
OPERATION: pydantic.TypeAdapter[Operation] = pydantic.TypeAdapter(AnyOperation)
_SYNONYMS = {"UPDATE": "MODIFY", "REMOVE": "DELETE", "NONE": "KEEP"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An operation that was left out (a malformed one as it was written), and why, in words."""

    operation: Any
    reason: str


def operation_from(written: Any) -> Operation:
    """The operation that a mapping stands for, as an LM writes it.

    `{"op": "update", "id": "[e2]", "text": "Ask first."} -> Modify("E2", "Ask first.")`.
    Other fields are ignored; absent ones, None and an empty scope mean the defaults. Raises
    LibraryError: no such operation, or a field that it needs is absent or of the wrong type.
    """
    if isinstance(written, Mapping):
        op = str(written.get("op", "")).strip().upper()
        op = _SYNONYMS.get(op, op)
        if op not in _SYNONYMS.values() and op != "ADD":
            fault = f"op={written.get('op')!r}: the operations are ADD, MODIFY, DELETE, KEEP."
            raise LibraryError(fault)
        fields = {k: v for k, v in written.items() if v is not None and (k, v) != ("scope", "")}
        written = {**fields, "op": op, "evidence": ()}
    try:
        return OPERATION.validate_python(written)
    except pydantic.ValidationError as error:
        raise LibraryError(" ".join(faults_in(error))) from None


def supported(value: Any, other: Any) -> Any:
    """The experience, operation or lesson with the evidence of the other, too."""
    return replace(value, evidence=tuple(dict.fromkeys((*value.evidence, *other.evidence))))


@dataclass(frozen=True, slots=True)
class Limits:
    """The most experiences that a library may hold, and the most words of each."""

    max_experiences: int = 30
    max_experience_words: int = 80


DEFAULT_LIMITS = Limits()
NO_LIMITS = Limits(sys.maxsize, sys.maxsize)  # where those of the run were checked before


# -------------------------------------------------------------------------- the library

FORMAT = {"format": "tfgrpo_dspy.library", "version": 1}
FORM = 'Write version 1 of the form: {"experiences": [{"id": "E1", "text": "..."}]}.'
MOST_FAULTS = 5  # in one message
Written = Operation | Mapping[str, Any]  # an operation, or a mapping as an LM writes it


@dataclass(frozen=True, init=False)
class ExperienceLibrary:
    """An immutable set of experiences, in the order of their ids, which are never used twice.

    Two libraries are equal when briefs, ids, texts, scopes and the next free id are.

        >>> library = ExperienceLibrary([Experience(id="E1", text="Ask for the order number.")])
        >>> library = library.apply([{"op": "ADD", "text": "Say sorry first."}])
        >>> print(library.render())
        [E1*] Ask for the order number.
        [E2*] Say sorry first.

    `experiences` may be in any order, `next_number` (of the next free id) is by default the highest
    in use plus one, `briefs` are by predictor the texts that take the place of its instructions.
    Raises LibraryError: an id occurs twice, or `next_number` is not above every id in use.
    """

    experiences: tuple[Experience, ...]
    next_number: int
    briefs: tuple[tuple[str, str], ...]

    def __init__(
        self,
        experiences: Iterable[Experience] = (),
        *,
        next_number: int | None = None,
        briefs: Mapping[str, str] | Iterable[tuple[str, str]] = (),  # of two, the last one
    ) -> None:
        experiences = tuple(sorted(experiences, key=lambda experience: experience.number))
        ids = [experience.id for experience in experiences]
        if len(set(ids)) < len(ids):
            raise LibraryError(f"ids {ids}: one occurs twice; an id names one experience.")
        free = experiences[-1].number + 1 if experiences else 1
        next_number = free if next_number is None else next_number
        if not isinstance(next_number, int) or next_number < free:
            raise LibraryError(f"next_number={next_number!r}: give a number of at least {free}.")
        object.__setattr__(self, "experiences", experiences)
        object.__setattr__(self, "next_number", next_number)
        pairs = sorted(dict(briefs).items())
        texts = [(name, cleaned_text(text).expandtabs().strip()) for name, text in pairs]
        object.__setattr__(self, "briefs", tuple((name, text) for name, text in texts if text))

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "ExperienceLibrary":
        """The library of these lines, for all predictors: E1, E2, ...

        Raises LibraryError: a text is empty, or one text was given in place of several.
        """
        if isinstance(texts, str):
            raise LibraryError(f"texts={texts!r:.80}: pass a list of texts: [{texts!r:.80}].")
        return cls(Experience(f"E{number}", text) for number, text in enumerate(texts, start=1))

    def __iter__(self) -> Iterator[Experience]:
        return iter(self.experiences)

    def __len__(self) -> int:
        return len(self.experiences)

    def __contains__(self, id_: object) -> bool:
        """True if it holds an experience of this id: `"E1" in library`."""
        return id_ in self._by_id()

    def __getitem__(self, id_: str) -> Experience:
        """The experience of that id. Raises KeyError."""
        return self._by_id()[id_]

    def __str__(self) -> str:
        briefs = (f"Brief of {name}:\n{text}\n" for name, text in self.briefs)
        return printable("\n".join([*briefs, *map(str, self)])) or "no experiences"

    def __repr__(self) -> str:
        return f"<ExperienceLibrary of {len(self)}: {', '.join(self._by_id()) or 'empty'}>"

    def _by_id(self) -> dict[str, Experience]:
        return {experience.id: experience for experience in self}

    def render(self) -> str:
        """The experiences as text, a line each; those for one predictor say for which."""
        return "\n".join(_line(experience) + scope_note(experience.scope) for experience in self)

    def holding(self, experiences: Iterable[Experience]) -> "ExperienceLibrary":
        """A library of these experiences, with the briefs and the next free id of this one."""
        return ExperienceLibrary(experiences, next_number=self.next_number, briefs=self.briefs)

    def briefed(self, briefs: Iterable[tuple[str, str]]) -> "ExperienceLibrary":
        """This library with these briefs, each in place of the one of its predictor."""
        return ExperienceLibrary(self, next_number=self.next_number, briefs=[*self.briefs, *briefs])

    def apply(
        self, operations: Iterable[Written], limits: Limits = DEFAULT_LIMITS
    ) -> "ExperienceLibrary":
        """The library after the operations; those that `refusals` names are left out.

        Unchanged experiences keep id, text and place; a MODIFY keeps id and place; an ADD goes
        to the end under the next free id. `limits`: by default 30 experiences of 80 words.
        Raises LibraryError: an operation is malformed, such as one with a misspelt `op`.
        """
        return self.applied([operation_from(op) for op in operations], limits).library

    def applied(self, operations: Iterable[Written], limits: Limits = DEFAULT_LIMITS) -> "Applied":
        """The library after the operations, those that it accepts, and those that it refuses.

        An operation is refused that is malformed; names an id that is not in the library, or one
        that an earlier operation of the list names (the first one counts); has an empty text or
        one of too many words; repeats an experience that stays (compared without case,
        punctuation, spacing and fillers such as "please", where the scopes meet); changes nothing;
        or adds to a full library (the deletions of the list make room first).
        """
        accepted: list[tuple[str, Operation]] = []
        refused: list[Refusal] = []
        parsed: list[Operation] = []
        for written in operations:
            try:
                parsed.append(operation_from(written))
            except LibraryError as error:
                refused.append(Refusal(written, str(error)))
        before, number = self._by_id(), self.next_number
        first = {op.id: op for op in reversed(parsed) if not isinstance(op, Add)}
        now = {k: v for k, v in before.items() if not isinstance(first.get(k), Delete)}
        for operation in parsed:
            old, reason = None, ""
            if isinstance(operation, Add):
                if len(now) >= limits.max_experiences:
                    reason = f"the library is full: {len(now)} experiences"
            elif (old := before.get(operation.id)) is None:
                reason = f"there is no {operation.id}"
            elif first[old.id] is not operation:
                reason = f"an earlier operation of this list names {old.id}; the first one counts"
            if reason or (reason := _fault_of_text(operation, old, now, limits)):
                refused.append(Refusal(operation, reason))
                continue
            new: Any = old
            if isinstance(operation, Add):
                new = Experience(f"E{number}", operation.text, operation.scope)
                number += 1
            elif isinstance(operation, Modify):  # what was measured of the old text goes
                new = Experience(new.id, operation.text, operation.scope or new.scope, new.evidence)
            accepted.append((new.id, operation))
            if not isinstance(operation, Delete):
                now[new.id] = supported(new, operation)
        library = ExperienceLibrary(now.values(), next_number=number, briefs=self.briefs)
        return Applied(library, tuple(accepted), tuple(refused))

    def refusals(
        self, operations: Iterable[Written], limits: Limits = DEFAULT_LIMITS
    ) -> tuple[Refusal, ...]:
        """The operations that the library does not accept, and why: first the malformed ones."""
        return self.applied(operations, limits).refused

    def diff(self, other: "ExperienceLibrary") -> str:
        """A line for each brief or experience that the two do not share; "" where there is none.

        Two experiences of the same text and scope are the same, whatever their ids: runs number
        what they learn in their own order. Of the rest, two of the same id are a pair (~), then two
        whose texts differ in case, punctuation or spacing only.
        """
        ours, theirs = {*self.briefs}, {*other.briefs}
        lines = [f"+ brief of {name}: {text!r}" for name, text in theirs - ours]
        lines = sorted(lines + [f"- brief of {name}: {text!r}" for name, text in ours - theirs])
        added, removed, changed = list(other), list(self), list[str]()
        for key in (attrgetter("advice"), attrgetter("id"), _meaning):
            unmatched = {key(new): new for new in reversed(added)}
            for old in list(removed):
                if (new := unmatched.pop(key(old), None)) is not None:
                    removed.remove(old)
                    added.remove(new)
                    changed += [f"~ {old} -> {new}"] if old.advice != new.advice else []
        lines += [*(f"+ {new}" for new in added), *(f"- {old}" for old in removed), *changed]
        return "\n".join(lines)

    def merge(self, other: "ExperienceLibrary") -> "ExperienceLibrary":
        """This library and what the other has besides.

        Own ids stay; a taken or retired id of the other's gives way to the next free one. What
        says the same in the same scope is kept once, with the evidence of both.
        """
        merged = self._by_id()
        id_by_meaning = {_meaning(each): each.id for each in self}
        next_number = max(self.next_number, other.next_number)
        for experience in other:
            if same := id_by_meaning.get(_meaning(experience)):
                merged[same] = supported(merged[same], experience)
                continue
            if experience.number < self.next_number:
                experience = replace(experience, id=f"E{next_number}")
                next_number += 1
            merged[experience.id] = experience
            id_by_meaning[_meaning(experience)] = experience.id
        briefs = [*other.briefs, *self.briefs]
        return ExperienceLibrary(merged.values(), next_number=next_number, briefs=briefs)

    def bake(self, program: ProgramT) -> ProgramT:
        """A copy of the program with this library in its instructions, in place of any other.

        The copy shares the program's LMs. An empty library leaves the instructions byte for byte as
        they were before the first bake; with the block goes the memory of retired ids. A brief
        takes the place of its predictor's instructions; one that the program has stays without it.
        Raises LibraryError: no DSPy program, or it has no predictor of a scope or a brief.
        """
        return self.written_into(copy_to_change(program))

    def written_into(self, program: ProgramT, for_a_rollout: bool = False) -> ProgramT:
        """The program itself, baked as by `bake`; `for_a_rollout` as in `with_instructions`."""
        predictors, briefs = dict(named_predictors(program)), dict(self.briefs)
        if unknown := sorted({*briefs, *(each.scope for each in self)} - {ALL, *predictors}):
            has = f"it has {sorted(predictors)}"
            raise LibraryError(f"scopes {unknown} name no predictor of the program; {has}.")
        for name, predictor in predictors.items():
            visible = [experience for experience in self if experience.scope in (ALL, name)]
            lines = [BEGIN, HEADER, *map(_line, visible)]
            block = "\n".join([*lines, f"(next id: E{self.next_number})", END])
            before = predictor.signature.instructions
            instructions = replace_block(before, block if visible else "")
            if name in briefs:
                kept = escaped(briefs[name], kept="\n\t")
                written = f"<{BRIEF}>\n{kept}\n</{BRIEF}>"
                text, block, after = split_instructions(instructions)
                whole = f"{written}\n\n" if block else written
                if old := BRIEF_BLOCK.search(text):
                    whole = text[: old.start()] + written + text[old.end() :]
                instructions = whole + block + after
            if instructions != before:
                old = predictor.signature
                predictor.signature = with_instructions(old, instructions, for_a_rollout)
        return program

    @classmethod
    def from_program(cls, program: Any) -> "ExperienceLibrary":
        """The library that is baked into a program; empty where there is none.

        Only ids, texts and scopes are baked. `save` keeps evidence and effects, and so does
        `detailed_results.experiences` of a program that was optimized. Raises LibraryError: no DSPy
        program; LibraryFormatError: a block was damaged, or two predictors disagree on an id.
        """
        predictors = named_predictors(program)
        return library_of({name: one.signature.instructions for name, one in predictors})

    def to_dict(self) -> dict[str, Any]:
        """The record that `save` writes: the library with its evidence, as values that JSON has."""
        experiences = [
            {name: value for name, value in asdict(each).items() if value not in (None, False, ())}
            for each in self
        ]
        content = {**FORMAT, "next_number": self.next_number, "experiences": experiences}
        content |= {"briefs": dict(self.briefs)} if self.briefs else {}
        return dict(json.loads(json.dumps(content)))  # lists where the experiences have tuples

    def save(self, path: str | Path) -> None:
        """Write the library, with its evidence, as JSON. Raises OSError; the file is as it was."""
        files.write_text(path, record_text(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> "ExperienceLibrary":
        """Read a library that `save` wrote, or that somebody wrote by hand.

        `{"experiences": [{"id": "E1", "text": "Ask first."}]}` is enough: without a `scope` an
        experience is for all predictors. Raises OSError, LibraryFormatError (which says what to
        write).
        """
        return cls.from_dict(files.json_value(files.read_text(path), str(path)), source=str(path))

    @classmethod
    def from_dict(cls, record: Any, source: str = "the record") -> "ExperienceLibrary":
        """The library of `to_dict`. Raises LibraryFormatError, which names it `source`."""
        try:
            read = LibraryRecord.model_validate(record)
            written = cls(read.experiences, next_number=read.next_number, briefs=read.briefs)
        except pydantic.ValidationError as error:
            faults = faults_in(error)
            more = f" And {len(faults) - MOST_FAULTS} more." if len(faults) > MOST_FAULTS else ""
            message = f"{source}: {' '.join(faults[:MOST_FAULTS])}{more} {FORM}"
            raise LibraryFormatError(message) from error
        except LibraryError as error:
            raise LibraryFormatError(f"{source}: {error}") from error
        return cls().merge(written)  # a line that stands there twice is one


class LibraryRecord(pydantic.BaseModel, extra="forbid"):
    """The record of `ExperienceLibrary.to_dict`."""

    experiences: list[Experience]
    next_number: pydantic.StrictInt | None = None
    briefs: dict[str, str] = pydantic.Field(default_factory=dict)
    format: Literal["tfgrpo_dspy.library"] = "tfgrpo_dspy.library"
    version: Literal[1] = 1


def record_text(record: Mapping[str, Any]) -> str:
    """The record as JSON: each field of an experience has a line, and all its evidence just one."""
    text = json.dumps(record, ensure_ascii=False, indent=2)
    return re.sub(r"\n {8,}|\n {6}(?=[\]}])", " ", text) + "\n"


def _fault_of_text(
    operation: Operation, old: Experience | None, now: Mapping[str, Experience], limits: Limits
) -> str:
    """The reason to refuse a new text, or one in place of an old one; "" if there is none."""
    if not isinstance(operation, Add | Modify):
        return ""
    scope = operation.scope or (old.scope if old else ALL)
    if old and (operation.text, scope) == old.advice:
        return f"{old.id} says just this already"
    if not (n := n_words(operation.text)):
        return "the text is empty"
    if n > limits.max_experience_words:
        return f"{n} words; at most {limits.max_experience_words} are allowed"
    others = (other for other in now.values() if not old or other.id != old.id)
    same = (each.id for each in others if is_repeated(operation.text, scope, each))
    return next((f"{id_} says this already" for id_ in same), "")


def is_repeated(text: str, scope: str, other: Experience) -> bool:
    """True if a predictor that is given both would be told the same twice."""
    do_meet = ALL in (scope, other.scope) or scope == other.scope
    return do_meet and meaning(other.text) == meaning(text)


def _line(experience: Experience) -> str:
    """`[E1*] text`; the star marks scope 'all'."""
    star = "*" if experience.scope == ALL else ""
    return f"[{experience.id}{star}] {escaped(experience.text)}"


def library_of(instructions: Mapping[str, str]) -> ExperienceLibrary:
    """The library in the instructions of predictors, by name. Raises LibraryFormatError."""
    by_id: dict[str, Experience] = {}
    briefs: dict[str, str] = {}
    next_number = 1
    for name, text in instructions.items():
        before, block, _ = split_instructions(text)
        brief = BRIEF_BLOCK.search(before)
        briefs[name] = unescaped(brief[1]) if brief else ""
        if not block:
            continue
        *lines, last = block.split("\n")[2:-1] or [""]
        where = f"The experiences baked into predictor {name!r}"
        if (match := _LAST_LINE.fullmatch(last.rstrip())) is None:
            way = f"restore the line '(next id: E<number>)', or remove all from {BEGIN} to {END}."
            raise LibraryFormatError(f"{where} end with {last!r:.200}; {way}")
        next_number = max(next_number, int(match[1]))
        for line in lines:
            if (parts := _LINE.fullmatch(line)) is None or not parts[3].strip():
                form = (
                    "a line is '[E<number>] text' (a star behind the number: for all), not empty."
                )
                raise LibraryFormatError(f"{where} hold the line {line!r:.200}: {form}")
            try:
                experience = Experience(parts[1], unescaped(parts[3]), ALL if parts[2] else name)
            except LibraryError as error:
                raise LibraryFormatError(f"predictor {name!r}: {error}") from error
            next_number = max(next_number, experience.number + 1)
            first = by_id.setdefault(experience.id, experience)
            if first != experience:
                fault = f"Two lines disagree on an id: {first} and {experience}"
                raise LibraryFormatError(f"{fault}; give both one text, or one another id.")
    library = ExperienceLibrary(by_id.values(), next_number=next_number, briefs=briefs)
    return ExperienceLibrary().merge(library)


@dataclass(frozen=True, slots=True)
class Applied:
    """A library after operations."""

    library: ExperienceLibrary
    accepted: tuple[tuple[str, Operation], ...]  # with the id that each adds, changes or supports
    refused: tuple[Refusal, ...]  # the malformed ones first
    briefs: tuple[Any, ...] = ()  # that are to be tried

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The accepted operations."""
        return tuple(operation for _, operation in self.accepted)


def _meaning(experience: Experience) -> tuple[str, str]:
    return meaning(experience.text), experience.scope


def escaped(text: str, kept: str = "") -> str:
    """The text as it may stand in instructions; the characters in `kept` stay."""
    return _TO_ESCAPE.sub(lambda m: m[0] if m[0] in kept else f"\\u{ord(m[0]):04x}", text)


def unescaped(text: str) -> str:
    """The text without the escapes in which it stands in instructions."""
    return _ESCAPE.sub(lambda code: chr(int(code[1], 16)), text)


def split_instructions(instructions: str) -> tuple[str, str, str]:
    """The text before the block, the block or "", the text behind. Raises LibraryFormatError."""
    blocks = list(_BLOCK.finditer(instructions))
    n_begun = len(_BEGUN.findall(instructions))
    if n_begun != len(blocks) or n_begun > 1:
        hold = f"The instructions {instructions[:120]!r}... hold {n_begun} blocks of experiences"
        whole = f"{len(blocks)} of which end with the line {END}"
        raise LibraryFormatError(f"{hold}, {whole}; keep one, or none.")
    if not blocks:
        return instructions, "", ""
    start, end = blocks[0].span()
    return instructions[:start], instructions[start:end], instructions[end:]


def replace_block(instructions: str, new: str = "") -> str:
    """The instructions with the new block in place of the old one, or at the end; or with none."""
    before, old, after = split_instructions(instructions)
    if old and new:
        return before + new + after
    if old:
        before = before.removesuffix("\n\n")
        return before + after if before else after.removeprefix("\n\n")
    return f"{before}\n\n{new}" if before and new else before + new


def plain_instructions(instructions: str) -> str:
    """The instructions without our delimiters. Raises LibraryFormatError."""
    before, block, after = split_instructions(_without_tags(instructions))
    advice = [each.text for each in library_of({"self": block})]
    before = before.removesuffix("\n\n") if block else before
    return "\n".join([before, *advice] if before else advice) + after


def bare_instructions(predictor: Any) -> str:
    """The predictor's instructions, or its brief, without the experiences behind them."""
    return _without_tags(replace_block(predictor.signature.instructions))


def _without_tags(instructions: str) -> str:
    return BRIEF_BLOCK.sub(lambda match: unescaped(match[1]), instructions)


def with_instructions(signature: Any, instructions: str, for_a_rollout: bool = False) -> Any:
    """The signature with these instructions, byte for byte.

    `for_a_rollout`: as a copy, which cannot be pickled, of a class that DSPy makes only once.
    """
    text = f"\n{instructions}"  # so DSPy's `inspect.cleandoc` takes no indentation away
    if not for_a_rollout:
        return signature.with_instructions(text)
    same = _without_instructions(signature)
    namespace = {name: value for name, value in vars(same).items() if name not in OF_ONE_CLASS}
    return ABCMeta.__new__(type(same), same.__name__, same.__bases__, namespace | {"__doc__": text})


_without_instructions = functools.lru_cache(64)(lambda signature: signature.with_instructions(""))
