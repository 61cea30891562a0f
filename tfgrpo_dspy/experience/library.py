"""The library: an immutable, ordered set of experiences; apply, compare, merge, bake, save."""

import functools
import html
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, StrictInt, ValidationError

from tfgrpo_dspy.checked import faults_in
from tfgrpo_dspy.errors import LibraryError, LibraryFormatError
from tfgrpo_dspy.experience import programs, values
from tfgrpo_dspy.experience.values import ALL, DEFAULT_LIMITS, Experience, Limits, Operation
from tfgrpo_dspy.files import json_value, read_text, write_text
from tfgrpo_dspy.outside import cleaned_text, printable
from tfgrpo_dspy.wording import meaning

ProgramT = TypeVar("ProgramT")
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

    Args:
        experiences: in any order.
        next_number: the number of the next free id; by default the highest in use plus one.
        briefs: by predictor, the text that takes the place of its instructions.

    Raises:
        LibraryError: an id occurs twice, or `next_number` is not above every id in use.
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

        Raises:
            LibraryError: a text is empty, or one text was given in place of several.
        """
        if isinstance(texts, str):
            raise LibraryError(
                f"texts={texts!r:.80}: pass a list of texts, such as [{texts!r:.80}]."
            )
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
        """The briefs, and a line for each experience with its worth: made for people."""
        briefs = (f"Brief of {name}:\n{text}\n" for name, text in self.briefs)
        return printable("\n".join([*briefs, *map(str, self)])) or "no experiences"

    def __repr__(self) -> str:
        return f"<ExperienceLibrary of {len(self)}: {', '.join(self._by_id()) or 'empty'}>"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def _by_id(self) -> dict[str, Experience]:
        return {experience.id: experience for experience in self}

    def render(self) -> str:
        """The experiences as text, a line each; those for one predictor say for which."""
        lines = (programs.render_lines([e]) + values.scope_note(e.scope) for e in self)
        return "\n".join(lines)

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

        Raises:
            LibraryError: an operation is malformed, such as one with a misspelt `op`.
        """
        return self.applied([values.operation_from(op) for op in operations], limits).library

    def applied(self, operations: Iterable[Written], limits: Limits = DEFAULT_LIMITS) -> "Applied":
        """The library after the operations, those that it accepts, and those that it refuses.

        An operation is refused that is malformed; names an id that is not in the library, or one
        that an earlier operation of the list names (the first one counts); has an empty text or
        one of too many words; repeats an experience that stays (compared without case,
        punctuation, spacing and fillers such as "please", where the scopes meet); changes nothing;
        or adds to a full library (the deletions of the list make room first).
        """
        accepted: list[tuple[str, Operation]] = []
        refused: list[values.Refusal] = []
        parsed: list[Operation] = []
        for written in operations:
            try:
                parsed.append(values.operation_from(written))
            except LibraryError as error:
                refused.append(values.Refusal(written, str(error)))
        before, number = self._by_id(), self.next_number
        first = {op.id: op for op in reversed(parsed) if not isinstance(op, values.Add)}
        now = {k: v for k, v in before.items() if not isinstance(first.get(k), values.Delete)}
        for operation in parsed:
            if reason := values.reason_against(operation, before, now, first, limits):
                refused.append(values.Refusal(operation, reason))
                continue
            if isinstance(operation, values.Add):
                new = Experience(f"E{number}", operation.text, operation.scope)
                number += 1
            else:
                new = before[operation.id]
            accepted.append((new.id, operation))
            if isinstance(operation, values.Modify):  # what was measured of the old text goes
                new = Experience(new.id, operation.text, operation.scope or new.scope, new.evidence)
            if not isinstance(operation, values.Delete):
                now[new.id] = values.supported(new, operation)
        library = ExperienceLibrary(now.values(), next_number=number, briefs=self.briefs)
        return Applied(library, tuple(accepted), tuple(refused))

    def refusals(
        self, operations: Iterable[Written], limits: Limits = DEFAULT_LIMITS
    ) -> tuple[values.Refusal, ...]:
        """The operations that the library does not accept, and why: first the malformed ones."""
        return self.applied(operations, limits).refused

    def diff(self, other: "ExperienceLibrary") -> str:
        """A line for each brief or experience that the two do not share; "" where there is none."""
        added, removed, changed = self.differences(other)
        lines = [f"+ brief of {name}: {text!r}" for name, text in {*other.briefs} - {*self.briefs}]
        lines += [f"- brief of {name}: {text!r}" for name, text in {*self.briefs} - {*other.briefs}]
        lines = [*sorted(lines), *(f"+ {new}" for new in added), *(f"- {old}" for old in removed)]
        return "\n".join(lines + [f"~ {old} -> {new}" for old, new in changed])

    def differences(
        self, other: "ExperienceLibrary"
    ) -> tuple[list[Experience], list[Experience], list[tuple[Experience, Experience]]]:
        """The other's additions, what it lacks, and the pairs (ours, the other's) that differ.

        Two experiences of the same text and scope are the same, whatever their ids: runs number
        what they learn in their own order. Of the rest, two of the same id are a pair, then two
        whose texts differ in case, punctuation or spacing only.
        """
        added, removed = list(other), list(self)
        changed: list[tuple[Experience, Experience]] = []
        for key in (attrgetter("advice"), attrgetter("id"), _meaning):
            unmatched = {key(new): new for new in reversed(added)}
            for old in list(removed):
                if (new := unmatched.pop(key(old), None)) is not None:
                    removed.remove(old)
                    added.remove(new)
                    changed += [(old, new)] if old.advice != new.advice else []
        return added, removed, changed

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
                merged[same] = values.supported(merged[same], experience)
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

        Raises:
            LibraryError: not a DSPy program, or a scope, or the predictor of a brief, is not the
                name of one of its predictors.
        """
        programs.check_program(program)
        baked = programs.copy_to_change(program)
        predictors = dict(programs.named_predictors(baked))
        briefs = dict(self.briefs)
        unknown = sorted({*briefs, *(each.scope for each in self)} - {ALL, *predictors})
        if unknown:
            raise LibraryError(
                f"scopes {unknown} name no predictor of the program; it has {sorted(predictors)}."
            )
        for name, predictor in predictors.items():
            visible = [experience for experience in self if experience.scope in (ALL, name)]
            lines = [programs.BEGIN, programs.HEADER, programs.render_lines(visible)]
            block = "\n".join([*lines, f"(next id: E{self.next_number})", programs.END])
            before = predictor.signature.instructions
            instructions = programs.replace_block(before, block if visible else "")
            if name in briefs:
                instructions = programs.with_brief(instructions, briefs[name])
            if instructions != before:
                predictor.signature = programs.with_instructions(predictor.signature, instructions)
        return baked

    @classmethod
    def from_program(cls, program: Any) -> "ExperienceLibrary":
        """The library that is baked into a program; empty where there is none.

        Only ids, texts and scopes are baked. `save` keeps evidence and effects, and so does
        `detailed_results.experiences` of a program that was optimized.

        Raises:
            LibraryFormatError: a block was damaged, or two predictors disagree on an id.
            LibraryError: not a DSPy program.
        """
        programs.check_program(program)
        return library_in(program)

    def to_dict(self) -> dict[str, Any]:
        """The record that `save` writes: the library with its evidence, as values that JSON has."""
        experiences = [
            {name: value for name, value in asdict(each).items() if value not in (None, False)}
            for each in self
        ]
        content = {**FORMAT, "next_number": self.next_number, "experiences": experiences}
        content |= {"briefs": dict(self.briefs)} if self.briefs else {}
        return dict(json.loads(json.dumps(content)))  # lists where the experiences have tuples

    def save(self, path: str | Path) -> None:
        """Write the library, with its evidence, as JSON text.

        Raises:
            OSError: the file cannot be written; it is as it was.
        """
        write_text(path, record_text(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> "ExperienceLibrary":
        """Read a library that `save` wrote, or that somebody wrote by hand.

        `{"experiences": [{"id": "E1", "text": "Ask first."}]}` is enough: without a `scope` an
        experience is for all predictors.

        Raises:
            LibraryFormatError: the file is not a library, or one of a newer version; names what is
                wrong, and what to write.
            OSError: the file cannot be read.
        """
        return cls.from_dict(json_value(read_text(path), str(path)), source=str(path))

    @classmethod
    def from_dict(cls, record: Any, source: str = "the record") -> "ExperienceLibrary":
        """The library of `to_dict`.

        Raises:
            LibraryFormatError: the record is not a library; the message calls it `source`.
        """
        try:
            content = dict(LibraryRecord.model_validate(record))
            number, briefs = content["next_number"], content["briefs"]
            written = cls(content["experiences"], next_number=number, briefs=briefs)
        except ValidationError as error:
            faults = faults_in(error)
            more = [f"And {len(faults) - MOST_FAULTS} more."] if len(faults) > MOST_FAULTS else []
            message = " ".join([f"{source}:", *faults[:MOST_FAULTS], *more, FORM])
            raise LibraryFormatError(message) from error
        except LibraryError as error:
            raise LibraryFormatError(f"{source}: {error}") from error
        return cls().merge(written)  # a line that stands there twice is one


class LibraryRecord(BaseModel, extra="forbid"):
    """The record of `ExperienceLibrary.to_dict`, with experiences as values."""

    experiences: list[Experience]
    next_number: StrictInt | None = None
    briefs: dict[str, str] = Field(default_factory=dict)
    format: Literal["tfgrpo_dspy.library"] = "tfgrpo_dspy.library"
    version: Literal[1] = 1


def record_text(record: Mapping[str, Any]) -> str:
    """The record as JSON: each field of an experience has a line, and all its evidence just one."""
    to_json = functools.partial(json.dumps, ensure_ascii=False)
    experiences = [
        ",\n".join(
            f"      {to_json(k)}: {to_json(v)}" for k, v in each.items() if v not in ([], ())
        )
        for each in record["experiences"]
    ]
    head = [f"  {to_json(k)}: {to_json(v)},\n" for k, v in record.items() if k != "experiences"]
    body = ",\n".join(f"    {{\n{lines}\n    }}" for lines in experiences)
    return f'{{\n{"".join(head)}  "experiences": [' + (f"\n{body}\n  " if body else "") + "]\n}\n"


def library_in(program: Any) -> ExperienceLibrary:
    """The library that is baked into a program, as `from_program` gives it."""
    predictors = programs.named_predictors(program)
    return library_of({name: one.signature.instructions for name, one in predictors})


def library_of(instructions: Mapping[str, str]) -> ExperienceLibrary:
    """The library in the instructions of predictors, by name. Raises LibraryFormatError."""
    by_id: dict[str, Experience] = {}
    briefs: dict[str, str] = {}
    next_number = 1
    for name, text in instructions.items():
        before, written, after = programs.split_instructions(text)
        brief = programs.BRIEF_BLOCK.search(before if written else before + after)
        briefs[name] = programs.unescaped(brief[1]) if brief else ""
        experiences, free = programs.parse_block(written, name) if written else ([], 1)
        next_number = max(next_number, free, *(each.number + 1 for each in experiences))
        for experience in experiences:
            first = by_id.setdefault(experience.id, experience)
            if first != experience:
                raise LibraryFormatError(
                    f"Two lines disagree on an id: {first} and {experience}; give both the same "
                    f"text, or one of them another id."
                )
    library = ExperienceLibrary(by_id.values(), next_number=next_number, briefs=briefs)
    return ExperienceLibrary().merge(library)


@dataclass(frozen=True, slots=True)
class Applied:
    """A library after operations.

    `accepted` are the operations that took effect, in their order, each with the id of the
    experience that it adds, changes, deletes or supports. `refused` begins with malformed ones.
    """

    library: ExperienceLibrary
    accepted: tuple[tuple[str, Operation], ...]
    refused: tuple[values.Refusal, ...]
    briefs: tuple[Any, ...] = ()  # that are to be tried

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The accepted operations."""
        return tuple(operation for _, operation in self.accepted)


def _meaning(experience: Experience) -> tuple[str, str]:
    return meaning(experience.text), experience.scope
