"""The library: an immutable, ordered set of experiences; apply, compare, merge, bake, save.

It knows programs by their shape only (`named_predictors`, `signature`), so that reading a library
needs no DSPy. How the baked text looks is `block`'s business.
"""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tfgrpo_dspy.errors import LibraryError, LibraryFormatError
from tfgrpo_dspy.experience.block import (
    Block,
    parse_block,
    render_lines,
    split_instructions,
    write_block,
)
from tfgrpo_dspy.experience.operations import (
    DEFAULT_LIMITS,
    Limits,
    changed,
    gist,
    sift,
    with_evidence,
)
from tfgrpo_dspy.experience.programs import copy_program, named_predictors, with_instructions
from tfgrpo_dspy.experience.values import (
    ALL,
    ANNOTATIONS,
    Add,
    Delete,
    Effect,
    Evidence,
    Experience,
    Operation,
    Refusal,
)

FORMAT = "tfgrpo_dspy.library"
FORMAT_VERSION = 1

ProgramT = TypeVar("ProgramT")


@dataclass(frozen=True, slots=True)
class LibraryDiff:
    """What must happen to one library to get the other; `str` of it is made for people."""

    added: tuple[Experience, ...]
    removed: tuple[Experience, ...]
    modified: tuple[tuple[Experience, Experience], ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.modified)

    def __str__(self) -> str:
        lines = [f"+ [{new.id}] {_shown(new)}" for new in self.added]
        lines += [f"- [{old.id}] {_shown(old)}" for old in self.removed]
        lines += [f"~ [{old.id}] {_shown(old)} -> {_shown(new)}" for old, new in self.modified]
        return "\n".join(lines) or "no difference"


class ExperienceLibrary:
    """An immutable, ordered set of experiences with stable ids that are never used twice.

    Two libraries are equal when ids, texts, scopes, their order and the next free id are;
    evidence takes no part.

        >>> library = ExperienceLibrary([Experience(id="E1", text="Ask for the order number.")])
        >>> library = library.apply([{"op": "ADD", "text": "Say sorry first."}])
        >>> print(library.render())
        [E1*] Ask for the order number.
        [E2*] Say sorry first.

    Args:
        experiences: in the order in which they are to stand.
        next_number: the number of the next free id; by default the highest in use plus one.

    Raises:
        LibraryError: an id occurs twice, or `next_number` is not above every id in use.
    """

    __slots__ = ("_experiences", "_hash", "_next_number")

    def __init__(
        self, experiences: Iterable[Experience] = (), *, next_number: int | None = None
    ) -> None:
        self._experiences = tuple(experiences)
        uses = Counter(experience.id for experience in self._experiences)
        twice = sorted(id_ for id_, n in uses.items() if n > 1)
        if twice:
            raise LibraryError(f"ids {twice} occur twice; an id names one experience.")
        free = 1 + max((experience.number for experience in self._experiences), default=0)
        self._next_number = free if next_number is None else next_number
        if not isinstance(self._next_number, int) or self._next_number < free:
            raise LibraryError(
                f"next_number={next_number!r}: must be a whole number of at least {free}, above "
                f"every id in use."
            )
        self._hash = hash((self._experiences, self._next_number))  # asked for at every rollout

    def __reduce__(self) -> tuple[Callable[..., "ExperienceLibrary"], tuple[Any, ...]]:
        made = functools.partial(ExperienceLibrary, next_number=self._next_number)
        return made, (self._experiences,)  # a hash of texts is another in each process

    def __iter__(self) -> Iterator[Experience]:
        return iter(self._experiences)

    def __contains__(self, id_: object) -> bool:
        """Whether it holds an experience of this id: `"E1" in library`."""
        own = id_.id if isinstance(id_, Experience) else id_
        return own in self._by_id()

    def __len__(self) -> int:
        return len(self._experiences)

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "ExperienceLibrary":
        """The library of these lines of advice, for all predictors, as E1, E2, ...

        Raises:
            LibraryError: a text is empty, or is not a string.
        """
        return cls(Experience(f"E{number}", text) for number, text in enumerate(texts, start=1))

    def bare(self) -> "ExperienceLibrary":
        """An equal library without annotations."""
        plain = [Experience(e.id, e.text, e.scope) for e in self]
        return ExperienceLibrary(plain, next_number=self._next_number)

    def __getitem__(self, id_: str) -> Experience:
        """The experience of that id. Raises KeyError."""
        return self._by_id()[id_]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExperienceLibrary):
            return NotImplemented
        if self is other:
            return True
        return self._experiences == other._experiences and self._next_number == other._next_number

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        """A line for each experience, with what is known of its worth: made for people."""
        lines = [f"[{own.id}] {_shown(own)}{_worth(own)}" for own in self]
        return "\n".join(lines) or "no experiences"

    def __repr__(self) -> str:
        return f"ExperienceLibrary({list(self._experiences)}, next_number={self._next_number})"

    def _by_id(self) -> dict[str, Experience]:
        return {experience.id: experience for experience in self}

    @property
    def next_number(self) -> int:
        """The number of the id that the next ADD gets."""
        return self._next_number

    @property
    def scopes(self) -> frozenset[str]:
        """The scopes in use."""
        return frozenset(experience.scope for experience in self)

    def render(self, scope: str | None = None) -> str:
        """The experiences as text, a line each; with `scope`, those that this predictor is given.

        Without `scope` all are shown, and those for one predictor say for which.
        """
        if scope is not None:
            return render_lines(self._visible_to(scope))
        return "\n".join(render_lines([experience]) + _suffix(experience) for experience in self)

    def _visible_to(self, predictor: str) -> list[Experience]:
        return [experience for experience in self if experience.scope in (ALL, predictor)]

    # ------------------------------------------------------------------ operations

    def apply(
        self,
        operations: Iterable[Operation | Mapping[str, Any]],
        limits: Limits = DEFAULT_LIMITS,
    ) -> "ExperienceLibrary":
        """The library after the operations; those that `refusals` names are left out.

        Unchanged experiences keep id, text and place; a MODIFY keeps id and place; an ADD goes
        to the end under the next free id.
        """
        accepted, _ = sift(self, operations, limits)
        by_id = self._by_id()
        added: list[Experience] = []
        for operation in accepted:
            if isinstance(operation, Add):
                id_ = f"E{self._next_number + len(added)}"
                added.append(Experience(id_, operation.text, operation.scope, operation.evidence))
            elif isinstance(operation, Delete):
                del by_id[operation.id]
            else:
                by_id[operation.id] = changed(by_id[operation.id], operation)
        return ExperienceLibrary(
            [*by_id.values(), *added], next_number=self._next_number + len(added)
        )

    def refusals(
        self,
        operations: Iterable[Operation | Mapping[str, Any]],
        limits: Limits = DEFAULT_LIMITS,
    ) -> tuple[Refusal, ...]:
        """The operations that `apply` leaves out, and why.

        An operation is refused that is malformed; names an id that is not in the library, or one
        that an earlier operation of the list names (the first one counts); has an empty text or
        one of too many words; repeats an experience that stays (compared without case,
        punctuation and spacing, where the scopes meet); changes nothing; or adds to a full
        library (the deletions of the list make room first).
        """
        return tuple(sift(self, operations, limits)[1])

    def annotated(self, annotations: Mapping[str, Mapping[str, Any]]) -> "ExperienceLibrary":
        """The library with other annotations, by id; equal to this one.

        `library.annotated({"E2": {"effect": Effect(0.1, 0.04, 80), "is_on_trial": False}})`

        Raises:
            LibraryError: an id is not in the library, or a name is no annotation.
        """
        unknown = sorted(annotations.keys() - self._by_id().keys())
        if unknown:
            raise LibraryError(f"ids {unknown} are not in the library; it has {[*self._by_id()]}.")
        names = sorted({name for given in annotations.values() for name in given} - ANNOTATIONS)
        if names:
            raise LibraryError(f"{names} are no annotations; those are {sorted(ANNOTATIONS)}.")
        return ExperienceLibrary(
            (replace(experience, **annotations.get(experience.id, {})) for experience in self),
            next_number=self._next_number,
        )

    # ------------------------------------------------------------------ two libraries

    def diff(self, other: "ExperienceLibrary") -> LibraryDiff:
        """What turns this library into the other, by id; order and next free id are not shown."""
        mine, theirs = self._by_id(), {theirs.id: theirs for theirs in other}
        return LibraryDiff(
            added=tuple(new for id_, new in theirs.items() if id_ not in mine),
            removed=tuple(old for id_, old in mine.items() if id_ not in theirs),
            modified=tuple(
                (old, theirs[id_])
                for id_, old in mine.items()
                if id_ in theirs and theirs[id_] != old
            ),
        )

    def merge(self, other: "ExperienceLibrary") -> "ExperienceLibrary":
        """This library, then what the other has besides.

        Own ids stay; an id of the other's that is taken (or was, before a DELETE) gives way to
        the next free one. What says the same in the same scope is kept once, with the evidence
        of both.
        """
        merged = self._by_id()
        places = {(gist(mine.text), mine.scope): mine.id for mine in self}
        theirs_next = other.next_number
        fresh = max(self._next_number, theirs_next)
        for experience in other:
            same = places.get((gist(experience.text), experience.scope))
            if same is not None:
                merged[same] = with_evidence(merged[same], experience.evidence)
                continue
            if experience.number < self._next_number:
                experience = replace(experience, id=f"E{fresh}")
                fresh += 1
            merged[experience.id] = experience
            places[gist(experience.text), experience.scope] = experience.id
        return ExperienceLibrary(merged.values(), next_number=fresh)

    # ------------------------------------------------------------------ programs

    def bake(self, program: ProgramT) -> ProgramT:
        """A copy of the program with this library in its instructions, in place of any other.

        The copy shares the program's LMs. An empty library takes the block away and leaves the
        instructions byte for byte as they were before the first bake (and with the block goes
        the memory of retired ids).

        Raises:
            LibraryError: a scope is not the name of one of the program's predictors.
        """
        baked = copy_program(program)
        predictors = dict(named_predictors(baked))
        unknown = sorted(self.scopes - {ALL, *predictors})
        if unknown:
            raise LibraryError(
                f"scopes {unknown} name no predictor of the program; it has {sorted(predictors)}."
            )
        for name, predictor in predictors.items():
            parts = split_instructions(predictor.signature.instructions)
            instructions = parts.with_block(self._block(name))
            if instructions != predictor.signature.instructions:
                predictor.signature = with_instructions(predictor.signature, instructions)
        return baked

    def _block(self, predictor: str) -> str | None:
        visible = self._visible_to(predictor)
        if not visible:
            return None
        return write_block(visible, [experience.id for experience in self], self._next_number)

    @classmethod
    def from_program(cls, program: Any) -> "ExperienceLibrary":
        """The library that is baked into a program; empty where there is none.

        Evidence is not baked; `save` keeps it.

        Raises:
            LibraryFormatError: a block was damaged, or two predictors disagree on an id.
        """
        blocks: list[Block] = []
        for name, predictor in named_predictors(program):
            block = split_instructions(predictor.signature.instructions).block
            if block is not None:
                blocks.append(parse_block(block, name))
        return cls._from_blocks(blocks)

    @classmethod
    def _from_blocks(cls, blocks: Sequence[Block]) -> "ExperienceLibrary":
        by_id: dict[str, Experience] = {}
        for block in blocks:
            for experience in block.experiences:
                known = by_id.setdefault(experience.id, experience)
                if known != experience:
                    raise LibraryFormatError(
                        f"Two predictors disagree on {experience.id}: {known.text!r} for "
                        f"{known.scope!r}, {experience.text!r} for {experience.scope!r}; give "
                        f"both lines the same text."
                    )
        order = next((block.order for block in blocks if block.order), ())
        place = {id_: index for index, id_ in enumerate(order)}
        ordered = sorted(
            by_id.values(),
            key=lambda experience: (place.get(experience.id, len(place)), experience.number),
        )
        return cls(ordered, next_number=max((block.next_number for block in blocks), default=None))

    # ------------------------------------------------------------------ files

    def to_dict(self) -> dict[str, Any]:
        """What `save` writes: the library with its evidence, as values that JSON has."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "next_number": self._next_number,
            "experiences": [experience.to_dict() for experience in self],
        }

    def save(self, path: str | Path) -> None:
        """Write the library, with its evidence, as JSON text."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=2)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "ExperienceLibrary":
        """Read a library that `save` wrote, or that somebody wrote by hand.

        `{"experiences": [{"id": "E1", "text": "Ask first."}]}` is enough: without a `scope` an
        experience is for all predictors.

        Raises:
            LibraryFormatError: the file is not a library, or one of a newer version.
            OSError: the file cannot be read.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise LibraryFormatError(f"{path} is not a library: {error}.") from error
        return cls.from_dict(record, source=str(path))

    @classmethod
    def from_dict(cls, record: Any, source: str = "the record") -> "ExperienceLibrary":
        """The library that `to_dict` gave; `source` is what errors call it.

        Raises:
            LibraryFormatError: the record is not a library, or one of a newer version.
        """
        is_library = isinstance(record, dict) and isinstance(record.get("experiences"), list)
        if not is_library or record.get("format", FORMAT) != FORMAT:
            raise LibraryFormatError(
                f"{source} is not a library; pass a file that ExperienceLibrary.save wrote, or one "
                f'that holds {{"experiences": [{{"id": "E1", "text": "..."}}]}}.'
            )
        version = record.get("version", FORMAT_VERSION)
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise LibraryFormatError(
                f"{source} has format version {version!r}, newer than {FORMAT_VERSION}, the one "
                f"that this package reads; upgrade tfgrpo-dspy."
            )
        try:
            experiences = [_experience_from(fields) for fields in record["experiences"]]
            return cls(experiences, next_number=record.get("next_number"))
        except (KeyError, TypeError, LibraryError) as error:
            raise LibraryFormatError(f"{source} is a damaged library: {error!r}.") from error


def _shown(experience: Experience) -> str:
    return experience.text + _suffix(experience)


def _suffix(experience: Experience) -> str:
    return "" if experience.scope == ALL else f" (for {experience.scope})"


def _worth(experience: Experience) -> str:
    """Effect with its standard error, price, and whether it is on trial, in brackets."""
    known = []
    if experience.effect is not None:
        known.append(str(experience.effect))
    if experience.price is not None:
        known.append(f"{experience.price} tokens")
    if experience.is_on_trial:
        known.append("on trial")
    return f"  ({', '.join(known)})" if known else ""


def _experience_from(fields: Any) -> Experience:
    if not isinstance(fields, Mapping):
        raise TypeError(f"{fields!r} is no mapping with 'id' and 'text'")
    evidence = tuple(Evidence(**item) for item in fields.get("evidence", ()))
    effect = Effect(**fields["effect"]) if fields.get("effect") else None
    return Experience(**{**fields, "evidence": evidence, "effect": effect})
