"""The operations of an update as candidates: every subset of them is a library to try.

Ids are those of the proposed library, whatever the subset: what one trial calls E7 is E7 in all of
them, and an id that was dropped is not given to another experience.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property

from tfgrpo_dspy.experience import (
    Add,
    Delete,
    Experience,
    ExperienceLibrary,
    Keep,
    Operation,
    n_words,
)
from tfgrpo_dspy.gate.protocol import TrialEvidence


class Candidates:
    """What an update would change, one operation each; a KEEP is none, and is always applied."""

    def __init__(self, evidence: TrialEvidence) -> None:
        self._evidence = evidence
        self.changes = tuple(op for op in evidence.operations if not isinstance(op, Keep))
        self._made: dict[frozenset[int], ExperienceLibrary] = {}

    def __len__(self) -> int:
        return len(self.changes)

    @property
    def all(self) -> frozenset[int]:
        """Every candidate, by its position."""
        return frozenset(range(len(self)))

    def library(self, chosen: Iterable[int]) -> ExperienceLibrary:
        """The incumbent with these changes; nothing chosen: the incumbent, with what KEEPs say."""
        key = frozenset(chosen)
        if key not in self._made:
            self._made[key] = self._make(key)
        return self._made[key]

    def id_of(self, candidate: int) -> str:
        """The id of the experience that it adds, changes or deletes."""
        return self._ids[candidate]

    def fitting(self, chosen: Iterable[int]) -> frozenset[int]:
        """Those that the incumbent takes together, the first ones first.

        An ADD may need the room that a DELETE makes, and the DELETE may not be among them.
        """
        kept: list[int] = []
        for candidate in chosen:
            trial = [self.changes[k] for k in sorted([*kept, candidate])]
            if not self._evidence.incumbent.refusals(trial, self._evidence.limits):
                kept.append(candidate)
        return frozenset(kept)

    def dropped(self, chosen: Iterable[int], reasons: Mapping[int, str]) -> dict[str, str]:
        """Why an experience is not in the library, by id: refused, or deleted."""
        taken, gone = set(chosen), {}
        for k, operation in enumerate(self.changes):
            if isinstance(operation, Delete) == (k in taken):
                gone[self.id_of(k)] = reasons.get(k, "")
        return gone

    def present_in(self, library: ExperienceLibrary) -> frozenset[int] | None:
        """Which candidates it holds; None where it is not the incumbent with some of them."""
        if library == self._evidence.incumbent:
            return frozenset()
        texts = {experience.id: experience for experience in library}
        found = frozenset(
            k
            for k, operation in enumerate(self.changes)
            if texts.get(self.id_of(k))
            == (None if isinstance(operation, Delete) else self._proposed[self.id_of(k)])
        )
        return found if self.library(found) == library else None

    def _make(self, chosen: frozenset[int]) -> ExperienceLibrary:
        if not chosen:
            return self._base
        by_id = {experience.id: experience for experience in self._base}
        for k in sorted(chosen):
            id_ = self.id_of(k)
            if isinstance(self.changes[k], Delete):
                del by_id[id_]
            else:
                by_id[id_] = self._proposed[id_]
        return ExperienceLibrary(by_id.values(), next_number=self._proposed.next_number)

    @cached_property
    def _proposed(self) -> ExperienceLibrary:
        return self._evidence.proposed

    @cached_property
    def _base(self) -> ExperienceLibrary:
        keeps = [op for op in self._evidence.operations if isinstance(op, Keep)]
        return self._evidence.incumbent.apply(keeps, self._evidence.limits)

    @cached_property
    def _ids(self) -> tuple[str, ...]:
        old = {experience.id for experience in self._evidence.incumbent}
        new = iter(experience.id for experience in self._proposed if experience.id not in old)
        return tuple(_id_in(operation, new) for operation in self.changes)


def _id_in(operation: Operation, new: Iterable[str]) -> str:
    return next(iter(new)) if isinstance(operation, Add) else operation.id


def length(library: Iterable[Experience]) -> int:
    """Words in all: of two libraries that cannot be told apart, the one with fewer wins."""
    return sum(n_words(experience.text) for experience in library)
